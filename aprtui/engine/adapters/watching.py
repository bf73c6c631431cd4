"""Hooks on modules for as long as something runs, and functions seen while a module does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch.utils.hooks import RemovableHandle

__all__ = ["hooked", "while_running"]

Mode = TypeVar("Mode", bound=AbstractContextManager[Any])


@contextmanager
def hooked(*handles: RemovableHandle) -> Iterator[None]:
    """The hooks of these handles, until it is left."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def while_running(
    module: torch.nn.Module, make: Callable[[], Mode], tell: Callable[[Mode, Any], None]
) -> tuple[RemovableHandle, RemovableHandle]:
    """Each call of the module runs inside of what ``make`` gives, which ``tell`` is told then, with
    the output. A module may call itself."""
    running: list[tuple[Mode, ExitStack]] = []

    def begin(_: torch.nn.Module, inputs: Any) -> None:
        mode, stack = make(), ExitStack()
        stack.enter_context(mode)
        running.append((mode, stack))

    def end(_: torch.nn.Module, inputs: Any, output: Any) -> None:
        mode, stack = running.pop()
        stack.close()
        tell(mode, output)

    return module.register_forward_pre_hook(begin), module.register_forward_hook(end)

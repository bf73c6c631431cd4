"""One large capture's layers replayed on a Ray cluster: the findings of one process."""

from __future__ import annotations

import contextlib
import importlib
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aprtui.compare.bisect import Replayer
from aprtui.compare.spread import Found, Piece, replay_piece, spread_over
from aprtui.errors import AprtuiError, EngineError
from aprtui.sweep.cluster import RETRIES, first_line
from aprtui.text import clean

__all__ = ["over_ray"]


@dataclass(frozen=True)
class _Refused:
    """An error of ours, as it comes from another process."""

    node: str
    message: str
    hint: str
    exit_code: int


def _replay(piece: Piece, folder: Path) -> tuple[Found, ...] | _Refused:
    """A piece, where its relative paths count from ``folder``: messages name them as they are."""
    node = socket.gethostname()
    try:
        with contextlib.chdir(folder):
            return replay_piece(piece)
    except AprtuiError as error:
        return _Refused(node, error.message, error.hint, error.exit_code)
    except OSError as error:
        return _Refused(node, f"{clean(str(folder))}: {error.strerror}", "", 4)


def over_ray(ray: Any) -> Replayer:
    """A replayer for ``compare.bisect`` on the cluster that ``ray`` is connected to.

    Every node opens model and captures by the paths that this process opened them by. What it
    runs raises EngineError where a node cannot, or dies again and again.
    """
    errors: Any = importlib.import_module("ray.exceptions")

    def run(pieces: Sequence[Piece]) -> Iterator[tuple[Found, ...]]:
        task = ray.remote(_replay).options(num_cpus=1, max_retries=RETRIES)
        left = [task.remote(piece, Path.cwd()) for piece in pieces]
        try:
            while left:
                ready, left = ray.wait(left)
                yield _found(ray.get(ready[0]))
        except errors.RayError as error:
            raise EngineError(
                f"layers could not be replayed on the cluster: {first_line(error)}",
                hint="leave --ray out: this process replays them",
            ) from error
        finally:
            for ref in left:
                ray.cancel(ref, force=True)

    return spread_over(run, int(ray.cluster_resources().get("CPU", 1)))


def _found(result: tuple[Found, ...] | _Refused) -> tuple[Found, ...]:
    if not isinstance(result, _Refused):
        return result
    error = EngineError(
        f"on node {clean(result.node, 80)}: {result.message}",
        hint=result.hint or "every node opens model and captures by the same paths",
    )
    error.exit_code = result.exit_code
    raise error

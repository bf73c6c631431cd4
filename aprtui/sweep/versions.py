"""Which version of what an engine is here: part of what results are kept by."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from aprtui import __version__
from aprtui.errors import EngineError
from aprtui.sweep.plan import EngineSpec
from aprtui.text import clean

__all__ = ["check_version", "stamp_of"]

_PACKAGES = {  # distributions whose versions decide an engine's bits, its own first
    "aprtui": ("torch",),
    "hf": ("transformers", "torch"),
    "llamacpp": ("llama-cpp-python",),
    "command": (),
}
_ASKING_S = 60


def stamp_of(engine: EngineSpec) -> dict[str, str]:
    """The versions of an engine here, of aprtui's own, which compares and replays, always.

    Raises EngineError where the engine is not installed, or is not the version that the plan says.
    """
    found = {"aprtui": __version__}
    for name in _PACKAGES[engine.kind]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise EngineError(
                f"{name} is not installed here", hint=f"pip install 'aprtui[{engine.kind}]'"
            ) from None
    if engine.kind == "command":
        return {**found, "command": engine.version}
    own = found[_PACKAGES[engine.kind][0]] if engine.kind != "aprtui" else __version__
    if engine.version and engine.version != own:
        raise EngineError(
            f"{clean(engine.name, 80)} is version {clean(own, 60)} here, and the plan asks for "
            f"{clean(engine.version, 60)}",
            hint="install that version, or leave version out of the plan",
        )
    return found


def check_version(engine: EngineSpec, stamp: Mapping[str, str], folder: Path) -> None:
    """Raises EngineError where this node's engine is not the one that was planned with."""
    here = stamp_of(engine)
    for name, version in stamp.items():
        if here.get(name) != version:
            raise EngineError(
                f"this node has {name} {clean(here.get(name, ''), 60)}, and the sweep was planned "
                f"with {clean(version, 60)}",
                hint="the same environment on all nodes, as Ray's runtime_env makes it",
            )
    if engine.version_command:
        said = _said(engine.version_command, folder)
        if said != engine.version:
            raise EngineError(
                f"{clean(engine.name, 80)} says that it is {clean(said, 100)!r} here, and the plan "
                f"asks for {clean(engine.version, 100)!r}"
            )


def _said(command: Sequence[str], folder: Path) -> str:
    """What a command prints first."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, timeout=_ASKING_S, check=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(
            f"version_command {clean(command[0], 200)} cannot be asked: {clean(str(error), 200)}"
        ) from error
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    return lines[0].strip() if lines else ""

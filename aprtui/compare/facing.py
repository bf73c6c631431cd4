"""Which captures face one another in a matrix: the first and each other, or prompt and prompt."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from aprtui.compare.matrix import Faced, labels_of
from aprtui.errors import UsageError
from aprtui.formats.layout import prompts_in
from aprtui.formats.tracedir import TraceDir
from aprtui.text import clean

__all__ = ["faced_paths", "faced_sides"]

Side = str | os.PathLike[str] | TraceDir


def faced_paths(paths: Sequence[Path]) -> tuple[tuple[str, Path, Path], ...]:
    """Of each column its name and its two traces. Raises UsageError for what makes no column.

    Three traces and more: the first against each other. Folders of prompts: each prompt of the
    first against that prompt of each other.
    """
    prompts = [prompts_in(path) for path in paths]
    if not any(prompts):
        if len(paths) < 2:
            raise UsageError("a matrix needs two traces at least", hint="aprtui diff A B C")
        labels = labels_of(paths)[1:]
        return tuple((name, paths[0], path) for name, path in zip(labels, paths[1:], strict=True))
    alone = next((path for path, found in zip(paths, prompts, strict=True) if not found), None)
    if alone is not None or len(paths) < 2:
        raise UsageError(
            f"{clean(str(alone or paths[0]))}: "
            + ("one trace" if alone else "prompts") + " alone cannot face prompts",
            hint="name folders that `aprtui trace --prompts` wrote, or traces",
        )  # fmt: skip
    for path, found in zip(paths, prompts, strict=True):
        if lacks := prompts[0].keys() ^ found.keys():
            raise UsageError(
                f"{min(lacks)} is in one of {clean(str(paths[0]))} and {clean(str(path))} only",
                hint="name the traces themselves, or trace the same prompts into both",
            )
    labels = labels_of(paths)
    return tuple(
        (name if len(paths) == 2 else f"{label}/{name}", first, other[name])
        for name, first in prompts[0].items()
        for label, other in zip(labels[1:], prompts[1:], strict=True)
    )


def faced_sides(sides: Sequence[Side], read: Callable[[Side], TraceDir]) -> tuple[Faced, ...]:
    """The columns of what is named, each trace opened once by ``read``."""
    opened = [side for side in sides if isinstance(side, TraceDir)]
    if opened:
        traces = [read(side) for side in sides]
        labels = labels_of([trace.root for trace in traces])
        return tuple(
            Faced(label, traces[0], other)
            for label, other in zip(labels[1:], traces[1:], strict=True)
        )
    held: dict[Path, TraceDir] = {}

    def once(path: Path) -> TraceDir:
        if path not in held:
            held[path] = read(path)
        return held[path]

    paths = [Path(side) for side in sides if not isinstance(side, TraceDir)]
    return tuple(Faced(name, once(a), once(b)) for name, a, b in faced_paths(paths))

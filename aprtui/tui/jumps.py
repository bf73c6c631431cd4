"""Where one was and where one goes: places on screens as values, and the list of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from aprtui.formats.layout import StageKey
from aprtui.text import clean

__all__ = ["Goal", "Jump", "Jumps", "stage_goals"]

MOST = 200


@dataclass(frozen=True)
class Jump:
    """A place: a kind of ``screen`` over ``paths``, and the stage or the tensor on it.

    ``screen``: "home", "browse", "diff", "pair", "bisect", "model", "models", "matrix" (many
    traces) or "results" (a sweep's). A stage on the Model screen stands for the weight it reads.
    """

    screen: str
    paths: tuple[Path, ...]
    key: StageKey | None = None
    tensor: str = ""

    @property
    def absolute(self) -> tuple[Path, ...]:
        return tuple(path.absolute() for path in self.paths)


@dataclass
class Jumps:
    """Back and forward, as a browser has them."""

    _behind: list[Jump] = field(default_factory=list)
    _ahead: list[Jump] = field(default_factory=list)

    def leave(self, here: Jump | None) -> None:
        """One goes somewhere else from ``here``."""
        if here is not None and self._behind[-1:] != [here]:
            self._behind = [*self._behind[1 - MOST :], here]
        self._ahead.clear()

    def step(self, back: bool, here: Jump | None) -> Jump | None:
        """The place before, or after, the one that one is at; None when there is none."""
        source, other = (self._behind, self._ahead) if back else (self._ahead, self._behind)
        while source:
            found = source.pop()
            if found != here:
                if here is not None:
                    other.append(here)
                return found
        return None


@dataclass(frozen=True)
class Goal:
    """What the palette offers to go to: ``label`` says it, ``typed`` completes it.

    ``key`` is a stage's, or a tensor's layer and role; ``more`` are other words that mean it.
    """

    label: str
    typed: str
    go: Callable[[], object]
    key: StageKey | None = None
    more: str = ""

    def meant(self, matches: Callable[[StageKey, str], bool], words: Sequence[str]) -> bool:
        """Whether what was typed means this: numbers are layers where there are some."""
        if self.key is not None:
            return matches(self.key, f"layer {self.more}")
        return all(word in self.label.lower() for word in words)


def stage_goals(
    keys: Iterable[StageKey], screen: str, paths: tuple[Path, ...], go: Callable[[Jump], object]
) -> Iterator[Goal]:
    """The stages on a screen as goals."""
    for key in keys:
        name = clean(key.stage, 60)
        typed = name if key.layer is None else f"layer {key.layer} {name}"
        yield Goal(typed, typed, partial(go, Jump(screen, paths, key)), key)

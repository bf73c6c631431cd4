"""Text before floats: do engines read a prompt as the same tokens, and if not, what is it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aprtui.text import clean, count

__all__ = ["TextFound", "compare_tokens"]


@dataclass(frozen=True)
class TextFound:
    """What one engine's own tokenizer makes of the prompt. ``kind``: "same", "bos" (one missing,
    or twice), "special" (a special token read as text, or text as one), "ids"."""

    engine: str
    kind: str
    sentence: str
    ids: tuple[int, ...]

    @property
    def same(self) -> bool:
        return self.kind == "same"

    def to_json(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "kind": self.kind,
            "sentence": self.sentence,
            "tokens": list(self.ids),
        }


def compare_tokens(
    engine: str,
    ours: Sequence[int],
    theirs: Sequence[int],
    *,
    bos: int | None,
    special: Callable[[int], bool],
    text_of: Callable[[int], str],
) -> TextFound:
    """What ``engine`` reads otherwise than we do; ``special`` says of a token whether it is one."""
    ids = tuple(theirs)
    if tuple(ours) == ids:
        return TextFound(engine, "same", f"the same {count(len(ids), 'token')}", ids)
    for kind, said in (_bos(engine, ours, ids, bos), _special(engine, ours, ids, special, text_of)):
        if said:
            return TextFound(engine, kind, said, ids)
    pairs = zip(ours, ids, strict=False)
    at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(ids)))
    here, there = (_shown(side, at, text_of) for side in (ours, ids))
    said = f"{engine} makes {len(ids)} tokens of it and we {len(ours)}: token {at} is {there}, "
    return TextFound(engine, "ids", f"{said}ours {here}", ids)


def _shown(ids: Sequence[int], at: int, text_of: Callable[[int], str]) -> str:
    return f"{ids[at]} '{clean(text_of(ids[at]), 40)}'" if at < len(ids) else "none"


def _leading(ids: Sequence[int], bos: int) -> int:
    return next((n for n, each in enumerate(ids) if each != bos), len(ids))


def _bos(
    engine: str, ours: Sequence[int], theirs: Sequence[int], bos: int | None
) -> tuple[str, str]:
    """Whether only the number of BOS at the beginning differs."""
    if bos is None:
        return "bos", ""
    here, there = _leading(ours, bos), _leading(theirs, bos)
    if here == there or tuple(ours[here:]) != tuple(theirs[there:]):
        return "bos", ""
    said = {0: "no BOS", 1: "one BOS"}
    return "bos", (
        f"{engine} puts {said.get(there, f'{there} BOS')} (token {bos}) before the prompt, we put "
        f"{said.get(here, f'{here} BOS')}"
    )


def _special(
    engine: str,
    ours: Sequence[int],
    theirs: Sequence[int],
    special: Callable[[int], bool],
    text_of: Callable[[int], str],
) -> tuple[str, str]:
    """Whether one side holds special tokens that the other has read as text."""
    found = [[each for each in side if special(each)] for side in (ours, theirs)]
    for here, there, who, other in (
        (found[0], found[1], engine, "we"),
        (found[1], found[0], "our tokenizer", engine),
    ):
        lost = [each for each in here if each not in there]
        if lost:
            reads = "read" if other == "we" else "reads"
            said = f"{who} reads '{clean(text_of(lost[0]), 40)}' as text; {other} {reads} it as the"
            return "special", f"{said} special token {lost[0]}"
    return "special", ""

"""Text before floats: do engines read a prompt as the same tokens, and if not, what is it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aprtui.text import clean, count

__all__ = ["TextFound", "compare_chats", "compare_templates", "compare_tokens"]

_SHOWN = 30  # characters of a template around where two part


@dataclass(frozen=True)
class TextFound:
    """What one engine's own tokenizer makes of the prompt, or the tokenizer of another file.
    ``kind``: "same", "bos" (one missing, or twice), "special" (a special token read as text, or
    text as one), "ids"; "template" of two files whose chat templates are others."""

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
    us: str = "we",
) -> TextFound:
    """What ``engine`` reads otherwise than we do (or ``us``, another file's tokenizer);
    ``special`` says of a token whether it is one."""
    ids = tuple(theirs)
    if tuple(ours) == ids:
        return TextFound(engine, "same", f"{engine} reads the same {count(len(ids), 'token')}", ids)
    for kind, said in (
        ("bos", _bos(engine, us, ours, ids, bos)),
        ("special", _special(engine, us, ours, ids, special, text_of)),
    ):
        if said:
            return TextFound(engine, kind, said, ids)
    pairs = zip(ours, ids, strict=False)
    at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(ids)))
    here, there = (_shown(side, at, text_of) for side in (ours, ids))
    said = f"{engine} makes {len(ids)} tokens of it and {us} {len(ours)}: token {at} is {there}, "
    return TextFound(engine, "ids", f"{said}{'ours' if us == 'we' else f'of {us}'} {here}", ids)


def compare_templates(engine: str, us: str, ours: str | None, theirs: str | None) -> TextFound:
    """Whether two files' chat templates are the same text; one that is missing differs, too."""
    if ours == theirs:
        return TextFound(engine, "same", f"{engine} has the same chat template", ())
    if ours is None or theirs is None:
        has, lacks = (us, engine) if theirs is None else (engine, us)
        return TextFound(engine, "template", f"{has} has a chat template and {lacks} has none", ())
    said = f"the chat templates part at {_parting(us, engine, ours, theirs)}"
    return TextFound(engine, "template", said, ())


def compare_chats(engine: str, us: str, ours: str, theirs: str) -> str:
    """How two engines render the same chat otherwise, each from its own file; empty where they do
    not. ``ours`` and ``theirs`` begin without BOS."""
    if ours == theirs:
        return ""
    return f"a chat of the prompt is rendered otherwise, from {_parting(us, engine, ours, theirs)}"


def _parting(us: str, engine: str, ours: str, theirs: str) -> str:
    pairs = zip(ours, theirs, strict=False)
    at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    here, there = (clean(side[at : at + _SHOWN], 60) for side in (ours, theirs))
    return f"character {at}: {us} has '{here}', {engine} '{there}'"


def _shown(ids: Sequence[int], at: int, text_of: Callable[[int], str]) -> str:
    return f"{ids[at]} '{clean(text_of(ids[at]), 40)}'" if at < len(ids) else "none"


def _leading(ids: Sequence[int], bos: int) -> int:
    return next((n for n, each in enumerate(ids) if each != bos), len(ids))


def _does(who: str, verb: str) -> str:
    return f"{who} {verb}" if who == "we" else f"{who} {verb}s"


def _bos(engine: str, us: str, ours: Sequence[int], theirs: Sequence[int], bos: int | None) -> str:
    """Whether only the number of BOS at the beginning differs."""
    if bos is None:
        return ""
    here, there = _leading(ours, bos), _leading(theirs, bos)
    if here == there or tuple(ours[here:]) != tuple(theirs[there:]):
        return ""
    said = {0: "no BOS", 1: "one BOS"}
    return (
        f"{engine} puts {said.get(there, f'{there} BOS')} (token {bos}) before the prompt, "
        f"{_does(us, 'put')} {said.get(here, f'{here} BOS')}"
    )


def _special(
    engine: str,
    us: str,
    ours: Sequence[int],
    theirs: Sequence[int],
    special: Callable[[int], bool],
    text_of: Callable[[int], str],
) -> str:
    """Whether one side holds special tokens that the other has read as text."""
    found = [[each for each in side if special(each)] for side in (ours, theirs)]
    for here, there, who, other in (
        (found[0], found[1], engine, us),
        (found[1], found[0], "our tokenizer" if us == "we" else us, engine),
    ):
        lost = [each for each in here if each not in there]
        if lost:
            said = f"{_does(who, 'read')} '{clean(text_of(lost[0]), 40)}' as text; "
            return f"{said}{_does(other, 'read')} it as the special token {lost[0]}"
    return ""

"""The configurations and tokenizers of two models: what is not weights and must agree too."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aprtui.compare.computation import same_value, shown_value
from aprtui.compare.weight_sides import WeightSide
from aprtui.errors import UsageError
from aprtui.formats.gguf import StringArray
from aprtui.graph.ops import Attend, Positions
from aprtui.model.tokenizer import TokenizerSpec
from aprtui.text import clean, count

__all__ = ["Setting", "compare_configs", "compare_tokenizers"]

_RECONCILED = frozenset({"rope_layout", "norm_offset", "tied_head"})  # weights are compared so
_PAD = re.compile(r"\[PAD\d+\]")


@dataclass(frozen=True)
class Setting:
    """One configuration value or part of the tokenizer, on both sides.

    ``kind``: "equal", "differs", "no-effect" (differs, and nothing is computed otherwise for it),
    "missing-a", "missing-b" (not in that file), "unstated" (in neither). ``a`` and ``b`` are clean
    text for people; ``message`` says where they part.
    """

    key: str
    kind: str
    a: str
    b: str
    message: str = ""


def compare_configs(
    a: WeightSide, b: WeightSide, *, same_pass: bool = False
) -> tuple[Setting, ...]:
    """Every configuration value that both files come to, in the order A's family reads.

    A key of one format alone comes to settings that both have. ``same_pass``: both compute the
    same, so no value that differs has an effect.
    """
    found = []
    for name, x in a.settings.items():
        if name in _RECONCILED or name not in b.settings:
            continue
        y = b.settings[name]
        silent = [name in side.unstated for side in (a, b)]
        if all(silent):
            kind = "unstated" if name != "max_positions" else "equal"
        elif any(silent):
            kind = "missing-a" if silent[0] else "missing-b"
        else:
            kind = "equal" if same_value(x, y) else "differs"
        unplaced = name == "max_positions" and not any(map(_places, (a, b)))
        if (kind == "differs" and (same_pass or _no_effect(name, a, b))) or (
            kind.startswith("missing") and unplaced
        ):
            kind = "no-effect"
        texts = ["not stated" if s else shown_value(v) for s, v in zip(silent, (x, y), strict=True)]
        found.append(Setting(name, kind, texts[0], texts[1]))
    return tuple(found)


def _places(side: WeightSide) -> bool:
    """Whether the pass asks where a token stands: one of states alone goes on for ever."""
    return any(isinstance(node.op, Attend | Positions) for node in side.graph)


def _no_effect(name: str, a: WeightSide, b: WeightSide) -> bool:
    """Whether each pass stays as it is with the other file's value."""
    tried = (a.changes(name, b.settings[name]), b.changes(name, a.settings[name]))
    return tried == (False, False)


def compare_tokenizers(a: WeightSide, b: WeightSide) -> tuple[Setting, ...]:
    """Token ids, merges, types, scores and special ids. Raises BadFileError for damaged ones.

    Types and scores that one file leaves out are no difference: several writers drop them.
    """
    specs = [_spec(side) for side in (a, b)]
    shown = ["none" if spec is None else f"{len(spec.vocabulary):,} tokens" for spec in specs]
    x, y = specs
    if x is None or y is None:
        kind = "unstated" if x is y else "missing-a" if x is None else "missing-b"
        return (Setting("tokenizer", kind, *shown),)
    parts = [
        _tokens(x, y),
        _merges(x, y),
    ]
    for key in ("token_types", "scores"):
        left, right = getattr(x, key), getattr(y, key)
        if left is not None and right is not None:
            length = min(map(_unpadded, (x, y)))
            parts.append(_sequence(key, left[:length], right[:length], str))
    for key in ("model", "pre", "bos_id", "eos_id", "add_bos", "add_eos", "add_space_prefix"):
        left, right = getattr(x, key), getattr(y, key)
        if left is not None and right is not None:
            kind = "equal" if left == right else "differs"
            parts.append(Setting(key, kind, clean(str(left), 60), clean(str(right), 60)))
    return tuple(parts)


def _spec(side: WeightSide) -> TokenizerSpec | None:
    """What the file says of its tokenizer, a tokenizer.json read through; None without one."""
    from aprtui.model.jsontokenizer import json_vocabulary, load_library

    try:
        spec = side.tokenizer_spec
    except UsageError:
        return None
    if spec.model != "json":
        return spec
    library = load_library(spec)
    merges = json.loads(library.to_str())["model"].get("merges") or ()
    found = json_vocabulary(spec, library).spec
    return dataclasses.replace(found, merges=merges)


def _tokens(x: TokenizerSpec, y: TokenizerSpec) -> Setting:
    sizes = [_unpadded(spec) for spec in (x, y)]
    if _same_strings(x.vocabulary, y.vocabulary):
        return Setting("tokens", "equal", *(f"{size:,}" for size in sizes))
    a, b = (spec.vocabulary[:size] for spec, size in zip((x, y), sizes, strict=True))
    return _sequence("tokens", a, b, clean)


def _merges(x: TokenizerSpec, y: TokenizerSpec) -> Setting:
    if _same_strings(x.merges, y.merges):
        return Setting("merges", "equal", *(f"{len(spec.merges):,}" for spec in (x, y)))
    a, b = ([_merge(merge) for merge in spec.merges] for spec in (x, y))
    return _sequence("merges", a, b, clean)


def _merge(merge: Any) -> str:
    """A merge as "left right", which JSON may give as a pair."""
    return merge if isinstance(merge, str) else " ".join(map(str, merge))


def _same_strings(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two files' string arrays are known to be the same without decoding them."""
    return isinstance(a, StringArray) and isinstance(b, StringArray) and a.same_bytes(b)


def _unpadded(spec: TokenizerSpec) -> int:
    """How many tokens there are before those that only pad the embedding: None or ``[PAD123]``."""
    count = len(spec.vocabulary)
    while count and _is_padding(spec.vocabulary[count - 1]):
        count -= 1
    return count


def _is_padding(token: str | None) -> bool:
    return token is None or _PAD.fullmatch(token) is not None


def _sequence(key: str, a: Sequence[Any], b: Sequence[Any], shown: Callable[[str], str]) -> Setting:
    sizes = (f"{len(a):,}", f"{len(b):,}")
    if not len(a) or not len(b):
        kind = "equal" if len(a) == len(b) else "missing-b" if len(a) else "missing-a"
        return Setting(key, kind, *sizes)
    a, b = list(a), list(b)
    if a == b:
        return Setting(key, "equal", *sizes)
    wrong = [place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
    if wrong:
        first = wrong[0]
        texts = [shown(str(side[first])) for side in (a, b)]
        message = (
            f"{count(len(wrong))} differ, the first {first:,}: {texts[0]} in A, {texts[1]} in B"
        )
        return Setting(key, "differs", *sizes, message)
    return Setting(key, "equal" if len(a) == len(b) else "differs", *sizes)

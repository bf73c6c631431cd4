"""Text to token ids as the model's own tokenizer would: byte-level BPE, SentencePiece BPE, JSON.

The rules are llama.cpp's (src/llama-vocab.cpp): special tokens are cut out of the text first,
longest first; what lies between is tokenised piece by piece; BOS and EOS are added as the file
asks. Merging is the ``tokenizers`` library's, but for vocabularies with scores: there any two
neighbours merge whose joined text is a token, best score first and leftmost of equals, which the
library's list of ranked pairs cannot say.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from aprtui.errors import BadFileError, UsageError
from aprtui.model.jsontokenizer import (
    json_vocabulary,
    library_failures,
    load_library,
    spec_from_folder,
)
from aprtui.model.pretokenizers import PRE_TOKENIZERS, TOKENS_HINT, pre_tokenizer_named
from aprtui.model.vocabulary import (
    CONTROL,
    GLYPH_OF,
    GLYPHS,
    MAX_VOCABULARY,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    TokenizerSpec,
    Vocabulary,
    byte_of,
    spec_from_apr,
    spec_from_gguf,
)
from aprtui.text import clean

__all__ = [
    "Tokenizer",
    "TokenizerSpec",
    "Vocabulary",
    "build_tokenizer",
    "spec_from_apr",
    "spec_from_folder",
    "spec_from_gguf",
    "vocabulary_of",
]

MAX_MERGES = 2_000_000
MAX_TOKEN_BYTES = 64 * 1024
# Of a prompt of so many bytes all stretches are listed, and merges that make none are left out:
# the library takes 0.3 s for the 151,000 of a large vocabulary.
_SHORT_BYTES = 256

# (text, whether it begins the prompt or follows a special token) -> ids
_Segment = Callable[[str, bool], list[int]]
# What a prompt may hold as a token, or None: anything.
_Stretches = frozenset[str] | None
_Merges = list[tuple[str, str]]
_Prepare = Callable[[_Stretches], tuple[_Segment, _Merges]]


class Tokenizer:
    """Encodes prompts and shows tokens. Made by ``build_tokenizer``.

    ``notes``: what its files contradict each other in, and which of them is followed.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        vocabulary: Vocabulary,
        ids_of: Callable[[str, bool], list[int]],
        notes: tuple[str, ...] = (),
    ) -> None:
        self.notes = notes
        self._spec = spec
        self._vocabulary = vocabulary
        self._ids_of = ids_of  # (text, special) -> ids, without BOS and EOS
        self.vocab_size = len(vocabulary)

    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """The token ids of ``text``, with BOS and EOS as the file asks.

        ``special``: ``<|im_start|>`` and the like in the text are those tokens; otherwise they are
        text (user-defined tokens are found all the same). Raises UsageError where ``text`` cannot
        be written as UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the prompt is not valid UTF-8 at character {error.start}") from error
        spec = self._spec
        before = [spec.bos_id] if spec.add_bos and spec.bos_id is not None else []
        after = [spec.eos_id] if spec.add_eos and spec.eos_id is not None else []
        return (*before, *self._ids_of(text, special), *after)

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, whether or not one is added."""
        return self._spec.bos_id

    def text_of(self, token_id: int) -> str:
        """The token's own text; see ``Vocabulary.text_of``."""
        return self._vocabulary.text_of(token_id)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a sequence of ids."""
        return self._vocabulary.decode(ids)


def vocabulary_of(spec: TokenizerSpec) -> Vocabulary:
    """The texts of the tokens, also where nothing can be encoded (no merges, unknown kinds)."""
    if spec.model != "json":
        return Vocabulary(spec)
    return json_vocabulary(spec, load_library(spec))


def build_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """The tokenizer that ``spec`` describes.

    Raises UsageError where the file does not hold enough to rebuild it or names a kind that is not
    known (each offers ``--tokens``), and BadFileError where what it holds contradicts itself. The
    merges of a byte-level one are looked at with a text at hand: encoding it may raise that too.
    """
    if spec.model == "json":
        return _json_tokenizer(spec)
    if spec.model not in ("bpe", "spm"):
        raise UsageError(
            f"tokenizer: the kind '{clean(spec.model)}' cannot be rebuilt; bpe and spm can",
            hint=TOKENS_HINT,
        )
    tokens = _checked_vocabulary(spec)
    types = _checked_types(spec, len(tokens))
    ids = dict(zip(reversed(tokens), range(len(tokens) - 1, -1, -1), strict=True))
    ids.pop("", None)
    if spec.control_by_text and types is not None:
        types = _with_controls(types, ids)
    checked = replace(spec, vocabulary=tokens, token_types=types)
    prepare = _byte_level(checked, ids) if spec.model == "bpe" else _sentencepiece(checked, ids)

    def ids_of_parts(text: str, special: bool) -> list[int]:
        segment, merges = prepare(_stretches(text))
        specials = _special_tokens(checked, ids, merges)
        found: list[int] = []
        after_special = True
        for part in _partition(text, specials, special):
            found.extend(segment(part, after_special) if isinstance(part, str) else (part,))
            after_special = not isinstance(part, str)
        return found

    notes = tuple(
        f"the file asks for {name.upper()} and names no such token: none is added"
        for name, asked, token in (
            ("bos", spec.add_bos, spec.bos_id), ("eos", spec.add_eos, spec.eos_id),
        )
        if asked and token is None
    )  # fmt: skip
    return Tokenizer(checked, Vocabulary(checked), ids_of_parts, notes)


def _json_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    library = load_library(spec)
    templated = spec.add_bos is None  # the post-processor adds BOS, so nobody else must

    def ids_of(text: str, special: bool) -> list[int]:
        library.encode_special_tokens = not special
        with library_failures(spec.json_path or "tokenizer.json", "cannot encode the prompt"):
            return list(library.encode(text, add_special_tokens=templated).ids)

    untemplated = replace(spec, add_bos=not templated and spec.add_bos)
    notes = () if templated else _template_notes(spec, library)
    return Tokenizer(untemplated, json_vocabulary(spec, library), ids_of, notes)


def _template_notes(spec: TokenizerSpec, library: tokenizers.Tokenizer) -> tuple[str, ...]:
    """Whether tokenizer.json's own template and tokenizer_config.json, which is followed, disagree
    about BOS."""
    with library_failures(spec.json_path or "tokenizer.json", "cannot encode"):
        with_template = library.encode("a", add_special_tokens=True).ids
        plain = library.encode("a", add_special_tokens=False).ids
    adds = len(with_template) > len(plain) and with_template[:1] != plain[:1]
    if adds == bool(spec.add_bos and spec.bos_id is not None):
        return ()
    does = "adds a token before the text" if adds else "adds no BOS"
    follows = "adds BOS" if spec.add_bos else "adds none"
    return (
        f"tokenizer.json's template {does}, and tokenizer_config.json {follows}: the latter is "
        "followed; --tokens gives the ids as another program has them",
    )


# Tokens that llama.cpp takes for control tokens by their text (src/llama-vocab.cpp): all that end a
# generation, and of each other kind the one that is there.
_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
)  # fmt: skip
_RENDERED = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
_NOT_STRIPPED = ("<unk>", "<s>", "<|endoftext|>")  # of phi-3's special tokens
_SPACE = " \t\n\v\f\r"  # C's isspace
_KINDS = (
    ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>",
     "\u2581<PRE>", "<|code_prefix|>", "<|prefix|>"),
    ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>",
     "\u2581<SUF>", "<|code_suffix|>", "<|suffix|>"),
    ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>",
     "\u2581<MID>", "<|code_middle|>", "<|middle|>"),
    ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    ("<|file_sep|>",),
)  # fmt: skip


def _with_controls(types: list[int], ids: Mapping[str, int]) -> list[int]:
    """The types with those tokens made control tokens. Of a kind that has several, llama.cpp takes
    whichever its hash table lists first: they are left as they are."""
    made = list(types)
    kinds = [[text for text in kind if text in ids] for kind in _KINDS]
    for text in (*_ENDS, *(kind[0] for kind in kinds if len(kind) == 1)):
        if text in ids:
            made[ids[text]] = CONTROL
    shown = [*_RENDERED]
    if {"<|return|>", "<|call|>"} <= ids.keys() or (
        "<|flush|>" in ids and ("<|call|>" in ids or "<|calls|>" in ids)
    ):
        shown.append("<|end|>")  # of harmony's and solar's, which end a message and no generation
    for text in shown:
        if text in ids:
            made[ids[text]] = USER_DEFINED
    if "<|tool_response>" in ids and "</s>" in ids:
        made[ids["</s>"]] = NORMAL
    return made


# ---- what the file holds, checked ----


def _bad(spec: TokenizerSpec, what: str) -> BadFileError:
    return BadFileError(spec.path or "tokenizer", what, hint=TOKENS_HINT)


def _checked_vocabulary(spec: TokenizerSpec) -> list[str]:
    size = len(spec.vocabulary)
    if not 0 < size <= MAX_VOCABULARY:
        raise _bad(spec, f"a vocabulary of {size:,} tokens; 1 to {MAX_VOCABULARY:,} can be")
    tokens = list(spec.vocabulary)
    try:
        "".join(tokens).encode()
    except (TypeError, UnicodeEncodeError) as error:
        raise _bad(spec, "a token of the vocabulary is not text") from error
    if max(map(len, tokens)) > MAX_TOKEN_BYTES // 4:
        longest = max(len(token.encode()) for token in tokens)
        if longest > MAX_TOKEN_BYTES:
            raise _bad(spec, f"a token of {longest:,} bytes; {MAX_TOKEN_BYTES:,} can be")
    for name, token_id in (("bos", spec.bos_id), ("eos", spec.eos_id)):
        if token_id is not None and not 0 <= token_id < size:
            raise _bad(spec, f"{name} token {token_id} is outside the vocabulary of {size:,}")
    return tokens


def _checked_types(spec: TokenizerSpec, size: int) -> list[int] | None:
    if spec.token_types is None:
        return None
    if len(spec.token_types) != size:
        raise _bad(spec, f"{len(spec.token_types):,} token types for {size:,} tokens")
    try:
        return [int(kind) for kind in spec.token_types]
    except (TypeError, ValueError, OverflowError) as error:
        raise _bad(spec, "a token type is not a number") from error


def _checked_scores(spec: TokenizerSpec, scores: Sequence[float], size: int) -> list[float]:
    if len(scores) != size:
        raise _bad(spec, f"{len(scores):,} scores for {size:,} tokens")
    try:
        found = [float(score) for score in scores]
    except (TypeError, ValueError, OverflowError) as error:
        raise _bad(spec, "a token's score is not a number") from error
    if any(map(math.isnan, found)):
        raise _bad(spec, "a token's score is NaN")
    return found


def _checked_merges(
    spec: TokenizerSpec, ids: Mapping[str, int], *, few: bool = False
) -> list[tuple[str, str]]:
    """The merges in order of rank; those that name or make a token that is not are left out.

    ``few``: ``ids`` are so few that what might merge into each is listed first, which saves time.
    """
    if len(spec.merges) > MAX_MERGES:
        raise _bad(spec, f"{len(spec.merges):,} merges; {MAX_MERGES:,} can be")
    listed = {
        f"{token[:place]} {token[place:]}"
        for token in (ids if few else ())
        for place in range(1, len(token))
    }
    pairs: dict[tuple[str, str], None] = {}  # the first occurrence of a pair sets its rank
    for rank, merge in enumerate(spec.merges):
        space = merge.find(" ", 1) if isinstance(merge, str) else -1
        if space < 0:
            raise _bad(spec, f"merge {rank:,} is not two tokens with a space between")
        if few and merge not in listed:
            continue
        left, right = merge[:space], merge[space + 1 :]
        if left + right in ids and left in ids and right in ids:
            pairs.setdefault((left, right))
    return list(pairs)


def _stretches(text: str) -> _Stretches:
    """Every stretch of a short text, as it stands, in GPT-2's writing of its bytes and in
    SentencePiece's of its spaces."""
    written = "".join(GLYPH_OF[byte] for byte in text.encode())
    if len(written) > _SHORT_BYTES:
        return None
    return frozenset(
        whole[start:stop]
        for whole in {text, written, f" {text}".replace(" ", "\u2581")}
        for start in range(len(whole))
        for stop in range(start + 1, len(whole) + 1)
    )


def _among(stretches: _Stretches, ids: Mapping[str, int]) -> Mapping[str, int]:
    """The tokens that a text of these stretches may come to hold, and their ids."""
    if stretches is None:
        return ids
    return {token: ids[token] for token in stretches if token in ids}


# ---- special tokens ----


class _Special(NamedTuple):
    """A token that is cut out of the text; ``always``: where it stands in plain text too;
    ``strips``: the white space after it goes with it."""

    text: str
    id: int
    always: bool
    strips: bool


def _special_tokens(
    spec: TokenizerSpec, ids: Mapping[str, int], merges: Iterable[tuple[str, str]]
) -> list[_Special]:
    """Longest first, ties by id.

    Without token types: what is written ``<...>``, longer than two characters, is no byte token and
    is not what a merge makes (docs/apr-format.md 4.3).
    """
    types = spec.token_types
    if types is not None:
        cut = (UNKNOWN, CONTROL, USER_DEFINED)
        chosen = [i for i, kind in enumerate(types) if kind in cut]
    else:
        made = {left + right for left, right in merges}
        chosen = [
            i
            for token, i in ids.items()
            if len(token) > 2 and token[0] == "<" and token[-1] == ">"
            and token not in made and byte_of(token) is None
        ]  # fmt: skip
    found = [
        _Special(
            text, i, types is not None and types[i] == USER_DEFINED,
            spec.strips_after and text not in _NOT_STRIPPED,
        )
        for i in chosen
        if (text := spec.vocabulary[i])
    ]  # fmt: skip
    return sorted(found, key=lambda entry: (-len(entry.text.encode()), entry.id))


def _partition(text: str, specials: Iterable[_Special], parse: bool) -> list[str | int]:
    """``text`` as stretches of ordinary text and ids of the special tokens between them.

    Every occurrence of a longer token is cut out before a shorter one is looked for.
    """
    parts: list[str | int] = [text] if text else []
    for token, token_id, always, strips in specials:
        if token not in text or not (parse or always):
            continue
        cut: list[str | int] = []
        for part in parts:
            if not isinstance(part, str):
                cut.append(part)
                continue
            for place, piece in enumerate(part.split(token)):
                cut.extend([token_id] if place else [])
                piece = piece.lstrip(_SPACE) if place and strips else piece
                cut.extend([piece] if piece else [])
        parts = cut
    return parts


# ---- the two kinds of merging ----


def _byte_level(spec: TokenizerSpec, ids: dict[str, int]) -> _Prepare:
    if not len(spec.merges):
        raise UsageError("the model file holds no merges of its tokenizer", hint=TOKENS_HINT)
    pre = pre_tokenizer_named(spec.pre)
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # A byte that is no token keeps its neighbours apart; its stand-in is left out of the result.
    size = len(spec.vocabulary)
    missing = {glyph: size + i for i, glyph in enumerate(sorted(GLYPHS.keys() - ids.keys()))}

    def prepare(stretches: _Stretches) -> tuple[_Segment, _Merges]:
        known = _among(stretches, ids)
        merges = _checked_merges(spec, known, few=stretches is not None)
        library = tokenizers.Tokenizer(
            models.BPE(vocab={**known, **missing}, merges=merges, ignore_merges=pre.whole_words)
        )
        library.pre_tokenizer = pre_tokenizers.Sequence([*cuts, to_bytes])

        def segment(text: str, _after_special: bool) -> list[int]:
            return [i for i in library.encode(text, add_special_tokens=False).ids if i < size]

        return segment, merges

    return prepare


def _sentencepiece(spec: TokenizerSpec, ids: dict[str, int]) -> _Prepare:
    if spec.scores is not None:
        scores = _checked_scores(spec, spec.scores, len(spec.vocabulary))

        def by_score(text: str) -> list[int]:
            return _merge_by_score(text, ids, scores, spec.unknown_id)

        return lambda stretches: (_escaped(spec, by_score), [])
    if not len(spec.merges):
        raise UsageError(
            "the model file holds neither scores nor merges of its tokenizer", hint=TOKENS_HINT
        )
    pre = PRE_TOKENIZERS.get(spec.pre or "")
    lines = pre is not None and pre.escaped
    line_ends = [token for token in ids if not token.strip("\n")]
    whole = {token: ids[token] for token in line_ends} if pre and pre.whole_words else {}
    as_bytes = {token: i for token, i in ids.items() if byte_of(token) is not None}
    size = len(spec.vocabulary)

    def prepare(stretches: _Stretches) -> tuple[_Segment, _Merges]:
        known = {**_among(stretches, ids), **as_bytes}
        merges = _checked_merges(spec, known, few=stretches is not None)
        # What is no token and has no bytes keeps its neighbours apart, and is left out.
        library = tokenizers.Tokenizer(
            models.BPE(vocab={**known, "": size}, merges=merges, unk_token="", byte_fallback=True)
        )

        def merged(text: str) -> list[int]:
            found: list[int] = []
            for word in re.findall(r"\n+|[^\n]+", text) if lines else [text]:
                if word in whole:
                    found.append(whole[word])
                else:
                    of_merges = library.encode(word, add_special_tokens=False).ids
                    found += [i for i in of_merges if i < size]
            return found

        return _escaped(spec, merged), merges

    return prepare


def _escaped(spec: TokenizerSpec, merged: Callable[[str], list[int]]) -> _Segment:
    """``merged`` of a text whose spaces are written as U+2581."""

    def segment(text: str, after_special: bool) -> list[int]:
        prefix = " " if spec.add_space_prefix and after_special else ""
        return merged((prefix + text).replace(" ", "\u2581"))

    return segment


def _merge_by_score(
    text: str, ids: Mapping[str, int], scores: Sequence[float], unknown_id: int | None
) -> list[int]:
    """SentencePiece's BPE: neighbours whose joined text is a token merge, best score first.

    Of equal scores the leftmost. What is no token in the end goes as ``<0xXX>`` byte tokens, or as
    the unknown token where those are missing. O(n log n) in characters.
    """
    symbols: list[str] = list(text)  # "" once merged into the one before it
    before = list(range(-1, len(symbols) - 1))
    after = [*range(1, len(symbols)), -1]
    waiting: list[tuple[float, int, int, str]] = []

    def consider(left: int, right: int) -> None:
        if left >= 0 and right >= 0:
            joined = symbols[left] + symbols[right]
            token_id = ids.get(joined)
            if token_id is not None:
                heapq.heappush(waiting, (-scores[token_id], left, right, joined))

    for right in range(1, len(symbols)):
        consider(right - 1, right)
    while waiting:
        _, left, right, joined = heapq.heappop(waiting)
        if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != joined:
            continue
        symbols[left], symbols[right] = joined, ""
        after[left] = after[right]
        if after[left] >= 0:
            before[after[left]] = left
        consider(before[left], left)
        consider(left, after[left])
    found: list[int] = []
    for symbol in filter(None, symbols):
        token_id = ids.get(symbol)
        if token_id is not None:
            found.append(token_id)
            continue
        as_bytes = (ids.get(f"<0x{byte:02X}>", unknown_id) for byte in symbol.encode())
        found.extend(i for i in as_bytes if i is not None)
    return found

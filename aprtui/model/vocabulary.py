"""What a model file says of its tokenizer, and the text of each token.

Nothing here looks at more of a file's arrays than it is asked for: the 152,000 strings of a GGUF
vocabulary are decoded when a tokenizer is built (``model.tokenizer``), not when a token is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aprtui.errors import UsageError
from aprtui.model.pretokenizers import PRE_TOKENIZERS, TOKENS_HINT

__all__ = [
    "BYTE",
    "CONTROL",
    "GLYPHS",
    "GLYPH_OF",
    "MAX_VOCABULARY",
    "NORMAL",
    "UNKNOWN",
    "USER_DEFINED",
    "TokenizerSpec",
    "Vocabulary",
    "byte_of",
    "spec_from_apr",
    "spec_from_gguf",
]

MAX_VOCABULARY = 1_000_000

# Values of tokenizer.ggml.token_type (llama.h, llama_token_type).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

_SENTENCEPIECE = {"llama", "unigram", "spm", "sentencepiece"}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class TokenizerSpec:
    """What a model file says of its tokenizer, whatever its format.

    ``model`` is "bpe" (byte level), "spm" (SentencePiece BPE), "json" (all is in ``json_path``) or
    the file's own word for a kind that cannot be rebuilt. ``vocabulary[i]`` is token i as the
    vocabulary writes it; ``scores`` and ``token_types`` run parallel to it. A merge is two tokens
    with a space between, best first. ``add_bos`` None: as the post-processor in the JSON says.
    ``control_by_text``: some tokens are control tokens whatever their type, as in llama.cpp;
    ``strips_after``: white space after special tokens goes with them, as it does of phi-3 there.
    """

    model: str
    vocabulary: Sequence[str] = ()
    merges: Sequence[str] = ()
    scores: Sequence[float] | None = None
    token_types: Sequence[int] | None = None
    pre: str | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    unknown_id: int | None = None
    add_bos: bool | None = False
    add_eos: bool = False
    add_space_prefix: bool = False
    control_by_text: bool = False
    strips_after: bool = False
    json_path: Path | None = None
    path: Path | None = None  # of the model, for messages


def spec_from_gguf(metadata: Mapping[str, Any], *, path: Path | None = None) -> TokenizerSpec:
    """The tokenizer that ``tokenizer.ggml.*`` describes.

    Defaults are llama.cpp's (src/llama-vocab.cpp). Raises UsageError where there is no vocabulary.
    """
    keys = {key: metadata.get(f"tokenizer.ggml.{key}") for key in _GGUF_KEYS}
    vocabulary = _vocabulary(keys["tokens"])
    declared = keys["model"] if isinstance(keys["model"], str) else "unnamed"
    pre = keys["pre"] if isinstance(keys["pre"], str) and keys["pre"] else "default"
    pre = declared if declared == "gemma4" else pre
    named = PRE_TOKENIZERS.get(pre) if declared in ("gpt2", "gemma4") else None
    escaped, begins = (named.escaped, named.add_bos) if named else (False, False)
    spm = declared == "llama"
    model = {"gpt2": "bpe", "llama": "spm"}.get(declared, declared)
    return TokenizerSpec(
        model="spm" if escaped else model,
        vocabulary=vocabulary,
        merges=_sequence(keys["merges"]) or (),
        scores=None if escaped else _sequence(keys["scores"]),
        token_types=_sequence(keys["token_type"]),
        pre=pre,
        bos_id=_id(keys["bos_token_id"], 1 if spm and len(vocabulary) > 1 else None),
        eos_id=_id(keys["eos_token_id"], 2 if spm and len(vocabulary) > 2 else None),
        unknown_id=_id(keys["unknown_token_id"], 0 if spm else None),
        add_bos=(escaped and begins) or _flag(keys["add_bos_token"], spm or begins),
        add_eos=_flag(keys["add_eos_token"], False),
        add_space_prefix=_flag(keys["add_space_prefix"], spm),
        control_by_text=True,
        strips_after=any(name in str(metadata.get("general.name", "")).lower() for name in _PHI3),
        path=path,
    )


_PHI3 = ("phi-3", "phi3")
_GGUF_KEYS = (
    "model", "pre", "tokens", "merges", "scores", "token_type", "bos_token_id", "eos_token_id",
    "unknown_token_id", "add_bos_token", "add_eos_token", "add_space_prefix",
)  # fmt: skip


def spec_from_apr(
    metadata: Mapping[str, Any], architecture: str, *, path: Path | None = None
) -> TokenizerSpec:
    """The tokenizer that an ``.apr`` file's metadata describes (docs/apr-format.md 4).

    ``architecture`` chooses the pre-tokenizer of a qwen model that names none; of others no guess
    is made. Raises UsageError where there is no vocabulary.
    """
    keys = {key: metadata.get(f"tokenizer.{key}") for key in _APR_KEYS}
    vocabulary = _vocabulary(keys["vocabulary"])
    merges = _sequence(keys["merges"]) or ()
    declared = next((k for k in (keys["model"], keys["model_type"]) if isinstance(k, str)), "")
    # "BPE" is said of both kinds; "gpt2" is llama.cpp's word for the byte-level one.
    byte_level = declared == "gpt2" or (
        declared.lower() not in _SENTENCEPIECE
        and {"\u0120", "\u010a"} <= set(token for token in vocabulary if isinstance(token, str))
    )
    if byte_level:
        model = "bpe"
    elif merges or declared.lower() in _SENTENCEPIECE - {"unigram"}:
        model = "spm"
    else:
        model = declared or "unnamed"
    family = "qwen2" if architecture in ("qwen2", "qwen2moe", "qwen3", "qwen3moe") else None
    return TokenizerSpec(
        model=model,
        vocabulary=vocabulary,
        merges=merges,
        scores=_sequence(keys["scores"]),
        token_types=_sequence(keys["token_type"]),
        pre=keys["pre_type"] if isinstance(keys["pre_type"], str) else family,
        bos_id=_id(keys["bos_token_id"], None),
        eos_id=_id(keys["eos_token_id"], None),
        add_bos=_flag(keys["add_bos_token"], model == "spm"),
        add_space_prefix=_flag(keys["add_space_prefix"], model == "spm"),
        path=path,
    )


_APR_KEYS = (
    "vocabulary", "merges", "scores", "token_type", "model", "model_type", "pre_type",
    "bos_token_id", "eos_token_id", "add_bos_token", "add_space_prefix",
)  # fmt: skip


def _sequence(value: Any) -> Sequence[Any] | None:
    """``value`` where it is array-like (lists, lazy arrays, numpy) and not empty."""
    if value is None or isinstance(value, str | bytes | Mapping):
        return None
    return value if hasattr(value, "__getitem__") and len(value) else None


def _vocabulary(value: Any) -> Sequence[str]:
    found = _sequence(value)
    if found is None:
        raise UsageError("the model file holds no tokenizer vocabulary", hint=TOKENS_HINT)
    return found


def _id(value: Any, default: int | None) -> int | None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return default
    return int(value)


def _flag(value: Any, default: bool) -> bool:
    return default if value is None else bool(value)


def _glyph_bytes() -> dict[str, int]:
    """GPT-2's writing of bytes as visible characters: character -> byte.

    33-126, 161-172 and 174-255 stand for themselves; the other 68, in order, are U+0100 onwards.
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {
        chr(256 + i): byte for i, byte in enumerate(hidden)
    }


GLYPHS = _glyph_bytes()
GLYPH_OF = {byte: glyph for glyph, byte in GLYPHS.items()}


def byte_of(token: str) -> int | None:
    """The byte that a byte token writes: ``<0x0A>`` is 10; None for any other token."""
    match = _BYTE_TOKEN.fullmatch(token)
    return int(match[1], 16) if match else None


class Vocabulary:
    """The text of each token; needs neither merges nor scores."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self.spec = spec
        self._tokens = spec.vocabulary
        types = spec.token_types
        self._types = types if types is not None and len(types) == len(self._tokens) else None
        self._byte_level = spec.model == "bpe"
        self._strip_prefix = spec.add_space_prefix

    def __len__(self) -> int:
        return len(self._tokens)

    def type_of(self, token_id: int) -> int:
        """The token's type; where the file has none, byte tokens are known by their writing."""
        if self._types is not None:
            return int(self._types[token_id])
        token = self._tokens[token_id]
        written = isinstance(token, str) and byte_of(token) is not None
        return BYTE if written and not self._byte_level else NORMAL

    def bytes_of(self, token_id: int) -> bytes:
        """What the token adds to a text, in UTF-8; may be part of a character.

        An id that has no token (a row that only pads the head) gives ``<id 151,999>``.
        """
        token = self._tokens[token_id] if 0 <= token_id < len(self._tokens) else None
        if not isinstance(token, str):
            return f"<id {token_id:,}>".encode()
        kind = self.type_of(token_id)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            return token.encode("utf-8", "replace")
        byte = byte_of(token) if kind == BYTE else None
        if byte is not None:
            return bytes([byte])
        if self._byte_level:
            return b"".join(
                bytes([GLYPHS[glyph]]) if glyph in GLYPHS else glyph.encode("utf-8", "replace")
                for glyph in token
            )
        return token.replace("\u2581", " ").encode("utf-8", "replace")

    def text_of(self, token_id: int) -> str:
        r"""The token's own text, for showing; bytes that are no whole character as ``\xe6``.

        Control characters are left in: clean the text before it is shown.
        """
        return self.bytes_of(token_id).decode("utf-8", "backslashreplace")

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of a sequence, without the spaces that encoding puts before words."""
        parts: list[bytes] = []
        after_special = True
        for token_id in token_ids:
            part = self.bytes_of(token_id)
            special = 0 <= token_id < len(self) and self.type_of(token_id) in (CONTROL, UNKNOWN)
            drop = self._strip_prefix and after_special and not special
            parts.append(part.removeprefix(b" ") if drop else part)
            after_special = special
        return b"".join(parts).decode("utf-8", "replace")

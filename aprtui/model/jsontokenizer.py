"""The tokenizer of a Hugging Face folder, read from its JSON files by the tokenizers library."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers

from aprtui.errors import AprtuiError, BadFileError, UsageError
from aprtui.formats.files import read_whole
from aprtui.formats.strict_json import node_bytes, read_object
from aprtui.model.pretokenizers import TOKENS_HINT
from aprtui.model.vocabulary import (
    BYTE,
    CONTROL,
    MAX_VOCABULARY,
    NORMAL,
    USER_DEFINED,
    TokenizerSpec,
    Vocabulary,
    byte_of,
)
from aprtui.text import clean, size

__all__ = [
    "folder_object",
    "json_vocabulary",
    "library_failures",
    "load_library",
    "spec_from_folder",
]

MAX_JSON_BYTES = 64 << 20
# What the library builds takes 1.6 times as much: 0.4 GB of the largest file that is published,
# Gemma's, of 262,144 tokens and 514,906 merges. Nothing beyond its like is given to it.
MAX_NODE_BYTES = 300_000_000


def spec_from_folder(folder: Path) -> TokenizerSpec:
    """The tokenizer of a Hugging Face folder: tokenizer.json, tokenizer_config.json, config.json.

    Where tokenizer_config.json says whether BOS is added, it decides; otherwise tokenizer.json's
    post-processor. Raises UsageError where there is no tokenizer.json, BadFileError where a file is
    damaged.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UsageError(f"{clean(str(folder))} holds no tokenizer.json", hint=TOKENS_HINT)
    config = folder_object(folder / "tokenizer_config.json")
    model_config = folder_object(folder / "config.json")
    add_bos, add_eos = config.get("add_bos_token"), config.get("add_eos_token")
    ids = {
        name: value if isinstance(value, int) and not isinstance(value, bool) else None
        for name, value in ((n, model_config.get(f"{n}_token_id")) for n in ("bos", "eos"))
    }
    if isinstance(add_bos, bool):
        library = load_library(TokenizerSpec("json", json_path=path))
        for name in ids:
            entry = config.get(f"{name}_token")
            content = entry.get("content") if isinstance(entry, dict) else entry
            known = library.token_to_id(content) if isinstance(content, str) else None
            ids[name] = ids[name] if known is None else known
    return TokenizerSpec(
        model="json",
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        add_eos=add_eos is True and isinstance(add_bos, bool),
        json_path=path,
        path=path,
    )


def _read_tokenizer(path: Path) -> bytes:
    raw = read_whole(path, MAX_JSON_BYTES, "a tokenizer")
    if (needed := node_bytes(raw)) > MAX_NODE_BYTES:
        raise BadFileError(
            path, f"the tokenizer is refused: to read its {size(len(raw))} may take {size(needed)}"
        )
    return raw


def folder_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; empty where there is no such file."""
    return read_object(path, clean(path.name), MAX_JSON_BYTES) if path.exists() else {}


def load_library(spec: TokenizerSpec) -> tokenizers.Tokenizer:
    """The library's own tokenizer of ``spec.json_path``; BadFileError where it is none."""
    if spec.json_path is None:
        raise UsageError("the tokenizer has no tokenizer.json", hint=TOKENS_HINT)
    raw = _read_tokenizer(spec.json_path)
    with library_failures(spec.json_path, "is no tokenizer"):
        library = tokenizers.Tokenizer.from_buffer(raw)
        # A training job's truncation and padding may stand in the file; a prompt wants neither.
        library.no_truncation()
        library.no_padding()
        return library


@contextmanager
def library_failures(path: Path | str, what: str) -> Iterator[None]:
    """Whatever the library raises on a damaged file, as a BadFileError on ``path``.

    It raises bare ``Exception``, and where its Rust code panics a ``PanicException``, which is a
    ``BaseException`` that cannot be imported. Before that it writes to the process's stderr, the
    file's own text included: that goes nowhere.
    """
    try:
        with _no_stderr():
            yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | AprtuiError):
            raise
        raise BadFileError(path, f"{what}: {clean(str(error))}", hint=TOKENS_HINT) from error


@contextmanager
def _no_stderr() -> Iterator[None]:
    """What anything but Python writes to file descriptor 2 in the body is lost."""
    try:
        kept = os.dup(2)
    except OSError:  # the caller closed it
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def json_vocabulary(spec: TokenizerSpec, library: tokenizers.Tokenizer) -> Vocabulary:
    """The texts of the library's tokens; byte level where U+0120 and U+010A are tokens."""
    ids = library.get_vocab(with_added_tokens=True)
    size = max(ids.values(), default=-1) + 1
    if not 0 < size <= MAX_VOCABULARY:
        raise BadFileError(
            spec.json_path or "tokenizer.json",
            f"token ids up to {size - 1:,}; 0 to {MAX_VOCABULARY - 1:,} can be",
            hint=TOKENS_HINT,
        )
    byte_level = "\u0120" in ids and "\u010a" in ids
    tokens: list[Any] = [None] * size
    types = [NORMAL] * size
    for token, token_id in ids.items():
        tokens[token_id] = token
        if not byte_level and byte_of(token) is not None:
            types[token_id] = BYTE
    for token_id, added in library.get_added_tokens_decoder().items():
        if token_id < size:
            types[token_id] = CONTROL if added.special else USER_DEFINED
    with library_failures(spec.json_path or "tokenizer.json", "cannot encode"):
        first = library.encode("a", add_special_tokens=False).tokens[:1]
    return Vocabulary(
        replace(
            spec,
            model="bpe" if byte_level else "spm",
            vocabulary=tokens,
            token_types=types,
            add_space_prefix=not byte_level and bool(first) and first[0].startswith("\u2581"),
        )
    )

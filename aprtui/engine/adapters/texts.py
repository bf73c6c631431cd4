"""What each engine's own tokenizer makes of a text. No weights are read."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aprtui.errors import AprtuiError, EngineError
from aprtui.text import clean

__all__ = ["Read", "read_by"]


@dataclass(frozen=True)
class Read:
    """The ids of a text, and of a chat with it as its one message: the rendered text and its ids,
    where the model has a template."""

    ids: tuple[int, ...]
    bos: int | None = None
    chat: str | None = None
    chat_ids: tuple[int, ...] = ()


def read_by(engine: str, model: Path, text: str) -> Read:
    """The text as ``engine`` ("hf" or "llamacpp") reads it. Raises EngineError in its words."""
    try:
        return _transformers(model, text) if engine == "hf" else _llamacpp(model, text)
    except AprtuiError:
        raise
    except Exception as error:  # another library's, of any kind
        said = clean(str(error).strip().split("\n", 1)[0], 200) or type(error).__name__
        raise EngineError(f"{engine}'s tokenizer does not load: {said}") from error


def _transformers(model: Path, text: str) -> Read:
    from transformers import AutoTokenizer

    folder = model if model.is_dir() else model.parent
    tokenizer: Any = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    ids = tuple(map(int, tokenizer(text)["input_ids"]))
    if not getattr(tokenizer, "chat_template", None):
        return Read(ids, tokenizer.bos_token_id)
    messages = [{"role": "user", "content": text}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    chat_ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
    return Read(ids, tokenizer.bos_token_id, str(chat), tuple(map(int, chat_ids)))


def _llamacpp(model: Path, text: str) -> Read:
    from llama_cpp import llama_cpp as lib

    from aprtui.engine.adapters.llamacpp import said

    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    with said(lib):
        opened = lib.llama_model_load_from_file(os.fsencode(model), params)
    if not opened:
        raise EngineError("llama.cpp refuses the file's vocabulary")
    try:
        vocabulary = lib.llama_model_get_vocab(opened)
        bos = int(lib.llama_vocab_bos(vocabulary))
        ids, first = _encoded(lib, vocabulary, text), bos if bos >= 0 else None
        chat = _rendered(lib, opened, text)
        return Read(ids, first, chat, () if chat is None else _encoded(lib, vocabulary, chat))
    finally:
        lib.llama_model_free(opened)


def _encoded(lib: Any, vocabulary: Any, text: str) -> tuple[int, ...]:
    """The ids of a text in which special tokens are those, with BOS as the file asks: as its
    programs read a rendered chat, too."""
    raw = text.encode()
    room = len(raw) + 8
    ids = (lib.llama_token * room)()
    count = lib.llama_tokenize(vocabulary, raw, len(raw), ids, room, True, True)
    return tuple(ids[:count])


def _rendered(lib: Any, opened: Any, text: str) -> str | None:
    """The chat as llama.cpp's own code renders it; None for a template that it does not know."""
    template = lib.llama_model_chat_template(opened, None)
    if not template:
        return None
    chat = (lib.llama_chat_message * 1)(lib.llama_chat_message(b"user", text.encode()))
    size = lib.llama_chat_apply_template(template, chat, 1, True, None, 0)
    if size < 0:
        return None
    room = ctypes.create_string_buffer(size + 1)
    lib.llama_chat_apply_template(template, chat, 1, True, room, size + 1)
    return room.raw[:size].decode("utf-8", "replace")

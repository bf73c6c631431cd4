"""What each engine's own tokenizer makes of a text. No weights are read."""

from __future__ import annotations

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

    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    opened = lib.llama_model_load_from_file(os.fsencode(model), params)
    if not opened:
        raise EngineError("llama.cpp refuses the file's vocabulary")
    try:
        raw = text.encode()
        room = len(raw) + 8
        ids = (lib.llama_token * room)()
        vocabulary = lib.llama_model_get_vocab(opened)
        count = lib.llama_tokenize(vocabulary, raw, len(raw), ids, room, True, True)
        bos = int(lib.llama_vocab_bos(vocabulary))
        return Read(tuple(ids[:count]), bos if bos >= 0 else None)
    finally:
        lib.llama_model_free(opened)

"""The chat template that a model's files hold, as text: it is compared and never rendered here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aprtui.formats.files import read_whole
from aprtui.model.jsontokenizer import folder_object
from aprtui.model.open import Model

__all__ = ["chat_template_of"]

_MOST_BYTES = 4 << 20
_KEYS = ("tokenizer.chat_template", "chat_template")  # of a GGUF; of an .apr, too
_JINJA, _CONFIG = "chat_template.jinja", "tokenizer_config.json"


def chat_template_of(model: Model) -> str | None:
    """The model's default template; None where its files hold none. Raises BadFileError."""
    if model.file.format != "safetensors":
        said = (model.file.metadata.get(key) for key in _KEYS)
        return next((each for each in said if isinstance(each, str) and each), None)
    folder = model.path if model.path.is_dir() else model.path.parent
    if (folder / _JINJA).is_file():
        return _decoded(folder / _JINJA)
    return _default(folder_object(folder / _CONFIG).get("chat_template"))


def _decoded(path: Path) -> str:
    return read_whole(path, _MOST_BYTES, "a chat template").decode("utf-8", "replace")


def _default(said: Any) -> str | None:
    """What transformers takes of a text, or of a list of named texts."""
    if isinstance(said, list):
        named = [each for each in said if isinstance(each, dict)]
        said = next((each.get("template") for each in named if each.get("name") == "default"), None)
    return said if isinstance(said, str) and said else None

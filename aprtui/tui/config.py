"""The person's own settings: ``$XDG_CONFIG_HOME/aprtui/config.toml``, a theme and other keys.

theme = "textual-light"
[keys]
help = "f1"
down = "j,down,ctrl+n"
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from textual.theme import BUILTIN_THEMES

from aprtui.errors import BadFileError
from aprtui.text import clean, nearest
from aprtui.tui.keys import KEYS

__all__ = ["Config", "config_file", "read_config"]


@dataclass(frozen=True)
class Config:
    """``keys`` maps ids of the key table to keys, several with commas between."""

    theme: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)


def config_file() -> Path:
    """Where the settings lie."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "aprtui" / "config.toml"


def read_config(path: Path | None = None) -> Config:
    """The settings; none when there is no file. Raises BadFileError for what cannot be meant."""
    file = path or config_file()
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise BadFileError(file, f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadFileError(file, f"is not TOML: {clean(str(error))}") from error
    theme, keys = found.get("theme", ""), found.get("keys", {})
    if not isinstance(theme, str) or not isinstance(keys, dict):
        raise BadFileError(file, 'theme is a text, [keys] a table of id = "key"')
    if theme and theme not in BUILTIN_THEMES:
        near = nearest(theme, BUILTIN_THEMES)
        hint = f"did you mean {near}? " if near and near != theme else ""
        themes = ", ".join(sorted(BUILTIN_THEMES))
        raise BadFileError(file, f"there is no theme {clean(theme, 40)}", hint=f"{hint}{themes}")
    known = [key.id for key in KEYS]
    for name, value in keys.items():
        if name not in known or not isinstance(value, str) or not value:
            near = nearest(name, known)
            hint = f"did you mean {near}? " if near and near != name else ""
            raise BadFileError(
                file,
                f"[keys] {clean(name)} is not an id of the key table with a key",
                hint=hint + "the help screen (?) finds ids",
            )
    return Config(theme, keys)

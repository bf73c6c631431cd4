"""A table of a TOML file read key by key: every error names its key, and no key is passed over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from aprtui.errors import BadFileError
from aprtui.text import clean, nearest

__all__ = ["Table"]

_MOST = 1 << 40


class Table:
    """One table; ``where`` is what stands before its keys in messages: ``engines[0].``."""

    def __init__(self, path: Path, found: Mapping[str, Any], where: str = "") -> None:
        self.path, self._found, self._where = path, found, where
        self._known: list[str] = []

    def refuse(self, key: str, why: str, hint: str = "") -> NoReturn:
        """Raises BadFileError for a key."""
        raise BadFileError(self.path, f"{self._where}{key}: {why}", hint=hint)

    def holds(self, key: str) -> bool:
        return key in self._found

    def end(self, *more: str) -> None:
        """Raises BadFileError for a key that was not asked for; ``more`` are known too."""
        self._known += more
        for key in self._found:
            if key not in self._known:
                near = nearest(key, self._known)
                hint = f"did you mean {near}?" if near else f"keys: {', '.join(self._known)}"
                self.refuse(clean(key, 60), "no such key", hint)

    def text(self, key: str, default: str = "") -> str:
        value = self._get(key, default)
        if not isinstance(value, str) or (key in self._found and not value.strip()):
            self.refuse(key, "a text is due here")
        if "\0" in value:
            self.refuse(key, "a text without NUL is due here")
        return value

    def choice(self, key: str, choices: Sequence[str], default: str) -> str:
        value = self.text(key, default)
        if value not in choices:
            self.refuse(key, f"{clean(value, 60)!r} is none of {', '.join(choices)}")
        return value

    def whole(self, key: str, default: int = 0, least: int = 0) -> int:
        value = self._get(key, default)
        if type(value) is not int or not (least <= value <= _MOST or key not in self._found):
            self.refuse(key, f"a whole number from {least} on is due here")
        return value

    def texts(self, key: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        value = self._get(key, list(default))
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            self.refuse(key, "a list of texts is due here")
        return tuple(value)

    def numbers(self, key: str) -> tuple[int, ...]:
        value = self._get(key, [])
        if not isinstance(value, list) or not value or not all(
            type(v) is int and 0 <= v <= _MOST for v in value
        ):  # fmt: skip
            self.refuse(key, "a list of token ids is due here")
        return tuple(value)

    def words(self, key: str) -> dict[str, str]:
        """A table of settings, each a text, a number or true and false (``on`` and ``off``)."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            self.refuse(key, "a table of settings is due here", f"{key} = {{ name = value }}")
        for name, each in value.items():
            if not isinstance(each, str | int | float):
                self.refuse(f"{key}.{clean(name, 60)}", "a text or a number is due here")
        spelt = {True: "on", False: "off"}
        return {n: spelt[v] if isinstance(v, bool) else str(v) for n, v in value.items()}

    def below(self, key: str) -> Table | None:
        """The table at a key; None where there is none."""
        value = self._get(key, None)
        if value is not None and not isinstance(value, dict):
            self.refuse(key, "a table is due here", f"{key} = {{ name = value }}")
        return None if value is None else Table(self.path, value, f"{self._where}{key}.")

    def each(self, key: str) -> Iterator[Table]:
        """The tables of ``[[key]]``. Raises BadFileError where there is none."""
        value = self._get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            self.refuse(key, "a list of tables is due here", f"[[{key}]]")
        if not value:
            self.refuse(key, "there is none", f"[[{key}]] and its keys below it")
        for number, each in enumerate(value):
            yield Table(self.path, each, f"{self._where}{key}[{number}].")

    def _get(self, key: str, default: Any) -> Any:
        self._known.append(key)
        return self._found.get(key, default)

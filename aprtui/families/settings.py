"""The ledger of one model's keys: what a family takes, at which default, what is left unread."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aprtui.errors import AprtuiError, BadFileError, UsageError
from aprtui.families.keys import BOUNDS, Stated, inert, only, our_name, what_it_changes
from aprtui.formats.modelfile import ModelFile
from aprtui.graph import Role
from aprtui.text import clean, nearest

__all__ = ["ACTIVATION_NAMES", "Defaults", "Doubt", "Settings", "Shapes"]

Shapes = Callable[[str], tuple[int, ...] | None]
"""The row-major shape of the tensor that plays a role (of the first layer that has one)."""

ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "linear": "none",
}
"""Hugging Face's names of the activations that are computed here."""

_NOTED = frozenset({
    "hidden_size", "logit_softcap", "num_experts_per_tok", "num_heads",
    "num_layers", "query_pre_attn_scalar", "rms_norm_eps", "rope_theta", "score_softcap",
})  # fmt: skip
_NOT_IN_GGUF = frozenset({"norm_topk_prob"})  # there the architecture's name says it
_MISSING: Any = object()


@dataclass(frozen=True)
class Defaults:
    """What a family takes where a file is silent, by our names, for each format.

    ``hf``: the values of the configuration class in transformers; ``gguf``: llama.cpp's;
    ``apr``: those published with the family. A key in none of them must be stated.
    """

    hf: Mapping[str, Any] = field(default_factory=dict)
    gguf: Mapping[str, Any] = field(default_factory=dict)
    apr: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Doubt:
    """A key that was ignored or overridden: what is said of the stages that it touches is unsure.

    ``stages`` are the names of those stages; None: any.
    """

    key: str
    value: str
    stages: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return f"{self.key} ({self.value})"


class Settings:
    """The keys of one file as one family reads them; each read is recorded, with its value."""

    def __init__(
        self,
        file: ModelFile,
        family: str,
        stated: Mapping[str, Stated],
        defaults: Defaults,
        shapes: Shapes,
        *,
        gguf_rows: bool = False,
        adjacent_rows: bool = False,
        overrides: Mapping[str, str] | None = None,
        freqs: Mapping[str, tuple[float, ...]] | None = None,
        constants: Mapping[Role, tuple[float, ...]] | None = None,
        published: Mapping[str, Callable[[Any], bool]] | None = None,
    ) -> None:
        self.file, self.family, self.shape = file, family, shapes
        self.gguf_rows = gguf_rows  # norms and rows as llama.cpp's converter leaves them
        self.adjacent_rows = adjacent_rows  # q and k rows in pairs of neighbours
        self.freqs = freqs or {}  # values of the tensors that hold RoPE's factors, by role
        self.constants = constants or {}  # values of the tensors that are parameters
        self.values: dict[str, Any] = {"architecture": family}
        self.notes: list[str] = []
        self.unread_roles: set[Role] = set()  # whose tensors may lie in the file all the same
        self.lent: dict[Role, tuple[Role, ...]] = {}  # whose tensor a role without one has
        self.doubts: list[Doubt] = []
        self._published = (published or {}) if file.format == "safetensors" else {}
        self._stated = dict(stated)
        by_format = {"safetensors": defaults.hf, "gguf": defaults.gguf, "apr": defaults.apr}
        self._defaults = dict(by_format[file.format])
        self._read: set[str] = set()
        self._defaulted: dict[str, Any] = {}
        self._overridden: set[str] = set()
        self._assumed: set[str] = set()
        for key, text in (overrides or {}).items():
            self._override(our_name(key), text)

    # -- readers --

    def has(self, name: str) -> bool:
        """Whether the file (or ``--set``) states the key."""
        return name in self._stated

    def known(self, name: str) -> bool:
        """Whether the family has a default for the key in this format."""
        return name in self._defaults

    def assume(self, name: str, value: Any) -> None:
        """A default that depends on other settings."""
        self._defaults[name] = value
        self._assumed.add(name)

    def take(self, name: str, default: Any = _MISSING) -> Any:
        """The key's value, else ``default``, else the family's. Raises where there is none."""
        self._read.add(name)
        if name in self._stated:
            return self._stated[name].value
        family = default is _MISSING
        if family:
            default = self._defaults.get(name, _MISSING)
        if default is _MISSING:
            raise self.fail(
                f"the file does not say {name}", hint=f"add --set {name}=VALUE if you know it"
            )
        if default is not None:
            self._defaulted[name] = default
            noted = name in _NOTED or (name in _NOT_IN_GGUF and self.file.format != "gguf")
            if family and (noted or name in self._assumed):
                self.note(f"{name} is not stated; {self.family}'s default {default} is used")
        return default

    def integer(self, name: str, default: Any = _MISSING, *, null: Any = _MISSING) -> Any:
        """A whole number within its bounds; ``null`` is what an explicit or default null means."""
        value = self._numeric(name, default, null)
        if isinstance(value, float):
            if value != int(value):
                raise self.fail(f"{self.label(name)} is {value}, not a whole number")
            value = int(value)
        return self.say(name, value)

    def integers(self, name: str, layers: int, default: Any = _MISSING) -> list[int]:
        """A whole number a layer, within its bounds: a list of them, or one for all. GGUF's may go
        on behind the layers that are computed."""
        value = self.take(name, default)
        if not isinstance(value, list):
            return [self.integer(name, default)] * layers
        long_enough = len(value) >= layers if self.file.format == "gguf" else len(value) == layers
        low, high = BOUNDS.get(name, (-math.inf, math.inf))
        if not long_enough or not all(type(each) is int and low <= each <= high for each in value):
            raise self.fail(
                f"{self.label(name)} is {clean(repr(value), 60)}, not {layers} numbers, one a layer"
            )
        return list(self.say(name, value[:layers]))

    def number(self, name: str, default: Any = _MISSING, *, null: Any = _MISSING) -> Any:
        """A finite number within its bounds, as a float."""
        value = self._numeric(name, default, null)
        return self.say(name, None if value is None else float(value))

    def flag(self, name: str, default: Any = _MISSING, *, null: Any = _MISSING) -> bool:
        value = self._unless_null(name, self.take(name, default), null)
        if not isinstance(value, bool):
            raise self.fail(f"{self.label(name)} is {clean(repr(value), 60)}, not true or false")
        self.say(name, value)
        return value

    def choice(self, name: str, valid: Sequence[str], default: str) -> str:
        """One of ``valid``, from ``--set`` or the file."""
        value = self.take(name, default)
        if value not in valid:
            raise self.fail(
                f"{self.label(name)} is {clean(repr(value), 60)}", hint=" or ".join(valid)
            )
        self.say(name, value)
        return str(value)

    def per_layer(self, name: str, kinds: tuple[type, ...], default: Any = _MISSING) -> Any:
        """A list of one value a layer; None where it is neither stated nor has a default.

        GGUF's has one for each layer that drafts tokens too.
        """
        value = self.take(name, default)
        if value is None:
            return None
        layers = self.values["num_layers"]
        if not isinstance(value, list) or not all(type(item) in kinds for item in value):
            raise self.fail(f"{self.label(name)} is {clean(repr(value), 60)}, not a list of them")
        if self.file.format == "gguf" and len(value) == layers + self._drafts():
            return value[:layers]
        if len(value) != layers:
            raise self.fail(
                f"{self.label(name)} has {len(value)} entries and num_layers is {layers}"
            )
        return value

    def _drafts(self) -> int:
        """The layers behind those that are computed."""
        return int(self.values.get("nextn_predict_layers", 0))

    def activation(self, name: str, default: str) -> str:
        """The activation under our name, where Hugging Face calls the key ``name``.

        GGUF and .apr have no such key: there it is ``default``, one of ours.
        """
        if self.file.format != "safetensors" and name not in self._stated:
            return str(self.say("activation", default))
        value = self.take(name)
        found = ACTIVATION_NAMES.get(value) if isinstance(value, str) else None
        if found is None:
            raise self.fail(
                f"{self.label(name)} is {clean(repr(value), 60)}, which is not computed here",
                hint=f"these are: {', '.join(ACTIVATION_NAMES)}",
            )
        return str(self.say("activation", found))

    def must_be(self, name: str, values: Sequence[Any], what: str) -> None:
        """A key that is computed at one of ``values`` alone; an absent key is fine."""
        self._read.add(name)
        if name not in self._stated:
            return
        value = self._stated[name].value
        if not any(type(value) is type(each) and value == each for each in values):
            raise self.fail(
                f"{self.label(name)} is {clean(repr(value), 80)}: {what}, which is not computed "
                f"here for {self.family}"
            )

    # -- what is recorded --

    def say(self, name: str, value: Any) -> Any:
        """Record what a setting came to; returns it."""
        self.values[name] = value
        return value

    def note(self, text: str) -> None:
        self.notes.append(text)

    def label(self, name: str) -> str:
        """Our name of a key, and the file's where that is another."""
        key = self._stated[name].key if name in self._stated else name
        return name if key.endswith(name) else f"{name} ({clean(key)})"

    def fail(self, message: str, hint: str = "") -> AprtuiError:
        """The error to raise: the file's fault, or that of a ``--set`` that the message names."""
        for key in self._overridden & set(message.replace(",", " ").split()):
            return UsageError(f"--set {key}: {message}", hint=hint)
        return BadFileError(self.file.path, message, hint=hint)

    def defaulted(self) -> str:
        """The defaults that were taken, for an error that they may have caused; "" for none."""
        taken = ", ".join(
            f"{name} {value}"
            for name, value in self._defaulted.items()
            if name in BOUNDS and isinstance(value, int | float)
        )
        return f"not stated, so the family's default counts: {taken}" if taken else ""

    # -- what is left --

    def unread(self) -> dict[str, Stated]:
        """The stated keys that no one has read and that may change numbers."""
        return {
            name: stated
            for name, stated in self._stated.items()
            if name not in self._read
            and not inert(self.file.format, stated)
            and not self._published.get(stated.key, only())(stated.value)
        }

    def finish(self, ignore: frozenset[str]) -> None:
        """Every key is accounted for: raises for the first that is not, in or out of ``ignore``."""
        left = self.unread()
        for name in sorted(self._overridden & set(left)):
            near = nearest(name, self._read)
            raise UsageError(
                f"--set {clean(name)}: the {self.family} family reads no such key",
                hint=f"did you mean {near}?" if near else f"it reads {self._readable()}",
            )
        for name, (key, value) in left.items():
            if name in ignore or key in ignore:
                stages = ("lm_head",) if name == "logits_scaling" else None
                self.doubts.append(Doubt(key, clean(repr(value), 60), stages))
                self.note(
                    f"{clean(key)} = {clean(repr(value), 60)} was ignored (--set ignore_keys)"
                )
                continue
            raise self._unread(name, key, value, len(left) - 1)
        unknown = ignore - {each for name, stated in left.items() for each in (name, stated.key)}
        if unknown:
            raise UsageError(
                f"--set ignore_keys={clean(min(unknown))}: no unread key of the model has that name"
            )

    def _unread(self, name: str, key: str, value: Any, more: int) -> AprtuiError:
        changes = what_it_changes(name)
        others = f"; {more} more keys are not read either" if more else ""
        return BadFileError(
            self.file.path,
            f"{clean(key)} = {clean(repr(value), 60)} is not read by the {self.family} family"
            + (f"; it {changes}" if changes else "")
            + others,
            hint=f"--set ignore_keys={clean(key)} computes as if it were not there; if it matters, "
            "the numbers are not the model's, and no culprit is named",
        )

    def _readable(self) -> str:
        return ", ".join(sorted(self._read))

    # -- inner --

    def _override(self, name: str, text: str) -> None:
        value = _parsed(text)
        if name in self._stated and self._stated[name].value != value:
            was = clean(repr(self._stated[name].value), 60)
            self.doubts.append(Doubt(name, f"{clean(text, 60)}, the file says {was}"))
            self.note(f"--set {name}={clean(text, 60)}; the file says {was}")
        self._stated[name] = Stated(name, value)
        self._overridden.add(name)

    def _unless_null(self, name: str, value: Any, null: Any) -> Any:
        if value is not None:
            return value
        if null is _MISSING:
            raise self.fail(f"{self.label(name)} is null, which is no value of it")
        return null

    def _numeric(self, name: str, default: Any, null: Any) -> Any:
        value = self.take(name, default)
        if value is None and (name in self._stated or default is not None):
            value = self._unless_null(name, value, null)
        if value is None:
            return None
        if isinstance(value, list):
            value = self._one_value(name, value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(f"{self.label(name)} is {clean(repr(value), 60)}, not a number")
        low, high = BOUNDS.get(name, (-math.inf, math.inf))
        if isinstance(value, float) and not math.isfinite(value):
            raise self.fail(f"{self.label(name)} is {value}")
        if not low <= value <= high:
            shown = clean(repr(value), 40)
            raise self.fail(f"{self.label(name)} is {shown}, outside {low:,}..{high:,}")
        return value

    def _one_value(self, name: str, values: list[Any]) -> Any:
        """The one value of a per-layer array; different ones are another architecture."""
        if not values or any(value != values[0] for value in values):
            raise self.fail(
                f"{self.label(name)} differs from layer to layer, which {self.family} has not"
            )
        return values[0]


def _parsed(text: str) -> Any:
    """What ``--set`` says, as JSON would have it."""
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if lowered in ("none", "null"):
        return None
    for kind in (int, float):
        try:
            return kind(lowered)
        except ValueError:
            continue
    return text.strip()

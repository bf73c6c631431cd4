"""The fields of a trace: what is run, what is kept of it, on what, and into which folder."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.suggester import SuggestFromList
from textual.widgets import Input, Label

from aprtui.compare.live import STOPS
from aprtui.engine.cards import Cards, look
from aprtui.engine.job import TraceJob, default_directory
from aprtui.engine.stretches import KV_TYPES
from aprtui.errors import UsageError
from aprtui.text import clean
from aprtui.tui.carry import from_home
from aprtui.tui.keys import bindings
from aprtui.tui.paths import PathSuggester, meant

__all__ = ["TraceForm", "other_engines"]

ROWS = (
    ("prompt",), ("tokens",), ("stages", "layers"), ("steps", "chunk", "cache"),
    ("device", "dtype"), ("engine", "adapter"), ("against", "until"), ("into",),
)  # fmt: skip
FIELDS = tuple(name for row in ROWS for name in row)
PATHS = ("adapter", "against", "into")
PROMPT = "What is 2+2?"


class TraceForm(Vertical, can_focus=True):
    """One input a field, a cursor over them; the frame says what the one under it takes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        binding for binding in bindings("move")
        if binding.id in ("down", "up", "left", "right", "top", "bottom", "open")
    ]  # fmt: skip

    def __init__(self, model: Path) -> None:
        super().__init__(id="fields", classes="frame")
        self._model = model
        self.border_title = "Trace"
        self._at = 0
        self._cards = Cards()
        self._values = {
            "prompt": PROMPT, "stages": "all", "layers": "all", "device": "auto",
            "dtype": "float32", "engine": "aprtui", "adapter": "",
            "into": from_home(default_directory(model)),
        }  # fmt: skip

    def compose(self) -> ComposeResult:
        holders = {
            "tokens": "or token ids: 1,2,3", "steps": "0", "chunk": "all", "cache": "f32",
            "adapter": "none", "against": "no other trace", "until": "the end",
        }  # fmt: skip
        for row in ROWS:
            with Horizontal(classes="field"):
                for name in row:
                    yield Label(name.capitalize(), id=f"label-{name}", markup=False)
                    yield Input(
                        self._values.get(name, ""), id=f"field-{name}", compact=True,
                        select_on_focus=False, placeholder=holders.get(name, ""),
                        suggester=PathSuggester() if name in PATHS else None,
                    )  # fmt: skip

    def said(self) -> dict[str, str]:
        """What stands in each field."""
        return {name: self.query_one(f"#field-{name}", Input).value for name in FIELDS}

    def job(self, *, replace: bool = False) -> TraceJob:
        """What the fields say; ``replace`` a trace that is there already. Raises UsageError where
        a field says what it does not take."""
        said = self.said()
        self.until()
        untouched = said["into"] in ("", self._values["into"])
        tokens = None
        if said["tokens"].strip():
            tokens = tuple(_number("tokens", part) for part in said["tokens"].split(","))
        return TraceJob(
            model=str(self._model.absolute()),
            # Untouched, the folder is the engine's own: two engines' traces lie side by side.
            directory="" if untouched else str(meant(said["into"])),
            prompt=None if tokens is not None else said["prompt"],
            tokens=tokens,
            stages=said["stages"] or "all",
            layers=said["layers"] or "all",
            device=said["device"] or "auto",
            dtype=said["dtype"] or "float32",
            engine=said["engine"].strip() or "aprtui",
            adapter=said["adapter"].strip() and str(meant(said["adapter"])),
            overwrite=replace,
            steps=_number("steps", said["steps"] or "0"),
            chunk=_number("chunk", said["chunk"] or "0"),
            kv=said["cache"].strip().lower(),
        )

    def until(self) -> str:
        """Where the trace stops before its end, if anywhere. Raises UsageError as ``job`` does."""
        said = self.said()
        until = said["until"].strip().lower()
        if until and until not in STOPS:
            raise UsageError(f"until {clean(until, 30)!r} is no place to stop",
                             hint=f"{' or '.join(STOPS)}, or nothing")  # fmt: skip
        if until and not said["against"].strip():
            raise UsageError(f"until {until}: there is nothing to compare with",
                             hint="name a trace in Against, or leave Until empty")  # fmt: skip
        return until

    def on_mount(self) -> None:
        self._mark(0)
        self._look_for_cards()

    @work
    async def _look_for_cards(self) -> None:
        """Complete the device that is typed from those that are here.

        NVML is asked in a thread: the first time it may take a tenth of a second.
        """
        self._cards = await asyncio.to_thread(look)
        names = [f"cuda:{number}" for number in range(len(self._cards.cards))]
        device = self.query_one("#field-device", Input)
        device.suggester = SuggestFromList(["auto", "cpu", *(["cuda", *names] if names else [])])
        self._mark(self._at)

    @on(events.DescendantFocus)
    def _focus_moved(self, event: events.DescendantFocus) -> None:
        self._mark(FIELDS.index((event.widget.id or "").removeprefix("field-")))

    def _mark(self, at: int) -> None:
        self._at = max(0, min(at, len(FIELDS) - 1))
        for number, name in enumerate(FIELDS):
            self.query_one(f"#label-{name}").set_class(number == self._at, "at")
        self.border_subtitle = hint(FIELDS[self._at], self._cards).replace("[", r"\[")

    def _go(self, at: int) -> None:
        """Put the cursor on that field; one that is being edited hands the focus on."""
        self._mark(at)
        if not self.has_focus and self.has_focus_within:
            self.action_open()

    def action_down(self) -> None:
        self._go(self._at + 1)

    def action_up(self) -> None:
        self._go(self._at - 1)

    action_right, action_left = action_down, action_up

    def action_top(self) -> None:
        self._go(0)

    def action_bottom(self) -> None:
        self._go(len(FIELDS) - 1)

    def action_open(self) -> None:
        self.query_one(f"#field-{FIELDS[self._at]}").focus()


def _number(field: str, text: str) -> int:
    """What is typed there. Raises UsageError for what is no number from 0 on."""
    if not text.strip().isdecimal():
        raise UsageError(f"{field}: {clean(text.strip(), 30)!r} is no whole number from 0 on",
                         hint=hint(field, Cards()))  # fmt: skip
    return int(text)


def hint(name: str, cards: Cards) -> str:
    """What a field takes; of devices those that are here, where NVML tells."""
    if name == "device" and cards.cards:
        return f"{cards.told()}; auto, cpu"
    if name == "engine":
        return other_engines()
    return {
        "prompt": "the text that is run",
        "tokens": "ids with commas, in place of the prompt",
        "stages": "all, or names with commas: attn_out,ffn_gate",
        "layers": "all, 3, 0..4 or 0,2,5",
        "steps": "tokens to decode behind the prompt, the likeliest each",
        "chunk": "the prompt in pieces of so many tokens",
        "cache": f"keys and values as {' '.join(KV_TYPES)}",
        "device": "auto (a GPU where there is one), cpu, cuda:1, mps",
        "dtype": "float32, bfloat16 or float16",
        "adapter": "a LoRA to lay on the weights: a peft folder, or a GGUF file",
        "against": "a trace to compare with, stage by stage as this one's files land",
        "until": "first: stop at the first divergence; culprit: where a replay finds one",
        "into": "a folder of its own",
    }[name]


def other_engines() -> str:
    """The engines beside ours that the form offers; how to install those that are not there."""
    from aprtui.engine.adapters import available

    return " · ".join(
        f"or {engine.name}" if engine.installed else f"{engine.name}: {engine.how_to_install}"
        for engine in available()
        if engine.name != "aprtui"
    )

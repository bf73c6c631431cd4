"""The fields of a trace: what is run, what is kept of it, on what, and into which folder."""

from __future__ import annotations

from pathlib import Path

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Input, Label

__all__ = ["TraceForm", "other_engines"]

ROWS = (("prompt",), ("tokens",), ("stages", "layers"), ("device", "dtype"), ("engine",), ("into",))
FIELDS = tuple(name for row in ROWS for name in row)
PROMPT = "What is 2+2?"


class TraceForm(Vertical):
    """One input a field; the frame says what the one with the focus takes."""

    def __init__(self, directory: Path) -> None:
        super().__init__(id="fields", classes="frame")
        self.border_title = "Trace"
        self.border_subtitle = hint("")
        self._values = {
            "prompt": PROMPT, "stages": "all", "layers": "all", "device": "auto",
            "dtype": "float32", "engine": "aprtui", "into": str(directory),
        }  # fmt: skip

    def compose(self) -> ComposeResult:
        holders = {"tokens": "or token ids: 1,2,3"}
        for row in ROWS:
            with Horizontal(classes="field"):
                for name in row:
                    yield Label(name.capitalize(), markup=False)
                    yield Input(
                        self._values.get(name, ""), id=f"field-{name}", compact=True,
                        select_on_focus=False, placeholder=holders.get(name, ""),
                    )  # fmt: skip

    def said(self) -> dict[str, str]:
        """What stands in each field."""
        return {name: self.query_one(f"#field-{name}", Input).value for name in FIELDS}

    @on(events.DescendantFocus)
    @on(events.DescendantBlur)
    def _focus_moved(self) -> None:
        inside = next((field for field in self.query(Input) if field.has_focus), None)
        name = (inside.id or "").removeprefix("field-") if inside is not None else ""
        self.border_subtitle = hint(name).replace("[", r"\[")


def hint(name: str) -> str:
    """What a field takes; without one, how to get into the form."""
    if name == "engine":
        return other_engines()
    return {
        "prompt": "the text that is run",
        "tokens": "ids with commas, in place of the prompt",
        "stages": "all, or names with commas: attn_out,ffn_gate",
        "layers": "all, 3, 0..4 or 0,2,5",
        "device": "auto (a GPU where there is one), cpu, cuda:1, mps",
        "dtype": "float32, bfloat16 or float16",
        "into": "a folder of its own",
    }.get(name, "enter edits")


def other_engines() -> str:
    """The engines beside ours that the form offers; how to install those that are not there."""
    from aprtui.engine.adapters import available

    return " · ".join(
        f"or {engine.name}" if engine.installed else f"{engine.name}: {engine.how_to_install}"
        for engine in available()
        if engine.name != "aprtui"
    )

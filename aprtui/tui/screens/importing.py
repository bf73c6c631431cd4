"""Another tool's dump was opened: which model was run, and the import as a job with progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Input, Label, Static

from aprtui.captures.opening import trace_beside
from aprtui.errors import AprtuiError
from aprtui.text import clean, count
from aprtui.tui.client import COMMAND_LINE, Child, Ended, objects_in
from aprtui.tui.keys import bindings, keys_at, remapped, shown
from aprtui.tui.messages import Told
from aprtui.tui.paths import PathSuggester
from aprtui.tui.widgets.bars import bar

__all__ = ["ImportScreen"]

FIELDS = ("model", "map", "sequence", "ranks", "tokens", "into")
_OPTIONS = {"model": "--model", "map": "--map", "sequence": "--sequence", "ranks": "--ranks",
            "tokens": "--tokens", "into": "-o"}  # fmt: skip
_HOLDERS = {
    "model": "the model that was run (.gguf, .apr, .safetensors, a folder)",
    "map": "by its names, or a map: vllm, sglang, own.toml",
    "sequence": "of a batch: 0, 1, 2 in order of appearance",
    "ranks": "by their names, or the ranks' folders: a,b",
    "tokens": "where the dump does not hold them: 1,2,3",
}
_WIDTH = 76


@dataclass
class Looked(Message):
    """What the dump is, in words; ``bad`` where it cannot be read."""

    text: str
    bad: bool = False


@dataclass
class Gone(Message):
    """The child ended."""

    ended: Ended


class ImportScreen(ModalScreen[Path]):
    """A form over the screen below; answers the folder of the trace, or None."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("import")  # type: ignore[assignment]

    def __init__(
        self, dump: Path, model: str = "", *, command: Sequence[str] = COMMAND_LINE
    ) -> None:
        super().__init__()
        self.dump = dump
        self._model = model
        self._child = Child(command)
        self._done: Mapping[str, Any] | None = None
        self._failed = False
        self._stopped = False

    def compose(self) -> ComposeResult:
        given = {"model": self._model, "into": str(trace_beside(self.dump))}
        with Vertical(id="import"):
            title = f"{clean(self.dump.absolute().name, 50)} is another tool's dump: import it"
            yield Static(Content.styled(title, "bold"), markup=False)
            yield Static("", id="import-kind", markup=False)
            for field in FIELDS:
                with Horizontal(classes="field"):
                    yield Label(field.capitalize(), id=f"label-{field}", markup=False)
                    yield Input(
                        given.get(field, ""), id=f"field-{field}", compact=True,
                        select_on_focus=False, placeholder=_HOLDERS.get(field, ""),
                        suggester=PathSuggester() if field in ("model", "into") else None,
                    )  # fmt: skip
            yield Static("", id="import-said", markup=False)
            yield Static(self._keys(), id="import-keys", markup=False)

    def _keys(self) -> Content:
        config = getattr(self.app, "config", None)
        parts: list[Content | tuple[str, str]] = []
        for key in remapped(keys_at("import"), config.keys if config else {}):
            if not key.label:
                continue
            parts += [(f" {shown(key.keys[0])} ", "bold $text-accent"), (f"{key.label}  ", "dim")]
        return Content.assemble(*parts)

    def on_mount(self) -> None:
        self.query_one(f"#field-{'into' if self._model else 'model'}").focus()
        self.run_worker(self._look, thread=True)

    # What it is.

    def _look(self) -> None:
        from aprtui.captures.opening import open_dump
        from aprtui.captures.recognise import recognised

        try:
            dump = open_dump(self.dump)
            passes, ranks = len(dump.ranks[0].passes), len(dump.ranks)
            said = dump.container
            said += f", {count(passes, 'file')} of a pass each" if passes > 1 else ""
            said += f", {ranks} ranks" if ranks > 1 else ""
            self.post_message(Looked(f"{said} · names of {recognised(dump).title}"))
        except AprtuiError as error:
            self.post_message(Looked(clean(str(error), 400), bad=True))

    @on(Looked)
    def _looked(self, event: Looked) -> None:
        event.stop()
        text = ("! " if event.bad else "") + clean(event.text, 400)
        style = "$text-warning" if event.bad else "dim"
        self.query_one("#import-kind", Static).update(Content.styled(text, style))

    # The job.

    def action_go(self) -> None:
        """Run the import as the form says; a second enter opens what was written."""
        if self._child.running:
            return
        if self._done is not None:
            self._leave()
            return
        said = {field: self.query_one(f"#field-{field}", Input).value.strip() for field in FIELDS}
        if not said["model"]:
            self._say("! the model that was run is needed: it tells the shapes", "$text-error")
            self.query_one("#field-model").focus()
            return
        self._failed = self._stopped = False
        self._say("starting …", "dim")
        options = [part for name in FIELDS if said[name] for part in (_OPTIONS[name], said[name])]
        self._run((*options, "--events"))

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.action_go()

    @work(exclusive=True, group="import")
    async def _run(self, options: Sequence[str]) -> None:
        # The path comes last and behind --: a dump may be named as an option is.
        arguments = ("import-trace", *options, "--", str(self.dump))
        self.post_message(Gone(await self._child.run(arguments, self._tell)))

    def _tell(self, lines: tuple[bytes, ...]) -> None:
        self.post_message(Told(objects_in(lines)))

    @on(Told)
    def _told(self, event: Told) -> None:
        event.stop()
        event.hand_out(progress=self._progress, error=self._fail, result=self._result)

    def _progress(self, said: Mapping[str, Any]) -> None:
        done, total = int(said.get("done") or 0), int(said.get("total") or 1)
        shown_ = f"{count(done)} of {count(total)} stages "
        width = max(10, min(_WIDTH, self.size.width) - len(shown_) - 8)
        line = Content.assemble(shown_, (bar(done / max(total, 1), width), "$text-primary"))
        self.query_one("#import-said", Static).update(line)

    def _fail(self, message: str, hint: str) -> None:
        self._failed = True
        self._say(f"! {clean(message, 400)}", "$text-error", clean(hint, 300))
        for field in ("sequence", "tokens", "map", "ranks"):  # what the sentence asks for
            if f"--{field}" in f"{message} {hint}":
                self.query_one(f"#field-{field}").focus()
                return

    def _result(self, said: Mapping[str, Any]) -> None:
        self._done = said
        wrong = [str(each) for name in ("contradictions", "findings") for each in said[name]]
        if not wrong:
            self._leave()
            return
        lines = "\n".join(clean(each, 300) for each in wrong[:4])
        lines += f"\nand {len(wrong) - 4} more" if len(wrong) > 4 else ""
        self._say(f"! {clean(lines.replace(chr(10), '; '), 600)}", "$text-warning",
                  "the trace is written: enter opens it")  # fmt: skip

    @on(Gone)
    def _gone(self, event: Gone) -> None:
        event.stop()
        if self._done is not None or self._failed:
            return
        if self._stopped:
            self._say("stopped: what was written is no whole trace", "dim")
            return
        last = (event.ended.log_tail().splitlines() or [""])[-1]
        self._say(f"! the import ended ({event.ended.exit_code}) {last}".rstrip(), "$text-error")

    def _say(self, text: str, style: str, hint: str = "") -> None:
        lines = [Content.styled(text, style)] + ([Content.styled(hint, "dim")] if hint else [])
        self.query_one("#import-said", Static).update(Content("\n").join(lines))

    # Leaving.

    def _leave(self) -> None:
        self.dismiss(None if self._done is None else Path(str(self._done["directory"])))

    async def action_stop(self) -> None:
        """Stop the import where one runs; else close."""
        if self._child.running:
            self._stopped = True
            await self._child.stop()
        else:
            self._leave()

    def action_field(self, step: int) -> None:
        """The next field of the form, or the one before."""
        at = next((n for n, name in enumerate(FIELDS) if self._is_in(name)), 0)
        self.query_one(f"#field-{FIELDS[(at + step) % len(FIELDS)]}").focus()

    def _is_in(self, name: str) -> bool:
        return self.focused is not None and self.focused.id == f"field-{name}"

    @on(events.DescendantFocus)
    def _focus_moved(self, event: events.DescendantFocus) -> None:
        for name in FIELDS:
            self.query_one(f"#label-{name}").set_class(event.widget.id == f"field-{name}", "at")

"""What every screen shares: title and key lines, four states, one line where it is too small."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.message import Message
from textual.screen import UPDATE_PERIOD, Screen
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input, Static

from aprtui.errors import AprtuiError
from aprtui.text import clean
from aprtui.tui.jumps import Goal, Jump
from aprtui.tui.keys import Key, keys_at, remapped
from aprtui.tui.widgets.frame import KeyLine, TitleLine
from aprtui.tui.widgets.prompt import Prompt

if TYPE_CHECKING:
    from aprtui.report.bookmarks import Bookmark
    from aprtui.tui.app import AprtuiApp
    from aprtui.tui.messages import ReadSoFar

__all__ = ["MODES", "BaseScreen", "outliving"]

MODES = ("model", "trace", "browse", "diff")
SMALLEST = (60, 15)
TURNS = 24  # of the loop: a message takes one for each widget that it passes, and leads to others


async def outliving(
    app: AprtuiApp, message: Message, dispatch: Callable[[Message], Awaitable[None]]
) -> None:
    """Dispatch a message. Textual ends what a handler raised in; here it is said, and all goes on.

    Not where there is no screen yet, and not in a test, which shall fail.
    """
    try:
        await dispatch(message)
    except Exception as error:
        if isinstance(message, events.Compose | events.Mount) or app.is_headless:
            raise
        app.outlive(error)


class BaseScreen(Screen[object]):
    """A screen with a title, a body in one of four states, and a line of keys.

    The states: ``loading``, ``empty``, ``error`` show one message; ``full`` shows the body.
    """

    app: AprtuiApp
    mode: ClassVar[str] = ""
    places: ClassVar[tuple[str, ...]] = ()
    ways_out: tuple[str, ...] = ()  # ids of keys that help where the body is not shown
    lead: str = "move"  # what j and k do here
    passing: ClassVar[bool] = False  # it lies over another one, and closing it loses nothing
    came_from: str = ""  # the mode that a jump left for it
    BINDINGS: ClassVar[list[BindingType]] = []

    def __init__(self) -> None:
        super().__init__()
        self.title_line = TitleLine(MODES, self.mode)
        self.key_line = KeyLine()
        self.state = "loading"
        self._message = Static("", id="message", markup=False)
        self._small = Static("", id="small", markup=False)
        self._prompt = Prompt()
        self._frames: Timer | None = None
        self._typed: dict[str, str] = {}  # by purpose: a path that was typed is offered again

    def compose(self) -> ComposeResult:
        yield self.title_line
        with Container(id="whole"):
            yield self._message
            with Container(id="body"):
                yield from self.body()
        yield self._small
        yield self._prompt
        yield self.key_line

    def body(self) -> Iterable[Widget]:
        """The widgets of the full state."""
        raise NotImplementedError

    def on_mount(self) -> None:
        self._prompt.display = False
        self._small.display = False
        self.set_state("loading", "Reading …")
        self.started()

    def started(self) -> None:
        """The screen is up: begin to load."""

    # States.

    def set_state(self, state: str, what: str = "", hint: str = "") -> None:
        """Show the body (``full``) or one message: what, and what to do about it."""
        self.state = state
        self.query_one("#body").display = state == "full"
        self._message.display = state != "full"
        style = "bold $text-error" if state == "error" else ""
        mark = "! " if state == "error" else ""
        lines = [Content.styled(mark + what, style)]
        if hint:
            lines.append(Content.styled(hint, "dim"))
        self._message.update(Content("\n\n").join(lines))
        self.show_keys()

    def on_read_so_far(self, event: ReadSoFar) -> None:
        """A worker says how far it is."""
        if self.state == "loading":
            self.set_state("loading", event.text, "q goes back")

    def set_title(self, title: str, *, loud: bool = False) -> None:
        self.title_line.title = title
        self.title_line.loud = loud

    # Frames.

    @property
    def _update_timer(self) -> Timer:
        """Textual's timer of frames."""
        if self._frames is None:
            self._frames = self.set_interval(UPDATE_PERIOD, self._next_frame, pause=True)
        return self._frames

    async def _next_frame(self) -> None:
        """Draw, once what a key led to has come from the widget to the screen: it is one frame."""
        for _ in range(TURNS):
            await asyncio.sleep(0)
        self._on_timer_update()

    # Keys.

    def active_places(self) -> tuple[str, ...]:
        """The places of the key table that apply right now."""
        return self.places

    def show_keys(self) -> None:
        if self.state != "full":
            keys = [key for key in keys_at(*self.places) if key.id in self.ways_out]
            self.key_line.show_keys("", self._mine([*keys, *keys_at("anywhere")]))
            return
        places = (*self.active_places(), "anywhere")  # the closest first: the line may be full
        keys = [key for place in places for key in keys_at(place)]
        self.key_line.show_keys(self.lead, self._mine(keys))

    # Bookmarks.

    def action_bookmark(self) -> None:
        """Mark this place: ask for the note."""
        here = self.here()
        if here is None or self.state != "full":
            self.say("there is no place to mark here")
            return
        self._marking = here
        self.ask("mark this place; a note on it…", "bookmark")

    def _mark(self, place: Jump, note: str) -> None:
        from aprtui.report.bookmarks import Bookmark, add

        try:
            add(Bookmark(place.screen, tuple(map(str, place.absolute)), place.key, place.tensor,
                         note, time.strftime("%Y-%m-%d")))  # fmt: skip
        except AprtuiError as error:
            self.say(f"! {clean(str(error), 300)}")
        else:
            self.say("marked; ' lists the places that are marked, a report takes them in")

    def action_bookmarks(self) -> None:
        """List the places that were marked, and go to the one that is chosen."""
        from aprtui.report.bookmarks import bookmarks
        from aprtui.tui.screens.bookmarks import BookmarksScreen

        def go(to: Bookmark | None) -> None:
            if to is not None:
                place = Jump(to.screen, tuple(map(Path, to.paths)), to.key, to.tensor)
                self.app.jump(place)

        try:
            self.app.push_screen(BookmarksScreen(bookmarks()), go)
        except AprtuiError as error:
            self.say(f"! {clean(str(error), 300)}")

    @on(KeyLine.Pressed)
    def _clicked(self, event: KeyLine.Pressed) -> None:
        event.stop()
        key = next(iter(Binding.make_bindings([Binding(event.key, "")]))).key  # "?": question_mark
        self.app.call_later(self.app.simulate_key, key)  # sent from here it would end here

    @on(TitleLine.Chosen)
    async def _chosen_word(self, event: TitleLine.Chosen) -> None:
        event.stop()
        if event.word == "?":
            await self.app.run_action("help")
        else:
            await self.app.run_action(f"go_mode({event.word!r})")

    @on(events.ScreenResume)
    def _offer_keys(self) -> None:
        """What other screens can be reached may have changed meanwhile."""
        if self.is_mounted:
            self.show_keys()

    def idle_keys(self) -> frozenset[str]:
        """Ids of keys that have nothing to do right now: they are not offered."""
        return frozenset()

    def _mine(self, keys: Iterable[Key]) -> tuple[Key, ...]:
        idle = self.idle_keys()
        return remapped((key for key in keys if key.id not in idle), self.app.config.keys)

    def say(self, note: str) -> None:
        """A passing remark at the foot."""
        self.key_line.say(note)

    def fail(self, what: str, hint: str) -> None:
        """Something failed that nobody foresaw: in place of what never came, or at the foot."""
        if self.state == "loading":
            self.set_state("error", what, hint)
        else:
            self.say(f"! {what} ({hint})")

    async def _dispatch_message(self, message: Message) -> None:
        await outliving(self.app, message, super()._dispatch_message)

    def on_key(self, event: events.Key) -> None:
        if self.key_line.note and not self._prompt.display:
            self.key_line.say("")

    # A question at the foot of the screen.

    def ask(self, question: str, purpose: str, value: str = "", *,
            how: str = "  ·  enter answers, esc leaves") -> None:  # fmt: skip
        """Open the input line; ``answered(purpose, text)`` gets every answer."""
        self._open_prompt(question + how, purpose, value, of_path=False)

    def ask_path(self, question: str, purpose: str, value: str = "", *,
                 again: bool = True) -> None:  # fmt: skip
        """Ask for a path: it is completed, and ``again`` offers the one that was typed last."""
        if again:
            value = self._typed.get(purpose, value)
        said = f"{question}  ·  tab completes, enter answers, esc leaves"
        self._open_prompt(said, purpose, value, of_path=True)

    def _open_prompt(self, said: str, purpose: str, value: str, *, of_path: bool) -> None:
        self._purpose, self._question = purpose, said
        self._prompt.begin(value, of_path=of_path)
        self.say(said)
        self._asked_from = self.focused
        self._prompt.display = True
        self._prompt.focus()

    def answered(self, purpose: str, text: str) -> None:
        """An answer was given with Enter."""

    def answering(self, purpose: str, text: str) -> None:
        """The answer as it is typed."""

    @on(Input.Changed, "#prompt")
    def _typing(self, event: Input.Changed) -> None:
        event.stop()
        if self._prompt.display:
            self.say(self._question)
            self.answering(self._purpose, event.value)

    @on(Prompt.Ways)
    def _ways(self, event: Prompt.Ways) -> None:
        event.stop()
        self.say("  ".join(event.names) or "nothing there begins so")

    @on(Input.Submitted, "#prompt")
    def _submit(self, event: Input.Submitted) -> None:
        event.stop()
        self._close_prompt()
        if self._purpose == "bookmark":
            self._mark(self._marking, event.value)
        else:
            self.answered(self._purpose, event.value)

    def _close_prompt(self) -> None:
        if self._prompt.of_path:
            self._typed[self._purpose] = self._prompt.value
        self._prompt.display = False
        self.say("")
        if self._asked_from is not None:
            self._asked_from.focus()

    def close_question(self) -> bool:
        """Close the input line without an answer; whether it was open."""
        if not self._prompt.display:
            return False
        self._close_prompt()
        self.answering(self._purpose, "")
        return True

    # Places.

    def here(self) -> Jump | None:
        """The place that is shown; None where there is none to come back to."""
        return None

    def shows(self, to: Jump) -> bool:
        """Whether that place is on this screen."""
        here = self.here()
        return here is not None and (here.screen, here.absolute) == (to.screen, to.absolute)

    def turn_to(self, to: Jump) -> None:
        """Show that place, which is on this screen."""

    def goals(self) -> Iterable[Goal]:
        """What the palette can go to on this screen."""
        return ()

    # Leaving.

    def step_back(self) -> bool:
        """Undo one thing (a zoom, a filter) before the screen closes; whether there was one."""
        return False

    def running_into(self) -> str:
        """The folder of the trace that closing this screen would end; empty when there is none."""
        return ""

    async def release(self, answer: str) -> None:
        """End the running trace ("stop"), or let go of it ("leave")."""

    # Size.

    def on_resize(self, event: events.Resize) -> None:
        small = event.size.width < SMALLEST[0] or event.size.height < SMALLEST[1]
        self._small.display = small
        self.query_one("#whole").display = not small
        if small:
            width, height = SMALLEST
            self._small.update(
                f"{event.size.width}x{event.size.height}: aprtui needs {width}x{height}"
            )
        self.set_class(event.size.width < 100, "narrow")
        self.set_class(event.size.height < 30, "low")

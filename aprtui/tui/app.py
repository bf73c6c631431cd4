"""The app: modes with a screen stack each, the keys that work anywhere, the theme."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import RenderableType
from textual._compositor import CompositorUpdate
from textual.app import App, ScreenStackError
from textual.binding import BindingType
from textual.command import Provider
from textual.filter import LineFilter
from textual.message import Message
from textual.screen import Screen
from textual.worker import WorkerFailed

from aprtui.crash import UnforeseenError, told_of
from aprtui.errors import AprtuiError
from aprtui.text import clean
from aprtui.tui.commands import GoPalette, KeyCommands
from aprtui.tui.config import Config
from aprtui.tui.harmless import Harmless
from aprtui.tui.jumps import Goal, Jump, Jumps
from aprtui.tui.keys import bindings, keys_at, remapped, shown
from aprtui.tui.opened import Opened
from aprtui.tui.screens.base import MODES, BaseScreen, outliving
from aprtui.tui.screens.sides import Sides, SidesScreen
from aprtui.tui.sent import Sent
from aprtui.tui.session import recall_theme, remember_theme
from aprtui.tui.widgets.lines import STYLES

if TYPE_CHECKING:
    from aprtui.formats.tracedir import StageKey

__all__ = ["AprtuiApp", "theme_for"]

END_S = 10
THEMES = ("textual-dark", "textual-light", "ansi-dark", "ansi-light")


def theme_for(environment: dict[str, str]) -> str:
    """The theme for a terminal: its own sixteen colours unless it says that it has 256."""
    wide = environment.get("COLORTERM", "") in ("truecolor", "24bit")
    if "NO_COLOR" in environment:
        return "ansi-dark"
    if wide or "256" in environment.get("TERM", "") or "kitty" in environment.get("TERM", ""):
        return "textual-dark"
    return "ansi-dark"


class AprtuiApp(App[int]):
    """Opens on what it is given; every other screen is reached from there."""

    CSS_PATH = "theme.tcss"
    TITLE = "aprtui"
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {KeyCommands}
    COMPONENT_CLASSES: ClassVar[set[str]] = {*STYLES}
    BINDINGS: ClassVar[list[BindingType]] = bindings("anywhere")  # type: ignore[assignment]

    def __init__(
        self,
        opened: tuple[Opened, ...] = (),
        *,
        folder: Path | None = None,
        model: str = "",
        config: Config | None = None,
    ) -> None:
        # Without colour only the terminal's own attributes are sent, not shades of grey.
        super().__init__(ansi_color=True if "NO_COLOR" in os.environ else None)
        self.opened = opened
        self.folder = folder or Path.cwd()
        self.model = model
        self.config = config or Config()
        self._trail: list[str] = []
        self._jumps = Jumps()
        self._harmless = Harmless()
        self._sent = Sent()
        self.unforeseen: list[AprtuiError] = []  # faults of ours that the app outlived
        self.ended_by: AprtuiError | None = None  # the one that it did not

    def get_line_filters(self) -> Sequence[LineFilter]:
        """What every line of every widget goes through on its way to the terminal."""
        return [self._harmless, *super().get_line_filters()]

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        if isinstance(renderable, CompositorUpdate):
            renderable = self._sent.rest_of(renderable)
        super()._display(screen, renderable)

    def on_resize(self) -> None:
        self._sent.forget()

    def action_redraw(self, _: object = None) -> None:
        """Send all of the screen: another program may have written over it."""
        self._sent.forget()
        self.screen.refresh()

    def on_mount(self) -> None:
        self.set_class(self.no_color, "no-color")
        environment = dict(os.environ) | ({"NO_COLOR": "1"} if self.no_color else {})
        chosen = recall_theme(self.config.theme)
        wanted = chosen or self.config.theme or os.environ.get("TEXTUAL_THEME", "")
        self.theme = wanted if wanted in self.available_themes else theme_for(environment)
        self.set_keymap(self.config.keys)
        if not self.is_headless:
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, self._end_by, number)
        self.app_resume_signal.subscribe(self, self.action_redraw)
        self._open_first()

    def _end_by(self, number: signal.Signals) -> None:
        """Close as ^q does, asking nothing: a running trace is stopped, the terminal restored."""
        signal.alarm(END_S)  # a terminal that is gone may never take the last of the screen
        self.exit(128 + number)

    def _open_first(self) -> None:
        if not self.opened:
            from aprtui.tui.screens.home import HomeScreen

            self.go("home", lambda: HomeScreen(self.folder))
        elif self.opened[0].kind == "folder":
            from aprtui.tui.screens.opening import OpeningScreen

            path = self.opened[0].path
            self.go("opening", lambda: OpeningScreen(path))
        elif len(self.opened) == 2 and self.opened[0].kind == "model":
            self.open_models(self.opened[0].path, self.opened[1].path)
        elif len(self.opened) > 2 or (len(self.opened) == 2 and self.opened[0].kind == "prompts"):
            self._under_dumps()
            self.open_matrix(tuple(one.path for one in self.opened))
        elif len(self.opened) == 2:
            self._under_dumps()
            self.open_diff(self.opened[0].path, self.opened[1].path)
        else:
            self._under_dumps()
            self.open_any(self.opened[0])

    def _under_dumps(self) -> None:
        """Where a dump was opened first: the screen that its form lies over."""
        if any(one.kind == "dump" for one in self.opened) and not self._trail:
            from aprtui.tui.screens.home import HomeScreen

            self.go("home", lambda: HomeScreen(self.folder))

    def open_any(self, opened: Opened) -> None:
        """The screen that fits what a path turned out to be."""
        if opened.kind == "per-op":
            self.open_diff(opened.path / "cpu", opened.path / "gpu")
        elif opened.kind == "model":
            self.open_model(opened.path)
        elif opened.kind == "results":
            self.jump(Jump("results", (opened.path,)))
        elif opened.kind == "prompts":
            self.jump(Jump("home", (opened.path,)))
        elif opened.kind == "dump":
            self.open_import(opened.path, self.open_browse)
        else:
            self.open_browse(opened.path)

    def open_path(self, path: Path) -> None:
        """Whatever lies at a path: a model, a trace, a stage file, or Home of another folder."""
        from aprtui.formats.tracedir import holds_trace
        from aprtui.tui.source import kind_of

        try:
            opened = kind_of(path)
        except AprtuiError as error:
            self.say(clean(str(error)))
            return
        if opened.kind == "trace" and path.is_dir() and not holds_trace(path):
            self.jump(Jump("home", (path,)))
        else:
            self.open_any(opened)

    async def opened_as(self, opened: Opened) -> None:
        """The screen that fits, in place of the one that looked."""
        if opened.kind == "dump":
            from aprtui.tui.screens.home import HomeScreen

            self.go("home", lambda: HomeScreen(self.folder))
        self.open_any(opened)
        self._trail.remove("opening")
        await self.remove_mode("opening")
        self._tell_modes()

    # Modes.

    def go(self, mode: str, factory: Callable[[], BaseScreen]) -> None:
        """Show a new screen in its mode; what that mode showed before lies under it."""
        self._jumps.leave(self._here())
        self._show_in(mode, factory)

    def _show_in(self, mode: str, factory: Callable[[], BaseScreen]) -> None:
        def styled() -> BaseScreen:
            """A new screen is styled as it is mounted: Textual need not read the sheet again."""
            screen = factory()
            screen._css_update_count = self._css_update_count
            return screen

        if mode not in self._modes:
            self.add_mode(mode, styled)
            self._trail.append(mode)
            self.switch_mode(mode)
        else:
            self._enter(mode)
            self.push_screen(factory())
        self._tell_modes()

    def _enter(self, mode: str) -> None:
        if mode != self.current_mode:
            self._trail.remove(mode)
            self._trail.append(mode)
            self.switch_mode(mode)

    def _tell_modes(self) -> None:
        open_modes = frozenset(self._trail)
        for stack in self._screen_stacks.values():
            for screen in stack:
                if isinstance(screen, BaseScreen):
                    screen.title_line.set_open(open_modes)

    def action_cycle_mode(self, step: int) -> None:
        """The next of the modes that are open."""
        order = [mode for mode in ("home", *MODES, "matrix") if mode in self._trail]
        if len(order) < 2:
            self.say(f"only {self.current_mode.capitalize()} is open: there is no other to go to")
            return
        here = order.index(self.current_mode) if self.current_mode in order else 0
        self._enter(order[(here + step) % len(order)])

    def action_go_mode(self, mode: str) -> None:
        """That mode, where it is open."""
        if mode in self._trail:
            self._enter(mode)
        else:
            self.say(f"{mode.capitalize()} is not open: ~ goes Home, where all begins")

    async def action_back(self, quits: bool = True) -> None:
        """Close the question, the screen, the mode, and at last the app, where that ``quits``."""
        screen = self.screen
        if isinstance(screen, BaseScreen):
            if screen.close_question() or screen.step_back():
                return
            if not quits and len(self.screen_stack) == len(self._trail) == 1:
                self.say(f"{self._key('back')} quits")
                return
            if screen.running_into():
                self._ask_about(screen, self.action_back)
                return
        if len(self.screen_stack) > 1:
            self.pop_screen()
            if isinstance(screen, BaseScreen) and screen.came_from in self._trail:
                self._enter(screen.came_from)
            return
        mode = self.current_mode
        if mode in self._trail:
            self._trail.remove(mode)
        if not self._trail:
            await self.action_leave()
            return
        self.switch_mode(self._trail[-1])
        await self.remove_mode(mode)
        self._tell_modes()

    async def action_leave(self) -> None:
        """Quit, whatever is open; a running trace is asked about first."""
        for stack in self._screen_stacks.values():
            for screen in stack:
                if isinstance(screen, BaseScreen) and screen.running_into():
                    self._ask_about(screen, self.action_leave)
                    return
        self.exit(0)

    def _ask_about(self, screen: BaseScreen, then: Callable[[], Awaitable[None]]) -> None:
        """What shall become of the screen's trace; ``then`` goes on once it is settled."""
        from aprtui.tui.screens.leave import LeaveScreen

        if isinstance(self.screen, LeaveScreen):
            self.screen.action_answer("stop")
            return

        async def settle(answer: str | None) -> None:
            if answer:
                await screen.release(answer)
                await then()

        self.push_screen(LeaveScreen(screen.running_into()), settle)

    # From anything to anything.

    def jump(self, to: Jump) -> None:
        """Go to a place; ``<`` comes back to this one."""
        self._jumps.leave(self._here())
        self._reach(to)

    def action_jump_back(self) -> None:
        self._step(back=True)

    def action_jump_forward(self) -> None:
        self._step(back=False)

    def action_go_home(self) -> None:
        self.jump(Jump("home", (self.folder,)))

    def _step(self, back: bool) -> None:
        to = self._jumps.step(back, self._here())
        if to is not None:
            self._reach(to)
        else:
            self.say("nowhere to go back to" if back else "nowhere to go on to")

    def goals(self) -> Iterator[list[Goal]]:
        """What the palette can go to: on the screen that is seen, then on those that are open."""
        for number, screen in enumerate(self.open_screens()):
            where = f" · in {screen.title_line.title}" if number else ""
            yield [replace(goal, label=f"{goal.label}{where}") for goal in screen.goals()]

    def action_command_palette(self) -> None:
        if not isinstance(self.screen, GoPalette):
            self.push_screen(GoPalette(
                id="--command-palette",
                placeholder="layer 12 ffn_gate, a tensor, a file, theme, a command… tab completes",
            ))  # fmt: skip

    def _here(self) -> Jump | None:
        screens = [each for each in self._shown_screens() if isinstance(each, BaseScreen)]
        return screens[-1].here() if screens else None

    def _reach(self, to: Jump) -> None:
        """The screen that shows the place, where one is open; else a new one."""
        for mode in reversed(self._trail):
            for screen in reversed(self._screen_stacks[mode]):
                if isinstance(screen, BaseScreen) and screen.shows(to):
                    self._enter(mode)
                    while self.screen is not screen:
                        self.pop_screen()
                    screen.turn_to(to)
                    return
                if not getattr(screen, "passing", False):
                    break
        self._open_jump(to)

    def _open_jump(self, to: Jump) -> None:
        """A new screen in its mode; over one that a jump opened it takes that one's place."""
        mode = {"pair": "diff", "bisect": "diff", "models": "model", "results": "matrix"}.get(
            to.screen, to.screen
        )
        left = self.current_mode

        def made() -> BaseScreen:
            screen = self._screen_for(to)
            screen.came_from = left
            return screen

        top = self._screen_stacks[mode][-1] if mode in self._trail else None
        if isinstance(top, BaseScreen) and top.came_from and len(self._screen_stacks[mode]) > 1:
            self._enter(mode)
            self.switch_screen(made())
        else:
            self._show_in(mode, made)

    def _screen_for(self, to: Jump) -> BaseScreen:
        from aprtui.tui.screens.browse import BrowseScreen
        from aprtui.tui.screens.diff import DiffScreen
        from aprtui.tui.screens.home import HomeScreen
        from aprtui.tui.screens.matrix import MatrixScreen
        from aprtui.tui.screens.model import ModelScreen
        from aprtui.tui.screens.models import ModelsScreen
        from aprtui.tui.screens.results import ResultsScreen

        if to.screen == "results":
            return ResultsScreen(to.paths[0])
        if to.screen == "matrix":
            return MatrixScreen(to.paths, self.model, to)
        if to.screen == "browse":
            return BrowseScreen(to.paths[0], to.key, self.model)
        if to.screen == "model":
            return ModelScreen(to.paths[0], to)
        if to.screen == "models":
            return ModelsScreen(to.paths[0], to.paths[1], at=to)
        if to.screen == "home":
            return HomeScreen(to.paths[0])
        return DiffScreen(to.paths[0], to.paths[1], self.model, to)

    def open_screens(self) -> list[BaseScreen]:
        """Every screen that is open, the one that was shown last first."""
        stacks = [self._screen_stacks[mode] for mode in reversed(self._trail)]
        return [s for stack in stacks for s in reversed(stack) if isinstance(s, BaseScreen)]

    def sides_with(self, path: Path) -> Sides | None:
        """What an open Diff compares, where ``path`` is one of the two."""
        screens = [screen for screen in self.open_screens() if screen.mode == "diff"]
        found = (screen.sides for screen in screens if isinstance(screen, SidesScreen))
        here = path.absolute()
        return next((s for s in found if s and here in (s.a.absolute(), s.b.absolute())), None)

    def trace_of(self, model: Path) -> Path | None:
        """A trace that is browsed and says that this model computed it."""
        from aprtui.compare.reference import named_model
        from aprtui.tui.screens.browse import BrowseScreen

        for screen in self.open_screens():
            if isinstance(screen, BrowseScreen) and screen.trace is not None:
                named = named_model(screen.trace)
                if named is not None and named.absolute() == model.absolute():
                    return screen.path
        return None

    # What nobody foresaw.

    def outlive(self, error: Exception) -> None:
        """A worker or a key's work has failed in a way that nobody foresaw: say so, and go on."""
        told = told_of(error, f"screen {self.current_mode}")
        if isinstance(told, UnforeseenError):
            self.unforeseen.append(told)
        screens = [each for each in self._shown_screens() if isinstance(each, BaseScreen)]
        if screens:
            screens[-1].fail(told.message, told.hint)

    def _shown_screens(self) -> Sequence[Screen[Any]]:
        """The screens of the mode, the uppermost last; none where the app is on its way out."""
        try:
            return self.screen_stack
        except ScreenStackError:
            return ()

    async def _dispatch_message(self, message: Message) -> None:
        await outliving(self, message, super()._dispatch_message)

    def _handle_exception(self, error: Exception) -> None:
        """Textual's last resort. A worker's fault is outlived; after one in drawing a widget no
        longer hears anything, so the app ends, with the terminal restored and one sentence."""
        if isinstance(error, WorkerFailed) and isinstance(error.error, Exception):
            self.outlive(error.error)
        elif self.is_headless:
            super()._handle_exception(error)
        elif self.ended_by is None:
            self.ended_by = told_of(error, f"drawing {self.current_mode}")
            self._close_messages_no_wait()

    # What screens ask for.

    def open_browse(self, path: Path, select: StageKey | None = None) -> None:
        """Browse a trace directory or a stage file."""
        from aprtui.tui.screens.browse import BrowseScreen

        self.go("browse", lambda: BrowseScreen(path, select, self.model))

    def open_import(self, dump: Path, then: Callable[[Path], None]) -> None:
        """Offer to import another tool's dump; ``then`` is given the trace."""
        from aprtui.tui.screens.importing import ImportScreen

        def go_on(trace: Path | None) -> None:
            if trace is not None:
                then(trace)

        self.push_screen(ImportScreen(dump, self.model), go_on)

    def open_diff(self, a: Path, b: Path) -> None:
        """Compare two traces, or two stage files; a dump is imported first."""
        from aprtui.captures.opening import is_dump
        from aprtui.tui.screens.diff import DiffScreen

        if is_dump(a):
            self.open_import(a, lambda trace: self.open_diff(trace, b))
            return
        if is_dump(b):
            self.open_import(b, lambda trace: self.open_diff(a, trace))
            return

        self.go("diff", lambda: DiffScreen(a, b, self.model))

    def open_matrix(self, paths: tuple[Path, ...]) -> None:
        """Traces against the first of them, or folders of prompts; a dump is imported first."""
        from aprtui.captures.opening import is_dump
        from aprtui.tui.screens.matrix import MatrixScreen

        at = next((number for number, path in enumerate(paths) if is_dump(path)), None)
        if at is not None:
            others = paths[:at], paths[at + 1 :]
            self.open_import(paths[at], lambda t: self.open_matrix((*others[0], t, *others[1])))
            return
        self.go("matrix", lambda: MatrixScreen(paths, self.model))

    def open_model(self, path: Path) -> None:
        """Show a model."""
        from aprtui.tui.screens.model import ModelScreen

        self.go("model", lambda: ModelScreen(path))

    def open_models(self, a: Path, b: Path) -> None:
        """Compare two models' weights."""
        from aprtui.tui.screens.models import ModelsScreen

        self.go("model", lambda: ModelsScreen(a, b))

    def open_trace(self, model: Path) -> None:
        """The form of a trace of ``model``."""
        from aprtui.tui.screens.trace import TraceScreen

        self.go("trace", lambda: TraceScreen(model))

    # Anywhere.

    def say(self, note: str) -> None:
        """A remark at the foot of the screen, or of the one that a question lies over."""
        screens = [each for each in self._shown_screens() if isinstance(each, BaseScreen)]
        if screens:
            screens[-1].say(note)

    def _key(self, id: str) -> str:
        """The key that does it, as people write it."""
        row = next(key for key in keys_at("anywhere") if key.id == id)
        return shown(remapped((row,), self.config.keys)[0].keys[0])

    def action_help_quit(self) -> None:
        """What ^c and ^z do: they end other programs."""
        self.say(f"{self._key('quit')} quits")

    def action_help(self) -> None:
        from aprtui.tui.screens.help import HelpScreen

        places = self.screen.active_places() if isinstance(self.screen, BaseScreen) else ()
        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(places, self.config.keys))

    def action_next_theme(self) -> None:
        here = THEMES.index(self.theme) if self.theme in THEMES else -1
        self.choose_theme(THEMES[(here + 1) % len(THEMES)])

    def choose_theme(self, theme: str) -> None:
        """Take that theme; it stays, until another one is chosen or the config names another."""
        self.theme = theme
        remember_theme(theme, self.config.theme)
        self.say(f"theme {theme}")

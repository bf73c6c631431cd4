"""One table of keys: nothing bound twice in one place, every action there, the page's table."""

from __future__ import annotations

import re

import pytest

from aprtui.tui.app import AprtuiApp
from aprtui.tui.keys import KEYS, PLACES, bindings, markdown
from aprtui.tui.panes import PANES, place_of
from aprtui.tui.screens.base import BaseScreen
from aprtui.tui.screens.bisect import BisectScreen
from aprtui.tui.screens.bookmarks import BookmarksScreen
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.screens.cells import CellsScreen
from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.screens.home import HomeScreen
from aprtui.tui.screens.importing import ImportScreen
from aprtui.tui.screens.leave import LeaveScreen
from aprtui.tui.screens.matrix import MatrixScreen
from aprtui.tui.screens.mistake import MistakeScreen
from aprtui.tui.screens.model import ModelScreen
from aprtui.tui.screens.models import ModelsScreen
from aprtui.tui.screens.pair import PairScreen
from aprtui.tui.screens.results import ResultsScreen
from aprtui.tui.screens.trace import TraceScreen
from aprtui.tui.widgets.lines import RowList
from aprtui.tui.widgets.stage_grid import StageGrid
from aprtui.tui.widgets.value_grid import ValueGrid

OWNERS: dict[str, tuple[type, ...]] = {
    "anywhere": (AprtuiApp,),
    "move": (RowList, ValueGrid, StageGrid),
    "browse": (BrowseScreen,),
    "model": (ModelScreen,),
    "models": (ModelsScreen,),
    "trace": (TraceScreen,),
    "bookmarks": (BookmarksScreen,),
    "leave": (LeaveScreen,),
    "import": (ImportScreen,),
    "diff": (DiffScreen,),
    "pair": (PairScreen,),
    "bisect": (BisectScreen,),
    "mistake": (MistakeScreen,),
    "matrix": (CellsScreen,),
    "many": (MatrixScreen,),
    "results": (ResultsScreen,),
    "sides": (MatrixScreen, DiffScreen, BisectScreen, MistakeScreen, PairScreen, BrowseScreen),
    "home": (HomeScreen,),
} | {place_of(mode, row.name): (row.load(),) for mode, rows in PANES.items() for row in rows}


# What has keys of its own over the app's: a question, and numbers that the palette goes to.
ASKING = ("leave", "bookmarks", "browse:values", "model:values", "pair", "import")


def test_ids_are_unique_and_places_are_known() -> None:
    assert len({key.id for key in KEYS}) == len(KEYS)
    assert {key.where for key in KEYS} <= set(PLACES)
    assert set(PLACES) == set(OWNERS)


@pytest.mark.parametrize("place", PLACES)
def test_no_key_means_two_things_in_one_place(place: str) -> None:
    together = {place, "anywhere"} - ({"anywhere"} if place in ASKING else set())
    screen = place.partition(":")[0]
    together.add(screen)
    if screen in ("browse", "diff", "pair", "bisect", "mistake", "matrix"):
        together.add("sides")
    if place == "results":
        together.add("matrix")
    if place == "many":
        together |= {"matrix", "sides"}
    keys = [name for key in KEYS if key.where in together for name in key.keys]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.id)
def test_every_action_is_there(key) -> None:  # type: ignore[no-untyped-def]
    name = key.action.partition("(")[0]
    owners = (AprtuiApp,) if name.startswith("app.") else OWNERS[key.where]
    if name.startswith("screen."):
        owners = (BaseScreen,) if key.where == "anywhere" else OWNERS[key.where.partition(":")[0]]
    name = name.rpartition(".")[2]
    for owner in owners:
        assert hasattr(owner, f"action_{name}"), f"{owner.__name__} has no action_{name}"


def test_no_key_that_tmux_or_a_terminal_takes_is_the_only_way() -> None:
    taken = {"ctrl+b", "ctrl+a", "ctrl+s", "ctrl+j", "escape"}
    free = {key.action.partition("(")[0] for key in KEYS if not set(key.keys) <= taken}
    assert all(key.action.partition("(")[0] in free for key in KEYS)


def test_bindings_carry_ids_so_that_a_config_can_remap_them() -> None:
    ids = ["maximum", "next-nonfinite", "values-pass", "values-pass-back", "find", "values-go"]
    assert [b.id for b in bindings("browse:values")] == ids


def test_the_readme_table_names_every_key() -> None:
    rows = markdown().splitlines()
    assert len(rows) == len(KEYS) + 2
    assert all(re.fullmatch(r"\| .+ \| `.+` \| .+ \|", row) for row in rows[2:])

"""Values are found by what a person types; n and N go from hit to hit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aprtui.compare.metrics import Cancelled
from aprtui.errors import UsageError
from aprtui.tui import measure
from aprtui.tui.value_search import Hit, nearest_hit, sought
from tests.tui.support import frame, opened, press, screen, small_trace

VALUES = np.array(
    [0.0, -0.0, 1.5, -3.25, np.nan, np.inf, -np.inf, 1e-40, 3.0, 0.1], dtype=np.float32
)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("|x| > 3", [3, 5, 6]), ("|x|>=3", [3, 5, 6, 8]), ("|X| < 1", [0, 1, 7, 9]),
        ("> 1", [2, 5, 8]), ("<-2", [3, 6]), (">= 3", [5, 8]), ("<= -3.25", [3, 6]),
        ("= 0", [0, 1]), ("0.1", [9]), ("== 1.5", [2]), ("1e-40", [7]), ("nan", [4]),
        ("Inf", [5, 6]), ("-inf", [6]), ("|x| = 3.25", [3]), ("nonfinite", [4, 5, 6]),
        ("denormal", [7]), (".1", [9]), ("abs(x) > 3", [3, 5, 6]),
    ],
)  # fmt: skip
def test_what_is_typed_means_these_values(text: str, places: list[int]) -> None:
    with np.errstate(invalid="ignore"):
        assert np.flatnonzero(sought(text).test(VALUES)).tolist() == places


@pytest.mark.parametrize(
    "text", ["", "x", "> ", "|x|", "1..2", ">> 3", "nanx", "1 2 x", "\x1b[31m"]
)
def test_what_means_nothing_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        sought(text)
    assert "|x| > 3" in caught.value.hint and "\x1b" not in caught.value.message


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_hits_are_numbered_and_wrap_around(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BLOCK", block)
    rng = np.random.default_rng(5)
    values = rng.integers(0, 4, 40).astype(np.float32)
    wanted = sought("= 2")
    places = [n for n, value in enumerate(values) if value == 2.0]

    def hit(at: int, step: int) -> Hit | None:
        return nearest_hit(values, wanted, at, step, lambda: False)

    for at in range(40):
        after = [p for p in places if p > at] or places
        before = [p for p in places if p < at] or places
        here = [p for p in places if p >= at] or places
        for step, chosen in ((1, after[0]), (-1, before[-1]), (0, here[0])):
            assert hit(at, step) == Hit(chosen, 1 + places.index(chosen), len(places))
    assert nearest_hit(values, sought("> 9"), 0, 1, lambda: False) is None
    with pytest.raises(Cancelled):
        nearest_hit(values, wanted, 0, 1, lambda: True)


async def test_f_finds_and_n_steps_while_the_cursor_is_among_the_values(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path / "t")) as pilot:
        await press(pilot, "2", "tab", "f")
        screen(pilot)._prompt.value = "|x| > 20"
        text = await press(pilot, "enter")
        assert "(2, 5)  21.0  |x| > 20: hit 1 of 3 (n N)" in text
        assert "(2, 6)  22.0  |x| > 20: hit 2 of 3" in await press(pilot, "n")
        assert "hit 1 of 3" in await press(pilot, "N")
        assert "(2, 7)  23.0  |x| > 20: hit 3 of 3" in await press(pilot, "N")
        assert "hit" not in (await press(pilot, "h", "h", "h")).splitlines()[-3]
        await press(pilot, "tab", "n")  # in the tree it is the next layer's stage, as ever
        assert "layer 1 · attn_norm" in frame(pilot)
        assert "|x| > 20: hit 2 of 4" in await press(pilot, "tab", "n")
        await press(pilot, "f")
        screen(pilot)._prompt.value = "nonsense"
        assert "'nonsense' is nothing to look for: write |x| > 3" in await press(pilot, "enter")
        await press(pilot, "f")
        screen(pilot)._prompt.value = "nan"
        assert "no value here is nan" in await press(pilot, "enter")
        await press(pilot, "f")
        screen(pilot)._prompt.value = ""
        await press(pilot, "enter", "n")  # no search any more: the next layer again
        assert "layer 0 · attn_norm" in frame(pilot)

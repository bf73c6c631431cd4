"""The Trace form on a model that no family file describes: what its modules make, as they come."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Input

from aprtui.formats.tracedir import StageKey, open_trace
from aprtui.tui.app import AprtuiApp
from aprtui.tui.screens.trace import TraceScreen
from tests.tui.support import WIDE, frame, press, settle, until

pytest.importorskip("transformers", reason="transformers is a dev dependency")

from tests.engine.test_modules import saved


async def test_the_form_traces_modules_and_the_grid_grows_as_they_come(tmp_path: Path) -> None:
    model, into = saved("codegen", tmp_path / "codegen"), tmp_path / "t"
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        app = pilot.app
        assert isinstance(app, AprtuiApp)
        app.go("trace", lambda: TraceScreen(model))
        await settle(pilot)
        trace = pilot.app.screen
        assert isinstance(trace, TraceScreen)
        for name, text in (("tokens", "1,2,3"), ("engine", "hf"), ("into", str(into))):
            trace.query_one(f"#field-{name}", Input).value = text
        await until(pilot, "transformers' modules")
        await press(pilot, "r")
        await until(pilot, "complete")
        text = frame(pilot)
        made = StageKey(1, "mlp.fc_in")
        assert made in trace.view.grid.cells and "attn" in text
        assert made in open_trace(into).records

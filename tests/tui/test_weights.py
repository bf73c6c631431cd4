"""A weight's values without torch: as llama.cpp and the public apr tool decode them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aprtui.formats.modelfile import TensorEntry
from aprtui.model.open import read_model_file
from aprtui.tui.weight_sample import look_at_weight, sample_values
from tests.support import FIXTURES, SMALL, needs_fixtures
from tests.tui.support import frame, opened, press

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ4_NL", "IQ4_XS")


@needs_fixtures
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("by", ["C", "numpy"])
def test_rows_are_decoded_bit_for_bit_as_llama_cpp_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, name: str
) -> None:
    if by == "numpy":
        monkeypatch.setattr("aprtui.tui.weight_sample.NATIVE_TYPES", frozenset())
    with np.load(FIXTURES / "dequantise.npz") as known:
        stored, values = known[f"{name}/quantised_bytes"], known[f"{name}/quantised_values"]
    path = tmp_path / "weights"
    path.write_bytes(stored.tobytes())
    entry = TensorEntry("w", name, values.shape, path, 0, stored.nbytes)
    found = sample_values(entry)
    assert found is not None and np.array_equal(found.reshape(values.shape), values)


@needs_fixtures
@pytest.mark.parametrize("name", ["pycode-int8", "pycode-int4", "pycode-f16", "qwen2-import"])
def test_statistics_are_those_that_apr_lists(name: str) -> None:
    file = read_model_file(FIXTURES / "apr" / "models" / f"{name}.apr")
    listing = json.loads((FIXTURES / "apr" / "listings" / f"{name}.tensors.json").read_text())
    compared = 0
    for tensor in listing["tensors"]:
        if tensor.get("mean") is None or tensor.get("nan_count"):
            continue
        look = look_at_weight(file.tensors[tensor["name"]], 10)
        if look is None or look.looked < look.count:
            continue
        found = look.statistics
        assert found.mean == pytest.approx(tensor["mean"], rel=1e-3, abs=1e-6), tensor["name"]
        assert found.min == pytest.approx(tensor["min"], rel=1e-5), tensor["name"]
        assert found.max == pytest.approx(tensor["max"], rel=1e-5), tensor["name"]
        compared += 1
    assert compared > 5


def test_a_large_weight_is_looked_at_in_rows_spread_over_it(tmp_path: Path) -> None:
    rows = np.repeat(np.arange(4096, dtype=np.float32), 1024).reshape(4096, 1024)
    path = tmp_path / "weights"
    path.write_bytes(rows.tobytes())
    look = look_at_weight(TensorEntry("w", "F32", rows.shape, path, 0, rows.nbytes), 8)
    assert look is not None and look.looked == 1 << 20 and look.count == 1 << 22
    assert (look.statistics.min, look.statistics.max) == (0.0, 4092.0)


@needs_fixtures
async def test_the_model_screen_shows_a_weights_numbers_under_the_cursor() -> None:
    async with opened(FIXTURES / "models" / "qwen2-q4_k_m.gguf") as pilot:
        text = await press(pilot, "j", "j")
        assert "NaN 0  Inf 0" in text and "range " in text and "every value" in text
        assert "blk.0." in frame(pilot)


async def test_a_quantised_weight_shows_every_tensor_that_it_is_stored_as() -> None:
    async with opened(SMALL / "quantised" / "gptq-4-actorder") as pilot:
        await press(pilot, *"jjj")
        shown = frame(pilot)
    assert "7 of GPTQ_4" in shown
    assert "q_proj.weight" in shown
    for part in ("qweight", "scales", "qzeros", "g_idx"):
        assert f"self_attn.q_proj.{part}" in shown
    assert "9,344" in shown and "in 4 tensors" in shown

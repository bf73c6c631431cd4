"""Layers replayed in several processes: the JSON of one process, to the byte."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import aprtui
from aprtui.compare.bisect import bisect
from aprtui.compare.opening import read_capture, unshaped
from aprtui.compare.spread import Found, Piece, replay_piece, spread_over
from aprtui.formats.aprt import read_values, write_stage
from aprtui.formats.tracedir import TraceDir
from aprtui.model.open import Model, open_model
from tests.support import FIXTURES, SMALL, needs_fixtures
from tests.tiny import write_tiny


def elsewhere(pieces: Sequence[Piece]) -> Iterator[tuple[Found, ...]]:
    """As other processes would: what goes there and comes back is pickled; the last comes first."""
    for piece in reversed(pickle.loads(pickle.dumps(list(pieces)))):
        yield pickle.loads(pickle.dumps(replay_piece(piece)))


def assert_same(
    model: Model, b: TraceDir, a: TraceDir | None, tokens: tuple[int, ...] | None
) -> str:
    one = json.dumps(bisect(model, b, a, tokens=tokens).to_json(), indent=1)
    for processes in (1, 3):
        replayer = spread_over(elsewhere, processes)
        found = bisect(model, b, a, tokens=tokens, replayer=replayer)
        assert json.dumps(found.to_json(), indent=1) == one
    verdict: str = json.loads(one)["verdict"]
    return verdict


CASES = json.loads((FIXTURES / "faults" / "cases.json").read_text()) if FIXTURES.is_dir() else []


@needs_fixtures
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["capture"])
def test_recorded_captures_of_other_engines(case: dict[str, str]) -> None:
    model = open_model(FIXTURES / "models" / case["model"])
    b = unshaped(read_capture(FIXTURES / "faults" / case["capture"]))
    assert_same(model, b, None, None)


def test_a_small_capture_against_its_reference() -> None:
    model = open_model(SMALL / "models" / "qwen2-q4_k_m.gguf")
    b = unshaped(read_capture(SMALL / "faults" / "bad-block-gate-L3-ggml"))
    a = unshaped(read_capture(SMALL / "captures" / "qwen2-q4_k_m" / "float64"))
    assert assert_same(model, b, a, None) == "culprits"


def doubled(path: Path) -> None:
    values = np.array(read_values(path))
    layer = int(path.parent.name.removeprefix("layer-"))
    write_stage(path, layer, values * np.float32(2))


@pytest.mark.parametrize(
    "faults, missing",
    [
        (("layer-1/ffn_gate", "layer-2/attn_out", "layer-3/q_post_rope"), ()),
        ((), ("layer-2/ffn_gate", "layer-2/attn_out", "layer-3/ffn_up")),
        (("layer-0/ffn_up", "layer-3/ffn_up"), ("layer-1/ffn_swigl",)),
    ],
)
def test_several_culprits_and_stages_that_were_not_captured(
    tmp_path: Path, faults: tuple[str, ...], missing: tuple[str, ...]
) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in (2, 3):
        shapes |= {
            f"model.layers.{layer}.{name}": shape
            for name, shape in {
                "input_layernorm.weight": (16,),
                "self_attn.q_proj.weight": (16, 16),
                "self_attn.k_proj.weight": (8, 16),
                "self_attn.v_proj.weight": (8, 16),
                "self_attn.o_proj.weight": (16, 16),
                "post_attention_layernorm.weight": (16,),
                "mlp.gate_proj.weight": (32, 16),
                "mlp.up_proj.weight": (32, 16),
                "mlp.down_proj.weight": (16, 32),
            }.items()
        }
    path = write_tiny(tmp_path / "four.apr", metadata={"num_layers": 4}, shapes=shapes)
    model = open_model(path)
    trace = aprtui.trace(model, tokens=[3, 1, 4, 1, 5], directory=tmp_path / "b", device="cpu")
    for fault in faults:
        doubled(trace.root / f"{fault}.bin")
    for stage in missing:
        (trace.root / f"{stage}.bin").unlink()
    if missing:
        (trace.root / "trace.json").unlink()
        (trace.root / "events.jsonl").unlink()
    b = unshaped(read_capture(trace.root))
    verdict = assert_same(model, b, None, (3, 1, 4, 1, 5))
    assert verdict == ("culprits" if faults else "clean")
    if missing:
        assert_same(model, b, None, None)  # token ids are found in the embedding


def test_a_capture_of_one_stage_and_of_chosen_layers(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "m.apr"))
    trace = aprtui.trace(model, tokens=[3, 1, 4], directory=tmp_path / "b", device="cpu")
    for stages, layers in (("ffn_gate", "all"), ("all", "1"), ("lm_head", "all")):
        one = aprtui.bisect(trace, model=model, stages=stages, layers=layers)
        two = aprtui.bisect(
            trace, model=model, stages=stages, layers=layers, replayer=spread_over(elsewhere, 2)
        )
        assert json.dumps(one.to_json()) == json.dumps(two.to_json())

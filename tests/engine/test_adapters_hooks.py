"""hooks(): a PyTorch model's modules mapped to stages by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aprtui import CaptureWriter, hooks
from aprtui.errors import UsageError
from aprtui.formats.tracedir import StageKey, open_trace


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = torch.nn.Linear(4, 6, bias=False)
        self.pair = Pair()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate: torch.Tensor = self.gate_proj(x)
        doubled: torch.Tensor = self.pair(x)[1]
        return x + gate.sum(-1, keepdim=True) + doubled


class Pair(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, 2 * x


class Toy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(1)
    return Toy().eval()


def capture(toy: Toy, folder: Path, stages: Any, x: torch.Tensor) -> torch.Tensor:
    writer = CaptureWriter(folder, tokens=(1, 2), engine={"name": "toy"})
    with torch.no_grad(), writer as written, hooks(toy, stages, written):
        result: torch.Tensor = toy(x)
    return result


def test_outputs_inputs_tuples_and_joined_parts(toy: Toy, tmp_path: Path) -> None:
    x = torch.randn(1, 2, 4)
    stages = {
        "layers.{layer}.gate_proj": "ffn_gate",
        "layers.{layer}.gate_proj:input": "ffn_norm",
        "layers.{layer}.pair[1]": "doubled",
        ("layers.{layer}.gate_proj", "layers.{layer}.gate_proj:input"): "joined",
        "layers.2": "last",
    }
    result = capture(toy, tmp_path, stages, x)
    found = open_trace(tmp_path).records
    assert len(found) == 4 * 3 + 1
    with torch.no_grad():
        gate = toy.layers[0].gate_proj(x)[0]  # type: ignore[operator]
    values = {key: torch.from_numpy(record.values().copy()) for key, record in found.items()}
    assert torch.equal(values[StageKey(0, "ffn_gate")], gate.flatten())
    assert torch.equal(values[StageKey(0, "ffn_norm")], x.flatten())
    assert torch.equal(values[StageKey(0, "doubled")], 2 * x.flatten())
    assert torch.equal(values[StageKey(0, "joined")], torch.cat([gate, x[0]], -1).flatten())
    assert torch.equal(values[StageKey(None, "last")], result.flatten())


def test_watching_changes_nothing_and_ends_with_the_block(toy: Toy, tmp_path: Path) -> None:
    x = torch.randn(1, 2, 4)
    watched = capture(toy, tmp_path, {"layers.{layer}": "hidden"}, x)
    with torch.no_grad():
        assert torch.equal(toy(x), watched)
    assert not any(module._forward_hooks for module in toy.modules())


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ({"layers.{layer}.gate_prj": "ffn_gate"}, "did you mean layers.0.gate_proj"),
        ({"layers.{layer}.gate_proj:output": "ffn_gate"}, "cannot be read"),
        ({"layers.{layer}.pair": "mine"}, None),
        ({"layers.{layer}.pair[0]": "mine"}, None),
    ],
)
def test_names_that_fit_nothing_are_told(
    toy: Toy, tmp_path: Path, stages: dict[str, str], says: str | None
) -> None:
    if says is None:  # element 0 of a tuple is taken when none is asked for
        capture(toy, tmp_path, stages, torch.randn(1, 2, 4))
        assert len(open_trace(tmp_path).records) == 3
        return
    with pytest.raises(UsageError, match=says):
        capture(toy, tmp_path, stages, torch.randn(1, 2, 4))


def test_a_batch_of_prompts_is_refused(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch of 2 prompts"):
        capture(toy, tmp_path, {"layers.{layer}": "hidden"}, torch.randn(2, 2, 4))
    assert open_trace(tmp_path).status == "incomplete"


def test_a_second_pass_does_not_overwrite_the_first(toy: Toy, tmp_path: Path) -> None:
    writer = CaptureWriter(tmp_path, tokens=(1, 2), engine={"name": "toy"})
    with (
        pytest.raises(UsageError, match="one forward pass makes one capture"),
        writer as written,
        hooks(toy, {"layers.{layer}": "hidden"}, written),
    ):
        toy(torch.randn(1, 2, 4))
        toy(torch.randn(1, 2, 4))

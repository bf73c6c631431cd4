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
        pytest.raises(UsageError, match="put already"),
        writer as written,
        hooks(toy, {"layers.{layer}": "hidden"}, written),
    ):
        toy(torch.randn(1, 2, 4))
        toy(torch.randn(1, 2, 4))


# -- serving runtimes: flat tokens, shared modules, several calls and passes, in-place kernels -----


class Shared(torch.nn.Module):
    """Layers that share one rotation, which is called for q and for k; norms write in place."""

    def __init__(self) -> None:
        super().__init__()
        rotary = Turn()
        self.layers = torch.nn.ModuleList(Served(rotary) for _ in range(3))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        for layer in self.layers:
            x = layer(x)
        return {"hidden": x, "logits": x[-1:] * 3}


class Turn(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 100


class InPlace(torch.nn.Module):
    def forward(self, x: torch.Tensor, *, residual: torch.Tensor) -> torch.Tensor:
        residual.add_(x)
        x.zero_()
        return residual.clone()


class Served(torch.nn.Module):
    def __init__(self, rotary: Turn) -> None:
        super().__init__()
        self.rotary_emb = rotary
        self.q = torch.nn.Identity()
        self.k = torch.nn.Identity()
        self.norm = InPlace()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = self.q(x.clone()), self.k(x * 2)
        self.rotary_emb(q), self.rotary_emb(k)
        made: torch.Tensor = self.norm(q, residual=x.clone())
        return made


def served(folder: Path, stages: Any, passes: list[list[int]]) -> dict[StageKey, torch.Tensor]:
    """What the toy's flat passes left, each row's value its position."""
    model = Shared().eval()
    tokens = [1] * sum(map(len, passes))
    writer = CaptureWriter(folder, tokens=tokens, engine={"name": "toy"})
    with torch.no_grad(), writer as capture, hooks(model, stages, capture, flat=True) as watched:
        for positions in passes:
            watched.at(positions)
            model(torch.tensor(positions, dtype=torch.float32)[:, None].repeat(1, 4))
    found = open_trace(folder)
    assert found.rows is not None
    assert found.rows.passes == tuple(n for n, p in enumerate(passes) for _ in p)
    return {key: torch.from_numpy(found[key].copy()) for key in found}


def test_a_shared_modules_calls_are_dealt_out_to_the_layers(tmp_path: Path) -> None:
    stages = {
        "layers.{layer}.rotary_emb#0": "q_post_rope",
        "layers.{layer}.rotary_emb#1": "k_post_rope",
    }
    values = served(tmp_path, stages, [[0, 1, 2], [3]])
    assert len(values) == 6
    for layer in range(3):  # x doubles from layer to layer
        x = torch.tensor([0.0, 1, 2, 3]) * 2**layer
        assert torch.equal(values[StageKey(layer, "q_post_rope")][:, 0], x + 100)
        assert torch.equal(values[StageKey(layer, "k_post_rope")][:, 0], 2 * x + 100)


def test_every_call_is_kept_and_each_may_be_a_layers(tmp_path: Path) -> None:
    values = served(tmp_path / "a", {"layers.0.rotary_emb": "turned"}, [[0, 1]])
    names = [key.stage for key in values]
    assert names == ["turned", *(f"turned.call{number}" for number in range(1, 6))]
    values = served(tmp_path / "b", {"layers.0.rotary_emb#{layer}": "turned"}, [[0, 1]])
    assert [key.layer for key in values] == [0, 1, 2, 3, 4, 5]


def test_parts_that_wait_are_cloned_and_inputs_have_names(tmp_path: Path) -> None:
    stages = {
        ("layers.{layer}.q", "layers.{layer}.norm"): "joined",  # q is zeroed before norm is there
        "layers.{layer}.norm:input[residual]": "before",
        "layers.{layer}.norm": "ffn_norm",
        "[logits]": "lm_head",
    }
    values = served(tmp_path, stages, [[1, 2], [3]])
    x = torch.tensor([1.0, 2, 3])
    assert torch.equal(values[StageKey(0, "joined")][:, 0], x)
    assert torch.equal(values[StageKey(0, "joined")][:, 4], 2 * x)
    assert torch.equal(values[StageKey(0, "before")][:, 0], x)
    assert torch.equal(values[StageKey(None, "lm_head")][:, 0], torch.tensor([2.0, 3]) * 24)


def test_rows_of_one_sequence_of_a_batch(toy: Toy, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 4)
    writer = CaptureWriter(tmp_path, tokens=(7, 8), engine={"name": "toy"}, sequence=1)
    with torch.no_grad(), writer as capture, hooks(toy, {"layers.1": "x"}, capture) as watched:
        watched.at([0, 1], rows=[4, 5])  # the first column of the second prompt is padding
        result = toy(x)
        assert result.shape == (2, 3, 4)
    found = open_trace(tmp_path)
    with torch.no_grad():
        right = toy.layers[1](toy.layers[0](x))[1, 1:]
    assert torch.equal(torch.from_numpy(found["x"].copy()), right)
    assert found.rows is not None and found.rows.sequence == 1
    with pytest.raises(UsageError, match="1 rows for 2 positions"):
        watched.at([0, 1], rows=[4])

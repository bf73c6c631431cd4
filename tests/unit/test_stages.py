"""The stage graph: one declaration, many uses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from aprtui.model.build import build_graph
from aprtui.model.config import ModelConfig

from aprtui.errors import UsageError
from aprtui.formats.tracedir import StageKey, key_of, relative_path
from aprtui.graph.select import parse_layers, parse_stages
from aprtui.graph.vocabulary import STAGES, order_of

QWEN2 = ModelConfig(
    architecture="qwen2", num_layers=2, hidden_size=8, num_heads=4, num_kv_heads=2, head_dim=2,
    intermediate_size=16, vocab_size=32, rms_norm_eps=1e-6, rope_theta=1e4, qkv_bias=True,
)  # fmt: skip
MOE = replace(
    QWEN2, architecture="qwen3moe", qkv_bias=False, qk_norm=True, num_experts=4,
    num_experts_per_tok=2,
)  # fmt: skip
GEMMA2 = replace(QWEN2, architecture="gemma2", qkv_bias=False, post_norms=True)


def test_inputs_come_before_their_stage_in_every_family() -> None:
    for config in (QWEN2, MOE, GEMMA2):
        seen: set[StageKey] = set()
        for node in build_graph(config):
            assert set(node.inputs) <= seen, node.key
            seen.add(node.key)


def test_what_a_stage_is_fed_by_depends_on_what_exists() -> None:
    def inputs(config: ModelConfig, stage: str) -> tuple[str, ...]:
        node = next(n for n in build_graph(config) if n.key == StageKey(1, stage))
        return tuple(str(key) for key in node.inputs)

    assert inputs(QWEN2, "q_post_rope") == ("layer-1/qkv_bias",)
    assert inputs(MOE, "q_post_rope") == ("layer-1/q_norm",)
    assert inputs(QWEN2, "attn_norm") == ("layer-0/post_ffn_residual",)
    assert inputs(GEMMA2, "post_attn_residual")[1] == "layer-1/attn_post_norm"
    assert inputs(MOE, "ffn_out") == ("layer-1/moe_ffn_out",)


def test_every_stage_is_either_in_the_graph_or_absent_with_a_reason() -> None:
    for config in (QWEN2, MOE, GEMMA2):
        present = {node.key.stage for node in build_graph(config)}
        absent = {item.stage: item.reason for item in absent_stages(config)}
        assert present | set(absent) == {kind.name for kind in STAGES}
        assert not present & set(absent)
        assert all(absent.values())


def test_embedding_is_in_layer_0_only_and_the_ends_are_whole_model() -> None:
    keys = [node.key for node in build_graph(QWEN2)]
    assert [key for key in keys if key.stage == "embedding"] == [StageKey(0, "embedding")]
    assert keys[-2:] == [StageKey(None, "final_norm"), StageKey(None, "lm_head")]


def test_the_order_of_computation_sorts_any_set_of_stages() -> None:
    keys = [node.key for node in build_graph(MOE)]
    assert sorted(reversed(keys), key=order_of) == keys


def test_shapes() -> None:
    assert stage_shape("qkv_matmul", QWEN2, 3) == (3, 16)
    assert stage_shape("k_post_rope", QWEN2, 3) == (3, 2, 2)
    assert stage_shape("attn_scores", QWEN2, 3) == (4, 3, 3)
    assert stage_shape("moe_router", MOE, 3) == (3, 2)
    assert stage_shape("lm_head", QWEN2, 3) == (32,)
    assert stage_shape("lm_head", QWEN2, 3, "all") == (3, 32)


def test_stage_names_as_people_type_them() -> None:
    assert parse_stages("all") is None
    assert parse_stages(" FFN_Up , attn_norm,layer_output") == (
        "attn_norm", "ffn_up", "post_ffn_residual",
    )  # fmt: skip
    with pytest.raises(UsageError, match="did you mean attn_scores"):
        parse_stages("atn_scores")
    with pytest.raises(UsageError, match="empty stage name"):
        parse_stages("ffn_up,")


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("all", (0, 1, 2, 3)),
        ("2", (2,)),
        ("1..3", (1, 2)),
        ("0, 3", (0, 3)),
        ("0..4", (0, 1, 2, 3)),
    ],
)
def test_layers_as_people_type_them(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text, 4) == layers


@pytest.mark.parametrize("text", ["4", "-1", "2..2", "3..2", "0..5", "", "a", "1..b", "1..2..3"])
def test_layers_outside_the_model_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_layers(text, 4)


def test_paths_and_keys_are_the_same_thing() -> None:
    for key in (StageKey(0, "embedding"), StageKey(27, "ffn_up"), StageKey(None, "lm_head")):
        assert key_of(relative_path(key)) == key
    for path in ("layer-01/x.bin", "layer-0/../x.bin", "x.txt", "layer-0/a/b.bin", "layer--1/x.bin",
                 "/x.bin", "layer-0/.bin", "layer-0/\x1b.bin"):  # fmt: skip
        assert key_of(path) is None, path


@pytest.mark.parametrize(
    "module", ["aprtui.engine.stages", "aprtui.engine.plan", "aprtui.engine.events",
               "aprtui.model.open", "aprtui.cli.main", "aprtui.cli.trace", "aprtui.cli.inspect"]
)  # fmt: skip
def test_declarations_and_plans_need_neither_torch_nor_textual(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'textual') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

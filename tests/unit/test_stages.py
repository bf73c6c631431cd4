"""The vocabulary of stages, what people select of it, and the nodes of a graph."""

from __future__ import annotations

import subprocess
import sys

import pytest

from aprtui.errors import UsageError
from aprtui.formats.tracedir import StageKey, key_of, relative_path
from aprtui.graph import Graph
from aprtui.graph.alike import alike
from aprtui.graph.ops import Norm, Rope, Scores
from aprtui.graph.select import parse_layers, parse_stages
from aprtui.graph.vocabulary import STAGES, facts_of, order_of, short_name
from aprtui.graph.words import op_json, op_words, sizes
from tests.differing import NO_POSITIONS, differing
from tests.graphs import graph_of

SIZES = {
    "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 2, "intermediate_size": 16, "vocab_size": 32, "tie_word_embeddings": True,
}  # fmt: skip
QWEN2 = graph_of("qwen2", {name: size for name, size in SIZES.items() if name != "head_dim"})
MOE = graph_of("qwen3moe", {
    **SIZES, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2,
    "norm_topk_prob": True,
})  # fmt: skip
GEMMA2 = graph_of("gemma2", SIZES)
GRAPHS = (QWEN2, MOE, GEMMA2, differing())


# -- the vocabulary --------------------------------------------------------------------------------


def test_every_stage_is_declared_once_with_axes_and_letters() -> None:
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    assert all(stage.axes and stage.doc and 0 < len(stage.short) <= 3 for stage in STAGES)


def test_facts_of_stages() -> None:
    having = {
        fact: {stage.name for stage in STAGES if getattr(stage, fact)}
        for fact in ("integers", "residual", "logits", "scores", "shares")
    }
    assert having["integers"] == {"index_keys", "moe_router_indices"}
    assert having["residual"] == {
        "embedding", "pos_embedding", "embedding_norm", "post_attn_residual", "post_ffn_residual",
        "ffn_residual", "laurel_residual", "altup_merged",
    }  # fmt: skip
    assert having["logits"] == {"lm_head"}
    assert having["scores"] == {"attn_scores", "attn_softmax", "index_scores", "index_keys"}
    assert having["shares"] == {"attn_softmax"}
    assert {stage.name for stage in STAGES if stage.lens} == having["residual"] | {"final_norm"}


def test_an_unknown_stage_has_no_facts_and_its_whole_name() -> None:
    facts = facts_of("warp_scan")
    assert not (facts.axes or facts.integers or facts.rotated or facts.lens or facts.logits)
    assert short_name("warp_scan") == "warp_scan" and short_name("ffn_gate") == "gat"
    keys = [StageKey(0, "warp_scan"), StageKey(1, "attn_norm"), StageKey(0, "post_ffn_residual")]
    assert [str(key) for key in sorted(keys, key=order_of)] == [
        "layer-0/post_ffn_residual", "layer-0/warp_scan", "layer-1/attn_norm",
    ]  # fmt: skip


# -- nodes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", GRAPHS)
def test_inputs_come_before_their_stage_in_every_family(graph: Graph) -> None:
    seen: set[StageKey] = set()
    for node in graph:
        assert set(node.inputs) <= seen, node.key
        seen.add(node.key)


def test_what_a_stage_is_fed_by_depends_on_what_exists() -> None:
    def inputs(graph: Graph, stage: str) -> tuple[str, ...]:
        return tuple(str(key) for key in graph[StageKey(1, stage)].inputs)

    assert inputs(QWEN2, "q_post_rope") == ("layer-1/qkv_bias",)
    assert inputs(MOE, "q_post_rope") == ("layer-1/q_norm",)
    assert inputs(QWEN2, "attn_norm") == ("layer-0/post_ffn_residual",)
    assert inputs(GEMMA2, "post_attn_residual")[1] == "layer-1/attn_post_norm"
    assert inputs(MOE, "ffn_out") == ("layer-1/moe_ffn_out",)


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_stage_is_either_in_the_graph_or_absent_with_a_reason(graph: Graph) -> None:
    absent = {item.stage: item.reason for item in graph.absent}
    assert set(graph.stages) | set(absent) == {stage.name for stage in STAGES}
    assert not set(graph.stages) & set(absent)
    assert all(absent.values())


def test_embedding_is_in_layer_0_only_and_the_ends_are_whole_model() -> None:
    keys = [node.key for node in QWEN2]
    assert [key for key in keys if key.stage == "embedding"] == [StageKey(0, "embedding")]
    assert keys[-2:] == [StageKey(None, "final_norm"), StageKey(None, "lm_head")]


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_order_of_computation_sorts_any_set_of_stages(graph: Graph) -> None:
    keys = [node.key for node in graph]
    assert sorted(reversed(keys), key=order_of) == keys


def test_shapes() -> None:
    def shape(graph: Graph, layer: int | None, stage: str, logits: str = "last") -> object:
        return graph[StageKey(layer, stage)].shape(3, logits)

    assert shape(QWEN2, 0, "qkv_matmul") == (3, 16)
    assert shape(QWEN2, 0, "k_post_rope") == (3, 2, 2)
    assert shape(QWEN2, 0, "attn_scores") == (4, 3, 3)
    assert shape(MOE, 0, "router_logits") == (3, 4)
    assert shape(MOE, 0, "moe_router") == (3, 2)
    assert shape(QWEN2, None, "lm_head") == (32,)
    assert shape(QWEN2, None, "lm_head", "all") == (3, 32)


# -- layers that differ ----------------------------------------------------------------------------


def test_which_layers_have_a_stage() -> None:
    graph = differing(4)
    assert graph.layers_of["ffn_gate"] == (0,) and graph.layers_of["lm_head"] == ()
    only = graph.only_in(graph.stages, range(4))
    assert only["router_logits"] == (1, 2, 3) and only["q_post_rope"] == (0, 1, 2)
    assert "ffn_out" not in only and "lm_head" not in only
    assert graph.only_in(("ffn_gate", "ffn_out"), (0,)) == {}


def test_layers_that_compute_alike_are_folded_and_others_are_not() -> None:
    assert [run.layers for run in alike(QWEN2)] == [(), (0, 1), ()]
    assert [run.layers for run in alike(differing(7))] == [
        (), (0,), (1,), (2,), (NO_POSITIONS,), (4,), (5,), (6,), (),
    ]  # fmt: skip


def test_a_model_in_words_says_where_its_layers_differ() -> None:
    assert ", ".join(sizes(QWEN2)) == (
        "2 layers, hidden 8, heads 4/2 x 2, ffn 16, vocab 32, rope 10000 halves"
    )
    assert sizes(differing(4)) == (
        "4 layers", "hidden 8", "heads 2/1 x 4", "ffn 16 in 1 layer and 6 in 3 layers", "vocab 12",
        "rope 10000 halves in 3 layers", "experts 2 of 4 in 3 layers", "window 2 in 2 layers",
    )  # fmt: skip


def test_an_operation_in_words_and_as_json() -> None:
    graph = differing()
    scores = graph[StageKey(1, "attn_scores")].op
    rope = graph[StageKey(1, "k_post_rope")].op
    norm = graph[StageKey(1, "attn_norm")].op
    assert isinstance(scores, Scores) and isinstance(rope, Rope) and isinstance(norm, Norm)
    assert op_words(scores) == "scores heads 2, kv heads 1, scale 0.5, causal, window 2"
    assert op_words(rope) == "rope dims 4, theta 10000, halves, 1 x 4 from 8"
    assert op_words(norm) == "norm eps 1e-06"
    assert op_json(norm)["weight"] == "layer 1 attn_norm" and op_json(rope)["heads"]["first"] == 8


# -- what people select ----------------------------------------------------------------------------


def test_stage_names_as_people_type_them() -> None:
    assert parse_stages("all") is None
    assert parse_stages(" FFN_Up , attn_norm,layer_output") == (
        "attn_norm", "ffn_up", "post_ffn_residual",
    )  # fmt: skip
    with pytest.raises(UsageError, match="did you mean attn_scores"):
        parse_stages("atn_scores")
    with pytest.raises(UsageError, match="empty stage name"):
        parse_stages("ffn_up,")
    with pytest.raises(UsageError, match="unknown stage 'foo'"):
        parse_stages("all,foo")


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
    "module", ["aprtui.graph.words", "aprtui.engine.plan", "aprtui.engine.events",
               "aprtui.model.open", "aprtui.cli.main", "aprtui.cli.trace", "aprtui.cli.inspect"]
)  # fmt: skip
def test_declarations_and_plans_need_neither_torch_nor_textual(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'textual') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""What a file says is computed, or refused by name: nothing is read otherwise in silence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from aprtui.errors import BadFileError, UsageError
from aprtui.families.keys import stated_keys
from aprtui.families.registry import identify, load_family
from aprtui.families.settings import Settings
from aprtui.formats.modelfile import ModelFile
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph, Role
from aprtui.graph.ops import Norm, Rope, Route, Scores
from aprtui.model.open import Model, open_model
from aprtui.model.tokenizer import (
    TokenizerSpec,
    build_tokenizer,
    spec_from_gguf,
    vocabulary_of,
)
from tests.compare.model_files import SmallModel, small_model

SIZES = {
    "block_count": 6, "embedding_length": 64, "feed_forward_length": 96, "context_length": 256,
    "attention.head_count": 4, "attention.head_count_kv": 2, "vocab_size": 80,
    "attention.layer_norm_rms_epsilon": 1e-6,
}  # fmt: skip
CONFIG = {
    "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 80,
}  # fmt: skip


def settings_of(family: str, file_format: str, keys: dict[str, Any]) -> Settings:
    path = Path("model")
    metadata = keys
    if file_format == "gguf":
        metadata = {f"{family}.{key}": value for key, value in {**SIZES, **keys}.items()}
        metadata["general.architecture"] = family
    else:
        metadata = {**CONFIG, **keys}
    file = ModelFile(path, file_format, "", metadata, {}, (), 0, "")
    found = load_family(family)
    stated = stated_keys(file, metadata, found.aliases)
    return Settings(file, family, stated, found.defaults, lambda role: None)


def graph_of(family: str, file_format: str, **keys: Any) -> Graph:
    settings = settings_of(family, file_format, {k.replace("__", "."): v for k, v in keys.items()})
    graph = load_family(family).build(settings)
    settings.finish(frozenset())
    return graph


def gguf(family: str, **keys: Any) -> Graph:
    return graph_of(family, "gguf", **keys)


def folder(family: str, **keys: Any) -> Graph:
    return graph_of(family, "safetensors", **keys)


def op_of(graph: Graph, stage: str, layer: int = 0) -> Any:
    return graph[StageKey(layer, stage)].op


# ---- keys that were misread ----


def test_a_gguf_may_say_that_tokens_see_those_that_follow() -> None:
    assert op_of(gguf("llama", attention__causal=False), "attn_scores").mask.causal is False


@pytest.mark.parametrize("key", ["rope__scaling__factor", "rope__scale_linear"])
def test_a_scaling_factor_without_a_type_is_linear_as_in_llama_cpp(key: str) -> None:
    assert op_of(gguf("llama", **{key: 4.0}), "q_post_rope").table.position_divisor == 4.0


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_gguf_without_a_rope_base_has_llama_cpps(family: str) -> None:
    assert op_of(gguf(family), "q_post_rope").table.theta == 1e4


def test_a_null_is_no_absent_key() -> None:
    stated: Scores = op_of(folder("gemma2", attn_logit_softcapping=None), "attn_scores")
    silent: Scores = op_of(folder("gemma2"), "attn_scores")
    assert (stated.cap, silent.cap) == (None, 50.0)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_the_query_scale_is_the_classes_default(family: str) -> None:
    assert op_of(folder(family, head_dim=16), "attn_scores").scale == 256**-0.5


def test_every_layer_of_qwen3_moe_slides_where_any_does() -> None:
    graph = folder("qwen3moe", use_sliding_window=True, sliding_window=7, max_window_layers=3)
    assert {op_of(graph, "attn_scores", layer).mask.window for layer in range(6)} == {7}


def test_router_weights_are_not_renormalised_where_the_class_does_not() -> None:
    route: Route = op_of(folder("qwen3moe"), "moe_router")
    assert route.renormalise is False
    assert op_of(gguf("qwen3moe", expert_count=8, expert_used_count=2,
                      expert_feed_forward_length=32), "moe_router").renormalise  # fmt: skip


def test_dense_layers_among_experts_are_dense() -> None:
    graph = folder("qwen3moe", mlp_only_layers=[0, 2], decoder_sparse_step=1)
    dense = [layer for layer in range(6) if StageKey(layer, "ffn_gate") in graph]
    assert dense == [0, 2]
    assert Role("gate", 0) in graph.weights
    assert Role("router", 1) in graph.weights


def test_gemma3_scores_are_not_capped() -> None:
    with pytest.raises(BadFileError, match=r"attn_logit_softcapping.*50.*capped"):
        folder("gemma3", attn_logit_softcapping=50.0)


@pytest.mark.parametrize(
    ("pattern", "slide"), [(2, [0, 2, 4]), ([True, True, False] * 2, [0, 1, 3, 4])]
)
def test_a_gguf_says_which_layers_slide(pattern: Any, slide: list[int]) -> None:
    graph = gguf("gemma3", attention__sliding_window=4, attention__sliding_window_pattern=pattern)
    windows = {layer: op_of(graph, "attn_scores", layer).mask.window for layer in range(6)}
    assert [layer for layer, window in windows.items() if window == 4] == slide


def test_the_norms_epsilon_is_the_classes_default() -> None:
    norm: Norm = op_of(folder("llama"), "attn_norm")
    assert norm.eps == 1e-6


def test_a_gguf_without_epsilon_is_refused_as_by_llama_cpp() -> None:
    with pytest.raises(BadFileError, match="does not say rms_norm_eps"):
        settings = settings_of("llama", "gguf", {})
        settings._stated.pop("rms_norm_eps")
        load_family("llama").build(settings)


def test_tables_by_layer_type_are_refused_where_the_family_has_one() -> None:
    with pytest.raises(BadFileError, match=r"sliding_attention|full_attention"):
        folder("llama", rope_parameters={"full_attention": {"rope_theta": 5.0}})


@pytest.mark.parametrize("table", [5, 0, [1], "linear:2"])
def test_a_table_by_layer_type_that_is_no_object_is_refused(table: object) -> None:
    with pytest.raises(BadFileError, match=r"rope_parameters\.full_attention cannot be read"):
        folder("gemma3", rope_parameters={"full_attention": table})


def test_yarn_of_a_gguf_has_its_magnitude() -> None:
    keys = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0,
            "rope__scaling__original_context_length": 64}  # fmt: skip
    rope: Rope = op_of(gguf("qwen2", **keys), "q_post_rope")
    assert rope.table.magnitude == pytest.approx(1 + 0.1 * np.log(4.0))
    assert rope.table.divisors[-1] == pytest.approx(4.0)


# ---- keys that no one reads ----


@pytest.mark.parametrize(
    ("family", "keys", "says"),
    [
        (
            "llama",
            {"attention_multiplier": 0.5},
            "attention_multiplier = 0.5.*scales the attention",
        ),
        ("llama", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("llama", {"unheard_of": 3}, "unheard_of = 3 is not read by the llama family"),
        ("mistral", {"attention_bias": True}, "attention_bias"),
        ("gemma", {"use_bidirectional_attention": True}, "tokens see those that follow"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "x": 1}}, "x = 1"),
        ("llama", {"partial_rotary_factor": 0.5}, "rotates all"),
    ],
)
def test_an_unread_key_is_named_with_what_it_changes(
    family: str, keys: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadFileError, match=says):
        folder(family, **keys)


def test_an_unread_gguf_key_is_named() -> None:
    with pytest.raises(BadFileError, match=r"llama\.expert_shared_feed_forward_length = 32"):
        gguf("llama", expert_shared_feed_forward_length=32)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"num_attention_heads": 0}, r"num_heads \(num_attention_heads\) is 0, outside 1..256"),
        ({"hidden_size": 10**400}, "hidden_size is 1000.*outside"),
        ({"num_hidden_layers": -1}, "outside"),
        ({"num_attention_heads": 1.5}, "not a whole number"),
        ({"num_attention_heads": "4"}, "not a number"),
        ({"vocab_size": True}, "not a number"),
        ({"rms_norm_eps": None}, "null"),
        ({"num_key_value_heads": 3}, "cannot share"),
        ({"layer_types": ["full_attention"]}, "1 entries|layers differ|layer_types"),
        ({"hidden_act": "xielu"}, "xielu.*not computed here"),
    ],
)
def test_a_tiny_or_absurd_value_is_one_sentence(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(BadFileError, match=says) as error:
        folder("qwen2", **keys)
    assert error.value.exit_code == 3
    assert len(str(error.value)) < 400


def test_two_names_of_one_thing_that_disagree() -> None:
    with pytest.raises(BadFileError, match=r"num_experts.*num_local_experts"):
        folder("mixtral", num_local_experts=4, num_experts=8)


# ---- whole files ----


def saved(path: Path, model: SmallModel, **keys: Any) -> Path:
    where = model.folder(path)
    config = json.loads((where / "config.json").read_text())
    (where / "config.json").write_text(json.dumps({**config, **keys}))
    return where


def opened(path: Path, **overrides: str) -> Model:
    return open_model(path, overrides)


def test_an_ignored_key_is_noted_and_casts_doubt(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", small_model(), logits_scaling=8.0)
    with pytest.raises(BadFileError, match="ignore_keys=logits_scaling"):
        opened(path)
    model = opened(path, ignore_keys="logits_scaling")
    assert any("logits_scaling = 8.0 was ignored" in note for note in model.notes)
    assert [(doubt.key, doubt.stages) for doubt in model.doubts] == [
        ("logits_scaling", ("lm_head",))
    ]
    with pytest.raises(UsageError, match="ignore_keys=hidden_size"):
        opened(path, ignore_keys="logits_scaling,hidden_size")


def test_another_architecture_is_noted_and_does_not_hide_keys(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", small_model(), model_type="granite", residual_multiplier=0.2)
    with pytest.raises(BadFileError, match="residual_multiplier"):
        opened(path, architecture="mistral")
    with pytest.raises(BadFileError, match="residual_multiplier"):
        opened(path, architecture="llama")
    model = opened(path, architecture="llama", ignore_keys="residual_multiplier")
    assert {doubt.key for doubt in model.doubts} == {"architecture", "residual_multiplier"}


def test_an_unknown_family_is_told_what_works(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", small_model(), model_type="qwen9")
    with pytest.raises(BadFileError, match="nearest family is qwen") as error:
        opened(path)
    assert "--engine hf" in error.value.hint
    with pytest.raises(UsageError, match="no such family"):
        opened(path, architecture="qwenn2")


def test_an_untied_model_without_a_head_is_refused(tmp_path: Path) -> None:
    model = small_model()
    path = saved(tmp_path / "m", replace(model, tensors={
        name: values for name, values in model.tensors.items() if name != "lm_head.weight"
    }), tie_word_embeddings=False)  # fmt: skip
    with pytest.raises(BadFileError, match="tie_word_embeddings is false"):
        opened(path)


def test_codes_of_a_quantiser_are_no_weights(tmp_path: Path) -> None:
    model = small_model()
    name = "model.layers.0.mlp.up_proj.weight"
    path = saved(tmp_path / "m", model)
    codes = {name: np.ones(model.tensors[name].shape, np.int8)}
    save_file({**model.tensors, **codes}, path / "model.safetensors")
    with pytest.raises(BadFileError, match=r"up_proj\.weight is I8: codes"):
        opened(path)


def test_tensors_that_the_configuration_denies_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", small_model(), num_hidden_layers=1)
    with pytest.raises(BadFileError, match=r"layers\.1\..* plays no part.*num_layers 1"):
        opened(path)


def test_a_default_that_tensors_contradict_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", small_model())
    config = json.loads((path / "config.json").read_text())
    del config["intermediate_size"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadFileError, match="needs") as error:
        opened(path)
    assert "intermediate_size 11008" in error.value.hint


def mistral_names(model: SmallModel) -> dict[str, Any]:
    renamed = {
        "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output",
        "model.layers": "layers", "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo", "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
    }  # fmt: skip
    found = {}
    for name, values in model.tensors.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        found[name] = values
    return found


def test_mistrals_own_layout_has_adjacent_pairs(tmp_path: Path) -> None:
    model = small_model("mistral")
    path = saved(tmp_path / "m", model, sliding_window=None)
    assert opened(path).graph.rope_layout == "halves"
    (path / "model.safetensors").unlink()
    save_file(mistral_names(model), path / "consolidated.safetensors")
    assert opened(path).graph.rope_layout == "adjacent"


def test_a_consolidated_file_beside_shards_is_not_a_second_model(tmp_path: Path) -> None:
    model = small_model("mistral")
    path = saved(tmp_path / "m", model, sliding_window=None)
    (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors")
    save_file(mistral_names(model), path / "consolidated.safetensors")
    found = opened(path)
    assert found.graph.rope_layout == "halves"
    assert any("not part of it: consolidated" in note for note in found.notes)


def test_a_families_names_are_of_one_format() -> None:
    file = ModelFile(Path("m"), "safetensors", "", {"model_type": "qwen3moe"}, {}, (), 0, "")
    with pytest.raises(BadFileError, match="cannot be traced"):
        identify(file)


# ---- tokens ----


def test_tokens_that_end_a_generation_are_control_tokens() -> None:
    spec = TokenizerSpec(
        "spm", ["<unk>", "<", "/", "s", ">", "</s>", "a"], token_types=[2, 1, 1, 1, 1, 1, 1],
        scores=[0.0] * 7, unknown_id=0,
    )  # fmt: skip
    as_typed = build_tokenizer(spec).encode("a</s>")
    as_llama_cpp = build_tokenizer(replace(spec, control_by_text=True)).encode("a</s>")
    assert list(as_llama_cpp) == [6, 5]
    assert list(as_typed) != [6, 5]


# llama.cpp's src/llama-vocab.cpp (master of 2026-10), where it marks what ends a generation.
ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
)  # fmt: skip


def spelled(*tokens: str, types: int = 1, strips_after: bool = False) -> TokenizerSpec:
    """A vocabulary of these, all of one type, and of their letters, space and "a"."""
    letters = sorted({*"".join(tokens), "a", "\u2581"})
    vocabulary = ["<unk>", *letters, *tokens]
    return TokenizerSpec(
        "spm", vocabulary, token_types=[2, *[1] * len(letters), *[types] * len(tokens)],
        scores=[0.0] * len(vocabulary), unknown_id=0, control_by_text=True,
        strips_after=strips_after,
    )  # fmt: skip


def cut(spec: TokenizerSpec, text: str, *, special: bool = True) -> list[str]:
    return [spec.vocabulary[i] for i in build_tokenizer(spec).encode(text, special=special)]


@pytest.mark.parametrize("token", ENDS)
def test_each_spelling_of_an_end_is_cut_out_whatever_its_type(token: str) -> None:
    spec = spelled(token)
    assert cut(spec, f"a{token}a") == ["a", token, "a"]
    assert token not in cut(replace(spec, control_by_text=False), f"a{token}a")


def test_harmonys_end_of_a_message_and_its_headings_stand_in_plain_text_too() -> None:
    both = spelled("<|end|>", "<|return|>", "<|call|>", "<|channel|>")
    text = "a<|end|><|channel|>"
    assert cut(both, text, special=False) == ["a", "<|end|>", "<|channel|>"]
    assert "<|end|>" not in cut(spelled("<|end|>", "<|return|>"), text, special=False)


def test_of_gemma4_the_end_of_a_sentence_is_text() -> None:
    assert "</s>" not in cut(spelled("</s>", "<|tool_response>"), "a</s>")


def test_phi3s_special_tokens_take_the_white_space_after_them_along() -> None:
    spec = spelled("<|user|>", "<s>", types=3, strips_after=True)
    assert cut(spec, "<|user|> \n a<s> a") == ["<|user|>", "a", "<s>", "\u2581", "a"]
    plain = replace(spec, strips_after=False)
    assert cut(plain, "<|user|> a") == ["<|user|>", "\u2581", "a"]
    keys = {"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.model": "llama"}
    assert spec_from_gguf({**keys, "general.name": "Phi-3 Mini 4k"}).strips_after
    assert not spec_from_gguf({**keys, "general.name": "Phi 4"}).strips_after


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv", "plamo2"])
def test_a_tokenizer_of_another_kind_is_refused_by_name(kind: str) -> None:
    spec = spec_from_gguf({"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.model": kind})
    with pytest.raises(UsageError, match=f"the kind '{kind}' cannot be rebuilt") as refused:
        build_tokenizer(spec)
    assert "--tokens" in refused.value.hint
    assert vocabulary_of(spec).text_of(1) == "b"  # its tokens are shown all the same


def test_a_bos_that_is_asked_for_and_not_named_is_said() -> None:
    spec = replace(spelled("</s>"), add_bos=True)
    assert build_tokenizer(spec).notes == (
        "the file asks for BOS and names no such token: none is added",
    )
    assert not build_tokenizer(replace(spec, bos_id=0)).notes

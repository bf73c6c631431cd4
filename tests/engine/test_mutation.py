"""No key is read otherwise than transformers reads it: changed one by one, the logits change alike,
or the model is refused (docs/families.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from aprtui.errors import BadFileError
from tests.engine.mutations import BAR, mutations_of, our_logits, their_logits, try_mutation
from tests.engine.test_composite import save_composite
from tests.families import TINY, save_tiny

transformers = pytest.importorskip("transformers", reason="transformers is a dev dependency")
_EVERY = 23  # mutations to one of the sample
COMPOSITE = ("qwen3_vl", "qwen3_vl_moe")  # whose text parts load as no model of their own


NESTED = ("laguna", "mellum", "mimo_v2_flash")  # were never spelt otherwise


def published(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as published folders spell it, before transformers 5."""
    made = dict(config)
    if config["model_type"] == "gemma4_text":
        own = made.pop("per_layer_config")
        (whole,) = {(each["head_dim"], each["num_key_value_heads"]) for each in own.values()}
        return {**made, "global_head_dim": whole[0], "num_global_key_value_heads": whole[1]}
    if config["model_type"] == "kimi_linear":
        kinds = made.pop("layer_types")
        made["first_k_dense_replace"] = made.pop("mlp_layer_types").count("dense")
        full, delta = (
            [layer + 1 for layer, kind in enumerate(kinds) if kind == name]
            for name in ("full_attention", "linear_attention")
        )
        names = {"head_dim": "linear_head_dim", "num_heads": "linear_num_heads",
                 "short_conv_kernel_size": "linear_conv_kernel_dim"}  # fmt: skip
        sizes = {older: made.pop(name) for older, name in names.items()}
        made["linear_attn_config"] = {"full_attn_layers": full, "kda_layers": delta, **sizes}
        return {**made, "head_dim": 72, "mla_use_nope": True, "use_grouped_topk": True,
                "moe_router_activation_func": "sigmoid", "moe_layer_freq": 1,
                "num_nextn_predict_layers": 0}  # fmt: skip
    if config["model_type"] in NESTED:
        return made
    parameters = made.pop("rope_parameters", None) or {}
    local = parameters.get("sliding_attention")
    whole = parameters.get("full_attention", parameters)
    if whole:
        made["rope_theta"] = whole.get("rope_theta")
    if local is not None:
        made["rope_local_base_freq"] = local["rope_theta"]
    scaled = {key: value for key, value in whole.items() if key != "rope_theta"}
    if scaled.get("rope_type", "default") != "default":
        made["rope_scaling"] = scaled
    by_default = config["model_type"] != "gemma3n_text"  # which says them, always
    if by_default and set(made.get("layer_types") or ()) <= {"full_attention", "sliding_attention"}:
        made.pop("layer_types", None)
    made["torch_dtype"] = made.pop("dtype", "float32")
    return made


def found_wrong(family: str, folder: Path, *, older: bool, every: int) -> list[str]:
    """The mutations whose numbers are not transformers'. The unmutated base must agree."""
    transformers.logging.set_verbosity_error()
    if family in COMPOSITE:
        save_composite(family, folder / "base")
    else:
        save_tiny(TINY[family], folder / "base")
    config = json.loads((folder / "base" / "config.json").read_text())
    config = published(config) if older else config
    weights = folder / "base" / "model.safetensors"
    base = try_mutation(config, None, weights, folder / "mutated")
    assert base.verdict == "agree", f"{family} as it is: {base.detail} > {BAR}"
    tried = mutations_of(config)[::every]
    outcomes = [(each, try_mutation(config, each, weights, folder / "mutated")) for each in tried]
    verdicts = {outcome.verdict for _, outcome in outcomes}
    assert verdicts >= {"agree", "refused"}, "a sample that tries both"
    return [f"{each}: {it.detail}" for each, it in outcomes if it.verdict == "silent"]


@pytest.mark.parametrize("family", [*sorted(TINY), *COMPOSITE])
def test_a_sample_of_keys_changes_logits_alike_or_is_refused(family: str, tmp_path: Path) -> None:
    assert found_wrong(family, tmp_path, older=False, every=_EVERY) == []


def test_a_shared_block_is_read_where_transformers_reads_it(tmp_path: Path) -> None:
    """Of the first layer that has it, but of a layer itself where the folder holds it there."""
    save_tiny(TINY["zamba2"], tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    first, own = "model.layers.1.shared_transformer.", "model.layers.4.shared_transformer."
    assert not any(name.startswith(own) for name in tensors)
    found = {name.replace(first, own): 1.5 * tensors[name] for name in tensors if first in name}
    save_file({**tensors, **found}, path, {"format": "pt"})
    theirs = their_logits(tmp_path)
    assert not isinstance(theirs, str)
    assert float((our_logits(tmp_path) - theirs).norm() / theirs.norm()) <= BAR
    del tensors[f"{first}self_attn.q_proj.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(BadFileError, match="the tensor for layer 1 q is missing"):
        our_logits(tmp_path)


@pytest.mark.mutation
@pytest.mark.parametrize("family", COMPOSITE)
def test_every_key_of_a_text_part_changes_logits_alike_or_is_refused(
    family: str, tmp_path: Path
) -> None:
    assert found_wrong(family, tmp_path, older=False, every=1) == []


@pytest.mark.mutation
@pytest.mark.parametrize("older", [False, True], ids=["saved", "published"])
@pytest.mark.parametrize("family", sorted(TINY))
def test_every_key_changes_logits_alike_or_is_refused(
    family: str, older: bool, tmp_path: Path
) -> None:
    assert found_wrong(family, tmp_path, older=older, every=1) == []

"""Each key of a configuration changed, and what transformers and aprtui then compute."""

from __future__ import annotations

import copy
import importlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from aprtui.engine.forward import BlockSink, forward
from aprtui.engine.ops import Pass
from aprtui.engine.weights import WeightStream
from aprtui.errors import AprtuiError
from aprtui.families.keys import Stated, inert
from aprtui.formats.tracedir import StageKey
from aprtui.model.open import open_model
from tests.families import mended

__all__ = ["FOREIGN", "Mutation", "Outcome", "mutations_of", "our_logits", "try_mutation"]

TOKENS = tuple((11 * place + 3) % 96 for place in range(12))
BAR = 1e-5  # docs/numerics.md 1
_ABSENT = object()

FOREIGN: dict[str, tuple[Any, ...]] = {
    "alibi": (True,),
    "attention_bias": (True, None),
    "attention_multiplier": (0.5,),
    "attention_out_bias": (True,),
    "attn_logit_softcapping": (5.0, None),
    "attention_chunk_size": (4,),
    "cache_implementation": ("hybrid",),
    "clip_qkv": (0.1,),
    "conv_bias": (True,),
    "decoder_sparse_step": (2, 0),
    "embedding_multiplier": (2.0,),
    "final_logit_softcapping": (3.0, None),
    "first_k_dense_replace": (1,),
    "head_dim": (24, None, 0),
    "hidden_act": ("gelu", "relu", None),
    "hidden_activation": ("gelu", "relu", None),
    "is_causal": (False, True, None),
    "is_decoder": (False, True),
    "layer_norm_eps": (1e-3,),
    "layer_norm_epsilon": (1e-3,),
    "layer_types": (["sliding_attention"] * 3, ["full_attention"] * 3, None),
    "logit_scale": (0.5,),
    "logits_scaling": (2.0,),
    "max_window_layers": (0, 99),
    "mlp_bias": (True, None),
    "mlp_only_layers": ([0], []),
    "moe_intermediate_size": (16,),
    "n_layers": (2,),
    "no_rope_layers": ([0, 0, 0],),
    "norm_eps": (1e-3,),
    "norm_topk_prob": (False, None),
    "num_experts": (4, 0),
    "num_experts_per_tok": (1,),
    "num_heads": (2,),
    "num_layers": (2,),
    "original_max_position_embeddings": (16,),
    "partial_rotary_factor": (0.5, 1.0, None),
    "pretraining_tp": (2,),
    "qk_layernorm": (True,),
    "qkv_bias": (True, False),
    "query_pre_attn_scalar": (64,),
    "residual_multiplier": (0.5,),
    "rms_norm_eps": (1e-3,),
    "rope_interleaved": (True,),
    "rope_local_base_freq": (5e3,),
    "rope_scaling": (
        {"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}, None, {},
        {"type": "dynamic", "factor": 2.0}, {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
         "beta_fast": 4, "truncate": False},
        {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5,
         "original_max_position_embeddings": 32},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 16},
        {"rope_type": "proportional", "factor": 2.0}, {"rope_type": "unheard"},
        {"rope_type": None, "factor": 2.0},
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
    ),
    "rope_theta": (500.0, None, 0),
    "scale_embedding": (True,),
    "score_softcap": (2.0,),
    "shared_expert_intermediate_size": (16,),
    "sliding_window": (3, None, 0),
    "sliding_window_pattern": (2, 0),
    "tie_encoder_decoder": (True,),
    "tie_word_embeddings": (True, False, None),
    "use_bidirectional_attention": (True, None),
    "use_cache": (False,),
    "use_mrope": (True,),
    "use_qk_norm": (True, False),
    "use_sliding_window": (True, False, None),
}  # fmt: skip
"""Keys of any family, and values at which they mean something where they are read."""


@dataclass(frozen=True)
class Mutation:
    """A key (or one of a nested object) and its new value; ``_ABSENT`` takes it away."""

    path: tuple[str, ...]
    value: Any

    def applied(self, config: dict[str, Any]) -> dict[str, Any]:
        made = copy.deepcopy(config)
        inner = made
        for key in self.path[:-1]:
            inner = inner[key]
        if self.value is _ABSENT:
            inner.pop(self.path[-1], None)
        else:
            inner[self.path[-1]] = self.value
        return made

    def __str__(self) -> str:
        value = "absent" if self.value is _ABSENT else json.dumps(self.value)
        return f"{'.'.join(self.path)}={value}"


@dataclass(frozen=True)
class Outcome:
    """What both made of it: "agree"; "refused" (by us); "silent": another number than theirs, or
    one where they have none. They check the types of keys that change nothing, and we do not: that
    is "inert".
    """

    verdict: str
    detail: str = ""


def mutations_of(config: dict[str, Any]) -> list[Mutation]:
    """Every key taken away, flipped, doubled, zeroed and nulled, and the keys of other families; of
    a composite model those of its text part."""
    if "text_config" in config:
        inner = mutations_of(config["text_config"])
        return [replace(each, path=("text_config", *each.path)) for each in inner]
    found = {str(each): each for path, value in _leaves(config, ())
             for each in _of_value(path, value)}  # fmt: skip
    for key, values in FOREIGN.items():
        for value in values:
            each = Mutation((key,), value)
            if config.get(key, _ABSENT) != value:
                found[str(each)] = each
    return list(found.values())


def _leaves(config: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[Any, Any]]:
    for key, value in config.items():
        yield (*path, key), value
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))


def _of_value(path: tuple[str, ...], value: Any) -> Iterator[Mutation]:
    if path in (("model_type",), ("architectures",)):
        return
    yield Mutation(path, _ABSENT)
    if value is not None:
        yield Mutation(path, None)
    if isinstance(value, bool):
        yield Mutation(path, not value)
    elif isinstance(value, int | float):
        yield from (Mutation(path, other) for other in (value * 2, 0, -value, value + 1))
    elif isinstance(value, str):
        yield from (Mutation(path, other) for other in ("relu", "gelu", "silu", "unheard"))
    elif isinstance(value, list):
        yield from (Mutation(path, other) for other in (value[::-1], [], value * 2))


class _Nothing:
    def put(self, key: StageKey, value: torch.Tensor) -> None: ...

    def open_blocks(self, key: StageKey) -> BlockSink | None:
        return None


def our_logits(folder: Path, tokens: tuple[int, ...] = TOKENS) -> torch.Tensor:
    """The logits [T,V] of all positions, by a pass in this process."""
    model = open_model(folder)
    stream = WeightStream(model, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        return forward(model.graph, Pass(stream, tokens, "all"), _Nothing())


def their_logits(folder: Path, tokens: tuple[int, ...] = TOKENS) -> torch.Tensor | str:
    """transformers' logits, or why there are none: weights that it would have drawn at random."""
    library: Any = importlib.import_module("transformers")  # its types say less than it does
    whole = "text_config" in json.loads((folder / "config.json").read_text())
    kind = library.AutoModelForImageTextToText if whole else library.AutoModelForCausalLM
    try:
        model, told = kind.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        if told["missing_keys"] or told["mismatched_keys"]:
            return f"random weights: {sorted(told['missing_keys'])[:2]}"
        with torch.no_grad():
            found: torch.Tensor = mended(model.eval())(torch.tensor([tokens])).logits[0]
            return found
    except Exception as error:  # whatever it raises, it has no numbers
        return f"{type(error).__name__}: {str(error)[:100]}"


def try_mutation(
    config: dict[str, Any], mutation: Mutation | None, weights: Path, folder: Path
) -> Outcome:
    """Both programs on ``weights`` under the mutated ``config``, in ``folder``."""
    config = config if mutation is None else mutation.applied(config)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if not (folder / "model.safetensors").exists():
        os.link(weights, folder / "model.safetensors")
    try:
        ours = our_logits(folder)
    except AprtuiError as error:
        return Outcome("refused", error.message)
    theirs = their_logits(folder)
    if isinstance(theirs, str):
        path = () if mutation is None else mutation.path
        key = next((each for each in path if each != "text_config"), "")
        inner = config.get("text_config", config)
        overruled = inner is not config and key in config  # the whole model's counts
        no_matter = overruled or inert("safetensors", Stated(key, inner.get(key)))
        return Outcome("inert" if no_matter else "silent", f"they have no numbers: {theirs}")
    if torch.equal(ours, theirs):  # all zeros too
        return Outcome("agree")
    apart = float((ours - theirs).norm() / theirs.norm())
    return Outcome("agree" if apart <= BAR else "silent", f"{apart:.1e}")

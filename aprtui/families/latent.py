"""What the families of latent attention read alike: ranks, sizes of heads, the scale, the names."""

from __future__ import annotations

import math
from dataclasses import replace

from aprtui.families import decoder
from aprtui.families.classic import in_folder
from aprtui.families.rope import read_rope, rope_object
from aprtui.families.settings import Settings
from aprtui.families.tensors import layer_tensor
from aprtui.graph.latent import LatentAttention
from aprtui.graph.rope import RopeTable

__all__ = ["TENSORS", "read_latent", "read_sizes"]

_LATENT_EPS = 1e-6  # of transformers' norms of latents, whatever rms_norm_eps says
_NAMES = {
    "q_a": ("q_a_proj", "attn_q_a"), "q_a_norm": ("q_a_layernorm", "attn_q_a_norm"),
    "q_b": ("q_b_proj", "attn_q_b"), "q": ("q_proj", "attn_q"),
    "kv_a": ("kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    "kv_a_norm": ("kv_a_layernorm", "attn_kv_a_norm"), "kv_b": ("kv_b_proj", "attn_kv_b"),
    "o": ("o_proj", "attn_output"),
}  # fmt: skip
TENSORS = (
    *(
        layer_tensor(role, f"self_attn.{module}.weight", f"{gguf}.weight")
        for role, (module, gguf) in _NAMES.items()
    ),
    *(
        layer_tensor(f"{role}_bias", f"self_attn.{_NAMES[role][0]}.bias")
        for role in ("q_a", "kv_a", "o")
    ),
    # llama.cpp keeps the half for keys the other way round, to multiply queries by it.
    layer_tensor("k_b_turned", "attn_k_b.weight", holds=("k_b",), packed=True, transposed=True),
    layer_tensor("v_b_rows", "attn_v_b.weight", holds=("v_b",), packed=True),
)


def read_sizes(s: Settings) -> tuple[decoder.Sizes, dict[str, int | None]]:
    """The common sizes, and those of the latents: q_rank, kv_rank, still, turned, value."""
    if in_folder(s):
        found = {
            "q_rank": s.integer("q_lora_rank", null=None),
            "kv_rank": s.integer("kv_lora_rank"),
            "still": s.integer("qk_nope_head_dim"),
            "turned": s.integer("qk_rope_head_dim"),
        }
        turned = found["turned"]
        s.must_be("head_dim", (turned,), f"{turned} channels turn")
        whole = found["still"] + turned
        s.must_be("qk_head_dim", (whole,), f"{whole} channels are a key")
        heads, stated = s.integer("num_heads"), s.integer("num_kv_heads", null=None)
        if stated not in (None, heads):
            raise s.fail(f"num_kv_heads is {stated} of {heads}: each head has keys of its own")
        even = s.integer("hidden_size") // heads
        found["value"] = s.integer("v_head_dim", null=even)
    else:
        found = _gguf_sizes(s)
    if found["turned"] % 2 or found["turned"] < 2:
        raise s.fail(f"RoPE over {found['turned']} channels: it needs pairs")
    sizes = decoder.read_sizes(s, head_dim=found["still"] + found["turned"], kv_heads=0)
    s.say("num_kv_heads", sizes.heads)  # GGUF says 1, of the latents
    return sizes, found


def _gguf_sizes(s: Settings) -> dict[str, int | None]:
    """Keys of a head as the model has them (``_mla``), or as older files do."""
    key = s.integer("attention.key_length_mla", None) or s.take("head_dim")
    heads = s.integer("num_heads")
    even = s.integer("hidden_size") // heads
    value = s.integer("attention.value_length_mla", None) or s.take("value_dim", even)
    for name in ("head_dim", "value_dim", "num_kv_heads"):  # of the latents, where there is _mla
        s.take(name, None)
    turned = s.integer("rope_dim")
    return {
        "q_rank": s.integer("attention.q_lora_rank", None) or None,
        "kv_rank": s.integer("attention.kv_lora_rank"),
        "still": key - turned,
        "turned": turned,
        "value": value,
    }


def read_latent(
    s: Settings, sizes: decoder.Sizes, parts: dict[str, int | None], *, biased: bool = False
) -> LatentAttention:
    """The attention of every layer."""
    table, scale = _rope(s, parts["turned"] or 0, sizes.head_dim)
    norm = sizes.norm()
    norm = replace(norm, eps=_LATENT_EPS) if in_folder(s) else norm
    s.say("score_scale", scale)
    return LatentAttention(
        sizes.heads,
        mask=decoder.mask_of(decoder.read_causal(s), None),
        table=table,
        norm=norm,
        scale=scale,
        biased=biased,
        split=s.shape("k_b_turned") is not None,
        **parts,  # type: ignore[arg-type]
    )


def _rope(s: Settings, turned: int, key: int) -> tuple[RopeTable, float]:
    """The table, and the factor on q.k, into which a scaling's magnitude goes."""
    table, scale = read_rope(s, turned), key**-0.5
    if not in_folder(s):
        if table.divisors:
            raise s.fail(
                "RoPE scaling in a GGUF of latent attention is not computed here: llama.cpp folds "
                "its magnitude into scores and tables in a way that no fixture shows"
            )
        return table, scale
    keys = rope_object(s)
    kind = keys.get("rope_type", keys.get("type", "default"))
    all_dims, factor = keys.get("mscale_all_dim"), keys.get("factor", 1.0)
    if kind != "default" and all_dims:
        grown = 0.1 * all_dims * math.log(factor) + 1.0 if factor > 1 else 1.0
        scale *= grown * grown
    return table, scale

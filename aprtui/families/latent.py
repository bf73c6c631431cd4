"""What the families of latent attention read alike: ranks, sizes of heads, the scale, the names."""

from __future__ import annotations

import math
from dataclasses import replace

from aprtui.families import decoder
from aprtui.families.classic import in_folder
from aprtui.families.rope import YARN_SHARE, read_rope, rope_object
from aprtui.families.rope_kinds import yarn_growth
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


def read_sizes(s: Settings, *, bound: bool = True) -> tuple[decoder.Sizes, dict[str, int | None]]:
    """The common sizes, and those of the latents: q_rank, kv_rank, still, turned, value.

    ``bound``: what follows from the parts must be said so, where it is said twice.
    """
    if in_folder(s):
        found = {
            "q_rank": s.integer("q_lora_rank", null=None),
            "kv_rank": s.integer("kv_lora_rank"),
            "still": s.integer("qk_nope_head_dim"),
            "turned": s.integer("qk_rope_head_dim"),
        }
        turned, whole = found["turned"], found["still"] + found["turned"]
        if bound:
            s.must_be("head_dim", (turned,), f"{turned} channels turn")
            s.must_be("qk_head_dim", (whole,), f"{whole} channels are a key")
        heads, stated = s.integer("num_heads"), s.integer("num_kv_heads", null=None)
        if stated not in (None, heads):
            raise s.fail(f"num_kv_heads is {stated} of {heads}: each head has keys of its own")
        even = s.integer("hidden_size") // heads
        found["value"] = s.integer("v_head_dim", null=even)
    else:
        found = _gguf_sizes(s, bound=bound)
    if found["turned"] % 2 or found["turned"] < 2:
        raise s.fail(f"RoPE over {found['turned']} channels: it needs pairs")
    heads = s.integer("num_heads")  # GGUF says 1 key/value head, of the latents
    key = found["still"] + found["turned"]
    return decoder.read_sizes(s, head_dim=key, kv_heads=heads, even=False), found


def _gguf_sizes(s: Settings, *, bound: bool) -> dict[str, int | None]:
    """Keys of a head as the model has them (``_mla``, beside what llama.cpp's cache holds of the
    latents, one head), or as older files do."""
    inner = s.integer("attention.key_length_mla", None)
    key, turned = inner or s.integer("head_dim"), s.integer("rope_dim")
    if not turned <= key:
        raise s.fail(f"RoPE over {turned} of {key} channels")
    heads, rank = s.integer("num_heads"), s.integer("attention.kv_lora_rank")
    even = s.integer("hidden_size") // heads
    value = s.integer("attention.value_length_mla", None) or s.integer("value_dim", even)
    held = {"head_dim": rank + turned, "value_dim": rank, "num_kv_heads": 1}
    held = held if inner else {"num_kv_heads": heads}
    for name in ("head_dim", "value_dim", "num_kv_heads"):
        stated = s.take(name, None)
        if bound and name in held and stated != held[name]:
            raise s.fail(f"{s.label(name)} is {stated}, and {held[name]} follows from the latents")
    return {
        "q_rank": s.integer("attention.q_lora_rank", None) or None,
        "kv_rank": rank,
        "still": key - turned,
        "turned": turned,
        "value": value,
    }


def read_latent(
    s: Settings, sizes: decoder.Sizes, parts: dict[str, int | None], *, biased: bool = False,
    grown: bool = False, turns: bool = True,
) -> LatentAttention:  # fmt: skip
    """The attention of every layer. ``grown``: a scaling of RoPE in a GGUF lets the scores grow;
    ``turns``: there is RoPE."""
    table, scale = None, sizes.head_dim**-0.5
    if turns:
        table, scale = _rope(s, parts["turned"] or 0, sizes.head_dim, grown=grown)
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


def _rope(s: Settings, turned: int, key: int, *, grown: bool) -> tuple[RopeTable, float]:
    """The table, and the factor on q.k, into which a scaling's magnitude goes."""
    table, scale = read_rope(s, turned, factors=not grown), key**-0.5
    keys = rope_object(s)
    if not in_folder(s) and not keys:
        return _grown(s, table, scale) if grown else (table, scale)
    kind = keys.get("rope_type", keys.get("type", "default"))
    all_dims, factor = keys.get("mscale_all_dim"), keys.get("factor", 1.0)
    if kind != "default" and all_dims:
        if type(factor) not in (int, float):
            raise s.fail(f"mscale_all_dim is stated and factor is {factor!r:.40}, not a number")
        scale *= yarn_growth(factor, all_dims) ** 2
    return table, scale


def _grown(s: Settings, table: RopeTable, scale: float) -> tuple[RopeTable, float]:
    """What llama.cpp's deepseek2.cpp makes of a scaling.

    The converter writes a tenth of ``mscale_all_dim``. Where it is said, what turns keeps its
    magnitude and all scores grow by that share of YaRN's; where it is not, YaRN's magnitude counts
    in what turns and in all scores again. A linear scaling lets the scores grow as YaRN would.
    """
    kind = s.take("rope.scaling.type", "linear")
    if kind == "longrope":
        raise s.fail("RoPE scaling 'longrope', whose factors llama.cpp does not read for it")
    factor = s.values.get("rope.scaling.factor") or s.values.get("rope.scale_linear") or 1.0
    steps = 0.0 if kind == "none" else 0.1 * math.log(factor)
    share = s.number(YARN_SHARE, 0.0) / 0.1
    if kind == "yarn" and share:
        table = replace(table, magnitude=table.magnitude / yarn_growth(factor))
        s.say("rope_magnitude", table.magnitude)
    elif kind == "yarn" and factor > 1:
        s.note(f"{YARN_SHARE} is not stated: YaRN's magnitude counts in RoPE and again in the "
               "scores, as in llama.cpp")  # fmt: skip
    once = table.magnitude * (1.0 + steps if kind == "linear" else 1.0)
    return table, scale * (once * (1.0 + share * steps)) ** 2

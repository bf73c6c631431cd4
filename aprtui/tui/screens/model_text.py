"""The words above a model's tensors: what it is, and what is odd about it."""

from __future__ import annotations

from textual.content import Content

from aprtui.formats.modelfile import ModelFile
from aprtui.model.config import ModelConfig
from aprtui.model.open import Model
from aprtui.text import clean, count, size

__all__ = ["summary"]


def config_line(config: ModelConfig) -> str:
    """``qwen2 · 4 layers · hidden 256 · heads 8/2 x 32 · ...``."""
    parts = [
        config.architecture, count(config.num_layers, "layer"), f"hidden {config.hidden_size}",
        f"heads {config.num_heads}/{config.num_kv_heads} x {config.head_dim}",
        f"ffn {config.intermediate_size}", f"vocab {count(config.vocab_size)}",
        f"rope {config.rope_theta:g} {config.rope_layout}".replace("e+0", "e"),
    ]  # fmt: skip
    if config.num_experts:
        parts.append(f"experts {config.num_experts_per_tok} of {config.num_experts}")
    if config.sliding_window:
        parts.append(f"window {config.sliding_window}")
    return " · ".join(clean(part, 60) for part in parts)


def summary(file: ModelFile, model: Model | None, why: str) -> Content:
    """Two lines of what the model is, then what is odd about it."""
    weights = sum(entry.size_bytes for entry in file.tensors.values())
    types: dict[str, int] = {}
    for entry in file.tensors.values():
        types[entry.type] = types.get(entry.type, 0) + entry.size_bytes
    common = sorted(types, key=lambda name: -types[name])
    lines = []
    if model is not None:
        lines.append(Content.styled(config_line(model.config), "bold"))
    else:
        lines.append(Content.styled(f"! {clean(why, 400)}", "bold $text-error"))
    lines.append(
        Content.styled(
            f"{file.format} {clean(file.version, 20)} · {size(file.size_bytes)} in "
            f"{len(file.files)} file{'s' * (len(file.files) != 1)} · {len(file.tensors)} tensors, "
            f"{size(weights)} · "
            + ", ".join(
                f"{name} {100 * types[name] / max(weights, 1):.0f} %"
                for name in common[:5]
                if 200 * types[name] >= weights or name == common[0]
            ),
            "dim",
        )
    )
    notes = model.notes if model is not None else file.notes
    lines += [Content.styled(f"! {clean(note, 300)}", "$text-warning") for note in notes[:5]]
    if len(notes) > 5:
        lines.append(Content.styled(f"  and {len(notes) - 5} more notes", "dim"))
    return Content("\n").join(lines)

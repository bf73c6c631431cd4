"""The words above a model's tensors: what it is, and what is odd about it."""

from __future__ import annotations

from textual.content import Content

from aprtui.formats.modelfile import ModelFile
from aprtui.graph.words import sizes
from aprtui.model.open import Model
from aprtui.text import clean, size

__all__ = ["summary"]


def summary(file: ModelFile, model: Model | None, why: str) -> Content:
    """Two lines of what the model is, then what is odd about it."""
    weights = sum(entry.size_bytes for entry in file.tensors.values())
    types: dict[str, int] = {}
    for entry in file.tensors.values():
        types[entry.type] = types.get(entry.type, 0) + entry.size_bytes
    common = sorted(types, key=lambda name: -types[name])
    lines = []
    if model is not None:
        words = (clean(model.architecture, 60), *sizes(model.graph))
        lines.append(Content.styled(" · ".join(words), "bold"))
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

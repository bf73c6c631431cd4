"""What is odd about a model beyond its bytes: a lost head, a missing pre-tokenizer, norms that have
had their one added twice; and what of its tensors a pass should say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from aprtui.formats.health import Finding, Health, Progress, all_zero, scan_file, scan_tensor
from aprtui.formats.modelfile import ModelFile, TensorEntry, tensor_bytes
from aprtui.graph import Node, Role
from aprtui.graph.ops import Norm
from aprtui.model.open import Model
from aprtui.text import clean, count

__all__ = ["broken_weights", "empty_note", "model_health"]

_NEAR = 0.25  # of 1: the mean of a norm's weights that has the one in it already
_FLOATS = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}


def model_health(
    file: ModelFile, model: Model | None, why_not: str = "", progress: Progress | None = None
) -> Health:
    """Every stored tensor scanned, and what the file says looked through; ``model`` is what opened
    of it, ``why_not`` why nothing did."""
    scanned = scan_file(file, progress)
    more = [*_head(why_not), *_pre_tokenizer(file)]
    if model is not None:
        more += _norms(model)
    return replace(scanned, findings=(*scanned.findings, *more))


def _head(why_not: str) -> Iterator[Finding]:
    if "tie_word_embeddings is false and there is no" in why_not:
        yield Finding(
            "lost-head",
            "the head is lost: tie_word_embeddings is false and the file has no lm_head.weight "
            "(some runtimes make a random one)",
        )


def _pre_tokenizer(file: ModelFile) -> Iterator[Finding]:
    keys = file.metadata
    if file.format != "gguf" or keys.get("tokenizer.ggml.model") != "gpt2":
        return
    if not keys.get("tokenizer.ggml.pre"):
        yield Finding(
            "no-pre-tokenizer",
            "tokenizer.ggml.pre is missing: how text is cut before its merges is not said, and "
            "runtimes guess (convert the model again)",
        )


def _norms(model: Model) -> Iterator[Finding]:
    """Weights near 1 where the family adds 1 to them."""
    norms = [node for node in model.graph if isinstance(node.op, Norm) and node.op.offset == 1.0]
    means = {
        matrix.entry.name: mean
        for matrix in (model.weights[role] for node in norms for role in _weight(node))
        if (mean := _mean(matrix.entry)) is not None
    }
    near = [name for name, mean in means.items() if abs(mean - 1.0) < _NEAR]
    if means and len(near) == len(means):
        text = f"{count(len(near), 'norm')} have weights near 1, and this family adds 1 to them: "
        yield Finding("norms-near-one", f"{text}the one was added before",
                      tuple(clean(name) for name in near))  # fmt: skip


def _weight(node: Node) -> tuple[Role, ...]:
    assert isinstance(node.op, Norm)
    return () if node.op.weight is None else (node.op.weight,)


def _mean(entry: TensorEntry) -> float | None:
    """The mean of a vector of plain numbers."""
    if entry.coding is not None:
        return None
    raw = tensor_bytes(entry)
    if entry.type == "BF16":
        wide = np.ascontiguousarray(raw).view("<u2").astype(np.uint32) << 16
        return float(wide.view(np.float32).mean())
    if entry.type not in _FLOATS or not raw.size:
        return None
    return float(np.ascontiguousarray(raw).view(_FLOATS[entry.type]).astype(np.float64).mean())


# -- what a pass should say ------------------------------------------------------------------------


def empty_note(model: Model) -> str:
    """A sentence on the matrices that hold nothing but zeros; empty where there is none.

    A matrix that is not zero is known by its first bytes.
    """
    entries = {matrix.entry.name: matrix.entry for matrix in model.weights.values()
               if matrix.rows > 1 and matrix.entry.coding is None}  # fmt: skip
    empty = [clean(name) for name, entry in entries.items() if all_zero(entry)]
    if not empty:
        return ""
    listed = ", ".join(empty[:4]) + (f" and {len(empty) - 4} more" if len(empty) > 4 else "")
    hold = "holds" if len(empty) == 1 else "hold"
    return f"{listed} {hold} nothing but zeros: aprtui inspect --verify says more"


def broken_weights(model: Model, node: Node) -> tuple[Finding, ...]:
    """The NaN and infinite numbers in the weights that a stage reads."""
    read = {
        matrix.entry.name: matrix.entry
        for role in node.op.weights
        if (matrix := model.weights.get(role)) is not None
    }
    found = (finding for entry in read.values() for finding in scan_tensor(entry))
    return tuple(finding for finding in found if finding.kind == "nonfinite")

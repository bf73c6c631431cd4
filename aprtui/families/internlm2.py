"""InternLM2: llama with a head of its own; of GGUFs alone, where q, k and v lie apart."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import llama
from aprtui.families.settings import Defaults
from aprtui.families.tensors import ATTENTION, DENSE, PRE_NORMS, QKV_BIAS, WHOLE, Table

__all__ = ["FAMILY"]

FAMILY = replace(
    llama.FAMILY,
    tensors=Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *DENSE)),
    defaults=Defaults(gguf={"rope_theta": 1e4, "tie_word_embeddings": False}),
)

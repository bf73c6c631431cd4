"""GGUFs that llama.cpp's converter made none of for the shared fixtures: with weights that numpy
draws, so that what llama.cpp made of them can be kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from tests.as_gguf import write_gguf
from tests.families import TINY, save_tiny
from tests.gguf_keys import with_keys
from tests.support import FIXTURES

__all__ = ["WRITTEN"]


def _drawn(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    return (0.2 * rng.standard_normal(shape)).astype(np.float32)


def _kimi_linear(folder: Path) -> Path:
    """As published: queries without a latent, which libllama v0.5.0 does not read."""
    tiny = TINY["kimi_linear"]
    save_tiny(replace(tiny, settings={**tiny.settings, "q_lora_rank": None}), folder)
    path, rng = folder / "model.safetensors", np.random.default_rng(19)
    tensors = {name: _drawn(rng, *each.shape) for name, each in sorted(load_file(path).items())}
    save_file(tensors, path, {"format": "pt"})
    write_gguf(folder, "kimi_linear", folder / "model.gguf")
    return folder / "model.gguf"


def _latent(folder: Path) -> Path:
    """Nemotron 3's experts, which work on a latent: the fixture's with such experts."""
    rng, latent = np.random.default_rng(3), 20
    shapes = {
        "ffn_down_exps": (4, latent, 32), "ffn_up_exps": (4, 32, latent),
        "ffn_latent_down": (latent, 64), "ffn_latent_up": (64, latent),
    }  # fmt: skip
    tensors = {f"blk.2.{name}.weight": _drawn(rng, *shape) for name, shape in shapes.items()}
    source = FIXTURES / "families" / "nemotron_h" / "model.gguf"
    return with_keys(source, folder / "model.gguf", {"moe_latent_size": latent}, tensors)


WRITTEN: dict[str, Callable[[Path], Path]] = {
    "kimi_linear": _kimi_linear,
    "nemotron_h-latent": _latent,
}
"""Each makes its GGUF in a folder that is there."""

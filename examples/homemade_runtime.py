"""A home-made runtime with a bug, captured with CaptureWriter and found with bisect.

    python examples/homemade_runtime.py             writes ./homemade-trace, then names the bug
    python examples/homemade_runtime.py --fixed     the same without the bug

The runtime is plain numpy: a qwen2 model out of a GGUF file, one prompt, no cache. The lines that
make it comparable are those with ``capture`` in them.
"""

from __future__ import annotations

import argparse
import sys
from importlib import resources
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from aprtui import CaptureWriter
from aprtui.cli.main import main as aprtui

Array = npt.NDArray[np.float32]
TOKENS = [476, 668, 997, 11, 295, 313, 258, 329]
PLAIN = np.float32


class Runtime:
    """qwen2 in numpy. ``grouped`` is what the bug gets wrong."""

    def __init__(self, path: Path, *, grouped: bool) -> None:
        reader = gguf.GGUFReader(path)
        self.weights = {
            tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(PLAIN)
            for tensor in reader.tensors
        }

        def field(name: str) -> float:
            return float(reader.fields[f"qwen2.{name}"].contents())

        self.layers = int(field("block_count"))
        self.heads = int(field("attention.head_count"))
        self.kv_heads = int(field("attention.head_count_kv"))
        self.theta = field("rope.freq_base")
        self.eps = field("attention.layer_norm_rms_epsilon")
        self.grouped = grouped

    def norm(self, x: Array, name: str) -> Array:
        scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + PLAIN(self.eps))
        out: Array = x * scale * self.weights[name]
        return out

    def rope(self, x: Array) -> Array:
        """x [T,heads,d], the halves of each head rotated against one another."""
        half = x.shape[-1] // 2
        frequency = self.theta ** (-np.arange(half) / half)
        angle = np.outer(np.arange(x.shape[0]), frequency)[:, None, :]
        cos, sin = np.cos(angle).astype(PLAIN), np.sin(angle).astype(PLAIN)
        first, second = x[..., :half], x[..., half:]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def attention(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """Scores [A,T,T], softmax [A,T,T] and the result [T,A,d]."""
        groups = self.heads // self.kv_heads
        if self.grouped:  # heads 0,1,2.. read kv heads 0,0,1..
            k, v = np.repeat(k, groups, axis=1), np.repeat(v, groups, axis=1)
        else:  # the bug: 0,1,0,1.., as if the kv heads were dealt round
            k, v = np.tile(k, (1, groups, 1)), np.tile(v, (1, groups, 1))
        scores = np.einsum("qhd,khd->hqk", q, k) / PLAIN(np.sqrt(q.shape[-1]))
        seen = np.tri(q.shape[0], dtype=bool)
        weights = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
        weights = (weights / weights.sum(-1, keepdims=True)).astype(PLAIN)
        return np.where(seen, scores, 0), weights, np.einsum("hqk,khd->qhd", weights, v)

    def layer(self, x: Array, n: int, capture: CaptureWriter) -> Array:
        w, tokens = self.weights, x.shape[0]
        h = self.norm(x, f"blk.{n}.attn_norm.weight")
        capture.put("attn_norm", h, layer=n)
        plain = [h @ w[f"blk.{n}.attn_{part}.weight"].T for part in "qkv"]
        capture.put("qkv_matmul", np.concatenate(plain, axis=1), layer=n)
        biased = [x + w[f"blk.{n}.attn_{part}.bias"] for x, part in zip(plain, "qkv", strict=True)]
        capture.put("qkv_bias", np.concatenate(biased, axis=1), layer=n)
        q, k, v = (part.reshape(tokens, -1, biased[0].shape[1] // self.heads) for part in biased)
        q, k = self.rope(q), self.rope(k)
        capture.put("q_post_rope", q, layer=n)
        capture.put("k_post_rope", k, layer=n)
        scores, weights, mixed = self.attention(q, k, v)
        capture.put("attn_scores", scores, layer=n)
        capture.put("attn_softmax", weights, layer=n)
        capture.put("attention", mixed, layer=n)
        out = mixed.reshape(tokens, -1) @ w[f"blk.{n}.attn_output.weight"].T
        capture.put("attn_out", out, layer=n)
        x = x + out
        capture.put("post_attn_residual", x, layer=n)
        h = self.norm(x, f"blk.{n}.ffn_norm.weight")
        capture.put("ffn_norm", h, layer=n)
        gate, up = h @ w[f"blk.{n}.ffn_gate.weight"].T, h @ w[f"blk.{n}.ffn_up.weight"].T
        capture.put("ffn_gate", gate, layer=n)
        capture.put("ffn_up", up, layer=n)
        active = gate / (1 + np.exp(-gate))
        capture.put("ffn_silu", active, layer=n)
        capture.put("ffn_swigl", active * up, layer=n)
        out = (active * up) @ w[f"blk.{n}.ffn_down.weight"].T
        capture.put("ffn_out", out, layer=n)
        x = x + out
        capture.put("post_ffn_residual", x, layer=n)
        return x

    def run(self, tokens: list[int], capture: CaptureWriter) -> Array:
        """The logits [V] of the last position."""
        table = self.weights["token_embd.weight"]
        x = table[tokens]
        capture.put("embedding", x)
        for n in range(self.layers):
            x = self.layer(x, n, capture)
        x = self.norm(x, "output_norm.weight")
        capture.put("final_norm", x)
        logits: Array = x[-1] @ self.weights.get("output.weight", table).T
        capture.put("lm_head", logits)
        return logits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--fixed", action="store_true", help="run it without the bug")
    parser.add_argument("-o", "--output", type=Path, default=Path("homemade-trace"))
    parser.add_argument("--model", type=Path, help="a qwen2 GGUF (default: the demo's)")
    options = parser.parse_args()
    model = options.model or Path(str(resources.files("aprtui") / "demo" / "pycode-5m.gguf"))
    runtime = Runtime(model, grouped=options.fixed)
    engine = {"name": "homemade", "version": "1", "dtype": "float32", "device": "cpu"}
    with CaptureWriter(
        options.output, tokens=TOKENS, model=model, engine=engine, overwrite=True
    ) as capture:
        runtime.run(TOKENS, capture)
    command = ["bisect", str(options.output), "--model", str(model)]
    print("aprtui", *command, flush=True)
    return aprtui(command)


if __name__ == "__main__":
    sys.exit(main())

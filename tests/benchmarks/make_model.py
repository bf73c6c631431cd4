"""Writes models of full size with random but valid weights, for the benchmarks.

    python -m tests.benchmarks.make_model 7b q4_k_m /tmp/7b.gguf
    python -m tests.benchmarks.make_model 0.5b q8_0 /tmp/small.apr --layers 4
    python -m tests.benchmarks.make_model 7b q8_0 /tmp/7b-q8.gguf --values-of q4_k_m
    python -m tests.benchmarks.make_model 7b fp8 /tmp/7b-fp8           # a folder, blocks of 128

With ``--values-of`` every block holds what the other mix's file holds, rounded once more: the same
model in another type. Without it each mix has values of its own.

The tensors are streamed: memory stays under 200 MB. The same arguments give the same file.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aprtui.engine.dequantise import dequantise
from aprtui.formats.apr_write import OutgoingTensor, write_apr
from aprtui.formats.blocks import BLOCK_TYPES, stored_bytes
from aprtui.model.vocabulary import CONTROL, GLYPHS, NORMAL
from tests.unit.gguf_writer import Tensor, array_of, gguf_bytes, key, text

__all__ = ["SHAPES", "Shape", "Weight", "stored", "write_model"]

_ALIGNMENT = 32
_CHUNK_BLOCKS = 1 << 16
_EPS = 1e-6
_THETA = 1e6
_CONTEXT = 32768


@dataclass(frozen=True)
class Shape:
    """A qwen2 model's dimensions."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool

    @property
    def kv_size(self) -> int:
        return self.hidden // self.heads * self.kv_heads


SHAPES = {
    "7b": Shape(28, 3584, 18944, 28, 4, 152064, tied=False),
    "0.5b": Shape(24, 896, 4864, 14, 2, 151936, tied=True),
}
MIXES = ("q4_k_m", "q8_0", "q4_0")
_FOLDER_MIX = "fp8"
_FP8_BLOCK = 128
_FP8_SPREAD = 0.69  # the standard deviation of FP8 codes below 2

# The standard deviation of a block's values when its float16 scale is 1 and every other byte is
# random: a scale of wanted / spread gives matrices that keep activations finite.
_SPREAD = {"Q4_K": 258.0, "Q6_K": 1366.0, "Q8_0": 74.0, "Q4_0": 4.6, "APR_Q4": 4.6}
_SCALE_AT = {"Q4_K": 0, "Q6_K": 208, "Q8_0": 0, "Q4_0": 0, "APR_Q4": 0}
_Q4_K_MINIMUM = 7.5  # of the scale: centres values whose nibbles are 7.5 on average


@dataclass(frozen=True)
class Weight:
    """One tensor of the file: its name, type and row-major shape."""

    name: str
    type: str
    shape: tuple[int, ...]


def write_model(path: Path, shape: Shape, mix: str, values_of: str = "") -> int:
    """Write a ``.gguf`` or ``.apr`` file, by the path's ending; its size in bytes.

    In an ``.apr`` file Q8_0 becomes APR_Q8 and Q4_0 becomes APR_Q4, which that format holds.
    ``values_of`` is the mix whose values are written, as Q8_0 in a ``.gguf`` file.
    """
    if path.suffix == ".apr":
        named = {"Q8_0": "APR_Q8", "Q4_0": "APR_Q4"}
        weights = [
            Weight(each.name, named.get(each.type, each.type), each.shape)
            for each in _weights(shape, mix)
        ]
        return write_apr(
            path,
            _apr_metadata(shape, weights),
            [
                OutgoingTensor(each.name, each.type, each.shape, partial(stored, each, seed))
                for seed, each in enumerate(weights)
            ],
        )
    weights = list(_weights(shape, mix))
    sources = list(_weights(shape, values_of)) if values_of else weights
    return _write_gguf(path, shape, weights, sources)


def _more_bits(layer: int, layers: int) -> bool:
    """The layers whose v and down matrices Q4_K_M keeps in Q6_K (llama.cpp, ``use_more_bits``)."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _weights(shape: Shape, mix: str) -> Iterator[Weight]:
    """Every tensor, as llama.cpp's quantiser would type it."""
    plain = {"q4_k_m": "Q4_K", "q8_0": "Q8_0", "q4_0": "Q4_0"}[mix]
    table = "Q8_0" if shape.tied and mix == "q4_0" else plain
    yield Weight("token_embd.weight", table, (shape.vocab, shape.hidden))
    for layer in range(shape.layers):
        rich = "Q6_K" if mix == "q4_k_m" and _more_bits(layer, shape.layers) else plain
        for name, type_name, extents in (
            ("attn_norm.weight", "F32", (shape.hidden,)),
            ("attn_q.weight", plain, (shape.hidden, shape.hidden)),
            ("attn_q.bias", "F32", (shape.hidden,)),
            ("attn_k.weight", plain, (shape.kv_size, shape.hidden)),
            ("attn_k.bias", "F32", (shape.kv_size,)),
            ("attn_v.weight", rich, (shape.kv_size, shape.hidden)),
            ("attn_v.bias", "F32", (shape.kv_size,)),
            ("attn_output.weight", plain, (shape.hidden, shape.hidden)),
            ("ffn_norm.weight", "F32", (shape.hidden,)),
            ("ffn_gate.weight", plain, (shape.ffn, shape.hidden)),
            ("ffn_up.weight", plain, (shape.ffn, shape.hidden)),
            ("ffn_down.weight", rich, (shape.hidden, shape.ffn)),
        ):
            yield Weight(f"blk.{layer}.{name}", type_name, extents)
    yield Weight("output_norm.weight", "F32", (shape.hidden,))
    if not shape.tied:
        last = "Q6_K" if mix == "q4_k_m" else "Q8_0"
        yield Weight("output.weight", last, (shape.vocab, shape.hidden))


def stored(weight: Weight, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """The tensor's bytes, some blocks at a time."""
    random = np.random.Generator(np.random.SFC64(seed))
    if weight.type == "F32":
        centre = 1.0 if "norm" in weight.name else 0.0
        values = random.standard_normal(weight.shape[0], dtype=np.float32) * 0.1 + centre
        yield values.astype("<f4").view(np.uint8)
        return
    wanted = 0.8 / np.sqrt(weight.shape[-1])
    left = stored_bytes(weight.type, weight.shape)
    if weight.type == "APR_Q8":
        yield np.array([wanted / 74.0], dtype="<f4").view(np.uint8)
        left -= 4
        for size in _pieces(left, _CHUNK_BLOCKS * 32):
            yield np.frombuffer(random.bytes(size), np.uint8)
        return
    block = BLOCK_TYPES[weight.type].bytes
    scale = np.array([wanted / _SPREAD[weight.type]], dtype="<f2")
    at = _SCALE_AT[weight.type]
    for size in _pieces(left // block, _CHUNK_BLOCKS):
        blocks = np.frombuffer(random.bytes(size * block), np.uint8).reshape(size, block).copy()
        blocks[:, at : at + 2] = scale.view(np.uint8)
        if weight.type == "Q4_K":
            blocks[:, 2:4] = (scale * np.float16(_Q4_K_MINIMUM)).view(np.uint8)
        yield blocks.reshape(-1)


def _requantised(source: Weight, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """``source``'s values as Q8_0: blocks of 32, a float16 scale and 32 signed bytes."""
    block = BLOCK_TYPES[source.type].bytes
    for made in stored(source, seed):
        values = dequantise(source.type, torch.from_numpy(made.reshape(-1, block)))
        blocks = values.numpy().reshape(-1, 32)
        scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
        blocks *= np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
        out = np.empty((len(blocks), BLOCK_TYPES["Q8_0"].bytes), np.uint8)
        out[:, :2] = scale.astype("<f2").view(np.uint8)
        out[:, 2:] = np.rint(blocks, out=blocks).astype(np.int8).view(np.uint8)
        yield out.reshape(-1)


def _pieces(total: int, at_once: int) -> Iterator[int]:
    for first in range(0, total, at_once):
        yield min(at_once, total - first)


def _vocabulary(size: int) -> tuple[list[str], list[str], list[int]]:
    """Tokens, merges and token types of a byte-level BPE that looks like Qwen's.

    "What is 2+2?" encodes to seven tokens, as there.
    """
    glyphs = list(GLYPHS)
    merges = {"W h": None, "a t": None, "Wh at": None, "Ġ i": None, "Ġi s": None}
    pairs = (f"{a} {b}" for a, b in product(glyphs, repeat=2))
    triples = (f"{a}{b} {c}" for a, b, c in product(glyphs, repeat=3))
    wanted = size - len(glyphs) - min(421, size // 8)  # Qwen's specials and padding
    for each in (*islice(pairs, wanted), *islice(triples, wanted)):
        if len(merges) == wanted:
            break
        merges[each] = None
    tokens = dict.fromkeys([*glyphs, *(merge.replace(" ", "") for merge in merges)])
    written = list(tokens)
    special = [f"<|special_{i}|>" for i in range(size - len(written))]
    types = [NORMAL] * len(written) + [CONTROL] * len(special)
    return written + special, list(merges), types


def _gguf_keys(shape: Shape) -> list[bytes]:
    tokens, merges, types = _vocabulary(shape.vocab)
    return [
        text("general.architecture", "qwen2"),
        text("general.name", "benchmark"),
        key("qwen2.block_count", 4, shape.layers),
        key("qwen2.context_length", 4, _CONTEXT),
        key("qwen2.embedding_length", 4, shape.hidden),
        key("qwen2.feed_forward_length", 4, shape.ffn),
        key("qwen2.attention.head_count", 4, shape.heads),
        key("qwen2.attention.head_count_kv", 4, shape.kv_heads),
        key("qwen2.attention.layer_norm_rms_epsilon", 6, _EPS),
        key("qwen2.rope.freq_base", 6, _THETA),
        text("tokenizer.ggml.model", "gpt2"),
        text("tokenizer.ggml.pre", "qwen2"),
        key("tokenizer.ggml.tokens", 9, array_of(8, [token.encode() for token in tokens])),
        key("tokenizer.ggml.token_type", 9, array_of(5, types)),
        key("tokenizer.ggml.merges", 9, array_of(8, [merge.encode() for merge in merges])),
        key("tokenizer.ggml.eos_token_id", 4, shape.vocab - 1),
        key("tokenizer.ggml.add_bos_token", 7, False),
    ]


def _apr_metadata(shape: Shape, weights: Iterable[Weight]) -> dict[str, Any]:
    tokens, merges, types = _vocabulary(shape.vocab)
    return {
        "model_type": "qwen2",
        "name": "benchmark",
        "version": "1.0.0",
        "original_format": "gguf",
        "total_size": sum(stored_bytes(each.type, each.shape) for each in weights),
        "architecture": "qwen2",
        "hidden_size": shape.hidden,
        "num_layers": shape.layers,
        "num_heads": shape.heads,
        "num_kv_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": _CONTEXT,
        "rope_theta": _THETA,
        "rope_type": 2,
        "rms_norm_eps": _EPS,
        "tokenizer.model": "gpt2",
        "tokenizer.model_type": "BPE",
        "tokenizer.pre_type": "qwen2",
        "tokenizer.vocabulary": tokens,
        "tokenizer.vocab_size": len(tokens),
        "tokenizer.merges": merges,
        "tokenizer.token_type": types,
        "tokenizer.eos_token_id": shape.vocab - 1,
        "tokenizer.add_bos_token": False,
    }


def _write_gguf(path: Path, shape: Shape, weights: list[Weight], sources: list[Weight]) -> int:
    index, offset = [], 0
    for each in weights:
        code = BLOCK_TYPES[each.type].ggml_code
        assert code is not None
        index.append(Tensor(each.name, each.shape[::-1], code, offset=offset))
        offset += -(-stored_bytes(each.type, each.shape) // _ALIGNMENT) * _ALIGNMENT
    with path.open("wb") as file:
        file.write(gguf_bytes(_gguf_keys(shape), index))
        for seed, (each, source) in enumerate(zip(weights, sources, strict=True)):
            same = each.type == source.type
            for chunk in (stored if same else _requantised)(source, seed):
                file.write(chunk.data)
            file.write(bytes(-file.tell() % _ALIGNMENT))
        return file.tell()


def _folder_weights(shape: Shape) -> Iterator[Weight]:
    """Hugging Face's tensors: matrices of layers in FP8, each with a scale a block."""
    yield Weight("model.embed_tokens.weight", "BF16", (shape.vocab, shape.hidden))
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        for name, extents in (
            ("self_attn.q_proj", (shape.hidden, shape.hidden)),
            ("self_attn.k_proj", (shape.kv_size, shape.hidden)),
            ("self_attn.v_proj", (shape.kv_size, shape.hidden)),
            ("self_attn.o_proj", (shape.hidden, shape.hidden)),
            ("mlp.gate_proj", (shape.ffn, shape.hidden)),
            ("mlp.up_proj", (shape.ffn, shape.hidden)),
            ("mlp.down_proj", (shape.hidden, shape.ffn)),
        ):
            blocks = tuple(-(-extent // _FP8_BLOCK) for extent in extents)
            yield Weight(f"{at}{name}.weight", "F8_E4M3", extents)
            yield Weight(f"{at}{name}.weight_scale_inv", "F32", blocks)
            if name[-6] in "qkv":
                yield Weight(f"{at}{name}.bias", "BF16", extents[:1])
        yield Weight(f"{at}input_layernorm.weight", "BF16", (shape.hidden,))
        yield Weight(f"{at}post_attention_layernorm.weight", "BF16", (shape.hidden,))
    yield Weight("model.norm.weight", "BF16", (shape.hidden,))
    yield Weight("lm_head.weight", "BF16", (shape.vocab, shape.hidden))


def _folder_bytes(weight: Weight, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    random = np.random.Generator(np.random.SFC64(seed))
    count = math.prod(weight.shape)
    if weight.type == "F32":
        scale = 0.8 / math.sqrt(_FP8_BLOCK * weight.shape[-1]) / _FP8_SPREAD
        yield np.full(count, scale, "<f4").view(np.uint8)
        return
    for size in _pieces(count, _CHUNK_BLOCKS * 64):
        if weight.type == "F8_E4M3":  # without the exponent's highest bit: all are numbers
            yield np.frombuffer(random.bytes(size), np.uint8) & np.uint8(0xBF)
            continue
        centre, width = (1.0, 0.1) if "norm" in weight.name else (0.0, 0.8 / math.sqrt(count))
        if len(weight.shape) > 1:
            width = 0.8 / math.sqrt(weight.shape[-1])
        values = random.standard_normal(size, dtype=np.float32) * np.float32(width) + centre
        yield (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)


def _write_folder(folder: Path, shape: Shape) -> int:
    """A qwen2 folder in FP8 as DeepSeek's and Qwen's are; the size of its tensors' file."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
        "hidden_size": shape.hidden, "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "vocab_size": shape.vocab,
        "max_position_embeddings": _CONTEXT, "rms_norm_eps": _EPS, "rope_theta": _THETA,
        "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3",
                                "activation_scheme": "dynamic",
                                "weight_block_size": [_FP8_BLOCK, _FP8_BLOCK]},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    index: dict[str, dict[str, Any]] = {}
    weights, offset = list(_folder_weights(shape)), 0
    for each in weights:
        size = math.prod(each.shape) * {"BF16": 2, "F32": 4, "F8_E4M3": 1}[each.type]
        place = [offset, offset + size]
        index[each.name] = {"dtype": each.type, "shape": each.shape, "data_offsets": place}
        offset += size
    header = json.dumps(index).encode()
    header += b" " * (-len(header) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for seed, each in enumerate(weights):
            for chunk in _folder_bytes(each, seed):
                file.write(chunk.data)
        return file.tell()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("mix", choices=[*MIXES, _FOLDER_MIX])
    parser.add_argument("path", type=Path, help="ends in .gguf or .apr; of fp8 a folder")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--values-of", choices=MIXES, default="", help="q8_0 of this mix's values")
    options = parser.parse_args(arguments)
    shape: Shape = SHAPES[options.shape]
    if options.values_of and (options.mix != "q8_0" or options.path.suffix == ".apr"):
        parser.error("--values-of makes .gguf files of q8_0")
    if "q4_k_m" in (options.mix, options.values_of) and shape.hidden % 256:
        parser.error(f"rows of {shape.hidden} values are not whole Q4_K blocks")
    if options.layers:
        shape = Shape(**(vars(shape) | {"layers": options.layers}))
    if options.mix == _FOLDER_MIX:
        print(f"{_write_folder(options.path, shape):,} bytes in {options.path}")
        return 0
    written = write_model(options.path, shape, options.mix, options.values_of)
    print(f"{written:,} bytes in {options.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

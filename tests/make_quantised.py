"""Writes tests/fixtures/quantised: a tiny llama in each format, and what its own library decodes.

    python -m tests.make_quantised --gptqmodel DIR --autoawq DIR --modelopt DIR

needs compressed-tensors, bitsandbytes, mlx and transformers installed, and the unpacked sources of
GPTQModel, AutoAWQ and ModelOpt, which do not install without CUDA: the one function that decodes is
taken out of their source and run by itself. Each folder has a ``decoded.json``: the library and
version, and of each weight the sha256 of its float32 values, row-major, with the first eight of
them. Scales are given to the libraries as float32 where they would compute in 16 bits, so that
theirs is float32 arithmetic as well.
"""

# mypy: ignore-errors
from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

OUT = Path(__file__).resolve().parent / "fixtures" / "quantised"
HIDDEN, FFN, VOCAB, HEADS, KV_HEADS = 128, 192, 64, 4, 2
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
    "intermediate_size": FFN, "num_hidden_layers": 1, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "head_dim": HIDDEN // HEADS, "vocab_size": VOCAB,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
KV = HIDDEN // HEADS * KV_HEADS
LINEAR = {
    "model.layers.0.self_attn.q_proj": (HIDDEN, HIDDEN),
    "model.layers.0.self_attn.k_proj": (KV, HIDDEN),
    "model.layers.0.self_attn.v_proj": (KV, HIDDEN),
    "model.layers.0.self_attn.o_proj": (HIDDEN, HIDDEN),
    "model.layers.0.mlp.gate_proj": (FFN, HIDDEN),
    "model.layers.0.mlp.up_proj": (FFN, HIDDEN),
    "model.layers.0.mlp.down_proj": (HIDDEN, FFN),
}
Coded = tuple[dict[str, Tensor], Tensor]  # the module's tensors, the decoded weight


def write(name: str, library: str, config: dict, encode: Callable[[str, Tensor], Coded]) -> None:
    """One folder: ``encode`` gives a module's tensors by part, and its decoded values."""
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(sum(name.encode()))
    tensors = {
        "model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN, generator=generator).half(),
        "lm_head.weight": (torch.randn(VOCAB, HIDDEN, generator=generator) / 8).half(),
        "model.norm.weight": torch.ones(HIDDEN).half(),
        "model.layers.0.input_layernorm.weight": torch.ones(HIDDEN).half(),
        "model.layers.0.post_attention_layernorm.weight": torch.ones(HIDDEN).half(),
    }
    decoded = {}
    for module, shape in LINEAR.items():
        weight = torch.randn(shape, generator=generator) / math.sqrt(shape[1])
        weight[3] *= 8  # rows and columns that are not all alike
        weight[:, 5] *= 4
        parts, values = encode(module, weight)
        assert values.shape == shape and values.dtype == torch.float32, (name, values.shape)
        error = float((values - weight).norm() / weight.norm())
        assert error < 0.7, (name, module, error)
        tensors |= {f"{module}.{part}": kept.contiguous() for part, kept in parts.items()}
        raw = values.contiguous().numpy().astype("<f4")
        decoded[f"{module}.weight"] = {
            "sha256": hashlib.sha256(raw.tobytes()).hexdigest(),
            "first": [float(value) for value in raw.reshape(-1)[:8]],
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps({**CONFIG, **config}, indent=1)
    (folder / "config.json").write_text(text + "\n")
    record = {"library": library, "rel_l2_of_rounding": round(error, 4), "weights": decoded}
    (folder / "decoded.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{name:24} {library:40} {error:.4f}")


def taken_out(path: Path, names: set[str], scope: dict) -> dict:
    """Functions and classes of a source file by name, run without the rest of it."""
    tree = ast.parse(path.read_text())
    wanted = [node for node in ast.walk(tree) if getattr(node, "name", None) in names]
    for node in wanted:
        node.decorator_list = []
    module = ast.Module(wanted, type_ignores=[])
    exec(compile(ast.fix_missing_locations(module), str(path), "exec"), scope)
    return scope


def rounded(weight: Tensor, group: int, bits: int, symmetric: bool) -> tuple[Tensor, ...]:
    """(codes 0..2^bits - 1, scales, zeros [rows, groups]) by plain rounding."""
    grouped = weight.reshape(len(weight), -1, group)
    top = 2**bits - 1
    if symmetric:
        scale = grouped.abs().amax(-1) / (2 ** (bits - 1) - 0.5)
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scale = (high - low) / top
        zero = (-low / scale).round().clamp(1, top)
    codes = (grouped / scale[..., None]).round().add(zero[..., None]).clamp(0, top)
    return codes.reshape(weight.shape).to(torch.int64), scale, zero.to(torch.int64)


def dense_words(values: Tensor, bits: int) -> Tensor:
    """[n, count] codes to [n, count * bits / 32] int32, bits one after the other."""
    bit = (values[..., None] >> torch.arange(bits)) & 1
    stream = bit.reshape(len(values), -1, 8).numpy().astype(np.uint8)
    packed = np.packbits(stream, axis=-1, bitorder="little").reshape(len(values), -1)
    return torch.from_numpy(packed.copy()).view(torch.int32)


# -- FP8 and MXFP8 -------------------------------------------------------------------------------


def fp8(library, kind: torch.dtype, block: tuple[int, int] | None, part: str, channel: bool):
    top = torch.finfo(kind).max

    def encode(module: str, weight: Tensor) -> Coded:
        if block is None:
            most = weight.abs().amax(1, keepdim=True) if channel else weight.abs().amax()
            scale = (most / top).float()
            codes = (weight / scale).to(kind)
            return {"weight": codes, part: scale}, library(codes, scale)
        rows, columns = weight.shape
        scale = torch.empty(math.ceil(rows / block[0]), math.ceil(columns / block[1]))
        spread = torch.empty_like(weight)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                place = np.s_[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
                scale[i, j] = weight[place].abs().max() / top
                spread[place] = scale[i, j]
        codes = (weight / spread).to(kind)
        values = codes.float() * spread if library is None else library(codes, scale)
        return {"weight": codes, part: scale}, values

    return encode


def make_fp8() -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    one = Fp8Dequantize(None)._dequantize_one
    name = f"transformers {version('transformers')} Fp8Dequantize"
    e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2

    def said(**keys):
        return {"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic",
                                        **keys}}  # fmt: skip

    write("fp8-block", name, said(fmt="e4m3", weight_block_size=[64, 64]),
          fp8(one, e4m3, (64, 64), "weight_scale_inv", False))  # fmt: skip
    formula = "formula of DeepSeek-V3's weight_dequant"
    write("fp8-block-ragged", formula, said(fmt="e4m3", weight_block_size=[128, 128]),
          fp8(None, e4m3, (128, 128), "weight_scale_inv", False))  # fmt: skip
    write("fp8-tensor", name, said(activation_scheme="static"),
          fp8(one, e4m3, None, "weight_scale", False))  # fmt: skip
    write("fp8-e5m2-channel", name, said(fmt="e5m2"),
          fp8(one, e5m2, None, "weight_scale", True))  # fmt: skip

    def mxfp8(module: str, weight: Tensor) -> Coded:
        grouped = weight.reshape(len(weight), -1, 32)
        exponent = torch.floor(torch.log2(grouped.abs().amax(-1))) - 8
        codes = (grouped / exponent.exp2()[..., None]).reshape(weight.shape).to(e4m3)
        scale = (exponent + 127).to(torch.uint8)
        return (
            {"weight": codes, "weight_scale_inv": scale},
            one(codes, scale, output_dtype=torch.float32),
        )

    config = {"quantization_config": {"quant_method": "mxfp8", "weight_block_size": [1, 32]}}
    write("mxfp8", name, config, mxfp8)


# -- compressed-tensors --------------------------------------------------------------------------


def make_compressed() -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    library = f"compressed-tensors {version('compressed-tensors')}"

    def case(name: str, form: str, args: dict, activations: dict | None = None, bf16=False) -> None:
        weights = QuantizationArgs(**args)
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        compressor = BaseCompressor.get_value_from_registry(form)

        def encode(module: str, weight: Tensor) -> Coded:
            state = {"weight": weight, **compressed_scales(weight, args)}
            if bf16:
                state["weight_scale"] = state["weight_scale"].bfloat16().float()
            parts = dict(compressor.compress(dict(state), scheme))
            if form == "nvfp4-pack-quantized":  # its decompress computes in bfloat16
                codes = unpack_fp4_from_uint8(parts["weight_packed"], *weight.shape).float()
                values = dequantize(codes, parts["weight_scale"].float(), args=weights,
                                    global_scale=parts["weight_global_scale"])  # fmt: skip
            else:
                values = compressor.decompress(dict(parts), scheme)["weight"].float()
            parts = {key: kept for key, kept in parts.items() if isinstance(kept, Tensor)}
            if bf16:
                parts["weight_scale"] = parts["weight_scale"].bfloat16()
            return {key: kept.detach() for key, kept in parts.items()}, values

        group = {"targets": ["Linear"], "weights": args, "input_activations": activations}
        config = {"quantization_config": {
            "quant_method": "compressed-tensors", "format": form, "quantization_status":
            "compressed", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}}  # fmt: skip
        write(name, library, config, encode)

    integer = {"type": "int", "strategy": "group", "group_size": 64}
    case("ct-int4", "pack-quantized", {**integer, "num_bits": 4, "symmetric": True}, bf16=True)
    case("ct-int4-zero", "pack-quantized", {**integer, "num_bits": 4, "symmetric": False})
    case("ct-int8-channel", "pack-quantized",
         {"type": "int", "strategy": "channel", "num_bits": 8, "symmetric": True})  # fmt: skip
    case("ct-w8a8", "int-quantized",
         {"type": "int", "strategy": "channel", "num_bits": 8, "symmetric": True},
         {"type": "int", "strategy": "token", "num_bits": 8, "symmetric": True,
          "dynamic": True})  # fmt: skip
    case("ct-w8a8-zero", "int-quantized",
         {"type": "int", "strategy": "channel", "num_bits": 8, "symmetric": False})  # fmt: skip
    case("ct-fp8-channel", "float-quantized",
         {"type": "float", "strategy": "channel", "num_bits": 8, "symmetric": True},
         {"type": "float", "strategy": "token", "num_bits": 8, "symmetric": True,
          "dynamic": True}, bf16=True)  # fmt: skip
    case("ct-fp8-block", "float-quantized",
         {"type": "float", "strategy": "block", "num_bits": 8, "symmetric": True,
          "block_structure": [64, 64]})  # fmt: skip
    four = {"type": "float", "num_bits": 4, "symmetric": True}
    case("ct-nvfp4", "nvfp4-pack-quantized",
         {**four, "strategy": "tensor_group", "group_size": 16,
          "scale_dtype": "torch.float8_e4m3fn"})  # fmt: skip
    case("ct-mxfp4", "mxfp4-pack-quantized",
         {**four, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"})  # fmt: skip


def compressed_scales(weight: Tensor, args: dict) -> dict[str, Tensor]:
    """weight_scale and its like, by plain rounding."""
    strategy, bits = args["strategy"], args["num_bits"]
    if args["type"] == "float" and bits == 8:
        if strategy == "block":
            high, wide = args["block_structure"]
            blocks = weight.reshape(len(weight) // high, high, -1, wide)
            return {"weight_scale": blocks.abs().amax((1, 3)) / 448}
        return {"weight_scale": weight.abs().amax(1, keepdim=True) / 448}
    group = args.get("group_size") or weight.shape[1]
    most = weight.reshape(len(weight), -1, group).abs().amax(-1)
    if args["type"] == "float":
        if strategy == "group":
            return {"weight_scale": torch.floor(torch.log2(most / 6)).exp2()}
        whole = (448 * 6) / weight.abs().max().reshape(1)
        scale = (most / 6 * whole).to(torch.float8_e4m3fn).float()
        return {"weight_scale": scale, "weight_global_scale": whole}
    _, scale, zero = rounded(weight, group, bits, args["symmetric"])
    if args["symmetric"]:
        return {"weight_scale": scale}
    return {"weight_scale": scale, "weight_zero_point": (zero - 2 ** (bits - 1)).to(torch.int8)}


# -- GPTQ and AWQ ----------------------------------------------------------------------------------


def make_gptq(source: Path) -> None:
    path = source / "gptqmodel" / "nn_modules" / "qlinear" / "__init__.py"
    names = {"dequantize_weight", "_dequantize_from_codes", "_torch_right_shift",
             "_torch_left_shift"}  # fmt: skip
    scope = taken_out(path, names, {"t": torch, "Tensor": Tensor})
    library = f"{source.name} dequantize_weight"

    def case(name: str, bits: int, group: int, symmetric: bool, form: str, actorder: bool) -> None:
        def encode(module: str, weight: Tensor) -> Coded:
            order = torch.randperm(weight.shape[1]) if actorder else torch.arange(weight.shape[1])
            listed = torch.empty_like(order)
            listed[order] = torch.arange(weight.shape[1]) // group
            codes, scale, zero = rounded(weight[:, order], group, bits, symmetric)
            codes = codes[:, torch.argsort(order)]
            scale = scale.half().float()
            parts = {"qweight": dense_words(codes, bits).T, "g_idx": listed.to(torch.int32),
                     "scales": scale.T.half()}  # fmt: skip
            stored = zero.T - (1 if form == "gptq" else 0)
            parts["qzeros"] = dense_words(stored, bits)
            layer = gptq_layer(scope, parts | {"qzeros": dense_words(zero.T, bits)}, bits, scale)
            return parts, scope["dequantize_weight"](layer).T.float().contiguous()

        config = {"quantization_config": {
            "quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric,
            "desc_act": actorder, "checkpoint_format": form}}  # fmt: skip
        write(name, library, config, encode)

    torch.manual_seed(3)
    case("gptq-4", 4, 64, True, "gptq", False)
    case("gptq-4-actorder", 4, 64, False, "gptq", True)
    case("gptq-v2-8", 8, 64, False, "gptq_v2", False)
    case("gptq-3", 3, 64, False, "gptq", False)
    case("gptq-2", 2, 32, False, "gptq_v2", False)


def gptq_layer(scope: dict, parts: dict, bits: int, scale: Tensor) -> types.SimpleNamespace:
    """What dequantize_weight asks of its layer; zero points as GPTQModel holds them, not less 1."""
    if bits == 3:
        shifts = torch.tensor([[0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0],
                               [0, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31],
                               [0, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 0]],
                              dtype=torch.int32).reshape(1, 3, 12)  # fmt: skip
    else:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)[None]
    layer = types.SimpleNamespace(
        planar=False, bits=bits, pack_factor=32 // bits, maxq=2**bits - 1,
        dequant_dtype=torch.int32, wf_unsqueeze_zero=shifts.unsqueeze(0),
        wf_unsqueeze_neg_one=shifts.unsqueeze(-1), scales=scale.T.contiguous(),
        qweight=parts["qweight"].contiguous(), qzeros=parts["qzeros"], g_idx=parts["g_idx"],
        in_features=len(parts["g_idx"]), _init_wf_unsqueeze_buffers=lambda: None,
    )  # fmt: skip
    layer._dequantize_from_codes = types.MethodType(scope["_dequantize_from_codes"], layer)
    return layer


def make_awq(source: Path) -> None:
    names = {"dequantize_gemm", "unpack_awq", "reverse_awq_order"}
    path = source / "awq" / "utils" / "packing_utils.py"
    scope = taken_out(path, names, {"torch": torch, "AWQ_REVERSE_ORDER": [0, 4, 1, 5, 2, 6, 3, 7]})

    def words(codes: Tensor) -> Tensor:
        """[n, rows] to [n, rows / 8] int32: value order[i] in nibble i."""
        grouped = codes.reshape(len(codes), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        packed = (grouped << (4 * torch.arange(8))).sum(-1)
        return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)

    def encode(module: str, weight: Tensor) -> Coded:
        codes, scale, zero = rounded(weight, 64, 4, False)
        scale = scale.half().float()
        parts = {"qweight": words(codes.T), "qzeros": words(zero.T), "scales": scale.T.half()}
        values = scope["dequantize_gemm"](
            parts["qweight"], parts["qzeros"], scale.T.contiguous(), 4, 64
        )
        return parts, values.T.float().contiguous()

    config = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64,
                                      "zero_point": True, "version": "gemm"}}  # fmt: skip
    write("awq-4", f"{source.name} dequantize_gemm", config, encode)


# -- bitsandbytes, MLX, ModelOpt -----------------------------------------------------------------


def make_bitsandbytes() -> None:
    import bitsandbytes.functional as bnb
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute as compute

    library = f"bitsandbytes {version('bitsandbytes')}"

    def four(kind: str, nested: bool, block: int):
        def encode(module: str, weight: Tensor) -> Coded:
            codes, state = bnb.quantize_4bit(
                weight, quant_type=kind, compress_statistics=nested, blocksize=block
            )
            parts = {f"weight.{key}": kept for key, kept in state.as_dict(packed=True).items()}
            if weight.shape[1] % block == 0:
                return {"weight": codes, **parts}, bnb.dequantize_4bit(codes, state).float()
            # Its CPU kernel is wrong where a block runs across rows; its plain definition is not.
            values = compute(codes.view(-1), state.absmax, state.code, block, weight.shape,
                             torch.float32)  # fmt: skip
            return {"weight": codes, **parts}, values

        return encode

    def said(kind: str, nested: bool):
        return {"quantization_config": {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": nested, "bnb_4bit_compute_dtype": "bfloat16"}}  # fmt: skip

    write("bnb-nf4", library, said("nf4", False), four("nf4", False, 64))
    write("bnb-nf4-nested", library, said("nf4", True), four("nf4", True, 64))
    write("bnb-fp4-ragged", library, said("fp4", False), four("fp4", False, 256))

    def eight(module: str, weight: Tensor) -> Coded:
        codes, scale, _ = bnb.int8_vectorwise_quant(weight.half())
        parts = {"weight": codes, "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}
        return parts, bnb.int8_vectorwise_dequant(codes, scale)

    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    write("bnb-int8", library, config, eight)


def make_mlx() -> None:
    import mlx.core as mx

    library = f"mlx {version('mlx')}"

    def torch_of(array) -> Tensor:
        return torch.from_numpy(np.array(array))

    def case(bits: int, group: int, mode: str = "affine") -> None:
        def encode(module: str, weight: Tensor) -> Coded:
            codes, scale, *bias = mx.quantize(
                mx.array(weight.numpy()), group_size=group, bits=bits, mode=mode
            )
            if mode == "affine":
                scale, bias = scale.astype(mx.float16), [each.astype(mx.float16) for each in bias]
                given = [each.astype(mx.float32) for each in (scale, *bias)]
            else:
                given = [scale]
            values = mx.dequantize(codes, *given, group_size=group, bits=bits, mode=mode)
            parts = {"weight": torch_of(codes), "scales": torch_of(scale)}
            if bias:
                parts["biases"] = torch_of(bias[0])
            return parts, torch_of(values.astype(mx.float32))

        keys = {"group_size": group, "bits": bits, **({} if mode == "affine" else {"mode": mode})}
        name = f"mlx-{bits}" if mode == "affine" else f"mlx-{mode}"
        write(name, library, {"quantization": keys, "quantization_config": keys}, encode)

    for bits in (2, 3, 4, 5, 6, 8):
        case(bits, 32 if bits == 2 else 64)
    case(4, 32, "mxfp4")


def make_modelopt(source: Path) -> None:
    path = source / "modelopt" / "torch" / "quantization" / "qtensor" / "nvfp4_tensor.py"
    scope = taken_out(path, {"dequantize"}, {"torch": torch})
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])

    def encode(module: str, weight: Tensor) -> Coded:
        grouped = weight.reshape(len(weight), -1, 16)
        whole = weight.abs().max() / (448 * 6)
        scale = (grouped.abs().amax(-1) / 6 / whole).to(torch.float8_e4m3fn)
        spread = (scale.float() * whole)[..., None]
        codes = ((grouped / spread)[..., None] - table).abs().argmin(-1).reshape(weight.shape)
        packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
        held = types.SimpleNamespace(
            metadata={"dtype": torch.float32, "shape": weight.shape}, _quantized_data=packed,
            get_e2m1_values=lambda device: table,
        )  # fmt: skip
        values = scope["dequantize"](
            held, dtype=torch.float32, scale=scale, double_scale=whole, block_sizes={-1: 16}
        )
        return (
            {"weight": packed, "weight_scale": scale, "weight_scale_2": whole,
             "input_scale": torch.tensor(0.01)},
            values,
        )  # fmt: skip

    write("modelopt-nvfp4", f"{source.name} NVFP4QTensor.dequantize", {}, encode)
    said = {"producer": {"name": "modelopt"}, "quantization": {
        "quant_algo": "NVFP4", "group_size": 16, "kv_cache_quant_algo": None,
        "exclude_modules": ["lm_head"]}}  # fmt: skip
    path = OUT / "modelopt-nvfp4" / "hf_quant_config.json"
    path.write_text(json.dumps(said, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("gptqmodel", "autoawq", "modelopt"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    with torch.no_grad():
        make_fp8()
        make_compressed()
        make_gptq(args.gptqmodel)
        make_awq(args.autoawq)
        make_bitsandbytes()
        make_mlx()
        make_modelopt(args.modelopt)


if __name__ == "__main__":
    main()

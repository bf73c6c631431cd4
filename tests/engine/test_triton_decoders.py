"""Triton's kernels give torch's bits, shown by its CPU interpreter, and fuse no product and sum."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aprtui.engine import kernels
from aprtui.engine.block_decoders import BLOCK_DECODERS
from aprtui.engine.dequantise import dequantise
from aprtui.formats.blocks import BLOCK_TYPES
from tests.engine.test_dequantise import RECORDED, TYPES

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

# Triton decides at its import whether it interprets: a process of its own.
_DECODE = """
import sys, warnings
import numpy as np, torch
from aprtui.engine.triton_decoders import DECODERS, decode
from aprtui.formats.blocks import BLOCK_TYPES
warnings.simplefilter("ignore")  # numpy's, of NaN and infinity
stored, decoded = np.load(sys.argv[1]), {}
for key in stored.files:
    kind = BLOCK_TYPES[key.split("/")[0]]
    if kind.name in DECODERS:
        blocks = torch.from_numpy(stored[key].reshape(-1, kind.bytes))
        out = torch.full((len(blocks), kind.values), 7.0)
        decode(kind.name, blocks, out)
        decoded[key] = out.numpy()
np.savez(sys.argv[2], **decoded)
"""

# Compiled as for a device, which needs none: the text of the program that it would run.
_COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from aprtui.engine.triton_decoders import DECODERS, _decode, launch_options
for type_name in DECODERS:
    constants = launch_options(type_name)
    options = {"enable_fp_fusion": constants.pop("enable_fp_fusion")}
    signature = {"blocks": "*u8", "out": "*fp32", "n": "i32"}
    signature |= dict.fromkeys(constants, "constexpr")
    places = {(_decode.arg_names.index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(fn=_decode, signature=signature, constexprs=places)
    print("TYPE", type_name)
    print(triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["ptx"])
"""


def run(script: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_triton
def test_every_kernel_gives_the_bits_of_torch_and_of_llama_cpp(tmp_path: Path) -> None:
    import numpy as np

    blocks = {
        key.removesuffix("_bytes"): RECORDED[key] for key in RECORDED.files if key.endswith("bytes")
    }
    random = np.random.default_rng(11)
    for name in BLOCK_DECODERS:
        # Not a whole number of tiles, and more than one.
        blocks[f"{name}/any"] = random.integers(0, 256, (131, BLOCK_TYPES[name].bytes), np.uint8)
    stored, decoded = tmp_path / "stored.npz", tmp_path / "decoded.npz"
    np.savez(stored, **blocks)
    run(_DECODE, str(stored), str(decoded), TRITON_INTERPRET="1")
    values = np.load(decoded)
    assert {key.split("/")[0] for key in values.files} == set(BLOCK_DECODERS)
    for key in values.files:
        name = key.split("/")[0]
        raw = torch.from_numpy(blocks[key].reshape(-1, BLOCK_TYPES[name].bytes))
        ours = torch.from_numpy(values[key])
        assert kernels.same_bits(ours, dequantise(name, raw)), key
        if name in TYPES and not key.endswith("/any"):
            recorded = torch.from_numpy(RECORDED[f"{key}_values"].reshape(ours.shape))
            assert kernels.same_bits(ours, recorded), key


@needs_triton
def test_compiled_kernels_round_products_and_sums_one_by_one(tmp_path: Path) -> None:
    programs = run(_COMPILE, TRITON_CACHE_DIR=str(tmp_path)).split("TYPE ")[1:]
    assert len(programs) == len(BLOCK_DECODERS)
    for program in programs:
        arithmetic = re.findall(r"\b(?:fma|mad|mul|add|sub)\.[a-z.]*f32", program)
        assert set(arithmetic) <= {"mul.rn.f32", "add.rn.f32", "sub.rn.f32"}, program.split()[0]
        assert "mul.rn.f32" in arithmetic


def test_the_cpu_never_asks_for_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: object) -> None:
        raise AssertionError("a kernel was asked for")

    monkeypatch.setattr("aprtui.engine.kernels.kernel_for", asked)
    blocks = torch.zeros((2, BLOCK_TYPES["Q4_K"].bytes), dtype=torch.uint8)
    assert dequantise("Q4_K", blocks).shape == (2, 256)
    assert kernels.decoder_name((torch.device("cpu"),)) == "torch"


def test_torch_decodes_where_a_kernel_cannot_or_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        DECODERS = ("Q4_0", "Q8_0")

        @staticmethod
        def decode(type_name: str, blocks: torch.Tensor, out: torch.Tensor) -> None:
            if type_name == "Q8_0":
                raise RuntimeError("Failed to find C compiler")
            out.copy_(dequantise(type_name, blocks) if Wrong.right else blocks[:, :1])

        right = False

        class triton:
            __version__ = "3.7"

    device = torch.device("cpu")
    monkeypatch.setitem(sys.modules, "aprtui.engine.triton_decoders", Wrong)
    monkeypatch.setattr(kernels, "_unused", {})
    monkeypatch.setattr(kernels, "_used", {})
    ask = kernels.kernel_for.__wrapped__
    assert ask("Q4_K", device, dequantise) is None
    assert kernels.decoder_name((device,)) == "torch"
    assert ask("Q4_0", device, dequantise) is None
    assert "Q4_0 kernel gives other bits" in kernels.decoder_name((device,))
    kernels._unused.clear()
    assert ask("Q8_0", device, dequantise) is None
    assert "Failed to find C compiler" in kernels.decoder_name((device,))
    Wrong.right = True
    kernels._unused.clear()
    kernel = ask("Q4_0", device, dequantise)
    assert kernel is not None
    assert kernels.decoder_name((device,)) == "triton 3.7"
    blocks = torch.arange(36, dtype=torch.uint8).view(2, 18)
    out = torch.empty(2, 32)
    kernel(blocks, out)
    assert kernels.same_bits(out, dequantise("Q4_0", blocks))


@needs_cuda
@pytest.mark.parametrize("name", sorted(BLOCK_DECODERS))
def test_a_cuda_device_decodes_to_the_bits_of_the_cpu(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    shape = (1003, BLOCK_TYPES[name].bytes)
    blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    there = blocks.to("cuda")
    assert kernels.same_bits(dequantise(name, there).cpu(), dequantise(name, blocks))

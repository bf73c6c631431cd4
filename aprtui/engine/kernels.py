"""Which decoder a CUDA device uses: Triton's kernel where it gives torch's bits, else torch's own.

triton is imported, and a kernel compiled, only when blocks of its type lie on a CUDA device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import lru_cache, partial

import torch

from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.text import clean

__all__ = ["decode_by_kernel", "decoder_name", "kernel_for", "same_bits"]

Kernel = Callable[[torch.Tensor, torch.Tensor], None]
"""Blocks [n, block_bytes] uint8 into [n, block_values] float32, both contiguous, n at least 1."""

Decoder = Callable[[str, torch.Tensor], torch.Tensor]

_PROBE_BLOCKS = 96
_used: dict[torch.device, str] = {}  # the triton whose kernels decode a device's blocks
_unused: dict[torch.device, str] = {}  # why blocks of some type are decoded by torch there


def decode_by_kernel(
    type_name: str, blocks: torch.Tensor, out: torch.Tensor, by_torch: Decoder
) -> bool:
    """Queue the decoding of ``blocks`` into ``out``; False, and nothing done, where torch has to.

    Shapes as ``Kernel`` says; ``by_torch`` is what the kernel must agree with.
    """
    kernel = kernel_for(type_name, blocks.device, by_torch) if blocks.is_cuda else None
    if kernel is None:
        return False
    kernel(blocks, out)
    return True


@lru_cache(maxsize=64)
def kernel_for(type_name: str, device: torch.device, by_torch: Decoder) -> Kernel | None:
    """Triton's kernel of a block type on a CUDA device; None where torch has to decode.

    It has to where triton is missing, has no such kernel, cannot compile here (it wants a C
    compiler and a recent device), or, on random blocks, gives other bits than ``by_torch``.
    """
    try:
        decoders = importlib.import_module("aprtui.engine.triton_decoders")
        if type_name not in decoders.DECODERS:
            return None
        kernel: Kernel = partial(decoders.decode, type_name)
        blocks, values = _probe(type_name, device)
        kernel(blocks, values)
        if same_bits(values, by_torch(type_name, blocks)):
            _used[device] = f"triton {decoders.triton.__version__}"
            return kernel
        why = f"its {type_name} kernel gives other bits on this device"
    except ImportError as error:
        why = f"{error.name or 'triton'} is not installed"
    except Exception as error:  # compilers and drivers raise what they like; torch decodes as well
        why = f"{type(error).__name__}: {clean(str(error), 200)}"
    _unused.setdefault(device, why)
    return None


def _probe(type_name: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Random blocks of a type, and room for their values."""
    kind = BLOCK_TYPES[type_name]
    generator = torch.Generator().manual_seed(1)
    shape = (_PROBE_BLOCKS, kind.bytes)
    blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    values = torch.zeros((_PROBE_BLOCKS, kind.values), dtype=torch.float32, device=device)
    return blocks.to(device), values


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two float32 tensors hold the same bits; every NaN is equal to every other."""
    same = a.view(torch.int32) == b.view(torch.int32)
    return bool((same | (a.isnan() & b.isnan())).all())


def decoder_name(devices: Iterable[torch.device]) -> str:
    """What has decoded blocks on these devices so far, for a manifest's engine."""
    for device in devices:
        if device in _unused:
            return f"torch ({_unused[device]})"
        if device in _used:
            return _used[device]
    return "torch"

"""The machine that the other steps ran on: card, driver, versions, and what of the wheels is there.

python -m tests.gpu.about
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

import torch

_NEEDED = ("gguf", "numpy", "PyYAML", "rich", "safetensors", "textual", "tokenizers", "torch")
_USED = ("triton", "transformers", "pytest", "jsonschema", "nvidia-ml-py", "vllm", "sglang")


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def main() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    print(f"Python {platform.python_version()}, {platform.platform()}")
    print(f"{os.cpu_count()} processors, {memory / 1e9:.0f} GB of memory")
    for package in (*_NEEDED, *_USED):
        print(f"  {package} {version(package)}")
    from aprtui.engine.cards import look
    from aprtui.engine.native import NATIVE_TYPES

    print(f"NVML: {look().told()}")
    print(f"decoders in C: {', '.join(sorted(NATIVE_TYPES)) or 'not built'}")
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 0
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        print(
            f"cuda:{index}: {found.name}, {found.total_memory / 1e9:.1f} GB, compute capability "
            f"{found.major}.{found.minor}, {found.multi_processor_count} multiprocessors, "
            f"CUDA {torch.version.cuda}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Rows of one tensor as raw float32 on stdout: the terminal's way to values that torch decodes.

python -m aprtui.engine.weight_rows MODEL TENSOR FIRST COUNT
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from aprtui.crash import told_of
from aprtui.engine.dequantise import decode_rows
from aprtui.model.open import read_model_file

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m aprtui.engine.weight_rows", description=__doc__
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("tensor")
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    options = parser.parse_args(arguments)
    try:
        entry = read_model_file(options.model).tensors[options.tensor]
        with torch.inference_mode():
            rows = decode_rows(entry, options.first, options.count, torch.device("cpu"))
        sys.stdout.buffer.write(rows.numpy().astype("<f4", copy=False).tobytes())
    except BrokenPipeError:  # nobody listens any more
        return 0
    except Exception as error:
        told = told_of(error, "a weight's rows")
        print(told.message, file=sys.stderr)
        return told.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

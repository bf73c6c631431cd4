"""Every model of the fixtures on a device against the CPU: stages within the bar, weights by bits.

    python -m tests.gpu.fidelity --device cuda:0

One line a model. The exit code is 1 where one lies beyond the bar, or any decoded weight differs in
a bit. A model that this version does not read is counted, not compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from aprtui.engine.device import deterministic, resolve_device
from aprtui.engine.forward import forward
from aprtui.engine.kernels import decoder_name, same_bits
from aprtui.engine.ops import Pass
from aprtui.engine.weights import WeightStream
from aprtui.errors import AprtuiError
from aprtui.model.open import Model, open_model
from tests.benchmarks.gpu import apart
from tests.engine.test_unchanged import Keeping, Stages
from tests.support import FIXTURES, SMALL

_BAR = 1e-5  # relative RMS of a stage, device against CPU (docs/numerics.md 1)
_CPU = torch.device("cpu")


def models() -> Iterator[Path]:
    """Every model file and folder of the fixtures, each once."""
    small = [SMALL / name for name in ("models", "quantised")]
    seen = set()
    for root in (*small, *(FIXTURES / name for name in ("models", "families", "apr"))):
        folders = (config.parent for config in root.rglob("config.json"))
        for path in sorted((*root.rglob("*.gguf"), *root.rglob("*.apr"), *folders)):
            name = path.name if path.name != "model.gguf" else str(path)
            if name not in seen:
                seen.add(name)
                yield path


def stages(model: Model, stream: WeightStream, tokens: tuple[int, ...]) -> Stages:
    tap = Keeping()
    with torch.inference_mode():
        forward(model.graph, Pass(stream, tokens), tap)
    return {key: value.cpu() for key, value in tap.stages.items()}


@torch.inference_mode()
def compare(path: Path, model: Model, device: torch.device) -> bool:
    """Whether a model's stages and weights on the device are the CPU's; prints one line."""
    here = WeightStream(model, _CPU, torch.float32)
    there = WeightStream(model, device, torch.float32)
    tokens = tuple((7 * place + 5) % model.graph.vocab_size for place in range(24))
    expected, found = stages(model, here, tokens), stages(model, there, tokens)
    errors = {key: apart(found[key], expected[key]) for key in expected}
    worst = max(errors, key=lambda key: errors[key])
    changed = 0
    for role in model.weights:
        ours = torch.cat([block.cpu().clone() for _, block in there.blocks(role)])
        theirs = torch.cat([block.clone() for _, block in here.blocks(role)])
        changed += not same_bits(ours, theirs)
    held = errors[worst] <= _BAR and not changed
    print(
        f"{model.architecture:12} {path.parent.name}/{path.name}: {len(errors)} stages, "
        f"worst {errors[worst]:.1e} ({worst}), {changed} of {len(model.weights)} matrices differ "
        f"in a bit: {'held' if held else 'NOT HELD'}"
    )
    return held


@deterministic()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--most", type=int, help="compare so many models and no more")
    options = parser.parse_args()
    device, name = resolve_device(options.device)
    print(f"on {device} ({name})")
    held, unread = [], 0
    for path in islice(models(), options.most):
        try:
            model = open_model(path)
        except AprtuiError:
            unread += 1
            continue
        try:
            held.append(compare(path, model, device))
        except RuntimeError as error:  # of one model; the others are compared all the same
            print(f"{path.parent.name}/{path.name}: {type(error).__name__}: {error}"[:500])
            held.append(False)
    print(f"{sum(held)} of {len(held)} models held; {unread} files are not read by this version")
    print(f"blocks decoded by {decoder_name((device,))}")
    return 0 if held and all(held) else 1


if __name__ == "__main__":
    sys.exit(main())

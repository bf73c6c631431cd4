"""How well does it find bugs: `aprtui bisect` beside rules used elsewhere, on the same captures.

    python -m tests.benchmarks.bug_finding [--details]

Prints the README's tables: all captures together, and a row a runtime. Every case has a reference
capture A, in float64 or, of other tools' dumps, our own float32 pass; the rules look at A and B as
they are, in order of computation, and name the first stage that fails. NaN fails no rule, as no
comparison with NaN is true.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui import api
from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Bisection
from aprtui.formats.tracedir import TraceDir, open_trace
from aprtui.graph.vocabulary import order_of
from aprtui.model.open import open_model
from tests.compare.test_dumps import FOLDER, Q4_K_M, mlx_4bit, onnxruntime_int4
from tests.support import FIXTURES

__all__ = ["main"]

Array = npt.NDArray[np.float64]

# The mistake that each planted or real fault is.
MISTAKES = {
    "rope-theta-qwen2": "rope_theta",
    "kbias-dropped-L2": "bias_missing",
    "oproj-transposed-L1-ggml": "transposed",
    "gqa-tile-L0": "kv_tiling",
    "gelu-L3-ggml": "activation",
    "bad-block-gate-L3-ggml": "bad_block",
    "scale-1.02-scores-L2-bf16": "score_scale",
    "stale-v-L1": "stale_row",
    "residual-lost-pos4-L2": "position",
    "nan-softmax-L1": "nonfinite",
    "no-renorm-L1-moe": "router_not_renormalised",
    "lm-head-shift-ggml": "rows_shifted",
    "pycode-f16": "zeros",
}


@dataclass(frozen=True)
class Case:
    """One capture with its reference, and the stages that compute wrongly in it."""

    name: str
    model: Path
    a: Path
    b: Path
    tokens: tuple[int, ...]
    culprits: tuple[str, ...]
    runtime: str


@dataclass
class Runtime:
    """What was found of one runtime's captures."""

    captures: int = 0
    faulty: int = 0
    explained: int = 0
    within: int = 0
    unmeasured: int = 0
    exact: int = 0
    alarms: tuple[int, ...] = ()

    def add(self, case: Case, found: Bisection, said: list[list[str]]) -> None:
        """``said``: the stages that each of all rules names, ours first."""
        self.captures += 1
        self.faulty += bool(case.culprits)
        self.explained += len(found.explained)
        self.within += len(found.within)
        self.unmeasured += len(found.unmeasured)
        self.exact += tuple(said[0]) == case.culprits
        wrong = [any(name not in case.culprits for name in names) for names in said]
        self.alarms = tuple(map(sum, zip(self.alarms or [0] * len(wrong), wrong, strict=True)))


@dataclass
class Score:
    """How one rule did: ``exact`` cases name all culprits and no others, ``first`` points at the
    first of them, ``alarms`` name a stage that is innocent."""

    exact: int = 0
    first: int = 0
    missed: int = 0
    alarms: int = 0
    alarms_honest: int = 0
    named: int = 0

    def add(self, case: Case, found: list[str]) -> str:
        wrong = [name for name in found if name not in case.culprits]
        self.exact += tuple(found) == case.culprits
        self.first += bool(case.culprits) and found[:1] == list(case.culprits[:1])
        self.missed += bool(case.culprits) and not found
        self.alarms += bool(wrong)
        self.alarms_honest += bool(wrong) and not case.culprits
        return "exact" if tuple(found) == case.culprits else ", ".join(found[:2]) or "nothing"


def _cases() -> Iterator[Case]:
    captures = FIXTURES / "captures"
    for case in json.loads((FIXTURES / "faults/cases.json").read_text()):
        model = FIXTURES / "models" / case["model"]
        yield Case(
            case["capture"], model, captures / model.stem / "float64",
            FIXTURES / "faults" / case["capture"], tuple(case["token_ids"]),
            tuple(case["culprits"]), "planted",
        )  # fmt: skip
    for path in sorted(captures.glob("*/llamacpp*")):
        tokens = json.loads((path.parent / "capture.json").read_text())["token_ids"]
        model = FIXTURES / "models" / f"{path.parent.name}.gguf"
        name = f"{path.parent.name} {path.name}"
        yield Case(name, model, path.parent / "float64", path, tuple(tokens), (), "llama.cpp")
    apr = FIXTURES / "apr"
    real: dict[str, Any] = {
        Path(case["trace"]).name: case for case in json.loads((apr / "cases.json").read_text())
    }
    for name, a in (
        ("pycode-f16", apr / "float64/pycode-f16"),
        ("qwen2-import", apr / "traces/qwen2-import-fp32"),
    ):
        case = real[name]
        culprits = tuple("/".join(filter(None, each)) for each in case["culprits"])
        tokens = tuple(case["token_ids"])
        yield Case(name, apr / case["model"], a, apr / case["trace"], tokens, culprits, "apr")


_DUMPS = {
    "torch": ("hf-debugger", "hf-hooks/bf16-sdpa.npz", "hf-hooks/f16-sdpa.npz",
              "hf-hooks/f32-sdpa.npz", "msprobe/step0/proc2150"),
    "vLLM": ("vllm/bf16",),
    "SGLang": ("sglang-tensor-dump",),
    "MLX": ("mlx/f32.npz", "mlx/f16.npz", "mlx/q4.npz"),
    "ONNX Runtime": ("ort/fp32.npz", "ort/int4.npz"),
    "OpenVINO": ("openvino/pycode-q4km-f32.npz", "openvino/pycode-q4km-f32-dq.npz",
                 "openvino/pycode-q4km-bf16.npz"),
}  # fmt: skip


def _dumps(folder: Path) -> Iterator[Case]:
    """Other tools' dumps, imported; the models that the runtimes made are made again."""
    made = {"mlx/q4.npz": mlx_4bit, "ort/int4.npz": onnxruntime_int4}
    for runtime, names in _DUMPS.items():
        for name in names:
            own = folder / name.replace("/", "-")
            model = made[name](own.with_suffix(".model")) if name in made else FOLDER
            model = Q4_K_M if runtime == "OpenVINO" else model
            api.import_trace(FIXTURES / "dumps" / name, model=model, output=own)
            trace = open_trace(own)
            tokens = trace.token_ids or ()
            a = own.with_suffix(".reference")
            api.trace(model, tokens=tokens, directory=a, logits="all")
            culprits = _other_weights(model, trace) if runtime == "OpenVINO" else ()
            yield Case(name, model, a, own, tokens, culprits, runtime)


def _other_weights(path: Path, trace: TraceDir) -> tuple[str, ...]:
    """The products with Q4_K matrices whose inputs are there: OpenVINO's are other weights."""
    model = open_model(path)
    return tuple(
        str(node.key)
        for node in model.graph
        if node.key in trace.records
        and all(key in trace.records for key in node.inputs)
        and any(model.weights[role].entry.type == "Q4_K" for role in node.op.matrices)
    )


def _cosine_below(limit: float) -> Callable[[Array, Array], bool]:
    def fails(x: Array, y: Array) -> bool:
        return bool(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) < limit)

    return fails


def _relative_difference(x: Array, y: Array) -> bool:
    return bool(1 - 2 * (x @ y) / (x @ x + y @ y) > 1e-3)


RULES: dict[str, Callable[[Array, Array], bool]] = {
    "first stage with cosine below 0.98": _cosine_below(0.98),
    "first stage with cosine below 0.999": _cosine_below(0.999),
    "first stage with 1 - 2xy/(xx+yy) above 1e-3": _relative_difference,
}


def _by_rule(rule: Callable[[Array, Array], bool], a: TraceDir, b: TraceDir) -> list[str]:
    for key in sorted(a.records.keys() & b.records.keys(), key=order_of):
        x, y = (trace.records[key].values().astype(np.float64) for trace in (a, b))
        if x.size == y.size and rule(x, y):
            return [str(key)]
    return []


def _print_runtimes(runtimes: dict[str, Runtime]) -> None:
    rules = ("cosine 0.98", "cosine 0.999", "1 - 2xy/(xx+yy)")
    heads = (
        "captures of", "captures, with a fault", "stages explained", "within rounding",
        "unmeasured", "exactly the culprits", *(f"wrongly blamed by {rule}" for rule in rules),
    )  # fmt: skip
    print(f"\n| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    for name, each in runtimes.items():
        alarms = " | ".join(f"{n} of {each.captures}" for n in each.alarms[1:])
        print(
            f"| {name} | {each.captures}, {each.faulty} | {each.explained:,} | {each.within} | "
            f"{each.unmeasured} | {each.exact} of {each.captures} | {alarms} |"
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--details", action="store_true", help="what each said of each case")
    options = parser.parse_args(arguments)
    if not FIXTURES.is_dir():
        print(f"the fixtures are not at {FIXTURES}", file=sys.stderr)
        return 2
    ours = "aprtui bisect"
    scores = {name: Score() for name in (ours, *RULES)}
    details: list[tuple[str, ...]] = []
    runtimes: dict[str, Runtime] = {}
    with tempfile.TemporaryDirectory() as folder:
        cases = [*_cases(), *_dumps(Path(folder))]
        for case in cases:
            a, b = open_trace(case.a), open_trace(case.b)
            with np.errstate(all="ignore"):
                found = bisect(open_model(case.model), b, a, tokens=case.tokens)
                named = [[str(c.key) for c in found.culprits]]
                named += [_by_rule(rule, a, b) for rule in RULES.values()]
            right = MISTAKES.get(case.name)
            ids = {c.mistake.id if c.mistake else None for c in found.culprits}
            scores[ours].named += right is not None and ids == {right}
            said = [
                score.add(case, names) for score, names in zip(scores.values(), named, strict=True)
            ]
            runtimes.setdefault(case.runtime, Runtime()).add(case, found, named)
            details.append((case.name, *said))
    faulty = sum(bool(case.culprits) for case in cases)
    honest = len(cases) - faulty
    print(f"{len(cases)} captures: {faulty} with a fault, {honest} honest\n")
    columns = (
        "exactly the culprits", "points at the first culprit", "silent on a fault",
        "blames an innocent stage", "of these, honest captures", "mistakes named rightly",
    )  # fmt: skip
    print(f"| | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name, score in scores.items():
        rightly = f"{score.named} of {len(MISTAKES)}" if name == ours else "-"
        print(
            f"| {name} | {score.exact} of {len(cases)} | {score.first} of {faulty} | "
            f"{score.missed} | {score.alarms} | {score.alarms_honest} of {honest} | {rightly} |"
        )
    _print_runtimes(runtimes)
    if options.details:
        print()
        for line in details:
            print("  ".join(f"{cell:<28}" for cell in line).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Every dump of the fixtures imported and judged by `bisect`: the table of docs/captures.md.

    python -m tests.benchmarks.dumps_table [--write] [NAME ...]

Prints one row a dump as it is done; ``--write`` puts the whole table into docs/captures.md. Seconds
are the processor's for the import and for the bisection, one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aprtui import api
from aprtui.compare.bisection import Bisection
from aprtui.model.open import Model, open_model
from aprtui.text import number
from tests.support import FIXTURES

__all__ = ["main"]

DOCS = Path(__file__).resolve().parents[2] / "docs/captures.md"
MARKS = "<!-- dumps: python -m tests.benchmarks.dumps_table --write -->", "<!-- /dumps -->"
HEAD = ("dump", "map", "stages", "passes, ranks", "explained by", "culprits", "seconds")
DUMPS = (
    "hf-debugger", "hf-hooks/bf16-sdpa.npz", "hf-hooks/f16-sdpa.npz", "hf-hooks/f32-sdpa.npz",
    "mlx/f32.npz", "mlx/f16.npz", "mlx/q4.npz", "msprobe", "openvino/pycode-q4km-f32.npz",
    "openvino/pycode-q4km-f32-dq.npz", "openvino/pycode-q4km-bf16.npz", "ort/fp32.npz",
    "ort/int4.npz", "sglang-tensor-dump", "torchlens", "vllm/bf16",
)  # fmt: skip
_SHORT = 3  # explanations that a row names


@dataclass(frozen=True)
class Case:
    """One dump, or one sequence of it."""

    name: str
    source: Path
    model: str
    sequence: int | None = None


def cases() -> Iterator[Case]:
    """The real dumps, then the serving ones, each sequence of a batch by itself."""
    for name in DUMPS:
        model = "pycode-5m-q4_k_m.gguf" if "q4km" in name else "pycode-5m"
        yield Case(name, FIXTURES / "dumps" / name, model)
    for folder in sorted((FIXTURES / "serving").iterdir()):
        if not (folder / "right.json").is_file():
            continue
        right = json.loads((folder / "right.json").read_text())
        several = len(right["sequences"]) > 1
        for name, said in right["sequences"].items():
            shown = f"{folder.name}, {name}" if several else folder.name
            place = folder / right.get("file", "")
            yield Case(shown, place, "pycode-5m", said["index"] if several else None)


def row(case: Case, model: Model, folder: Path) -> tuple[str, ...]:
    """One dump's row."""
    start = time.process_time()
    done = api.import_trace(case.source, model=model, output=folder, sequence=case.sequence)
    imported = time.process_time()
    found = api.bisect(folder, model=model)
    seconds = f"{imported - start:.1f} + {time.process_time() - imported:.1f}"
    made = f"{done.passes}, {done.ranks}"
    stages = f"{done.stages} of {done.of}"
    return case.name, done.map, stages, made, explained(found), culprits(found), seconds


def explained(found: Bisection) -> str:
    words = [f"{by} ({count})" for by, count in found.explanations.most_common(_SHORT)]
    more = len(found.explanations) - _SHORT
    return "; ".join(words) + (f"; {more} more" if more > 0 else "")


def culprits(found: Bisection) -> str:
    if not found.culprits:
        return "none"
    stages = Counter(each.key.stage for each in found.culprits)
    largest = max(each.local_rel_l2 or 0.0 for each in found.culprits)
    listed = ", ".join(f"{stage} {count}" for stage, count in stages.most_common())
    where = {each.where for each in found.culprits if each.where}
    rows = f", {where.pop()}" if len(where) == 1 else ""
    return f"{len(found.culprits)}: {listed}; up to {number(largest, 2)}{rows}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="dumps whose name has this in it")
    parser.add_argument("--write", action="store_true", help="put the table into docs/captures.md")
    asked = parser.parse_args(arguments)
    chosen = [c for c in cases() if not asked.names or any(n in c.name for n in asked.names)]
    models = {name: open_model(FIXTURES / "models" / name) for name in {c.model for c in chosen}}
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory(prefix="dumps-") as folder:
        for number_, case in enumerate(chosen):
            made = row(case, models[case.model], Path(folder) / str(number_))
            lines.append("| " + " | ".join(made) + " |")
            print(lines[-1], flush=True)
    if asked.write:
        text = DOCS.read_text()
        before, _, rest = text.partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        DOCS.write_text(f"{before}{MARKS[0]}\n" + "\n".join(lines) + f"\n{MARKS[1]}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

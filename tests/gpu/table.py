"""One table of what ``run.sh`` left in a folder; the exit code is 1 where a step did not end well.

python -m tests.gpu.table DIR
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TIMES = ("speed", "tokens1", "long", "bfloat16", "float16", "fp8")
_TOLD = ("about", "card", "fidelity", "plan", "process", "cards", "profile", "hooks", "sweep")
_ENDS = {0: "held", 124: "ran out of time", 137: "ran out of time"}


def timed(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of one benchmark: medians, and aims where there are any."""
    for row in rows:
        low, high = 1000 * min(row["seconds"]), 1000 * max(row["seconds"])
        line = f"| {row['row']} | {1000 * row['median_s']:.1f} ms | {low:.1f} - {high:.1f} "
        versus = f"{row['ratio']:.2f} x {row['floor']}" if "floor" in row else ""
        if row.get("without_writer_s"):
            versus = f"beyond the writer {versus}"
        if "aim" in row:
            versus += f" (aim {row['aim']}: {'held' if row['held'] else 'NOT HELD'})"
        yield f"{line}| {row['peak_bytes'] / 1e9:.2f} GB | {versus} |"


def main(folder: Path) -> int:
    steps = [line.split("\t") for line in (folder / "steps.tsv").read_text().splitlines()]
    for name in _TOLD:
        log = folder / f"{name}.log"
        if log.is_file():
            print(f"\n== {name}\n{log.read_text(errors='replace').rstrip()}")
    for name in _TIMES:
        found = folder / f"{name}.json"
        if found.is_file():
            head = (folder / f"{name}.log").read_text().partition("\n")[0]
            print(f"\n== {name}: {head}\n| | median | min - max | on the device | compared with |")
            print("|---|---|---|---|---|")
            print("\n".join(timed(json.loads(found.read_text()))))
    print("\n== steps")
    for name, code, seconds in steps:
        last = (folder / f"{name}.log").read_text(errors="replace").rstrip().splitlines()[-1:]
        end = _ENDS.get(int(code), f"ended with {code}")
        print(f"{name:10} {seconds:>6} s  {end}: {' '.join(last)[:100]}")
    return int(any(code != "0" for _, code, _ in steps))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

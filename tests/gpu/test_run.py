"""The script for a real GPU runs to its end on the CPU, every step of it, and says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import table

SCRIPT = Path(__file__).with_name("run.sh")
# all but the device's own tests, and times of other dtypes and lengths by the same program
STEPS = ("about", "fidelity", "speed", "plan", "process", "hooks", "profile", "sweep")


@pytest.mark.filterwarnings("ignore")
def test_every_step_holds_on_the_cpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(SCRIPT), "--out", str(tmp_path / "out"), "--device", "cpu", "--tiny",
         "--only", ",".join(STEPS)],
        env={**os.environ, "PYTHON": sys.executable, "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ends = [line.split() for line in done.stdout.partition("== steps")[2].strip().splitlines()]
    assert [(name, end) for name, _, _, end, *_ in ends] == [(name, "held:") for name in STEPS]
    assert "| again, all traced |" in done.stdout
    assert "1 of 1 models held" in done.stdout
    assert not [path for path in tmp_path.iterdir() if path.name != "out"], "it cleans up"


def test_a_step_that_fails_or_hangs_is_said_and_the_others_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "steps.tsv").write_text("about\t0\t1.0\nhooks\t1\t2.0\nspeed\t124\t90.0\n")
    (tmp_path / "about.log").write_text("torch 2.11\n")
    (tmp_path / "hooks.log").write_text("Traceback\nImportError: no transformers\n")
    (tmp_path / "speed.log").write_text("")
    assert table.main(tmp_path) == 1
    told = capsys.readouterr().out
    assert "hooks         2.0 s  ended with 1: ImportError: no transformers" in told
    assert "speed        90.0 s  ran out of time:" in told
    assert "about         1.0 s  held: torch 2.11" in told

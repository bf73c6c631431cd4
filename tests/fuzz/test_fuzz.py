"""A bounded run of the fuzzing: the first cases of every target, and all that failed once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import CORPUS, EXPECTED, TARGETS, run_case

CASES = 40  # of each target, by hypothesis: the same ones every time


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    @settings(
        max_examples=CASES,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(number=st.integers(0, 10**9))
    def damaged(number: int) -> None:
        run_case(name, number, tmp_path)

    damaged()
    assert "Traceback" not in capfd.readouterr().err


KEPT = [path for path in sorted(CORPUS.glob("*/*")) if path.parent.name in TARGETS]


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_failed_once_is_read_or_refused(kept: Path, tmp_path: Path) -> None:
    target = TARGETS[kept.parent.name]
    target.prepare(tmp_path)
    (tmp_path / target.file).write_bytes(kept.read_bytes())
    try:
        target.read(tmp_path / target.file, 0)
    except EXPECTED as error:
        assert "\n" not in str(error)

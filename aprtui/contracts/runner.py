"""Running one falsification test: its command without a shell, and what that left behind."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from aprtui.contracts.evidence import Evidence, digest
from aprtui.contracts.model import FalsificationTest
from aprtui.contracts.rules import named_files
from aprtui.text import clean

__all__ = ["run_test"]

_PACKAGES = ("aprtui", "numpy", "torch", "gguf", "PyYAML", "pytest")
_TAIL_CHARACTERS = 2000
_LISTED_FILES = 20


def run_test(test: FalsificationTest, contract: Path, root: Path, timeout_s: float) -> Evidence:
    """Run ``test`` in ``root`` and return the evidence; a test that fails is evidence too.

    The command's temporary folder is a fresh one, so that what it writes there can be digested;
    of pytest the counts of passed and skipped tests are kept, since it exits 0 when all skip.
    """
    try:
        words = shlex.split(test.test or "")
    except ValueError:
        words = []
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    clock = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="aprtui-contract-") as scratch:
        written, counts = Path(scratch) / "written", Path(scratch) / "counts.xml"
        log = Path(scratch) / "output.txt"
        written.mkdir()
        code = _execute(words, root, _environment(written, counts), log, timeout_s)
        elapsed_s = time.monotonic() - clock
        outcomes = _outcomes(counts)
        produced = _written(written)
        tail = _tail(log, {scratch: "$TMPDIR", str(root): "."})
    return Evidence(
        id=test.id,
        contract=contract.name,
        contract_digest=digest(contract) or "",
        command=test.test or "",
        kinds=test.evidence or ("unit",),
        exit_code=code,
        started=started,
        elapsed_s=round(elapsed_s, 3),
        outcomes=outcomes,
        inputs={name: known for name in named_files(words) if (known := digest(root / name))},
        model=_source(test.model, root),
        against=_source(test.against, root),
        written=produced,
        versions=_versions(),
        device=_device(),
        output_tail=tail,
    )


def _execute(
    words: list[str], root: Path, environment: dict[str, str], log: Path, timeout_s: float
) -> int | None:
    """The exit code; None where the program could not be started or outlived ``timeout_s``."""
    if not words:
        return None
    command = [sys.executable if words[0] == "python" else words[0], *words[1:]]
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            output.write(clean(str(error), 500).encode())
            return None
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            output.write(f"\nstopped after {timeout_s:g} s\n".encode())
            return None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # what it started, too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environment(written: Path, counts: Path) -> dict[str, str]:
    options = f"{os.environ.get('PYTEST_ADDOPTS', '')} --junit-xml={shlex.quote(str(counts))}"
    return {**os.environ, "TMPDIR": str(written), "PYTEST_ADDOPTS": options.strip()}


def _outcomes(counts: Path) -> dict[str, int] | None:
    """How many tests passed, failed, broke and were skipped; None where pytest did not run."""
    if not counts.is_file():
        return None
    try:
        suites = list(ElementTree.parse(counts).getroot().iter("testsuite"))
        total, failed, errors, skipped = (
            sum(int(suite.get(name, "0")) for suite in suites)
            for name in ("tests", "failures", "errors", "skipped")
        )
    except (ElementTree.ParseError, ValueError):
        return None
    passed = total - failed - errors - skipped
    return {"passed": passed, "failed": failed, "errors": errors, "skipped": skipped}


def _written(folder: Path) -> dict[str, Any]:
    """How much the run wrote, one digest over all of it, and the largest files by name."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    largest = sorted(files, key=lambda path: (-path.stat().st_size, path))[:_LISTED_FILES]
    return {
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "digest": digest(folder),
        "largest": [
            {
                "path": path.relative_to(folder).as_posix(),
                "bytes": path.stat().st_size,
                "digest": digest(path),
            }
            for path in largest
        ],
    }


def _source(name: str | None, root: Path) -> dict[str, Any] | None:
    """A file or folder that the test says it used, with its digest; None where it is not there."""
    known = digest(root / name) if name else None
    return {"path": name, "digest": known} if known else None


def _tail(log: Path, names: dict[str, str]) -> str:
    """The end of the output, clean, without this machine's folders."""
    if not log.is_file():
        return ""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 4 * _TAIL_CHARACTERS))
        text = stream.read().decode("utf-8", "replace")
    for path, name in names.items():
        text = text.replace(path, name)
    lines = text[-_TAIL_CHARACTERS:].splitlines()
    return "\n".join(clean(line, 300) for line in lines)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _device() -> str:
    """The processor and any NVIDIA device, as Linux names them."""
    names = [platform.processor() or platform.machine()]
    described = [
        (Path("/proc/cpuinfo"), "model name"),
        *((path, "Model") for path in Path("/proc/driver/nvidia/gpus").glob("*/information")),
    ]
    for path, key in described:
        with contextlib.suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()
            found = (line.partition(":")[2].strip() for line in lines if line.startswith(key))
            names += [name for name in [next(found, "")] if name]
    return clean(", ".join(names))

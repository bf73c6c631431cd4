"""Evidence: what one run of one falsification test showed, kept as JSON beside the contracts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from aprtui.errors import BadFileError, UsageError
from aprtui.formats.atomic import whole_file
from aprtui.formats.strict_json import read_object
from aprtui.text import clean

__all__ = ["SCHEMA", "Evidence", "digest", "evidence_path", "load_evidence", "save_evidence"]

SCHEMA = "aprtui-evidence-v1"
_SAFE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,120}")
_MAX_BYTES = 1 << 20
_BLOCK, _READ_WHOLE = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Evidence:
    """One run. Digests are ``sha256:<hex>``; paths are relative to the project.

    ``outcomes`` counts passed, failed, error and skipped tests where the command was pytest's.
    ``inputs`` are the test files that the command names; ``written`` says what the run wrote.
    """

    id: str
    contract: str
    contract_digest: str
    command: str
    kinds: tuple[str, ...]
    exit_code: int | None  # None: it ran out of time or could not be started
    started: str
    elapsed_s: float
    outcomes: dict[str, int] | None
    inputs: dict[str, str]
    model: dict[str, Any] | None
    against: dict[str, Any] | None
    written: dict[str, Any]
    versions: dict[str, str]
    device: str
    output_tail: str = ""
    schema: str = field(default=SCHEMA)

    @property
    def passed(self) -> bool:
        """Exit code 0 and, of pytest, at least one test that passed and none left out."""
        if self.exit_code != 0:
            return False
        counts = self.outcomes
        return counts is None or (
            counts["passed"] > 0 and not counts["failed"] + counts["errors"] + counts["skipped"]
        )


def digest(path: Path) -> str | None:
    """``sha256:<hex>`` of a file, or of a folder's sorted paths and digests; None where neither.

    Of what is beyond a gigabyte the holes are passed over: a test of bounds makes a terabyte of
    them.
    """
    total = hashlib.sha256()
    if path.is_dir():
        for file in sorted(one for one in path.rglob("*") if one.is_file()):
            total.update(
                f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode(
                    "utf-8", "surrogateescape"
                )
            )
    elif path.is_file():
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size <= _READ_WHOLE:
                while block := stream.read(_BLOCK):
                    total.update(block)
            else:
                _update_without_holes(total, stream)
    else:
        return None
    return f"sha256:{total.hexdigest()}"


def _update_without_holes(total: hashlib._Hash, stream: BinaryIO) -> None:
    """What a file holds, and where; the same as of all its bytes where it has no hole."""
    at, size = 0, os.fstat(stream.fileno()).st_size
    while at < size:
        try:
            start = os.lseek(stream.fileno(), at, os.SEEK_DATA)
        except OSError:  # nothing but a hole to its end
            start = size
        if start > at:
            total.update(f"a hole from {at} to {start}".encode())
        at = start if start == size else os.lseek(stream.fileno(), start, os.SEEK_HOLE)
        stream.seek(start)
        for place in range(start, at, _BLOCK):
            total.update(stream.read(min(_BLOCK, at - place)))


def evidence_path(contract: Path, test_id: str) -> Path:
    """Where the evidence for ``test_id`` lies. UsageError for an id that is no file's name."""
    if not _SAFE_ID.fullmatch(test_id):
        raise UsageError(
            f"{clean(str(contract))}: the test id {clean(test_id, 60)!r} cannot name a file",
            hint="use letters, digits, '-', '_' and '.'",
        )
    return contract.parent / "evidence" / contract.stem / f"{test_id}.json"


def save_evidence(contract: Path, evidence: Evidence) -> Path:
    """Write the evidence in place of the one before; its path."""
    path = evidence_path(contract, evidence.id)
    text = json.dumps(dataclasses.asdict(evidence), indent=1, sort_keys=True, allow_nan=False)
    with whole_file(path, parents=True) as file:
        file.write(f"{text}\n".encode())
    return path


def load_evidence(contract: Path, test_id: str) -> Evidence | None:
    """The last evidence; None where there is none. BadFileError where it is damaged."""
    path = evidence_path(contract, test_id)
    if not path.is_file():
        return None
    try:
        return _from_json(read_object(path, "the evidence", _MAX_BYTES))
    except (ValueError, KeyError, TypeError, BadFileError) as error:
        raise BadFileError(path, "is not evidence", hint="aprtui contract run again") from error


def _from_json(fields: dict[str, Any]) -> Evidence:
    """An Evidence from JSON. ValueError, KeyError or TypeError where a field is not as declared."""
    if fields["schema"] != SCHEMA:
        raise ValueError(SCHEMA)
    texts = ("id", "contract", "contract_digest", "command", "started", "device")
    counts, code = fields["outcomes"], fields["exit_code"]
    names = ("passed", "failed", "errors", "skipped")
    sound = (
        all(isinstance(fields[name], str) for name in texts)
        and isinstance(fields["kinds"], list)
        and isinstance(fields["inputs"], dict)
        and (code is None or type(code) is int)
        and (counts is None or all(type(counts[name]) is int for name in names))
        and all(fields[name] is None or fields[name]["digest"] for name in ("model", "against"))
    )
    if not sound:
        raise ValueError("a field has another type")
    return Evidence(**{**fields, "kinds": tuple(fields["kinds"])})

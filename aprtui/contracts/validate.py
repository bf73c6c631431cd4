"""Validating contract files and folders: which files are contracts, and what is wrong with each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aprtui.contracts.document import MAX_BYTES, NotReadable
from aprtui.contracts.levels import contradictions
from aprtui.contracts.model import Contract, Finding
from aprtui.contracts.parse import has_metadata, parse_contract
from aprtui.contracts.rules import check
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.files import first_bytes
from aprtui.text import clean

__all__ = ["Verdict", "contract_files", "load_contract", "project_of", "validate"]

NOT_A_CONTRACT = "no metadata: a binding registry or a manifest, not a contract"
_PROJECT_MARKS = ("pyproject.toml", "Cargo.toml", ".git")


@dataclass(frozen=True)
class Verdict:
    """What validating one file said. ``note`` is set where the file is not meant as a contract."""

    path: Path
    findings: tuple[Finding, ...] = ()
    note: str = ""

    @property
    def errors(self) -> int:
        return sum(finding.severity == "ERROR" for finding in self.findings)

    @property
    def warnings(self) -> int:
        return len(self.findings) - self.errors


def validate(paths: Iterable[Path]) -> Iterator[Verdict]:
    """A verdict on every file named, and on every ``.yaml`` file below every folder named.

    A file met inside a folder that has no ``metadata`` is noted, not refused; one that was named
    is refused, as the public validator refuses it. Raises UsageError for a path that is not there.
    """
    for path in paths:
        if path.is_dir():
            for file in contract_files(path):
                yield _in_folder(file)
        elif path.is_file():
            yield _verdict(path, _read(path))
        else:
            raise UsageError(f"{clean(str(path))}: no such file or folder")


def contract_files(folder: Path) -> list[Path]:
    """Every ``.yaml`` file below ``folder``, in order of path."""
    return sorted(path for path in folder.rglob("*.yaml") if path.is_file())


def load_contract(path: Path) -> Contract | None:
    """The contract in ``path``; None where the file has no ``metadata`` and so is not one.

    Raises BadFileError where it is meant as a contract and cannot be read as one.
    """
    body = _read(path)
    try:
        return parse_contract(body) if has_metadata(body) else None
    except NotReadable as error:
        raise BadFileError(path, str(error), hint="aprtui contract validate says more") from error


def project_of(path: Path) -> Path | None:
    """The nearest folder above ``path`` that is a project's root, where its tests run."""
    for folder in path.resolve().parents:
        if any((folder / mark).exists() for mark in _PROJECT_MARKS):
            return folder
    return None


def _in_folder(path: Path) -> Verdict:
    body = _read(path)
    try:
        if not has_metadata(body):
            return Verdict(path, note=NOT_A_CONTRACT)
    except NotReadable:
        pass  # reported as PARSE below
    return _verdict(path, body)


def _verdict(path: Path, body: bytes) -> Verdict:
    try:
        contract = parse_contract(body)
    except NotReadable as error:
        return Verdict(path, (Finding("ERROR", "PARSE", "", str(error)),))
    findings = [*check(contract, project_of(path)), *contradictions(contract, path)]
    return Verdict(path, tuple(sorted(findings, key=lambda one: (one.severity, one.rule))))


def _read(path: Path) -> bytes:
    return first_bytes(path, MAX_BYTES + 1)

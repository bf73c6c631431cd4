"""Validate the project's contracts, run the tests they name, and say how far each is shown.

`validate` reads contracts as the public `pv` tool does and says what is wrong with each;
exit 0 valid (warnings allowed), 1 errors, 2 nothing to validate.
`run` executes every falsification test (a command line, without a shell, in the folder above
the contracts) and keeps the evidence under contracts/evidence/; exit 1 where one fails.
`status` is the table of promises, levels and last evidence."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aprtui.contracts.evidence import save_evidence
from aprtui.contracts.levels import Standing, standings
from aprtui.contracts.model import Contract, Level
from aprtui.contracts.runner import run_test
from aprtui.contracts.validate import Verdict, contract_files, load_contract, validate
from aprtui.errors import UsageError
from aprtui.text import clean, duration

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    one = actions.add_parser("validate", help="say what is wrong with contracts")
    one.add_argument("paths", nargs="+", type=Path, metavar="FILE|DIR")
    one.add_argument("--json", action="store_true", help="{file: {exit, findings}}")
    for name, text in (
        ("run", "run every falsification test and keep the evidence"),
        ("status", "promises, levels and last evidence"),
    ):
        one = actions.add_parser(name, help=text)
        one.add_argument(
            "folder", nargs="?", type=Path, default=Path("contracts"), metavar="DIR",
            help="the folder of contracts (default: contracts)",
        )  # fmt: skip
        if name == "run":
            one.add_argument("--only", metavar="ID", help="run this falsification test only")
            one.add_argument(
                "--timeout", type=_seconds, default=600.0, metavar="SECONDS",
                help="stop a test after this long (default: 600)",
            )  # fmt: skip
        else:
            one.add_argument("--json", action="store_true", help="the table as JSON")


def run(args: argparse.Namespace) -> int:
    if args.action == "validate":
        return _validate(args.paths, args.json)
    if args.action == "run":
        return _run(args.folder, args.only, args.timeout)
    return _status(args.folder, args.json)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


def _validate(paths: list[Path], as_json: bool) -> int:
    verdicts = list(validate(paths))
    read = [verdict for verdict in verdicts if not verdict.note]
    errors = sum(verdict.errors for verdict in read)
    if as_json:
        print(json.dumps({str(one.path): _to_json(one) for one in verdicts}, indent=1))
    else:
        for verdict in verdicts:
            _print_verdict(verdict)
        print(f"{errors} error(s), {sum(verdict.warnings for verdict in read)} warning(s)")
    if not read:
        raise UsageError("nothing to validate", hint="name a contract or a folder of *.yaml files")
    return 1 if errors else 0


def _to_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "exit": 1 if verdict.errors else 0,
        "findings": [[finding.severity, finding.rule] for finding in verdict.findings],
        **({"note": verdict.note} if verdict.note else {}),
    }


def _print_verdict(verdict: Verdict) -> None:
    name = clean(str(verdict.path))
    if verdict.note:
        print(f"{name}: {verdict.note}")
    for finding in verdict.findings:
        where = f" {finding.where}:" if finding.where else ""
        print(f"{name}: {finding.severity} {finding.rule}{where} {finding.message}")


def _contracts(folder: Path) -> Iterator[tuple[Path, Contract]]:
    """Every contract below ``folder``. UsageError where there is no folder or no contract."""
    if not folder.is_dir():
        raise UsageError(
            f"{clean(str(folder))}: no such folder", hint="name the folder of contracts"
        )
    found = False
    for path in contract_files(folder):
        contract = load_contract(path)
        if contract is not None:
            found = True
            yield path, contract
    if not found:
        raise UsageError(f"{clean(str(folder))}: holds no contract")


def _run(folder: Path, only: str | None, timeout_s: float) -> int:
    root = folder.resolve().parent
    chosen = [
        (path, test)
        for path, contract in _contracts(folder)
        for test in contract.tests or ()
        if only in (None, test.id)
    ]
    if not chosen:
        raise UsageError(f"no falsification test {clean(only or '')!r} below {folder}")
    failed = 0
    for path, test in chosen:
        evidence = run_test(test, path, root, timeout_s)
        save_evidence(path, evidence)
        failed += not evidence.passed
        verdict = "passed" if evidence.passed else "FAILED"
        print(f"{verdict}  {clean(test.id)}  {duration(evidence.elapsed_s)}", flush=True)
        if not evidence.passed:
            print("\n".join(f"    {line}" for line in evidence.output_tail.splitlines()[-8:]))
    print(f"{len(chosen) - failed} of {len(chosen)} passed")
    return 1 if failed else 0


def _status(folder: Path, as_json: bool) -> int:
    root = folder.resolve().parent
    rows = [row for path, contract in _contracts(folder) for row in standings(contract, path, root)]
    if as_json:
        print(json.dumps([_row(row) for row in rows], indent=1))
        return 0
    width = max((len(clean(row.test.id)) for row in rows), default=0)
    level_width = max(len(level) for level in Level)
    for row in rows:
        when = row.evidence.started if row.evidence else "-"
        reason = f"{clean(row.test.rule, 90)}  [{row.reason}]"
        print(f"{clean(row.test.id):<{width}}  {row.level:<{level_width}}  {when:<25}  {reason}")
    counts = (f"{sum(row.level == level for row in rows)} {level}" for level in Level)
    print(", ".join(counts))
    return 0


def _row(row: Standing) -> dict[str, Any]:
    evidence = row.evidence
    return {
        "contract": row.contract.name,
        "id": row.test.id,
        "promise": row.test.rule,
        "level": row.level.value,
        "reason": row.reason,
        "evidence": evidence
        and {
            "started": evidence.started,
            "command": evidence.command,
            "exit": evidence.exit_code,
            "passed": evidence.passed,
        },
    }

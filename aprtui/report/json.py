"""A report as JSON: what the other writers show, and the whole comparison and bisection."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from aprtui.report.model import SCHEMA, Report

__all__ = ["json_report"]


def json_report(report: Report) -> str:
    """One document, ASCII only."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "headline": report.headline,
        "verdict": {"bad": "fail", "good": "pass", "unknown": "unmeasured"}[report.tone],
        "sentences": report.sentences,
        "captures": [dataclasses.asdict(capture) for capture in report.captures],
        "model": report.model and dataclasses.asdict(report.model),
        "tokens": {"ids": report.token_ids, "text": report.token_texts},
        "diff": report.comparison.to_json(),
        "bisect": report.bisection and report.bisection.to_json(),
        "notes": report.notes,
        "marked": [{"where": where, "note": note} for where, note in report.marked],
        "versions": dict(report.versions),
        "commands": report.commands,
    }
    return json.dumps(document, ensure_ascii=True, allow_nan=False, indent=1) + "\n"

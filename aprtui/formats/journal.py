"""The events file of a trace that has no manifest (yet): what its plan and its stages say of it.

A journal comes from a file, so a line that is too long, too deep or makes no sense is passed over,
and what is left of the rest is checked as a manifest is. Schema: contracts/events.schema.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aprtui.formats.layout import StageKey
from aprtui.formats.manifest import StageEntry, check_parts, stage_entry

__all__ = ["Journal", "read_journal"]

MAX_BYTES = 32 << 20
MAX_LINE_BYTES = 8 << 20
_KNOWN = ("model", "engine", "prompt", "rope_layout")


@dataclass(frozen=True)
class Journal:
    """What a trace's events tell. Of several plans, as of a trace gone on with, the last counts.

    ``planned`` is the part of a manifest that is known beforehand (model, engine, tokens, prompt,
    rope_layout), empty without a plan; ``files`` how many were to come; ``job`` the ``TraceJob`` as
    the trace was asked for; ``stages`` the files that it says it wrote.
    """

    planned: Mapping[str, Any] = field(default_factory=dict)
    files: int | None = None
    job: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[StageKey, StageEntry] = field(default_factory=dict)


def read_journal(path: Path) -> Journal:
    """The journal; an empty one where there is none or it cannot be read."""
    plan: Mapping[str, Any] = {}
    stages: dict[StageKey, StageEntry] = {}
    for event in _events(path):
        if event.get("event") == "plan":
            plan = event
        elif event.get("event") == "stage" and (entry := _entry(event)) is not None:
            stages[entry.key] = entry
    files, job = plan.get("files"), plan.get("job")
    return Journal(
        _planned(plan),
        files if isinstance(files, int) and files >= 0 else None,
        job if isinstance(job, dict) else {},
        stages,
    )


def _events(path: Path) -> Iterator[Mapping[str, Any]]:
    """The JSON objects among the first lines of a file."""
    try:
        with path.open("rb") as file:
            while file.tell() < MAX_BYTES and (line := file.readline(MAX_LINE_BYTES)):
                try:
                    event = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(event, dict):
                    yield event
    except OSError:
        return


def _entry(event: Mapping[str, Any]) -> StageEntry | None:
    stats = {name: event.get(name) for name in ("rms", "nan", "inf")}
    try:
        return stage_entry({**event, "stats": stats})
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _planned(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan says in a manifest's words; nothing where it contradicts itself."""
    if not plan:
        return {}
    said = plan.get("manifest")
    known = {name: said[name] for name in _KNOWN if name in said} if isinstance(said, dict) else {}
    model = {"path": plan.get("model"), "architecture": plan.get("architecture")}
    planned: dict[str, Any] = {"model": model, **known}
    if plan.get("tokens"):
        texts = plan.get("token_texts")
        planned["tokens"] = {"ids": plan["tokens"], **({"text": texts} if texts else {})}
    try:
        check_parts(planned)
    except ValueError:
        return {}
    return planned

"""Statistics of a trace's stages, or of one stage file.

Count, min, max, mean, std, rms, zeros, denormals, NaN, infinities, percentiles and outlier
channels; exact, in bounded memory.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aprtui import api
from aprtui.cli.options import add_choice
from aprtui.cli.output import print_json, print_table
from aprtui.compare.statistics import OutlierChannel, Statistics, outlier_channels, statistics
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.tracedir import StageKey, StageRecord, TraceDir
from aprtui.graph.select import only_layers, parse_stages
from aprtui.text import clean, count, number

__all__ = ["configure", "run"]

_CHANNEL_AXES = ("hidden", "ffn")
_HEADER = ("stage", "shape", "min", "1 %", "median", "99 %", "max", "mean", "std", "rms",
           "zeros", "denorm", "NaN", "Inf", "outlier channels")  # fmt: skip
_WORTH = ("stage", "rms", "NaN", "Inf", "min", "max", "shape", "mean", "std", "median", "zeros",
          "99 %", "1 %", "denorm", "outlier channels")  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("path", type=Path, help="a trace directory or a stage file")
    add_choice(parser)
    parser.add_argument("--model", type=Path, help="the model: tells shapes of foreign folders")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Print the statistics; 3 when a file is damaged, the others are printed all the same."""
    trace = api.open_trace(args.path, model=args.model)
    one = trace.status == "file"
    records = list(trace.records.values()) if one else _chosen(trace, args.stages, args.layers)
    rows = [_row(record) for record in records]
    if args.json:
        found = {"schema": "aprtui-stats-v1", "path": str(args.path), "stages": rows}
        print_json(found)
    else:
        _show(rows)
    return 3 if any("error" in row for row in rows) else 0


def _chosen(trace: TraceDir, stages: str, layers: str) -> list[StageRecord]:
    names = parse_stages(stages)
    highest = max((key.layer for key in trace.records if key.layer is not None), default=-1)
    wanted = only_layers(layers, highest + 1)
    chosen = [
        record
        for key, record in trace.records.items()
        if (names is None or key.stage in names) and (wanted is None or key.layer in wanted)
    ]
    if not chosen:
        raise UsageError("no stage of the trace is chosen", hint="widen --stages and --layers")
    return chosen


def _row(record: StageRecord) -> dict[str, Any]:
    row: dict[str, Any] = {
        "layer": record.key.layer,
        "stage": record.key.stage,
        "shape": record.shape,
        "axes": record.axes,
        "shape_source": record.shape_source,
    }
    try:
        values = record.values()
    except BadFileError as error:
        return row | {"error": clean(str(error), 500)}
    found = statistics(values)
    return row | _statistics_json(found, _outliers(record))


def _outliers(record: StageRecord) -> tuple[OutlierChannel, ...]:
    if not record.shape or not record.axes or record.axes[-1] not in _CHANNEL_AXES:
        return ()
    values = record.values()
    channels = record.shape[-1]
    return outlier_channels(values, channels) if values.size % channels == 0 else ()


def _statistics_json(found: Statistics, outliers: Iterable[OutlierChannel]) -> dict[str, Any]:
    return dataclasses.asdict(found) | {
        "percentiles": {f"{percent:g}": value for percent, value in found.percentiles},
        "outlier_channels": [dataclasses.asdict(channel) for channel in outliers],
    }


def _show(rows: list[dict[str, Any]]) -> None:
    whole = [row for row in rows if "error" not in row]
    print_table(map(_cells, whole), _HEADER, worth=_WORTH)
    if any(row["shape_source"] == "inferred" for row in rows):
        print("* shapes are inferred, not stated")
    for row in rows:
        if "error" in row:
            print(f"{_name(row)}: {row['error']}")


def _name(row: dict[str, Any]) -> str:
    return str(StageKey(row["layer"], clean(row["stage"])))


def _cells(row: dict[str, Any]) -> list[str]:
    shape = "x".join(map(str, row["shape"])) if row["shape"] else count(row["count"])
    at = row["percentiles"]
    return [
        _name(row),
        shape + ("*" if row["shape_source"] in ("inferred", "layout") else ""),
        *(number(value) for value in (row["min"], at.get("1", row["min"]))),
        *(number(value) for value in (at.get("50", row["mean"]), at.get("99", row["max"]))),
        *(number(row[name]) for name in ("max", "mean", "std", "rms")),
        *(count(row[name]) for name in ("zeros", "denormals", "nan")),
        count(row["pos_inf"] + row["neg_inf"]),
        " ".join(f"{o['channel']} (x{o['ratio']:.0f})" for o in row["outlier_channels"][:3]),
    ]

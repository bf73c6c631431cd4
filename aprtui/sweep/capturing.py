"""One capture of a cell, made where it is asked for: by an engine of aprtui's, or by a command.

A capture's bytes depend on what it is kept by alone: what differs from run to run (times, memory,
the node's paths) does not stand in it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from aprtui import api
from aprtui.errors import EngineError, UnknownFamilyError
from aprtui.formats.manifest import read_manifest, write_manifest
from aprtui.formats.tracedir import EVENTS, MANIFEST
from aprtui.model.open import Model, open_model
from aprtui.sweep.cells import Side
from aprtui.sweep.plan import PromptSpec
from aprtui.sweep.survey import job_of
from aprtui.text import clean, duration

__all__ = ["make_capture", "opened", "renamed"]

_TIMELESS = "1970-01-01T00:00:00+00:00"
_TOLD = 300  # bytes of what a command says at its end


def opened(side: Side, path: Path) -> Model | None:
    """The side's model; None where only transformers' own code knows its family."""
    try:
        return _opened(path, tuple(sorted(side.model.overrides.items())), side.model_digest)
    except UnknownFamilyError:
        if side.engine.kind == "hf":
            return None
        raise


@lru_cache(maxsize=2)  # cells of one model follow one another
def _opened(path: Path, overrides: tuple[tuple[str, str], ...], digest: str) -> Model:
    return open_model(path, dict(overrides))


def make_capture(side: Side, path: Path, folder: Path, target: Path) -> None:
    """The capture of ``side`` as ``target``; ``path`` is its model on this node, ``folder`` the
    plan's. Raises AprtuiError."""
    if side.engine.kind == "command":
        _by_command(side, path, folder, target)
    else:
        _by_engine(side, path, target)
    _settle(target, {str(path): side.model.source, str(target): side.capture})


def _by_engine(side: Side, path: Path, target: Path) -> None:
    prompt = PromptSpec(side.prompt.name, None, side.tokens)
    job = job_of(path, side.model, prompt, side.engine, side.how)
    model = opened(side, path)
    api.trace(
        path if model is None else model,
        tokens=job.tokens,
        directory=target,
        stages=job.stages,
        layers=job.layers,
        logits=job.logits,
        engine=job.engine,
        engine_args=job.engine_args,
        device=job.device,
        dtype=job.dtype,
        steps=job.steps,
        chunk=job.chunk,
        kv=job.kv,
    )


def _by_command(side: Side, path: Path, folder: Path, target: Path) -> None:
    """Run it, and make a trace folder of what it wrote. Raises EngineError."""
    engine = side.engine
    output = target.with_name(f"{target.name}-dump") if engine.map else target
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    said = {
        "model": str(path),
        "tokens": ",".join(map(str, side.tokens)),
        "output": str(output),
        "threads": str(engine.cpus),
    }
    try:
        _run([word.format(**said) for word in engine.command], folder, engine.timeout_s)
        if not any(output.iterdir()):
            raise EngineError(f"{clean(engine.command[0], 200)} ended well and wrote nothing")
        if engine.map:
            api.import_trace(
                output, model=opened(side, path) or path, output=target, tokens=side.tokens,
                map=None if engine.map == "auto" else engine.map,
            )  # fmt: skip
    finally:
        if engine.map:
            shutil.rmtree(output, ignore_errors=True)


def _run(words: list[str], folder: Path, timeout_s: int) -> None:
    """A command without a shell, and all that it started ended with it."""
    with tempfile.TemporaryFile() as told:
        try:
            child = subprocess.Popen(
                words, cwd=folder, stdin=subprocess.DEVNULL, stdout=told, stderr=told,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise EngineError(
                f"{clean(words[0], 200)} cannot be run in {clean(str(folder), 200)}: "
                f"{error.strerror or clean(str(error))}"
            ) from error
        try:
            code = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise EngineError(
                f"{clean(words[0], 200)} was not done after {duration(timeout_s)}",
                hint="timeout_s in the plan says how long it may take",
            ) from None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if code:
            size = told.seek(0, os.SEEK_END)
            told.seek(max(0, size - _TOLD))
            last = " ".join(told.read().decode("utf-8", "replace").split())
            raise EngineError(f"{clean(words[0], 200)} failed ({_how(code)}): {clean(last, _TOLD)}")


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _settle(folder: Path, names: Mapping[str, str]) -> None:
    """Take out of a trace what differs from run to run."""
    (folder / EVENTS).unlink(missing_ok=True)
    manifest = read_manifest(folder / MANIFEST)
    if manifest is None:
        return
    settled = {
        **renamed(manifest, names),
        "created": _TIMELESS,
        "elapsed_s": 0.0,
        "peak_memory_bytes": None,
        "peak_device_bytes": None,
    }
    write_manifest(folder, settled)


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A document in which the node's own paths have become what they stand for."""
    if isinstance(value, str):
        for path, name in sorted(names.items(), key=lambda pair: -len(pair[0])):
            value = value.replace(path, name)
        return value
    if isinstance(value, dict):
        return {key: renamed(each, names) for key, each in value.items()}
    return [renamed(each, names) for each in value] if isinstance(value, list | tuple) else value

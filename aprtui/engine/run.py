"""One trace from job to manifest: plan, compute, capture, and an honest end whatever happens."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch

from aprtui import __version__
from aprtui.engine.capture import Capture
from aprtui.engine.device import own_memory_bytes, resolve_device, set_deterministic
from aprtui.engine.events import Emit, Event, Failed, Finished, Log, Started, Stopped
from aprtui.engine.forward import forward
from aprtui.engine.ops import Operands
from aprtui.engine.plan import Plan
from aprtui.engine.weights import WeightStream
from aprtui.errors import AprtuiError, EngineError, UsageError
from aprtui.formats.tracedir import (
    EVENTS,
    SCHEMA,
    clear_trace,
    holds_trace,
    relative_path,
    write_manifest,
)
from aprtui.text import clean

__all__ = ["TraceStopped", "run_trace"]

_TOP_TOKENS = 5


class TraceStopped(Exception):
    """Raised into the pass by a signal handler: end now, keep what is whole."""

    told = False  # whether a Stopped event has been sent


def run_trace(plan: Plan, emit: Emit) -> Finished:
    """Run a planned trace, telling ``emit`` what happens; the last event says how it ended.

    Raises AprtuiError for whatever goes wrong and TraceStopped when it was stopped; the directory
    then holds only whole files and no manifest.
    """
    device, device_name = resolve_device(plan.job.device)
    set_deterministic()
    plan.check_space()
    with _directory(plan) as events:

        def tell(event: Event) -> None:
            events.write(event.line() + "\n")
            events.flush()
            emit(event)

        tell(plan.event(str(device), device_name))
        tell(Started(pid=os.getpid()))
        for note in plan.notes:
            tell(Log("note", note))
        return _run(plan, device, device_name, tell)


def _run(plan: Plan, device: torch.device, device_name: str, tell: Emit) -> Finished:
    capture = Capture(plan.directory, plan.files, tell, lambda: _device_bytes(device))
    start = time.monotonic()
    try:
        with torch.inference_mode(), _engine_errors():
            stream = WeightStream(plan.model, device, getattr(torch, plan.job.dtype))
            operands = Operands(plan.model.config, stream, plan.tokens, plan.job.logits)
            logits = forward(operands, capture)
        capture.close()
    except BaseException as error:
        capture.abort()
        if isinstance(error, TraceStopped):
            tell(Stopped(files=capture.written, directory=str(plan.directory)))
            error.told = True
        elif isinstance(error, AprtuiError):
            tell(Failed(error.message, error.hint, error.exit_code))
        raise
    elapsed = time.monotonic() - start
    done = Finished(
        directory=str(plan.directory),
        files=capture.written,
        written_bytes=capture.written_bytes,
        elapsed_s=round(elapsed, 4),
        peak_memory_bytes=max(capture.peak_memory_bytes, own_memory_bytes()),
        peak_device_bytes=max(capture.peak_device_bytes, _device_bytes(device)),
        top_tokens=_top_tokens(plan, logits),
        nonfinite=tuple(
            str(file.key)
            for file in plan.files
            if capture.stats[file.key]["nan"] or capture.stats[file.key]["inf"]
        ),
    )
    write_manifest(plan.directory, _manifest(plan, capture, done, device, device_name))
    tell(done)
    return done


@contextmanager
def _directory(plan: Plan) -> Iterator[IO[str]]:
    """The trace's directory made ready, its events file open and locked while the trace runs."""
    directory = plan.directory
    try:
        if holds_trace(directory):
            if not plan.job.overwrite:
                raise UsageError(
                    f"{clean(str(directory))}: a trace is there already",
                    hint="--overwrite replaces it, --save-tensor-dir DIR writes elsewhere",
                )
            _refuse_running(directory)
            clear_trace(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / EVENTS).open("a", encoding="utf-8") as events:
            fcntl.flock(events, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield events
    except BlockingIOError:
        raise _running(directory) from None
    except OSError as error:
        raise EngineError(
            f"{clean(str(directory))}: cannot be written: {error.strerror or error}",
            hint="choose another folder with --save-tensor-dir",
        ) from error


def _refuse_running(directory: Path) -> None:
    """Raises UsageError when another process is writing a trace into ``directory``."""
    try:
        with (directory / EVENTS).open("rb") as events:
            fcntl.flock(events, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except BlockingIOError:
        raise _running(directory) from None


def _running(directory: Path) -> UsageError:
    return UsageError(
        f"{clean(str(directory))}: another process is writing a trace there",
        hint="wait for it, stop it, or write elsewhere with --save-tensor-dir",
    )


@contextmanager
def _engine_errors() -> Iterator[None]:
    """What torch raises when memory or the device gives out, as errors that say what to do."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise EngineError(
            "the device is out of memory", hint="fewer tokens, --dtype bfloat16 or --device cpu"
        ) from error
    except MemoryError as error:
        raise EngineError("out of memory", hint="fewer tokens") from error
    except RuntimeError as error:
        first = clean(str(error).split("\n", 1)[0], 300)
        hint = "fewer tokens" if "allocate" in first else "--device cpu may still work"
        raise EngineError(f"the engine failed: {first}", hint=hint) from error


def _device_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _top_tokens(plan: Plan, logits: torch.Tensor) -> tuple[dict[str, Any], ...]:
    """The likeliest next tokens after the prompt, with logit and probability."""
    last = (logits[-1] if logits.dim() == 2 else logits).double().cpu()
    if not bool(torch.isfinite(last).all()):
        return ()
    probabilities = torch.softmax(last, dim=0)
    values, ids = torch.sort(last, descending=True, stable=True)
    vocabulary = plan.model.vocabulary
    return tuple(
        {
            "id": int(token),
            "text": vocabulary.text_of(int(token)) if vocabulary else "",
            "logit": float(value),
            "probability": float(probabilities[token]),
        }
        for value, token in zip(values[:_TOP_TOKENS], ids[:_TOP_TOKENS], strict=True)
    )


def _manifest(
    plan: Plan, capture: Capture, done: Finished, device: torch.device, device_name: str
) -> dict[str, Any]:
    model, job = plan.model, plan.job
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "path": str(model.path),
            "format": model.file.format,
            "format_version": model.file.version,
            "size_bytes": model.file.size_bytes,
            "digest": f"sha256:{model.file.digest}",
            "architecture": model.config.architecture,
            "config": model.config.to_json(),
            "types": model.types(),
        },
        "tokens": {"ids": plan.tokens, "text": plan.token_texts},
        "prompt": plan.prompt,
        "selection": {"stages": plan.stages, "layers": plan.layers, "logits": job.logits},
        "engine": {
            "name": "aprtui",
            "version": __version__,
            "device": str(device),
            "device_name": device_name,
            "dtype": job.dtype,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        },
        "rope_layout": model.config.rope_layout,
        "stages": [
            {
                "stage": file.key.stage,
                "layer": file.key.layer,
                "path": relative_path(file.key),
                "shape": file.shape,
                "axes": file.axes,
                "positions": file.positions,
                "bytes": file.bytes,
                "stats": capture.stats[file.key],
                "sha256": None,
            }
            for file in plan.files
        ],
        "absent": [{"stage": item.stage, "reason": item.reason} for item in plan.absent],
        "notes": plan.notes,
        "elapsed_s": done.elapsed_s,
        "peak_memory_bytes": done.peak_memory_bytes,
        "peak_device_bytes": done.peak_device_bytes,
    }
    json.dumps(manifest, allow_nan=False)  # fails here, before the file is touched, if at all
    return manifest

"""One trace from job to manifest: plan, compute, capture, and an honest end whatever happens."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from aprtui import __version__
from aprtui.engine import adapters
from aprtui.engine.adapters import Ran
from aprtui.engine.capture import Capture
from aprtui.engine.device import (
    own_memory_bytes,
    resolve_device,
    set_deterministic,
    torch_settings,
)
from aprtui.engine.events import Emit, Event, Failed, Finished, Log, Started, Stopped
from aprtui.engine.folder import trace_folder
from aprtui.engine.forward import forward
from aprtui.engine.manifest import Written, build_manifest, model_entry
from aprtui.engine.ops import Operands
from aprtui.engine.plan import Plan
from aprtui.engine.stopping import TraceStopped, raise_if_stopped
from aprtui.engine.weights import WeightStream
from aprtui.errors import AprtuiError, EngineError
from aprtui.formats.tracedir import write_manifest
from aprtui.text import clean

__all__ = ["run_trace"]

_TOP_TOKENS = 5


def run_trace(plan: Plan, emit: Emit) -> Finished:
    """Run a planned trace, telling ``emit`` what happens; the last event says how it ended.

    Raises AprtuiError for whatever goes wrong and TraceStopped when it was stopped; the directory
    then holds only whole files and no manifest.
    """
    device, device_name = resolve_device(plan.job.device)
    set_deterministic()
    plan.check_space()
    with trace_folder(plan.directory, overwrite=plan.job.overwrite) as events:

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
            ran = _compute(plan, device, device_name, capture)
        capture.close()
        raise_if_stopped()
        _check_complete(plan, capture, ran)
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
        top_tokens=_top_tokens(plan, ran.logits),
        nonfinite=tuple(
            str(file.key)
            for file in plan.files
            if capture.stats[file.key]["nan"] or capture.stats[file.key]["inf"]
        ),
    )
    write_manifest(plan.directory, _manifest(plan, capture, done, ran))
    tell(done)
    return done


def _compute(plan: Plan, device: torch.device, device_name: str, capture: Capture) -> Ran:
    """The pass itself, on the engine that the job names."""
    place = {"device": str(device), "device_name": device_name, "dtype": plan.job.dtype}
    if plan.job.engine != "aprtui":
        ran = adapters.run(plan, device, capture.put)
        return dataclasses.replace(ran, engine={**place, **ran.engine})
    stream = WeightStream(plan.model, device, getattr(torch, plan.job.dtype))
    operands = Operands(plan.model.config, stream, plan.tokens, plan.job.logits)
    engine = {"name": "aprtui", "version": __version__, **place, **torch_settings()}
    return Ran(forward(operands, capture), engine)


def _check_complete(plan: Plan, capture: Capture, ran: Ran) -> None:
    """Raises EngineError when the pass did not show every planned stage."""
    missing = [file.key for file in plan.files if file.key not in capture.stats]
    if missing:
        name, version = ran.engine["name"], ran.engine["version"]
        raise EngineError(
            f"{len(missing)} of {len(plan.files)} stages were not shown by {name} ({version}), "
            f"the first {missing[0]}: this version's pass is built differently",
            hint="llama-cpp-python 0.3.36 and transformers 5.23 are known to work",
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


def _manifest(plan: Plan, capture: Capture, done: Finished, ran: Ran) -> dict[str, Any]:
    return build_manifest(
        model=model_entry(plan.model),
        tokens=plan.tokens,
        token_texts=plan.token_texts,
        prompt=plan.prompt,
        logits=plan.job.logits,
        engine=ran.engine,
        rope_layout=plan.model.config.rope_layout,
        written=[
            Written(
                file.key, file.shape, file.axes, file.positions, file.bytes, capture.stats[file.key]
            )
            for file in plan.files
        ],
        layers=plan.layers,
        absent=plan.absent,
        notes=(*plan.notes, *ran.notes),
        elapsed_s=done.elapsed_s,
        peak_memory_bytes=done.peak_memory_bytes,
        peak_device_bytes=done.peak_device_bytes,
    )

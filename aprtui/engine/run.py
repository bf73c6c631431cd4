"""One trace from job to manifest: plan, compute, capture, and an honest end whatever happens."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aprtui.crash import told_of
from aprtui.engine.adapters import Ran
from aprtui.engine.capture import Capture
from aprtui.engine.device import card_uuids, deterministic, own_memory_bytes, resolve_devices
from aprtui.engine.events import Emit, Event, Failed, Finished, Log, PassDone, Started, Stopped
from aprtui.engine.folder import TraceFolder, check_folder, trace_folder
from aprtui.engine.forward import Given
from aprtui.engine.manifest import Written, build_manifest, model_entry
from aprtui.engine.plan import Plan, check_space
from aprtui.engine.resuming import Kept, kept_files, note_of
from aprtui.engine.session import Session
from aprtui.engine.stopping import TraceStopped, raise_if_stopped
from aprtui.engine.watching import watching
from aprtui.errors import AprtuiError, EngineError
from aprtui.formats.aprt import read_values
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import relative_path
from aprtui.model.health import broken_weights
from aprtui.text import clean, size

__all__ = ["run_trace", "run_traces"]

_TOP_TOKENS = 5


def run_trace(plan: Plan, emit: Emit) -> Finished:
    """Run a planned trace, telling ``emit`` what happens; the last event says how it ended.

    Raises AprtuiError for whatever goes wrong and TraceStopped when it was stopped; the directory
    then holds only whole files and no manifest.
    """
    return run_traces((plan,), emit)[0]


def run_traces(plans: Sequence[Plan], emit: Emit) -> tuple[Finished, ...]:
    """Run traces of one model and one job's settings, one after the other, on one engine.

    Those of a batch run together. Whether all can be written is checked before the first begins.
    Raises as ``run_trace`` does; the traces before the one that ended so are whole.
    """
    with _engine_errors():
        devices = resolve_devices(plans[0].job.device)
    check_space(plans)
    for plan in plans:
        check_folder(plan.directory, overwrite=plan.job.overwrite or plan.job.resume)
    with deterministic():
        with _engine_errors():
            session = Session(plans, devices)
        together = [plans] if plans[0].sequence is not None else [[plan] for plan in plans]
        return tuple(done for group in together for done in _run_group(group, session, emit))


@dataclass(frozen=True)
class _Trace:
    """One trace while it is written."""

    plan: Plan
    folder: TraceFolder
    capture: Capture
    kept: Kept
    tell: Emit


def _run_group(plans: Sequence[Plan], session: Session, emit: Emit) -> list[Finished]:
    """Traces that are computed in one go."""
    with ExitStack() as held:
        return _run([_begun(plan, session, held, emit) for plan in plans], session)


def _begun(plan: Plan, session: Session, held: ExitStack, emit: Emit) -> _Trace:
    """A trace whose folder is open and locked, and which has told its plan."""
    plan = dataclasses.replace(plan, notes=(*plan.notes, *session.notes))
    job, engine = plan.job, session.engine(plan)
    opening = trace_folder(plan.directory, overwrite=job.overwrite, resume=job.resume)
    folder = held.enter_context(opening)
    one_at_a_time = threading.Lock()  # the writer's thread tells, and the one at the cards
    kept = Kept()
    if job.resume:
        kept = kept_files(plan, engine)
        plan = dataclasses.replace(plan, notes=(*plan.notes, note_of(kept, plan)))

    def tell(event: Event) -> None:
        with one_at_a_time:
            folder.tell(event)
            emit(event)

    tell(plan.event(session.device, session.device_name, engine))
    tell(Started(pid=os.getpid()))
    for note in plan.notes:
        tell(Log("note", note))
    capture = Capture(folder, plan.files, tell, session.peak_device_bytes)
    return _Trace(plan, folder, capture, kept, tell)


def _run(traces: Sequence[_Trace], session: Session) -> list[Finished]:
    session.start_counting()
    start = time.monotonic()
    try:
        for trace in traces:
            for key, stats in trace.kept.stats.items():
                trace.capture.keep(key, stats)
        with _engine_errors(), watching(card_uuids(session.placement.devices), traces[0].tell):
            with torch.inference_mode():
                rans = _computed(traces, session)
            for trace in traces:
                trace.capture.close()  # waits for the device too
        raise_if_stopped(whole=True)
        ended = [
            _ended(trace, ran, session, time.monotonic() - start)
            for trace, ran in zip(traces, rans, strict=True)
        ]
    except BaseException as error:
        told = _broken_off(traces, error)
        if told is error:
            raise
        raise told from error
    for trace, done in zip(traces, ended, strict=True):
        trace.tell(done)
    return ended


def _computed(traces: Sequence[_Trace], session: Session) -> Sequence[Ran]:
    """Every trace's pass or passes."""
    if not traces[0].plan.stretches:
        return [session.compute(t.plan, t.capture, _given(t.plan, t.kept)) for t in traces]

    def tell(at: int, event: PassDone) -> None:
        traces[at].tell(event)

    plans, captures = [t.plan for t in traces], [t.capture for t in traces]
    return session.compute_passes(plans, captures, tell)


def _ended(trace: _Trace, ran: Ran, session: Session, elapsed_s: float) -> Finished:
    """The trace made whole by its manifest."""
    _check_complete(trace.plan, trace.capture, ran)
    done = _finished(trace.plan, session, trace.capture, ran, elapsed_s)
    for note in (born := _born(trace.plan, trace.capture)):
        trace.tell(Log("note", note))
    plan = dataclasses.replace(trace.plan, notes=(*trace.plan.notes, *born))
    trace.folder.finish(_manifest(plan, trace.capture, done, ran))
    return done


def _born(plan: Plan, capture: Capture) -> tuple[str, ...]:
    """What the weights have to do with the first NaN or Inf that was captured, if they have."""
    for file in plan.files:
        stats = capture.stats[file.key]
        if stats["nan"] or stats["inf"]:
            broken = broken_weights(plan.model, plan.model.graph[file.key])
            return tuple(f"NaN or Inf is born in {file.key}: {each.text}" for each in broken)
    return ()


def _broken_off(traces: Sequence[_Trace], error: BaseException) -> BaseException:
    """What is raised for what ended a pass, once the traces have said so."""
    for trace in traces:
        trace.capture.abort()
    raised: BaseException = error
    if isinstance(error, TraceStopped):
        for trace in traces:
            with suppress(AprtuiError):  # a full disk takes no more events either
                written = trace.capture.written
                trace.tell(Stopped(files=written, directory=str(trace.plan.directory)))
                error.told = True
    elif isinstance(error, Exception):
        told = told_of(error, f"trace, engine {traces[0].plan.job.engine}")
        for trace in traces:
            with suppress(AprtuiError):
                trace.tell(Failed(told.message, told.hint, told.exit_code))
                told.told = True
        raised = told
    return raised


def _given(plan: Plan, kept: Kept) -> Given:
    """The kept values that the pass begins anew with."""
    shapes = {file.key: file.shape for file in plan.files}
    dtype: torch.dtype = getattr(torch, plan.job.dtype)
    return {
        key: torch.from_numpy(np.array(read_values(plan.directory / relative_path(key))))
        .reshape(shapes[key])
        .to(dtype)
        for key in kept.begin
    }


def _finished(
    plan: Plan, session: Session, capture: Capture, ran: Ran, elapsed_s: float
) -> Finished:
    vocabulary = plan.model.vocabulary
    decoded = ran.tokens[len(plan.tokens) :] if vocabulary else ()
    return Finished(
        directory=str(plan.directory),
        files=capture.written,
        written_bytes=capture.written_bytes,
        elapsed_s=round(elapsed_s, 4),
        peak_memory_bytes=max(capture.peak_memory_bytes, own_memory_bytes()),
        peak_device_bytes=max(capture.peak_device_bytes, session.peak_device_bytes()),
        top_tokens=_top_tokens(plan, ran.logits),
        generated="".join(vocabulary.text_of(token) for token in decoded) if vocabulary else "",
        nonfinite=tuple(
            str(file.key)
            for file in plan.files
            if capture.stats[file.key]["nan"] or capture.stats[file.key]["inf"]
        ),
    )


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
        raise _device_full() from error
    except MemoryError as error:
        raise EngineError("out of memory", hint="fewer tokens") from error
    except RecursionError:
        raise
    except RuntimeError as error:
        first = clean(str(error).split("\n", 1)[0], 300)
        if "CUDA" not in first:
            hint = "fewer tokens" if "allocate" in first else "--device cpu may still work"
            raise EngineError(f"the engine failed: {first}", hint=hint) from error
        if "out of memory" in first:  # where not even a context fits beside another process
            raise _device_full() from error
        hint = "--device cpu computes the same; nvidia-smi says whether the card is still there"
        if "no kernel image" in first:
            hint = "--device cpu computes the same; another build of torch may know this card"
        raise EngineError(
            f"the device failed: {first}; what was written before is whole", hint=hint
        ) from error


def _device_full() -> EngineError:
    """Says who has the memory: the card may be another process's."""
    try:
        free, total = torch.cuda.mem_get_info()
        others = max(total - free - torch.cuda.memory_reserved(), 0)
        said = f": of {size(total)} other processes and the driver hold {size(others)}"
    except (RuntimeError, AssertionError):  # not even this can be asked
        said = ": no room is left on it, which another process may hold"
    return EngineError(
        f"the device is out of memory{said}",
        hint="fewer tokens, no --resident, --dtype bfloat16 or --device cpu",
    )


def _top_tokens(plan: Plan, logits: torch.Tensor) -> tuple[dict[str, Any], ...]:
    """The likeliest next tokens after the prompt, with logit and probability."""
    last = (logits[-1] if logits.dim() == 2 else logits).double().cpu()
    if not bool(torch.isfinite(last).all()):
        return ()
    probabilities = torch.softmax(last, dim=0)
    least = torch.topk(last, min(_TOP_TOKENS, last.numel())).values[-1]
    ids = torch.nonzero(last >= least).flatten()  # of equals the lower id first
    values, order = torch.sort(last[ids], descending=True, stable=True)
    vocabulary = plan.model.vocabulary
    return tuple(
        {
            "id": int(token),
            "text": vocabulary.text_of(int(token)) if vocabulary else "",
            "logit": float(value),
            "probability": float(probabilities[token]),
        }
        for value, token in zip(values[:_TOP_TOKENS], ids[order][:_TOP_TOKENS], strict=True)
    )


def _manifest(plan: Plan, capture: Capture, done: Finished, ran: Ran) -> dict[str, Any]:
    tokens, vocabulary = ran.tokens or plan.tokens, plan.model.vocabulary
    return build_manifest(
        model=model_entry(plan.model),
        tokens=tokens,
        token_texts=[vocabulary.text_of(token) for token in tokens] if vocabulary else (),
        prompt=plan.prompt,
        logits=plan.job.logits,
        engine=ran.engine,
        rope_layout=plan.model.graph.rope_layout,
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
        rows=_rows(plan),
    )


def _rows(plan: Plan) -> Rows | None:
    """Which pass made each row, where there were several, or several sequences."""
    if len(plan.stretches) < 2 and plan.sequence is None:
        return None
    passes = (at for at, each in enumerate(plan.stretches) for _ in range(each.rows))
    return Rows(tuple(range(plan.rows)), tuple(passes), sequence=plan.sequence)

"""The engine as a child process: one job in, one JSON event per line out.

    python -m aprtui.engine.worker JOB_JSON [--parent PID]
    python -m aprtui.engine.worker --plan JOB_JSON

With ``--parent`` it stops when that process is gone; without, it is detached, and SIGUSR1 detaches
it once it has started. SIGTERM, SIGINT and SIGHUP stop it: whole files stay, the last event is
``stopped``.
"""

from __future__ import annotations

import argparse
import gc
import os
import runpy
import sys
import threading

from aprtui.crash import told_of
from aprtui.engine.events import Emit, Event, Failed, Stopped
from aprtui.engine.job import TraceJob
from aprtui.engine.module_job import module_plan
from aprtui.engine.plan import Plan, make_plan
from aprtui.engine.stopping import TraceStopped, ending_with, stopping_on_signals

__all__ = ["event_printer", "main"]


def event_printer() -> Emit:
    """An emit that prints each event as one line on stdout, and goes on when nobody reads it."""
    lock = threading.Lock()
    gone = False

    def emit(event: Event) -> None:
        nonlocal gone
        with lock:
            if gone:
                return
            try:
                sys.stdout.write(event.line() + "\n")
                sys.stdout.flush()
            except (OSError, ValueError):
                gone = True
                sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - kept until exit

    return emit


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m aprtui.engine.worker", description=__doc__)
    parser.add_argument("job", help="the TraceJob as JSON")
    parser.add_argument("--plan", action="store_true", help="print the plan and compute nothing")
    parser.add_argument("--parent", type=int, help="stop when this process is no longer the parent")
    options = parser.parse_args(arguments)
    emit = event_printer()
    try:
        job = TraceJob.from_json(options.job)
        if (modules := module_plan(job)) is not None:
            if options.plan:
                emit(modules.foreseen())
                return 0
            return _by_command(job, options.parent)
        plan = make_plan(job)
        if options.plan:
            emit(plan.foreseen())
            return 0
        return _trace(plan, options.parent, emit)
    except Exception as error:
        told = told_of(error, "the engine")
        if not told.told:
            emit(Failed(told.message, told.hint, told.exit_code))
        return told.exit_code


def _by_command(job: TraceJob, parent: int | None) -> int:
    """A trace of modules or nodes, which is written where other programs' are: the command runs in
    this process, and its events go where the engine's own would."""
    said = {
        "--engine": job.engine, "--stages": job.stages, "--layers": job.layers,
        "--logits": job.logits, "--device": job.device, "--dtype": job.dtype,
        "--save-tensor-dir": job.directory,
        "--tokens": None if job.tokens is None else ",".join(map(str, job.tokens)),
        "--prompt": job.prompt if job.tokens is None else None,
    }  # fmt: skip
    options = [f"{name}={text}" for name, text in said.items() if text]
    options += [f"--engine-arg={key}={text}" for key, text in job.engine_args.items()]
    options += ["--overwrite"] * job.overwrite
    sys.argv = ["aprtui", "trace", "--events", *options, "--", job.model]
    with ending_with(parent):
        try:
            runpy.run_module("aprtui", run_name="__main__")
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 0
    return 0


def _trace(plan: Plan, parent: int | None, emit: Emit) -> int:
    gc.disable()  # importing torch makes half a million objects and no garbage: 0.25 s
    from aprtui.engine.run import run_trace

    gc.enable()
    try:
        with ending_with(parent), stopping_on_signals():
            run_trace(plan, emit)
    except TraceStopped as stop:
        if not stop.told:  # before the pass began
            emit(Stopped(files=0, directory=str(plan.directory)))
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # everything is written, and torch takes 0.6 s to take itself down

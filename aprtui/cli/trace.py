"""Run one forward pass of a model and write the tensor of every stage as a small file.

The result is a folder: one APRT file per stage and layer, and trace.json, the manifest, which is
written last. Look at it with `aprtui DIR`, compare two with `aprtui DIR_A DIR_B`.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aprtui.cli import trace_live, trace_modules, trace_watch
from aprtui.cli.options import add_adapter, add_overrides, parse_overrides, parse_tokens, whole
from aprtui.cli.output import print_json
from aprtui.cli.prompt_files import prompt_lines, text_of
from aprtui.cli.streams import bar_console
from aprtui.crash import told_of
from aprtui.engine.events import Emit, Event, Failed, Finished, PassDone, Planned, StageWritten
from aprtui.engine.job import DTYPES, TraceJob
from aprtui.engine.plan import DEFAULT_PROMPT, Plan, check_space, make_batch, make_plan, make_plans
from aprtui.engine.resuming import resumed_plan
from aprtui.engine.stretches import KV_TYPES
from aprtui.errors import UsageError
from aprtui.formats.tracedir import MANIFEST
from aprtui.text import clean, count, duration, quoted, size, told_token

if TYPE_CHECKING:
    from rich.progress import Progress  # imported only where a bar is drawn

__all__ = ["configure", "run"]

_EPILOG = """\
examples:
  aprtui trace model.gguf --prompt "The capital of France is"
  aprtui trace model.apr --save-tensor ffn_gate,ffn_up --save-tensor-layers 3..6
  aprtui trace model.gguf --engine llamacpp --engine-arg kv=f16
  aprtui trace model.apr --tokens 3838,374,220,17 --device cuda:0 -o /tmp/trace
  aprtui trace model.gguf --prompts prompts.txt --device cuda --resident -o /tmp/traces
  aprtui trace model.gguf --prompt "The capital of France is" --steps 8 --logits all
  aprtui trace model.gguf --prompt "Hello" --prompt "def f(x):" --steps 4 -o /tmp/batch
  aprtui trace --resume model-trace
  aprtui trace model.gguf --engine llamacpp --against good-trace --stop-at culprit
  aprtui trace model.gguf --engine llamacpp --against good-trace --watch build/libllama.so

rows of several passes: --steps, --chunk, --batch and --kv run the model as it is served, with a
cache of keys and values. Every stage is stacked by position, and the manifest says which pass made
each row. Our own engine computes the same bits whichever way a row comes; docs/numerics.md 6 says
where not.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "model", nargs="?", help="a .apr, .gguf or .safetensors file, or a checkpoint folder"
    )
    parser.add_argument(
        "--resume", metavar="DIR",
        help="go on with the trace that was stopped there: the same model, prompt and settings, "
        "the same bytes; layers that are whole are not computed again",
    )  # fmt: skip
    what = parser.add_argument_group("what to capture")
    what.add_argument(
        "--save-tensor", "--stages", dest="stages", default="all", metavar="STAGES|all",
        help="stages to write, with commas between; 'ffn_*' is all that begin so (default: all)",
    )  # fmt: skip
    what.add_argument(
        "--save-tensor-layers", "--layers", "--layer", dest="layers", default="all",
        metavar="START..END|N|all", help="layers to write; END is not included (default: all)",
    )  # fmt: skip
    what.add_argument(
        "--save-tensor-dir", "-o", dest="directory", default="", metavar="DIR",
        help="where to (default: MODEL's name with -trace, beside it)",
    )  # fmt: skip
    what.add_argument(
        "--logits", choices=("last", "all"), default="last",
        help="lm_head of the last position (with --steps: of every one that decodes a token), or "
        "of all (default: last)",
    )  # fmt: skip
    what.add_argument("--overwrite", action="store_true", help="replace a trace that is there")
    _configure_prompt(parser)
    _configure_passes(parser)
    _configure_computing(parser)
    trace_live.configure(parser)
    trace_watch.configure(parser)
    show = parser.add_argument_group("output")
    show.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    form = show.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the summary as JSON on stdout")
    form.add_argument(
        "--events", action="store_true", help="one JSON object per line on stdout as things happen"
    )


def _configure_prompt(parser: argparse.ArgumentParser) -> None:
    prompt = parser.add_argument_group("the prompt").add_mutually_exclusive_group()
    prompt.add_argument(
        "-p", "--prompt", dest="texts", action="append", metavar="TEXT",
        help=f"text to run (default: {DEFAULT_PROMPT!r}); several run together, as --batch",
    )  # fmt: skip
    prompt.add_argument(
        "--prompt-file", metavar="FILE",
        help="a file with the text, of which one newline at the end is no part; - is stdin",
    )  # fmt: skip
    prompt.add_argument("--tokens", metavar="1,2,3", help="token ids instead of text")
    prompt.add_argument(
        "--prompts", metavar="FILE",
        help="a file with a prompt on each line, blank lines passed over; - is stdin. The model is "
        "opened once (by llamacpp and hf for each); the traces go to DIR/prompt-1, prompt-2, ...",
    )  # fmt: skip
    prompt.add_argument(
        "--batch", metavar="FILE",
        help="as --prompts, and the prompts run together, as sequences of one batch",
    )  # fmt: skip


def _configure_passes(parser: argparse.ArgumentParser) -> None:
    passes = parser.add_argument_group("in passes, with a cache of keys and values")
    passes.add_argument(
        "--steps", type=whole, default=0, metavar="N",
        help="decode N tokens behind the prompt, always the likeliest, one pass each",
    )  # fmt: skip
    passes.add_argument(
        "--chunk", type=whole, default=0, metavar="N",
        help="the prompt in pieces of N tokens, one pass each",
    )  # fmt: skip
    passes.add_argument(
        "--kv", choices=KV_TYPES, default="",
        help="what the cache holds; the query stays as it is (default: f32; hf: its dtype)",
    )  # fmt: skip


def _configure_computing(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how to compute")
    how.add_argument(
        "--engine", default="aprtui", metavar="ENGINE",
        help="aprtui (default), llamacpp or hf (Hugging Face transformers)",
    )  # fmt: skip
    how.add_argument(
        "--engine-arg", dest="engine_args", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of hf: modules=on (what each module makes); of llamacpp: nodes=on (the "
        "nodes that are no stage, too), flash=on, kv=f16, threads=N, gpu_layers=N; may be repeated",
    )  # fmt: skip
    how.add_argument(
        "--device", default="auto",
        help="cpu, mps, cuda:N, cuda:0,cuda:1 (layers spread over these), cuda (one, or all where "
        "one has no room for the weights that --resident keeps) or auto (default)",
    )  # fmt: skip
    how.add_argument(
        "--resident", action="store_true",
        help="keep the stored weights in the memory of the CUDA devices from one of the --prompts "
        "to the next; what does not fit streams",
    )  # fmt: skip
    how.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")
    add_adapter(how)
    add_overrides(how)


def run(args: argparse.Namespace) -> int:
    if args.watch is not None:
        return trace_watch.run(args)
    emit: Emit | None = None
    if args.events:
        from aprtui.engine.worker import event_printer

        emit = event_printer()
    try:
        if (modules := trace_modules.plan_of(args, _job)) is not None:
            return trace_modules.run(modules, args, emit)
        plans = _plans(args)
        check_space(plans)
        if args.dry_run:
            _show_dry_run(plans, args)
            return 0
        return _trace(plans, args, emit)
    except Exception as error:
        told = told_of(error, "trace")
        if emit is not None and not told.told:
            emit(Failed(told.message, told.hint, told.exit_code))
        raise told from error


def _plans(args: argparse.Namespace) -> tuple[Plan, ...]:
    """One plan; of --prompts one a line."""
    if args.resume is not None:
        _check_alone(args)
        return (resumed_plan(Path(args.resume)),)
    if args.model is None:
        raise UsageError("no model", hint="aprtui trace MODEL, or --resume DIR")
    job = _job(args)
    if args.batch is not None or len(args.texts or ()) > 1:
        return make_batch(job, args.texts or prompt_lines(args.batch))
    if args.prompts is None:
        if args.resident:
            raise UsageError(
                "--resident keeps weights for the next prompt, and there is one prompt",
                hint="--prompts FILE traces several",
            )
        return (make_plan(job),)
    return make_plans(job, prompt_lines(args.prompts))


def _check_alone(args: argparse.Namespace) -> None:
    """Raises UsageError for what --resume has from the trace itself."""
    fresh = argparse.ArgumentParser()
    configure(fresh)
    free = ("resume", "dry_run", "json", "events", "against", "stop_at")
    for name, value in vars(args).items():
        if name not in free and value != fresh.get_default(name):
            option = "prompt" if name == "texts" else name.replace("_", "-")
            said = "MODEL" if name == "model" else f"--{option}"
            raise UsageError(
                f"--resume goes on as the trace was begun, and takes no {said}",
                hint="--overwrite traces anew",
            )


def _job(args: argparse.Namespace) -> TraceJob:
    prompt = args.texts[0] if args.texts else None
    if args.prompt_file is not None:  # an editor ends it with a newline that nobody meant
        prompt = re.sub(r"\r?\n\Z", "", text_of(args.prompt_file))
    return TraceJob(
        model=args.model,
        directory=args.directory,
        prompt=prompt,
        tokens=parse_tokens(args.tokens),
        stages=args.stages,
        layers=args.layers,
        device=args.device,
        dtype=args.dtype,
        logits=args.logits,
        overwrite=args.overwrite,
        overrides=parse_overrides(args.overrides),
        engine=args.engine,
        adapter=args.adapter or "",
        engine_args=parse_overrides(args.engine_args, "--engine-arg"),
        resident=args.resident,
        steps=args.steps,
        chunk=args.chunk,
        kv=args.kv,
    )


def _show_dry_run(plans: Sequence[Plan], args: argparse.Namespace) -> None:
    events = [plan.foreseen() for plan in plans]
    if args.json or args.events:
        _print_each([event.to_json() for event in events], args)
        return
    for number, event in enumerate(events, 1):
        _show_plan(event, sys.stdout, _place(number, len(events)))


def _print_each(summaries: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """The one summary as JSON; of several prompts an object with the list of them."""
    one = args.prompts is None and args.batch is None and len(args.texts or ()) < 2
    print_json(summaries[0] if one else {"traces": summaries})


def _place(number: int, count: int) -> str:
    return f"prompt {number} of {count}" if count > 1 else ""


def _show_plan(plan: Planned, stream: object = None, place: str = "") -> None:
    """The plan for people, before anything is computed; on stderr unless ``stream`` is given."""

    def say(text: str) -> None:
        print(text, file=stream or sys.stderr)  # type: ignore[arg-type]

    if place:
        say(place)
    texts = "|".join(plan.token_texts)
    say(f"model   {clean(plan.model)}: {plan.architecture}, {count(plan.num_layers, 'layer')}")
    say(f"tokens  {len(plan.tokens):,}: {clean(texts) if texts else plan.tokens[:12]}")
    if plan.passes:
        say(f"passes  {plan.passes}")
    say(f"reads   {size(plan.read_bytes)} of weights once, about {size(plan.memory_bytes)} memory")
    say(
        f"writes  {count(plan.files, 'file')}, {size(plan.write_bytes)}, "
        f"to {clean(plan.directory)} ({size(plan.free_bytes)} free)"
    )
    say(f"device  {plan.device} ({plan.device_name or 'not checked'}), {plan.dtype}")
    for note in plan.notes:
        say(f"note    {clean(note, 500)}")


class _Display:
    """What a person sees while the trace runs: the plan, then a progress bar on a terminal."""

    def __init__(self, quiet: bool, traces: int) -> None:
        self._quiet = quiet
        self._traces = traces
        self._begun = self._files = self._done = 0
        self._progress: Progress | None = None

    def __call__(self, event: Event) -> None:
        if self._quiet:
            return
        if isinstance(event, Planned):
            self._begun += 1
            _show_plan(event, place=_place(self._begun, self._traces))
            if sys.stderr.isatty():
                self._start(event)
        elif isinstance(event, PassDone) and self._progress is not None:
            said = f"{event.kind} {event.number + 1} of {event.of}"
            self._progress.update(self._progress.task_ids[0], description=f"{said:<26}")
        elif isinstance(event, StageWritten):
            self._advance(event)
        elif isinstance(event, Finished):
            self.close()

    def _start(self, plan: Planned) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        if self._progress is not None:  # of a batch, whose traces are planned first
            self._files += plan.files
            self._progress.update(self._progress.task_ids[0], total=self._files)
            return
        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=bar_console(),
            transient=True,
        )
        progress.add_task(f"{'starting':<26}", total=plan.files)
        self._files, self._done = plan.files, 0
        progress.start()
        self._progress = progress

    def _advance(self, event: StageWritten) -> None:
        if self._progress is not None:
            where = event.stage if event.layer is None else f"layer {event.layer} {event.stage}"
            self._done = max(self._done + 1, event.done)  # those of a batch come in turn
            self._progress.update(
                self._progress.task_ids[0],
                completed=self._done,
                description=f"{clean(where, 60):<26}",
            )

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._quiet:
            return
        if self._progress is not None:
            self._progress.console.print(clean(text, 500), markup=False, highlight=False)
        else:
            print(clean(text, 500), file=sys.stderr)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _trace(plans: Sequence[Plan], args: argparse.Namespace, emit: Emit | None) -> int:
    gc.disable()  # importing torch makes half a million objects and no garbage: 0.25 s
    from aprtui.engine.run import run_traces

    gc.enable()
    from aprtui.engine.stopping import TraceStopped, stopping_on_signals

    display = _Display(quiet=args.json or args.events, traces=len(plans))
    done: list[Finished] = []
    comparing = trace_live.comparing(args, plans, emit, display.say)

    def tell(event: Event) -> None:
        if comparing is not None:
            comparing.hears(event)
        (emit or display)(event)
        if isinstance(event, Finished):
            done.append(event)
            if not args.json and emit is None:
                _show_summary(event)

    try:
        with stopping_on_signals():
            run_traces(plans, tell)
    except TraceStopped as stop:
        display.close()
        _show_stopped(plans, done)
        if comparing is None or not comparing.stopped:
            return 128 + stop.number
        if args.json:
            print_json({"directory": str(plans[0].directory), **comparing.summary()})
    finally:
        display.close()
        if comparing is not None:
            comparing.beside.finish(last_look=False)
    if args.json and done:
        more = {} if comparing is None else comparing.summary()
        manifests = [str(Path(each.directory) / MANIFEST) for each in done]
        _print_each(
            [
                {**each.to_json(), "manifest": m, **more}
                for each, m in zip(done, manifests, strict=True)
            ],
            args,
        )
    if comparing is None:
        return 0
    if not args.json and emit is None:
        comparing.show()
    return comparing.exit_code


def _show_stopped(plans: Sequence[Plan], done: Sequence[Finished]) -> None:
    stopped = plans[min(len(done), len(plans) - 1)]
    whole = f"; {len(done)} of {len(plans)} traces are whole" if len(plans) > 1 else ""
    print(
        f"aprtui: stopped; what was written stays in {clean(str(stopped.directory))}, "
        f"without a manifest{whole} (aprtui trace --resume {quoted(stopped.directory)} goes on)",
        file=sys.stderr,
    )


def _show_summary(done: Finished) -> None:
    print(
        f"wrote {count(done.files, 'file')}, {size(done.written_bytes)}, "
        f"to {clean(done.directory)} in {duration(done.elapsed_s)}"
    )
    device = f", {size(done.peak_device_bytes)} on the device" if done.peak_device_bytes else ""
    print(f"peak memory {size(done.peak_memory_bytes)} of its own{device}")
    if done.generated:
        print(f"decoded: '{clean(done.generated, 500)}'")
    if done.top_tokens:
        likely = "   ".join(
            f"{told_token(clean(token['text']), token['id'])} {token['probability']:.1%}"
            for token in done.top_tokens
        )
        print(f"next token: {likely}")
    if done.nonfinite:
        more = f" and {len(done.nonfinite) - 5} more" if len(done.nonfinite) > 5 else ""
        print(f"NaN or Inf in: {', '.join(done.nonfinite[:5])}{more}")
    print(f"look at it: aprtui {quoted(done.directory)}")

"""What the command line does, as functions: open, trace, compare, bisect.

Paths may be ``str`` or ``Path``; what takes a path takes what is open already, too. Parameters have
the names and the meaning of the command line's options, which the hints of errors speak of. All
raise ``AprtuiError`` (``aprtui.errors`` draws the tree) and nothing else for what files, devices
and requests can do wrong. Results are frozen, print as a line, show as a table in a notebook, and
have ``to_json()``: what the command line prints. Guide: docs/api.md.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from aprtui.compare.opening import open_capture, open_stage_file, unshaped
from aprtui.errors import UsageError
from aprtui.formats.tracedir import StageKey, Told, TraceDir
from aprtui.given import (
    AnyPath,
    Layers,
    Stages,
    both_of,
    given_ids,
    graph_of,
    ids_of,
    open_given,
    read_side,
    refuse_both,
    suspect_of,
    words,
)
from aprtui.graph.select import only_layers, parse_stages
from aprtui.text import clean

if TYPE_CHECKING:
    from aprtui.captures.assemble import Assembly
    from aprtui.captures.imported import ImportedTrace
    from aprtui.compare.bars import Override
    from aprtui.compare.bisect import Replayer
    from aprtui.compare.bisection import Bisection
    from aprtui.compare.diff import Comparison
    from aprtui.compare.matrix import Matrix
    from aprtui.compare.pairs import DiffOptions
    from aprtui.compare.weight_results import ModelComparison
    from aprtui.compare.worker import Options
    from aprtui.engine.events import Event
    from aprtui.engine.job import TraceJob
    from aprtui.engine.module_job import ModulePlan
    from aprtui.engine.module_trace import ModuleRun
    from aprtui.engine.node_trace import NodeRun
    from aprtui.graph import Graph
    from aprtui.model.open import Model
    from aprtui.writer import CaptureWriter

__all__ = [
    "bisect",
    "diff",
    "diff_many",
    "diff_models",
    "import_trace",
    "open_trace",
    "trace",
    "trace_batch",
]

_OTHER_PROMPTS = "trace both with the same --tokens, or compare all the same with --ignore-tokens"


class _How(TypedDict, total=False):
    """How a trace is run: the parameters of ``trace`` beside its prompt."""

    directory: AnyPath
    stages: Stages
    layers: Layers
    logits: str
    engine: str
    engine_args: Mapping[str, str]
    device: str
    dtype: str
    overrides: Mapping[str, str]
    adapter: AnyPath
    overwrite: bool
    steps: int
    chunk: int
    kv: str


def open_trace(
    path: AnyPath, *, model: AnyPath | Model | None = None, progress: Told | None = None
) -> TraceDir:
    """A capture of any program: a trace folder, one side of a per-op folder, or one stage file.

    ``found["layer-3/ffn_gate"]`` is a ``StageArray``: float32, read-only, a memory map where it is
    large, with ``axes``, ``shape`` and ``positions``. Nothing is read before it is asked for. The
    stages are in order of computation. Shapes that no manifest states come from ``model``, else by
    inference (``shape_source`` says which). ``progress`` is told the files found, and of how many
    where that is known. Raises BadFileError, UsageError.
    """
    return open_capture(Path(path), graph_of(model), progress)


def import_trace(
    source: AnyPath,
    *,
    model: AnyPath | Model,
    map: str | None = None,
    output: AnyPath | None = None,
    tokens: Iterable[int] | None = None,
    prompt: str | None = None,
    sequence: int | None = None,
    ranks: Iterable[str] = (),
    overwrite: bool = False,
    overrides: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportedTrace:
    """Another tool's dump as a trace folder: ``output``, else beside it with ``-trace``.

    ``map`` is a convention's name or the path of a map (docs/captures.md), else the dump's names
    tell; ``tokens`` or ``prompt`` are needed where the dump does not hold its token ids. A stage
    whose readings contradict one another is left out and named; copies on ranks that differ are
    named. ``sequence``: which of a batch's, in order of appearance. ``ranks``: the names of the
    ranks' folders in their order, where they do not say it. ``progress`` is told the stages that
    were written, and of how many. Raises UsageError, BadFileError.
    """
    from aprtui.captures.assemble import assemble
    from aprtui.captures.imported import imported
    from aprtui.captures.maps import load_map
    from aprtui.captures.opening import open_dump, trace_beside
    from aprtui.captures.parameters import compare_parameters
    from aprtui.captures.recognise import recognised
    from aprtui.writer import CaptureWriter

    refuse_both(prompt, tokens)
    start = time.monotonic()
    dump = open_dump(Path(source), tuple(ranks))
    convention = recognised(dump) if map is None else load_map(map)
    opened = open_given(model, overrides)
    ids = given_ids(opened, prompt, tokens)
    found = assemble(dump, convention, opened.graph, ids, sequence)
    found.tell(compare_parameters(dump, convention, opened))
    directory = trace_beside(Path(source)) if output is None else Path(output)
    engine = {"name": convention.engine, "dtype": found.dtype, "settings": found.settings}
    with CaptureWriter(
        directory, tokens=found.sequence.tokens, engine=engine, model=opened, prompt=prompt,
        rows=found.rows, overwrite=overwrite,
    ) as capture:  # fmt: skip
        _put(found, capture, progress)
    elapsed_s = time.monotonic() - start
    return imported(found, directory, Path(source), len(opened.graph), elapsed_s)


def _put(
    found: Assembly, capture: CaptureWriter, progress: Callable[[int, int], None] | None
) -> None:
    """Every stage of a dump, and what was said of them."""
    whole = found.rows.positions
    for done, (key, value, positions) in enumerate(found.stages(), 1):
        some = None if positions in (whole, whole[-1:]) else positions
        capture.put(key.stage, value, layer=key.layer, positions=some)
        if progress is not None:
            progress(done, len(found.ways))
    for text in (*found.notes, *found.contradictions, *found.findings):
        capture.note(text)


def trace(
    model: AnyPath | Model,
    *,
    prompt: str | None = None,
    tokens: Iterable[int] | None = None,
    directory: AnyPath | None = None,
    stages: Stages = "all",
    layers: Layers = "all",
    logits: str = "last",
    engine: str = "aprtui",
    engine_args: Mapping[str, str] | None = None,
    device: str = "auto",
    dtype: str = "float32",
    overrides: Mapping[str, str] | None = None,
    adapter: AnyPath | None = None,
    overwrite: bool = False,
    steps: int = 0,
    chunk: int = 0,
    kv: str = "",
    on_event: Callable[[Event], None] | None = None,
) -> TraceDir:
    """Run one traced forward pass in this process, write its stages, and open what was written.

    Either ``prompt`` or ``tokens``; without both, the default prompt. ``directory``: beside the
    model, named after it. ``overrides`` are the ``--set`` values of a model that is not open yet,
    ``adapter`` a LoRA to lay on its weights. ``steps``, ``chunk`` and ``kv`` run it in passes, with
    a cache, as `aprtui trace`'s options do. A model without a family file is captured module by
    module by ``engine="hf"``. ``on_event`` is told each event as it happens
    (``aprtui.engine.events``). Raises UsageError, BadFileError, EngineError; the folder then holds
    whole files only and no manifest.
    """
    from aprtui.engine.module_job import module_plan
    from aprtui.engine.plan import make_plan
    from aprtui.engine.run import run_trace

    job = _job(
        model, prompt=prompt, tokens=ids_of(tokens), directory=directory, stages=stages,
        layers=layers, logits=logits, engine=engine, engine_args=engine_args, device=device,
        dtype=dtype, overrides=overrides, adapter=adapter, overwrite=overwrite, steps=steps,
        chunk=chunk, kv=kv,
    )  # fmt: skip
    modules = module_plan(job)
    if modules is not None:
        return trace_modules(modules, on_event)
    plan = make_plan(*_settled(job, model))
    run_trace(plan, on_event or (lambda event: None))
    return open_capture(plan.directory)


def trace_batch(
    model: AnyPath | Model,
    prompts: Iterable[str | Iterable[int]],
    *,
    on_event: Callable[[Event], None] | None = None,
    **how: Unpack[_How],
) -> tuple[TraceDir, ...]:
    """Run several prompts (texts, or token ids) together as one batch, a sequence each, and open
    what was written: ``prompt-1``, ``prompt-2`` ... in ``directory``.

    ``how`` is as in ``trace``: directory, stages, layers, logits, engine, engine_args, device,
    dtype, overrides, adapter, overwrite, steps, chunk, kv. Raises as ``trace`` does.
    """
    from aprtui.engine.plan import make_batch
    from aprtui.engine.run import run_traces

    given = [each if isinstance(each, str) else ids_of(each) or () for each in prompts]
    if not given:
        raise UsageError("a batch needs prompts", hint='trace_batch(model, ["one", [1, 2, 3]])')
    job, opened = _settled(_job(model, **how), model)
    plans = make_batch(job, given, opened)
    run_traces(plans, on_event or (lambda event: None))
    return tuple(open_capture(plan.directory) for plan in plans)


def _job(model: AnyPath | Model, **how: Any) -> TraceJob:
    """A job as the command line's options would make it."""
    from aprtui.engine.job import TraceJob
    from aprtui.model.open import Model

    for key in ("directory", "adapter"):
        how[key] = os.fspath(how.get(key) or "")
    for key in ("stages", "layers"):
        how[key] = words(how.get(key, "all"))
    for key in ("overrides", "engine_args"):
        how[key] = dict(how.get(key) or {})
    return TraceJob(model=str(model.path) if isinstance(model, Model) else os.fspath(model), **how)


def _settled(job: TraceJob, model: AnyPath | Model) -> tuple[TraceJob, Model]:
    """The model opened, and the job with what it is opened by."""
    opened = open_given(model, job.overrides, job.adapter or None)
    laid = "" if opened.file.adapter is None else str(opened.file.adapter.path)
    whole = dataclasses.replace(
        job, model=str(opened.path), overrides=opened.overrides, adapter=laid
    )
    return whole, opened


def trace_modules(plan: ModulePlan, on_event: Callable[[Event], None] | None = None) -> TraceDir:
    """A planned trace of transformers' modules, or of llama.cpp's nodes, written and opened. Raises
    as ``trace`` does."""
    from aprtui.engine.folder import check_folder
    from aprtui.writer import CaptureWriter

    check_folder(plan.directory, overwrite=plan.job.overwrite)
    running = _running(plan)
    with CaptureWriter(
        plan.directory, tokens=plan.tokens, engine=running.engine, prompt=plan.prompt,
        overwrite=plan.job.overwrite, model=plan.opened, described=running.described,
        planned=plan.foreseen(running.described), on_event=on_event,
    ) as capture:  # fmt: skip
        for note in plan.notes:
            capture.note(note)
        running.run(capture)
    return open_capture(plan.directory)


def _running(plan: ModulePlan) -> ModuleRun | NodeRun:
    if plan.job.engine == "llamacpp":
        from aprtui.engine.node_trace import NodeRun

        return NodeRun(plan)
    from aprtui.engine.module_trace import ModuleRun

    return ModuleRun(plan)


def diff(
    a: AnyPath | TraceDir,
    b: AnyPath | TraceDir | None = None,
    *,
    model: AnyPath | Model | None = None,
    stages: Stages = "all",
    layers: Layers = "all",
    bars: Iterable[str] = (),
    positions: str = "all",
    ignore_tokens: bool = False,
    top: int = 10,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Compare two traces, or two stage files: every metric of every pair, judged by a bar.

    ``a`` alone is a per-op folder: its cpu against its gpu. ``model`` tells the shapes of foreign
    folders. ``bars`` as ``--bar``: "rel_l2=1e-3", "ffn_*:rel_l2=5e-2". ``positions``: "all" or
    "last". ``progress`` is told how many values were compared since. Raises UsageError for other
    prompts (unless ``ignore_tokens``) and for what cannot be compared, BadFileError.
    """
    from aprtui.compare.bars import parse_bar
    from aprtui.compare.diff import diff_traces
    from aprtui.compare.infer import with_shapes
    from aprtui.compare.pairs import DiffOptions, check_tokens

    _check_positions(positions)
    overrides = tuple(map(parse_bar, bars))
    graph = graph_of(model)
    files = [Path(side) for side in (a, b) if not isinstance(side, TraceDir | None)]
    if len(files) == 2 and all(path.is_file() for path in files):
        options = DiffOptions(last_position=positions == "last", top=top)
        return _diff_files(files, graph, overrides, options, ignore_tokens, progress)
    sides = both_of(a, b)
    if not ignore_tokens:
        check_tokens(*sides, _OTHER_PROMPTS)
    left, right = (with_shapes(side if graph is None else unshaped(side), graph) for side in sides)
    options = _options(sides, stages, layers, positions, top)
    return diff_traces(
        left, right, options, overrides, ignore_tokens=ignore_tokens, progress=progress
    )


def diff_many(
    first: AnyPath | TraceDir,
    *others: AnyPath | TraceDir,
    model: AnyPath | Model | None = None,
    stages: Stages = "all",
    layers: Layers = "all",
    bars: Iterable[str] = (),
    positions: str = "all",
    ignore_tokens: bool = False,
    top: int = 10,
    cancelled: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Matrix:
    """Compare several traces with the first: a matrix, each cell of it what ``diff`` says.

    Two folders of prompts (`aprtui trace --prompts`) are a matrix too: a column each prompt of
    both. Parameters and errors as of ``diff``; ``cancelled`` ends it with metrics.Cancelled.
    """
    from aprtui.compare.bars import parse_bar
    from aprtui.compare.facing import faced_sides
    from aprtui.compare.infer import with_shapes
    from aprtui.compare.matrix import line_up, matrix_of, measure

    _check_positions(positions)
    graph = graph_of(model)

    def read(side: AnyPath | TraceDir) -> TraceDir:
        found = read_side(side)
        return with_shapes(found if graph is None else unshaped(found), graph)

    sides = faced_sides((first, *others), read)
    both = [each for side in sides for each in (side.a, side.b)]
    options = _options(both, stages, layers, positions, top)
    overrides = tuple(map(parse_bar, bars))
    columns = line_up(sides, options, overrides, ignore_tokens=ignore_tokens)
    return matrix_of(columns, measure(columns, options, cancelled=cancelled, progress=progress))


def _check_positions(positions: str) -> None:
    if positions not in ("all", "last"):
        raise UsageError(f"--positions {clean(positions)}", hint="all or last")


def _options(
    sides: Iterable[TraceDir], stages: Stages, layers: Layers, positions: str, top: int
) -> DiffOptions:
    """What is compared of these traces, in the words of ``diff``."""
    from aprtui.compare.pairs import DiffOptions

    num_layers = 1 + max((key.layer or 0 for side in sides for key in side), default=-1)
    return DiffOptions(
        parse_stages(words(stages)),
        only_layers(words(layers), num_layers),
        positions == "last",
        top,
    )


def diff_models(
    a: AnyPath,
    b: AnyPath,
    *,
    adapter_a: AnyPath | None = None,
    adapter_b: AnyPath | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> ModelComparison:
    """Compare two models' weights, whatever their formats and names, and what they are set to.

    ``adapter_a`` and ``adapter_b`` are LoRA adapters to lay on the weights of either.
    ``progress`` is told the values done, of how many, and the weight's role. Raises BadFileError,
    UsageError, EngineError for a block type without a decoder.
    """
    from aprtui.compare.weights import diff_models as compare

    laid = [None if side is None else Path(side) for side in (adapter_a, adapter_b)]
    return compare(Path(a), Path(b), progress, adapters=(laid[0], laid[1]))


def bisect(
    b: AnyPath | TraceDir,
    *,
    a: AnyPath | TraceDir | None = None,
    model: AnyPath | Model | None = None,
    prompt: str | None = None,
    tokens: Iterable[int] | None = None,
    stages: Stages = "all",
    layers: Layers = "all",
    bars: Iterable[str] = (),
    overrides: Mapping[str, str] | None = None,
    adapter: AnyPath | None = None,
    progress: Callable[[int, int, StageKey], None] | None = None,
    replayer: Replayer | None = None,
) -> Bisection:
    """Replay every stage of ``b`` in float64 from its own inputs, and name what computes wrongly.

    ``a``, a reference, adds where the two first differ, and is replayed where b has no culprit.
    ``model``: what b should have computed; else what a manifest names, with ``adapter`` on its
    weights, or the one that b's manifest names. ``tokens`` or ``prompt`` where b does not say. A
    per-op folder alone is its gpu against its cpu. ``progress``: stages done, of how many, which.
    ``replayer`` measures elsewhere (``aprtui.sweep.bisecting``). Raises UsageError, BadFileError,
    EngineError.
    """
    from aprtui.compare.bisect import bisect as replay
    from aprtui.compare.nodes import bisect_nodes
    from aprtui.compare.reference import find_model, named_adapter
    from aprtui.errors import UnknownFamilyError
    from aprtui.formats.modulecalls import calls_of, nodes_of
    from aprtui.model.open import Model

    refuse_both(prompt, tokens)
    suspect, reference = suspect_of(b, a)
    named = find_model(reference, suspect)[0] if model is None else model
    if calls_of(suspect):
        return _bisect_modules(named, suspect, reference, replayer, stages=words(stages),
                               layers=words(layers), bars=bars, progress=progress)  # fmt: skip
    if adapter is None and not isinstance(named, Model):
        adapter = named_adapter(suspect, Path(named))
    try:
        opened = open_given(named, overrides, adapter)
    except UnknownFamilyError:
        if nodes_of(suspect):
            return bisect_nodes(str(named), suspect, reference)
        raise
    ids, options = given_ids(opened, prompt, tokens), _replayed(opened, stages, layers, bars)
    return replay(opened, suspect, reference, tokens=ids, options=options, progress=progress,
                  replayer=replayer)  # fmt: skip


def _bisect_modules(
    model: AnyPath | Model, b: TraceDir, a: TraceDir | None, replayer: Replayer | None, **how: Any
) -> Bisection:
    from aprtui.compare.modules import bisect_modules
    from aprtui.model.open import Model

    if replayer is not None:
        raise UsageError("a trace of modules is replayed in one process", hint="leave --ray out")
    return bisect_modules(model.path if isinstance(model, Model) else Path(model), b, a, **how)


def _replayed(model: Model, stages: Stages, layers: Layers, bars: Iterable[str]) -> Options:
    """What of a capture of the model is replayed."""
    from aprtui.compare.bars import parse_bar
    from aprtui.compare.worker import Options

    return Options(
        parse_stages(words(stages)),
        only_layers(words(layers), model.graph.num_layers),
        tuple(map(parse_bar, bars)),
    )


def _diff_files(
    paths: Sequence[Path],
    graph: Graph | None,
    overrides: tuple[Override, ...],
    options: DiffOptions,
    ignore_tokens: bool,
    progress: Callable[[int], None] | None,
) -> Comparison:
    """Two stage files, by the bars of the traces around them where both lie in one."""
    from aprtui.compare.bars import FILE_BARS, choose_bars
    from aprtui.compare.diff import diff_files
    from aprtui.compare.pairs import check_tokens

    (a, trace_a), (b, trace_b) = (open_stage_file(path, graph) for path in paths)
    bars = dataclasses.replace(FILE_BARS, overrides=overrides)
    if trace_a is not None and trace_b is not None:
        if not ignore_tokens:
            check_tokens(trace_a, trace_b, _OTHER_PROMPTS)
        bars = choose_bars(trace_a, trace_b, overrides)
    return diff_files(a, b, bars, options, progress=progress)

"""The words of the Trace screen: a plan, the progress of a pass, the residual's rms by layer."""

from __future__ import annotations

from textual.content import Content

from aprtui.engine.events import Event, Failed, Finished, Planned, StageWritten, Stopped
from aprtui.engine.stages import WHOLE_MODEL_STAGES
from aprtui.formats.tracedir import StageKey
from aprtui.text import clean, count, duration, number, size
from aprtui.tui.widgets.bars import bar

__all__ = [
    "other_engines",
    "plan_content",
    "planned_stages",
    "progress_content",
    "residual_content",
]


def other_engines() -> str:
    """The engines beside ours that the form offers; how to install those that are not there."""
    from aprtui.engine.adapters import available

    return " · ".join(
        f"or {engine.name}" if engine.installed else f"{engine.name}: {engine.how_to_install}"
        for engine in available()
        if engine.name != "aprtui"
    )


def planned_stages(event: Planned) -> list[StageKey]:
    """The cells of the grid that a plan fills."""
    whole = [StageKey(None, stage) for stage in event.stages if stage in WHOLE_MODEL_STAGES]
    layered = [stage for stage in event.stages if stage not in WHOLE_MODEL_STAGES]
    return whole + [
        StageKey(layer, stage)
        for layer in event.layers
        for stage in layered
        if stage != "embedding" or layer == 0
    ]


def plan_content(event: Planned) -> Content:
    """Tokens, files, bytes, and whether they fit."""
    fits = event.write_bytes <= event.free_bytes
    texts = "|".join(clean(text, 30) for text in event.token_texts[:60])
    ids = " ".join(str(token) for token in event.tokens[:60])
    lines = [
        Content.assemble(
            (count(len(event.tokens)), "bold"), " tokens x ", (str(len(event.layers)), "bold"),
            " layers x ", (str(len(event.stages)), "bold"), " stages = ",
            (count(event.files), "bold $text-accent"), " files",
        ),
        Content.assemble(
            "writes ", (size(event.write_bytes), "bold $text-accent"), " · ",
            (f"{size(event.free_bytes)} free", "" if fits else "bold $text-error"),
            ("" if fits else "  does not fit", "bold $text-error"),
        ),
        Content.assemble(
            "reads ", size(event.read_bytes), " once · about ", size(event.memory_bytes),
            " memory · ", clean(event.device_name or event.device, 40), " · ", event.dtype,
        ),
        Content(""),
        Content.styled(texts, "$text-primary"),
        Content.styled(ids, "dim"),
    ]  # fmt: skip
    lines += [Content.styled(f"! {clean(note, 300)}", "$text-warning") for note in event.notes[:6]]
    return Content("\n").join(lines)


def progress_content(
    planned: Planned, last: StageWritten | None, ended: Event | None, width: int
) -> Content:
    """The line of numbers, and under it the bar."""
    done = last.done if last else 0
    files = last.files if last else planned.files
    share = done / max(files, 1)
    full = int(share * width)
    tone = (
        "$text-error" if isinstance(ended, Failed) else "$text-success" if ended else "$text-accent"
    )
    line = Content.assemble(" ", ("━" * full, tone), ("─" * (width - full), "dim"))
    if isinstance(ended, Finished):
        top = "|".join(clean(str(t.get("text", "")), 20) for t in ended.top_tokens[:5])
        text = Content.assemble(
            (f" {count(ended.files)} files · {size(ended.written_bytes)} · "
             f"{duration(ended.elapsed_s)} · peak {size(ended.peak_memory_bytes)}", "bold"),
            (f" · next: {top}" if top else "", "$text-primary"),
            (f" · NaN or Inf in {len(ended.nonfinite)} stages, first {ended.nonfinite[0]}"
             if ended.nonfinite else "", "bold $text-error"),
            ("   b browses it", "dim"),
        )  # fmt: skip
    elif isinstance(ended, Stopped):
        text = Content.styled(
            f" stopped after {ended.files} files; b browses them", "$text-warning"
        )
    elif isinstance(ended, Failed):
        text = Content.assemble(
            (f" ! {clean(ended.message, 400)}", "bold $text-error"),
            (f"  {clean(ended.hint)}", "dim"),
        )
    elif last is None:
        text = Content(" starting the engine …")
    else:
        text = Content(running_text(planned, last))
    return Content("\n").join([text.truncate(width, ellipsis=True), line])


def running_text(planned: Planned, last: StageWritten) -> str:
    """``layer 11 of 28 · ffn_up · 214 of 535 files · ...``."""
    rate = last.done / last.elapsed_s if last.elapsed_s > 0 else 0.0
    where = "end" if last.layer is None else f"layer {last.layer} of {planned.num_layers}"
    parts = [
        where, clean(last.stage, 30), f"{count(last.done)} of {count(last.files)} files",
        size(last.written_bytes), duration(last.elapsed_s),
    ]  # fmt: skip
    if rate:
        parts += [f"{rate:.0f} files/s", f"{duration((last.files - last.done) / rate)} left"]
    if last.device_bytes:
        parts.append(f"GPU {size(last.device_bytes)}")
    if last.memory_bytes:
        parts.append(f"own {size(last.memory_bytes)}")
    return " " + " · ".join(parts)


def residual_content(rms: dict[int, tuple[float, str]]) -> Content:
    """The rms of each layer's output as a bar."""
    finite = [value for value, _ in rms.values() if value == value and value != float("inf")]
    largest = max(finite, default=0.0)
    lines = [Content.styled("rms of the residual", "$text-primary")]
    for layer, (value, wrong) in sorted(rms.items()):
        share = value / largest if largest and value == value else 0.0
        lines.append(
            Content.assemble(
                (f"{layer:>3} ", "dim"), (f"{bar(share, 8)} ", "$text-primary"),
                f"{number(value, 3):>7}",
                (f" {wrong}" if wrong else "", "bold $text-error"),
            )
        )  # fmt: skip
    return Content("\n").join(lines)

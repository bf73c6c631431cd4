"""The words of the Trace screen: a plan, the progress of a pass, the residual's rms by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size
from textual.content import Content

from aprtui.engine.events import (
    CardSeen,
    Event,
    Failed,
    Finished,
    PassDone,
    Planned,
    StageWritten,
    Stopped,
)
from aprtui.formats.tracedir import StageKey
from aprtui.graph.vocabulary import WHOLE_MODEL_STAGES, facts_of
from aprtui.text import clean, count, duration, number, size, told_token
from aprtui.tui.carry import from_home
from aprtui.tui.widgets.bars import bar

__all__ = [
    "fitting",
    "hint_here",
    "outcome_content",
    "output_stage",
    "pass_text",
    "plan_content",
    "planned_stages",
    "progress_content",
    "residual_content",
]

MOST_TOKENS = 400


def planned_stages(event: Planned) -> list[StageKey]:
    """The cells of the grid that a plan fills; a layer has none for what it does not compute."""
    whole = [StageKey(None, stage) for stage in event.stages if stage in WHOLE_MODEL_STAGES]
    layered = [stage for stage in event.stages if stage not in WHOLE_MODEL_STAGES]
    return whole + [
        StageKey(layer, stage)
        for layer in event.layers
        for stage in layered
        if layer in event.only_in.get(stage, event.layers)
    ]


def output_stage(event: Planned) -> str:
    """The last of the residual stream in a layer that is written; empty where none is."""
    return next((name for name in reversed(event.stages) if facts_of(name).residual), "")


def plan_content(event: Planned, width: int, taken: bool) -> Content:
    """Tokens, files, bytes, whether they fit, and each token over its id.

    ``taken``: the folder holds a trace already.
    """
    fits = event.write_bytes <= event.free_bytes
    writes = Content.assemble(
        "writes ", (size(event.write_bytes), "bold $text-accent"), " · ",
        (f"{size(event.free_bytes)} free", "" if fits else "bold $text-error"),
        ("" if fits else "  does not fit", "bold $text-error"),
    )  # fmt: skip
    reads = Content(
        f"reads {size(event.read_bytes)} once · memory about {size(event.memory_bytes)}"
    )
    together = Content.assemble(writes, " · ", reads)
    lines = [
        Content.assemble(
            count(len(event.tokens), "token"), " · ",
            (count(event.files, "file"), "bold $text-accent"), counted(event),
        ),
        *((together,) if together.cell_length <= width else (writes, reads)),
    ]  # fmt: skip
    if event.device_name:
        lines.append(Content(f"on {clean(event.device, 40)}: {clean(event.device_name, 200)}"))
    if taken:
        lines.append(Content.styled("! the folder holds a trace: r asks first", "$text-warning"))
    if event.passes:
        lines.append(Content(f"in passes: {event.passes}"))
    lines += token_lines(event.token_texts, event.tokens, width)
    lines += [Content.styled(f"! {clean(note, 300)}", "$text-warning") for note in event.notes[:6]]
    return Content("\n").join(lines)


def counted(event: Planned) -> str:
    """``: 17 in each of 6 layers and 3 more``: what the files are; empty where it is not so."""
    cells, layers = planned_stages(event), len(event.layers)
    if len(cells) != event.files or layers < 2:
        return ""
    found = Counter(key.stage for key in cells if key.layer is not None)
    alike = sum(times == layers for times in found.values())
    more = event.files - alike * layers
    return f": {alike} in each of {layers} layers" + (f" and {more} more" if more else "")


def token_lines(texts: Sequence[str], ids: Sequence[int], width: int) -> list[Content]:
    """Each token with its id below it, as many rows of them as MOST_TOKENS take."""
    rows: list[Content] = []
    words, numbers, used = "", "", 0
    for place, token in enumerate(ids[:MOST_TOKENS]):
        text = clean(texts[place], 30) if place < len(texts) else ""
        cells = max(cell_len(text), len(str(token))) + 1
        if used and used + cells > width:
            rows += [Content.styled(words, "$text-primary"), Content.styled(numbers, "dim")]
            words, numbers, used = "", "", 0
        words += set_cell_size(text, cells - 1) + "│"
        numbers += f"{token:<{cells}}"
        used += cells
    rows += [Content.styled(words, "$text-primary"), Content.styled(numbers, "dim")]
    if len(ids) > MOST_TOKENS:
        rows.append(Content.styled(f"and {count(len(ids) - MOST_TOKENS)} more tokens", "dim"))
    return rows


def progress_content(
    planned: Planned,
    last: StageWritten | None,
    ended: Event | None,
    width: int,
    cards: Sequence[CardSeen] = (),
    passed: PassDone | None = None,
) -> Content:
    """The line of numbers, what the cards do while it runs, and under them the bar."""
    done = last.done if last else 0
    files = last.files if last else planned.files
    share = done / max(files, 1)
    full = int(share * width)
    tone = (
        "$text-error" if isinstance(ended, Failed) else "$text-success" if ended else "$text-accent"
    )
    line = Content.assemble(" ", ("━" * full, tone), ("─" * (width - full), "dim"))
    if isinstance(ended, Finished):
        top = " ".join(_next_token(t) for t in ended.top_tokens[:5])
        text = Content.assemble(
            (f" {count(ended.files)} files · {size(ended.written_bytes)} · "
             f"{duration(ended.elapsed_s)} · peak {size(ended.peak_memory_bytes)}", "bold"),
            (f" · next: {top}" if top else "", "$text-primary"),
            (f" · NaN or Inf in {count(len(ended.nonfinite), 'stage')}, "
             f"first {clean(ended.nonfinite[0], 60)}"
             if ended.nonfinite else "", "bold $text-error"),
            ("   b browses it", "dim"),
        )  # fmt: skip
    elif isinstance(ended, Stopped):
        text = Content.styled(
            f" stopped after {count(ended.files, 'file')}; b browses them", "$text-warning"
        )
    elif isinstance(ended, Failed):
        text = Content.styled(f" ! {clean(ended.message, 400)}", "bold $text-error")
    elif last is None and passed is not None:
        text = Content(f" {pass_text(passed)}")
    elif last is None:
        text = Content(" starting the engine …")
    else:
        text = Content(running_text(planned, last, width))
    lines = [text.truncate(width, ellipsis=True), line]
    if ended is None and cards:
        seen = "   ".join(map(card_text, cards))
        lines.insert(1, Content(f" {seen}").truncate(width, ellipsis=True))
    return Content("\n").join(lines)


def pass_text(event: PassDone) -> str:
    """``decode 3 of 12 · position 14 · ' the' · 0.4 s``: one of several passes."""
    rows = "position" if event.rows == 1 else f"{event.rows} rows from position"
    token = f" · '{clean(event.text, 30)}'" if event.text else ""
    return (
        f"{event.kind} {event.number + 1} of {event.of} · {rows} {event.first}{token} · "
        f"{duration(event.elapsed_s)}"
    )


def card_text(card: CardSeen) -> str:
    """``cuda:0 5.8 GB of 85.5 GB · 37 % busy · 310 of 700 W``, as far as the card tells."""
    parts = [f"{clean(card.device, 20)} {size(card.used_bytes)} of {size(card.total_bytes)}"]
    if card.busy_percent is not None:
        parts.append(f"{card.busy_percent} % busy")
    if card.watts is not None:
        most = f" of {card.most_watts:.0f}" if card.most_watts is not None else ""
        parts.append(f"{card.watts:.0f}{most} W")
    return " · ".join(parts)


def running_text(planned: Planned, last: StageWritten, width: int) -> str:
    """``layer 11 of 28 · ffn_up · 214 of 535 files · ...``; the least needed goes first."""
    rate = last.done / last.elapsed_s if last.elapsed_s > 0 else 0.0
    where = "end" if last.layer is None else f"layer {last.layer} of {planned.num_layers}"
    parts = [  # what is told, and the order in which it gives way
        (where, 0), (clean(last.stage, 30), 4),
        (f"{count(last.done)} of {count(last.files)} files", 0), (size(last.written_bytes), 6),
        (duration(last.elapsed_s), 5),
        (f"{rate:.0f} files/s" if rate else "", 3),
        (f"{duration((last.files - last.done) / rate)} left" if rate else "", 1),
        (f"GPU {size(last.device_bytes)}" if last.device_bytes else "", 2),
        (f"own {size(last.memory_bytes)}" if last.memory_bytes else "", 2),
    ]  # fmt: skip
    return " " + fitting([part for part in parts if part[0]], width - 1)


def fitting(parts: Sequence[tuple[str, int]], width: int) -> str:
    """The parts with dots between them; where they do not fit, those of the highest number go."""
    kept = list(parts)
    while len(kept) > 1 and sum(len(text) + 3 for text, _ in kept) - 3 > width:
        kept.remove(max(kept, key=lambda part: part[1]))
    return " · ".join(text for text, _ in kept)


def outcome_content(planned: Planned, ended: Event, log: Sequence[str]) -> Content:
    """What there is to know once it is over: the next tokens, or what went wrong."""
    lines: list[Content] = []
    if isinstance(ended, Finished):
        for entry in ended.top_tokens[:5]:
            share = float(entry.get("probability", 0.0))
            lines.append(Content.assemble(
                (f"{set_cell_size(_next_token(entry), 14)} ", "bold"),
                (f"{bar(share, 24)} ", "$text-primary"), f"{100 * share:5.1f} %",
                (f"  id {entry.get('id')}  logit {float(entry.get('logit', 0.0)):.4g}", "dim"),
            ))  # fmt: skip
        if ended.nonfinite:
            names = ", ".join(clean(name, 60) for name in ended.nonfinite[:8])
            lines.append(Content.styled(f"! NaN or Inf in {names}", "bold $text-error"))
        if ended.peak_device_bytes:
            lines.append(Content(f"peak on the device {size(ended.peak_device_bytes)}"))
    elif isinstance(ended, Failed):
        lines.append(Content.styled(f"! {clean(ended.message, 600)}", "bold $text-error"))
        lines += [
            Content.styled(text, "dim") for text in (hint_here(ended.hint), *log[-3:]) if text
        ]
    else:
        lines.append(Content("r starts anew and asks before it replaces; q goes back to the form"))
    folder = from_home(Path(planned.directory))
    lines.append(Content.styled(clean(folder, 300), "dim"))
    return Content("\n").join(lines)


def _next_token(entry: Mapping[str, Any]) -> str:
    """A token of the next ones, as everywhere: its text in quotes, or its id where it has none."""
    return told_token(clean(str(entry.get("text") or ""), 20), entry.get("id"))


def hint_here(hint: str) -> str:
    """A hint in the form's words: the engine speaks of the command line's options."""
    if "-o DIR" in hint:
        return "Into names another folder"
    if "--tokens" in hint:
        return "Tokens takes ids in place of the prompt"
    return clean(hint, 300)


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

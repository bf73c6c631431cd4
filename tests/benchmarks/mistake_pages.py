"""The pages of docs/mistakes: what the catalogue says, and how it looked where it was planted.

    python -m tests.benchmarks.mistake_pages [--measure] [ID ...]

Writes them of ``pages.toml``. With ``--measure`` every mistake that the tests plant by independent
numpy is computed, compared with the right pass and judged by bisect (minutes); without, what was
measured stays.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from aprtui.compare.bisect import bisect
from aprtui.compare.mistakes.pages import Page, pages
from aprtui.engine.replay import EXACT, Arithmetic
from aprtui.formats.tracedir import StageKey
from aprtui.text import number
from tests.compare import (
    test_family_mistakes,
    test_mistakes,
    test_new_mistakes,
    test_order_mistakes,
    test_recurrent_mistakes,
    test_stream_mistakes,
)
from tests.compare.planting import TOKENS, Array, Plant, compute, model_of, write
from tests.families import TINY, save_tiny
from tests.support import FIXTURES

__all__ = ["index", "main", "prose"]

PAGES = Path(__file__).resolve().parents[2] / "docs/mistakes"
INDEX = "index"
MARK = "## Where it was planted"
HEAD = f"""{MARK}

By numpy that is not aprtui's, in one stage of a small model: how far that stage and the logits are
from the right pass, whether the likeliest next token is another, what `bisect` says and what its
explanation leaves.

| model | stage | rel_l2 | cosine | logits' cosine | next token | bisect | leaves |
|---|---|---|---|---|---|---|---|
"""
LOGITS = "lm_head"


@dataclass(frozen=True)
class Place:
    id: str
    model: Path
    name: str
    stage: str
    plant: Plant
    tokens: tuple[int, ...]
    how: Arithmetic = EXACT
    overrides: tuple[tuple[str, str], ...] = ()


def places(tiny: Path, ids: Sequence[str]) -> Iterator[Place]:
    """What the tests plant of these mistakes; tiny models are made in ``tiny``."""
    for planted in (
        *test_mistakes.PLANTED,
        *test_new_mistakes.PLANTED,
        *test_order_mistakes.PLANTED,
    ):
        if planted.id not in ids:
            continue
        model = FIXTURES / "models" / planted.model
        yield Place(planted.id, model, planted.model, planted.stage, planted.plant, TOKENS,
                    planted.how, planted.overrides)  # fmt: skip
    for module in (test_family_mistakes, test_recurrent_mistakes, test_stream_mistakes):
        for mistake in module.PLANTED:
            for family, stage, plant in mistake.places if mistake.id in ids else ():
                folder = tiny / family
                if not folder.exists():
                    save_tiny(TINY[family], folder)
                name = f"{family}, tiny"
                yield Place(mistake.id, folder, name, stage, plant, module.TOKENS)


@cache
def right(
    model: Path, overrides: tuple[tuple[str, str], ...], how: Arithmetic, tokens: tuple[int, ...]
) -> dict[StageKey, Array]:
    return compute(model_of(model, overrides), {}, how, tokens)


def row(place: Place) -> str:
    model = model_of(place.model, place.overrides)
    wrong = compute(model, {place.stage: place.plant}, place.how, place.tokens)
    with tempfile.TemporaryDirectory() as folder:
        found = bisect(model, write(Path(folder), wrong), tokens=place.tokens)
    good = right(place.model, place.overrides, place.how, place.tokens)
    [key] = [key for key in good if str(key) == place.stage]
    [last] = [key for key in good if key.stage == LOGITS]
    a, b, logits = good[key], wrong[key], (good[last], wrong[last])
    other = logits[0].argmax() != logits[1].argmax()  # of the last position alone
    said = [c.mistake for c in found.culprits if c.key == key and c.mistake is not None]
    text = said[0].text.replace("|", "\\|") if said else "not named"
    return (
        f"| {place.name} | `{place.stage}` | {number(_distance(a, b), 2)} | {_cosine(a, b)} "
        f"| {_cosine(*logits)} | {'another' if other else 'the same'} | {text} "
        f"| {number(said[0].residual_rel_l2, 2) if said else ''} |"
    )


def _distance(a: Array, b: Array) -> float:
    return float(np.linalg.norm(b - a) / np.linalg.norm(a)) if a.shape == b.shape else np.nan


def _cosine(a: Array, b: Array) -> str:
    size = np.linalg.norm(a) * np.linalg.norm(b)
    if a.shape != b.shape or size == 0 or not np.isfinite(size):
        return "none"
    return f"{float(np.vdot(a, b) / size):.6f}"


def prose(page: Page) -> str:
    """The part of a page that is not measured."""
    sections = (f"**{heading}.** {text}\n" for heading, text in page.sections)
    return "\n".join((f"# {page.title}\n", f"`{page.id}`\n", *sections))


def index() -> str:
    """The list of all pages."""
    rows = "".join(f"| [`{p.id}`]({p.id}.md) | {p.title} |\n" for p in pages().values())
    return (
        "# Mistakes\n\nWhat `aprtui bisect` names, and proves, where a stage computes wrongly;"
        " `aprtui mistakes ID` says the same in the terminal.\n\n"
        "| id | what was done |\n|---|---|\n" + rows
    )


def write_pages(measured: dict[str, list[str]]) -> None:
    """All pages; of a mistake that is not in ``measured`` the rows that stand there stay."""
    PAGES.mkdir(exist_ok=True)
    for page in pages().values():
        path = PAGES / f"{page.id}.md"
        rows = measured.get(page.id) or _rows(path)
        table = "\n" + HEAD + "".join(f"{row}\n" for row in rows) if rows else ""
        path.write_text(prose(page) + table, encoding="utf-8")
    (PAGES / f"{INDEX}.md").write_text(index(), encoding="utf-8")


def _rows(path: Path) -> list[str]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("|")][2:]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("ids", nargs="*", metavar="ID")
    parser.add_argument("--measure", action="store_true")
    args = parser.parse_args(arguments)
    measured: dict[str, list[str]] = {}
    if args.measure:
        with tempfile.TemporaryDirectory() as tiny:
            for place in places(Path(tiny), args.ids or list(pages())):
                measured.setdefault(place.id, []).append(row(place))
                print(place.id, measured[place.id][-1], flush=True)
    write_pages(measured)
    return 0


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())

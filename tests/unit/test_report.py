"""A report: the verdict first, the culprit named, safe to open, whole or not written at all."""

from __future__ import annotations

import dataclasses
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from aprtui.cli.main import main
from aprtui.compare.bars import parse_bar
from aprtui.compare.bisect import bisect
from aprtui.compare.diff import diff_traces
from aprtui.formats.tracedir import open_trace
from aprtui.model.open import open_model
from aprtui.report.build import build_report
from aprtui.report.html import html_report
from aprtui.report.json import json_report
from aprtui.report.markdown import markdown_report
from aprtui.report.model import CulpritLine, Report
from tests.support import FIXTURES, SMALL, needs_fixtures

REFERENCE = SMALL / "captures" / "qwen2-q4_k_m" / "float64"
MODEL = SMALL / "models" / "qwen2-q4_k_m.gguf"
BAD_BLOCK = SMALL / "faults" / "bad-block-gate-L3-ggml"
HONEST = SMALL / "faults" / "honest-ggml-qwen2"
HOSTILE = (
    "</title></style><script>alert(1)</script><img src=http://x.example/a onerror=alert(2)> "
    "[link](http://x.example) ![i](http://x.example/i) `code` ```fence | cell \u202egnp.exe\x1b[31m"
)
VOID = frozenset({"meta", "br", "rect", "circle"})


class Page(HTMLParser):
    """Checks that elements close in order; keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_self_contained(page: Page) -> None:
    """Nothing runs and nothing is fetched."""
    assert not page.tags & {"script", "img", "iframe", "link", "object", "embed", "a", "base"}
    names = {name for name, _ in page.attributes}
    assert not names & {"src", "href", "srcset", "xlink:href", "data", "action", "style"}
    assert not any(name.startswith("on") for name in names)


def written(tmp_path: Path, b: Path, kind: str, *more: str) -> tuple[int, str]:
    path = tmp_path / f"report.{kind}"
    code = main(["report", str(REFERENCE), str(b), "-o", str(path), *more])
    return code, path.read_text(encoding="utf-8")


def report_of(a: Path, b: Path) -> Report:
    sides = open_trace(a), open_trace(b)
    return build_report(*sides, diff_traces(*sides))


# -- what it says ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["html", "md", "json"])
def test_every_kind_names_the_culprit_the_mistake_and_what_is_honest(
    tmp_path: Path, kind: str
) -> None:
    """The fixture's planted fault: one block of 32 weights in a capture that rounds to Q8_K."""
    code, text = written(tmp_path, BAD_BLOCK, kind, "--model", str(MODEL))
    assert code == 1
    shown = Page(text).text if kind == "html" else text.replace("\\", "")
    headline = shown.index("layer-3/ffn_gate computes wrongly")
    assert headline < shown.index("row 17, block 3 of 32 weights")
    for words in ("bad_block", "activations rounded to Q8_K", "aprtui bisect", str(MODEL)):
        assert words in shown
    if kind == "json":
        found = json.loads(text)
        assert [(c["layer"], c["stage"]) for c in found["bisect"]["culprits"]] == [(3, "ffn_gate")]
        assert found["verdict"] == "fail"
        assert all(len(capture["digest"]) == 64 for capture in found["captures"])


def test_an_honest_capture_is_said_to_have_no_culprit(tmp_path: Path) -> None:
    code, text = written(tmp_path, HONEST, "md", "--model", str(MODEL))
    assert code == 0
    assert text.startswith("# ✅ No culprit: all 71 stages compute what the model says")
    assert "| activations rounded to Q8\\_K | 21 |" in text


@needs_fixtures
def test_a_wrong_reference_is_no_rounding(tmp_path: Path) -> None:
    wrong = FIXTURES / "faults" / "kbias-dropped-L2"
    report = tmp_path / "swapped.md"
    words = ["report", str(wrong), str(REFERENCE), "--model", str(MODEL), "-o", str(report)]
    assert main(words) == 1
    text = report.read_text().replace("\\", "")
    assert text.startswith("# ❌ In A, the reference, layer-2/qkv_bias computes wrongly")
    assert "no bug" not in text and "the bias of k was not added" in text


def test_rounding_is_said_only_where_both_sides_were_replayed() -> None:
    a, b = open_trace(REFERENCE), open_trace(HONEST)
    comparison = diff_traces(a, b, overrides=(parse_bar("rel_l2=1e-6"),))
    clean = bisect(open_model(MODEL), b)
    for reference, said in ((None, False), (clean, True)):
        found = dataclasses.replace(clean, reference=reference)
        sentences = build_report(a, b, comparison, bisection=found).sentences
        assert any("rounding that has grown" in sentence for sentence in sentences) is said


def test_agreement_within_a_loose_bar_is_not_all_that_can_be_asked(tmp_path: Path) -> None:
    code, text = written(tmp_path, BAD_BLOCK, "md")
    assert code == 0
    assert text.startswith("# ❔ A and B agree on all 71 stages within a loose bar")
    assert "--model MODEL" in text


@needs_fixtures
def test_without_a_model_the_report_says_where_it_shows(tmp_path: Path) -> None:
    code, text = written(tmp_path, FIXTURES / "faults" / "kbias-dropped-L2", "html")
    assert code == 1
    page = Page(text)
    assert "A and B differ from layer-2/qkv_bias on" in page.text
    assert "needs the model" in page.text


@needs_fixtures
@pytest.mark.parametrize(
    "case",
    [c for c in json.loads((SMALL / "faults" / "cases.json").read_text()) if c["fault"]],
    ids=lambda case: case["capture"],
)
def test_the_picture_marks_every_planted_culprit(tmp_path: Path, case: dict[str, object]) -> None:
    stem = str(case["model"]).removesuffix(".gguf")
    path = tmp_path / "report.html"
    main([
        "report", str(FIXTURES / "captures" / stem / "float64"),
        str(FIXTURES / "faults" / str(case["capture"])),
        "--model", str(FIXTURES / "models" / str(case["model"])), "-o", str(path),
    ])  # fmt: skip
    page = Page(path.read_text())
    marked = [line for line in page.text.splitlines() if ", culprit" in line]
    culprits = case["culprits"]
    assert isinstance(culprits, list)
    assert {line.split(":")[0] for line in marked} == set(culprits)


# -- safe to open ----------------------------------------------------------------------------------


def test_the_page_runs_and_fetches_nothing(tmp_path: Path) -> None:
    _, text = written(tmp_path, BAD_BLOCK, "html", "--model", str(MODEL))
    page = Page(text)
    assert_self_contained(page)
    assert "svg" in page.tags
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "default-src 'none'" in text
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")


def hostile() -> Report:
    """A report in which every text that can come from a file is an attack."""
    honest = report_of(REFERENCE, HONEST)
    captures = tuple(dataclasses.replace(c, path=HOSTILE, engine=HOSTILE) for c in honest.captures)
    culprit = CulpritLine(HOSTILE, HOSTILE, HOSTILE, ((HOSTILE, HOSTILE),), HOSTILE)
    cell = dataclasses.replace(next(iter(honest.grid.cells.values())), text=HOSTILE)
    grid = dataclasses.replace(honest.grid, stages=(HOSTILE,), cells={(0, HOSTILE): cell})
    return dataclasses.replace(
        honest, headline=HOSTILE, sentences=(HOSTILE,), captures=captures, culprits=(culprit,),
        grid=grid, token_ids=(1,), token_texts=(HOSTILE,), differences=((HOSTILE,) * 7,),
        unmeasured=((HOSTILE, HOSTILE),), bars=HOSTILE, notes=(HOSTILE,), commands=(HOSTILE,),
    )  # fmt: skip


def test_hostile_names_are_text_in_html() -> None:
    text = html_report(hostile())
    page = Page(text)
    assert_self_contained(page)
    assert "<script>alert(1)</script>" in page.text  # shown, not run
    assert "\u202e" not in text and "\x1b" not in text


def test_hostile_names_are_text_in_markdown() -> None:
    text = markdown_report(hostile())
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    inner = [child for token in rendered for child in token.children or ()]
    kinds = {token.type for token in [*rendered, *inner]}
    assert not kinds & {"html_block", "html_inline", "image", "link_open"}
    assert {"table_open", "fence", "code_inline"} <= kinds
    headings = [t.content for t in rendered if t.type == "inline" and t.level == 1]
    assert any("Culprits" in heading for heading in headings)
    assert "\u202e" not in text and "\x1b" not in text


def test_hostile_names_are_strings_in_json() -> None:
    text = json_report(hostile())
    assert text.isascii() and "\x1b" not in text
    assert json.loads(text)["headline"] == HOSTILE


# -- written whole, or not -------------------------------------------------------------------------


def test_an_older_report_is_kept_unless_overwriting_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.md"
    path.write_text("mine")
    command = ["report", str(REFERENCE), str(HONEST), "-o", str(path)]
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert main([*command, "--overwrite"]) == 0
    assert path.read_text().startswith("# ")
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["-o", "report.pdf"], 2),
        (["-o", "report.md", "--tokens", "1,2"], 2),  # nothing is replayed without a model
        (["-o", "report.md", "--model", "gone.gguf"], 3),
    ],
)
def test_what_cannot_be_asked_for_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(REFERENCE), str(HONEST), *more]) == code
    assert list(tmp_path.iterdir()) == []


def test_stages_that_only_one_side_has_are_listed_as_unmeasured(tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(HONEST, short)
    (short / "layer-1" / "ffn_up.bin").unlink()
    code, text = written(tmp_path, short, "md")
    assert code == 1
    assert text.startswith("# ❔ Nothing differs, but not all is compared: 1 stage ")
    assert "## Unmeasured" in text and "layer-1/ffn\\_up" in text

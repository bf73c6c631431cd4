"""A culprit that has a name: what the replay found of it, and what that mistake is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

from textual import on
from textual.binding import BindingType
from textual.containers import Vertical
from textual.widget import Widget

from aprtui.compare.mistakes.pages import pages
from aprtui.compare.pairs import Pair, PairResult
from aprtui.formats.tracedir import StageKey
from aprtui.text import clean
from aprtui.tui.bisected import Bisected
from aprtui.tui.carry import copy
from aprtui.tui.jumps import Jump
from aprtui.tui.keys import bindings
from aprtui.tui.screens.pair import stage_title
from aprtui.tui.screens.pair_facts import finding_block
from aprtui.tui.screens.sides import OneStageScreen, Sides
from aprtui.tui.widgets.blocks import Block, BlockPane, wrapped
from aprtui.tui.widgets.pair_preview import LEAST_LINES, PairPreview

__all__ = ["MistakeScreen", "has_page"]

OUTER_LINES, FRAME_LINES = 2, 2  # title and foot; a frame


def has_page(found: Bisected | None, key: StageKey) -> bool:
    """Whether what the replay found of that stage has a name, and a page that explains it."""
    finding = found.findings.get(key) if found is not None else None
    return finding is not None and finding.mistake in pages()


class MistakeScreen(OneStageScreen):
    """Opened from a culprit; ``open_pair`` shows both sides of a stage. n and N step through the
    culprits that have a name. Where the page leaves room, the stage's pair is drawn below it."""

    mode = "diff"
    places = ("mistake", "sides")
    passing = True
    BINDINGS: ClassVar[list[BindingType]] = bindings("mistake", "sides")  # type: ignore[assignment]

    def __init__(
        self,
        found: Bisected,
        key: StageKey,
        sides: Sides,
        pairs: Mapping[StageKey, Pair],
        results: Mapping[StageKey, PairResult],
        open_pair: Callable[[StageKey], None],
    ) -> None:
        super().__init__(sides, key)
        self.found, self._open_pair = found, open_pair
        self._pairs, self._results = pairs, results
        self.page = BlockPane(id="mistakepage")
        self.preview = PairPreview(id="pairpreview")

    def body(self) -> Iterable[Widget]:
        with Vertical():
            yield self.page
            yield self.preview

    def started(self) -> None:
        self.set_state("full")
        self._show()

    @on(BlockPane.Changed)
    def _show(self) -> None:
        at = self._named.index(self.key) + 1
        finding = self.found.findings[self.key]
        self.set_title(f"{stage_title(self.key)} · {finding.mistake} · {at} of {len(self._named)}")
        self.page.name_it(pages()[finding.mistake].title)
        self.page.show(self._blocks())
        self._make_room()
        if self.page.can_focus:
            self.page.focus()
        self.lead = "move" if self.page.can_focus else ""
        self.show_keys()

    def _make_room(self) -> None:
        """The page takes the lines that it needs; the pair what is left, where that is enough."""
        lines = len(self.page.all_lines()) + FRAME_LINES
        self.preview.display = self.size.height - OUTER_LINES - lines >= LEAST_LINES
        self.page.styles.height = lines if self.preview.display else "1fr"
        if self.preview.display:
            self.preview.look_at(self._pairs.get(self.key), self._results.get(self.key))

    def _blocks(self) -> Sequence[Block]:
        """What was found here, then the page."""
        width, finding = self.page.column, self.found.findings[self.key]
        sections: list[Block] = [
            [[(heading, "head")], *wrapped(text, "", width)]
            for heading, text in pages()[finding.mistake].sections
        ]
        return [finding_block(finding, "bad", width), *sections]

    @property
    def _named(self) -> list[StageKey]:
        """The culprits that have a name."""
        return [key for key in self.found.culprits if has_page(self.found, key)]

    # Places.

    def here(self) -> Jump:
        """The culprit: that is where one comes back to once the page is closed."""
        return Jump("bisect", self._sides.both, self.key)

    def shows(self, to: Jump) -> bool:
        return to == self.here()

    # Keys.

    def idle_keys(self) -> frozenset[str]:
        alone = len(self._named) < 2
        return super().idle_keys() | ({"mistake-next", "mistake-previous"} if alone else set())

    def action_pair(self) -> None:
        self._open_pair(self.key)

    def action_step(self, step: int) -> None:
        named = self._named
        self.key = named[(named.index(self.key) + step) % len(named)]
        self._show()

    def action_copy_value(self) -> None:
        page = pages()[self.found.findings[self.key].mistake]
        said = self.found.findings[self.key].in_short(self.key)
        self.say(copy(self.app, f"{said} · {clean(page.title)}: {clean(page.check, 500)}"))

"""The panes of Browse and Model, a row each: keys, tabs, help and the screens read these rows."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aprtui.tui.widgets.pane import Pane

__all__ = ["PANES", "PaneRow", "keys_of", "made", "place_of", "places_of"]


@dataclass(frozen=True)
class PaneRow:
    """One pane: the ``name`` on its tab, the class in ``widgets/`` that draws it, and the line of
    the help at its ``key``, by default its number. Keys of its own stand in the table of keys, at
    its place."""

    name: str
    made_by: str  # module:Class
    about: str
    key: str = ""

    def load(self) -> type[Pane[Any]]:
        module, _, name = self.made_by.partition(":")
        found: type[Pane[Any]] = getattr(import_module(f"aprtui.tui.widgets.{module}"), name)
        return found


# By the screen's mode, in the order of their numbers; the first is what a screen opens with,
# unless it names another.
PANES: dict[str, tuple[PaneRow, ...]] = {
    "browse": (
        PaneRow("header", "header_pane:HeaderPane", "Header: bytes decoded, size, manifest"),
        PaneRow("values", "values_pane:ValuesPane", "Values: positions by channels"),
        PaneRow("histogram", "histogram_pane:HistogramPane", "Histogram"),
        PaneRow("heatmap", "heatmap_pane:HeatmapPane", "Heatmap: positions by channels"),
        PaneRow("stats", "stats_pane:StatsPane", "Stats: numbers, outlier channels"),
        PaneRow("tokens", "tokens_pane:TokensPane", "Tokens: what each position would say"),
        PaneRow("attention", "attention_pane:AttentionPane",
                "Attention: one head of the layer, queries by keys"),
        PaneRow("lens", "lens_pane:LensPane",
                "Lens: the token that each layer would say at each position"),
        PaneRow("channel", "channel_pane:ChannelPane",
                "Channel: one channel along the positions and along the layers"),
        PaneRow("experts", "experts_pane:ExpertsPane",
                "Experts: which experts each token is sent to", "E"),
        PaneRow("overview", "overview_pane:OverviewPane",
                "Overview: all layers by stages, coloured by what each file holds", "O"),
    ),
    "model": (
        PaneRow("tensor", "tensor_pane:TensorPane", "Tensor: facts, values, histogram"),
        PaneRow("header", "model_facts_panes:HeaderFactsPane",
                "Header: every field decoded, files, all that is odd"),
        PaneRow("config", "model_facts_panes:ConfigPane", "Config: as the pass uses it"),
        PaneRow("metadata", "model_facts_panes:MetadataPane", "Metadata: every key of the file"),
        PaneRow("values", "weight_pane:WeightPane",
                "Values: rows by columns, the block and the scale of the one under the cursor"),
        PaneRow("map", "weight_map_pane:WeightMapPane",
                "Map: every value of the tensor, rows by blocks of columns"),
    ),
}  # fmt: skip


def place_of(mode: str, name: str) -> str:
    """What the table of keys calls a pane: ``browse:values``."""
    return f"{mode}:{name}"


def places_of(mode: str) -> dict[str, str]:
    """The places of a screen's panes in the table of keys, with what a person would call them."""
    return {place_of(mode, row.name): f"{mode.capitalize()}: {row.name}" for row in PANES[mode]}


def keys_of(mode: str) -> dict[str, str]:
    """The key of each pane by its name."""
    return {row.name: row.key or str(number) for number, row in enumerate(PANES[mode], 1)}


def made(mode: str) -> dict[str, Pane[Any]]:
    """The panes of a screen by name."""
    return {row.name: row.load()(id=row.name) for row in PANES[mode]}

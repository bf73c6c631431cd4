"""What Model's panes share: the file, and the tensor or the layer that is seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from textual.message import Message

from aprtui.formats.modelfile import ModelFile
from aprtui.model.open import Model
from aprtui.text import clean
from aprtui.tui.model_facts import TensorRow
from aprtui.tui.reduce import Window
from aprtui.tui.widgets.facts import Fact
from aprtui.tui.widgets.pane import Pane

__all__ = ["ModelPane", "ModelSeen"]


@dataclass(frozen=True, eq=False)
class ModelSeen:
    """The tensor under the cursor, or where ``row`` is None the ``layer`` and what is told of it.

    ``model`` is None where ``why`` says why the file's metadata does not suffice.
    """

    path: Path
    file: ModelFile
    model: Model | None
    why: str
    row: TensorRow | None
    layer: int | None
    of_layer: tuple[Fact, ...]

    @property
    def title(self) -> str:
        """``layer 0 · attn norm``."""
        if self.row is None:
            return f"layer {self.layer}" if self.of_layer else ""
        where = "" if self.row.layer is None else f"layer {self.row.layer} · "
        return where + (self.row.label or clean(self.row.entry.name, 40))


class ModelPane(Pane[ModelSeen]):
    """A pane of Model."""

    class ValueWanted(Message):
        """Show a value of the tensor in Values: the largest of ``block``."""

        def __init__(self, block: Window) -> None:
            super().__init__()
            self.block = block

    def title(self, seen: ModelSeen) -> str:
        """What stands over it."""
        return seen.title

"""Model's panes that list facts: the header, the config, the metadata of the whole file."""

from __future__ import annotations

from collections.abc import Iterable

from aprtui.text import clean
from aprtui.tui.model_facts import config_facts, header_facts, metadata_facts
from aprtui.tui.widgets.facts import Fact, FactList
from aprtui.tui.widgets.model_pane import ModelPane, ModelSeen

__all__ = ["ConfigPane", "HeaderFactsPane", "MetadataPane"]


class _FileFacts(FactList, ModelPane):
    """Facts of the file: they stay while the cursor goes from tensor to tensor."""

    of: object = None

    def facts(self, seen: ModelSeen) -> Iterable[Fact]:
        raise NotImplementedError

    def show(self, seen: ModelSeen) -> None:
        if self.of is not seen.file:
            self.of = seen.file
            self.show_facts(self.facts(seen))

    def title(self, seen: ModelSeen) -> str:
        return clean(seen.path.name, 60)

    def copied(self) -> str:
        return self.current.value if self.has_focus and self.current is not None else ""


class HeaderFactsPane(_FileFacts):
    """Every field decoded, the files, all that is odd."""

    def facts(self, seen: ModelSeen) -> Iterable[Fact]:
        return header_facts(seen.file, seen.model.notes if seen.model else seen.file.notes)


class ConfigPane(_FileFacts):
    """The settings as the pass uses them."""

    def facts(self, seen: ModelSeen) -> Iterable[Fact]:
        return config_facts(seen.model) if seen.model else [Fact("none", seen.why, "", "bad")]


class MetadataPane(_FileFacts):
    """Every key of the file."""

    def facts(self, seen: ModelSeen) -> Iterable[Fact]:
        return metadata_facts(seen.file.metadata)

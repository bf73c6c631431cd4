"""Rows of a weight that a quantiser wrote as several tensors: their bytes together, their values.

A block of rows is the pieces of every part that it needs, one after the other, so that it streams
as any other block does. What every row needs (a scale of the whole tensor, a table) is small and
kept, once a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aprtui.engine.block_decoders import Workspace
from aprtui.engine.code_values import DECODERS, Pieces, as_numbers
from aprtui.errors import EngineError
from aprtui.formats.modelfile import TensorEntry, whole_bytes
from aprtui.formats.quantised.coding import Part, padded
from aprtui.text import clean

__all__ = ["CodedRows", "Readable", "joined"]


class Readable:
    """Read-only memory shown to torch without its warning: torch has no read-only tensors.

    Nothing here writes to a stored tensor; a write would be a fault, never a changed file.
    """

    def __init__(self, array: npt.NDArray[np.uint8]) -> None:
        self._array = array
        interface: dict[str, Any] = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface

    @classmethod
    def tensor(cls, array: npt.NDArray[np.uint8]) -> Tensor:
        """The same bytes [n] uint8; no copy."""
        return torch.from_numpy(np.asarray(cls(array)))


class CodedRows:
    """A quantised weight seen as rows, as ``dequantise.StoredRows`` is of one stored tensor.

    Threads may share it. Raises BadFileError when a part's bytes are not those of its shape.
    """

    def __init__(self, entry: TensorEntry) -> None:
        assert entry.coding is not None
        self.entry, self.coding = entry, entry.coding
        self.rows, self.columns = self.coding.rows, self.coding.columns
        self._pieces = {part.name: _places(part) for part in self.coding.streamed}
        self._gone = dict.fromkeys(self._pieces, 0)  # places before the first that is kept
        cpu = torch.device("cpu")
        whole = {
            part.name: as_numbers(part.entry.type, Readable.tensor(whole_bytes(part.entry)))
            for part in self.coding.whole
        }
        self._whole = {cpu: whole}

    @property
    def separate(self) -> bool:
        """Whether each row has places of its own in every part."""
        return all(
            part.lies == "rows" and part.step == part.run == 1 for part in self.coding.streamed
        )

    def bytes_of(self, first: int, rows: int) -> Tensor:
        """The stored bytes [n] uint8 of these rows: the parts' pieces, ``joined``.

        A view of the file where one part is all. Raises EngineError for rows outside the weight.
        """
        pieces = self.pieces_of(first, rows)
        return pieces[0].reshape(-1) if len(pieces) == 1 else joined(pieces)

    def pieces_of(self, first: int, rows: int) -> list[Tensor]:
        """The parts' pieces themselves, [n] or [height, n] uint8."""
        return [self._piece(part, first, rows) for part in self.coding.streamed]

    def gathered(self, runs: Sequence[tuple[int, int]]) -> Tensor:
        """The bytes of rows in runs, as ``bytes_of`` gives those of rows in one, of a weight whose
        rows are separate."""
        return joined(list(self._taken(runs).values()))

    def _taken(self, runs: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """Each part's places [rows, bytes] of rows in runs."""
        rows = torch.cat([torch.arange(start, start + count) for start, count in runs])
        return {name: piece[rows] for name, piece in self._pieces.items()}

    def moved(self, first_row: int, rows: int, move: Callable[[Tensor], Tensor]) -> CodedRows:
        """The same weight with what ``move`` makes of these rows' bytes; it has no other rows."""
        there = copy(self)
        there._pieces = {}
        there._gone = {}
        for part in self.coding.streamed:
            piece = self._piece(part, first_row, rows)
            there._pieces[part.name] = move(piece.reshape(-1)).view(piece.shape)
            there._gone[part.name] = self.coding.span(part, first_row, rows)[0]
        return there

    def moved_runs(
        self, runs: Sequence[tuple[int, int]], move: Callable[[Tensor], Tensor]
    ) -> CodedRows:
        """A weight of what ``move`` makes of the rows in these runs, counted from 0."""
        there = copy(self)
        there._pieces = {
            name: move(piece.reshape(-1)).view(piece.shape)
            for name, piece in self._taken(runs).items()
        }
        return there

    def decode(self, raw: Tensor, first: int, out: Tensor, workspace: Workspace) -> Tensor:
        """The values of rows ``first``.. into ``out`` [rows, columns] float32, contiguous.

        ``raw`` is what ``bytes_of`` or ``gathered`` gave for them, on ``out``'s device.
        """
        if not out.numel():
            return out
        workspace.restart()
        pieces, at = dict(self._whole_on(out.device)), 0
        for part in self.coding.streamed:
            start, stop = self.coding.span(part, first, out.shape[0])
            size = (stop - start) * part.place_bytes
            piece = as_numbers(part.entry.type, raw[at : at + size])
            places = (-1, stop - start) if part.lies == "columns" else (stop - start, -1)
            pieces[part.name] = piece.view(places)
            at += padded(size)
        DECODERS[type(self.coding)](self.coding, Pieces(pieces, first, workspace), out)
        return out

    def _piece(self, part: Part, first: int, rows: int) -> Tensor:
        """The bytes of a part that these rows need: [places, bytes], or [height, places x bytes]
        of one that lies along the columns."""
        if not (first >= 0 and rows >= 0 and first + rows <= self.rows):
            raise EngineError(
                f"rows {first}..{first + rows} of {clean(self.entry.name)}, which has {self.rows}"
            )
        start, stop = (
            place - self._gone[part.name] for place in self.coding.span(part, first, rows)
        )
        whole = self._pieces[part.name]
        if part.lies == "columns":
            return whole[:, start * part.item_bytes : stop * part.item_bytes]
        return whole[start:stop]

    def _whole_on(self, device: torch.device) -> dict[str, Tensor]:
        found = self._whole.get(device)
        if found is None:
            at_home = self._whole[torch.device("cpu")]
            found = {name: kept.to(device) for name, kept in at_home.items()}
            self._whole[device] = found
        return found


def _places(part: Part) -> Tensor:
    """A streamed part's bytes: a row a place, or of "columns" [height, places x item bytes]."""
    stored = Readable.tensor(whole_bytes(part.entry))
    if part.lies == "columns":
        return stored.view(-1, part.places * part.item_bytes)
    return stored.view(part.places, -1)


def joined(pieces: Sequence[Tensor]) -> Tensor:
    """Pieces one after the other, each but the last padded to where the next may begin."""
    ends, at = [], 0
    for piece in pieces:
        ends.append(at + piece.numel())
        at += padded(piece.numel())
    whole = torch.empty(ends[-1], dtype=torch.uint8, device=pieces[0].device)
    for piece, end in zip(pieces, ends, strict=True):
        whole[end - piece.numel() : end].view(piece.shape).copy_(piece)
    return whole

"""One captured stage as an array that knows its axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.mixins import NDArrayOperatorsMixin

from aprtui.formats.layout import StageKey
from aprtui.formats.maps import check_maps, mapping
from aprtui.text import clean

__all__ = ["StageArray"]

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False, repr=False)
class StageArray(NDArrayOperatorsMixin):
    """The values of one stage: float32, row-major, never to be written.

    Works wherever numpy takes an array: ``np.abs(x)``, ``x - y``, ``x[3, 301]``. What comes out of
    arithmetic and indexing is a plain numpy array.

    ``values``: a memory map of a large stage file (``mapped``), so that one larger than memory can
    be opened; of a small one, and of a folder with one file a position, a copy. ``copy()`` is
    writable. A file that becomes shorter while it is mapped reads as zeros: arithmetic, indexing
    and ``copy()`` then raise BadFileError; after other work on ``values`` ask ``check()``.
    ``axes`` name the dimensions, ("token", "ffn"); None where nothing tells the shape, and the
    values are then flat. ``positions``: "all", "last", a tuple of position numbers, or None.
    ``shape_source``: who says so: "manifest", "model", "inferred", "layout" or "".
    """

    key: StageKey
    values: Float32
    axes: tuple[str, ...] | None
    positions: str | tuple[int, ...] | None
    shape_source: str

    @property
    def mapped(self) -> bool:
        """Whether the values are read from the file as they are asked for."""
        return mapping(self.values) is not None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def ndim(self) -> int:
        return self.values.ndim

    @property
    def size(self) -> int:
        return self.values.size

    @property
    def dtype(self) -> np.dtype[np.float32]:
        return self.values.dtype

    def check(self) -> None:
        """Raise BadFileError where the file no longer holds what was read of it."""
        check_maps(self.values)

    def copy(self) -> Float32:
        """The values in memory, to be written to. Raises BadFileError."""
        copied = np.array(self.values)
        self.check()
        return copied

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        found = self.values[index]
        self.check()
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy or (dtype is not None and dtype != self.dtype):
            return self.copy() if dtype is None else self.copy().astype(dtype)
        return self.values

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if "out" in kwargs:
            kwargs["out"] = tuple(map(_plain, kwargs["out"]))
        made = getattr(ufunc, method)(*map(_plain, inputs), **kwargs)
        check_maps(*(each.values for each in inputs if isinstance(each, StageArray)))
        return made

    def __repr__(self) -> str:
        if self.axes is None:
            extents = f"{self.size:,} values, shape not known"
        else:
            extents = " x ".join(
                f"{clean(axis, 40)} {extent}"
                for axis, extent in zip(self.axes, self.shape, strict=True)
            )
        inferred = " (inferred)" if self.shape_source == "inferred" else ""
        held = "memory-mapped" if self.mapped else "copied"
        at = f", positions {self.positions}" if self.positions is not None else ""
        return f"<{self.key}: {extents}{inferred}, float32{at}, {held}>\n{self.values!s}"


def _plain(value: Any) -> Any:
    return value.values if isinstance(value, StageArray) else value

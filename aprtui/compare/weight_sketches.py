"""A few values of every weight of one model, read once: whose values a tensor may hold."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from aprtui.compare.weight_floors import rounding_limit
from aprtui.compare.weight_sides import WeightSide, operands
from aprtui.engine.row_sums import sampled_places
from aprtui.engine.weight_blocks import WeightReader
from aprtui.graph import Role
from aprtui.model.operand import Operand

__all__ = ["SLACK", "Sketches", "sketch_rows"]

SLACK = 2.0  # times the limit: how far a sample may be off where the whole is not

_ROWS = 8

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Shape = tuple[int, int]


def sketch_rows(rows: int) -> list[int]:
    """The rows of a matrix that stand for it."""
    return sampled_places(rows, _ROWS)


class Sketches:
    """Of every weight of A the values [rows, columns] at a few places; threads may share it.

    A shape's weights are read when a tensor of that shape is first asked about.
    """

    def __init__(self, a: WeightSide, b: WeightSide) -> None:
        self._sides = (a, b)
        self._lock = threading.Lock()
        self._of: dict[Shape, tuple[list[Role], Float64]] = {}

    def operand(self, role: Role) -> Operand:
        """A's weight in the form in which it is compared with B's."""
        a, b = self._sides
        return operands(a, b, role)[0] if role in b.weights else Operand(a.weights[role])

    def like(
        self, wanted: Float32, own: Role, b: Operand, reader: WeightReader
    ) -> list[tuple[Role, Operand]]:
        """A's weights but ``own`` whose values at those places are ``wanted``, nearest first.

        ``wanted`` [rows, columns] are B's values at ``sketch_rows`` and ``sampled_places``.
        """
        roles, sketches = self._of_shape((b.rows, b.columns), reader)
        apart = np.linalg.norm((sketches - _finite(wanted)).reshape(len(roles), -1), axis=1)
        sizes = np.linalg.norm(sketches.reshape(len(roles), -1), axis=1)
        found = []
        for place in np.argsort(apart, kind="stable"):
            operand = self.operand(roles[place])
            if roles[place] != own and (
                apart[place] <= SLACK * rounding_limit(operand, b) * sizes[place]
            ):
                found.append((roles[place], operand))
        return found

    def _of_shape(self, shape: Shape, reader: WeightReader) -> tuple[list[Role], Float64]:
        with self._lock:
            if shape not in self._of:
                places = sampled_places(shape[1])
                roles = [
                    role
                    for role, matrix in self._sides[0].weights.items()
                    if (matrix.rows, matrix.columns) == shape
                ]
                values = [
                    reader.rows_at(self.operand(role), sketch_rows(shape[0]))[:, places]
                    for role in roles
                ]
                self._of[shape] = (roles, _finite(np.stack(values)))
            return self._of[shape]


def _finite(values: Float32) -> Float64:
    """Wide enough for squares, and 0 where there is no number."""
    return np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)

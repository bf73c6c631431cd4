"""When a mistake is proved: by how much it explains of the error, not by how small that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aprtui.compare.localerror import LocalError

__all__ = ["Proof"]

Float64 = npt.NDArray[np.float64]

_FAR = 0.5  # of an output: so far from B's it need not be measured
_SHARE = 0.05  # of the error that a mistake may leave
_HONEST = 4.0  # times what honest numerics leave of a neighbour
_LEAST = 1e-6  # what the sums of float32 may leave: no less is asked for


@dataclass(frozen=True)
class Proof:
    """``plain`` is the error to be explained, ``limits`` the bars of an honest stage; ``honest``
    the most that honest numerics left of any other stage, None where none is known."""

    plain: LocalError
    limits: tuple[float, float]
    honest: float | None = None

    def near(self, y: Float64, made: Float64) -> bool:
        """Whether an output may hold at all, by one norm of each; True where either is not
        finite."""
        far = float(np.linalg.norm(y - made)) > _FAR * float(np.linalg.norm(made))
        return not far or self.limits[0] > _FAR / 2

    def holds(self, error: LocalError) -> bool:
        """Whether an output made with the mistake leaves so little: in the whole, in the row that
        is worst with it, within the bars and within what its neighbours' honest numerics leave."""
        if not error.within(self.limits):
            return False
        plain = self.plain
        return (
            error.rel_l2 <= self._bar(plain.rel_l2, 1.0)
            and error.worst_row_rel_l2 <= self._bar(plain.worst_row_rel_l2, 10.0)
        )  # fmt: skip

    def _bar(self, plain: float, times: float) -> float:
        share = _SHARE * plain
        if self.honest is None:
            return share
        return min(share, times * max(_HONEST * self.honest, _LEAST))

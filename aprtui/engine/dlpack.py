"""Arrays of other libraries that only DLPack can hand over, widened to float32 on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.dlpack import from_dlpack as read_dlpack

__all__ = ["from_dlpack"]


def from_dlpack(value: Any) -> npt.NDArray[np.float32]:
    """The values in float32, from any device that torch reaches; bfloat16 too.

    Raises what torch raises for something that is no DLPack array.
    """
    return np.asarray(read_dlpack(value).detach().to("cpu", torch.float32).numpy())

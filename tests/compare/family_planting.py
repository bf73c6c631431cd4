"""Mistakes planted in the tiny models of families, in several places, and what is told of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Mistake
from tests.compare.planting import Plant, compute, model_of, write

__all__ = ["Planted", "cases", "located", "same"]


@dataclass(frozen=True)
class Planted:
    """A mistake in three places or more: (family, stage), each with what is told of it."""

    id: str
    places: tuple[tuple[str, str, Plant], ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)


def same(plant: Plant, *places: tuple[str, str]) -> tuple[tuple[str, str, Plant], ...]:
    """One way to plant it, in several places."""
    return tuple((family, stage, plant) for family, stage in places)


def cases(planted: Iterable[Planted]) -> list[ParameterSet]:
    """(planted, family, stage, plant) of each place."""
    return [
        pytest.param(each, *place, id=f"{each.id}-{place[0]}-{place[1].replace('/', '-')}")
        for each in planted
        for place in each.places
    ]


def located(
    planted: Planted, folder: Path, stage: str, plant: Plant, tokens: tuple[int, ...], into: Path
) -> Mistake:
    """What is said of the stage, which alone is accused, and by the mistake's own name."""
    model = model_of(folder)
    trace = write(into, compute(model, {stage: plant}, tokens=tokens))
    found = bisect(model, trace, tokens=tokens)
    assert [str(culprit.key) for culprit in found.culprits] == [stage]
    mistake = found.culprits[0].mistake
    assert mistake is not None
    assert (mistake.id, mistake.residual_rel_l2 <= 1e-5) == (planted.id, True)
    return mistake

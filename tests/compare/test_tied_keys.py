"""A choice among keys with equal scores that nothing captured: any is right, and no other is. The
scores are numpy's, float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare import tied_keys
from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Bisection
from aprtui.compare.worker import Options
from aprtui.formats.tracedir import StageKey
from tests.compare.planting import Scene, compute, model_of, write

pytest.importorskip("transformers", reason="transformers is a dev dependency")

from tests.families import TINY, save_tiny

Array = npt.NDArray[np.float64]
Keys = npt.NDArray[np.int64]
TOKENS = tuple((11 * place + 3) % 96 for place in range(12))
LAYER, TOP = 1, 5
INDEXER = frozenset({"index_q_rope", "index_k_rope", "index_scores", "index_keys"})
HIDDEN = {
    "softmax": INDEXER | {"attn_scores"},  # as libllama shows it
    "scores": INDEXER,
    "attention": INDEXER | {"attn_scores", "attn_softmax"},
}
READERS = ("attn_scores", "attn_softmax", "attention")
READ = {"softmax": {"attn_softmax"}, "scores": {"attn_scores", "attn_softmax"},
        "attention": {"attention"}}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One head of the indexer: half of all scores are what ReLU makes of less than 0."""
    root = tmp_path_factory.mktemp("tied")
    tiny = TINY["deepseek_v32"]
    save_tiny(replace(tiny, settings={**tiny.settings, "index_n_heads": 1}), root / "m")
    return root / "m"


def scored(s: Scene) -> Array:
    """Each query's keys [T,T], -inf for those behind it."""
    q, k, weights = s.value("index_q_rope"), s.value("index_k_rope"), s.value("index_weights")
    made = np.maximum(np.einsum("thd,sd->ths", q, k[:, 0]), 0) * weights[:, :, None]
    made = made.sum(1) / math.sqrt(q.shape[1] * q.shape[2])
    return np.where(np.tri(len(TOKENS), dtype=bool), made, -np.inf)


def at_the_edge(s: Scene) -> Iterator[tuple[int, Keys, Keys]]:
    """(a query, keys as good as its last chosen one, worse ones) where there are several such."""
    for query, row in enumerate(scored(s)):
        least = np.sort(row)[::-1][min(TOP, query + 1) - 1]
        tied = np.flatnonzero(row == least)
        if (row >= least).sum() > TOP:
            yield query, tied, np.flatnonzero((row < least) & np.isfinite(row))


def last_of_equal(s: Scene) -> Array:
    """The last of the tied keys where ours takes the first."""
    made, changed = s.right.copy(), 0
    for query, tied, _ in at_the_edge(s):
        taken = int(made[0, query, tied].sum())
        made[0, query, tied] = 0.0
        made[0, query, tied[len(tied) - taken :]] = 1.0
        changed += 0 < math.comb(len(tied), taken) <= 64
    assert changed and (made != s.right).any()
    assert (made.sum(-1) == s.right.sum(-1)).all()
    return made


def one_that_is_worse(s: Scene) -> Array:
    """At one position a key of a lower score in place of a tied one."""
    query, tied, worse = next(each for each in at_the_edge(s) if len(each[2]))
    made = s.right.copy()
    made[0, query, next(key for key in tied if made[0, query, key])] = 0.0
    made[0, query, worse[0]] = 1.0
    return made


def one_too_few(s: Scene) -> Array:
    query, tied, _ = list(at_the_edge(s))[-1]
    made = s.right.copy()
    made[0, query, next(key for key in tied if made[0, query, key])] = 0.0
    return made


def bisected(folder: Path, plant: object, shown: str, into: Path) -> Bisection:
    model = model_of(folder)
    values = compute(model, {"layer-1/index_keys": plant}, tokens=TOKENS)  # type: ignore[dict-item]
    trace = write(into, values, without=HIDDEN[shown])
    return bisect(model, trace, tokens=TOKENS, options=Options(READERS, (LAYER,)))


@pytest.mark.parametrize("shown", HIDDEN)
def test_another_of_the_keys_with_equal_scores_is_no_culprit(
    shown: str, folder: Path, tmp_path: Path
) -> None:
    found = bisected(folder, last_of_equal, shown, tmp_path)
    assert (found.culprits, found.unmeasured) == ((), ())
    told = {each.key.stage: each.by for each in found.explained if "equal scores" in each.by}
    assert set(told) == READ[shown]
    assert all(by.startswith("float32, others of the keys with equal") for by in told.values())


@pytest.mark.parametrize(
    ("shown", "plant"),
    [*((shown, one_that_is_worse) for shown in HIDDEN), ("softmax", one_too_few)],
)
def test_a_choice_that_no_tie_allows_is_one(
    shown: str, plant: object, folder: Path, tmp_path: Path
) -> None:
    culprits = bisected(folder, plant, shown, tmp_path).culprits
    assert {culprit.key for culprit in culprits} == {
        StageKey(LAYER, stage) for stage in READ[shown]
    }
    assert all("index_keys" in culprit.span for culprit in culprits)


def test_a_choice_among_too_many_is_unmeasured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tied_keys, "_MOST", 1)
    found = bisected(folder, last_of_equal, "attention", tmp_path)
    assert found.culprits == () and found.exit_code == 1
    (lost,) = found.unmeasured
    assert lost.key == StageKey(LAYER, "attention")
    assert "keys with equal scores" in lost.why

"""Each key of a GGUF with latent attention taken away, doubled, zeroed or flipped: the logits
change, or the file is refused, or llama.cpp's sources say that the key changes nothing there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from aprtui.errors import AprtuiError
from tests.engine.mutations import TOKENS, our_logits
from tests.engine.written import DRAWN, WRITTEN
from tests.gguf_keys import with_keys
from tests.support import FIXTURES, needs_fixtures

CASES = ("deepseek_v2", "deepseek_v2_groups", "deepseek_v3", "deepseek_v3_nofunc", "glm4_moe_lite",
         "minicpm3", "deepseek_v32", "glm_moe_dsa")  # fmt: skip
ABSENT = None
NO_MATTER = ("context_length", "vocab_size", "n_deepstack_layers")  # the last: of pictures
DEFAULTS = {  # llama.cpp's, where a key is optional there
    "rope.freq_base": 1e4, "expert_weights_scale": 1.0, "expert_group_count": 1,
    "expert_group_used_count": 1,
}  # fmt: skip
TOLD_BY_TENSORS = ("expert_count", "expert_feed_forward_length")
OF_HEADS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
OF_GROUPS = ("expert_group_count", "expert_group_used_count")


def mutated(value: Any) -> Iterator[Any]:
    yield ABSENT
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value * 2, value + 1, 0)
    elif isinstance(value, float):
        yield from (value * 2, 0.0, -value)
    elif isinstance(value, list):
        yield from (value[::-1], value * 2)
    else:
        yield "unheard"


def may_stay(keys: dict[str, Any], key: str, value: Any) -> bool:
    """Whether llama.cpp's numbers are the same too."""
    if key in NO_MATTER or value == keys[key]:
        return True
    if key == "feed_forward_length" and "expert_count" in keys:  # of layers that are dense
        return "leading_dense_block_count" not in keys
    if key == "rope.freq_base" and keys["block_count"] == 40:  # of the 13B of baichuan: ALiBi
        return True
    if value is ABSENT and key in OF_HEADS:
        return bool(keys[key] * keys["attention.head_count"] == keys["embedding_length"])
    if value is ABSENT:
        optional = key in DEFAULTS and keys[key] == DEFAULTS[key]
        sigmoid = (key, keys[key]) == (
            "expert_gating_func",
            2,
        ) and "attention.indexer.types" in keys
        whole = key == "attention.indexer.types" and all(keys[key])
        return optional or sigmoid or whole or key in TOLD_BY_TENSORS
    # of one group, or none, all experts may be chosen
    return (
        key in OF_GROUPS and keys["expert_group_count"] == 1 and (key != OF_GROUPS[0] or not value)
    )


@needs_fixtures
@pytest.mark.parametrize("case", CASES)
def test_a_key_changes_the_numbers_or_is_refused(case: str, tmp_path: Path) -> None:
    source = FIXTURES / "families" / case / "model.gguf"
    tokens = tuple(map(int, np.load(source.with_name("expected.npz"))["tokens"]))
    check(source, tokens, tmp_path)


@pytest.mark.parametrize("case", sorted(DRAWN))
def test_a_key_of_a_family_of_ggufs_alone_changes_the_numbers_or_is_refused(
    case: str, tmp_path: Path
) -> None:
    (tmp_path / "of").mkdir()
    check(WRITTEN[case](tmp_path / "of"), TOKENS, tmp_path)


def check(source: Path, tokens: tuple[int, ...], folder: Path) -> None:
    fields = gguf.GGUFReader(source).fields
    arch = fields["general.architecture"].contents() + "."
    keys = {n.removeprefix(arch): f.contents() for n, f in fields.items() if n.startswith(arch)}
    base, silent, refused = our_logits(source, tokens), [], 0
    for key, stated in keys.items():
        for value in mutated(stated):
            try:
                made = our_logits(with_keys(source, folder / "m.gguf", {key: value}), tokens)
            except AprtuiError:
                refused += 1
                continue
            same = made.shape == base.shape and bool((made == base).all())
            if same and not may_stay(keys, key, value):
                silent.append((key, value))
    assert silent == [] and refused > len(keys)

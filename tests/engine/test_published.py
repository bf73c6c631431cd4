"""Configurations as they are published, with keys that no program reads, made small.

tests/fixtures/published.json: the keys of config.json on the Hugging Face Hub (lists of layers cut,
sizes and vocabularies small), of families whose folders say more than transformers' model reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aprtui.errors import BadFileError
from aprtui.families.registry import load_family, rows
from aprtui.formats.strict_json import parse_object
from aprtui.model.open import open_model
from tests.engine.mutations import try_mutation
from tests.families import TINY, Tiny, save_tiny
from tests.support import SMALL

transformers = pytest.importorskip("transformers", reason="transformers is a dev dependency")
PUBLISHED: dict[str, dict[str, Any]] = json.loads((SMALL / "published.json").read_text())
HOLDING = sorted(row.name for row in rows() if load_family(row.name).published)
UNHEARD = {"unheard": 1}


def saved(config: dict[str, Any], folder: Path) -> Path:
    """Weights of transformers' model of a configuration."""
    own = type(transformers.AutoConfig.for_model(config["model_type"])).from_dict(config)
    stem = type(own).__name__.removesuffix("Config")
    given = {key: value for key, value in config.items() if key != "model_type"}
    save_tiny(Tiny(stem, given), folder)
    return folder / "model.safetensors"


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_configuration_has_transformers_numbers(name: str, tmp_path: Path) -> None:
    config = PUBLISHED[name]
    weights = saved(config, tmp_path / "saved")
    outcome = try_mutation(config, None, weights, tmp_path / "published")
    assert outcome.verdict == "agree", f"{outcome.verdict}: {outcome.detail}"


@pytest.mark.parametrize("family", HOLDING)
def test_what_is_passed_over_is_no_key_of_transformers(family: str) -> None:
    row = next(row for row in rows() if row.name == family)
    known = [name for name in row.hf if name in transformers.CONFIG_MAPPING]
    for name in known:
        own = transformers.CONFIG_MAPPING[name]()
        assert not [key for key in load_family(family).published if hasattr(own, key)]
    assert known


@pytest.mark.parametrize("family", [family for family in HOLDING if family in TINY])
def test_a_key_that_says_something_else_than_is_computed_is_refused(
    family: str, tmp_path: Path
) -> None:
    save_tiny(TINY[family], tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for key, says in load_family(family).published.items():
        if not says(UNHEARD):
            path.write_text(json.dumps({**config, key: UNHEARD}))
            with pytest.raises(BadFileError, match=f"{key} = .* is not read by the {family}"):
                open_model(tmp_path)


def test_python_writes_infinity_where_transformers_writes_an_object() -> None:
    path, spelt = Path("config.json"), {"__float__": "Infinity"}
    found = parse_object(path, b'{"time_step_limit": [0.0, Infinity]}', "it", infinite=True)
    assert found == {"time_step_limit": [0.0, spelt]}
    for text, infinite in ((b'{"a": NaN}', True), (b'{"a": Infinity}', False)):
        with pytest.raises(BadFileError, match="is not a JSON number"):
            parse_object(path, text, "it", infinite=infinite)

"""Names of stages and families stand where they are declared, and nowhere else in the code.

The vocabulary declares stages, a family's file says what it is called, an adapter's map says which
module or node of another engine is which stage. All else asks the graph, or the facts of a stage.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import aprtui
from aprtui.families.registry import family_names
from aprtui.graph.vocabulary import ALIASES, STAGES

PACKAGE = Path(aprtui.__file__).parent
NAMES = frozenset({*(stage.name for stage in STAGES), *ALIASES, *family_names()})

DECLARED_IN = (
    "graph/vocabulary.py",
    "graph/blocks.py",  # the blocks place stages by name
    "families/",
    "engine/adapters/adapted.py",
    "engine/adapters/between.py",
    "engine/adapters/huggingface.py",
    "engine/adapters/modules.py",
    "engine/adapters/scans.py",
    "graph/latent.py",
    "graph/altup.py",
    "graph/per_layer.py",
    "engine/adapters/streams.py",
    "graph/delta.py",
    "graph/indexer.py",
    "engine/adapters/indexers.py",
    "graph/shortconv.py",
    "graph/mamba.py",
    "graph/mamba2.py",
    "graph/shared_block.py",
    "engine/adapters/nodes.py",
    "engine/adapters/shown.py",
)

ALLOWED = {
    "tui/keys.py": ({"attention"}, "the pane's name"),
    "tui/panes.py": ({"attention"}, "the pane's name"),
    "engine/module_trace.py": ({"attention"}, "a setting of the engine, in the manifest"),
    "engine/modules.py": (
        {"attn_scores", "lm_head"},
        "what a trace of modules shows of any model, under the names that families have for it",
    ),
    "formats/perop.py": (
        {"attn_scores", "attn_softmax", "k_post_rope", "lm_head"},
        "what another tool calls its files, which it writes in its own way; formats stand below "
        "the vocabulary",
    ),
    "model/apr_metadata.py": (
        {"gpt2", "llama"},
        "the name that GGUF has for SentencePiece's tokenizers",
    ),
    "model/health.py": ({"gpt2"}, "the name that GGUF has for byte-level BPE"),
    "model/open.py": ({"qkv_bias"}, "a setting that is told where a tensor contradicts it"),
    "model/pretokenizers.py": (
        {
            "afmoe",
            "bloom",
            "exaone",
            "exaone4",
            "falcon",
            "gemma4",
            "glm4",
            "hunyuan",
            "laguna",
            "lfm2",
            "llama4",
            "mellum",
            "mpt",
            "olmo",
            "qwen2",
        },
        "names that llama.cpp has for pre-tokenizers",
    ),
    "model/vocabulary.py": (
        {"gemma4", "gpt2", "llama", "phi3", "qwen2", "qwen2moe", "qwen3", "qwen3moe"},
        "names of tokenizers, and the control tokens that llama.cpp knows by architecture",
    ),
}
"""File -> the names that may stand there, and why."""


def literals(source: str, names: frozenset[str] = NAMES) -> Iterator[tuple[int, str]]:
    """Line and text of every string in ``source`` that is one of ``names``; a tensor's role is
    another thing, whatever it is called."""
    tree = ast.parse(source)
    roles = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Role"
        for argument in node.args
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in roles:
            continue
        if isinstance(node.value, str) and node.value in names:
            yield node.lineno, node.value


def test_no_stage_and_no_family_is_named_outside_of_its_declaration() -> None:
    found = [
        f"{place}:{line}: {name!r}"
        for place, source in _sources()
        for line, name in literals(source)
        if name not in ALLOWED.get(place, (set(), ""))[0]
    ]
    assert not found, "ask the graph or the facts of a stage:\n" + "\n".join(found)


def test_what_is_allowed_is_there() -> None:
    there = {place: {name for _, name in literals(source)} for place, source in _sources()}
    for place, (names, reason) in ALLOWED.items():
        assert names == there.get(place), place
        assert reason


@pytest.mark.parametrize(
    ("source", "count"),
    [('x = "ffn_up"', 1), ('if key.stage in ("q_norm", "k_norm"): ...', 2), ('f"{x}_norm"', 0),
     ('Role("embedding")', 0), ('"""Of ffn_up and others."""', 0), ('f(Role("x"), "lm_head")', 1)],
)  # fmt: skip
def test_a_literal_is_a_string_that_is_a_name(source: str, count: int) -> None:
    assert len(list(literals(source))) == count


def _sources() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if not place.startswith(DECLARED_IN):
            yield place, path.read_text(encoding="utf-8")

"""A plan is read whole or refused by the name of the key that is wrong."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from aprtui.errors import BadFileError
from aprtui.sweep.plan import Reference, read_plan

SCHEMA = json.loads(
    (Path(__file__).resolve().parents[2] / "contracts" / "sweep-plan.schema.json").read_text()
)
MODEL = '[[models]]\npath = "a.gguf"\n'
PROMPT = '[[prompts]]\ntext = "Hello"\n'
ENGINE = '[[engines]]\nname = "ours"\nengine = "aprtui"\n'
WHOLE = MODEL + PROMPT + ENGINE
COMMAND = '[[engines]]\ncommand = ["run", "{model}", "{output}"]\nversion = "1"\n'


def read(tmp_path: Path, text: str) -> Any:
    (tmp_path / "plan.toml").write_text(text)
    return read_plan(tmp_path / "plan.toml")


def valid(text: str) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(tomllib.loads(text))


def test_a_small_plan_has_its_defaults(tmp_path: Path) -> None:
    plan = read(tmp_path, WHOLE)
    assert valid(WHOLE)
    assert [model.name for model in plan.models] == ["a"]
    assert plan.models[0].source == str(tmp_path / "a.gguf")
    assert [prompt.name for prompt in plan.prompts] == ["Hello"]
    engine = plan.engines[0]
    assert (engine.kind, engine.device, engine.dtype, engine.cpus) == (
        "aprtui", "cpu", "float32", 1
    )  # fmt: skip
    assert (plan.keep, plan.bisect, plan.reference) == ("differing", "differing", None)


def test_a_plan_with_everything(tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("one\n\ntwo\n")
    (tmp_path / "long.txt").write_text("a text\nof two lines\n")
    text = """
results = "s3://bucket/results"
reference = { engine = "ours" }
keep = "everything"
bisect = "always"
stages = "ffn_*"
layers = "0..4"
logits = "all"
bars = ["rel_l2=1e-3"]
[[models]]
name = "big"
path = "s3://bucket/big.gguf"
resource = "holds-big"
engines = ["ours", "theirs"]
set = { rope_theta = 1e6, ignore_keys = "x", verified = true }
[[prompts]]
file = "long.txt"
[[prompts]]
lines = "many.txt"
[[prompts]]
tokens = [1, 2]
[[engines]]
name = "ours"
engine = "aprtui"
device = "cuda:0,cuda:1"
dtype = "bfloat16"
steps = 4
chunk = 2
kv = "f16"
cpus = 3
[[engines]]
engine = "hf"
settings = { modules = true }
version = "5.0"
[[engines]]
name = "theirs"
command = ["./run", "{model}", "--tokens={tokens}", "{output}", "-j{threads}"]
version = "abc"
version_command = ["./run", "--version"]
map = "vllm"
timeout_s = 60
gpus = 2
reference = { results = "../yesterday" }
"""
    plan = read(tmp_path, text)
    assert valid(text)
    assert [p.name for p in plan.prompts] == ["long", "many-1", "many-2", "2 tokens"]
    assert plan.prompts[0].text == "a text\nof two lines"
    assert plan.models[0].overrides == {
        "rope_theta": "1000000.0", "ignore_keys": "x", "verified": "on"
    }  # fmt: skip
    ours, hf, theirs = plan.engines
    assert (ours.gpus, hf.gpus, theirs.gpus) == (2, 0, 2)
    assert hf.settings == {"modules": "on"} and hf.name == "hf"
    assert plan.reference_of(ours) == Reference("engine", "ours")
    assert plan.reference_of(theirs) == Reference("results", str(tmp_path / ".." / "yesterday"))


# What is wrong, and the key that the message names. The schema sees it too, but for the last ones.
WRONG = [
    (PROMPT + ENGINE, "models: there is none"),
    (MODEL + ENGINE, "prompts: there is none"),
    (MODEL + PROMPT, "engines: there is none"),
    ("kepe = 'everything'\n" + WHOLE, "kepe: no such key (did you mean keep?)"),
    ("keep = 'all'\n" + WHOLE, "keep: 'all' is none of differing, everything, statistics"),
    ("bisect = true\n" + WHOLE, "bisect: a text is due here"),
    ("bars = 'rel_l2=1'\n" + WHOLE, "bars: a list of texts"),
    ("reference = 'ours'\n" + WHOLE, "reference: a table is due here"),
    ("reference = {}\n" + WHOLE, "reference: one thing is held against"),
    ("reference = { engine = 'ours', model = 'a' }\n" + WHOLE, "reference: one thing is held"),
    ("reference = { motor = 'ours' }\n" + WHOLE, "reference.motor: no such key"),
    ("models = 'a.gguf'\n" + PROMPT + ENGINE, "models: a list of tables is due here"),
    ("[[models]]\nname = 'a'\n" + PROMPT + ENGINE, "models[0].path: is missing"),
    ("[[models]]\npath = ''\n" + PROMPT + ENGINE, "models[0].path: a text is due here"),
    (MODEL + "resource = 'a b'\n" + PROMPT + ENGINE, "models[0].resource: 'a b' is no name"),
    (MODEL + "set = { a = [] }\n" + PROMPT + ENGINE, "models[0].set.a: a text or a number"),
    (MODEL + "name = 'a/b'\n" + PROMPT + ENGINE, "models[0].name: 'a/b' is no name"),
    (MODEL + "[[prompts]]\nname = 'p'\n" + ENGINE, "prompts[0].text: nothing says what it is"),
    (WHOLE + "[[prompts]]\ntext = 'a'\ntokens = [1]\n", "prompts[1].tokens: text and tokens are"),
    (MODEL + "[[prompts]]\ntokens = []\n" + ENGINE, "prompts[0].tokens: a list of token ids"),
    (MODEL + "[[prompts]]\ntokens = [1, -2]\n" + ENGINE, "prompts[0].tokens: a list of token ids"),
    (WHOLE + "dtype = 'float8'\n", "engines[0].dtype: 'float8' is none of float32"),
    (WHOLE + "steps = 0\n", "engines[0].steps: a whole number from 1 on"),
    (WHOLE + "cpus = 'all'\n", "engines[0].cpus: a whole number from 1 on"),
    (WHOLE + "kv = 'f8'\n", "engines[0].kv: 'f8' is none of"),
    (WHOLE + "timeout_s = 3\n", "engines[0].timeout_s: is of a command, and this is none"),
    (MODEL + PROMPT + "[[engines]]\nengine = 'vllm'\n", "engines[0].engine: 'vllm' is none of"),
    (MODEL + PROMPT + COMMAND + "dtype = 'float16'\n", "engines[0].dtype: is of an engine of"),
    (MODEL + PROMPT + "[[engines]]\ncommand = ['run', '{output}']\n", "engines[0].version: a"),
]
CONTRADICTIONS = [
    (WHOLE + MODEL, "models: two have the name 'a'"),
    (WHOLE + PROMPT, "prompts: two have the name 'Hello'"),
    (WHOLE + ENGINE, "engines: two have the name 'ours'"),
    ("reference = { engine = 'hf' }\n" + WHOLE, "reference.engine: the plan has no 'hf'"),
    ("reference = { model = 'b' }\n" + WHOLE, "reference.model: the plan has no 'b'"),
    (MODEL + "engines = ['hf']\n" + PROMPT + ENGINE, "models[0].engines: the plan has no 'hf'"),
    (WHOLE + "device = 'auto'\n", "engines[0].device: a sweep's cells say where they compute"),
    (WHOLE + "device = 'gpu7'\n", "engines[0].device: unknown device"),
    ("stages = 'ffn_gaet'\n" + WHOLE, "stages: unknown stage"),
    ("bars = ['rel_l2']\n" + WHOLE, "bars: "),
    ("bisect = 'never'\n" + WHOLE, "engines[0].reference: nothing is compared, nothing replayed"),
    (MODEL + PROMPT + COMMAND.replace("{output}", "{out}"), "engines[0].command: {out} is no"),
    (MODEL + PROMPT + COMMAND.replace("{model}", "{"), "engines[0].command: '{'"),
    (MODEL + PROMPT + COMMAND.replace('"{output}"', '"x"'), "engines[0].command: nothing tells"),
    (MODEL + PROMPT + COMMAND + "map = 'vlm'\n", "engines[0].map: no convention 'vlm'"),
    (MODEL + PROMPT + COMMAND + "engine = 'hf'\n", "engines[0].engine: a command is an engine"),
    (MODEL + "[[prompts]]\nfile = 'gone.txt'\n" + ENGINE, "prompts[0].file: "),
    (
        MODEL + PROMPT + ENGINE + "reference = { engine = 'hf' }\n"
        "[[engines]]\nengine = 'hf'\nreference = { engine = 'ours' }\n",
        "reference: ours -> hf -> ours goes in a circle",
    ),
]  # fmt: skip


@pytest.mark.parametrize("text, said", WRONG)
def test_what_is_wrong_is_named_by_its_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadFileError) as refused:
        read(tmp_path, text)
    assert said in str(refused.value) and "plan.toml" in str(refused.value)
    assert not valid(text)


@pytest.mark.parametrize("text, said", CONTRADICTIONS)
def test_a_plan_that_contradicts_itself_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadFileError) as refused:
        read(tmp_path, text)
    assert said in str(refused.value)


def test_what_is_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="is no TOML"):
        read(tmp_path, "models = [")
    (tmp_path / "plan.toml").write_bytes(b"\xff")
    with pytest.raises(BadFileError, match="not UTF-8"):
        read_plan(tmp_path / "plan.toml")

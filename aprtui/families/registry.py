"""One row a family: our name, the names it answers to, the module that is loaded when it is met.

Another package brings a family by an entry point of the group ``aprtui.families`` whose object is
a ``Row``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from aprtui.errors import BadFileError, UnknownFamilyError, UsageError
from aprtui.families.family import Family
from aprtui.formats.modelfile import ModelFile
from aprtui.text import clean, nearest, quoted

__all__ = ["Identity", "Row", "family_names", "identify", "load_family", "rows"]


@dataclass(frozen=True)
class Row:
    """A family and the names it answers to: config.json's ``model_type``, GGUF's
    ``general.architecture``, .apr's ``architecture``.

    ``text_of``: composite model types whose text part is this family where it does not say.
    ``elsewhere``: model types whose code is no part of transformers: their folders are refused.
    """

    name: str
    module: str
    hf: tuple[str, ...] = ()
    gguf: tuple[str, ...] = ()
    apr: tuple[str, ...] = ()
    text_of: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()

    def names(self, file_format: str) -> tuple[str, ...]:
        """The names in a file of one format; .apr files bear any."""
        by_format = {"safetensors": self.hf, "gguf": self.gguf}
        return by_format.get(file_format, (self.name, *self.apr, *self.hf, *self.gguf))


_OURS = (
    Row("qwen2", "aprtui.families.qwen2", ("qwen2",), ("qwen2",), ("qwen2.5",)),
    Row(
        "qwen2vl",
        "aprtui.families.qwen2vl",
        ("qwen2_5_vl_text", "qwen2_vl_text", "qwen2_5_vl", "qwen2_vl"),
        ("qwen2vl",),
        text_of=("qwen2_5_vl", "qwen2_vl"),
    ),
    Row("llama", "aprtui.families.llama", ("llama",), ("llama",), text_of=("llava", "llava_next")),
    Row("mistral", "aprtui.families.mistral", ("mistral",), text_of=("mistral3", "pixtral")),
    Row("mixtral", "aprtui.families.mixtral", ("mixtral",)),
    Row("qwen3", "aprtui.families.qwen3", ("qwen3",), ("qwen3",)),
    Row("qwen3moe", "aprtui.families.qwen3moe", ("qwen3_moe",), ("qwen3moe",)),
    Row(
        "qwen3vl",
        "aprtui.families.qwen3vl",
        ("qwen3_vl_text",),
        ("qwen3vl",),
        text_of=("qwen3_vl",),
    ),
    Row(
        "qwen3vlmoe",
        "aprtui.families.qwen3vlmoe",
        ("qwen3_vl_moe_text",),
        ("qwen3vlmoe",),
        text_of=("qwen3_vl_moe",),
    ),
    Row("qwen2moe", "aprtui.families.qwen2moe", ("qwen2_moe",), ("qwen2moe",)),
    Row("gemma", "aprtui.families.gemma", ("gemma",), ("gemma",), text_of=("paligemma",)),
    Row("gemma2", "aprtui.families.gemma2", ("gemma2",), ("gemma2",)),
    Row("gemma3", "aprtui.families.gemma3", ("gemma3_text",), ("gemma3",), text_of=("gemma3",)),
    Row(
        "gemma3n", "aprtui.families.gemma3n", ("gemma3n_text",), ("gemma3n",), text_of=("gemma3n",)
    ),
    Row("gemma4", "aprtui.families.gemma4", ("gemma4_text",), ("gemma4",), text_of=("gemma4",)),
    Row("phi3", "aprtui.families.phi3", ("phi3",), ("phi3",)),
    Row("smollm3", "aprtui.families.smollm3", ("smollm3",), ("smollm3",)),
    Row("olmo2", "aprtui.families.olmo2", ("olmo2",), ("olmo2",)),
    Row("seed_oss", "aprtui.families.seed_oss", ("seed_oss",), ("seed_oss",)),
    Row("arcee", "aprtui.families.arcee", ("arcee",), ("arcee",)),
    Row("granite", "aprtui.families.granite", ("granite",), ("granite",)),
    Row("granitemoe", "aprtui.families.granitemoe", ("granitemoe",), ("granitemoe",)),
    Row("exaone4", "aprtui.families.exaone4", ("exaone4",), ("exaone4",)),
    Row("cohere2", "aprtui.families.cohere2", ("cohere2",), ("cohere2",)),
    Row("helium", "aprtui.families.helium", ("helium",)),
    Row("glm", "aprtui.families.glm", ("glm",), ("chatglm",)),
    Row("glm4", "aprtui.families.glm4", ("glm4",), ("glm4",)),
    Row("nemotron", "aprtui.families.nemotron", ("nemotron",), ("nemotron",)),
    Row("olmo3", "aprtui.families.olmo3", ("olmo3",)),
    Row("ministral", "aprtui.families.ministral", ("ministral",)),
    Row("internlm3", "aprtui.families.internlm3", ("internlm3",)),
    Row("gpt_oss", "aprtui.families.gpt_oss", ("gpt_oss",), ("gpt-oss",)),
    Row("llama4", "aprtui.families.llama4", ("llama4_text",), ("llama4",), text_of=("llama4",)),
    Row("jais2", "aprtui.families.jais2", ("jais2",), ("jais2",)),
    Row("ministral3", "aprtui.families.ministral3", ("ministral3",), ("mistral3",)),
    Row("olmoe", "aprtui.families.olmoe", ("olmoe",), ("olmoe",)),
    Row("glm4moe", "aprtui.families.glm4moe", ("glm4_moe",), ("glm4moe",)),
    Row("dots1", "aprtui.families.dots1", ("dots1",), ("dots1",)),
    Row("minimax_m2", "aprtui.families.minimax_m2", ("minimax_m2",), ("minimax-m2",)),
    Row("hunyuan", "aprtui.families.hunyuan", ("hunyuan_v1_dense",), ("hunyuan-dense",)),
    Row("hunyuan_moe", "aprtui.families.hunyuan_moe", ("hunyuan_v1_moe",), ("hunyuan-moe",)),
    Row("ernie4_5", "aprtui.families.ernie4_5", ("ernie4_5",), ("ernie4_5",)),
    Row("ernie4_5_moe", "aprtui.families.ernie4_5_moe", ("ernie4_5_moe",), ("ernie4_5-moe",)),
    Row("exaone_moe", "aprtui.families.exaone_moe", ("exaone_moe",), ("exaone-moe",)),
    Row("mellum", "aprtui.families.mellum", ("mellum",), ("mellum",)),
    Row("phimoe", "aprtui.families.phimoe", ("phimoe",), ("phimoe",)),
    Row("afmoe", "aprtui.families.afmoe", ("afmoe",), ("afmoe",)),
    Row("laguna", "aprtui.families.laguna", ("laguna",), ("laguna",)),
    Row("mimo", "aprtui.families.mimo", ("mimo_v2_flash",), ("mimo2",)),
    Row("apertus", "aprtui.families.apertus", ("apertus",), ("apertus",)),
    Row("gpt2", "aprtui.families.gpt2", ("gpt2",), ("gpt2",)),
    Row("gpt_bigcode", "aprtui.families.gpt_bigcode", ("gpt_bigcode",), ("starcoder",)),
    Row("gpt_neox", "aprtui.families.gpt_neox", ("gpt_neox",), ("gptneox",)),
    Row("gptj", "aprtui.families.gptj", ("gptj",)),
    Row("phi", "aprtui.families.phi", ("phi",), ("phi2",)),
    Row("starcoder2", "aprtui.families.starcoder2", ("starcoder2",), ("starcoder2",)),
    Row("stablelm", "aprtui.families.stablelm", ("stablelm",), ("stablelm",)),
    Row("falcon", "aprtui.families.falcon", ("falcon",), ("falcon",)),
    Row("opt", "aprtui.families.opt", ("opt",)),
    Row("bloom", "aprtui.families.bloom", ("bloom",), ("bloom",)),
    Row("mpt", "aprtui.families.mpt", ("mpt",), ("mpt",)),
    Row("cohere", "aprtui.families.cohere", ("cohere",), ("command-r",)),
    Row("olmo", "aprtui.families.olmo", ("olmo",), ("olmo",)),
    Row("persimmon", "aprtui.families.persimmon", ("persimmon",)),
    Row("exaone", "aprtui.families.exaone", ("exaone",), ("exaone",)),
    Row("deepseek_v2", "aprtui.families.deepseek_v2", ("deepseek_v2",)),
    Row("deepseek_v3", "aprtui.families.deepseek_v3", ("deepseek_v3", "kimi_k2"), ("deepseek2",)),
    Row("deepseek_v32", "aprtui.families.deepseek_v32", ("deepseek_v32",), ("deepseek32",)),
    Row("glm_moe_dsa", "aprtui.families.glm_moe_dsa", ("glm_moe_dsa",), ("glm-dsa",)),
    Row("glm4_moe_lite", "aprtui.families.glm4_moe_lite", ("glm4_moe_lite",)),
    Row("kimi_linear", "aprtui.families.kimi_linear", ("kimi_linear",), ("kimi-linear",)),
    Row("ling", "aprtui.families.ling", gguf=("bailingmoe",)),
    Row("ling2", "aprtui.families.ling2", gguf=("bailingmoe2",), elsewhere=("bailing_moe",)),
    Row("minicpm", "aprtui.families.minicpm", gguf=("minicpm",), elsewhere=("minicpm",)),
    Row("internlm2", "aprtui.families.internlm2", gguf=("internlm2",), elsewhere=("internlm2",)),
    Row("baichuan", "aprtui.families.baichuan", gguf=("baichuan",), elsewhere=("baichuan",)),
    Row("minicpm3", "aprtui.families.minicpm3", ("minicpm3",), ("minicpm3",)),
    Row("lfm2", "aprtui.families.lfm2", ("lfm2",), ("lfm2",)),
    Row("lfm2_moe", "aprtui.families.lfm2_moe", ("lfm2_moe",), ("lfm2moe",)),
    Row("mamba2", "aprtui.families.mamba2", ("mamba2",), ("mamba2",)),
    Row(
        "granitemoehybrid",
        "aprtui.families.granitemoehybrid",
        ("granitemoehybrid",),
        ("granitehybrid",),
    ),
    Row("bamba", "aprtui.families.bamba", ("bamba",)),
    Row("zamba2", "aprtui.families.zamba2", ("zamba2",)),
    Row(
        "nemotron_h",
        "aprtui.families.nemotron_h",
        ("nemotron_h",),
        ("nemotron_h", "nemotron_h_moe"),
    ),
    Row("mamba", "aprtui.families.mamba", ("mamba",), ("mamba",)),
    Row("falcon_mamba", "aprtui.families.falcon_mamba", ("falcon_mamba",)),
    Row("jamba", "aprtui.families.jamba", ("jamba",), ("jamba",)),
    Row("falcon_h1", "aprtui.families.falcon_h1", ("falcon_h1",), ("falcon-h1",)),
    Row("qwen3_next", "aprtui.families.qwen3_next", ("qwen3_next",), ("qwen3next",)),
    Row("qwen3_5", "aprtui.families.qwen3_5", ("qwen3_5_text",), ("qwen35",), text_of=("qwen3_5",)),
    Row(
        "qwen3_5_moe",
        "aprtui.families.qwen3_5_moe",
        ("qwen3_5_moe_text",),
        ("qwen35moe",),
        text_of=("qwen3_5_moe",),
    ),
)


@cache
def rows() -> tuple[Row, ...]:
    """Every family, ours first; one of another package may not take a name that is taken."""
    found = {row.name: row for row in _OURS}
    for entry in entry_points(group="aprtui.families"):
        row = entry.load()
        if not isinstance(row, Row):
            raise UsageError(f"the entry point {entry.name} of aprtui.families is no Row")
        found.setdefault(row.name, row)
    return tuple(found.values())


def family_names() -> tuple[str, ...]:
    return tuple(row.name for row in rows())


@cache
def load_family(name: str) -> Family:
    """The family of our name ``name``. Raises UsageError for one that is not there."""
    row = next((row for row in rows() if row.name == name), None)
    if row is None:
        near = nearest(name, family_names())
        raise UsageError(
            f"--set architecture={clean(name)}: no such family",
            hint=f"did you mean {near}?" if near else f"these are: {', '.join(family_names())}",
        )
    found = import_module(row.module).FAMILY
    assert isinstance(found, Family)
    return found


@dataclass(frozen=True)
class Identity:
    """Which family a file is of, and the part of its metadata that describes the model.

    ``outer``: the composite model's keys, of which the text part is traced; empty for most.
    """

    name: str
    config: Mapping[str, Any]
    outer: Mapping[str, Any]


def identify(file: ModelFile, override: str | None = None) -> Identity:
    """The family of a file; ``override`` names it instead of the file.

    Raises BadFileError that names an unknown one, says what works all the same, and what is
    nearest; UsageError for an override that is no family.
    """
    config, outer = _text_part(file)
    if override is not None:
        load_family(override)
        return Identity(override, config, outer)
    named = _named(file, config, outer)
    if not isinstance(named, str) or not named:
        raise BadFileError(
            file.path,
            "the file does not say its architecture",
            hint="a .safetensors model needs its config.json beside it"
            if file.format == "safetensors"
            else "add --set architecture=NAME",
        )
    for row in rows():
        if named.lower() in row.names(file.format) or (outer and named in row.text_of):
            return Identity(row.name, config, outer)
    for row in rows() if file.format == "safetensors" else ():
        if named.lower() in row.elsewhere:
            raise _of_ggufs_alone(file, named)
    raise _unknown(file, named)


def _named(file: ModelFile, config: Mapping[str, Any], outer: Mapping[str, Any]) -> Any:
    meta = file.metadata
    if file.format == "gguf":
        return meta.get("general.architecture")
    if file.format == "apr":
        keys = ("architecture", "model.architecture", "hf_model_type", "model_type")
        return next((meta[key] for key in keys if meta.get(key)), None)
    return config.get("model_type") or outer.get("model_type")


def _text_part(file: ModelFile) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The configuration of a composite model's text part, and what surrounds it."""
    meta = file.metadata
    for key in ("text_config", "llm_config", "language_config"):
        text = meta.get(key) if file.format == "safetensors" else None
        if isinstance(text, Mapping):
            outer = {name: value for name, value in meta.items() if name != key}
            inner = dict(text)
            if "tie_word_embeddings" in outer:  # transformers ties by the whole model's
                inner["tie_word_embeddings"] = outer["tie_word_embeddings"]
            return inner, outer
    return meta, {}


def _of_ggufs_alone(file: ModelFile, named: str) -> BadFileError:
    return UnknownFamilyError(
        file.path,
        f"a folder of '{clean(named)}' cannot be traced: its code is no part of transformers, so "
        "there are no numbers to hold ours to",
        hint="a GGUF of it can: llama.cpp's convert_hf_to_gguf.py makes one",
    )


def _unknown(file: ModelFile, named: str) -> BadFileError:
    """An architecture without a family file: what works, which is nearest, what that one lacks."""
    every = {name for row in rows() for name in row.names("apr")}
    near = nearest(named.lower(), every) or _longest_beginning(named.lower(), every)
    works = (
        f"aprtui trace {quoted(file.path)} --engine hf captures its modules: diff compares them, "
        "bisect replays them"
        if file.format == "safetensors"
        else "its weights can be compared; captures of other engines compare by diff"
    )
    nearby = f"; the nearest family is {near}, which lacks what differs" if near else ""
    return UnknownFamilyError(
        file.path,
        f"architecture '{clean(named)}' cannot be traced: no family here computes it{nearby}",
        hint=f"these can: {', '.join(family_names())}; {works}",
    )


def _longest_beginning(named: str, every: set[str]) -> str | None:
    """The known name that is the longest beginning of ``named``."""
    begins = [name for name in every if named.startswith(name)]
    return max(begins, key=len, default=None)

"""What is fed to which reader. A reader of a new container is one entry of TARGETS."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save, save_file

from aprtui.captures.opening import open_dump
from aprtui.cli.main import main
from aprtui.compare.diff import comparison_json, diff_traces
from aprtui.compare.infer import open_any, record_in_trace, with_shapes
from aprtui.compare.pairs import reclassify
from aprtui.compare.saved import load
from aprtui.contracts.document import NotReadable
from aprtui.contracts.parse import parse_contract
from aprtui.contracts.rules import check
from aprtui.engine.events import parse_event
from aprtui.errors import AprtuiError
from aprtui.formats.apr import read_apr
from aprtui.formats.apr_header import HEADER_BYTES
from aprtui.formats.aprt import read_header, read_values, write_stage
from aprtui.formats.layout import EVENTS, MANIFEST
from aprtui.formats.perop import PerOpDir
from aprtui.formats.summary import summarise
from aprtui.formats.tracedir import SCHEMA
from aprtui.model.open import open_model, read_model_file
from aprtui.model.tokenizer import build_tokenizer, spec_from_folder, spec_from_gguf, vocabulary_of
from aprtui.text import is_hidden
from aprtui.tui.measure import measure
from aprtui.tui.source import title_of
from aprtui.tui.stage_table import table_of
from aprtui.tui.weight_sample import sample_values
from tests.fuzz.damage import Damage, in_bytes, in_json, in_lines, in_yaml
from tests.support import SMALL
from tests.unit.apr_files import AprFile
from tests.unit.apr_files import Tensor as AprTensor
from tests.unit.gguf_writer import Tensor, array_of, gguf_bytes, key, text

__all__ = ["EXPECTED", "TARGETS", "Target", "run_case"]

EXPECTED = (AprtuiError, NotReadable)  # a reader's own words for a file that it refuses
CORPUS = SMALL / "fuzz"
_INSPECT = 8  # one case in so many goes through the whole command line


@dataclass(frozen=True)
class Target:
    """A reader: what it is fed, how that is damaged, and what reads it.

    ``read`` gets a folder of its own with the damaged file in it under ``file``; of the number of
    the case it may make a choice. ``prepare`` fills the folder once.
    """

    file: str
    seeds: Callable[[], Sequence[bytes]]
    damage: Damage
    read: Callable[[Path, int], None]
    prepare: Callable[[Path], None] = lambda folder: None


def run_case(name: str, number: int, folder: Path) -> None:
    """Damage by ``number`` what ``name`` reads, and have it read; raises what nobody expects."""
    target = TARGETS[name]
    path = folder / target.file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        target.prepare(folder)
    path.write_bytes(target.damage(_seeds(name), random.Random(f"{name} {number}")))
    with contextlib.suppress(*EXPECTED):
        target.read(path, number)


@cache
def _seeds(name: str) -> Sequence[bytes]:
    kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    return [*TARGETS[name].seeds(), *kept]


def _command(number: int, *words: str) -> None:
    """One case in _INSPECT: the command says it in clean text, with a code of its own."""
    if number % _INSPECT:
        return
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(words)
    said = out.getvalue() + error.getvalue()
    assert code in (0, 1, 2, 3), (code, said[-500:])
    assert "Traceback" not in said, said[-2000:]
    assert not any(is_hidden(c) for c in set(said) - {"\n"}), ascii(said)[:2000]
    if "--json" in words and code == 0:
        json.loads(out.getvalue())


# ---- models ----


def _gguf_seeds() -> list[bytes]:
    tokens = [b"<unk>", b"<s>", b"</s>", b"a", b"b", b"ab", b"<0x41>"]
    shared = [
        text("general.architecture", "llama"), key("llama.block_count", 4, 1),
        key("llama.embedding_length", 4, 16), key("llama.attention.head_count", 4, 4),
        key("llama.attention.head_count_kv", 4, 2), key("llama.feed_forward_length", 4, 32),
        key("llama.context_length", 4, 64), key("llama.rope.freq_base", 6, 1e4),
        key("llama.attention.layer_norm_rms_epsilon", 6, 1e-5),
        key("tokenizer.ggml.tokens", 9, array_of(8, tokens)),
        key("tokenizer.ggml.scores", 9, array_of(6, [0.0, 0, 0, -1, -2, -3, 0])),
        key("tokenizer.ggml.token_type", 9, array_of(5, [2, 3, 3, 1, 1, 1, 6])),
    ]  # fmt: skip
    shapes = {
        "token_embd.weight": (16, 7), "output_norm.weight": (16,), "output.weight": (16, 7),
        "blk.0.attn_norm.weight": (16,), "blk.0.attn_q.weight": (16, 16),
        "blk.0.attn_k.weight": (16, 8), "blk.0.attn_v.weight": (16, 8),
        "blk.0.attn_output.weight": (16, 16), "blk.0.ffn_norm.weight": (16,),
        "blk.0.ffn_gate.weight": (16, 32), "blk.0.ffn_up.weight": (16, 32),
        "blk.0.ffn_down.weight": (32, 16), "rope_freqs.weight": (2,),
    }  # fmt: skip
    tensors = [Tensor(n, ne, 0, b"\0\0\x80?" * int(np.prod(ne))) for n, ne in shapes.items()]
    spm = [*shared, text("tokenizer.ggml.model", "llama")]
    bpe = [*shared[:-2], text("tokenizer.ggml.model", "gpt2"), text("tokenizer.ggml.pre", "qwen2"),
           key("tokenizer.ggml.merges", 9, array_of(8, [b"a b"]))]  # fmt: skip
    return [gguf_bytes(spm, tensors), gguf_bytes(bpe, tensors[:3]), gguf_bytes(bpe, tensors)]


def _read_model(path: Path, number: int) -> None:
    file = read_model_file(path)
    for entry in list(file.tensors.values())[:3]:
        sample_values(entry)
    _command(number, "inspect", str(path), *(("--json",) if number % 16 else ()))
    if file.format == "gguf":
        _use(spec_from_gguf(file.metadata, path=path))
    model = open_model(path)
    model.types()
    _use(model.tokenizer_spec)


def _use(spec: object) -> None:
    vocabulary = vocabulary_of(spec)  # type: ignore[arg-type]
    for token in (0, 5, 10**6):
        vocabulary.text_of(token)
    build_tokenizer(spec).encode("a<s>b é")  # type: ignore[arg-type]


def _apr_seeds() -> list[bytes]:
    hidden = {"model_type": "qwen2", "hidden_size": 16, "num_layers": 1, "num_heads": 4,
              "num_kv_heads": 2, "vocab_size": 7, "intermediate_size": 32, "rms_norm_eps": 1e-6,
              "rope_theta": 1e4, "tokenizer.vocabulary": list("abcdefg"), "architecture": "qwen2",
              "tokenizer.merges": ["a b"], "tokenizer.model": "gpt2"}  # fmt: skip
    tensors = [
        AprTensor(b"model.embed_tokens.weight", 0, (7, 16), bytes(448)),
        AprTensor(b"model.layers.0.input_layernorm.weight", 1, (16,), bytes(32)),
        AprTensor(b"model.layers.0.self_attn.q_proj.weight", 12, (2, 256), bytes(288)),
        AprTensor(b"model.norm.weight", 0, (16,), bytes(64)),
        AprTensor(b"q8", 129, (4, 4), bytes(20)),
    ]
    return [AprFile(tensors, hidden).build(), AprFile(tensors[:1], {"model_type": "x"}).build()]


def _in_apr(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """Damage whose header's checksum is right nine times in ten, or nothing else was looked at."""
    found = bytearray(in_bytes(seeds, chance, front=2.0))
    if len(found) >= HEADER_BYTES and chance.random() < 0.9:
        crc = zlib.crc32(found[44:HEADER_BYTES], zlib.crc32(found[:40]))
        found[40:44] = struct.pack("<I", crc)
    return bytes(found)


def _read_apr(path: Path, number: int) -> None:
    if number % 4 == 0:
        read_apr(path, verify=True, lenient=number % 8 == 0)
    _read_model(path, number)


def _safetensors_seeds() -> list[bytes]:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "a": np.ones((2, 3), np.float32),
        "b.c": np.zeros(4, np.float16),
    }
    return [save(arrays, metadata={"format": "pt"}), save({})]


def _in_safetensors(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """Bytes damaged anywhere, or the header's JSON with its length right again."""
    if chance.random() < 0.3:
        return in_bytes(seeds, chance)
    seed = chance.choice(seeds)
    length = int.from_bytes(seed[:8], "little")
    header = in_json([seed[8 : 8 + length]], chance)
    return len(header).to_bytes(8, "little") + header + seed[8 + length :]


_LLAMA = CORPUS / "safetensors" / "llama.safetensors"
_TOKENIZER = CORPUS / "tokenizer" / "bpe.json"


def _checkpoint(folder: Path) -> None:
    """A folder with everything of a small model but what is damaged."""
    (folder / "config.json").write_bytes(_config_seeds()[0])
    (folder / "model.safetensors").write_bytes(_LLAMA.read_bytes())
    (folder / "tokenizer.json").write_bytes(_TOKENIZER.read_bytes())
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": true, "bos_token": "<s>"}')


def _config_seeds() -> list[bytes]:
    llama = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 32, "vocab_size": 24, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "max_position_embeddings": 64, "tie_word_embeddings": False, "bos_token_id": 1,
    }  # fmt: skip
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
    gemma = {"model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 2,
             "rope_local_base_freq": 1e4, "query_pre_attn_scalar": 4, "head_dim": 4,
             "layer_types": ["full_attention"], "rope_parameters": {"full_attention": {
                 "rope_theta": 1e6, "rope_type": "linear", "factor": 8}}}  # fmt: skip
    experts = {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}
    return [
        json.dumps(config).encode()
        for config in (llama, llama | {"rope_scaling": scaling}, llama | gemma, llama | experts)
    ]


def _read_folder(path: Path, number: int) -> None:
    _command(number, "inspect", str(path.parent), *(("--json",) if number % 16 else ()))
    model = open_model(path.parent)
    _use(model.tokenizer_spec)


def _read_tokenizer(path: Path, number: int) -> None:
    _use(spec_from_folder(path.parent))


# ---- traces ----


def _read_stage(path: Path, number: int) -> None:
    _command(number, "inspect", str(path), "--json")
    read_header(path)
    summarise(read_values(path))
    table = table_of(record_in_trace(path)[0])
    measure(table, lambda: False)
    table.row_label(0)


def _stage_seeds() -> list[bytes]:
    values = np.array([0, 1, -1, np.nan, np.inf, 1e38, 1e-40, 3], dtype="<f4").tobytes()
    heads = (struct.pack("<4sII", b"APRT", layer, n) for layer, n in ((0, 8), (0xFFFFFFFF, 8)))
    return [head + values for head in heads]


def _stages(folder: Path) -> None:
    for layer in (0, 1):
        for stage in ("attn_norm", "attn_scores"):
            write_stage(folder / f"layer-{layer}" / f"{stage}.bin", layer, np.arange(8, dtype="f4"))
    write_stage(folder / "lm_head.bin", None, np.arange(8, dtype="f4"))
    whole = folder / "whole"  # what it is compared with
    write_stage(whole / "layer-0" / "attn_norm.bin", 0, np.arange(8, dtype="f4"))


def _manifest_seeds() -> list[bytes]:
    stats = {"min": 0.0, "max": 7.0, "mean": 3.5, "std": 2.3, "rms": 4.2, "zeros": 1, "nan": 0,
             "inf": "NaN"}  # fmt: skip
    stages = [
        {"path": path, "layer": layer, "stage": stage, "shape": shape, "axes": axes, "bytes": 44,
         "positions": positions, "stats": stats}
        for path, layer, stage, shape, axes, positions in (
            ("layer-0/attn_norm.bin", 0, "attn_norm", [2, 4], ["token", "hidden"], "all"),
            ("layer-0/attn_scores.bin", 0, "attn_scores", [2, 2, 2], ["head", "query", "key"],
             [0, 1]),
            ("lm_head.bin", None, "lm_head", [1, 8], ["token", "vocab"], "last"),
        )
    ]  # fmt: skip
    config = {"num_layers": 2, "hidden_size": 4, "num_heads": 2, "architecture": "llama"}
    manifest = {
        "schema": SCHEMA, "created": "2026-01-01T00:00:00+00:00", "prompt": "a b",
        "model": {"path": "m.gguf", "architecture": "llama", "digest": "sha256:00",
                  "config": config, "types": {"q": ["Q4_K"]}},
        "engine": {"name": "x", "version": "1", "device": "cpu", "dtype": "float32",
                   "settings": {"kv": "f16"}},
        "tokens": {"ids": [1, 2], "text": ["a", " b"]}, "notes": ["n"], "rope_layout": "halves",
        "absent": [{"stage": "qkv", "reason": "r", "layer": 1}], "stages": stages, "selection": {},
    }  # fmt: skip
    rows = {"positions": [3, 4], "passes": [0, 1], "first_key": 2, "sequence": 1}
    return [json.dumps(each).encode() for each in (manifest, {**manifest, "rows": rows})]


def _read_trace(path: Path, number: int) -> None:
    folder = path.parent
    _command(number, ("inspect", "stats")[number % 16 > 0], str(folder), "--json")
    found = open_any(folder)
    assert not isinstance(found, PerOpDir)
    trace = with_shapes(found, None)
    title_of(trace, folder)
    for record in trace.records.values():
        with contextlib.suppress(AprtuiError):
            table = table_of(record, trace.token_texts or ())
            table.row_label(0), table.column_label(0), table.name_of(0)
    other = open_any(folder / "whole")
    assert not isinstance(other, PerOpDir)
    comparison = diff_traces(trace, other, ignore_tokens=True)
    json.dumps(comparison_json(comparison), allow_nan=False)


def _event_seeds() -> list[bytes]:
    plan = {
        "event": "plan", "directory": "t", "model": "m", "architecture": "llama", "num_layers": 1,
        "tokens": [1, 2], "token_texts": ["a", "b"], "stages": ["attn_norm"], "layers": [0],
        "files": 3, "write_bytes": 1, "free_bytes": 1, "read_bytes": 1, "memory_bytes": 1,
        "device": "cpu", "device_name": "", "dtype": "float32", "notes": [],
    }  # fmt: skip
    stage = {
        "event": "stage", "layer": 0, "stage": "attn_norm", "path": "layer-0/attn_norm.bin",
        "bytes": 44, "done": 1, "files": 3, "written_bytes": 44, "elapsed_s": 0.1, "rms": "NaN",
        "nan": 0, "inf": 0, "shape": [2, 4], "axes": ["token", "hidden"], "positions": "all",
    }  # fmt: skip
    ends = [{"event": "started", "pid": 4}, {"event": "log", "level": "note", "message": "x"},
            {"event": "error", "message": "m", "hint": "", "exit_code": 3},
            {"event": "stopped", "files": 1, "directory": "t"}]  # fmt: skip
    return [b"\n".join(json.dumps(line).encode() for line in (plan, stage, *ends)) + b"\n"]


def _read_events(path: Path, number: int) -> None:
    for line in path.read_bytes().splitlines():
        event = parse_event(line)
        if event is not None:
            event.to_json()
    if number % _INSPECT == 0:  # to infer shapes takes longer than to read
        _read_trace(path, number)


# ---- comparisons, contracts ----


@cache
def _saved_seeds() -> list[bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        sides = Path(name) / "a", Path(name) / "b"
        for side in sides:
            _stages(side)
            (side / MANIFEST).write_bytes(_manifest_seeds()[0])
        write_stage(sides[1] / "lm_head.bin", None, np.arange(8, dtype="f4")[::-1].copy())
        a, b = map(open_any, sides)
        assert not isinstance(a, PerOpDir) and not isinstance(b, PerOpDir)
        document = comparison_json(diff_traces(a, b))
    return [json.dumps(document).encode()]


def _read_saved(path: Path, number: int) -> None:
    _command(number, "diff", "--judge", str(path), *(("--json",) if number % 16 else ()))
    comparison = load(path)
    for result in comparison.results:
        reclassify(result, comparison.bars)
    json.dumps(comparison_json(comparison), allow_nan=False)


def _contract_seeds() -> list[bytes]:
    folder = SMALL / "contracts"
    names = ("valid", "anchor-alias", "kernel-with-gate-and-harness", "unicode", "other-spelling")
    return [(folder / f"{name}-v1.yaml").read_bytes() for name in names]


def _read_contract(path: Path, number: int) -> None:
    _command(number, "contract", "validate", str(path))
    list(check(parse_contract(path.read_bytes()), None))


# ---- dumps of other runtimes ----


def _npz_seeds() -> list[bytes]:
    arrays: dict[str, Any] = {"layers.0.mlp:out": np.ones((1, 2, 4), "f4"), "ids": np.arange(3)}
    packed, stored = io.BytesIO(), io.BytesIO()
    np.savez_compressed(packed, **arrays)
    np.savez(stored, **arrays)
    return [packed.getvalue(), stored.getvalue()]


@cache
def _torch_seeds() -> list[bytes]:
    import torch

    halves = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    held = {"layer.0": halves.T, "both": (torch.ones(2), [1, 2.5, None, "text"]), "view": halves[1]}
    file = io.BytesIO()
    torch.save(held, file)
    return [file.getvalue()]


def _bundle(folder: Path) -> None:
    blobs = folder / "x.tlspec" / "blobs"
    blobs.mkdir(parents=True)
    save_file({"data": np.ones((1, 2, 4), "f4")}, blobs / "0000000001.safetensors")


def _bundle_seeds() -> list[bytes]:
    site = {"module_path": "model.layers.0:1", "function_path": "__add__", "layer_label": "add_1"}
    blob = {"label": "add_1:1", "relative_path": "blobs/0000000001.safetensors"}
    return [json.dumps({"sites": [site, {**site, "layer_label": "b"}], "tensors": [blob]}).encode()]


def _read_bundle(path: Path, number: int) -> None:
    _read_dump(path.parent, number)


def _in_zip(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """Bytes damaged anywhere, or inside one record whose checksum is right again."""
    if chance.random() < 0.3:
        return in_bytes(seeds, chance)
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(chance.choice(seeds))) as source,
        zipfile.ZipFile(file, "w", chance.choice((0, zipfile.ZIP_DEFLATED))) as made,
    ):
        names = source.namelist()
        hurt = chance.choice([name for name in names if not name.endswith("version")])
        for name in names:
            raw = source.read(name)
            made.writestr(name, in_bytes([raw], chance, 1.5) if name == hurt else raw)
    return file.getvalue()


def _read_dump(path: Path, number: int) -> None:
    _command(number, "diff", str(path), str(path))
    for rank in open_dump(path).ranks:
        for member in (each for tensors in rank.passes for each in tensors.values()):
            with contextlib.suppress(AprtuiError):
                assert member.read().shape == member.shape


TARGETS: dict[str, Target] = {
    "gguf": Target("m.gguf", _gguf_seeds, in_bytes, _read_model),
    "apr": Target("m.apr", _apr_seeds, _in_apr, _read_apr),
    "safetensors": Target(
        "model.safetensors", _safetensors_seeds, _in_safetensors, _read_folder, _checkpoint
    ),
    "config": Target("config.json", _config_seeds, in_json, _read_folder, _checkpoint),
    "tokenizer": Target(
        "tokenizer.json", lambda: [_TOKENIZER.read_bytes()], in_json, _read_tokenizer, _checkpoint
    ),
    "stage": Target("layer-0.bin", _stage_seeds, in_bytes, _read_stage),
    "trace": Target(MANIFEST, _manifest_seeds, in_json, _read_trace, _stages),
    "events": Target(EVENTS, _event_seeds, in_lines, _read_events, _stages),
    "saved": Target("saved.json", _saved_seeds, in_json, _read_saved),
    "contract": Target("c-v1.yaml", _contract_seeds, in_yaml, _read_contract),
    "npz": Target("dump.npz", _npz_seeds, _in_zip, _read_dump),
    "torch": Target("dump.pt", _torch_seeds, _in_zip, _read_dump),
    "bundle": Target("x.tlspec/manifest.json", _bundle_seeds, in_json, _read_bundle, _bundle),
}

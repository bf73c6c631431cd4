"""Traces a file of Qwen3-30B-A3B's shape and says what of it was read, and what it took.

    python -m tests.benchmarks.sparse_experts /tmp/30b-a3b.gguf
    python -m tests.benchmarks.sparse_experts /tmp/30b-a3b.gguf --tokens 7,21 --layers 4
    python -m tests.benchmarks.sparse_experts /tmp/35b-a3b.gguf --family qwen35moe

The file is made where it is not there: 48 layers of 128 experts, 8 for a token, Q4_K_M's types; or
of Qwen3.5-35B-A3B's shape: 40 layers of 256 experts, three of four a delta rule, one attention.
What the experts hold are the file system's holes (zeros, as much to decode as anything else), so
that most of it takes no disk. All else is random, so that tokens choose different experts. What was
read is what of the experts' tensors lies in the page cache after the pass, from which the file was
dropped before it, with the system's reading ahead switched off.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.engine.run import run_trace
from aprtui.formats.blocks import BLOCK_TYPES, stored_bytes
from aprtui.formats.maps import map_once, mapping
from aprtui.formats.modelfile import TensorEntry
from aprtui.model.open import Model
from aprtui.text import size
from tests.benchmarks.make_model import Weight, stored
from tests.unit.gguf_writer import Tensor, array_of, gguf_bytes, key, text

_ALIGNMENT, _PAGE = 32, mmap.PAGESIZE
_HIDDEN, _HEADS, _KV_HEADS, _HEAD, _VOCAB = 2048, 32, 4, 128, 151_936
_EXPERTS, _TOP, _FFN = 128, 8, 768
_RECURRENT_VOCAB = 248_320
_LAYERS = {"qwen3moe": 48, "qwen35moe": 40}
_KEYS = {
    "qwen3moe": {
        "context_length": 32_768, "embedding_length": _HIDDEN,
        "feed_forward_length": 6144, "attention.head_count": _HEADS,
        "attention.head_count_kv": _KV_HEADS, "attention.key_length": _HEAD,
        "attention.value_length": _HEAD, "expert_count": _EXPERTS,
        "expert_used_count": _TOP, "expert_feed_forward_length": _FFN,
    },
    "qwen35moe": {
        "context_length": 32_768, "embedding_length": _HIDDEN, "attention.head_count": 16,
        "attention.head_count_kv": 2, "attention.key_length": 256, "attention.value_length": 256,
        "expert_count": 256, "expert_used_count": _TOP, "expert_feed_forward_length": 512,
        "expert_shared_feed_forward_length": 512, "ssm.conv_kernel": 4, "ssm.state_size": 128,
        "ssm.group_count": 16, "ssm.time_step_rank": 32, "ssm.inner_size": 4096,
        "full_attention_interval": 4, "rope.dimension_count": 64, "feed_forward_length": 512,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Read:
    """What a pass did. ``experts_bytes`` of the experts' tensors were read of ``of_bytes``."""

    tokens: int
    seconds: float
    planned_bytes: int
    experts_bytes: int
    of_bytes: int
    own_bytes: int


def recurrent_weights(layers: int) -> Iterator[Weight]:
    """Of Qwen3.5-35B-A3B's shape."""
    hidden, values, channels, ffn, count = 2048, 4096, 8192, 512, 256
    yield Weight("token_embd.weight", "Q4_K", (_RECURRENT_VOCAB, hidden))
    rule = (
        ("attn_qkv.weight", "Q4_K", (channels, hidden)),
        ("attn_gate.weight", "Q4_K", (values, hidden)),
        ("ssm_alpha.weight", "Q8_0", (32, hidden)), ("ssm_beta.weight", "Q8_0", (32, hidden)),
        ("ssm_a", "F32", (32,)), ("ssm_dt.bias", "F32", (32,)),
        ("ssm_conv1d.weight", "F32", (channels, 4)), ("ssm_norm.weight", "F32", (128,)),
        ("ssm_out.weight", "Q4_K", (hidden, values)),
    )  # fmt: skip
    attention = (
        ("attn_q.weight", "Q4_K", (2 * values, hidden)), ("attn_k.weight", "Q4_K", (512, hidden)),
        ("attn_v.weight", "Q6_K", (512, hidden)), ("attn_q_norm.weight", "F32", (256,)),
        ("attn_k_norm.weight", "F32", (256,)), ("attn_output.weight", "Q4_K", (hidden, values)),
    )  # fmt: skip
    always = (
        ("attn_norm.weight", "F32", (hidden,)), ("post_attention_norm.weight", "F32", (hidden,)),
        ("ffn_gate_inp.weight", "Q8_0", (count, hidden)),
        ("ffn_gate_inp_shexp.weight", "F32", (hidden,)),
        ("ffn_gate_shexp.weight", "Q4_K", (ffn, hidden)),
        ("ffn_up_shexp.weight", "Q4_K", (ffn, hidden)),
        ("ffn_down_shexp.weight", "Q6_K", (hidden, ffn)),
        ("ffn_gate_exps.weight", "Q4_K", (count, ffn, hidden)),
        ("ffn_up_exps.weight", "Q4_K", (count, ffn, hidden)),
        ("ffn_down_exps.weight", "Q6_K", (count, hidden, ffn)),
    )  # fmt: skip
    for layer in range(layers):
        for name, kind, shape in (*(rule if (layer + 1) % 4 else attention), *always):
            yield Weight(f"blk.{layer}.{name}", kind, shape)
    yield Weight("output_norm.weight", "F32", (hidden,))
    yield Weight("output.weight", "Q6_K", (_RECURRENT_VOCAB, hidden))


def weights(layers: int) -> Iterator[Weight]:
    yield Weight("token_embd.weight", "Q4_K", (_VOCAB, _HIDDEN))
    for layer in range(layers):
        for name, type_name, shape in (
            ("attn_norm.weight", "F32", (_HIDDEN,)),
            ("attn_q.weight", "Q4_K", (_HEADS * _HEAD, _HIDDEN)),
            ("attn_k.weight", "Q4_K", (_KV_HEADS * _HEAD, _HIDDEN)),
            ("attn_v.weight", "Q6_K", (_KV_HEADS * _HEAD, _HIDDEN)),
            ("attn_q_norm.weight", "F32", (_HEAD,)),
            ("attn_k_norm.weight", "F32", (_HEAD,)),
            ("attn_output.weight", "Q4_K", (_HIDDEN, _HEADS * _HEAD)),
            ("ffn_norm.weight", "F32", (_HIDDEN,)),
            ("ffn_gate_inp.weight", "Q8_0", (_EXPERTS, _HIDDEN)),
            ("ffn_gate_exps.weight", "Q4_K", (_EXPERTS, _FFN, _HIDDEN)),
            ("ffn_up_exps.weight", "Q4_K", (_EXPERTS, _FFN, _HIDDEN)),
            ("ffn_down_exps.weight", "Q6_K", (_EXPERTS, _HIDDEN, _FFN)),
        ):
            yield Weight(f"blk.{layer}.{name}", type_name, shape)
    yield Weight("output_norm.weight", "F32", (_HIDDEN,))
    yield Weight("output.weight", "Q6_K", (_VOCAB, _HIDDEN))


def write_model(path: Path, family: str, layers: int) -> None:
    listed = list((weights if family == "qwen3moe" else recurrent_weights)(layers))
    keys = [text("general.architecture", family), key(f"{family}.block_count", 4, layers)]
    keys += [key(f"{family}.{name}", 4, value) for name, value in _KEYS[family].items()]
    vocabulary = [f"t{n}".encode() for n in range(listed[0].shape[0])]
    keys += [
        key(f"{family}.attention.layer_norm_rms_epsilon", 6, 1e-6),
        key(f"{family}.rope.freq_base", 6, 1e6),
        text("tokenizer.ggml.model", "gpt2"),
        key("tokenizer.ggml.tokens", 9, array_of(8, vocabulary)),
    ]
    index, offset = [], 0
    for each in listed:
        code = BLOCK_TYPES[each.type].ggml_code
        assert code is not None
        index.append(Tensor(each.name, each.shape[::-1], code, offset=offset))
        offset += -(-stored_bytes(each.type, each.shape) // _ALIGNMENT) * _ALIGNMENT
    with path.open("wb") as file:
        begin = file.write(gguf_bytes(keys, index))
        for seed, (each, entry) in enumerate(zip(listed, index, strict=True)):
            assert entry.offset is not None
            file.seek(begin + entry.offset)
            if "_exps" not in each.name:
                for chunk in stored(each, seed):
                    file.write(chunk.data)
        file.truncate(begin + offset)


def experts_of(model: Model) -> dict[str, TensorEntry]:
    return {m.entry.name: m.entry for role, m in model.weights.items() if role.expert is not None}


def bytes_in_cache(path: Path, entries: dict[str, TensorEntry]) -> int:
    """How many bytes of these tensors the page cache holds, in whole pages."""
    whole = np.memmap(path, np.uint8, "r")
    held = np.zeros(-(-whole.size // _PAGE), np.uint8)
    library = ctypes.CDLL(None, use_errno=True)
    asked = ctypes.c_void_p(whole.ctypes.data), ctypes.c_size_t(whole.size)
    if library.mincore(*asked, ctypes.c_void_p(held.ctypes.data)):
        raise OSError(ctypes.get_errno(), "mincore")
    pages = 0
    for entry in entries.values():
        first, last = entry.offset // _PAGE, (entry.offset + entry.size_bytes) // _PAGE
        pages += int((held[first:last] & 1).sum())
    return _PAGE * pages


def _read_no_further(path: Path) -> None:
    """The system reads of the map what is asked for: not what lies behind it as well, which may be
    megabytes at a time (/sys/block/*/queue/read_ahead_kb)."""
    stat = path.stat()
    mapped = mapping(map_once(path, stat.st_size, stat.st_mtime_ns))
    assert mapped is not None
    mapped.madvise(mmap.MADV_RANDOM)


def own_bytes() -> int:
    """The process's anonymous memory now: what it has allocated, without pages of files."""
    told = Path("/proc/self/status").read_text()
    return 1024 * int(told.split("RssAnon:")[1].split()[0])


def trace(path: Path, tokens: int, stages: str) -> Read:
    """One pass in this process, whose memory is watched; the file is dropped from the cache."""
    plan_tokens = tuple(int(each) for each in np.random.default_rng(7).integers(0, _VOCAB, tokens))
    with tempfile.TemporaryDirectory() as folder:
        job = TraceJob(model=str(path), directory=f"{folder}/t", tokens=plan_tokens, stages=stages)
        plan = make_plan(job)
        entries = experts_of(plan.model)
        _read_no_further(next(iter(entries.values())).path)
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        most, done = [own_bytes()], threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                most.append(own_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        begun = time.perf_counter()
        try:
            run_trace(plan, lambda event: None)
        finally:
            done.set()
            watcher.join()
        return Read(
            tokens, time.perf_counter() - begun, plan.read_bytes, bytes_in_cache(path, entries),
            sum(entry.size_bytes for entry in entries.values()), max(most),
        )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="a .gguf file, made where it is not there")
    parser.add_argument("--tokens", default="7,21", help="prompts of so many (default %(default)s)")
    parser.add_argument("--family", choices=sorted(_LAYERS), default="qwen3moe",
                        help="of a file that is made (default %(default)s)")  # fmt: skip
    parser.add_argument("--layers", type=int, help="of a file that is made")
    parser.add_argument("--stages", default="all")
    options = parser.parse_args(arguments)
    layers = options.layers or _LAYERS[options.family]
    if not options.path.exists():
        write_model(options.path, options.family, layers)
    for note in make_plan(TraceJob(model=str(options.path), tokens=(1,) * 7)).notes:
        print(f"of 7 tokens the plan says: {note}")
    print(f"| tokens | pass | planned at most | experts read of {layers} layers' | own |")
    print("|---|---|---|---|---|")
    for tokens in map(int, options.tokens.split(",")):
        with multiprocessing.get_context("spawn").Pool(1) as alone:  # one pass a process
            read = alone.apply(trace, (options.path, tokens, options.stages))
        print(
            f"| {tokens} | {read.seconds:.1f} s | {size(read.planned_bytes)} "
            f"| {size(read.experts_bytes)} of {size(read.of_bytes)} | {size(read.own_bytes)} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

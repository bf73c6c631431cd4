"""What hooks cost a model of transformers: a prompt, and steps of decode with its cache.

    python -m tests.gpu.hooks_cost --shape 7b --dtype bfloat16

A qwen2 of that shape with random weights, made on the device. Untraced, with hooks that keep
nothing, with one stage a layer, and with all that its modules show: leaving the device alone, or
written too. ``queued`` is when the call came back, ``done`` when the device was done, ``whole``
when the files were there.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from aprtui import CaptureWriter, hooks
from aprtui.engine.behind import Behind
from aprtui.engine.device import resolve_device
from aprtui.engine.hooks import Watched
from aprtui.engine.leaving import Leaving
from tests.benchmarks.make_model import SHAPES, Shape

Names = dict[str | tuple[str, ...], str]

_LONG = 100  # tokens
_LAYER = "model.layers.{layer}."
ONE: Names = {_LAYER + "mlp.down_proj": "ffn_out"}
ALL: Names = {
    **ONE,
    _LAYER + "input_layernorm": "attn_norm",
    (_LAYER + "self_attn.q_proj", _LAYER + "self_attn.k_proj", _LAYER + "self_attn.v_proj"): "qkv",
    _LAYER + "self_attn.o_proj": "attn_out",
    _LAYER + "post_attention_layernorm": "ffn_norm",
    _LAYER + "mlp.gate_proj": "ffn_gate",
    _LAYER + "mlp.up_proj": "ffn_up",
    _LAYER + "mlp.down_proj:input": "ffn_swigl",
    "model.norm": "final_norm",
}


class Nothing:
    """A target that keeps nothing: the hooks alone."""

    def put(self, stage: str, value: torch.Tensor, **where: Any) -> None:
        return None


class LeavingAlone:
    """A target whose values leave the device, and are not written."""

    def __init__(self) -> None:
        self._behind = Behind("leaving")
        self._leaving = Leaving(self._behind)

    def put(self, stage: str, value: torch.Tensor, **where: Any) -> None:
        self._leaving.take(value, self._landed)

    def end(self) -> None:
        self._leaving.leave()
        self._behind.end()

    def _landed(self, values: torch.Tensor) -> None:
        return None


@dataclass
class Timed:
    """Calls of one kind: when each came back, and when the device was done."""

    name: str
    queued_s: list[float] = field(default_factory=list)
    done_s: list[float] = field(default_factory=list)
    written_s: list[float] = field(default_factory=list)

    def told(self, floor: Timed | None) -> str:
        queued, done, written = (
            1000 * statistics.median(times)
            for times in (self.queued_s, self.done_s, self.written_s)
        )
        versus = ""
        if floor is not None:
            base = 1000 * statistics.median(floor.written_s)
            versus = f"  {100 * (1 - base / written):5.1f} % of calls a second lost"
        return (
            f"{self.name:28} queued {queued:8.2f} ms  done {done:8.2f} ms  "
            f"whole {written:8.2f} ms{versus}"
        )


Kind = tuple[Names, Callable[[], Any]] | None


def writer(steps: int) -> CaptureWriter:
    return CaptureWriter("", tokens=[1] * max(1, steps), engine={"name": "transformers"})


class HookBench:
    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import Qwen2Config, Qwen2ForCausalLM

        config = Qwen2Config(
            vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads, tie_word_embeddings=shape.tied,
        )  # fmt: skip
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                model: Any = Qwen2ForCausalLM(config)
            self.model = model.eval()
        finally:
            torch.set_default_dtype(before)
        self.device, self.vocab = device, shape.vocab
        self.scratch = Path(tempfile.mkdtemp(prefix="aprtui-hooks-"))
        self._numbers = count()

    def call(
        self, timed: Timed, watched: Kind, run: Callable[[Watched | None], object], times: int = 1
    ) -> None:
        """So many calls, so watched; None: no hooks at all. Setting hooks is not part of the
        time."""
        folder = self.scratch / f"trace-{next(self._numbers)}"
        seen: Watched | None = None
        with ExitStack() as open_capture, ExitStack() as watching:
            if watched is not None:
                stages, target = watched[0], watched[1]()
                if isinstance(target, CaptureWriter):
                    target.directory = folder
                    open_capture.enter_context(target)
                seen = watching.enter_context(hooks(self.model, stages, target))
                if isinstance(target, LeavingAlone):
                    open_capture.callback(target.end)
            self._wait()
            start = time.perf_counter()
            for _ in range(times):
                run(seen)
            timed.queued_s.append((time.perf_counter() - start) / times)
            self._wait()
            timed.done_s.append((time.perf_counter() - start) / times)
            open_capture.close()
            timed.written_s.append((time.perf_counter() - start) / times)
        shutil.rmtree(folder, ignore_errors=True)

    @torch.inference_mode()
    def measure(self, title: str, prompt: int, steps: int, repeats: int) -> None:
        """``steps`` of one token after a prompt; none: the prompt itself."""
        kinds: dict[str, Kind] = {
            "untraced": None,
            "hooks that keep nothing": (ONE, Nothing),
            "one stage a layer, leaving": (ONE, LeavingAlone),
            "one stage a layer, written": (ONE, partial(writer, steps)),
            "all its modules, leaving": (ALL, LeavingAlone),
            "all its modules, written": (ALL, partial(writer, steps)),
        }
        if prompt >= _LONG and not steps:  # gigabytes
            del kinds["all its modules, leaving"], kinds["all its modules, written"]
        rows = {name: Timed(name) for name in kinds}
        ids = torch.arange(prompt, device=self.device)[None] % self.vocab
        one = ids[:, :1]
        for repeat in range(repeats + 1):
            for name, watched in kinds.items():
                timed = rows[name] if repeat else Timed("warm")
                if not steps:
                    self.call(timed, watched, lambda seen: self.model(ids))
                    continue
                cache = self.model(ids, use_cache=True).past_key_values
                places = count()

                def step(seen: Watched | None, cache: Any = cache, places: Any = places) -> None:
                    if seen is not None:
                        seen.at([next(places)])
                    self.model(one, past_key_values=cache)

                self.call(timed, watched, step, steps)
        print(f"\n{title}")
        for row in rows.values():
            print("  " + row.told(None if row.name == "untraced" else rows["untraced"]))

    def take(self, count: int) -> None:
        """What one value of a decode step costs the host on its way, the device idle."""
        value = torch.ones((1, 1, SHAPES["7b"].hidden), device=self.device, dtype=torch.bfloat16)
        target = LeavingAlone()
        self._wait()
        start = time.perf_counter()
        for _ in range(count):
            target.put("ffn_out", value)
        taken_s = time.perf_counter() - start
        target.end()
        print(f"\none value of a step leaves: {1e6 * taken_s / count:.1f} us of the host's time")

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", default="7b", choices=[*SHAPES, "tiny"])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device, name = resolve_device(options.device)
    tiny = Shape(2, 32, 64, 4, 2, 100, tied=False)
    start = time.perf_counter()
    bench = HookBench(SHAPES.get(options.shape, tiny), device, getattr(torch, options.dtype))
    made_s = time.perf_counter() - start
    print(f"qwen2 {options.shape}, {options.dtype}, {name}; made in {made_s:.1f} s")
    try:
        bench.measure("a prompt of 7 tokens", 7, 0, 2 * options.repeats)
        bench.measure("a prompt of 512 tokens", 512, 0, options.repeats)
        bench.measure("a step of decode after 512 tokens", 512, options.steps, 3 * options.repeats)
        bench.take(2000)
    finally:
        shutil.rmtree(bench.scratch)
    for absent in ("vLLM", "SGLang"):
        there = importlib.util.find_spec(absent.lower()) is not None
        print(f"{absent}: {'installed' if there else 'not installed'}, not measured")
    return 0


if __name__ == "__main__":
    sys.exit(main())

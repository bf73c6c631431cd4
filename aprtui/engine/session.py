"""An engine set up once for any number of prompts: its devices, its weights, its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property

import torch

from aprtui import __version__
from aprtui.engine import adapters
from aprtui.engine.adapters import Ran
from aprtui.engine.cached import CachedRun
from aprtui.engine.capture import Capture
from aprtui.engine.device import Devices, torch_settings
from aprtui.engine.events import PassDone
from aprtui.engine.forward import Given, forward
from aprtui.engine.kernels import decoder_name
from aprtui.engine.ops import SCORE_BLOCK_VALUES, Pass
from aprtui.engine.passes import run_passes
from aprtui.engine.placement import Placement, Room, layer_bytes, place
from aprtui.engine.plan import Plan, check_resident
from aprtui.engine.stacking import Stack
from aprtui.engine.weights import WeightStream, working_bytes
from aprtui.errors import UsageError
from aprtui.graph.ops import Scores
from aprtui.text import clean

__all__ = ["Session"]

_SPARE_BYTES = 512_000_000  # cuBLAS's workspaces, compiled kernels
_GAP_BYTES = 2 << 20  # to which torch's allocator rounds a large tensor


class Session:
    """What the prompts of one command share. Raises UsageError for what the devices cannot do."""

    def __init__(self, plans: Sequence[Plan], devices: Devices) -> None:
        job = plans[0].job
        self._model = plans[0].model
        self._dtype: torch.dtype = getattr(torch, job.dtype)
        self._devices = devices
        if job.resident:
            check_resident(str(devices.first))
        if devices.named and job.engine != "aprtui":
            raise UsageError(
                f"{clean(job.engine)} computes on one device, and {len(devices.titles)} are named",
                hint="--device cuda:0",
            )
        self.placement = self._place(plans)
        self.notes: tuple[str, ...] = (devices.note,) if devices.note else ()
        if job.resident:
            self.notes += (self.placement.kept_note(layer_bytes(self._model)),)

    def _place(self, plans: Sequence[Plan]) -> Placement:
        """The layers on the devices by their free memory; asked for only where it matters."""
        job, devices = plans[0].job, self._devices
        alone = len(devices.titles) == 1 and not job.resident
        if alone or devices.first.type != "cuda" or job.engine != "aprtui":
            return Placement.whole(self._model, devices.first)
        sizes = layer_bytes(self._model)
        needed = sum(sizes.values()) if job.resident else 1
        rooms: list[Room] = []
        for device in devices.titles:
            try:
                free, _ = torch.cuda.mem_get_info(device)
            except RuntimeError:  # too full even for a context, or another process's alone
                free = 0
            rooms.append(Room(device, free - self._working_bytes(plans, device)))
            if rooms[-1].bytes >= needed and not devices.named:
                break  # asking a device takes memory there, and this one has enough
        return place(sizes, rooms, keep=job.resident, spread=devices.named)

    def _working_bytes(self, plans: Sequence[Plan], device: torch.device) -> int:
        """What the pass itself needs on a device: one layer's activations, blocks on their way."""
        scores = max(max(SCORE_BLOCK_VALUES, self._heads * len(plan.tokens)) for plan in plans)
        activations = 2 * max(plan.activation_bytes for plan in plans) + 4 * 4 * scores
        gaps = 0
        if plans[0].job.resident:
            gaps = _GAP_BYTES * sum(
                matrix.rows * matrix.columns > _GAP_BYTES for matrix in self._model.weights.values()
            )
        return activations + working_bytes(self._model, device) + gaps + _SPARE_BYTES

    @property
    def _heads(self) -> int:
        ops = (node.op for node in self._model.graph)
        return max((op.heads for op in ops if isinstance(op, Scores)), default=1)

    @property
    def device(self) -> str:
        """The devices that compute, as ``--device`` takes them."""
        return ",".join(map(str, self.placement.devices))

    @property
    def device_name(self) -> str:
        return self._devices.title_of(self.placement.devices)

    @cached_property
    def _stream(self) -> WeightStream:
        return WeightStream(self._model, self.placement, self._dtype)

    def compute(self, plan: Plan, capture: Capture, given: Given | None = None) -> Ran:
        """One plan's pass, on the engine that its job names; ours can begin where ``given`` is."""
        self._make_current()
        engine = self.engine(plan)
        if plan.job.engine != "aprtui":
            ran = adapters.run(plan, self.placement.head, capture.put)
            return dataclasses.replace(ran, engine={**engine, **ran.engine})
        ar = Pass(self._stream, plan.tokens, plan.job.logits)
        return Ran(forward(self._model.graph, ar, capture, given), engine)

    def compute_passes(
        self,
        plans: Sequence[Plan],
        captures: Sequence[Capture],
        tell: Callable[[int, PassDone], None],
    ) -> list[Ran]:
        """All passes of sequences that run together, on the engine that their job names."""
        self._make_current()
        with ExitStack() as held:
            pairs = zip(plans, captures, strict=True)
            stacks = [held.enter_context(Stack(capture, plan.files)) for plan, capture in pairs]
            running: adapters.Running
            if plans[0].job.engine == "aprtui":
                running = CachedRun(self._model.graph, self._stream, plans, stacks)
            else:
                foreign = adapters.passes(plans, self.placement.head, stacks)
                running = held.enter_context(foreign)
            ended = run_passes(plans, stacks, running, tell)
        return [
            Ran(each.logits, {**self.engine(plan), **running.engine}, running.notes, each.tokens)
            for plan, each in zip(plans, ended, strict=True)
        ]

    def _make_current(self) -> None:
        """Current by default is the first GPU: leaving a stream elsewhere makes a context there."""
        if self._cuda():
            torch.cuda.set_device(self._cuda()[0])

    def engine(self, plan: Plan) -> dict[str, object]:
        """The manifest's ``engine``; of another engine what is known before it runs."""
        name = {"hf": "transformers", "llamacpp": "llama.cpp"}.get(plan.job.engine, "aprtui")
        chosen = {"device": self.device, "device_name": self.device_name, "dtype": plan.job.dtype}
        if name != "aprtui":
            return {"name": name, **chosen}
        ours = {"name": name, "version": __version__, **chosen, **torch_settings()}
        settings = {**self._settings(), **({"kv": plan.job.kv or "f32"} if plan.stretches else {})}
        return {**ours, **({"settings": settings} if settings else {})}

    def _settings(self) -> dict[str, object]:
        """Who decoded, and which layers lay where."""
        cuda = self._cuda()
        if not cuda:
            return {}
        layers = {"layers": self.placement.told()} if len(cuda) > 1 else {}
        return {"decoder": decoder_name(cuda), **layers}

    def start_counting(self) -> None:
        """Peaks are counted from here."""
        for device in self._cuda():
            torch.cuda.reset_peak_memory_stats(device)

    def peak_device_bytes(self) -> int:
        """The most memory in use on the devices since counting began, added up."""
        return sum(torch.cuda.max_memory_allocated(device) for device in self._cuda())

    def _cuda(self) -> list[torch.device]:
        return [device for device in self.placement.devices if device.type == "cuda"]

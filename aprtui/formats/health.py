"""What no honest model file holds: NaN in scales and weights, holes of zeros, constant matrices.

Every block's scales are looked at, and every number of plain types; nothing is decoded. Reads the
memory map in chunks, several tensors at once. Layouts of blocks: ggml-common.h.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count

import numpy as np
import numpy.typing as npt

from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.formats.modelfile import ModelFile, TensorEntry, tensor_bytes
from aprtui.text import clean, count

__all__ = ["Finding", "Health", "Progress", "all_zero", "scan_file", "scan_tensor"]

Bytes = npt.NDArray[np.uint8]
Progress = Callable[[int, int, str], None]

PAGE = 4096
_CHUNK = 1 << 20  # bytes that are looked at together: they stay in the cache
_NEXT = 4096  # bytes between two tensors that may be padding
_SAMPLED = 64  # blocks that tell whether a matrix may be constant

# Type -> (offset of a float16 in the block, what it is).
_SCALES: dict[str, tuple[tuple[int, str], ...]] = {
    "Q4_0": ((0, "scale"),), "Q5_0": ((0, "scale"),), "Q8_0": ((0, "scale"),),
    "APR_Q4": ((0, "scale"),), "IQ4_NL": ((0, "scale"),), "IQ4_XS": ((0, "scale"),),
    "Q4_1": ((0, "scale"), (2, "minimum")), "Q5_1": ((0, "scale"), (2, "minimum")),
    "Q4_K": ((0, "scale"), (2, "minimum")), "Q5_K": ((0, "scale"), (2, "minimum")),
    "Q2_K": ((80, "scale"), (82, "minimum")), "Q3_K": ((108, "scale"),), "Q6_K": ((208, "scale"),),
    "IQ1_S": ((0, "scale"),), "IQ2_XXS": ((0, "scale"),), "IQ2_XS": ((0, "scale"),),
    "IQ2_S": ((0, "scale"),), "IQ3_XXS": ((0, "scale"),), "IQ3_S": ((0, "scale"),),
    "TQ1_0": ((52, "scale"),), "TQ2_0": ((64, "scale"),),
}  # fmt: skip

# Type -> (its bits as an integer, all but the sign, the least that is no finite number).
_PLAIN = {
    "F16": ("<u2", 0x7FFF, 0x7C00), "BF16": ("<u2", 0x7FFF, 0x7F80),
    "F32": ("<u4", 0x7FFFFFFF, 0x7F800000), "F64": ("<u8", (1 << 63) - 1, 0x7FF << 52),
    "F8_E4M3": ("u1", 0x7F, 0x7F), "F8_E5M2": ("u1", 0x7F, 0x7C),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """Something odd. ``wrong``: no honest file has it; else it is worth a look.

    ``kind``: "nonfinite", "zeros", "hole", "constant", "zero-scales", "norms-near-one",
    "lost-head", "no-pre-tokenizer". ``tensors`` as the file names them.
    """

    kind: str
    text: str
    tensors: tuple[str, ...] = ()
    wrong: bool = True
    row: int | None = None
    block: int | None = None


@dataclass(frozen=True)
class Health:
    """What a scan of all tensors found."""

    findings: tuple[Finding, ...]
    tensors: int
    bytes: int

    @property
    def sound(self) -> bool:
        return not any(finding.wrong for finding in self.findings)


@dataclass(frozen=True)
class _Scanned:
    """One tensor's findings, and the runs of zero bytes in its file as (first, after the last)."""

    entry: TensorEntry
    findings: tuple[Finding, ...]
    zeros: tuple[tuple[int, int], ...]

    @property
    def empty(self) -> bool:
        """Whether it holds nothing but zeros."""
        first, last = self.entry.offset, self.entry.offset + self.entry.size_bytes
        return bool(self.entry.size_bytes) and self.zeros == ((first, last),)


def scan_file(file: ModelFile, progress: Progress | None = None) -> Health:
    """Look at every stored tensor of a file. ``progress``: (bytes done, of, the tensor's name).

    Raises BadFileError for a file that has become shorter.
    """
    entries = sorted(file.tensors.values(), key=lambda entry: -entry.size_bytes)
    total, done, lock = sum(entry.size_bytes for entry in entries), 0, threading.Lock()

    def scanned(entry: TensorEntry) -> _Scanned:
        def tell(bytes_read: int) -> None:
            nonlocal done
            with lock:
                done += bytes_read
                if progress is not None:
                    progress(done, total, clean(entry.name, 80))

        return _scan(entry, tell)

    with ThreadPoolExecutor(min(4, cpu_count() or 1)) as threads:
        found = list(threads.map(scanned, entries))
    found.sort(key=lambda each: (str(each.entry.path), each.entry.offset))
    findings = [finding for each in found for finding in each.findings]
    return Health((*findings, *_holes(found)), len(entries), total)


def scan_tensor(entry: TensorEntry) -> tuple[Finding, ...]:
    """What is wrong with one tensor alone: NaN, or zeros throughout."""
    if entry.coding is not None:
        parts = (part.entry for part in entry.coding.parts)
        return tuple(finding for part in parts for finding in scan_tensor(part))
    scanned = _scan(entry, lambda _: None)
    if scanned.empty and _rows(entry) > 1:
        return (*scanned.findings, _all_zero(scanned))
    return scanned.findings


def all_zero(entry: TensorEntry) -> bool:
    """Whether a tensor holds nothing but zero bytes."""
    raw = tensor_bytes(entry)
    return bool(raw.size) and not raw[:PAGE].any() and not raw.any()


def _rows(entry: TensorEntry) -> int:
    return math.prod(entry.shape[:-1])


def _scan(entry: TensorEntry, tell: Callable[[int], None]) -> _Scanned:
    raw = tensor_bytes(entry)
    zeros = tuple(_zero_runs(raw, entry.offset))
    empty = zeros == ((entry.offset, entry.offset + raw.size),)
    findings = [*_nonfinite(entry, raw, tell)]
    if not empty and _rows(entry) > 1:
        findings += _constant(entry, raw)
    return _Scanned(entry, tuple(findings), zeros)


# -- NaN, Inf, scales of zero ----------------------------------------------------------------------


def _nonfinite(entry: TensorEntry, raw: Bytes, tell: Callable[[int], None]) -> Iterator[Finding]:
    if entry.type in _PLAIN:
        yield from _plain_nonfinite(entry, raw, tell)
    elif entry.type in _SCALES:
        yield from _block_nonfinite(entry, raw, tell)
    else:
        scale = raw[:4].copy().view("<f4") if entry.type == "APR_Q8" and raw.size >= 4 else 0.0
        if not np.isfinite(scale).all():
            name = clean(entry.name)
            yield Finding("nonfinite", f"{name}: its scale is NaN or infinite", (name,))
        tell(raw.size)


def _plain_nonfinite(
    entry: TensorEntry, raw: Bytes, tell: Callable[[int], None]
) -> Iterator[Finding]:
    kind, mask, least = _PLAIN[entry.type]
    dtype = np.dtype(kind)
    limit = dtype.type(least)
    bad, first = 0, -1
    room = np.empty(_CHUNK // dtype.itemsize, dtype=dtype)
    step = _CHUNK // dtype.itemsize * dtype.itemsize
    for start in range(0, raw.size - raw.size % dtype.itemsize, step):
        chunk = raw[start : start + step]
        chunk = chunk[: chunk.size - chunk.size % dtype.itemsize]
        bits = room[: chunk.size // dtype.itemsize]
        bits.view(np.uint8)[:] = chunk
        np.bitwise_and(bits, dtype.type(mask), out=bits)
        if bits.max(initial=0) >= limit:
            broken = bits >= limit
            first = start // dtype.itemsize + int(broken.argmax()) if first < 0 else first
            bad += int(broken.sum())
        tell(chunk.size)
    if bad:
        columns = entry.shape[-1] if entry.shape else 1
        row, column = divmod(first, max(columns, 1))
        text = f"{clean(entry.name)}: {count(bad, 'value')} of {entry.type} NaN or infinite, the "
        text += f"first in row {row:,}, column {column:,}"
        yield Finding("nonfinite", text, (clean(entry.name),), row=row)


def _block_nonfinite(
    entry: TensorEntry, raw: Bytes, tell: Callable[[int], None]
) -> Iterator[Finding]:
    """NaN or infinite scales and minima of blocks, and how many scales are zero."""
    size = BLOCK_TYPES[entry.type].bytes
    blocks = raw[: raw.size - raw.size % size].reshape(-1, size)
    step = max(1, _CHUNK // size)
    bad, first, zero = dict.fromkeys((what for _, what in _SCALES[entry.type]), 0), -1, 0
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        for offset, what in _SCALES[entry.type]:
            bits = np.ascontiguousarray(part[:, offset : offset + 2]).view("<u2")[:, 0]
            broken = (bits & 0x7C00) == 0x7C00
            if broken.any():
                place = start + int(broken.argmax())
                first = place if first < 0 else min(first, place)
                bad[what] += int(broken.sum())
            if what == "scale":
                zero += int(bits.size - np.count_nonzero(bits & 0x7FFF))
        tell(part.size)
    name = clean(entry.name)
    per_row = max(1, -(-entry.shape[-1] // BLOCK_TYPES[entry.type].values)) if entry.shape else 1
    for what, times in bad.items():
        if times:
            row, block = divmod(first, per_row)
            verb = "s whose" if times > 1 else " whose"
            text = f"{name}: {count(times)} block{verb} {what} is NaN or infinite, the first is "
            text += f"block {block} of row {row:,}"
            yield Finding("nonfinite", text, (name,), row=row, block=block)
    if zero and zero < len(blocks):
        text = f"{name}: {count(zero, 'block')} of {count(len(blocks))} with a scale of zero"
        yield Finding("zero-scales", text, (name,), wrong=False)


# -- zeros and constants ---------------------------------------------------------------------------


def _zero_runs(raw: Bytes, offset: int) -> Iterator[tuple[int, int]]:
    """Runs of zero bytes that hold a whole page, and the whole tensor where it is all zero, as
    places in the file. One word a page decides for most."""
    if not raw.size:
        return
    if raw.size < 2 * PAGE:
        if not raw.any():
            yield offset, offset + raw.size
        return
    start = -offset % PAGE  # the first page that lies in it
    pages = (raw.size - start) // PAGE
    body = raw[start : start + pages * PAGE].reshape(pages, PAGE)
    maybe = np.flatnonzero(~body[:, :8].any(axis=1))
    empty = [int(page) for page in maybe if not body[page].any()]
    while empty:
        first = last = empty.pop(0)
        while empty and empty[0] == last + 1:
            last = empty.pop(0)
        begin, end = start + first * PAGE, start + (last + 1) * PAGE
        before = np.flatnonzero(raw[max(0, begin - PAGE) : begin])
        begin = max(0, begin - PAGE) + (int(before[-1]) + 1 if before.size else 0)
        after = np.flatnonzero(raw[end : end + PAGE])
        end = end + (int(after[0]) if after.size else min(PAGE, raw.size - end))
        yield offset + begin, offset + end


def _constant(entry: TensorEntry, raw: Bytes) -> Iterator[Finding]:
    """A matrix of one block, or one number, again and again."""
    kind = BLOCK_TYPES.get(entry.type)
    if kind is None or entry.type == "APR_Q8" or raw.size < 4 * kind.bytes:
        return
    blocks = raw[: raw.size - raw.size % kind.bytes].reshape(-1, kind.bytes)
    some = blocks[np.linspace(0, len(blocks) - 1, min(_SAMPLED, len(blocks))).astype(np.int64)]
    if (some == some[0]).all() and (blocks == blocks[0]).all():
        text = f"{clean(entry.name)}: every one of its {count(len(blocks), 'block')} is the same"
        text = text.replace("block", "value") if kind.values == 1 else text
        yield Finding("constant", text, (clean(entry.name),))


def _all_zero(scanned: _Scanned) -> Finding:
    name = clean(scanned.entry.name)
    return Finding("zeros", f"{name}: holds nothing but zeros", (name,))


def _holes(found: Sequence[_Scanned]) -> Iterator[Finding]:
    """Runs of zeros over the borders of tensors, or inside a row, as an unfinished download leaves
    them; matrices of zeros that stand alone."""
    runs: list[tuple[int, int, list[_Scanned]]] = []
    for each in found:
        for first, last in each.zeros:
            joined = runs and runs[-1][2][-1].entry.path == each.entry.path
            if joined and 0 <= first - runs[-1][1] < _NEXT and _goes_on(runs[-1], each, first):
                runs[-1] = (runs[-1][0], last, [*runs[-1][2], each])
            else:
                runs.append((first, last, [each]))
    for first, last, over in runs:
        matrices = [each for each in over if _rows(each.entry) > 1]
        if not matrices:
            continue
        if len(over) > 1 or _inside_a_row(over[0].entry, first, last):
            names = tuple(clean(each.entry.name) for each in over)
            listed = ", ".join(names[:4]) + (
                f" and {len(names) - 4} more" if len(names) > 4 else ""
            )
            text = (
                f"bytes {first:,} to {last - 1:,} of {clean(over[0].entry.path.name)} are zeros, "
            )
            text += f"a hole as an unfinished download leaves it: {listed}"
            yield Finding("hole", text, names)
        elif over[0].empty:
            yield _all_zero(over[0])


def _hole(file: str, first: int, last: int, names: Sequence[str]) -> str:
    listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return (
        f"bytes {first:,} to {last - 1:,} of {clean(file)} are zeros, a hole as an unfinished "
        f"download leaves it: {listed}"
    )


def _goes_on(run: tuple[int, int, list[_Scanned]], each: _Scanned, first: int) -> bool:
    """Whether a run reaches the end of its tensor and the next one begins with zeros."""
    before = run[2][-1].entry
    return run[1] == before.offset + before.size_bytes and first == each.entry.offset


def _inside_a_row(entry: TensorEntry, first: int, last: int) -> bool:
    """Whether a run of zeros begins or ends inside a row: whole rows of zeros are unused tokens."""
    rows = _rows(entry)
    if not rows or entry.size_bytes % rows or (first == entry.offset and _ends(entry, last)):
        return False
    row = entry.size_bytes // rows
    return bool((first - entry.offset) % row or (last - entry.offset) % row) and last - first > row


def _ends(entry: TensorEntry, last: int) -> bool:
    return last == entry.offset + entry.size_bytes

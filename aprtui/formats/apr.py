"""Reads ``.apr`` version 2 model files: sections checked, tensors left where they lie."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from aprtui.errors import BadFileError
from aprtui.formats.apr_header import HEADER_BYTES, AprHeader, aligned, read_header
from aprtui.formats.apr_index import fits, read_index, reversed_entry
from aprtui.formats.apr_metadata import MAX_METADATA_BYTES, read_metadata
from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.formats.files import OpenFile, cut_short, open_file
from aprtui.formats.modelfile import ModelFile, TensorEntry, tensor_bytes
from aprtui.text import clean

__all__ = ["fits", "read_apr", "reversed_entry"]

MAX_INDEX_BYTES = 32 << 20
FOOTER_BYTES = 4
_CHUNK_BYTES = 4 << 20
_CUT = "the file was cut short; copy it again"

_EMBEDDINGS_AND_HEADS = (
    *("model.embed_tokens.weight", "embed_tokens.weight", "token_embd.weight"),
    *("transformer.wte.weight", "embeddings.word_embeddings.weight", "tok_embeddings.weight"),
    *("lm_head.weight", "output.weight"),
)
# Where a block holds its float16 scales, as bytes from its start.
_SCALES_AT: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "APR_Q4": (0,),
}


def read_apr(path: Path, *, verify: bool = False, lenient: bool = False) -> ModelFile:
    """The model in ``path``: canonical metadata, and tensors with the shapes that the file lists.

    ``verify`` reads the whole file: the checksum at its end must match, quantised blocks must have
    finite scales, norms finite values. ``lenient`` turns a wrong header checksum into a note.
    Format: docs/apr-format.md; its section 6 says what is refused.

    Raises BadFileError, which says what the file is when it is no version 2 container.
    """
    with open_file(path) as file:
        size = file.size
        header, fields, notes = read_header(path, file.read(0, HEADER_BYTES), lenient=lenient)
        _check_compression(file, header)
        try:
            metadata, tensors, digest, found = _read_sections(file, header)
        except BadFileError as error:
            if header.compressed:
                raise _compressed(path) from error
            raise
        if header.compressed:
            notes.append("flagged as compressed, but its bytes are plain")
        footer, foot_notes = _footer(path, header, tensors, size)
        if verify and footer:
            _check_footer(file)
    if verify:
        _check_finite(tensors)
    return ModelFile(
        path=path,
        format="apr",
        version=f"{header.major}.{header.minor}",
        metadata=metadata,
        tensors=tensors,
        files=(path,),
        size_bytes=size,
        digest=digest,
        notes=tuple(notes + found + foot_notes),
        header=fields,
    )


def _check_compression(file: OpenFile, header: AprHeader) -> None:
    """Refuse a body that is compressed; apr sets the flag on plain bodies too."""
    if header.compressed and file.read(HEADER_BYTES, 1) != b"{":
        raise _compressed(file.path)


def _compressed(path: Path) -> BadFileError:
    return BadFileError(
        path,
        "its flags say that all after the header is compressed, and it does not read as plain",
        hint="write it again uncompressed",
    )


def _read_sections(
    file: OpenFile, header: AprHeader
) -> tuple[dict[str, Any], dict[str, TensorEntry], str, list[str]]:
    """Metadata, tensors, the digest of header, metadata and index, and notes."""
    path, size = file.path, file.size
    metadata_end = header.metadata_offset + header.metadata_size
    marks = (
        ("the header", HEADER_BYTES),
        ("the metadata's start", header.metadata_offset),
        ("the metadata's end", metadata_end),
        ("the tensor index", header.index_offset),
        ("the tensor data", header.data_offset),
        ("the end of the file", size),
    )
    for (left, before), (right, after) in pairwise(marks):
        if before > after:
            hint = _CUT if after == size else "the header is damaged; copy the file again"
            raise BadFileError(
                path, f"{left} (byte {before:,}) lies beyond {right} (byte {after:,})", hint=hint
            )
    index_bytes = header.data_offset - header.index_offset
    if header.metadata_size > MAX_METADATA_BYTES or index_bytes > MAX_INDEX_BYTES:
        raise BadFileError(
            path,
            f"{header.metadata_size:,} bytes of metadata and {index_bytes:,} of the tensor index; "
            f"{MAX_METADATA_BYTES:,} and {MAX_INDEX_BYTES:,} are the most",
        )
    raw_metadata = file.read(header.metadata_offset, header.metadata_size)
    index = file.read(header.index_offset, index_bytes)
    if len(raw_metadata) < header.metadata_size or len(index) < index_bytes:
        raise cut_short(path)
    tensors, notes = read_index(
        path,
        index,
        header.tensor_count,
        index_offset=header.index_offset,
        data_offset=header.data_offset,
        end=size,
    )
    metadata, metadata_notes = read_metadata(path, raw_metadata)
    _check_vocabulary_matrices(path, metadata, tensors)
    digest = hashlib.sha256(file.read(0, HEADER_BYTES))
    digest.update(raw_metadata)
    digest.update(index)
    return metadata, tensors, digest.hexdigest(), metadata_notes + notes


def _check_vocabulary_matrices(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, TensorEntry]
) -> None:
    """Embedding and head must have vocab_size and hidden_size as dimensions, in either order."""
    declared = {metadata.get("vocab_size"), metadata.get("hidden_size")}
    if None in declared:
        return
    for name in _EMBEDDINGS_AND_HEADS:
        entry = tensors.get(name)
        if entry and len(entry.shape) == 2 and set(entry.shape) != declared:
            raise BadFileError(
                path,
                f"tensor {name} is {entry.shape[0]:,} x {entry.shape[1]:,}, its metadata says "
                f"vocab_size {metadata['vocab_size']:,} and hidden_size "
                f"{metadata['hidden_size']:,}",
            )


def _footer(
    path: Path, header: AprHeader, tensors: Mapping[str, TensorEntry], size: int
) -> tuple[bool, list[str]]:
    """Whether a checksum ends the file, and notes; a file cut inside its padding is refused."""
    used = max(
        (entry.offset + entry.size_bytes for entry in tensors.values()),
        default=header.data_offset,
    )
    padded = header.data_offset + aligned(used - header.data_offset)
    if size == padded + FOOTER_BYTES:
        return True, []
    if size in (used, padded):
        return False, ["no checksum at its end: some writers leave it out, or it was cut off"]
    if size < padded + FOOTER_BYTES:
        raise BadFileError(
            path,
            f"ends at byte {size:,}, inside the padding or checksum after its last tensor "
            f"(whole: {padded + FOOTER_BYTES:,} bytes)",
            hint=_CUT,
        )
    return False, [f"{size - padded:,} bytes follow its last tensor and are ignored"]


def _check_footer(file: OpenFile) -> None:
    """Compare the CRC-32 of all bytes before the footer with the footer."""
    crc, at, end = 0, 0, file.size - FOOTER_BYTES
    while at < end and (chunk := file.read(at, min(_CHUNK_BYTES, end - at))):
        crc = zlib.crc32(chunk, crc)
        at += len(chunk)
    stored = int.from_bytes(file.read(end, FOOTER_BYTES), "little")
    if stored != crc:
        raise BadFileError(
            file.path,
            f"the checksum at its end is {stored:08x}, its bytes give {crc:08x}",
            hint="the file is damaged; copy it again",
        )


def _check_finite(tensors: Mapping[str, TensorEntry]) -> None:
    """Refuse non-finite scales of quantised blocks, and norms with NaN or infinity."""
    for entry in tensors.values():
        if entry.type in _SCALES_AT:
            finite = _scales_finite(entry)
        elif entry.type == "APR_Q8" and entry.size_bytes:
            finite = bool(np.isfinite(tensor_bytes(entry)[:4].view("<f4")).all())
        elif "norm" in entry.name and entry.type in ("F32", "F16", "BF16"):
            finite = _values_finite(entry)
        else:
            continue
        if not finite:
            raise BadFileError(
                entry.path,
                f"tensor {clean(entry.name)} holds NaN or infinity where a finite "
                f"{'value' if 'norm' in entry.name else 'scale'} must stand",
            )


def _scales_finite(entry: TensorEntry) -> bool:
    block = BLOCK_TYPES[entry.type].bytes
    blocks = tensor_bytes(entry).reshape(-1, block)
    for start in range(0, len(blocks), _CHUNK_BYTES // block):
        part = blocks[start : start + _CHUNK_BYTES // block]
        for at in _SCALES_AT[entry.type]:
            scales = np.ascontiguousarray(part[:, at : at + 2]).view("<f2")
            if not np.isfinite(scales).all():
                return False
    return True


def _values_finite(entry: TensorEntry) -> bool:
    raw = tensor_bytes(entry)
    if entry.type == "BF16":
        return bool(((raw.view("<u2") & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(raw.view("<f4" if entry.type == "F32" else "<f2")).all())

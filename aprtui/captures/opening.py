"""A dump opened from its path: an archive, one file of tensors, or a folder of such files.

Names of tensors come from the files' names or from inside them; no path is ever made of a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from aprtui.captures.dump import MAX_TENSORS, Dump, Member, Pass, Rank, file_member
from aprtui.captures.dumper_files import are_dumpers, dumped_ranks
from aprtui.captures.numpy_files import read_npy, read_npz
from aprtui.captures.ranks import in_order, places_of
from aprtui.captures.torch_zip import read_torch
from aprtui.captures.torchlens import blobs_of, is_bundle
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.files import first_bytes
from aprtui.formats.locate import holds_model
from aprtui.formats.safetensors import read_safetensors
from aprtui.formats.strict_json import read_object
from aprtui.formats.tracedir import EVENTS, MANIFEST, holds_stage_files
from aprtui.text import clean, quoted

__all__ = ["is_dump", "open_dump", "refuse_dump", "trace_beside"]

_SUFFIXES = (".npz", ".npy", ".safetensors", ".pt", ".pth")
_CONTAINERS = {
    ".npz": "an .npz archive", ".npy": "numpy arrays", ".safetensors": ".safetensors",
    ".pt": "torch.save files", ".pth": "torch.save files",
}  # fmt: skip
_DUMPED = re.compile(r"_inputs_|_outputs|\.forward\.|^pass[0-9]", re.IGNORECASE)
_RANK = re.compile(r"(TP|step|proc|rank|dump_tensor_data)_?[0-9]*", re.IGNORECASE)
_BESIDE = frozenset({".json", ".md", ".txt", ".csv", ".toml"})
_CALLBACK = re.compile(rb"^(ggml_debug|common_debug_cb_eval): +\S+ = \(", re.MULTILINE)
_STATISTICS = "dump.json"  # of msprobe, beside the values where there are some
_MAX_JSON_BYTES = 64 << 20
_MAX_DEPTH = 5  # of folders below the one that was named
_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def is_dump(path: Path) -> bool:
    """Whether ``path`` looks like another tool's dump: by names and a file's first bytes alone.

    A model is none, though its container may be the same, nor is a trace of ours.
    """
    try:
        if path.is_dir():
            if (path / MANIFEST).exists() or (path / EVENTS).exists() or holds_stage_files(path):
                return False
            return _is_dump_folder(path)
        head = first_bytes(path, 6)
    except (OSError, BadFileError):
        return False
    return head[:4] == b"PK\3\4" or head == b"\x93NUMPY"


def refuse_dump(path: Path) -> None:
    """Raise BadFileError for another tool's dump, with the command that makes a trace of it."""
    if is_dump(path):
        raise BadFileError(
            path,
            "another tool's dump, not a trace",
            hint=f"aprtui import-trace {quoted(path)} --model MODEL makes one",
        )


def trace_beside(path: Path) -> Path:
    """Where a dump's trace goes unless another place is named."""
    whole = path.absolute()
    return whole.with_name(f"{whole.stem if whole.is_file() else whole.name}-trace")


def _is_dump_folder(folder: Path, depth: int = 0) -> bool:
    """Whether a folder holds tensors and what tools write beside them, or only a tool's folder.

    A checkpoint does not: its files are named as no tool names a dump's.
    """
    if is_bundle(folder):
        return True
    entries = [entry for entry in folder.iterdir() if entry.suffix not in _BESIDE]
    if entries and all(
        entry.is_dir() and (_RANK.match(entry.name) or is_bundle(entry)) for entry in entries
    ):
        below = depth + 1
        return below <= _MAX_DEPTH and any(_is_dump_folder(entry, below) for entry in entries)
    if not entries or not all(entry.suffix in _SUFFIXES for entry in entries):
        return False
    return not holds_model(folder) or any(_DUMPED.search(entry.stem) for entry in entries)


def open_dump(path: Path, ranks: Sequence[str] = ()) -> Dump:
    """The tensors of a dump, by rank and pass. Raises BadFileError for what holds none.

    A folder holds one tensor a file, or one pass a file; several of them are the ranks or the steps
    of one run, told by their names. ``ranks``: the names of those to read, in their order.
    """
    _refuse_ours(path)
    if not path.is_dir():
        if ranks:
            raise UsageError(f"--ranks: {clean(str(path))} is one file")
        tensors, _ = _read(path, path.stem)
        rank = Rank(path.name, (tensors,), (path.name,))
        return Dump(path, _CONTAINERS.get(path.suffix, "an archive"), (rank,))
    files = list(_files(path))
    if not files:
        _refuse_statistics(path)
        raise BadFileError(
            path,
            "holds no dump: no .npz, .npy, .safetensors or .pt file",
            hint="name the file or folder that the tool wrote its tensors to",
        )
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    bundle = (
        path if is_bundle(path) else next(filter(is_bundle, {*folders, *_above(folders)}), None)
    )
    if bundle is not None:
        tensors = {name: _read(file, name)[0][name] for name, file in blobs_of(bundle).items()}
        return Dump(path, "a bundle of torchlens", (Rank(bundle.name, (tensors,), (bundle.name,)),))
    if len(folders) == 1 and are_dumpers(files):
        found = dumped_ranks(path, files, lambda file: _read(file, file.stem)[0])
        return Dump(path, "SGLang's dumper's files", found)
    places = places_of(path, list(folders), ranks)
    kinds = sorted({file.suffix for folder in places for file in folders[folder]})
    if len(kinds) > 1:
        raise BadFileError(path, f"mixes {' and '.join(kinds)} files: name one of them")
    read = [(place, _rank(folder, folders[folder])) for folder, place in places.items()]
    return Dump(path, f"a folder of {_CONTAINERS[kinds[0]]}", in_order(read))


def _refuse_ours(path: Path) -> None:
    """Raise BadFileError for a trace, and for a model."""
    if path.is_dir() and ((path / MANIFEST).exists() or (path / EVENTS).exists()):
        raise BadFileError(path, "a trace already, no dump", hint=f"aprtui {quoted(path)} opens it")
    a_model = path.suffix in (".gguf", ".apr")
    if path.is_dir():
        a_model = (path / "config.json").is_file() and holds_model(path) and not is_dump(path)
    if a_model:
        raise BadFileError(
            path,
            "a model, not a dump of what one computed",
            hint="--model names it; SOURCE is what a runtime wrote while it ran",
        )


def _refuse_statistics(folder: Path) -> None:
    """Raise BadFileError for what msprobe writes where it is asked for statistics alone."""
    for above in ("", "*/", "*/*/"):
        for said in folder.glob(f"{above}{_STATISTICS}"):
            if read_object(said, "the dump", _MAX_JSON_BYTES).get("task") == "statistics":
                raise BadFileError(
                    folder,
                    "msprobe's statistics, which hold no values",
                    hint='dump them with task="tensor"',
                )


def _above(folders: Iterable[Path]) -> set[Path]:
    return {folder.parent for folder in folders}


def _rank(folder: Path, files: list[Path]) -> Rank:
    """A folder of files of one kind: all of one tensor, or each a pass."""
    read = [(file, *_read(file, file.stem)) for file in files]
    alone = [file for file, _, single in read if single]
    if len(alone) == len(read):
        merged: dict[str, Member] = {}
        for _, tensors, _ in read:
            merged.update(tensors)
        return Rank(folder.name, (merged,), (folder.name,))
    if alone:
        raise BadFileError(alone[0], "one tensor, beside files that hold several: name one file")
    passes = tuple(tensors for _, tensors, _ in read)
    return Rank(folder.name, passes, tuple(file.name for file in files))


def _read(path: Path, name: str) -> tuple[Pass, bool]:
    """The tensors of one file, and whether it is of a kind or content that holds one alone."""
    head = first_bytes(path, 8)
    if head[:6] == b"\x93NUMPY":
        return {name: read_npy(path, name)}, True
    if head[:4] == b"PK\3\4":
        if path.suffix == ".npz":
            return read_npz(path), False
        return read_torch(path, name)
    if path.suffix == ".safetensors":
        return _safetensors(path, name)
    if head[:1] == b"\x80":
        raise BadFileError(
            path,
            "a pickle without torch's zip around it, which can run code as it is opened",
            hint="save it anew with a current torch.save",
        )
    if _CALLBACK.search(first_bytes(path, 1 << 20)):
        raise BadFileError(
            path,
            "what llama.cpp's eval-callback prints: sums and the first and last values of each row",
            hint="aprtui trace MODEL --engine llamacpp captures all of them",
        )
    raise BadFileError(
        path,
        "no dump that can be read",
        hint=".npz, .npy, .safetensors and torch.save's .pt are, and folders of them",
    )


def _safetensors(path: Path, name: str) -> tuple[Pass, bool]:
    entries = read_safetensors(path).tensors
    single = len(entries) == 1
    members = {}
    for entry in entries.values():
        own = name if single else entry.name
        dtype = _SAFETENSORS.get(entry.type, entry.type)
        members[own] = file_member(
            own, dtype, tuple(entry.shape), path, entry.offset, entry.size_bytes
        )
    return members, single


def _files(folder: Path, depth: int = 0) -> Iterator[Path]:
    """The files of tensors in and below a folder, in the order of the numbers in their names."""
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: _natural(entry.name))
    except OSError as error:
        raise BadFileError(folder, f"cannot be read: {error.strerror}") from error
    if len(entries) > MAX_TENSORS:
        raise BadFileError(folder, f"{len(entries):,} files; {MAX_TENSORS:,} is the most")
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            if depth < _MAX_DEPTH:
                yield from _files(entry, depth + 1)
        elif entry.suffix in _SUFFIXES:
            yield entry


def _natural(name: str) -> list[tuple[int, str]]:
    """``Pass10`` after ``Pass9``."""
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"([0-9]{1,15})", name)
    ]

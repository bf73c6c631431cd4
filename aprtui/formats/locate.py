"""Where the model lies that a path means: caches, stores and folders as programs leave them.

* Hugging Face's cache: ``models--ORG--NAME`` with ``refs``, ``snapshots``, ``blobs``, at any level.
* Ollama: a manifest ``manifests/HOST/LIBRARY/NAME/TAG``, whose layers are files in ``blobs``.
* A folder of GGUF or ``.apr`` files, as LM Studio and llama.cpp keep them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aprtui.errors import BadFileError
from aprtui.formats.files import first_bytes
from aprtui.formats.strict_json import read_object
from aprtui.text import clean

__all__ = ["Located", "holds_model", "located"]

_MOST_LISTED = 8
_REF_BYTES = 200
_MANIFEST_BYTES = 1 << 20
_STORE_LEVELS = 6  # of folders between an Ollama manifest and its store
_PART = re.compile(r"(.+)-\d{5}-of-\d{5}\.gguf")
_NO_MODEL = re.compile(r"(?i).*(mmproj|imatrix|ggml-vocab).*")
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_OLLAMA = "application/vnd.ollama.image."


@dataclass(frozen=True)
class Located:
    """The file or folder that is read, and what is to be said of how it was found."""

    path: Path
    notes: tuple[str, ...] = ()


def located(path: Path) -> Located:
    """The model that ``path`` means; ``path`` itself where it is one, or nothing known.

    Raises BadFileError where a folder holds several models, or one whose files are not there.
    """
    try:
        return _in_folder(path) if path.is_dir() else _of_file(path)
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error


def holds_model(path: Path) -> bool:
    """Whether a path looks like what ``located`` finds a model by; nothing is read but names, and
    the first bytes of a file. Raises OSError, BadFileError."""
    if path.is_dir():
        return (
            _holds_tensors(path)
            or bool(_model_files(path))
            or (path / "snapshots").is_dir()
            or path.name == "snapshots"
            or any(path.glob("models--*"))
            or bool(_manifests(path))
        )
    if path.suffix.lower() in (".apr", ".gguf", ".safetensors"):
        return True
    if not path.is_file():
        return False
    head = first_bytes(path, 4)
    return head == b"GGUF" or head == b"APR\0" or _store_of(path) is not None


def _holds_tensors(folder: Path) -> bool:
    return (folder / "config.json").is_file() or any(folder.glob("*.safetensors"))


def _in_folder(folder: Path) -> Located:
    if _holds_tensors(folder):
        return Located(folder)
    if folder.name in ("snapshots", "refs", "blobs") and (folder.parent / "snapshots").is_dir():
        return _snapshot(folder.parent)
    if (folder / "snapshots").is_dir():
        return _snapshot(folder)
    for cache in (folder, folder / "hub"):
        models = sorted(cache.glob("models--*"))
        if models:
            return _snapshot(_only(folder, models, "models of a Hugging Face cache"))
    manifests = _manifests(folder)
    if manifests:
        return _of_file(_only(folder, manifests, "models of an Ollama store"))
    files = _model_files(folder)
    if files:
        return _with_beside(folder, _only(folder, files, "models"))
    return Located(folder)


def _snapshot(model: Path) -> Located:
    """The revision of a cached model: main's, or the only one that is there."""
    snapshots = model / "snapshots"
    found = sorted(path for path in snapshots.iterdir() if path.is_dir())
    name = clean(model.name.removeprefix("models--").replace("--", "/"), 120)
    if not found:
        raise BadFileError(
            model, f"no snapshot of {name} is in this cache", hint="its download did not finish"
        )
    ref = model / "refs" / "main"
    if ref.is_file():
        revision = first_bytes(ref, _REF_BYTES).decode("utf-8", "replace").strip()
        chosen = next((path for path in found if path.name == revision), None)
        if chosen is None and len(found) > 1:
            raise BadFileError(
                model,
                f"refs/main names {clean(revision, 60)}, which is none of its {len(found)} "
                "snapshots",
                hint="open one of the folders in snapshots",
            )
        found = [chosen] if chosen is not None else found
    chosen = _only(model, found, "snapshots")
    inner = _in_folder(chosen)
    return Located(inner.path, (f"snapshot {clean(chosen.name[:12])} of {name}", *inner.notes))


def _only(folder: Path, found: list[Path], what: str) -> Path:
    if len(found) == 1:
        return found[0]
    names = ", ".join(clean(path.name, 80) for path in found[:_MOST_LISTED])
    more = f" and {len(found) - _MOST_LISTED} more" if len(found) > _MOST_LISTED else ""
    raise BadFileError(folder, f"holds {len(found)} {what}", hint=f"name one: {names}{more}")


def _model_files(folder: Path) -> list[Path]:
    """GGUF and .apr files, of a split one the first part; none that only accompanies a model."""
    found: dict[str, Path] = {}
    for path in sorted((*folder.glob("*.gguf"), *folder.glob("*.apr"))):
        if not _NO_MODEL.fullmatch(path.name):
            part = _PART.fullmatch(path.name)
            found.setdefault(part[1] if part else path.name, path)
    return list(found.values())


def _with_beside(folder: Path, model: Path) -> Located:
    beside = [p.name for p in sorted(folder.glob("*.gguf")) if _NO_MODEL.fullmatch(p.name)]
    if not beside:
        return Located(model)
    names = ", ".join(clean(name, 60) for name in beside[:_MOST_LISTED])
    return Located(model, (f"beside it, and not part of the text model: {names}",))


def _of_file(path: Path) -> Located:
    if path.name.endswith(".safetensors.index.json") or path.name == "config.json":
        return Located(path.parent)
    if path.parent.name == "blobs" and (path.parent.parent / "snapshots").is_dir():
        return Located(_linked(path))
    store = _store_of(path)
    return Located(path) if store is None else _in_store(path, store)


def _linked(blob: Path) -> Path:
    """The name in a snapshot that a blob of Hugging Face's cache goes by."""
    for link in sorted((blob.parent.parent / "snapshots").glob("*/*")):
        if link.resolve() == blob.resolve():
            return link
    return blob


# -- Ollama --------------------------------------------------------------------------------------


def _is_store(folder: Path) -> bool:
    return (folder / "manifests").is_dir() and (folder / "blobs").is_dir()


def _manifests(folder: Path) -> list[Path]:
    """The manifests of a store, or of a folder inside its own."""
    if _is_store(folder):
        folder = folder / "manifests"
    elif _store_of(folder / "any") is None:
        return []
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _store_of(path: Path) -> Path | None:
    """The Ollama store that a manifest is of, or None."""
    parents: Iterable[Path] = list(path.absolute().parents)[:_STORE_LEVELS]
    for folder in parents:
        if folder.name == "manifests" and _is_store(folder.parent):
            return folder.parent
    return None


def _in_store(manifest: Path, store: Path) -> Located:
    """The blob that a manifest's model layer is, and what else it lists."""
    layers = read_object(manifest, "the manifest", _MANIFEST_BYTES).get("layers")
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, Mapping):
            kind = str(layer.get("mediaType", "")).removeprefix(_OLLAMA)
            by_kind.setdefault(kind, []).append(layer)
    models = by_kind.get("model", [])
    if len(models) != 1:
        raise BadFileError(manifest, f"an Ollama manifest with {len(models)} models in it")
    digest = _DIGEST.fullmatch(str(models[0].get("digest", "")))
    if digest is None:
        raise BadFileError(manifest, "an Ollama manifest whose model has no sha256")
    blob = store / "blobs" / f"sha256-{digest[1]}"
    if not blob.is_file():
        raise BadFileError(
            manifest,
            f"names the blob sha256-{digest[1][:12]}..., which is not in its store",
            hint="ollama pull the model again",
        )
    notes = [f"Ollama's {clean('/'.join(manifest.absolute().parts[-2:]), 120)}"]
    for kind, what in (("adapter", "an adapter"), ("projector", "a projector of another tower")):
        if kind in by_kind:
            notes.append(f"the manifest lists {what} too, which is not applied")
    return Located(blob, tuple(notes))

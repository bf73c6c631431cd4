"""Files beside models that are none: each named for what it is, with what to do."""

from __future__ import annotations

import re
from pathlib import Path

from aprtui.errors import BadFileError
from aprtui.formats.files import first_bytes
from aprtui.formats.modelfile import ModelFile
from aprtui.text import clean, quoted, size

__all__ = ["other_kind", "refuse_beginning", "refuse_folder"]

_LORA = re.compile(r".*\.(lora_[AB]|lora_embedding_[AB]|lora_[ab])(\.|$).*")
_OLD_GGML = (b"lmgg", b"fmgg", b"tjgg", b"algg")


def refuse_beginning(path: Path, head: bytes) -> None:
    """Raises BadFileError for a file whose first bytes tell that it is another kind of thing."""
    text = head[:256].lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        stated = re.search(rb"size (\d{1,18})", head)
        of = f" to {size(int(stated[1]))}" if stated else ""
        raise BadFileError(
            path,
            f"a Git LFS pointer{of}, not the file itself",
            hint="git lfs pull in its folder fetches the file",
        )
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise BadFileError(
            path,
            "a web page, not a model: its download was answered by a page",
            hint="log in or accept the model's licence there, then download again",
        )
    if head[8:9] == b"{":
        return  # the JSON of a .safetensors header, whose length may begin with any byte
    zipped = head[:4] == b"PK\3\4"
    if zipped or (head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5"):
        what = "a zip archive, as PyTorch packs its pickles" if zipped else "a PyTorch pickle"
        raise BadFileError(
            path,
            f"{what}, which can run code as it is opened; aprtui opens no model in one",
            hint="transformers' save_pretrained writes it as .safetensors",
        )
    if head[:4] in _OLD_GGML:
        raise BadFileError(
            path,
            "a GGML file from before GGUF",
            hint="convert the model anew with a current llama.cpp",
        )


def refuse_folder(folder: Path) -> None:
    """Raises BadFileError for a folder of weights that no reader here opens."""
    for pattern in ("pytorch_model*.bin", "consolidated*.pth", "*.pt", "*.ckpt"):
        found = sorted(folder.glob(pattern))
        if found:
            refuse_beginning(found[0], first_bytes(found[0], 256))
            raise BadFileError(
                folder,
                f"no .safetensors file; {clean(found[0].name, 80)} is PyTorch's, which aprtui "
                "does not open",
                hint="transformers' save_pretrained writes it as .safetensors",
            )


def other_kind(file: ModelFile) -> BadFileError | None:
    """What a file in a model's container is where it is no model, and what to do; else None."""
    told = _gguf_kind(file) if file.format == "gguf" else _adapter(file)
    return None if told is None else BadFileError(file.path, told[0], hint=told[1])


def _gguf_kind(file: ModelFile) -> tuple[str, str] | None:
    kind = file.metadata.get("general.type")
    names = list(file.tensors)
    if kind == "adapter" or any(_LORA.fullmatch(name) for name in names):
        return (
            "a LoRA adapter, not a model: it changes the weights of one",
            f"--adapter {quoted(file.path)} lays it on the model that it was made for",
        )
    if kind == "imatrix" or any(name.endswith(".in_sum2") for name in names):
        return (
            "an importance matrix for quantising, not a model",
            "open the model that it was measured on",
        )
    if kind == "mmproj" or file.metadata.get("general.architecture") == "clip":
        return (
            "the vision or audio part of a model (mmproj), not its text part",
            "open the GGUF beside it that has the text model",
        )
    if not names and "tokenizer.ggml.model" in file.metadata:
        return "a vocabulary alone: it holds no weights", "open the model's own GGUF"
    return None


def _adapter(file: ModelFile) -> tuple[str, str] | None:
    if not any(_LORA.fullmatch(name) for name in file.tensors):
        return None
    folder = file.path if file.path.is_dir() else file.path.parent
    return (
        "a LoRA adapter, not a model: it changes the weights of one",
        f"--adapter {quoted(folder)} lays it on the model that it was made for",
    )

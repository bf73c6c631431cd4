"""A model is found where programs keep it, and what is no model is named for what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from aprtui.cli.main import main
from aprtui.errors import BadFileError
from aprtui.formats.locate import holds_model, located
from aprtui.model.open import is_model_path, list_model_file, open_model
from tests.support import FIXTURES, SMALL, needs_fixtures

CHECKPOINT = SMALL / "quantised" / "mlx-4"
FILES = FIXTURES / "cases" / "files"
REVISION = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "a1" * 32


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A Hugging Face cache with one model, its files links to blobs."""
    model = tmp_path / "huggingface" / "hub" / "models--org--tiny"
    snapshot = model / "snapshots" / REVISION
    for folder in (snapshot, model / "blobs", model / "refs"):
        folder.mkdir(parents=True)
    (model / "refs" / "main").write_text(REVISION)
    for number, name in enumerate(("config.json", "model.safetensors")):
        blob = model / "blobs" / f"{number:064x}"
        shutil.copy(CHECKPOINT / name, blob)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    return model


@pytest.mark.parametrize(
    "inside",
    ["../..", "..", ".", "snapshots", "refs", f"snapshots/{REVISION}",
     f"snapshots/{REVISION}/model.safetensors", f"snapshots/{REVISION}/config.json",
     f"blobs/{1:064x}"],
)  # fmt: skip
def test_a_hugging_face_cache_is_opened_at_any_level(cache: Path, inside: str) -> None:
    path = (cache / inside).resolve() if inside.startswith(".") else cache / inside
    model = open_model(path)
    assert model.architecture == "llama"
    assert model.path.resolve().is_relative_to(cache.resolve())


def test_the_revision_is_said_and_main_is_taken_of_several(cache: Path) -> None:
    other = cache / "snapshots" / ("f" * 40)
    shutil.copytree(CHECKPOINT, other)
    model = open_model(cache)
    assert model.path.name == REVISION
    assert model.notes[0] == "snapshot 0123456789ab of org/tiny"
    (cache / "refs" / "main").write_text("e" * 40)
    with pytest.raises(BadFileError, match="none of its 2 snapshots"):
        open_model(cache)


def test_of_several_cached_models_one_must_be_named(cache: Path) -> None:
    (cache.parent / "models--org--other" / "snapshots").mkdir(parents=True)
    with pytest.raises(BadFileError, match="holds 2 models of a Hugging Face cache") as raised:
        open_model(cache.parent)
    assert "models--org--other, models--org--tiny" in raised.value.hint
    with pytest.raises(BadFileError, match="no snapshot of org/other"):
        open_model(cache.parent / "models--org--other")


@pytest.fixture
def store(tmp_path: Path, qwen2: Path) -> Path:
    """An Ollama store with one model in it."""
    root = tmp_path / "models"
    tag = root / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "0.5b"
    tag.parent.mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "blobs" / f"sha256-{DIGEST}").symlink_to(qwen2)
    kind = "application/vnd.ollama.image."
    layers = [
        {"mediaType": f"{kind}model", "digest": f"sha256:{DIGEST}", "size": 1},
        {"mediaType": f"{kind}template", "digest": f"sha256:{'b2' * 32}", "size": 1},
        {"mediaType": f"{kind}projector", "digest": f"sha256:{'c3' * 32}", "size": 1},
    ]
    tag.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return root


@pytest.mark.parametrize(
    "inside", ["", "manifests/registry.ollama.ai/library/tiny",
               "manifests/registry.ollama.ai/library/tiny/0.5b", f"blobs/sha256-{DIGEST}"],
)  # fmt: skip
def test_ollamas_store_manifest_and_blob_are_the_model(store: Path, inside: str) -> None:
    path = store / inside
    assert is_model_path(path)
    model = open_model(path)
    assert model.architecture == "qwen2"
    if "blobs" not in inside:
        assert model.notes[0] == "Ollama's tiny/0.5b"
        assert "projector" in model.notes[1]


def test_a_manifest_whose_blob_is_gone_says_so(store: Path) -> None:
    (store / "blobs" / f"sha256-{DIGEST}").unlink()
    with pytest.raises(BadFileError, match="names the blob sha256-a1a1") as raised:
        open_model(store)
    assert "ollama pull" in raised.value.hint


def test_a_folder_of_gguf_files_is_its_one_model(tmp_path: Path, qwen2: Path) -> None:
    """As LM Studio keeps them: the projector beside it is noted."""
    (tmp_path / "tiny-Q4_K_M.gguf").symlink_to(qwen2)
    (tmp_path / "mmproj-tiny-f16.gguf").symlink_to(qwen2)
    model = open_model(tmp_path)
    assert model.path == tmp_path / "tiny-Q4_K_M.gguf"
    assert "mmproj-tiny-f16.gguf" in model.notes[0]
    (tmp_path / "tiny-Q8_0.gguf").symlink_to(qwen2)
    with pytest.raises(BadFileError, match="holds 2 models") as raised:
        open_model(tmp_path)
    assert raised.value.hint == "name one: tiny-Q4_K_M.gguf, tiny-Q8_0.gguf"


def test_parts_of_a_split_file_are_one_model(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"big-{number:05d}-of-00003.gguf").write_bytes(b"GGUF")
    assert located(tmp_path).path.name == "big-00001-of-00003.gguf"


# -- which files of a folder -----------------------------------------------------------------------


def copied(out: Path, *names: str) -> Path:
    out.mkdir()
    shutil.copy(CHECKPOINT / "config.json", out)
    for name in names:
        shutil.copy(CHECKPOINT / "model.safetensors", out / name)
    return out


def test_consolidated_and_sharded_files_are_never_merged(tmp_path: Path) -> None:
    folder = copied(tmp_path / "m", "consolidated.safetensors", "model-00001-of-00001.safetensors")
    file = list_model_file(folder)
    assert [path.name for path in file.files] == ["model-00001-of-00001.safetensors"]
    assert "1 file beside the model, not part of it: consolidated.safetensors" in file.notes


def test_every_missing_shard_is_named(tmp_path: Path) -> None:
    folder = copied(tmp_path / "m", "model-00002-of-00004.safetensors")
    with pytest.raises(BadFileError, match="shard 1 of 4 is missing, and 2 more"):
        list_model_file(folder)
    weight_map = {f"w{n}": f"model-{n:05d}-of-00004.safetensors" for n in range(1, 5)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(BadFileError, match=r"3 of 4 shards, model-00001-of-00004\.safetensors"):
        list_model_file(folder)


def test_an_index_that_lies_is_named(tmp_path: Path) -> None:
    folder = copied(tmp_path / "m", "part.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight2": "part.safetensors"}}))
    with pytest.raises(BadFileError, match=r"promises tensor model\.norm\.weight2"):
        list_model_file(folder)


# -- what is no model ------------------------------------------------------------------------------

BEGINNINGS = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4680000000\n",
            "a Git LFS pointer to 4.7 GB", "git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html><body>401</body></html>", "a web page", "licence"),
    "pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a PyTorch pickle", "save_pretrained"),
    "torch zip": (b"PK\x03\x04\x00\x00\x08\x08\x00\x00" + bytes(40), "a zip archive", "run code"),
    "old ggml": (b"tjgg\x03\x00\x00\x00" + bytes(40), "from before GGUF", "current llama.cpp"),
}  # fmt: skip


@pytest.mark.parametrize("ending", ["model.safetensors", "model.gguf", "pytorch_model.bin"])
@pytest.mark.parametrize("name", BEGINNINGS)
def test_another_kind_of_file_is_named(name: str, ending: str, tmp_path: Path) -> None:
    raw, what, advice = BEGINNINGS[name]
    path = tmp_path / ending
    path.write_bytes(raw)
    with pytest.raises(BadFileError, match=what) as raised:
        open_model(path)
    assert advice in str(raised.value)


def test_a_folder_of_pickles_is_named(tmp_path: Path) -> None:
    folder = copied(tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(BEGINNINGS["torch zip"][0])
    with pytest.raises(BadFileError, match=r"pytorch_model\.bin: a zip archive"):
        open_model(folder)


def test_a_header_of_any_length_is_still_a_header(tmp_path: Path) -> None:
    """640 bytes of JSON begin as a pickle of protocol 2 does."""
    text = json.dumps({"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).ljust(640)
    path = tmp_path / "m.safetensors"
    path.write_bytes((640).to_bytes(8, "little") + text.encode())
    assert list(list_model_file(path).tensors) == ["w"]


@needs_fixtures
@pytest.mark.parametrize(
    ("name", "what"),
    [("lora.gguf", "a LoRA adapter, not a model"), ("imatrix.gguf", "an importance matrix")],
)
def test_a_gguf_that_is_no_model_is_listed_and_named(
    name: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(FILES / name)]) == 0
    assert what in capsys.readouterr().out
    assert main(["trace", str(FILES / name), "--tokens", "1,2"]) == 3
    assert what in capsys.readouterr().err


def test_other_gguf_kinds_and_adapters_of_checkpoints_are_named(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    from aprtui.formats.modelfile import ModelFile, TensorEntry
    from aprtui.formats.other_kinds import other_kind

    def gguf(metadata: dict[str, object], *names: str) -> ModelFile:
        path = tmp_path / "f.gguf"
        tensors = {name: TensorEntry(name, "F32", (1,), path, 0, 4) for name in names}
        return ModelFile(path, "gguf", "3", metadata, tensors, (path,), 0, "")

    for metadata, names, what in (
        ({"general.architecture": "clip"}, ("v.w",), "mmproj"),
        ({"general.type": "mmproj"}, ("v.w",), "mmproj"),
        ({"tokenizer.ggml.model": "gpt2"}, (), "a vocabulary alone"),
    ):
        assert what in str(other_kind(gguf(dict(metadata), *names)))
    assert other_kind(gguf({"general.architecture": "llama"}, "token_embd.weight")) is None
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({name: np.ones((2, 4), np.float32)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BadFileError, match="a LoRA adapter, not a model") as raised:
        open_model(tmp_path)
    assert f"--adapter {tmp_path} lays it" in raised.value.hint


def test_a_folder_without_a_model_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert not holds_model(tmp_path)
    assert not holds_model(tmp_path / "notes.txt")

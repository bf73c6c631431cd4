"""Every file and folder of shared/fixtures/cases/files, as its README says what is right of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from aprtui import api
from aprtui.cli.main import main
from aprtui.errors import BadFileError
from aprtui.formats.tracedir import StageKey
from aprtui.model.open import open_model
from tests.support import FIXTURES, needs_fixtures

pytestmark = needs_fixtures
FILES = FIXTURES / "cases" / "files"
OF_FOLDERS, OF_GGUF = (3, 17, 40, 99, 5, 61, 7, 8), (3, 17, 40, 9, 5, 61, 7, 8)


@dataclass(frozen=True)
class Right:
    """``reference``: the right logits of the last position, and how far ours may be (relative L2);
    ``types``: of the weight q; ``says``: a note of the trace, or the refusal with its hint."""

    reference: str = ""
    bar: float = 1e-6
    types: tuple[str, ...] = ()
    says: str = ""
    hint: str = ""


TRACED = {
    "embgemma": Right("embgemma/ref.npy"),
    "llama-relu": Right("llama-relu/ref.npy"),
    "mistral-consolidated": Right("mistral-consolidated/ref.npy"),
    "noncausal.gguf": Right("noncausal.llamacpp-lm_head.bin"),
    "scaling-factor-no-type.gguf": Right("scaling-factor-no-type.llamacpp-lm_head.bin"),
    "fp8-block-qwen3": Right(types=("FP8_E4M3",), says="14 of FP8_E4M3; decoded to float32"),
    "gptq-int4": Right(types=("GPTQ_4",), says="14 of GPTQ_4; decoded to float32"),
    "mlx-4bit": Right(types=("MLX_4",), says="16 of MLX_4; decoded to float32"),
    # bitsandbytes rounds the activations to eight bits as well, which the note says.
    "bnb-int8": Right("bnb-int8/ref.npy", 0.03, ("BNB_INT8",), "activations not rounded"),
}
REFUSED = {
    "gemma3-4b-sparse-config": Right(
        says="a configuration without weights", hint="download is not complete"
    ),
    "lora.gguf": Right(says="a LoRA adapter, not a model", hint="--adapter"),
    "imatrix.gguf": Right(says="an importance matrix", hint="that it was measured on"),
    "lfs-pointer.safetensors": Right(says="a Git LFS pointer", hint="git lfs pull"),
}


def test_the_tables_have_every_one_of_them() -> None:
    references = {right.reference.partition("/")[0] for right in TRACED.values()}
    there = {path.name for path in FILES.iterdir()}
    assert there - references <= {*TRACED, *REFUSED} <= there


@pytest.mark.parametrize("name", TRACED)
def test_what_can_be_computed_has_the_right_logits(name: str, tmp_path: Path) -> None:
    right = TRACED[name]
    tokens = OF_GGUF if name.endswith(".gguf") else OF_FOLDERS
    trace = api.trace(FILES / name, tokens=tokens, directory=tmp_path / "t")
    found = np.asarray(trace[StageKey(None, "lm_head")]).astype(np.float64)
    assert np.isfinite(found).all()
    if right.reference:
        path = FILES / right.reference
        due = np.load(path) if path.suffix == ".npy" else np.fromfile(path, "<f4", offset=12)
        assert np.linalg.norm(found - due) <= right.bar * np.linalg.norm(due)
    if right.types:
        assert tuple(trace.stated["model"]["types"]["q"]) == right.types
    assert not right.says or any(right.says in note for note in (trace.manifest or {})["notes"])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_model_is_named_with_what_to_do(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    right = REFUSED[name]
    with pytest.raises(BadFileError) as refused:
        open_model(FILES / name)
    assert right.says in refused.value.message and right.hint in refused.value.hint
    listed = name.endswith(".gguf")  # its container is one that can be listed
    assert main(["inspect", str(FILES / name)]) == (0 if listed else 3)
    told = capsys.readouterr()
    assert right.says in (told.out if listed else told.err)

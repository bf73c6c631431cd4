"""A Hugging Face folder's tokenizer gives the recorded ids; a damaged one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aprtui.errors import BadFileError, UsageError
from aprtui.model.tokenizer import build_tokenizer, spec_from_folder
from tests.support import FIXTURES, needs_fixtures


@needs_fixtures
class TestFolders:
    SOURCE = FIXTURES / "models" / "pycode-5m" / "tokenizer.json"

    def folder(self, tmp_path: Path, change: dict[str, Any], **config: Any) -> Path:
        source = json.loads(self.SOURCE.read_text("utf-8"))
        (tmp_path / "tokenizer.json").write_text(json.dumps(source | change), "utf-8")
        (tmp_path / "config.json").write_text('{"bos_token_id": 2045, "eos_token_id": 2045}')
        if config:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
        return tmp_path

    def test_a_template_that_disagrees_about_bos_is_said(self, tmp_path: Path) -> None:
        alone = self.folder(tmp_path, {})
        assert build_tokenizer(spec_from_folder(alone)).notes == ()
        both = self.folder(tmp_path, {}, add_bos_token=True, bos_token={"content": "<|im_start|>"})
        (note,) = build_tokenizer(spec_from_folder(both)).notes
        assert "template adds no BOS, and tokenizer_config.json adds BOS" in note
        agreed = self.folder(tmp_path, {}, add_bos_token=False)
        assert build_tokenizer(spec_from_folder(agreed)).notes == ()

    def test_ids_are_those_recorded_of_the_same_model(self) -> None:
        path = FIXTURES / "captures" / "pycode-5m-q4_k_m" / "capture.json"
        capture = json.loads(path.read_text("utf-8"))
        tokenizer = build_tokenizer(spec_from_folder(self.SOURCE.parent))
        assert list(tokenizer.encode(capture["text"])) == capture["token_ids"]
        assert tokenizer.decode(capture["token_ids"]) == capture["text"]
        assert tokenizer.vocab_size == 2048

    def test_special_tokens_are_text_when_not_asked_for(self) -> None:
        tokenizer = build_tokenizer(spec_from_folder(self.SOURCE.parent))
        assert tokenizer.encode("<|im_start|>") == (2046,)
        assert len(tokenizer.encode("<|im_start|>", special=False)) > 1
        assert tokenizer.text_of(2046) == "<|im_start|>"

    def test_tokenizer_config_says_whether_bos_is_added(self, tmp_path: Path) -> None:
        folder = self.folder(
            tmp_path, {}, add_bos_token=True, bos_token={"content": "<|im_start|>"}
        )
        assert build_tokenizer(spec_from_folder(folder)).encode("!") == (2046, 0)

    def test_a_template_adds_bos_once(self, tmp_path: Path) -> None:
        bos = {"id": "<|endoftext|>", "ids": [2045], "tokens": ["<|endoftext|>"]}
        pieces_of = [{"SpecialToken": {"id": bos["id"], "type_id": 0}}]
        text = {"Sequence": {"id": "A", "type_id": 0}}
        template = {
            "type": "TemplateProcessing",
            "single": [*pieces_of, text],
            "pair": [text],
            "special_tokens": {"<|endoftext|>": bos},
        }
        folder = self.folder(tmp_path, {"post_processor": template})
        assert build_tokenizer(spec_from_folder(folder)).encode("!") == (2045, 0)

    def test_truncation_of_a_training_job_does_not_cut_the_prompt(self, tmp_path: Path) -> None:
        limit = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
        folder = self.folder(tmp_path, {"truncation": limit})
        assert build_tokenizer(spec_from_folder(folder)).encode('!"#') == (0, 1, 2)

    def test_no_tokenizer_json_offers_token_ids(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"no tokenizer\.json.*--tokens"):
            spec_from_folder(tmp_path)

    @pytest.mark.parametrize(
        "damage",
        [b"", b"null", b"{}", b"\xff\xfe{}", b'{"model": {"type": "BPE"', b"[" * 100_000],
        ids=["empty", "null", "no model", "not utf-8", "cut", "deep"],
    )
    def test_a_damaged_file_is_refused(self, tmp_path: Path, damage: bytes) -> None:
        (tmp_path / "tokenizer.json").write_bytes(damage)
        with pytest.raises(BadFileError, match=r"tokenizer\.json"):
            build_tokenizer(spec_from_folder(tmp_path))

    def test_so_is_one_at_which_the_library_panics(self, tmp_path: Path) -> None:
        damaged = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
        with pytest.raises(BadFileError, match=r"tokenizer\.json"):
            build_tokenizer(spec_from_folder(self.folder(tmp_path, damaged)))

    @pytest.mark.parametrize("damage", [b"\xff", b"[1]", b"{", b"[" * 100_000])
    def test_a_damaged_tokenizer_config_is_refused(self, tmp_path: Path, damage: bytes) -> None:
        folder = self.folder(tmp_path, {})
        (folder / "tokenizer_config.json").write_bytes(damage)
        with pytest.raises(BadFileError, match=r"tokenizer_config\.json"):
            spec_from_folder(folder)


def test_a_panic_in_the_library_is_a_bad_file_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "\x1b[1m": 1}, "merges": [["a", "\x1b[1m"]],
             "continuing_subword_prefix": "longer than the token"}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    with pytest.raises(BadFileError, match="is no tokenizer"):
        build_tokenizer(spec_from_folder(tmp_path))
    assert capfd.readouterr() == ("", "")

"""Token ids are those that llama.cpp gives; what a damaged file says is refused, not guessed at.

tests/fixtures/tokenizers holds llama.cpp's ids for 20 awkward texts and three vocabularies
(tokenise.json) and the ``tokenizer.*`` metadata of the three GGUF files (metadata.json); and how
libllama cuts text by every name of a pre-tokenizer (pretokenizers.json.gz, ``pretokenised``).
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from aprtui.errors import BadFileError, UsageError
from aprtui.model.pretokenizers import PRE_TOKENIZERS
from aprtui.model.tokenizer import (
    Tokenizer,
    TokenizerSpec,
    build_tokenizer,
    spec_from_apr,
    spec_from_gguf,
    vocabulary_of,
)
from tests.support import FIXTURES, SMALL, needs_fixtures
from tests.unit import pretokenised

RECORDED: dict[str, Any] = json.loads((SMALL / "tokenizers" / "tokenise.json").read_text("utf-8"))
METADATA: dict[str, Any] = json.loads((SMALL / "tokenizers" / "metadata.json").read_text("utf-8"))
CASES = [
    pytest.param(model, case["text"], mode == "special", case[mode], id=f"{model}-{mode}-{number}")
    for model, recorded in RECORDED.items()
    for number, case in enumerate(recorded["cases"])
    for mode in ("plain", "special")
]
QWEN2, LLAMA, SPM = "qwen2-q4_k_m.gguf", "llama-q4_k_m.gguf", "llamaspm-q4_0.gguf"
BYTES = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]


@cache
def recorded_tokenizer(model: str) -> Tokenizer:
    return build_tokenizer(spec_from_gguf(METADATA[model]))


def byte_level(pre: str, *words: str, **fields: Any) -> Tokenizer:
    """A tokenizer with every byte, and each of ``words`` (ASCII, Ġ for a space) built by merges."""
    tokens, merges = list(BYTES), []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                tokens.append(word[:end])
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    return build_tokenizer(TokenizerSpec("bpe", tokens, merges, pre=pre, **fields))


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.text_of(token_id) for token_id in tokenizer.encode(text)]


class TestRecordedByLlamaCpp:
    @pytest.mark.parametrize(("model", "text", "special", "expected"), CASES)
    def test_ids_are_llama_cpps(
        self, model: str, text: str, special: bool, expected: list[int]
    ) -> None:
        ids = list(recorded_tokenizer(model).encode(text, special=special))
        if model == SPM:  # recorded without BOS, which this file asks for
            assert ids.pop(0) == 1
        assert ids == expected

    @pytest.mark.parametrize("model", list(RECORDED))
    def test_decoding_gives_the_text_back(self, model: str) -> None:
        tokenizer = recorded_tokenizer(model)
        for case in RECORDED[model]["cases"]:
            assert tokenizer.decode(case["special"]) == case["text"]

    @needs_fixtures
    @pytest.mark.parametrize("model", [QWEN2, LLAMA, SPM])
    def test_captured_prompts_have_the_captured_ids(self, model: str) -> None:
        path = FIXTURES / "captures" / model.removesuffix(".gguf") / "capture.json"
        capture = json.loads(path.read_text("utf-8"))
        assert list(recorded_tokenizer(model).encode(capture["text"])) == capture["token_ids"]


CUTS: dict[str, Any] = json.loads(gzip.decompress(pretokenised.OUT.read_bytes()))


@cache
def trained_tokenizer(kind: str, pre: str) -> Tokenizer:
    recorded = CUTS[kind]
    tokens = recorded["tokens"]
    return build_tokenizer(
        spec_from_gguf(
            {
                "tokenizer.ggml.model": "gemma4" if pre == "gemma4" else "gpt2",
                "tokenizer.ggml.pre": pre,
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.merges": recorded["merges"],
                "tokenizer.ggml.token_type": [6 if t.startswith("<0x") else 1 for t in tokens],
                "tokenizer.ggml.bos_token_id": 0,
            }
        )
    )


@pytest.mark.parametrize(
    ("kind", "names", "expected"),
    [
        pytest.param(kind, alike["names"], alike["ids"], id=alike["names"][0])
        for kind in ("byte level", "escaped")
        for alike in CUTS[kind]["ids"]
    ],
)
def test_text_is_cut_as_libllama_cuts_it(
    kind: str, names: list[str], expected: list[list[int]]
) -> None:
    """By every name; tokens of this vocabulary reach over whatever is not cut."""
    for pre in {PRE_TOKENIZERS[name].patterns: name for name in names}.values():
        tokenizer = trained_tokenizer(kind, pre)
        begins = [0] if PRE_TOKENIZERS[pre].add_bos else []
        for text, ids in zip(CUTS["texts"], expected, strict=True):
            assert list(tokenizer.encode(text, special=False)) == begins + ids, (pre, text)


def test_gemma_4_begins_with_bos_whatever_its_file_says() -> None:
    """As llama.cpp overrides a converter's mistake."""
    keys = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": ["<bos>", "a", "\n\n", "\n", "\u2581"],
        "tokenizer.ggml.merges": ["\u2581 a"],
        "tokenizer.ggml.scores": [0.0] * 5,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    tokenizer = build_tokenizer(spec_from_gguf(keys))
    assert tokenizer.encode("a a\n\na") == (0, 1, 4, 1, 2, 1)
    assert tokenizer.decode((1, 4, 1, 2, 1)) == "a a\n\na"


class TestPreTokenizers:
    """Words that merges would make whole stay apart where the pre-tokenizer cuts."""

    @pytest.mark.parametrize(
        ("pre", "expected"),
        [
            ("qwen2", ["1", "2", "3", "4"]),
            ("llama-bpe", ["123", "4"]),
            ("gpt-2", ["1234"]),
            ("default", ["123", "4"]),
            ("deepseek-llm", ["1234"]),
            ("deepseek-coder", ["1", "2", "3", "4"]),
            ("deepseek-v3", ["123", "4"]),
            ("tekken", ["1", "2", "3", "4"]),
            ("starcoder", ["1", "2", "3", "4"]),
        ],
    )
    def test_digits(self, pre: str, expected: list[str]) -> None:
        tokenizer = byte_level(pre, "1234", add_bos=False)
        assert pieces(tokenizer, "1234") == expected

    @pytest.mark.parametrize(
        ("pre", "expected"),
        [
            ("qwen2", ["don", "'T"]),
            ("llama-bpe", ["don", "'T"]),
            ("gpt-2", ["don", "'", "T"]),
            ("default", ["don", "'", "T"]),
            ("gpt-4o", ["don'T"]),
        ],
    )
    def test_contractions(self, pre: str, expected: list[str]) -> None:
        assert pieces(byte_level(pre, "don'T", "'T"), "don'T") == expected

    @pytest.mark.parametrize(
        ("pre", "expected"),
        [("tekken", ["foo", "Bar"]), ("gpt-4o", ["foo", "Bar"]), ("qwen2", ["fooBar"])],
    )
    def test_capitals_begin_a_word_only_in_some(self, pre: str, expected: list[str]) -> None:
        assert pieces(byte_level(pre, "fooBar", "Bar"), "fooBar") == expected

    @pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "deepseek-v3", "tekken"])
    def test_newlines_join_the_punctuation_before_them(self, pre: str) -> None:
        assert pieces(byte_level(pre, "!ĊĊ"), "!\n\n") == ["!\n\n"]

    @pytest.mark.parametrize("pre", ["gpt-2", "default", "deepseek-llm", "deepseek-coder"])
    def test_or_do_not(self, pre: str) -> None:
        assert pieces(byte_level(pre, "!ĊĊ"), "!\n\n") == ["!", "\n", "\n"]

    @pytest.mark.parametrize(
        ("pre", "whole"),
        [("llama-bpe", True), ("tekken", True), ("qwen2", False), ("smaug-bpe", False)],
    )
    def test_words_that_are_tokens_are_taken_whole_only_by_some(
        self, pre: str, whole: bool
    ) -> None:
        spec = TokenizerSpec("bpe", [*BYTES, "zq", "zqx"], ["z q"], pre=pre)
        assert pieces(build_tokenizer(spec), "zqx") == (["zqx"] if whole else ["zq", "x"])

    @pytest.mark.parametrize("pre", list(PRE_TOKENIZERS))
    def test_each_loses_nothing(self, pre: str) -> None:
        tokenizer = build_tokenizer(replace(spec_from_gguf(METADATA[QWEN2]), pre=pre))
        for case in RECORDED[QWEN2]["cases"]:
            assert tokenizer.decode(tokenizer.encode(case["text"])) == case["text"]

    def test_an_unknown_one_is_refused_by_name_with_a_way_on(self) -> None:
        with pytest.raises(UsageError, match=r"'newest\\x1b'.*qwen2.*--tokens") as raised:
            byte_level("newest\x1b", "ab")
        assert raised.value.exit_code == 2


class TestSpecialTokens:
    TYPES = (*[1] * len(BYTES), 1, 1, 3, 4, 3)

    def tokenizer(self) -> Tokenizer:
        words = ["ab", "abc", "<x>", "<u>", "<x><x>"]
        spec = TokenizerSpec("bpe", [*BYTES, *words], ["a b"], token_types=self.TYPES, pre="qwen2")
        return build_tokenizer(spec)

    def test_control_tokens_are_text_when_not_asked_for(self) -> None:
        assert self.tokenizer().encode("<x>", special=False) == (27, 87, 29)

    def test_user_defined_tokens_are_always_found(self) -> None:
        user_defined = len(BYTES) + 3
        assert self.tokenizer().encode("a<u>", special=False) == (64, user_defined)

    def test_the_longest_is_cut_first(self) -> None:
        first = len(BYTES)
        assert self.tokenizer().encode("<x><x><x>") == (first + 4, first + 2)

    def test_without_types_tokens_in_angle_brackets_are_special_unless_merged(self) -> None:
        words = ["<s>", "<a", "<a>"]
        spec = TokenizerSpec("bpe", [*BYTES, *words], ["< a", "<a >"], pre="qwen2")
        first = len(BYTES)
        tokenizer = build_tokenizer(spec)
        assert tokenizer.encode("<s>") == (first,)
        assert tokenizer.encode("x<a>y<s>", special=False)[-3:] == (27, 82, 29)

    def test_bos_and_eos_come_as_the_file_asks(self) -> None:
        tokenizer = byte_level("qwen2", "ab", bos_id=5, eos_id=6, add_bos=True, add_eos=True)
        assert tokenizer.encode("ab") == (5, len(BYTES), 6)
        assert tokenizer.encode("") == (5, 6)

    @pytest.mark.parametrize(
        ("pre", "asked", "expected"),
        [
            ("llama-bpe", None, True),
            ("llama-bpe", False, False),
            ("tekken", None, True),
            ("qwen2", None, False),
            ("qwen2", True, True),
        ],
    )
    def test_llama_cpps_default_stands_where_the_file_is_silent(
        self, pre: str, asked: bool | None, expected: bool
    ) -> None:
        metadata: dict[str, Any] = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": BYTES,
            "tokenizer.ggml.bos_token_id": 3,
        }
        if asked is not None:
            metadata["tokenizer.ggml.add_bos_token"] = asked
        assert spec_from_gguf(metadata).add_bos is expected


class TestSentencePiece:
    def spec(self, **scores: float) -> TokenizerSpec:
        return TokenizerSpec("spm", list(scores), scores=list(scores.values()))

    def ids(self, text: str, **scores: float) -> list[str]:
        tokenizer = build_tokenizer(self.spec(**scores))
        return [list(scores)[token_id] for token_id in tokenizer.encode(text)]

    def test_the_best_score_merges_first(self) -> None:
        assert self.ids("abc", a=0, b=0, c=0, ab=-2, bc=-1) == ["a", "bc"]

    def test_of_equal_scores_the_leftmost_merges_first(self) -> None:
        assert self.ids("aba", a=0, b=0, ba=-1, ab=-1) == ["ab", "a"]

    def test_letters_that_are_no_tokens_merge_all_the_same(self) -> None:
        assert self.ids("xy", xy=-1) == ["xy"]

    def test_a_prefix_space_follows_every_special_token(self) -> None:
        tokenizer = recorded_tokenizer(SPM)
        assert tokenizer.encode("</s>Hello")[1:] == (2, *tokenizer.encode("Hello")[1:])

    def test_what_is_no_token_goes_as_bytes(self) -> None:
        tokens = [f"<0x{byte:02X}>" for byte in range(256)]
        tokenizer = build_tokenizer(TokenizerSpec("spm", tokens, scores=[0.0] * 256))
        assert tokenizer.encode("é\n") == (0xC3, 0xA9, 0x0A)
        assert tokenizer.decode((0xC3, 0xA9, 0x0A)) == "é\n"

    def test_without_byte_tokens_as_the_unknown_one(self) -> None:
        spec = TokenizerSpec("spm", ["<unk>", "a"], scores=[0.0, 0.0], unknown_id=0)
        assert build_tokenizer(spec).encode("aé") == (1, 0, 0)

    def test_merges_stand_in_for_scores(self) -> None:
        tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u2581a"]
        spec = TokenizerSpec("spm", tokens, ["\u2581 a"], add_space_prefix=True)
        assert build_tokenizer(spec).encode("abé") == (259, 258, 0xC3, 0xA9)


class TestTexts:
    def test_parts_of_a_character_are_escapes(self) -> None:
        tokenizer = recorded_tokenizer(QWEN2)
        assert tokenizer.text_of(162) == r"\xe6"
        assert tokenizer.text_of(220) == " "
        assert tokenizer.text_of(2046) == "<|im_start|>"

    def test_texts_need_neither_merges_nor_a_known_kind(self) -> None:
        spec = TokenizerSpec("wordpiece", ["a", "\u2581b"])
        assert [vocabulary_of(spec).text_of(i) for i in (0, 1)] == ["a", " b"]
        with pytest.raises(UsageError, match=r"'wordpiece'.*--tokens"):
            build_tokenizer(spec)

    @pytest.mark.parametrize("token_id", [-1, 2, 10**12])
    def test_an_id_without_a_token_is_shown_as_its_number(self, token_id: int) -> None:
        assert vocabulary_of(TokenizerSpec("bpe", ["a", "b"])).text_of(token_id).startswith("<id ")

    def test_the_vocabulary_is_not_walked_to_show_one_token(self) -> None:
        lazy = LazyTokens(150_000)
        metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": lazy}
        assert vocabulary_of(spec_from_gguf(metadata)).text_of(140_000) == "t140000"
        assert lazy.read == {140_000}


class LazyTokens(Sequence[str]):
    """A long array that knows which elements were asked for."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.read: set[int] = set()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: Any) -> Any:
        self.read.add(place)
        return f"t{place}"

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("the array was walked")


class TestHostileVocabularies:
    def test_no_tokenizer_offers_token_ids(self) -> None:
        absences: list[dict[str, Any]] = [
            {},
            {"tokenizer.ggml.tokens": []},
            {"tokenizer.ggml.tokens": "abc"},
        ]
        for absent in absences:
            with pytest.raises(UsageError, match=r"no tokenizer vocabulary.*--tokens 1,2,3"):
                spec_from_gguf(absent)
        with pytest.raises(UsageError, match="--tokens 1,2,3"):
            spec_from_apr({}, "qwen2")

    def test_a_vocabulary_without_merges_offers_token_ids(self) -> None:
        with pytest.raises(UsageError, match=r"no merges.*--tokens"):
            build_tokenizer(TokenizerSpec("bpe", BYTES, pre="qwen2"))
        with pytest.raises(UsageError, match=r"neither scores nor merges.*--tokens"):
            build_tokenizer(TokenizerSpec("spm", ["a"]))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"vocabulary": ()}, "0 tokens"),
            ({"vocabulary": range(1_000_001)}, "1,000,001 tokens"),
            ({"vocabulary": ["a", None]}, "not text"),
            ({"vocabulary": ["a", "\ud800"]}, "not text"),
            ({"vocabulary": ["a", "b" * 65_537]}, "65,537 bytes"),
            ({"token_types": [1]}, "1 token types for 256"),
            ({"token_types": [None] * 256}, "token type is not a number"),
            ({"merges": ["ab"]}, "merge 0 is not two tokens"),
            ({"merges": [None]}, "merge 0 is not two tokens"),
            ({"merges": range(2_000_001)}, "2,000,001 merges"),
            ({"bos_id": 256}, "bos token 256"),
            ({"eos_id": -1}, "eos token -1"),
            ({"model": "spm", "scores": [0.0]}, "1 scores for 256"),
            ({"model": "spm", "scores": [float("nan")] * 256}, "NaN"),
            ({"model": "spm", "scores": ["x"] * 256}, "not a number"),
        ],
    )
    def test_contradictions_are_refused(self, change: dict[str, Any], message: str) -> None:
        good = TokenizerSpec("bpe", BYTES, ["a b"], pre="qwen2", path=Path("m.gguf"))
        with pytest.raises(BadFileError, match=message) as raised:
            build_tokenizer(replace(good, **change)).encode("ab")
        assert str(raised.value).startswith("m.gguf: ")

    def test_of_a_token_that_stands_twice_the_first_counts(self) -> None:
        spec = TokenizerSpec("bpe", [*BYTES, "ab", "ab", ""], ["a b"], pre="qwen2")
        assert build_tokenizer(spec).encode("ab") == (256,)

    def test_merges_of_unknown_tokens_are_passed_over(self) -> None:
        merges = ["zz q", "a c", "a b", "b c", "a b"]  # "ac" and "zz" are no tokens
        spec = TokenizerSpec("bpe", [*BYTES, "ab", "bc"], merges, pre="qwen2")
        assert pieces(build_tokenizer(spec), "abc") == ["ab", "c"]

    def test_bytes_that_are_no_tokens_are_dropped_and_never_token_0(self) -> None:
        spec = TokenizerSpec("bpe", ["x", "y", "xy"], ["x y"], pre="qwen2")
        assert build_tokenizer(spec).encode("xéyxy") == (0, 1, 2)

    def test_a_prompt_that_is_not_utf8_is_the_askers_error(self) -> None:
        with pytest.raises(UsageError, match="character 1"):
            byte_level("qwen2", "ab").encode("a\udcff")


class TestShortPrompts:
    """Of a short prompt the library is given only the tokens and merges that can matter to it."""

    @pytest.mark.parametrize("model", [QWEN2, LLAMA])
    def test_ids_are_those_of_the_whole_vocabulary(
        self, model: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tokenizer = recorded_tokenizer(model)
        texts = [case["text"][:60] for case in RECORDED[model]["cases"]]
        short = [
            tokenizer.encode(text, special=special) for text in texts for special in (False, True)
        ]
        monkeypatch.setattr("aprtui.model.tokenizer._SHORT_BYTES", -1)
        whole = [
            tokenizer.encode(text, special=special) for text in texts for special in (False, True)
        ]
        assert short == whole

    def test_a_merged_token_in_angle_brackets_is_not_special(self) -> None:
        merges = ["< é", "<é >"]  # é is GPT-2's writing of the byte E9
        spec = TokenizerSpec("bpe", [*BYTES, "<é", "<é>", "<e>"], merges, pre="qwen2")
        assert build_tokenizer(spec).encode("a<é>", special=True) != (64, 257)
        assert build_tokenizer(spec).encode("a<e>", special=True) == (64, 258)


@needs_fixtures
class TestAprFiles:
    CASES = json.loads((FIXTURES / "apr" / "cases.json").read_text()) if FIXTURES.is_dir() else []

    def spec(self, name: str) -> TokenizerSpec:
        raw = (FIXTURES / "apr" / name).read_bytes()
        _, _, _, _, _, offset, size, *_ = struct.unpack_from("<4sBBHIQIQQI20s", raw)
        metadata = json.loads(raw[offset : offset + size])
        return spec_from_apr(metadata, metadata["architecture"])

    @pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["model"]))
    def test_ids_are_those_apr_traced(self, case: dict[str, Any]) -> None:
        tokenizer = build_tokenizer(self.spec(case["model"]))
        assert list(tokenizer.encode(case["prompt"])) == case["token_ids"]

    def test_special_tokens_are_known_without_types(self) -> None:
        tokenizer = build_tokenizer(self.spec("models/pycode-f16.apr"))
        assert tokenizer.encode("<|im_start|>") == (2046,)

    def test_a_file_that_names_no_pre_tokenizer_is_not_guessed_at(self) -> None:
        with pytest.raises(UsageError, match=r"no pre-tokenizer is named.*--tokens"):
            build_tokenizer(self.spec("models/gemma3-preserve.apr"))

    def test_a_file_without_scores_still_shows_its_tokens(self) -> None:
        spec = self.spec("models/llamaspm-preserve.apr")
        assert vocabulary_of(spec).text_of(0x41 + 3) == "A"
        with pytest.raises(UsageError, match="--tokens"):
            build_tokenizer(spec)

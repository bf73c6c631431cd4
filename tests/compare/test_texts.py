"""Text before floats: what engines read otherwise, in one sentence."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from aprtui.cli.main import main
from aprtui.cli.verify_text import read_texts
from aprtui.compare.texts import compare_chats, compare_templates, compare_tokens
from aprtui.engine.adapters import texts
from aprtui.engine.adapters.texts import Read
from aprtui.model.chat_template import chat_template_of
from aprtui.model.open import open_model
from tests.gguf_keys import with_keys
from tests.support import FIXTURES, needs_fixtures

WORDS = {0: "<s>", 1: "<|im_start|>", 2: "<", 3: "|im", 4: "_start|>", 5: "Hi", 6: " there"}


def told(ours: tuple[int, ...], theirs: tuple[int, ...], bos: int | None = 0) -> tuple[str, str]:
    found = compare_tokens(
        "llamacpp", ours, theirs, bos=bos, special=lambda each: each < 2,
        text_of=lambda each: WORDS.get(each, "?"),
    )  # fmt: skip
    return found.kind, found.sentence


def test_the_same_ids_are_the_same() -> None:
    assert told((0, 5, 6), (0, 5, 6)) == ("same", "llamacpp reads the same 3 tokens")


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ((0, 5), (0, 0, 5), "llamacpp puts 2 BOS (token 0) before the prompt, we put one BOS"),
        ((0, 5), (5,), "llamacpp puts no BOS (token 0) before the prompt, we put one BOS"),
        ((5,), (0, 5), "llamacpp puts one BOS (token 0) before the prompt, we put no BOS"),
    ],
)
def test_a_bos_that_is_missing_or_twice_is_named(
    ours: tuple[int, ...], theirs: tuple[int, ...], says: str
) -> None:
    assert told(ours, theirs) == ("bos", says)


def test_special_tokens_read_as_text_are_named_on_either_side() -> None:
    kind, said = told((0, 1, 5), (0, 2, 3, 4, 5))
    assert kind == "special"
    assert said == "llamacpp reads '<|im_start|>' as text; we read it as the special token 1"
    kind, said = told((0, 2, 3, 4, 5), (0, 1, 5))
    assert said == (
        "our tokenizer reads '<|im_start|>' as text; llamacpp reads it as the special token 1"
    )


def test_other_ids_are_told_with_their_texts() -> None:
    kind, said = told((0, 5, 6), (0, 5, 2, 3))
    assert (kind, said) == (
        "ids", "llamacpp makes 4 tokens of it and we 3: token 2 is 2 '<', ours 6 ' there'",
    )  # fmt: skip
    assert told((5,), (5, 6), None)[1].endswith("token 1 is 6 ' there', ours none")


def test_a_chat_that_begins_with_bos_is_warned_of(qwen2: Path, monkeypatch: Any) -> None:
    model = open_model(qwen2)
    ids = model.tokenizer.encode("hello")
    chat = model.tokenizer.encode("<chat> hello")
    read = Read(ids, 7, "<chat> hello", (7, *chat))
    monkeypatch.setattr("aprtui.cli.verify_text.read_by", lambda *about: read)
    found = read_texts(model, ["hf"], "hello")
    assert [each.kind for each in found.found] == ["same"]
    assert "hf puts one BOS (token 7)" in found.notes[0] and "--tokens" in found.notes[0]


def test_a_tokenizer_that_does_not_load_is_a_note(qwen2: Path, monkeypatch: Any) -> None:
    def refuse(model: Path, text: str) -> Read:
        raise RuntimeError("no such thing\nat all")

    monkeypatch.setattr(texts, "_transformers", refuse)
    found = read_texts(open_model(qwen2), ["hf"], "hello")
    assert not found.found
    assert found.notes == (
        "hf's tokenizer does not load: no such thing: its tokens were not compared",
    )


def test_transformers_reads_a_tokenizer_as_we_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer.json with a BOS of its own and a chat template that writes one more."""
    pytest.importorskip("transformers", reason="transformers is a dev dependency")
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors

    from tests.families import TINY, save_tiny

    folder = tmp_path / "model"
    save_tiny(TINY["llama"], folder)
    vocabulary = {"<s>": 0, "<|user|>": 1, **{chr(97 + n): 2 + n for n in range(26)}, "?": 28}
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    made.add_special_tokens(["<s>", "<|user|>"])
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
            "chat_template": "<s><|user|>{{ messages[0]['content'] }}",
        })
    )  # fmt: skip
    code = main(["verify", str(folder), "--engines", "aprtui,hf", "--prompt", "abc<|user|>d"])
    told = capsys.readouterr().out
    assert told.splitlines()[0] == "text: hf reads the same 6 tokens"
    assert "hf puts one BOS (token 0) before the prompt, we put 2 BOS" in told
    assert code == 0


# -- a folder and the GGUF that was made of it -----------------------------------------------------


FOLDER, QUANTISED = FIXTURES / "models/pycode-5m", FIXTURES / "models/pycode-5m-q4_k_m.gguf"
CHAT = "<|im_start|>def f(x):"


def pair(other: Path, *more: str) -> list[str]:
    return ["verify", str(FOLDER), str(other), "--engines", "aprtui", "-p", CHAT, *more]


@needs_fixtures
def test_two_files_text_stands_before_their_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(pair(QUANTISED)) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("text: B reads the same ") and first.endswith(" tokens")


@needs_fixtures
@pytest.mark.parametrize(
    ("keys", "kind", "says"),
    [
        ({"add_bos_token": True, "bos_token_id": 5}, "bos",
         "B puts one BOS (token 5) before the prompt, A puts no BOS"),
        ({"token_type": [1] * 2048}, "special", "B reads '<|im_start|>' as text; A reads it as"),
        ({"pre": "default"}, "ids", "B makes "),
    ],
)  # fmt: skip
def test_a_file_whose_tokenizer_is_another_is_told_and_is_no_success(
    keys: dict[str, Any], kind: str, says: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    named = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    other = with_keys(QUANTISED, tmp_path / "model.gguf", named)
    assert main(pair(other, "--json")) == 1
    (found,) = json.loads(capsys.readouterr().out)["text"]
    assert (found["engine"], found["kind"]) == ("B", kind) and found["sentence"].startswith(says)


def test_chat_templates_are_compared_where_both_files_have_one() -> None:
    said = compare_templates("B", "A", "{% for m in messages %}", "{% for x in messages %}")
    assert (said.kind, said.same) == ("template", False)
    assert said.sentence == (
        "the chat templates part at character 7: A has 'm in messages %}', B 'x in messages %}'"
    )
    assert compare_templates("B", "A", "x", "x").same
    said_otherwise = compare_chats("llamacpp on B", "hf on A", "<s>a", "<s>b")
    assert said_otherwise.endswith("from character 3: hf on A has 'a', llamacpp on B 'b'")
    assert compare_chats("x", "y", "a", "a") == ""
    lacking = compare_templates("B", "A", None, "x")
    assert lacking.sentence == "B has a chat template and A has none"


@needs_fixtures
def test_a_template_is_found_wherever_a_file_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat_template_of(open_model(FOLDER)) is None
    key = {"tokenizer.chat_template": "{{ messages }}"}
    other = with_keys(QUANTISED, tmp_path / "model.gguf", key)
    assert chat_template_of(open_model(other)) == "{{ messages }}"
    folder = tmp_path / "folder"
    shutil.copytree(FOLDER, folder)
    for said in ("{{ messages }}", [{"name": "default", "template": "{{ messages }}"}]):
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": said}))
        assert chat_template_of(open_model(folder)) == "{{ messages }}"
    (folder / "chat_template.jinja").write_text("{{ others }}")
    assert chat_template_of(open_model(folder)) == "{{ others }}"
    words = ["verify", str(folder), str(other), "--engines", "aprtui", "--tokens", "1,2,3"]
    assert main(words) == 1
    told = capsys.readouterr().out
    assert told.startswith("text differs (template): the chat templates part at character 3")
    words[1] = str(FOLDER)
    assert main(words) == 0
    assert "B has a chat template and A has none" in capsys.readouterr().out


needs_llamacpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)
CHATML = (
    "{{ bos_token }}{% for m in messages %}{{'<|im_start|>' + m['role'] + '\\n' + m['content'] + "
    "'<|im_end|>' + '\\n'}}{% endfor %}"
)


@needs_llamacpp
@needs_fixtures
def test_llamacpp_reads_a_text_and_its_chat_by_itself_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = {"tokenizer.chat_template": CHATML, "tokenizer.ggml.add_bos_token": True}
    other = with_keys(QUANTISED, tmp_path / "model.gguf", keys)
    model = open_model(other)
    read = texts.read_by("llamacpp", other, CHAT)
    assert read.ids == model.tokenizer.encode(CHAT) and read.bos == model.tokenizer.bos_id
    assert read.ids[0] == read.bos
    assert read.chat is not None and read.chat.startswith("<|im_start|>user\n" + CHAT)
    assert read.chat_ids == model.tokenizer.encode(read.chat)
    found = read_texts(model, ["llamacpp"], CHAT)
    assert not found.notes and not found.differing
    assert "llama_model_loader" not in capfd.readouterr().err


@needs_llamacpp
@needs_fixtures
def test_each_engine_reads_its_own_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 5}
    other = with_keys(QUANTISED, tmp_path / "model.gguf", keys)
    words = pair(other)
    words[words.index("aprtui")] = "aprtui,llamacpp"
    assert main(words) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("text differs (bos): B puts one BOS (token 5)")
    assert told[1].startswith("text: llamacpp on B reads the same ")

"""Records how libllama cuts text before merging, by every name that a GGUF may give.

    PYTHONPATH=... python -m tests.unit.pretokenised   # libllama as CONTRIBUTING.md says

The vocabularies are made here and merge across whatever lies between: tokens are trained on the
texts without any cut, so that each cut shows in the ids. What is written:
tests/fixtures/tokenizers/pretokenizers.json.gz.
"""

from __future__ import annotations

import ctypes
import gzip
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from aprtui.model.pretokenizers import PRE_TOKENIZERS
from tests.support import SMALL

__all__ = ["OUT"]

OUT = SMALL / "tokenizers" / "pretokenizers.json.gz"

_CHARACTERS = [
    *"aAbzZ09 7  \n\r\t'sSdlLvVeErRmMtT.,!?/~$+<=>^`|_-*()[]{}@#\"\\:;",
    *"\u00e9\u00c9\u00df\u01c5\u02b0\u0301\u0300\u0378\u00ad\ue000\u0085\x0b\x0c\x1b\x01",
    *"\u4e2d\u6587\u3007\U00020000\U0002b820\u3042\u30a2\u30fc\uac00\uae00\u3131\u3105",
    *"\u0e01\u0e32\u0e41\u0e81\u1780\u1000\ua9e0\uaa60\u0b95\u0915\u093e\u0964\u06d4\u060c",
    *"\u00a0\u2028\u3000\u200b\u200d\U0001f600\U0001f468\u20ac\u00b2\u2167\u0661\u00bd",
    *"\u3001\u3002\uff0c\uff01\uff1a\u2026\u201c\u2019\u2014\ufe30\uff65\u2f00",
]
_WORDS = [
    *("don't", "I'LL", "We've", "'re", "HELLO", "hello", "Hello", "helloWorld", "HTTPServer"),
    *("123", "1234567", "12", "3.14", " ", "  ", "     ", "\n", "\n\n", "\r\n", "\t", "  \n"),
    *("x=1", "...", "!!", "/n", "a/b", "~~", " ~x", "(a)", "[b]", "#c", "<sentinel:12>"),
    *("IMGIMGABZ", "\u4e2d\u6587", "\u65e5\u672c\u8a9e", "\ud55c\uad6d\uc5b4"),
    *("\u0e44\u0e17\u0e22", "na\u00efve", "\u00c9COLE", "\u0418\u0432\u0430\u043d"),
    *("\u0939\u093f\u0928\u094d\u0926\u0940", "\U0001f468\u200d\U0001f469"),
]


def _texts() -> list[str]:
    chance = random.Random(0)
    drawn = [
        "".join(chance.choice(pool) for _ in range(chance.randint(2, most)))
        for pool, most, count in ((_CHARACTERS, 20, 60), (_WORDS, 8, 60))
        for _ in range(count)
    ]
    return [*drawn, " " * 37 + "x", "1234567890123", "a1b22c333d4444 5"]


def _trained(texts: Sequence[str], *, escaped: bool) -> tuple[list[str], list[str]]:
    """Tokens and merges, made without any cut but of escaped ones at line ends."""
    library = tokenizers.Tokenizer(models.BPE())
    if not escaped:
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = [] if escaped else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1800, min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )
    written = [text.replace(" ", "\u2581") for text in texts] if escaped else texts
    library.train_from_iterator(written, trainer)
    model = json.loads(library.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if escaped:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    return tokens, merges


def _write(path: Path, tokens: Sequence[str], merges: Sequence[str], pre: str) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (
        ("context_length", 64), ("embedding_length", 8), ("block_count", 1),
        ("feed_forward_length", 8),
    ):  # fmt: skip
        writer.add_uint32(f"llama.{name}", value)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gemma4" if pre == "gemma4" else "gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(tokens))
    writer.add_token_types([6 if token.startswith("<0x") else 1 for token in tokens])
    writer.add_token_merges(list(merges))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _ids(path: Path, texts: Sequence[str]) -> list[list[int]] | None:
    """libllama's ids of each text; None where it knows no such name."""
    import llama_cpp

    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
    if not model:
        return None
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    found = []
    for text in texts:
        raw = text.encode()
        ids = (ctypes.c_int32 * (len(raw) + 16))()
        size = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), ids, len(ids), False, False)
        found.append([int(i) for i in ids[:size]])
    llama_cpp.llama_model_free(model)
    return found


def _record() -> Mapping[str, Any]:
    texts = _texts()
    recorded: dict[str, Any] = {"texts": texts}
    for escaped in (False, True):
        tokens, merges = _trained(texts, escaped=escaped)
        ids: dict[str, list[list[int]]] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, pre in PRE_TOKENIZERS.items():
                if pre.escaped == escaped:
                    path = Path(folder, "vocabulary.gguf")
                    _write(path, tokens, merges, name)
                    found = _ids(path, texts)
                    print(
                        f"{name}: {'not known to this libllama' if found is None else 'recorded'}"
                    )
                    if found is not None:
                        ids[name] = found
        alike: dict[str, list[str]] = {}
        for name, found in ids.items():
            alike.setdefault(json.dumps(found), []).append(name)
        recorded["escaped" if escaped else "byte level"] = {
            "tokens": tokens,
            "merges": merges,
            "ids": [{"names": names, "ids": json.loads(found)} for found, names in alike.items()],
        }
    return recorded


if __name__ == "__main__":
    OUT.write_bytes(gzip.compress(json.dumps(_record()).encode(), mtime=0))

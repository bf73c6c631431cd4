r"""How byte-level BPE cuts text into words before merging, by the name a model file gives it.

The names are values of GGUF's ``tokenizer.ggml.pre`` and the patterns those that llama.cpp runs for
them (src/llama-vocab.cpp), its departures from the original tokenizer.json included: such a file
asks for llama.cpp's reading. The syntax is Oniguruma's, which ``tokenizers.Regex`` takes:
``&&`` intersects classes and ``\s`` is Unicode white space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aprtui.errors import UsageError
from aprtui.text import clean

__all__ = ["PRE_TOKENIZERS", "TOKENS_HINT", "PreTokenizer", "pre_tokenizer_named"]

TOKENS_HINT = "give token ids instead: --tokens 1,2,3"


@dataclass(frozen=True)
class PreTokenizer:
    """One way of cutting text into words.

    ``patterns`` apply one after the other, each to every piece that the one before left: a match is
    a piece of its own, and so is what lies between two matches. ``whole_words``: a word that is
    itself a token is taken as such, whatever the merges would make of it. ``add_bos``: whether the
    text begins with BOS where the file does not say.

    ``escaped``: SentencePiece's writing in place of GPT-2's: a space is U+2581, merges run over
    characters of a line, or of a run of line ends, and what is no token goes as its bytes,
    ``<0xE4>``. ``whole_words`` are runs of line ends alone, and ``add_bos`` is so whatever the file
    says.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False
    escaped: bool = False


_CONTRACTION = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)

# llama.cpp tells upper from lower case by ASCII letters alone: every other letter counts as both.
_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
_CASED_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{{end}}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{{end}}"
)
_CASED_REST = rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_TEKKEN = _CASED_WORDS.replace("{end}", "") + r"|\p{N}" + _CASED_REST
_GPT4O = _CASED_WORDS.replace("{end}", f"(?:{_CONTRACTION})?") + r"|\p{N}{1,3}" + _CASED_REST

_AFTER_MARK = r"[!-/:-@\[-`{-~][A-Za-z]+"
_MARKED = rf"{_AFTER_MARK}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
_DEEPSEEK_V3 = rf"{_MARKED}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
_SPARK = rf"{_MARKED}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+"
_IDEOGRAPHS = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"
_CJK = r"[[\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]&&[^\s]]+"

# The letters that have case, as deepseek-llm's tokenizer.json lists them: code points in hex.
_DEEPSEEK_LETTERS = """
    41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386
    388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA
    1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59
    1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC
    1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139
    213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B
    A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F
    104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
"""
_CASED_LETTERS = "".join(
    "-".join(chr(int(code, 16)) for code in codes.split("-")) for codes in _DEEPSEEK_LETTERS.split()
)
# llama.cpp reads white space beyond ASCII as U+000B here: U+3000 and U+2028 are in no such class.
_FULL_WIDTH = r"\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}\x{3002}"

# Digits in threes from the right; the first of them stand in one piece with what is before them.
_THREES = r"\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_ASIAN = (  # from U+8C48, where the tokenizer.json has U+F900, to which it is equivalent
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{8C48}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}"
    r"\x{FF65}-\x{FF9F}\x{2F00}-\x{2FDF}\x{0E40}-\x{0E7F}\x{0E80}-\x{0EFF}\x{1780}-\x{17FF}"
    r"\x{1000}-\x{109F}\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+"
)
_HAN = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}"
    r"\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
)
_KIMI_K2 = (
    rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+(?:{_CONTRACTION})?|\p{{N}}{{1,3}}"
    rf"|{_PUNCTUATION}|{_SPACES}"
)
_YOUTU = (
    r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+"
    r"|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}\x{FF0C}"
    r"\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+|" + _IDEOGRAPHS
)
# llama.cpp tells no case here: every letter, and every mark, counts as all of them.
_LETTERED = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+(?:{_CONTRACTION})?"
_BLOOM = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{0964}\x{06D4}\x{060C})]+"
_EXAONE_MOE = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_BAILING = (
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    rf"|{_PUNCTUATION}|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
)
_JAIS2 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION}|\s*[\r\n]+|"
    + "|".join(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))
    + r"|\s{1,2}(?!\S)|\s"
)

_DIGIT_THEN_GPT2 = PreTokenizer((r"\p{N}", _GPT2))
_LIKE_GPT2 = PreTokenizer((_GPT2,))
_LIKE_LLAMA3 = PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True)
_LIKE_QWEN2 = PreTokenizer((_QWEN2,))
_LIKE_GPT4O = PreTokenizer((_GPT4O,))

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": PreTokenizer(
        (r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    ),
    **dict.fromkeys(
        (
            *("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "kormo", "f2llmv2"),
            *("solar-open", "grok-2"),
        ),
        _LIKE_QWEN2,
    ),
    "qwen35": PreTokenizer((_QWEN35,)),
    "ufakzeka": PreTokenizer((_QWEN2.removeprefix(f"{_CONTRACTION}|"),)),
    "laguna": PreTokenizer((r"[^\n]+|\n+", _QWEN2)),
    "minicpm5": PreTokenizer(
        (r"\p{N}{1,3}", _QWEN2.replace(r"\p{N}|", r"\p{N}+|")), whole_words=True
    ),
    **dict.fromkeys(
        (
            *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0"),
            *("lfm2", "jina-v5-nano"),
        ),
        _LIKE_LLAMA3,
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), PreTokenizer((_LLAMA3,))),
    **dict.fromkeys(("glm4", "glm5"), PreTokenizer((_LLAMA3,), whole_words=True)),
    "jais-2": PreTokenizer((_JAIS2,)),
    **dict.fromkeys(
        (
            *("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat"),
            *("a.x-4.0", "mellum", "exaone4", "mpt", "olmo", "jais", "trillion"),
            "granite-docling",
        ),
        _LIKE_GPT2,
    ),
    **dict.fromkeys(
        (
            *("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"),
            "mellum2",
        ),
        _DIGIT_THEN_GPT2,
    ),
    "exaone-moe": PreTokenizer((_EXAONE_MOE,)),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), PreTokenizer((_BAILING,))),
    "seed-coder": PreTokenizer((_SEED,)),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), PreTokenizer((_BLOOM,))),
    "viking": PreTokenizer((_BLOOM, r"\p{N}")),
    "kimi-k2": PreTokenizer((_KIMI_K2,)),
    "afmoe": PreTokenizer((_THREES, _ASIAN, _DEEPSEEK_V3)),
    **dict.fromkeys(
        ("tiny_aya", "cohere2moe"),
        PreTokenizer((_THREES, rf"{_LETTERED}|\p{{N}}{{1,3}}{_CASED_REST}")),
    ),
    "youtu": PreTokenizer((_YOUTU, rf"{_LETTERED}|\p{{N}}{_CASED_REST}"), whole_words=True),
    "chameleon": PreTokenizer(
        (
            r"<sentinel:[0-9]+>",
            r"IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    "gemma4": PreTokenizer((), whole_words=True, add_bos=True, escaped=True),
    "sarvam-moe": PreTokenizer((), escaped=True),
    "falcon": PreTokenizer((r"[\p{P}$+<=>^~|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "tekken": PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _LIKE_GPT4O),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_CASED_LETTERS}]+",
            rf"\s?[!-/:-~{_FULL_WIDTH}]+",
            r"\s+\z",
            _CJK,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    **dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
        PreTokenizer((r"\p{N}{1,3}", _IDEOGRAPHS, _DEEPSEEK_V3)),
    ),
    "spark2_5": PreTokenizer((r"\p{N}{1,3}", _IDEOGRAPHS, _SPARK, r"\p{N}")),
}


def pre_tokenizer_named(name: str | None) -> PreTokenizer:
    """The pre-tokenizer called ``name``.

    Raises UsageError for any other, with the names that are known, and where the file names none.
    """
    found = PRE_TOKENIZERS.get(name or "")
    if found is None:
        what = "tokenizer: no pre-tokenizer is named, and it decides how text is cut"
        if name:
            known = ", ".join(PRE_TOKENIZERS)
            what = f"tokenizer: unknown pre-tokenizer '{clean(name)}'; known are {known}"
        raise UsageError(what, hint=TOKENS_HINT)
    return found


_WRITTEN_AS = {
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)": _CONTRACTION,
    "\\p{N}{1}": "\\p{N}",
}


def name_of_pattern(pattern: str) -> str | None:
    """The name under which ``PRE_TOKENIZERS`` has a tokenizer.json's regular expression, if any."""
    if pattern in PRE_TOKENIZERS:
        return pattern
    for written, ours in _WRITTEN_AS.items():
        pattern = pattern.replace(written, ours)
    names = (name for name, known in PRE_TOKENIZERS.items() if known.patterns == (pattern,))
    return next(names, None)

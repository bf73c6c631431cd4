"""Text that is safe to show."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unicodedata

import pytest

from aprtui.text import MAX_MARKS, clean, clean_lines, quoted


def test_no_character_that_a_terminal_could_act_on_stays_as_it_is() -> None:
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    characters = map(chr, range(sys.maxunicode + 1))
    kept = [c for c in characters if clean(c) == c and unicodedata.category(c) in hidden]
    assert not kept


def test_what_can_be_seen_stays_as_it_is() -> None:
    for shown in ("naïve", "日本語", "Việt Nam", "Vie\u0302\u0323t", "שָׁלוֹם", "ที่", "█▁ ✓ €"):
        assert clean(shown) == shown


def test_marks_over_one_character_and_characters_that_show_nothing_are_bounded() -> None:
    pile = "a" + "\u0301" * 50
    assert clean(pile) == "a" + "\u0301" * MAX_MARKS + r"\u0301" * (50 - MAX_MARKS)
    assert clean("a\u3164\u115f\u2800\ufe0f\u034f\U000e0100b") == (
        r"a\u3164\u115f\u2800\ufe0f\u034f\U000e0100b"
    )


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_path_can_be_pasted_whatever_is_in_it() -> None:
    for raw in (
        b"a b",
        b"it's",
        "é ✓".encode(),
        b"a\xff'b",
        b"\x1b[31mb\\ c\n",
        "\u202ex".encode(),
    ):
        path = os.fsdecode(raw)
        assert clean(quoted(path), 999) == quoted(path)
        shell = ["bash", "-c", f"printf %s {quoted(path)}"]
        assert subprocess.run(shell, capture_output=True, check=True).stdout == raw
    assert quoted("\ud800") == "$'?'"


def test_lines_stay_lines() -> None:
    assert clean_lines("a\tb\nc\x1b[31m\r\n") == "a\tb\nc\\x1b[31m\\x0d\n"
    assert clean_lines("x" * 5000 + "\n") == "x" * 5000 + "\n"


def test_long_text_ends_in_an_ellipsis() -> None:
    assert clean("abcd", 4) == "abcd" and clean("abcde", 4) == "abcd…"
    assert clean("a\x1bcde", 4) == r"a\x1bcd…"

"""Text that is safe to show."""

from __future__ import annotations

import sys
import unicodedata

from aprtui.text import clean


def test_no_character_that_a_terminal_could_act_on_stays_as_it_is() -> None:
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    characters = map(chr, range(sys.maxunicode + 1))
    wrong = [c for c in characters if (clean(c) == c) == (unicodedata.category(c) in hidden)]
    assert not wrong


def test_long_text_ends_in_an_ellipsis() -> None:
    assert clean("abcd", 4) == "abcd" and clean("abcde", 4) == "abcd…"
    assert clean("a\x1bcde", 4) == r"a\x1bcd…"

"""The page that HTML reports are: no scripts, nothing from elsewhere, light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from aprtui.text import clean

__all__ = ["document", "section", "table", "text", "verdict"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_SIGNS = {"bad": "✕", "good": "✓", "unknown": "?"}


def document(title: str, body: str, more_style: str = "") -> str:
    """The whole document; ``body`` is HTML already, ``more_style`` CSS beside the reports' own."""
    style = resources.files("aprtui.report").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}{more_style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def text(said: object, limit: int = 500) -> str:
    """Text that may have come from files, cleaned and escaped."""
    return escape(clean(str(said), limit))


def verdict(tone: str, headline: str, sentences: Iterable[str]) -> str:
    """The head of a page; ``tone`` is "bad", "good" or "unknown"."""
    lines = "".join(f"<p>{text(sentence)}</p>" for sentence in sentences)
    return (
        f'<header class="{tone}"><span class="sign" aria-hidden="true">'
        f"{_SIGNS[tone]}</span><div><h1>{text(headline)}</h1>{lines}</div></header>"
    )


def section(title: str, about: str, content: str) -> str:
    small = f" <small>{text(about)}</small>" if about else ""
    return f"<section>\n<h2>{text(title)}{small}</h2>\n{content}\n</section>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """``numeric`` names the columns of numbers."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if place in numeric else ''}>{text(cell)}</{tag}>"
            for place, cell in enumerate(row)
        )

    lines = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{cells(heads, "th")}</tr></thead>\n'
        f"<tbody>{lines}</tbody></table></div>"
    )

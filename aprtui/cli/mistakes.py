"""Say what a mistake that bisect names is: how it looks, how it is proved, where it comes from most
often, and what to check. Without an id all are listed."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict

from aprtui.cli.output import print_json, print_table
from aprtui.compare.mistakes.pages import pages
from aprtui.errors import UsageError
from aprtui.text import clean, nearest

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mistake", nargs="?", metavar="ID", help="as bisect prints it: rope_theta")
    parser.add_argument("--json", action="store_true", help="id, title and the four texts")


def run(args: argparse.Namespace) -> int:
    """Raises UsageError for an id that no mistake has."""
    known = pages()
    if args.mistake is not None and args.mistake not in known:
        near = nearest(args.mistake, known)
        hint = f"did you mean {near}?" if near else "aprtui mistakes lists all"
        raise UsageError(f"no mistake is called {clean(args.mistake)!r}", hint=hint)
    chosen = list(known.values()) if args.mistake is None else [known[args.mistake]]
    if args.json:
        said = [asdict(page) for page in chosen]
        print_json(said if args.mistake is None else said[0])
    elif args.mistake is None:
        print_table([(page.id, page.title) for page in chosen], ("id", "what was done"))
    else:
        print(f"{chosen[0].id}: {chosen[0].title}")
        for heading, text in chosen[0].sections:
            print(f"\n{heading}\n" + textwrap.fill(text, 80, initial_indent="  ",
                                                    subsequent_indent="  "))  # fmt: skip
    return 0

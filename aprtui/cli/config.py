"""Show where the settings lie and what they are, and check them: a theme, and other keys.

  theme = "textual-light"
  [keys]
  help = "f1"
  down = "j,down,ctrl+n"

The ids of [keys] are those that the help screen (?) shows. Without the file everything is as it
comes. Exit 3 where the file cannot be meant."""

from __future__ import annotations

import argparse
from pathlib import Path

from aprtui.cli.output import print_json
from aprtui.errors import BadFileError
from aprtui.text import clean, nearest
from aprtui.tui.config import config_file, read_config

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="file, whether it is there, settings")


def run(args: argparse.Namespace) -> int:
    """Raises BadFileError for settings that cannot be meant."""
    file = config_file()
    config = read_config(file)
    if config.theme:
        _check_theme(file, config.theme)
    there = file.is_file()
    if args.json:
        settings = {"theme": config.theme, "keys": dict(config.keys)}
        print_json({"file": str(file), "there": there, **settings})
        return 0
    print(clean(f"{file}: {'read, and right' if there else 'not there: all is as it comes'}"))
    print(f"theme  {clean(config.theme) or 'the terminal decides'}")
    for name, keys in config.keys.items():
        print(clean(f"keys   {name} = {keys}"))
    return 0


def _check_theme(file: Path, theme: str) -> None:
    from aprtui.tui.app import AprtuiApp  # imported only where a theme is named

    known = sorted(AprtuiApp(()).available_themes)
    if theme not in known:
        near = nearest(theme, known)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
        raise BadFileError(file, f"theme {clean(theme)!r} is unknown", hint=hint)

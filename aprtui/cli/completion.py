"""Print what completes aprtui's commands, options and their values in bash, zsh or fish.

  eval "$(aprtui completion bash)"                                   in ~/.bashrc
  eval "$(aprtui completion zsh)"                                    in ~/.zshrc, below compinit
  aprtui completion fish > ~/.config/fish/completions/aprtui.fish

`devices` prints what --device takes on this machine: the scripts ask for it."""

from __future__ import annotations

import argparse

from aprtui.engine.cards import look

__all__ = ["configure", "run"]

_SHELLS = ("bash", "zsh", "fish")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=(*_SHELLS, "devices"), help="the shell, or devices")


def run(args: argparse.Namespace) -> int:
    if args.what == "devices":
        print("\n".join(_devices()))
    else:
        from aprtui.cli import shells  # every command's parser, which devices are told without

        print(getattr(shells, args.what)(), end="")
    return 0


def _devices() -> list[str]:
    """Without torch, which takes a second to say what it can use: NVML is asked for the cards."""
    cards = [f"cuda:{number}" for number in range(len(look().cards))]
    return ["auto", "cpu", "mps", *(["cuda"] if cards else []), *cards]

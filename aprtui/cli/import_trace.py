"""Write another tool's dump as a trace folder, which every command here opens.

SOURCE is an .npz, .npy, .safetensors or torch.save file, or the folder that the tool wrote: of
transformers' debugger, hooks on transformers', vLLM's or mlx-lm's modules, SGLang, TensorRT-LLM,
msprobe, ONNX Runtime, OpenVINO, TransformerLens or torchlens. Its names tell which;
docs/captures.md says what is read of each, and how to write a map of your own. A pickle is never
run.

A stage that can be had in two ways must be the same to the bit, else it is left out and the exit
code is 1. Passes (prefill, chunks, decode steps) are stacked by position; of a batch --sequence
chooses one; tensor- and pipeline-parallel ranks are put together by the model's dimensions, and
copies that are not the same to the bit are named by rank. What was inferred, dropped or not read
is said in notes, which stand in the trace too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from aprtui.cli.options import add_overrides, parse_overrides, parse_tokens
from aprtui.cli.output import errors_as_events, print_event, print_json, print_notes
from aprtui.text import clean

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="the file or folder of tensors")
    parser.add_argument(
        "--model", required=True, help="the model that was run: it tells the shapes"
    )
    parser.add_argument(
        "--map", metavar="NAME|FILE.toml", help="the convention of its names (default: recognised)"
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="the trace folder (default: SOURCE's name and -trace)"
    )
    parser.add_argument(
        "--sequence",
        type=int,
        metavar="K",
        help="which sequence of a batch, by order of appearance",
    )
    parser.add_argument(
        "--ranks",
        metavar="A,B",
        help="the ranks' folders in their order, where their names do not say it; or one alone",
    )
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--tokens",
        metavar="1,2,3",
        help="the token ids, where the dump does not hold them (or not those before a cache's hit)",
    )
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt that they came from")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the trace that is in DIR already"
    )
    add_overrides(parser)
    parser.add_argument("--json", action="store_true", help="the summary as JSON")
    parser.add_argument(
        "--events", action="store_true", help="progress, then the summary, as JSON lines on stdout"
    )


def run(args: argparse.Namespace) -> int:
    return errors_as_events("import-trace", _run, args) if args.events else _run(args)


def _progress(done: int, total: int) -> None:
    print_event("progress", done=done, total=total)


def _run(args: argparse.Namespace) -> int:
    from aprtui import api

    done = api.import_trace(
        Path(args.source),
        model=args.model,
        map=args.map,
        output=args.output,
        tokens=parse_tokens(args.tokens),
        prompt=args.prompt,
        sequence=args.sequence,
        ranks=tuple(args.ranks.split(",")) if args.ranks else (),
        overwrite=args.overwrite,
        overrides=parse_overrides(args.overrides),
        progress=_progress if args.events else None,
    )
    if args.events:
        print_event("result", **done.to_json())
    elif args.json:
        print_json(done.to_json())
    else:
        print(f"wrote {clean(done.directory)}: {done}")
        for found in done.contradictions:
            print(f"contradiction: {clean(found, 500)}")
        for found in done.findings:
            print(f"finding: {clean(found, 500)}")
        print_notes(done.notes)
    return 1 if done.contradictions or done.findings else 0

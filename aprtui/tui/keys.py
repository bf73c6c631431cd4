"""Every key, once: this table feeds bindings, the foot line, the help screen and the README."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from textual.binding import Binding

from aprtui.tui.panes import PANES, keys_of, places_of

__all__ = ["KEYS", "PLACES", "Key", "bindings", "keys_at", "markdown", "remapped", "shown"]


@dataclass(frozen=True)
class Key:
    """One thing a key does.

    ``keys`` are Textual's names, the first the one that is shown; ``where`` names the place whose
    widget or screen binds it; ``label`` is the foot line's word, empty to leave it out there.
    """

    id: str
    keys: tuple[str, ...]
    action: str
    where: str
    label: str
    description: str

    @property
    def call(self) -> str:
        """The action as a screen runs it: one of a pane's place is run on the pane."""
        _, colon, pane = self.where.partition(":")
        return f"of_pane({pane!r}, {self.action!r})" if colon else self.action


def _number_keys(mode: str, id: str) -> tuple[Key, ...]:
    """The key of each pane of a screen: mostly its number."""
    keys = keys_of(mode)
    return tuple(
        Key(f"{id}-{number}", (keys[row.name],), f"pane({row.name!r})", mode, "", row.about)
        for number, row in enumerate(PANES[mode], 1)
    )


def _heat_keys(where: str, id: str) -> tuple[Key, ...]:
    """What every heatmap's keys do."""
    return (
        Key(f"{id}-reduce", ("c",), "reduce", where, "largest/mean",
            "a cell shows the value of largest magnitude, or the mean of |x|"),
        Key(f"{id}-scale", ("L",), "scale", where, "log", "colours: logarithmic or linear"),
        Key(f"{id}-nearer", ("+",), "nearer", where, "zoom in",
            "half as much around the cursor, until each value has its cell"),
        Key(f"{id}-farther", ("-",), "farther", where, "", "twice as much"),
        Key(f"{id}-finer", ("f",), "finer", where, "finer",
            "every cell its own colour, or no more than a page's bytes (as over SSH)"),
    )  # fmt: skip


# The places in the order of the help screen, with what a person would call them.
PLACES: dict[str, str] = {
    "anywhere": "Anywhere",
    "move": "Lists and grids",
    "browse": "Browse",
    **places_of("browse"),
    "model": "Model",
    **places_of("model"),
    "model:map": "Model: map",
    "models": "Two models",
    "trace": "Trace",
    "bookmarks": "Bookmarks",
    "leave": "Leaving a running trace",
    "import": "Importing a dump",
    "diff": "Diff",
    "pair": "Diff: one pair",
    "bisect": "Diff: local error",
    "mistake": "Diff: a mistake",
    "matrix": "Matrix",
    "many": "Matrix: many traces",
    "results": "Matrix: a sweep",
    "sides": "A stage, on every screen that shows one",
    "home": "Home",
}

KEYS: tuple[Key, ...] = (
    Key("help", ("?",), "help", "anywhere", "help", "help, with search"),
    Key("palette", (":", "ctrl+p"), "command_palette", "anywhere", "",
        "goes to a stage, a tensor, a file, a theme or a command; tab completes"),
    Key("back", ("q",), "back", "anywhere", "back", "back; at the top it quits"),
    Key("escape", ("escape",), "back(False)", "anywhere", "", "back; never quits"),
    Key("quit", ("ctrl+q",), "leave", "anywhere", "", "quit from anywhere"),
    Key("quit-hint", ("ctrl+c", "ctrl+z"), "help_quit", "anywhere", "",
        "says which key quits; ^c copies what the mouse selected"),
    Key("next-mode", ("]",), "cycle_mode(1)", "anywhere", "", "next of Model, Trace, Browse, Diff"),
    Key("previous-mode", ("[",), "cycle_mode(-1)", "anywhere", "", "the mode before"),
    Key("jump-back", ("<", "ctrl+o"), "jump_back", "anywhere", "",
        "where one was before, on whatever screen"),
    Key("jump-forward", (">",), "jump_forward", "anywhere", "", "the place after it again"),
    Key("bookmark", ("*",), "screen.bookmark", "anywhere", "",
        "mark this place with a note; it goes into the report"),
    Key("bookmarks", ("'",), "screen.bookmarks", "anywhere", "",
        "the places that were marked: go to one"),
    Key("go-home", ("~",), "go_home", "anywhere", "", "Home: models and traces below the folder"),
    Key("redraw", ("ctrl+l",), "redraw", "anywhere", "",
        "draw all of it again, where something has written over it"),
    Key("theme", ("f2",), "next_theme", "anywhere", "", "dark, light or the terminal's colours"),

    Key("down", ("j", "down"), "down", "move", "", "down"),
    Key("up", ("k", "up"), "up", "move", "", "up"),
    Key("left", ("h", "left"), "left", "move", "", "left; in a tree: fold"),
    Key("right", ("l", "right"), "right", "move", "", "right; in a tree: unfold"),
    Key("top", ("g", "home"), "top", "move", "", "first"),
    Key("bottom", ("G", "end"), "bottom", "move", "", "last"),
    Key("page-down", ("ctrl+d", "pagedown"), "page_down", "move", "", "a page down"),
    Key("page-up", ("ctrl+u", "pageup"), "page_up", "move", "", "a page up"),
    Key("line-start", ("0",), "line_start", "move", "", "first column"),
    Key("line-end", ("$",), "line_end", "move", "", "last column"),
    Key("open", ("enter",), "open", "move", "open", "open, or fold"),

    *_number_keys("browse", "pane"),
    Key("browse-focus", ("tab",), "focus_pane", "browse", "pane", "tree to pane and back"),
    Key("browse-filter", ("/",), "filter", "browse", "filter", "show only stages whose name has…"),
    Key("next-match", ("n",), "next_match(1)", "browse", "",
        "this stage in the next layer; or the next damaged file; or the next hit in Values"),
    Key("previous-match", ("N",), "next_match(-1)", "browse", "", "the one before"),
    Key("browse-zoom", ("z",), "zoom", "browse", "zoom", "the pane alone, and back"),
    Key("browse-sort", ("s",), "sort", "browse", "sort", "tree by computation or by stage"),
    Key("browse-diff", ("d",), "diff_with", "browse", "diff with…", "compare with another trace"),
    Key("browse-pair", ("=",), "pair", "browse", "pair",
        "this stage of both traces, where a Diff of this one is open"),
    Key("copy", ("y",), "copy_value", "browse", "copy", "copy the value, or the statistics"),
    Key("copy-path", ("Y",), "copy_path", "browse", "", "copy the file's path"),
    Key("export", ("e",), "export", "browse", "", "write the values to a .npy or .csv file"),
    Key("browse-stop", ("x",), "stop_running", "browse", "stop", "stop the trace that runs here"),
    Key("pause", ("space",), "pause", "browse", "", "stop and go on following a growing trace"),

    Key("maximum", ("m",), "maximum", "browse:values", "max", "to the largest |x|"),
    Key("next-nonfinite", ("i",), "next_nonfinite", "browse:values", "NaN",
        "to the next NaN or Inf"),
    Key("values-pass", ("p",), "pass(1)", "browse:values", "pass",
        "to the first row of the next pass, where the trace came in several"),
    Key("values-pass-back", ("P",), "pass(-1)", "browse:values", "", "of the pass before"),
    Key("find", ("f",), "screen.find_value", "browse:values", "find",
        "look for values: |x| > 3, < -2, = 0, nan, inf, denormal; n and N go on"),
    Key("values-go", (":",), "app.command_palette", "browse:values", "go to",
        "4,301 goes to position 4, channel 301"),

    Key("range", ("c",), "range", "browse:histogram", "range",
        "range: clipped, symmetric-log, full"),
    Key("counts", ("L",), "counts", "browse:histogram", "log", "counts: logarithmic or linear"),
    Key("slice-axis", ("a",), "slice_axis", "browse:histogram", "axis", "slice by another axis"),
    Key("slice-next", ("p",), "slice(1)", "browse:histogram", "slice",
        "next position, head or channel"),
    Key("slice-previous", ("P",), "slice(-1)", "browse:histogram", "", "the one before"),

    *_heat_keys("browse:heatmap", "heatmap"),

    Key("head-next", ("p",), "head(1)", "browse:attention", "head", "the next head"),
    Key("head-previous", ("P",), "head(-1)", "browse:attention", "", "the head before"),
    *_heat_keys("browse:attention", "attention"),

    Key("lens-choose", ("t",), "choose", "browse:lens", "follow token",
        "the rank and probability of the token under the cursor in every cell; again: none"),
    Key("lens-model", ("o",), "screen.ask_model", "browse:lens", "model…",
        "read tokens with another model"),

    Key("tokens-model", ("o",), "screen.ask_model", "browse:tokens", "model…",
        "read tokens with another model"),

    Key("overview-colours", ("c",), "colours", "browse:overview", "colours",
        "colours: rms against the layer above, rms, size of the files"),

    *_number_keys("model", "model-pane"),
    Key("weight-go", (":",), "app.command_palette", "model:values", "go to",
        "4,301 goes to row 4, column 301; 2,4,301 of expert 2"),
    *_heat_keys("model:map", "map"),
    Key("trace-model", ("t",), "trace", "model", "trace", "trace this model"),
    Key("model-browse", ("b",), "browse", "model", "browse",
        "the stage that reads this tensor, where a trace of this model is open"),
    Key("model-filter", ("/",), "filter", "model", "filter", "show only tensors whose name has…"),
    Key("model-sort", ("s",), "sort", "model", "sort", "tensors by role, size or type"),
    Key("model-focus", ("tab",), "focus_pane", "model", "pane", "tensors to pane and back"),
    Key("model-zoom", ("z",), "zoom", "model", "zoom", "the pane alone, and back"),
    Key("model-verify", ("v",), "verify", "model", "verify", "read the whole file: checksums"),
    Key("model-copy", ("y",), "copy_value", "model", "copy",
        "copy the value under the cursor, or the tensor's name"),
    Key("model-copy-path", ("Y",), "copy_path", "model", "", "copy the file's path"),
    Key("model-diff", ("d",), "diff_with", "model", "diff with…", "compare with another model"),

    Key("models-filter", ("/",), "filter", "models", "filter",
        "show only tensors whose name or class has…"),
    Key("models-sort", ("s",), "sort", "models", "sort", "worst first, or by layer"),
    Key("models-next", ("n",), "next(1)", "models", "next", "next tensor that is another one"),
    Key("models-previous", ("N",), "next(-1)", "models", "", "the one before"),
    Key("models-a", ("A",), "side(0)", "models", "in Model", "this tensor of A in Model"),
    Key("models-b", ("B",), "side(1)", "models", "in Model", "this tensor of B in Model"),
    Key("models-copy", ("y",), "copy_value", "models", "", "copy what is known of the tensor"),
    Key("models-export", ("e",), "export", "models", "", "write the tensors shown to a .csv file"),

    Key("run", ("r", "ctrl+r"), "run", "trace", "run", "start the trace, once its plan is made"),
    Key("edit", ("tab",), "edit", "trace", "edit", "the next field of the form"),
    Key("stop", ("x",), "stop", "trace", "stop", "stop; what is written stays"),
    Key("trace-pause", ("space",), "pause", "trace", "pause", "pause the display, not the trace"),
    Key("trace-log", ("o",), "log", "trace", "log", "the engine's log"),
    Key("trace-browse", ("b",), "browse", "trace", "browse", "browse what is written"),
    Key("trace-diff", ("d",), "diff", "trace", "diff",
        "this trace and the one that it is held against, in Diff"),
    Key("trace-colours", ("c",), "colours", "trace", "colours",
        "colours: rms against the layer above, rms, size of the files"),

    Key("bookmarks-go", ("enter",), "go", "bookmarks", "go there", "go to the place"),
    Key("bookmarks-forget", ("D",), "forget", "bookmarks", "forget it", "forget this bookmark"),
    Key("bookmarks-close", ("q", "escape", "'"), "close", "bookmarks", "back", "close the list"),

    Key("leave-stop", ("s", "ctrl+q"), "answer('stop')", "leave", "stop",
        "stop it, then close; what is written stays"),
    Key("leave-running", ("l",), "answer('leave')", "leave", "leave it running",
        "leave it running: it is found again on the next start"),
    Key("leave-stay", ("q", "escape"), "answer('')", "leave", "stay", "do not close"),

    Key("import-go", ("enter", "ctrl+r"), "go", "import", "import", "import, then open the trace"),
    Key("import-next", ("tab", "down"), "field(1)", "import", "next field", "the next field"),
    Key("import-before", ("shift+tab", "up"), "field(-1)", "import", "", "the field before"),
    Key("import-stop", ("escape", "ctrl+x"), "stop", "import", "stop, close",
        "stop the import; else close without one"),

    Key("bisect", ("b",), "bisect", "diff", "bisect", "find the culprits: replay each stage"),
    Key("metric", ("m",), "metric(1)", "diff", "metric", "next: max_abs, rms, cosine, rel_l2"),
    Key("metric-back", ("M",), "metric(-1)", "diff", "", "the metric before"),
    Key("first-divergence", ("f",), "first", "diff", "first", "to the first divergence"),
    Key("next-divergence", ("n",), "next(1)", "diff", "next", "next divergence, as they are shown"),
    Key("previous-divergence", ("N",), "next(-1)", "diff", "", "the divergence before"),
    Key("diff-filter", ("/",), "filter", "diff", "filter",
        "show only some stages: ffn, layer 3, 3..6, differs"),
    Key("diff-sort", ("s",), "sort", "diff", "sort", "grid, or list with the worst first"),
    Key("diff-zoom", ("z",), "zoom", "diff", "", "grid or list alone, and back"),
    Key("diff-copy", ("y",), "copy_value", "diff", "", "copy the pair's numbers"),
    Key("diff-copy-path", ("Y",), "copy_path", "diff", "", "copy the path of B's file"),
    Key("diff-export", ("e",), "export", "diff", "", "write the pairs shown to a .csv file"),
    Key("diff-again", ("r",), "again", "diff", "", "read and compare both again"),
    Key("diff-diff", ("d",), "diff_with", "diff", "diff with…", "compare A with another trace"),
    Key("other-prompts", ("i",), "ignore_tokens", "diff", "all the same",
        "compare although the prompts differ"),
    Key("diff-pass", ("p",), "pass(1)", "diff", "pass",
        "only the rows of the next pass (a chunk, a decode step), then all again"),
    Key("diff-pass-back", ("P",), "pass(-1)", "diff", "", "of the pass before"),
    Key("local-error", ("v",), "local_error", "diff", "", "drift or local error"),
    Key("diff-pause", ("space",), "pause", "diff", "", "stop and go on following growing traces"),

    Key("bisect-stop", ("x",), "stop", "bisect", "stop", "stop the replay"),
    Key("bisect-model", ("o",), "ask_model", "bisect", "another model",
        "replay with another model"),
    Key("bisect-filter", ("/",), "filter", "bisect", "filter",
        "show only some stages: ffn, layer 3, culprit, Q8_K"),
    Key("bisect-sort", ("s",), "sort", "bisect", "sort", "grid, or list with the worst first"),
    Key("bisect-zoom", ("z",), "zoom", "bisect", "", "grid or list alone, and back"),
    Key("bisect-copy", ("y",), "copy_value", "bisect", "", "copy what was found here"),
    Key("bisect-export", ("e",), "export", "bisect", "", "write the stages shown to a .csv file"),
    Key("next-culprit", ("n",), "next(1)", "bisect", "next", "next culprit"),
    Key("previous-culprit", ("N",), "next(-1)", "bisect", "", "the culprit before"),
    Key("drift", ("v",), "drift", "bisect", "drift", "back to drift"),

    Key("mistake-pair", ("enter",), "pair", "mistake", "pair",
        "both sides of the stage: values, histograms, what is worst"),
    Key("mistake-next", ("n",), "step(1)", "mistake", "next", "next culprit that has a name"),
    Key("mistake-previous", ("N",), "step(-1)", "mistake", "", "the culprit before"),
    Key("mistake-copy", ("y",), "copy_value", "mistake", "copy",
        "copy what was found, and what to check"),

    Key("pair-focus", ("tab",), "focus_pane", "pair", "pane", "next pane"),
    Key("pair-sort", ("s",), "sort", "pair", "worst by", "worst elements, positions or channels"),
    Key("pair-zoom", ("z",), "zoom", "pair", "zoom", "the half with the cursor alone, and back"),
    Key("pair-range", ("c",), "range", "pair", "range", "histograms: the middle, or all values"),
    Key("pair-counts", ("L",), "counts", "pair", "", "counts: logarithmic or linear"),
    Key("pair-go", (":",), "app.command_palette", "pair", "go to",
        "4,301 goes to position 4, channel 301 in A, B and d"),
    Key("pair-copy", ("y",), "copy_value", "pair", "", "copy both values under the cursor"),
    Key("pair-copy-path", ("Y",), "copy_path", "pair", "", "copy the path of B's file"),
    Key("pair-export", ("e",), "export", "pair", "", "write A, B and d to a .npz file"),
    Key("pair-next", ("n",), "step(1)", "pair", "next", "next pair in order of computation"),
    Key("pair-previous", ("N",), "step(-1)", "pair", "", "the pair before"),

    Key("matrix-next", ("n",), "next(1)", "matrix", "next", "next in this column that is wrong"),
    Key("matrix-previous", ("N",), "next(-1)", "matrix", "", "the one before"),
    Key("matrix-filter", ("/",), "filter", "matrix", "filter",
        "show only some rows: ffn, layer 3, 3..6, differs"),
    Key("matrix-sort", ("s",), "sort", "matrix", "sort", "rows as they come, or the worst first"),
    Key("matrix-zoom", ("z",), "zoom", "matrix", "zoom", "the matrix alone, and back"),
    Key("matrix-copy", ("y",), "copy_value", "matrix", "", "copy what the cell says"),
    Key("matrix-export", ("e",), "export", "matrix", "", "write the rows shown to a .csv file"),

    Key("many-first", ("f",), "first", "many", "first", "where this column first parts"),
    Key("many-metric", ("m",), "metric(1)", "many", "metric",
        "next: max_abs, rms, cosine, rel_l2"),
    Key("many-metric-back", ("M",), "metric(-1)", "many", "", "the metric before"),
    Key("many-diff", ("d",), "open_diff", "many", "diff", "this column's two traces in Diff"),
    Key("many-copy-path", ("Y",), "copy_path", "many", "", "copy the path of B's file"),
    Key("many-again", ("r",), "again", "many", "", "read and compare all again"),
    Key("many-prompts", ("i",), "ignore_tokens", "many", "all the same",
        "compare although the prompts differ"),
    Key("many-pause", ("space",), "pause", "many", "",
        "stop and go on following growing traces"),

    Key("results-layout", ("a",), "layout", "results", "axes", "other axes down and across"),
    Key("results-pause", ("space",), "pause", "results", "",
        "stop and go on following a sweep that runs"),

    Key("side-a", ("A",), "side(0)", "sides", "in Browse", "this stage of A in Browse"),
    Key("side-b", ("B",), "side(1)", "sides", "in Browse", "this stage of B in Browse"),
    Key("report", ("R",), "report", "sides", "report",
        "write a report of the comparison: .html, .md or .json"),
    Key("weight", ("W",), "weight", "sides", "weight", "the weight that the stage reads, in Model"),

    Key("home-filter", ("/",), "filter", "home", "filter", "show only names that have…"),
    Key("home-sort", ("s",), "sort", "home", "sort", "the newest first, or by name"),
    Key("home-open", ("o",), "open_other", "home", "open…", "open another folder or file"),
    Key("home-diff", ("d",), "diff_with", "home", "diff",
        "compare those that are marked (three or more: a matrix), or this one with another"),
    Key("home-mark", ("space",), "mark", "home", "mark", "mark it; d compares what is marked"),
    Key("home-trace", ("t",), "trace", "home", "trace", "trace this model"),
    Key("home-rename", ("R",), "rename", "home", "rename", "give this trace another name"),
    Key("home-delete", ("D",), "delete", "home", "delete", "delete this trace, after a question"),
    Key("home-rescan", ("r",), "rescan", "home", "look again", "look through the folder again"),
)  # fmt: skip

_NAMES = {
    "escape": "esc", "enter": "enter", "space": "space", "pagedown": "pgdn", "pageup": "pgup",
    "down": "↓", "up": "↑", "left": "←", "right": "→", "home": "home", "end": "end",
}  # fmt: skip


def shown(key: str) -> str:
    """A key as people write it: ``^d`` for ``ctrl+d``."""
    if key.startswith("ctrl+"):
        return "^" + key[5:]
    return _NAMES.get(key, key)


def remapped(keys: Iterable[Key], other: Mapping[str, str]) -> tuple[Key, ...]:
    """The rows with the keys that a config gives them (ids to keys with commas between)."""
    return tuple(
        replace(key, keys=tuple(other[key.id].split(","))) if key.id in other else key
        for key in keys
    )


def keys_at(*places: str) -> tuple[Key, ...]:
    """The table's rows of these places, in the table's order."""
    return tuple(key for key in KEYS if key.where in places)


def bindings(*places: str) -> list[Binding]:
    """What a widget or screen at these places binds; ids let a config remap them."""
    return [
        Binding(
            ",".join(key.keys),
            key.call,
            key.description,
            show=bool(key.label),
            id=key.id,
            priority=key.id == "quit",
        )
        for key in keys_at(*places)
    ]


def markdown(rows: Iterable[Key] = KEYS) -> str:
    """The table as Markdown for the README, one section a place."""
    lines = ["| where | key | does |", "|---|---|---|"]
    for key in rows:
        names = " ".join(f"`{shown(name)}`" for name in key.keys)
        description = key.description.replace("|", "\\|")
        lines.append(f"| {PLACES[key.where]} | {names} | {description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")

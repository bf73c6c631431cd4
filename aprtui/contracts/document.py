"""Strict YAML as a tree of nodes: one document, bounded depth, plain and quoted told apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

__all__ = [
    "MAX_BYTES",
    "Items",
    "Mapping",
    "Node",
    "NotReadable",
    "Scalar",
    "duplicate_key",
    "read_document",
]

MAX_BYTES = 2 << 20
MAX_NODES = 100_000  # of one document as it is written
MAX_DEPTH = 128  # the public reader's own limit
# libyaml where PyYAML was built with it: the public reader is a port of libyaml.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = frozenset({"true", "True", "TRUE", "false", "False", "FALSE"})
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+)")
_REAL = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


class NotReadable(ValueError):
    """The text is not one strict YAML document, or not a contract: what, and at which line."""


@dataclass(frozen=True)
class Scalar:
    """``plain`` means unquoted: only such text can be a number, a boolean or nothing at all."""

    text: str
    plain: bool
    line: int

    @property
    def kind(self) -> str:
        """``null``, ``bool``, ``int``, ``float`` or ``str``, by the core schema of YAML 1.2."""
        if not self.plain:
            return "str"
        if self.text in _NULLS:
            return "null"
        if self.text in _BOOLS:
            return "bool"
        if _WHOLE.fullmatch(self.text):
            return "int"
        return "float" if _REAL.fullmatch(self.text) else "str"


@dataclass(frozen=True)
class Items:
    nodes: tuple[Node, ...]
    line: int


@dataclass(frozen=True)
class Mapping:
    pairs: tuple[tuple[Node, Node], ...]
    line: int


Node = Scalar | Items | Mapping


def read_document(body: bytes) -> Node:
    """The one document that ``body`` holds.

    An alias is the node it names, shared and never copied, so that repetition costs nothing here.
    Raises NotReadable: not UTF-8, a byte-order mark, no document or a second one, an unknown or
    recursive alias, nesting beyond MAX_DEPTH, anything that libyaml refuses.
    """
    if len(body) > MAX_BYTES:
        raise NotReadable(f"larger than {MAX_BYTES} bytes")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotReadable(f"not UTF-8 at byte {error.start}") from error
    if text.startswith("\ufeff"):
        raise NotReadable("line 1: opens with a byte-order mark")
    try:
        documents = list(_compose(yaml.parse(text, Loader=_LOADER)))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise NotReadable(where + str(getattr(error, "problem", None) or error)) from error
    if not documents:
        raise NotReadable("holds no document")
    if len(documents) > 1:
        raise NotReadable(f"line {documents[1].line}: a second document")
    return documents[0]


@dataclass
class _Open:
    """A collection whose end has not come yet."""

    mapping: bool
    anchor: str | None
    line: int
    nodes: list[Node]


def _compose(events: Iterator[Any]) -> Iterator[Node]:
    """The documents that a stream of parser events describes, without recursion."""
    anchors: dict[str, Node] = {}
    stack: list[_Open] = []
    for number, event in enumerate(events):
        line = event.start_mark.line + 1
        if number > 2 * MAX_NODES:  # a collection has two events
            raise NotReadable(f"line {line}: more than {MAX_NODES:,} values")
        anchor = getattr(event, "anchor", None)
        node: Node
        match event:
            case yaml.DocumentStartEvent():
                anchors = {}
                continue
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                mapping = isinstance(event, yaml.MappingStartEvent)
                stack.append(_Open(mapping, anchor, line, []))
                if len(stack) > MAX_DEPTH:
                    raise NotReadable(f"line {line}: nested deeper than {MAX_DEPTH}")
                continue
            case yaml.ScalarEvent():
                plain = event.style is None or event.style == ""
                node = Scalar(event.value, plain and event.tag is None, line)
            case yaml.AliasEvent():
                if anchor not in anchors:
                    raise NotReadable(f"line {line}: alias of no finished anchor")
                node, anchor = anchors[anchor], None
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                ended = stack.pop()
                anchor, inner = ended.anchor, ended.nodes
                if ended.mapping:
                    node = Mapping(tuple(zip(inner[::2], inner[1::2], strict=True)), ended.line)
                else:
                    node = Items(tuple(inner), ended.line)
            case _:
                continue
        if anchor is not None:
            anchors[anchor] = node
        if stack:
            stack[-1].nodes.append(node)
        else:
            yield node


def duplicate_key(document: Node) -> Scalar | None:
    """A key that stands twice in one mapping, anywhere in the document."""
    seen: set[int] = set()
    waiting: list[Node] = [document]
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node, Scalar):
            continue
        seen.add(id(node))
        if isinstance(node, Items):
            waiting.extend(node.nodes)
            continue
        keys: set[tuple[str, str]] = set()
        for key, value in node.pairs:
            waiting += (key, value)
            if isinstance(key, Scalar):
                if (key.kind, key.text) in keys:
                    return key
                keys.add((key.kind, key.text))
    return None

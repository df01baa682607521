"""YAML as plain text values: mappings, lists and strings, each with its line.

Owns: how much of YAML is read at all, and in which bounds.
Never: builds objects, numbers or dates, or follows an alias.
Read next: ``conventions`` (the files of other tools that are read with it).

PyYAML's own loaders, the safe ones too, expand aliases (a bomb of a few hundred bytes takes all
memory) and know no bound of depth. Here libyaml does the lexing, which is where YAML is hard, and
the tree is built from its events: an anchor, an alias, a tag or a second document ends the reading
at once. Every scalar stays the text it is: ``3.10`` is no float, ``no`` no truth value, and a
number of 100,000 digits costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

DEPTH_MAX = 32
NODES_MAX = 5_000
BYTES_MAX = 200 * 1024


class TextRefused(Exception):
    """The text is not UTF-8, not YAML or not of the part that is read; ``line`` is from 1."""

    def __init__(self, reason: str, line: int = 1) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One value: ``str``, ``list[Node]`` or ``dict[str, Node]``, and the line it begins on."""

    value: str | list[Node] | dict[str, Node]
    line: int

    def get(self, *names: str) -> Node | None:
        """The member below mappings, or None if there is none or something else is in the way."""
        found: Node | None = self
        for name in names:
            members = found.value if found else None
            found = members.get(name) if isinstance(members, dict) else None
        return found

    def text(self, *names: str) -> str:
        """The text below mappings; empty if there is none."""
        found = self.get(*names)
        return found.value if found and isinstance(found.value, str) else ""

    def members(self) -> dict[str, Node]:
        """The members of a mapping; none of anything else."""
        return self.value if isinstance(self.value, dict) else {}

    def items(self) -> list[Node]:
        """The items of a list; none of anything else."""
        return self.value if isinstance(self.value, list) else []


def parse(raw: bytes) -> Node:
    """The one document of a YAML text.

    Raises:
        TextRefused: not UTF-8, too large, too deep, not YAML, or with anchors, aliases or tags.
    """
    if len(raw) > BYTES_MAX:
        raise TextRefused(f"it is larger than {BYTES_MAX} bytes")
    text = text_from_bytes(raw)
    try:
        return _document(yaml.parse(text, Loader=yaml.CSafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "it is not YAML"
        raise TextRefused(str(problem), mark.line + 1 if mark else 1) from error
    except ValueError as error:
        raise TextRefused("it is not YAML") from error


def text_from_bytes(raw: bytes) -> str:
    """The text of a UTF-8 file.

    Raises:
        TextRefused: it is not UTF-8, or begins with a byte order mark.
    """
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise TextRefused("it is UTF-16; save it as UTF-8")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise TextRefused("it begins with a byte order mark; save it as UTF-8 without one")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise TextRefused("it is not UTF-8 text", line) from error


class _Tree:
    """The tree as it grows; it keeps its own stack, so that depth is only a number."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self._open: list[Node] = []
        self._keys: list[str | None] = []
        self._nodes = 0

    def add(self, event: Any) -> None:
        """Add the value an event begins, or close the list or mapping it ends."""
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise TextRefused("anchors and aliases are not read; write the value out", line)
        if isinstance(event, yaml.NodeEvent):
            self._begin(_node(event, line))
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self._open.pop()
            self._keys.pop()

    def _begin(self, node: Node) -> None:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise TextRefused(f"it has more than {NODES_MAX} values", node.line)
        if self._open:
            _put(self._open[-1], self._keys, node)
        elif self.root is None:
            self.root = node
        else:
            raise TextRefused("it has a second document", node.line)
        if not isinstance(node.value, str):
            self._open.append(node)
            self._keys.append(None)
            if len(self._open) > DEPTH_MAX:
                raise TextRefused(f"it is nested more than {DEPTH_MAX} deep", node.line)


def _document(events: Any) -> Node:
    tree = _Tree()
    for event in events:
        tree.add(event)
    if tree.root is None:
        raise TextRefused("it is empty")
    return tree.root


def _node(event: Any, line: int) -> Node:
    if event.tag not in (None, "!"):
        raise TextRefused("tags are not read; leave them out", line)
    if isinstance(event, yaml.ScalarEvent):
        return Node(value=event.value, line=line)
    return Node(value=[] if isinstance(event, yaml.SequenceStartEvent) else {}, line=line)


def _put(parent: Node, keys: list[str | None], node: Node) -> None:
    """Add a node to the list or mapping that is open; in a mapping every second one is a key."""
    if isinstance(parent.value, list):
        parent.value.append(node)
        return
    assert isinstance(parent.value, dict)  # noqa: S101 - only these two are ever open
    key = keys[-1]
    if key is None:
        if not isinstance(node.value, str):
            raise TextRefused("a key is not plain text", node.line)
        if node.value in parent.value:
            raise TextRefused(f"the key '{node.value[:60]}' is there twice", node.line)
        keys[-1] = node.value
    else:
        parent.value[key] = node
        keys[-1] = None

"""An image's root folder, put together from its layers without ever trusting what it holds.

Owns: the tree that was written so far, links and whiteouts in it, and what is left out.
Never: follows a link on the host: where a path leads is looked up in its own tree, in memory;
writes outside its folder, a device, a set-user-id bit, or into a file that exists.
Read next: ``tarstream`` (whose members these are), ``oci`` (whose layers).

Overwriting a path gives a new file, so a hard link to the old one keeps the old content. A whiteout
hides what lower layers brought, never what its own layer does (OCI image layer specification).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from appliance.tarstream import Member, rejected

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_HOPS_MAX = 40
_DEPTH_MAX = 256
_PARTS_PER_HOP = 32
_MTIME_S_MAX = 1 << 32
_LEFT_OUT = ("dev", "proc", "sys")
_LAST = 1 << 30


@dataclass(slots=True)
class _Node:
    """Something in the tree. ``layer`` is the last one that named it, ``target`` a link's text."""

    kind: Literal["file", "folder", "symlink"]
    layer: int
    target: str = ""
    children: dict[str, _Node] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Bounds:
    """How much a root folder may hold: bytes of files, and members of all layers."""

    bytes_max: int = 64 * 1024**3
    members_max: int = 1_000_000


class RootFolder:
    """The folder ``path``, which must not exist yet, as it grows layer by layer. Blocking."""

    def __init__(self, path: Path, bounds: Bounds) -> None:
        path.mkdir(mode=0o755)
        path.chmod(0o755)
        self.path = path
        self.bytes = 0
        self.files = 0
        self.devices = 0
        self.privileged = 0
        self.bounds = bounds
        self._members = 0
        self._hidden: set[tuple[int, str]] = set()  # folders' ids and names, of this layer
        self._hidden_layer = 0
        self._top = _Node("folder", 0)

    def put(self, member: Member, pieces: Iterator[bytes], layer: int) -> None:
        """Apply one member of a layer.

        Args:
            member: what the layer says.
            pieces: the content, if it is a file.
            layer: the layer's number, 1 for the lowest.

        Raises:
            ArchiveRejected: it is not acceptable.
            OSError: the file system refused.
        """
        self._members += 1
        if self._members > self.bounds.members_max:
            raise rejected(member.path, f"is one too many: {self.bounds.members_max} is the most")
        *parents, name = member.path.split("/")
        if name.startswith(_WHITEOUT):
            self._whiteout(parents, name, layer, member.path)
        elif (parents or [name])[0] in _LEFT_OUT or member.kind == "other":
            self.devices += member.kind == "other"
        elif member.kind == "folder":
            self._put_folder(parents, name, layer, member.path)
        elif member.kind == "file":
            self._put_file(parents, name, layer, member, pieces)
        elif member.kind == "link":
            self._put_symlink(parents, name, layer, member)
        else:
            self._put_hardlink(parents, name, layer, member)

    def has_files(self, path: str) -> bool:
        """Whether something lies in this folder (``/a/b``), links followed inside."""
        found = self._walk(_split(path), _LAST, None, path)
        return found is not None and bool(found[1].children)

    def force_folder(self, path: str, mode: int) -> None:
        """Have a real folder at ``/a/b``, as a mount point; what is there and none is replaced."""
        *parents, name = _split(path)
        at, folder = self._folder(parents, _LAST, path)
        node = folder.children.get(name)
        if node is None or node.kind != "folder":
            self._replace(at, folder, name)
            os.mkdir(os.path.join(at, name))
            folder.children[name] = _Node("folder", _LAST)
        os.chmod(os.path.join(at, name), mode)

    def work_folder(self, path: str) -> None:
        """Have a folder where ``/a/b`` leads, links followed inside; it is made if it is missing.

        Raises:
            ArchiveRejected: it leads to what the kernel shows there once the image runs: a
                descriptor below /proc may be a folder of the host.
        """
        at, _ = self._folder(_split(path), _LAST, path)
        if os.path.relpath(at, self.path).split("/")[0] in _LEFT_OUT:
            raise rejected(path, "leads to /dev, /proc or /sys, where nothing is to be started")

    def force_file(self, path: str, content: bytes) -> None:
        """Have a file of this content at ``/a/b``, whatever was there."""
        *parents, name = _split(path)
        at, folder = self._folder(parents, _LAST, path)
        self._replace(at, folder, name)
        with open(_created(os.path.join(at, name)), "wb") as out:
            out.write(content)
        os.chmod(os.path.join(at, name), 0o644)
        folder.children[name] = _Node("file", _LAST)

    def force_symlink(self, path: str, target: str) -> None:
        """Have a link at ``/a/b``, whatever was there."""
        *parents, name = _split(path)
        at, folder = self._folder(parents, _LAST, path)
        self._replace(at, folder, name)
        os.symlink(target, os.path.join(at, name))
        folder.children[name] = _Node("symlink", _LAST, target)

    def read_file(self, path: str, bytes_max: int) -> bytes | None:
        """The content of a small file, links followed inside; ``None`` if there is none such."""
        found = self._find(_split(path))
        if found is None or found[1].kind != "file":
            return None
        with open(os.open(found[0], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            data = file.read(bytes_max + 1)
        return data if len(data) <= bytes_max else None

    def _put_folder(self, parents: list[str], name: str, layer: int, shown: str) -> None:
        at, folder = self._folder(parents, layer, shown)
        node = folder.children.get(name)
        if node is not None and node.kind == "folder":
            node.layer = layer
            return
        self._replace(at, folder, name)
        self._make(at, folder, name, layer)

    def _put_file(
        self, parents: list[str], name: str, layer: int, member: Member, pieces: Iterator[bytes]
    ) -> None:
        self.bytes += member.size
        if self.bytes > self.bounds.bytes_max:
            largest = self.bounds.bytes_max >> 20
            raise rejected(member.path, f"is too large: with it the image is over {largest} MiB")
        at, folder = self._folder(parents, layer, member.path)
        self._replace(at, folder, name)
        target = os.path.join(at, name)
        with open(_created(target), "wb") as out:
            out.writelines(pieces)
            os.fchmod(out.fileno(), 0o755 if member.mode & 0o111 else 0o644)
        mtime_s = min(member.mtime_s, _MTIME_S_MAX)
        os.utime(target, (mtime_s, mtime_s), follow_symlinks=False)
        self.privileged += bool(member.mode & 0o6000)
        self.files += 1
        folder.children[name] = _Node("file", layer)

    def _put_symlink(self, parents: list[str], name: str, layer: int, member: Member) -> None:
        if not member.target:
            raise rejected(member.path, "is a link to nothing")
        depth = len(parents)
        for part in () if member.target.startswith("/") else member.target.split("/"):
            depth += -1 if part == ".." else part not in ("", ".")
            if depth < 0:
                raise rejected(member.path, "is a link that leads out of the image")
        at, folder = self._folder(parents, layer, member.path)
        self._replace(at, folder, name)
        os.symlink(member.target, os.path.join(at, name))
        folder.children[name] = _Node("symlink", layer, member.target)

    def _put_hardlink(self, parents: list[str], name: str, layer: int, member: Member) -> None:
        found = self._find(_split(member.target))
        if found is None or found[1].kind == "folder":
            raise rejected(member.path, "is a hard link to a file that is not there")
        source, node = found
        at, folder = self._folder(parents, layer, member.path)
        if folder.children.get(name) is node:
            return
        self._replace(at, folder, name)
        os.link(source, os.path.join(at, name), follow_symlinks=False)
        self.files += 1
        folder.children[name] = _Node(node.kind, layer, node.target)

    def _whiteout(self, parents: list[str], name: str, layer: int, shown: str) -> None:
        hidden = name.removeprefix(_WHITEOUT)
        if hidden.startswith(_WHITEOUT) and name != _OPAQUE:
            return  # aufs' own bookkeeping
        if hidden in ("", ".", ".."):
            raise rejected(shown, "is a whiteout of nothing")
        found = self._walk(parents, _LAST, None, shown)
        if found is None:
            return
        at, folder = found
        if self._is_hidden(folder, name, layer):
            return
        for one in list(folder.children) if name == _OPAQUE else [hidden]:
            if one in folder.children:
                self._hide(at, folder, one, layer)

    def _is_hidden(self, folder: _Node, name: str, layer: int) -> bool:
        """Whether this layer has the same whiteout already: again, it would look in vain.

        An id that was used before is of a folder that the layer made: nothing is to hide in it.
        """
        if layer != self._hidden_layer:
            self._hidden.clear()
            self._hidden_layer = layer
        key = (id(folder), name)
        is_known = key in self._hidden
        self._hidden.add(key)
        return is_known

    def _hide(self, at: str, folder: _Node, name: str, layer: int) -> None:
        """Remove what lower layers brought at a name, and below it."""
        node = folder.children[name]
        below = os.path.join(at, name)
        for one in list(node.children):
            self._hide(below, node, one, layer)
        if node.layer < layer and not node.children:
            os.rmdir(below) if node.kind == "folder" else os.unlink(below)
            del folder.children[name]

    def _replace(self, at: str, folder: _Node, name: str) -> None:
        """Remove whatever is at a name."""
        node = folder.children.pop(name, None)
        if node is not None:
            target = os.path.join(at, name)
            shutil.rmtree(target) if node.kind == "folder" else os.unlink(target)

    def _make(self, at: str, folder: _Node, name: str, layer: int) -> _Node:
        target = os.path.join(at, name)
        os.mkdir(target)
        os.chmod(target, 0o755)  # noqa: S103 - a sandbox's user reads it; whatever the umask
        folder.children[name] = _Node("folder", layer)
        return folder.children[name]

    def _folder(self, parts: list[str], layer: int, shown: str) -> tuple[str, _Node]:
        """The real folder a path leads to inside the tree; folders that are missing are made.

        Raises:
            ArchiveRejected: on the way is a file, or a link that the same layer made.
        """

        def missing(at: str, folder: _Node, name: str) -> _Node:
            return self._make(at, folder, name, layer)

        found = self._walk(parts, layer, missing, shown)
        if found is None:
            raise rejected(shown, "has a path of which a part is no folder")
        return found

    def _find(self, parts: list[str]) -> tuple[str, _Node] | None:
        """Where a path leads inside the tree and what is there; links before its end followed."""
        *parents, name = parts or [""]
        if not name:
            return str(self.path), self._top
        found = self._walk(parents, _LAST, None, "/".join(parts))
        node = found[1].children.get(name) if found else None
        if found is None or node is None:
            return None
        return os.path.join(found[0], name), node

    def _walk(
        self,
        parts: list[str],
        layer: int,
        missing: Callable[[str, _Node, str], _Node] | None,
        shown: str,
    ) -> tuple[str, _Node] | None:
        way: list[tuple[str, _Node]] = [(str(self.path), self._top)]
        todo, hops = parts[::-1], 0
        while todo:
            name = todo.pop()
            at, folder = way[-1]
            if name == "..":
                way = way[:-1] or way  # above the root is the root
                continue
            node = folder.children.get(name)
            if node is None and missing is not None:
                node = missing(at, folder, name)
            if node is None or node.kind == "file":
                return None
            if node.kind == "folder":
                if len(way) > _DEPTH_MAX:
                    raise rejected(shown, "has a path that leads too deep")
                way.append((os.path.join(at, name), node))
                continue
            then = _split(node.target)
            hops += 1 + len(then) // _PARTS_PER_HOP  # a link of 4,000 bytes is a way of its own
            if node.layer == layer and layer != _LAST:
                raise rejected(shown, "is written through a link of the same layer")
            if hops > _HOPS_MAX:
                raise rejected(shown, "has a path through too many links")
            if node.target.startswith("/"):
                del way[1:]
            todo += then[::-1]
        return way[-1]


def _split(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _created(path: str) -> int:
    """A new file, open for writing; one that exists is an error, a link is never followed."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)

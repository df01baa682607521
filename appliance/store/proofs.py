"""Proofs: signed heads, and RFC 6962 inclusion and consistency paths from flat hash files.

Owns: the signing key's use, ``db/tiles/`` and the text of checkpoints and proofs.
Never: decides whether an entry is durable; everything here is derived from the ledger.
Read next: ``verify`` checks what this module makes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.store.verify import PROOF_MAGIC, PublicKey, State, head_text, push, root_of, sha

_HASH = 32
_FAN = 8  # each level of hash files is 2**8 times smaller than the one below


class Signer:
    """The ledger's Ed25519 key and the names derived from it."""

    def __init__(self, seed: bytes) -> None:
        """``seed`` is 32 secret bytes."""
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        raw = b"\1" + self._key.public_key().public_bytes_raw()
        self.origin = f"model-appliance/{hashlib.sha256(raw[1:]).hexdigest()[:16]}"
        digest = hashlib.sha256(f"{self.origin}\n".encode() + raw).digest()
        self._key_id = digest[:4]
        self.public_text = f"{self.origin}+{digest[:4].hex()}+{base64.b64encode(raw).decode()}"
        self.public = PublicKey(self.public_text)

    def sign(self, data: bytes) -> bytes:
        """The 64-byte signature of ``data``."""
        return self._key.sign(data)

    def sign_head(self, size: int, root: bytes, time_ns: int, chain: bytes) -> bytes:
        """The signature of a head's checkpoint text."""
        return self._key.sign(head_text(self.origin, size, root, time_ns, chain))

    def note(self, head: State) -> str:
        """A signed checkpoint from a head and the signature stored with it."""
        text = head_text(self.origin, head.size, head.root, head.time_ns, head.chain).decode()
        encoded = base64.b64encode(self._key_id + head.signature).decode()
        return f"{text}\n\u2014 {self.origin} {encoded}\n"


def leaf_hash(record: bytes) -> bytes:
    """The RFC 6962 hash of a record."""
    return hashlib.sha256(b"\0" + record).digest()


def proof_text(record: bytes, index: int, path: list[bytes], note: str) -> str:
    """A C2SP tlog-proof carrying the record itself."""
    lines = [PROOF_MAGIC, f"extra {base64.b64encode(record).decode()}", f"index {index}"]
    lines += [base64.b64encode(h).decode() for h in path]
    return "\n".join(lines) + f"\n\n{note}"


class Tiles:
    """Flat files of tree hashes: entry i of level L is the root of leaves [i*256^L, (i+1)*256^L).

    One thread appends; readers ask only about sizes already appended. Not synced and not trusted:
    a path made from them is checked against the signed root, and ``reset`` starts over.
    """

    def __init__(self, folder: Path) -> None:
        """Open the files, cutting each level to what the level below it supports."""
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.size = self._length(0)
        count, level = self.size, 0
        while count:
            if self._length(level) > count:
                self._cut(level, count)
            elif self._length(level) < count:
                self.reset()
                break
            count >>= _FAN
            level += 1

    def append(self, leaves: Iterable[bytes]) -> None:
        """Append leaf hashes in order."""
        new = b"".join(leaves)
        level, size = 0, self.size
        whole = size + len(new) // _HASH
        while new:
            before = size
            with self._path(level).open("ab") as file:
                file.write(new)
            size = before + len(new) // _HASH
            first, last = before >> _FAN, size >> _FAN
            new = b"".join(self._fold(level, i << _FAN, 1 << _FAN) for i in range(first, last))
            level, size = level + 1, first
        # Last, for a reader that waits for this size looks into every level of it.
        self.size = whole

    def cut(self, size: int) -> None:
        """Forget every leaf from ``size`` on."""
        level = 0
        while self._path(level).exists():
            if self._length(level) > size:
                self._cut(level, size)
            size >>= _FAN
            level += 1
        self.size = min(self.size, self._length(0))

    def reset(self) -> None:
        """Forget everything; the caller appends all leaves again."""
        for path in self._folder.iterdir():
            path.unlink()
        self.size = 0

    def root(self, size: int) -> bytes:
        """The root of the first ``size`` leaves, size >= 1."""
        return self._subtree(0, size)

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """The path of leaf ``index`` in the tree of ``size`` leaves (RFC 6962 section 2.1.1)."""
        path: list[bytes] = []
        start, end = 0, size
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                path.append(self._subtree(middle, end))
                end = middle
            else:
                path.append(self._subtree(start, middle))
                start = middle
        return path[::-1]

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the tree of ``old`` leaves is a prefix of ``new`` (RFC 6962 2.1.2)."""
        path: list[bytes] = []
        start, end, is_whole = 0, new, True
        while old != end:
            middle = start + _split(end - start)
            if old <= middle:
                path.append(self._subtree(middle, end))
                end = middle
            else:
                path.append(self._subtree(start, middle))
                start, is_whole = middle, False
        if not is_whole:
            path.append(self._subtree(start, end))
        return path[::-1]

    def _subtree(self, start: int, end: int) -> bytes:
        """Root of leaves [start, end), a node of the tree or its ragged right edge."""
        count = end - start
        if count & (count - 1) == 0:
            level = (count.bit_length() - 1) // _FAN
            width = level * _FAN
            return self._fold(level, start >> width, count >> width)
        middle = start + _split(count)
        return sha(b"\1", self._subtree(start, middle), self._subtree(middle, end))

    def _fold(self, level: int, first: int, count: int) -> bytes:
        with self._path(level).open("rb") as file:
            file.seek(first * _HASH)
            data = file.read(count * _HASH)
        frontier: list[bytes] = []
        for index in range(len(data) // _HASH):
            push(frontier, index, data[index * _HASH : (index + 1) * _HASH])
        return root_of(frontier)

    def _path(self, level: int) -> Path:
        return self._folder / str(level)

    def _length(self, level: int) -> int:
        path = self._path(level)
        return path.stat().st_size // _HASH if path.exists() else 0

    def _cut(self, level: int, count: int) -> None:
        with self._path(level).open("r+b") as file:
            file.truncate(count * _HASH)


def _split(count: int) -> int:
    """The largest power of two smaller than ``count`` (RFC 6962 section 2.1), count >= 2."""
    return 1 << (count - 1).bit_length() - 1

"""What a model file says about itself, read from its bytes as they stream by.

Owns: which files are looked at, and the few texts that are looked for in them.
Never: unpickles, executes, or keeps a file; what it finds is a claim, to be proved by a sandbox.
Read next: ``conventions`` (who uses the claims).

A pickle is a program, so it is not run here and not even parsed: joblib puts raw arrays between its
instructions. scikit-learn writes its version into the state of every estimator; that text and the
module names of classes (pickletools documents the opcodes around them) are found by pattern.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["pickle", "skops", "onnx", "rds"]

SUFFIXES: dict[str, Kind] = {
    ".pkl": "pickle",
    ".pickle": "pickle",
    ".joblib": "pickle",
    ".skops": "skops",
    ".onnx": "onnx",
    ".rds": "rds",
}
_OVERLAP = 512
_INFLATED_MAX = 64 * 1024 * 1024
_MODULES_SCANNED_MAX = 4 * 1024 * 1024
_PACKAGES_MAX = 64
_STEP = 1024 * 1024
_MEMO = rb"(?:\x94|q.|r....)?"
_SKLEARN_IN_PICKLE = re.compile(
    rb"_sklearn_version" + _MEMO + rb"(?:\x8c(.)|X(.)\x00\x00\x00)", re.DOTALL
)
_VERSION = re.compile(rb"\d{1,4}(?:\.[0-9a-z]{1,12}){1,5}")
_SKLEARN_IN_SKOPS = re.compile(
    rb'"_sklearn_version":\s{0,4}\{[^{}]{0,300}?"content":\s{0,4}"\\"(\d{1,4}(?:\.[0-9a-z]{1,12}){1,5})\\""'
)
_SKOPS = re.compile(rb'"_skops_version":\s{0,4}"(\d{1,4}(?:\.[0-9a-z]{1,12}){1,5})"')
# Each alternative begins with a byte that no later part of it takes: the search stays linear.
_CLASS_IN_PICKLE = re.compile(
    rb"\x8c.([a-z_]\w{0,40}+)(?:\.[\w.]{0,120}+)?+"
    + _MEMO
    + rb"\x8c.[A-Za-z_]\w{0,80}+"
    + _MEMO
    + rb"\x93"
    rb"|[^\w.]c([a-z_]\w{0,40}+)(?:\.[\w.]{0,120}+)?+\n[A-Za-z_]\w{0,80}+\n",
    re.DOTALL,
)
_CLASS_IN_SKOPS = re.compile(rb'"__module__":\s{0,4}"([a-z_]\w{0,40}+)(?:\.[\w.]{0,120}+)?+"')


@dataclass(slots=True, kw_only=True)
class Claims:
    """What one file claims; empty where it says nothing.

    ``packages`` are the top-level modules of the classes in it; ``is_packed`` is true where the
    file is compressed in a way that is not looked into.
    """

    kind: Kind
    sklearn: str = ""
    skops: str = ""
    packages: set[str] = field(default_factory=set)
    is_packed: bool = False


class Probes:
    """Watches an archive go by and keeps the claims of its model files."""

    def __init__(self) -> None:
        self.claims: dict[str, Claims] = {}

    def watch(self, path: str) -> Callable[[bytes], None] | None:
        """What to hand the content of this member to, piece by piece; None to look away."""
        kind = kind_of(path)
        if kind is None or "/" in path:
            return None
        claims = self.claims[path] = Claims(kind=kind)
        return _Scan(claims).feed if kind in ("pickle", "skops") else None


def kind_of(path: str) -> Kind | None:
    """The kind of model file that a name stands for."""
    return SUFFIXES.get("." + path.rpartition(".")[2].lower()) if "." in path else None


class _Scan:
    """The search through one file: bounded memory, and bounded work on what is compressed."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._tail = b"\0"
        self._seen = 0
        self._begun = False
        self._inflate: zlib._Decompress | None = None

    def feed(self, data: bytes) -> None:
        if not self._begun and data:
            self._begin(data)
        if self._inflate is None:
            self._search(data)
            return
        while data and self._seen < _INFLATED_MAX and not self._inflate.eof:
            try:
                piece = self._inflate.decompress(data, _STEP)
            except zlib.error:
                self._seen = _INFLATED_MAX
                return
            self._search(piece)
            data = self._inflate.unconsumed_tail

    def _begin(self, data: bytes) -> None:
        """Joblib compresses with zlib or gzip, or with what the standard library has besides."""
        self._begun = True
        if self._claims.kind == "pickle":
            if data[:1] == b"\x78" or data[:2] == b"\x1f\x8b":
                self._inflate = zlib.decompressobj(wbits=47)
            self._claims.is_packed = data.startswith(
                (b"BZh", b"\xfd7zXZ", b"\x5d\0\0", b"\x04\x22")
            )
        elif data[8:10] == b"\x08\0":  # a zip whose first member is deflated
            self._claims.is_packed = True

    def _search(self, data: bytes) -> None:
        window = self._tail + data
        self._tail = window[-_OVERLAP:]
        found = self._claims
        is_pickle = found.kind == "pickle"
        if not found.sklearn and b"_sklearn_version" in window:
            found.sklearn = (
                _version_in_pickle(window) if is_pickle else _first(_SKLEARN_IN_SKOPS, window)
            )
        if not is_pickle and not found.skops and b"_skops_version" in window:
            found.skops = _first(_SKOPS, window)
        if self._seen < _MODULES_SCANNED_MAX:
            pattern = _CLASS_IN_PICKLE if is_pickle else _CLASS_IN_SKOPS
            for match in pattern.finditer(window):
                if len(found.packages) >= _PACKAGES_MAX:
                    break
                found.packages.add((match[1] or match[2 if is_pickle else 1]).decode())
        self._seen += len(data)


def _first(pattern: re.Pattern[bytes], window: bytes) -> str:
    match = pattern.search(window)
    return match[1].decode() if match else ""


def _version_in_pickle(window: bytes) -> str:
    """The text after the key, as long as its opcode says; empty while it is not all there."""
    match = _SKLEARN_IN_PICKLE.search(window)
    if match is None:
        return ""
    length = (match[1] or match[2])[0]
    text = window[match.end() : match.end() + length]
    return text.decode() if len(text) == length and _VERSION.fullmatch(text) else ""

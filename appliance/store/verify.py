"""The ledger verifier: stands alone, trusts nothing but a public key.

Owns: reading and checking segments, frames, signed heads and proofs (``FORMAT.md`` section 3).
Never: imports the appliance or writes anything; the appliance itself checks with these functions.
Read next: ``proofs`` makes what ``verify_proof`` checks.

    python verify.py ledger DIR --ledger-key FILE --public-key KEY     every entry, every signature
    python verify.py proof FILE --public-key KEY                       one entry, no ledger needed
"""

import argparse
import base64
import hashlib
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SEGMENT_MAGIC, FRAME_MAGIC, PROOF_MAGIC = b"MALEDGE1", b"MAFRAME1", "c2sp.org/tlog-proof@v1"
SEGMENT, FRAME, TAIL = map(struct.Struct, (">8sIQQ32s32s", ">8sIQI32s", ">QQ32s64s"))
SEGMENT_SIZE, FRAME_SIZE, TAIL_SIZE = SEGMENT.size + 32, FRAME.size + 4, TAIL.size


class Bad(ValueError):
    """Not what was written: ``seq`` is the first bad entry, at ``place`` (segment, offset)."""

    def __init__(self, why: str, seq: int | None = None, place: tuple[int, int] = (0, 0)) -> None:
        super().__init__(why)
        self.seq, self.place = seq, place


class VerifyReport(NamedTuple):
    """What a verification found; ``head`` is the hex root at ``entries``."""

    ok: bool
    entries: int
    first_bad_seq: int | None
    detail: str
    head: str


class State(NamedTuple):
    """A verified head: entry ``size`` ends at ``offset`` of ``segment``."""

    segment: int = 0
    offset: int = 0
    size: int = 0
    chain: bytes = bytes(32)
    frontier: tuple[bytes, ...] = ()  # roots of the complete subtrees, largest first
    root: bytes = hashlib.sha256().digest()
    time_ns: int = 0
    signature: bytes = b""


def sha(*parts: bytes) -> bytes:
    """SHA-256 of the parts; RFC 6962 hashes a leaf as (0, record), a node as (1, left, right)."""
    return hashlib.sha256(b"".join(parts)).digest()


def push(frontier: list[bytes], size: int, leaf: bytes) -> None:
    """Append a leaf hash to a tree of ``size`` leaves, in place."""
    while size & 1:
        leaf, size = sha(b"\1", frontier.pop(), leaf), size >> 1
    frontier.append(leaf)


def root_of(frontier: list[bytes]) -> bytes:
    """The root of a tree."""
    root = frontier[-1] if frontier else sha()
    for left in frontier[-2::-1]:
        root = sha(b"\1", left, root)
    return root


def root_from_path(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """The root that an inclusion path leads to (RFC 9162 section 2.1.3.2)."""
    last, root = size - 1, leaf
    for sibling in path:
        if last == 0:
            raise Bad("the path is too long")
        is_right = index & 1 or index == last
        root = sha(b"\1", sibling, root) if is_right else sha(b"\1", root, sibling)
        while is_right and index and not index & 1:
            index, last = index >> 1, last >> 1
        index, last = index >> 1, last >> 1
    if last:
        raise Bad("the path is too short")
    return root


def head_text(origin: str, size: int, root: bytes, time_ns: int, chain: bytes) -> bytes:
    """What a head's signature covers: a C2SP checkpoint."""
    texts = [base64.b64encode(part).decode() for part in (root, chain)]
    return f"{origin}\n{size}\n{texts[0]}\ntime {time_ns}\nchain {texts[1]}\n".encode()


def plain(text: str) -> bytes:
    """The bytes of base64 in its one proper spelling: a proof must not have two texts."""
    if text.encode() != base64.b64encode(data := base64.b64decode(text, validate=True)):
        raise ValueError("not proper base64")
    return data


class PublicKey:
    """A verifier key, from its text ``origin+id+base64``."""

    def __init__(self, text: str) -> None:
        try:
            self.origin, self.key_id, encoded = text.strip().split("+", 2)
            raw = plain(encoded)
            if raw[:1] + sha(self.origin.encode(), b"\n", raw)[:4] != b"\1" + bytes.fromhex(
                self.key_id
            ):
                raise ValueError("its id does not match")
            self.key = Ed25519PublicKey.from_public_bytes(raw[1:])
        except ValueError as error:
            raise Bad(f"not a public key like NAME+ID+BASE64: {error}") from error

    def check(self, signature: bytes, data: bytes) -> None:
        """Raise ``Bad`` unless this key signed the data."""
        try:
            self.key.verify(signature, data)
        except InvalidSignature:
            raise Bad("not signed by this key") from None

    def open_note(self, note: str) -> tuple[int, bytes]:
        """(tree size, root) of a checkpoint signed by this key."""
        try:
            text, signatures = note.split("\n\n")
            start = f"\u2014 {self.origin} "
            line = next(s for s in signatures.split("\n") if s.startswith(start))
            signature = plain(line.removeprefix(start))
            self.check(signature[4:], f"{text}\n".encode())
            origin, size, root = text.split("\n")[:3]
            if origin != self.origin or signature[:4].hex() != self.key_id:
                raise ValueError("another origin")
            return int(size), plain(root)
        except (StopIteration, ValueError) as error:
            raise Bad("a signed head is damaged or not signed by this key") from error


class Frame(NamedTuple):
    """One decrypted group commit, up to ``end`` of what it was read from."""

    end: int
    first_seq: int
    before: bytes
    records: list[bytes]
    size: int
    time_ns: int
    root: bytes
    signature: bytes


def has_header(data: bytes, at: int) -> bool:
    """Whether an undamaged frame header stands there."""
    fixed, stored = data[at : at + FRAME.size], data[at + FRAME.size : at + FRAME_SIZE]
    return fixed[:8] == FRAME_MAGIC and zlib.crc32(fixed).to_bytes(4, "big") == stored


def open_frame(data: bytes, at: int, digest: bytes, key: AESGCM, base: int = 0) -> Frame:
    """Decrypt the frame at ``at`` of bytes read from offset ``base`` of a segment."""
    if not has_header(data, at):
        raise Bad("the frame's header is damaged")
    _, length, first_seq, count, before = FRAME.unpack_from(data, at)
    middle = at + FRAME_SIZE + length
    if middle + TAIL_SIZE > len(data):
        raise Bad("the frame is cut short")
    header, sealed = data[at : at + FRAME_SIZE], data[at + FRAME_SIZE : middle]
    try:
        text = key.decrypt((base + at).to_bytes(12, "big"), sealed, digest + header)
    except InvalidTag:
        raise Bad("the frame was changed or belongs elsewhere") from None
    *records, rest = text.split(b"\n")
    if rest or len(records) != count:
        raise Bad("the frame holds another number of records")
    return Frame(middle + TAIL_SIZE, first_seq, before, records, *TAIL.unpack_from(data, middle))


def open_segment(data: bytes, number: int, ledger_key: bytes) -> tuple[int, bytes, bytes, AESGCM]:
    """(first entry, chain value before, digest of the header, cipher) of a segment."""
    digest = sha(data[: SEGMENT.size])
    if data[SEGMENT.size : SEGMENT_SIZE] != digest or data[:8] != SEGMENT_MAGIC:
        raise Bad("the segment's header is damaged")
    _, stored, first_seq, _, salt, before = SEGMENT.unpack_from(data)
    if stored != number:
        raise Bad(f"this is segment {stored}")
    kdf = HKDF(SHA256(), 32, salt, b"ledger-segment" + number.to_bytes(4, "big"))
    return first_seq, before, digest, AESGCM(kdf.derive(ledger_key))


def follow(state: State, segment: int, frame: Frame, chain: bytes, public: PublicKey) -> State:
    """The state after a frame, if it continues this one and its head is right and signed."""
    if (frame.first_seq, frame.before) != (state.size + 1, state.chain):
        raise Bad("the frame does not continue the one before it")
    frontier = list(state.frontier)
    for size, record in enumerate(frame.records, state.size):
        push(frontier, size, sha(b"\0", record))
        if not record.startswith(b'{"seq":%d,' % (size + 1)):
            raise Bad("a record is out of order")
    size, time_ns, root = frame.size, frame.time_ns, frame.root
    if size != state.size + len(frame.records) or root != root_of(frontier):
        raise Bad("the head does not match its entries")
    public.check(frame.signature, head_text(public.origin, size, root, time_ns, chain))
    return State(segment, frame.end, size, chain, tuple(frontier), root, time_ns, frame.signature)


def walk(
    folder: Path, key: bytes, public: PublicKey, state: State, end: tuple[int, int] | None = None
) -> Iterator[tuple[State, list[bytes]]]:
    """Every verified head after ``state`` with its records, up to ``end`` (segment, offset)."""
    found = [int(p.name[4:]) for p in folder.glob("seg-*") if p.name[4:].isdecimal()]
    last = end[0] if end else max(found, default=0)
    for number in range(max(state.segment, 1), max(state.segment, last) + 1):
        is_begun = number == state.segment
        at = state.offset if is_begun else SEGMENT_SIZE
        try:
            data = (folder / f"seg-{number:08d}").read_bytes()
            data = data[: end[1]] if end and number == last else data
            first_seq, before, digest, cipher = open_segment(data, number, key)
            if not is_begun and (first_seq, before) != (state.size + 1, state.chain):
                raise Bad("the segment does not continue the one before it")
            while at < max(len(data), SEGMENT_SIZE + 1):
                frame = open_frame(data, at, digest, cipher)
                chain = sha(state.chain, digest, data[at : frame.end - 64])
                state = follow(state, number, frame, chain, public)
                at = state.offset
                yield state, frame.records
            if at > len(data):
                raise Bad("the segment is shorter than it was")
        except (Bad, FileNotFoundError) as error:
            why = str(error) if isinstance(error, Bad) else "missing"
            text = f"segment {number}, offset {at}: {why}"
            raise Bad(text, state.size + 1, (number, at)) from error


def verify_ledger(
    folder: Path,
    ledger_key: bytes,
    public: PublicKey,
    anchor: str,
    end: tuple[int, int] | None = None,
    progress: Callable[[int], None] = lambda size: None,
) -> VerifyReport:
    """Check a whole ledger against its own signed heads and an anchor (a checkpoint)."""
    state, found = State(), None
    try:
        size, root = public.open_note(anchor)
        found = state.root if size == 0 else None
        for head, _records in walk(folder, ledger_key, public, state, end):
            state = head
            progress(state.size)
            found = state.root if state.size == size else found
        if found != root:
            why = f"the ledger ends at {state.size} and has not the anchor's head at {size}"
            raise Bad(why, min(state.size + 1, size))
    except Bad as bad:
        return VerifyReport(False, state.size, bad.seq or state.size + 1, str(bad), "")
    return VerifyReport(True, state.size, None, f"{state.size} entries verified", state.root.hex())


def verify_proof(text: str, public: PublicKey) -> tuple[int, bytes]:
    """(sequence number, record) that a proof text proves."""
    body, _, note = text.partition("\n\n")
    try:
        magic, extra, index_line, *hashes = body.split("\n")
        record = plain(extra.removeprefix("extra "))
        index = int(index_line.removeprefix("index "))
        path = [plain(line) for line in hashes]
    except ValueError as error:
        raise Bad("not a proof text") from error
    size, root = public.open_note(note)
    is_placed = 0 <= index < size and record.startswith(b'{"seq":%d,' % (index + 1))
    is_spelt = (magic, extra[:6], index_line) == (PROOF_MAGIC, "extra ", f"index {index}")
    if not (is_spelt and is_placed):
        raise Bad("the record is of another entry")
    if root_from_path(sha(b"\0", record), index, size, path) != root:
        raise Bad("the record is not in the signed tree", index + 1)
    return index + 1, record


def main() -> int:
    """Exit status 0 when everything verifies, 1 when something is bad, 2 for wrong usage."""
    parser = argparse.ArgumentParser(description="Verify a Model Appliance ledger or proof.")
    parser.add_argument("what", choices=("ledger", "proof"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--public-key", required=True)
    parser.add_argument("--ledger-key", type=Path, help="file: 32 bytes in base64")
    parser.add_argument("--anchor", type=Path, help="a checkpoint kept elsewhere")
    options = parser.parse_args()
    try:
        public = PublicKey(options.public_key)
        if options.what == "proof":
            seq, record = verify_proof(options.path.read_text("utf-8"), public)
            sys.stdout.write(f"ok: entry {seq} is in the ledger\n{record.decode()}\n")
            return 0
        if options.ledger_key is None:
            parser.error("--ledger-key is needed to read a ledger")
        inner = options.path / "ledger"
        folder = inner if inner.is_dir() else options.path
        anchor = (options.anchor or folder.parent / "anchor").read_text("utf-8")
        key = base64.b64decode(options.ledger_key.read_bytes().strip(), validate=True)
        report = verify_ledger(folder, key, public, anchor)
    except (OSError, ValueError) as error:
        report = VerifyReport(False, 0, getattr(error, "seq", None), str(error), "")
    verdict = "ok:" if report.ok else f"BAD: first bad entry {report.first_bad_seq}:"
    sys.stdout.write(f"{verdict} {report.detail}\n")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())

"""The ledger verifier: stands alone, trusts nothing but a public key.

Owns: reading and checking segments, frames, signed heads and proofs (``FORMAT.md`` section 3).
Never: imports the appliance or writes anything; the appliance itself checks with these functions.
Read next: ``proofs`` makes what ``verify_proof`` checks.

    python verify.py ledger DIR --ledger-key FILE --public-key KEY     every entry, every signature
    python verify.py proof FILE --public-key KEY                       one entry, no ledger needed
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SEGMENT_MAGIC, FRAME_MAGIC, PROOF_MAGIC = b"MALEDGE1", b"MAFRAME1", "c2sp.org/tlog-proof@v1"
SEGMENT, FRAME, TAIL = map(struct.Struct, (">8sIQQ32s32s", ">8sIQI32s", ">QQ32s"))
SEGMENT_SIZE, FRAME_SIZE, TAIL_SIZE, SIGNATURE_SIZE, SECTOR = 124, 60, 48, 64, 512


class Bad(ValueError):
    """Verification failed; ``seq`` is the first entry that cannot be trusted, if known."""

    def __init__(self, detail: str, seq: int | None = None) -> None:
        super().__init__(detail)
        self.seq = seq


class Torn(Bad):
    """The last frame was never finished, so never acknowledged: cut ``segment`` at ``offset``."""

    segment, offset, size = 0, 0, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a verification found; ``head`` is the hex root at ``entries``."""

    ok: bool
    entries: int
    first_bad_seq: int | None
    detail: str
    head: str


@dataclass(frozen=True, slots=True)
class Frame:
    """One decrypted group commit at ``[offset, end)`` of its segment."""

    offset: int
    end: int
    first_seq: int
    records: list[bytes]


@dataclass(slots=True)
class State:
    """Where a walk stands: everything up to entry ``size`` is verified."""

    segment: int = 0
    offset: int = 0
    size: int = 0
    chain: bytes = bytes(32)
    frontier: list[bytes] = field(default_factory=list)
    time_ns: int = 0
    signature: bytes = b""


def leaf_hash(record: bytes) -> bytes:
    return hashlib.sha256(b"\0" + record).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def push(frontier: list[bytes], size: int, leaf: bytes) -> None:
    """Append a leaf to a tree of ``size`` leaves, in place."""
    while size & 1:
        leaf, size = node_hash(frontier.pop(), leaf), size >> 1
    frontier.append(leaf)


def root_of(frontier: list[bytes]) -> bytes:
    root = frontier[-1] if frontier else hashlib.sha256(b"").digest()
    for left in frontier[-2::-1]:
        root = node_hash(left, root)
    return root


def root_from_path(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """The root that an inclusion path leads to (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < size:
        raise Bad("the index is outside the tree")
    last, root = size - 1, leaf
    for sibling in path:
        if last == 0:
            raise Bad("the path is too long")
        if index & 1 or index == last:
            root = node_hash(sibling, root)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            root = node_hash(root, sibling)
        index, last = index >> 1, last >> 1
    if last:
        raise Bad("the path is too short")
    return root


def checkpoint(origin: str, size: int, root: bytes, time_ns: int, chain: bytes) -> str:
    """The text a head's signature covers."""
    lines = (origin, size, base64.b64encode(root).decode(), f"time {time_ns}")
    return "".join(f"{line}\n" for line in lines) + f"chain {base64.b64encode(chain).decode()}\n"


class PublicKey:
    """A verifier key, from its text ``origin+id+base64``."""

    def __init__(self, text: str) -> None:
        try:
            self.origin, self.key_id, encoded = text.strip().split("+", 2)
            raw = base64.b64decode(encoded, validate=True)
            digest = hashlib.sha256(f"{self.origin}\n".encode() + raw).digest()
            if raw[:1] != b"\1" or digest[:4].hex() != self.key_id:
                raise ValueError("key id")
            self.key = Ed25519PublicKey.from_public_bytes(raw[1:])
        except ValueError as error:
            raise Bad(f"not a public key: {error}") from error

    def check(self, signature: bytes, data: bytes) -> None:
        try:
            self.key.verify(signature, data)
        except InvalidSignature:
            raise Bad("not signed by this key") from None

    def open_note(self, note: str) -> tuple[int, bytes, bytes]:
        """(tree size, root, chain value) of a checkpoint signed by this key; else ``Bad``."""
        text, _, signatures = note.partition("\n\n")
        prefix = f"\u2014 {self.origin} "
        try:
            line = next(s for s in signatures.splitlines() if s.startswith(prefix))
            signature = base64.b64decode(line.removeprefix(prefix), validate=True)
            self.check(signature[4:], f"{text}\n".encode())
            origin, size, root, _time, chain = text.split("\n")
            if origin != self.origin or signature[:4].hex() != self.key_id:
                raise ValueError("origin")
            return int(size), base64.b64decode(root), base64.b64decode(chain.removeprefix("chain "))
        except (StopIteration, ValueError) as error:
            raise Bad("a signed head is damaged or signed by another key") from error


def crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")


def has_header(data: bytes, offset: int) -> bool:
    """Whether an undamaged frame header stands at ``offset``."""
    stored = data[offset + FRAME.size : offset + FRAME_SIZE]
    expected = crc(data[offset : offset + FRAME.size])
    return data[offset : offset + 8] == FRAME_MAGIC and stored == expected


def is_torn(data: bytes, offset: int) -> bool:
    """Whether a bad frame (or segment header) at ``offset`` is one that a lost write can leave."""
    later = data.find(FRAME_MAGIC, offset + 1)
    while later >= 0:
        if has_header(data, later):
            return False
        later = data.find(FRAME_MAGIC, later + 1)
    length = FRAME_SIZE if offset else SEGMENT_SIZE
    if offset and has_header(data, offset):
        length += FRAME.unpack_from(data, offset)[1] + TAIL_SIZE + SIGNATURE_SIZE
    end = offset + length
    starts = range(offset - offset % SECTOR, end, SECTOR)
    return len(data) < end or any(
        not any(data[max(start, offset) : min(start + SECTOR, end)]) for start in starts
    )


class Walker:
    """Reads the segments of a ledger folder in order, checking everything."""

    def __init__(self, folder: Path, ledger_key: bytes, public: PublicKey, state: State) -> None:
        self.folder, self.ledger_key, self.public, self.state = folder, ledger_key, public, state

    def frames(self, end: tuple[int, int] | None = None) -> Iterator[Frame]:
        """Every frame after the state, which moves along; up to ``end`` = (segment, offset).

        Raises ``Bad`` naming the first bad entry, or ``Torn`` for an unfinished last frame.
        """
        numbers = sorted(int(p.name[4:]) for p in self.folder.glob("seg-????????"))
        if end is not None:
            numbers = [n for n in numbers if n <= end[0]]
        state = self.state
        if numbers != list(range(1, len(numbers) + 1)) or len(numbers) < state.segment:
            gap = next((n for n, m in enumerate(numbers, 1) if n != m), len(numbers) + 1)
            if gap > state.segment + 1:  # the entries before the gap can still be checked
                yield from self.frames((gap - 1, sys.maxsize))
            raise Bad(f"segment {gap} is missing", state.size + 1)
        for number in numbers[max(state.segment - 1, 0) :]:
            data = (self.folder / f"seg-{number:08d}").read_bytes()
            stop = min(len(data), end[1]) if end and number == end[0] else len(data)
            if number == state.segment and stop < state.offset:
                raise Bad(f"segment {number} is shorter than it was", state.size + 1)
            try:
                yield from self._segment(number, data[:stop])
            except Bad as error:
                error.seq = state.size + 1
                if number != numbers[-1] or not is_torn(data[:stop], state.offset):
                    raise
                torn = Torn(f"unfinished frame after entry {state.size}", error.seq)
                torn.segment, torn.offset, torn.size = number, state.offset, stop - state.offset
                raise torn from None

    def _segment(self, number: int, data: bytes) -> Iterator[Frame]:
        state = self.state
        if number != state.segment:
            state.offset = 0
        magic, stored, first_seq, _created, salt, chain = (
            SEGMENT.unpack_from(data) if len(data) >= SEGMENT_SIZE else (b"",) * 6
        )
        digest = hashlib.sha256(data[:92]).digest()
        if magic != SEGMENT_MAGIC or digest != data[92:SEGMENT_SIZE] or stored != number:
            raise Bad(f"the header of segment {number} is damaged")
        if number != state.segment:
            if first_seq != state.size + 1 or chain != state.chain:
                raise Bad(f"segment {number} does not continue the one before it")
            state.segment, state.offset = number, SEGMENT_SIZE
        info = b"ledger-segment" + number.to_bytes(4, "big")
        key = AESGCM(HKDF(SHA256(), 32, salt, info).derive(self.ledger_key))
        if state.offset == SEGMENT_SIZE == len(data):
            raise Bad(f"segment {number} is empty")
        while state.offset < len(data):
            yield self._check(data, digest, key)

    def _check(self, data: bytes, digest: bytes, key: AESGCM) -> Frame:
        state, offset = self.state, self.state.offset
        where = f"segment {state.segment}, offset {offset}"
        frame, head, size, time_ns, root, signature = open_frame(data, offset, digest, key, where)
        if frame.first_seq != state.size + 1 or head[24:56] != state.chain:
            raise Bad(f"{where}: the frame does not continue the one before it")
        frontier = list(state.frontier)
        for index, record in enumerate(frame.records, state.size):
            if not record.startswith(b'{"seq":%d,' % (index + 1)):
                raise Bad(f"{where}: a record is out of order")
            push(frontier, index, leaf_hash(record))
        chain = hashlib.sha256(
            state.chain + digest + data[offset : frame.end - SIGNATURE_SIZE]
        ).digest()
        if size != frame.first_seq + len(frame.records) - 1 or root != root_of(frontier):
            raise Bad(f"{where}: the head does not match its entries")
        text = checkpoint(self.public.origin, size, root, time_ns, chain)
        self.public.check(signature, text.encode())
        state.offset, state.size, state.chain, state.frontier = frame.end, size, chain, frontier
        state.time_ns, state.signature = time_ns, signature
        return frame


def open_frame(
    data: bytes, offset: int, digest: bytes, key: AESGCM, where: str, base: int = 0
) -> tuple[Frame, bytes, int, int, bytes, bytes]:
    """Decrypt a frame of a file read from ``base``: (frame, header, size, time, root, signature)."""
    header = data[offset : offset + FRAME_SIZE]
    if not has_header(data, offset):
        raise Bad(f"{where}: the frame's header is damaged")
    _magic, length, first_seq, count, _chain = FRAME.unpack_from(header)
    middle = offset + FRAME_SIZE + length
    end = middle + TAIL_SIZE + SIGNATURE_SIZE
    if end > len(data):
        raise Bad(f"{where}: the frame is cut short")
    sealed = data[offset + FRAME_SIZE : middle]
    try:
        text = key.decrypt((base + offset).to_bytes(12, "big"), sealed, digest + header)
    except InvalidTag:
        raise Bad(f"{where}: the frame was changed or belongs to another ledger") from None
    records = text.split(b"\n")
    if records.pop() != b"" or len(records) != count:
        raise Bad(f"{where}: the frame holds another number of records")
    size, time_ns, root = TAIL.unpack_from(data, middle)
    frame = Frame(offset, end, first_seq, records)
    return frame, header, size, time_ns, root, data[end - SIGNATURE_SIZE : end]


def verify_ledger(
    folder: Path,
    ledger_key: bytes,
    public: PublicKey,
    anchor: str | None,
    end: tuple[int, int] | None = None,
    progress: Callable[[int], None] = lambda size: None,
) -> VerifyReport:
    """Check a whole ledger against its signed heads and an anchor (a checkpoint, or ``None``)."""
    state, note, met = State(), "", False
    try:
        size, root, _ = public.open_note(anchor) if anchor is not None else (0, b"", b"")
        met = size == 0
        try:
            for _frame in Walker(folder, ledger_key, public, state).frames(end):
                progress(state.size)
                if state.size == size and root_of(state.frontier) != root:
                    raise Bad(f"another history than the anchor's at entry {size}", size)
                met = met or state.size == size
        except Torn as torn:
            note = f"; {torn.size} bytes of an unfinished frame follow"
        if not met:
            raise Bad(f"the ledger ends at {state.size}, its anchor at {size}", state.size + 1)
    except Bad as bad:
        seq, text = bad.seq or state.size + 1, str(bad)
        return VerifyReport(ok=False, entries=state.size, first_bad_seq=seq, detail=text, head="")
    head = root_of(state.frontier).hex()
    detail = f"{state.size} entries verified{note}"
    return VerifyReport(ok=True, entries=state.size, first_bad_seq=None, detail=detail, head=head)


def verify_proof(text: str, public: PublicKey) -> tuple[int, bytes]:
    """(sequence number, record) that a proof text proves; else ``Bad``."""
    body, _, note = text.partition("\n\n")
    lines = body.split("\n")
    try:
        if lines[0] != PROOF_MAGIC or lines[1][:6] != "extra " or lines[2][:6] != "index ":
            raise ValueError("not a proof")
        record, index = base64.b64decode(lines[1][6:], validate=True), int(lines[2][6:])
        path = [base64.b64decode(line, validate=True) for line in lines[3:]]
    except (ValueError, IndexError) as error:
        raise Bad("not a proof text") from error
    size, root, _chain = public.open_note(note)
    if root_from_path(leaf_hash(record), index, size, path) != root:
        raise Bad("the record is not in the signed tree", index + 1)
    if not record.startswith(b'{"seq":%d,' % (index + 1)):
        raise Bad("the record is of another entry", index + 1)
    return index + 1, record


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when everything verifies, 1 when something is bad."""
    parser = argparse.ArgumentParser(description="Verify a Model Appliance ledger or proof.")
    parser.add_argument("what", choices=("ledger", "proof"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--ledger-key", type=Path, help="file: 32 bytes in base64")
    parser.add_argument("--public-key", required=True)
    parser.add_argument("--anchor", type=Path, help="a checkpoint kept elsewhere")
    options = parser.parse_args(arguments)
    try:
        public = PublicKey(options.public_key)
        if options.what == "proof":
            seq, record = verify_proof(options.path.read_text(encoding="utf-8"), public)
            sys.stdout.write(f"ok: entry {seq} is in the ledger\n{record.decode()}\n")
            return 0
        if options.ledger_key is None:
            parser.error("--ledger-key is needed to read a ledger")
        folder = options.path / "ledger" if (options.path / "ledger").is_dir() else options.path
        anchor = options.anchor or folder.parent / "anchor"
        key = base64.b64decode(options.ledger_key.read_bytes().strip(), validate=True)
        report = verify_ledger(folder, key, public, anchor.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        seq = getattr(error, "seq", None)
        sys.stdout.write(f"BAD: first bad entry {seq or 'unknown'}: {error}\n")
        return 1
    bad = f"BAD: first bad entry {report.first_bad_seq}: "
    sys.stdout.write(f"{'ok: ' if report.ok else bad}{report.detail}\n")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())

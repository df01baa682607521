"""verify.py alone: every edit by someone with file access is found, with the first bad entry."""

from __future__ import annotations

import ast
import asyncio
import base64
import hashlib
import os
import subprocess
import sys
import zlib

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from storing import ACTOR, SETTINGS, VERIFY, Folder, fill, intent

from appliance import config
from appliance.store import Store, verify
from appliance.store.proofs import Signer, leaf_hash
from appliance.store.seal import hkdf

PER_LIFE = 6


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Three segments of six single-entry frames each."""
    folder = Folder(tmp_path_factory.mktemp("original")).make()

    async def live():
        async with folder.open() as store:
            await fill(store, PER_LIFE)

    for _ in range(3):
        asyncio.run(live())
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return original.copy(tmp_path)


def frames(path):
    """(offset, end) of every frame of a segment."""
    data, offset, found = path.read_bytes(), verify.SEGMENT_SIZE, []
    while offset < len(data):
        assert verify.has_header(data, offset)
        length = verify.FRAME.unpack_from(data, offset)[1]
        end = offset + verify.FRAME_SIZE + length + verify.TAIL_SIZE
        found.append((offset, end))
        offset = end
    return found


def cut(path, start, end):
    data = path.read_bytes()
    path.write_bytes(data[:start] + data[end:])


def edit_record(folder):
    path = folder.segments()[1]
    start, _end = frames(path)[2]
    data = bytearray(path.read_bytes())
    data[start + verify.FRAME_SIZE + 20] ^= 1
    path.write_bytes(data)
    return PER_LIFE + 3


def delete_record(folder):
    path = folder.segments()[0]
    cut(path, *frames(path)[3])
    return 4


def delete_last_record(folder):
    path = folder.segments()[-1]
    cut(path, *frames(path)[-1])
    return 3 * PER_LIFE


def reorder_records(folder):
    path = folder.segments()[0]
    data, (a, b) = path.read_bytes(), frames(path)[1:3]
    path.write_bytes(data[: a[0]] + data[b[0] : b[1]] + data[a[0] : a[1]] + data[b[1] :])
    return 2


def duplicate_record(folder):
    path = folder.segments()[0]
    data, (start, end) = path.read_bytes(), frames(path)[-1]
    path.write_bytes(data + data[start:end])
    return PER_LIFE + 1


def swap_segments(folder):
    a, b, _c = folder.segments()
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    return 1


def remove_middle_segment(folder):
    folder.segments()[1].unlink()
    return PER_LIFE + 1


def remove_middle_segment_and_renumber(folder):
    _a, b, c = folder.segments()
    c.rename(b)
    return PER_LIFE + 1


def remove_last_segment(folder):
    folder.segments()[-1].unlink()
    return 2 * PER_LIFE + 1


def truncate_inside_a_record(folder):
    path = folder.segments()[-1]
    os.truncate(path, frames(path)[-2][0] + 70)
    return 3 * PER_LIFE - 1


def empty_everything(folder):
    for path in folder.segments():
        path.unlink()
    return 1


def rechain(folder, *, seed=None):
    """Re-encrypt and re-chain with the ledger key, all but the signing key known."""
    key = base64.b64decode(folder.ledger_key)
    signer = Signer(seed) if seed else None
    chain, frontier, size = bytes(32), [], 0
    for path in folder.segments():
        data = path.read_bytes()
        number, salt = verify.SEGMENT.unpack_from(data)[1], data[28:60]
        fixed = data[:60] + chain
        digest = hashlib.sha256(fixed).digest()
        aes = AESGCM(hkdf(key, salt, b"ledger-segment" + number.to_bytes(4, "big")))
        old_digest, out = data[92:124], fixed + digest
        for offset, end in frames(path):
            frame = verify.open_frame(data, offset, old_digest, aes)
            records = [r.replace(b"call_2", b"call_X") if size == 2 else r for r in frame.records]
            for record in records:
                verify.push(frontier, size, leaf_hash(record))
                size += 1
            text = b"".join(r + b"\n" for r in records)
            header = verify.FRAME.pack(
                verify.FRAME_MAGIC, len(text) + 16, frame.first_seq, len(records), chain
            )
            header += zlib.crc32(header).to_bytes(4, "big")
            body = header + aes.encrypt(len(out).to_bytes(12, "big"), text, digest + header)
            root = verify.root_of(frontier)
            body += verify.TAIL.pack(size, 1, root, b"")[:-64]
            chain = hashlib.sha256(chain + digest + body).digest()
            if signer is None:
                signature = data[end - 64 : end]
            else:
                signature = signer.sign_head(size, root, 1, chain)
            out += body + signature
        path.write_bytes(out)
    if signer is not None:
        note = signer.note(
            verify.State(size=size, root=root, time_ns=1, chain=chain, signature=signature)
        )
        (folder.path / "anchor").write_text(note)
    return 1


def rechain_with_another_signing_key(folder):
    rechain(folder, seed=b"z" * 32)
    return 1


ATTACKS = [
    edit_record,
    delete_record,
    delete_last_record,
    reorder_records,
    duplicate_record,
    swap_segments,
    remove_middle_segment,
    remove_middle_segment_and_renumber,
    remove_last_segment,
    truncate_inside_a_record,
    empty_everything,
    rechain,
    rechain_with_another_signing_key,
]


def test_the_untouched_ledger_verifies(folder):
    status, text = folder.verify()
    assert (status, text) == (0, f"ok: {3 * PER_LIFE} entries verified\n")


async def test_a_file_that_is_no_segment_changes_nothing(folder):
    (folder.path / "ledger/seg-copy").write_bytes(b"x")
    assert folder.verify()[0] == 0
    async with folder.open() as store:
        assert (await store.verify()).ok


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_an_attack_is_found_and_the_first_bad_entry_named(folder, attack):
    first_bad = attack(folder)
    status, text = folder.verify()
    assert status == 1
    assert text.startswith(f"BAD: first bad entry {first_bad}:")
    (folder.path / "registry.snap").unlink()
    with pytest.raises(Exception, match=r"damaged|anchor|missing"):
        await Store.open(folder.path, folder.root(), SETTINGS)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_a_running_store_finds_the_same(original, tmp_path, attack):
    folder = original.copy(tmp_path)
    async with folder.open() as store:
        first_bad = attack(folder)
        report = await store.verify()
        assert (report.ok, report.first_bad_seq) == (False, first_bad)


def test_an_external_anchor_finds_a_shortened_ledger_with_a_matching_anchor(original, tmp_path):
    folder = original.copy(tmp_path / "new")
    outside = tmp_path / "kept-elsewhere"
    outside.write_bytes((folder.path / "anchor").read_bytes())
    for path in folder.segments()[1:]:
        path.unlink()
    status, text = folder.verify("--anchor", str(outside))
    assert (status, f"entry {PER_LIFE + 1}" in text) == (1, True)


def test_a_proof_verifies_alone(original, tmp_path):
    proof = tmp_path / "entry.proof"

    async def make():
        async with original.copy(tmp_path / "x").open() as store:
            proof.write_text(await store.prove(5))

    asyncio.run(make())
    command = [sys.executable, "-I", str(VERIFY), "proof", str(proof)]
    command += ["--public-key", original.public_key]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split("\n")[0]) == (0, "ok: entry 5 is in the ledger")
    proof.write_text(proof.read_text().replace("index 4", "index 3"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout[:3]) == (1, "BAD")


def test_the_verifier_stands_alone_and_is_short():
    text = VERIFY.read_text()
    statements = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.stmt)]
    uncounted = {
        line
        for node in statements
        if isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = enumerate(text.splitlines(), 1)
    assert len([n for n, line in lines if line.strip() and n not in uncounted]) <= 226
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in statements
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported <= set(sys.stdlib_module_names) | {"cryptography"}


def test_usage_errors_do_not_look_like_success(folder):
    done = subprocess.run(
        [sys.executable, "-I", str(VERIFY), "ledger", str(folder.path), "--public-key", "nonsense"],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    folder.ledger_key = base64.b64encode(b"x" * 32).decode()
    status, text = folder.verify()
    assert (status, "entry 1:" in text) == (1, True)


async def test_progress_is_told_while_verifying(original, tmp_path):
    told = []
    async with original.copy(tmp_path).open() as store:
        await store.ledger.append(intent(), actor=ACTOR)
        await store.verify(lambda done, total: told.append((done, total)))
    total = 3 * PER_LIFE + 1
    assert told[-1] == (total, total)
    assert config.Store().segment_bytes == 64 * 1024 * 1024

"""RFC 6962 trees: hash files, paths, signed heads."""

from __future__ import annotations

import hashlib
import random

import pytest

from appliance.store import verify
from appliance.store.proofs import Signer, Tiles, leaf_hash, proof_text

# The test leaves and roots that certificate transparency implementations share (RFC 6962 trees).
LEAVES = [bytes.fromhex(h) for h in ("", "00", "10", "2021", "3031", "40414243")]
LEAVES += [bytes.fromhex(h) for h in ("5051525354555657", "606162636465666768696a6b6c6d6e6f")]
ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def reference_root(leaves):
    """RFC 6962 section 2.1, by the book."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    left, right = reference_root(leaves[:k]), reference_root(leaves[k:])
    return hashlib.sha256(b"\1" + left + right).digest()


def signed_note(signer, size, root, time_ns, chain):
    signature = signer.sign_head(size, root, time_ns, chain)
    return signer.note(
        verify.State(size=size, root=root, time_ns=time_ns, chain=chain, signature=signature)
    )


def is_consistent(old, new, old_root, new_root, path):
    """RFC 9162 section 2.1.4.2, by the book."""
    if old == new:
        return not path and old_root == new_root
    if old & (old - 1) == 0:
        path = [old_root, *path]
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    first = second = path[0]
    for step in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            first = hashlib.sha256(b"\1" + step + first).digest()
            second = hashlib.sha256(b"\1" + step + second).digest()
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            second = hashlib.sha256(b"\1" + second + step).digest()
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and first == old_root and second == new_root


def test_the_known_roots_come_out():
    frontier: list[bytes] = []
    assert verify.root_of(frontier) == hashlib.sha256(b"").digest()
    for size, leaf in enumerate(LEAVES):
        verify.push(frontier, size, leaf_hash(leaf))
        if size + 1 in ROOTS:
            assert verify.root_of(frontier).hex() == ROOTS[size + 1]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 255, 256, 257, 300])
def test_every_inclusion_path_leads_to_the_root(tmp_path, size):
    leaves = [str(n).encode() for n in range(size)]
    hashes = [leaf_hash(leaf) for leaf in leaves]
    tiles = Tiles(tmp_path / "t")
    tiles.append(hashes)
    root = reference_root(leaves)
    assert tiles.root(size) == root
    for index in range(size):
        path = tiles.inclusion(index, size)
        assert verify.root_from_path(hashes[index], index, size, path) == root
        if path:
            with pytest.raises(verify.Bad):
                verify.root_from_path(hashes[index], index, size, path[:-1])
            wrong = [bytes(32), *path[1:]]
            assert verify.root_from_path(hashes[index], index, size, wrong) != root
        with pytest.raises(verify.Bad):
            verify.root_from_path(hashes[index], index, size, [*path, bytes(32)])


def test_a_large_tree_grown_in_odd_steps_stays_right(tmp_path):
    rng = random.Random(7)
    leaves = [str(n).encode() for n in range(66_100)]
    hashes = [leaf_hash(leaf) for leaf in leaves]
    tiles = Tiles(tmp_path / "t")
    at = 0
    while at < len(hashes):
        step = rng.choice([1, 3, 255, 256, 257, 9000])
        tiles.append(hashes[at : at + step])
        at += step
        if rng.random() < 0.3:
            tiles = Tiles(tmp_path / "t")
    root = reference_root(leaves)
    assert tiles.root(len(leaves)) == root
    for index in rng.sample(range(len(leaves)), 50):
        path = tiles.inclusion(index, len(leaves))
        assert verify.root_from_path(hashes[index], index, len(leaves), path) == root
    tiles.cut(65_600)
    assert tiles.root(65_600) == reference_root(leaves[:65_600])
    tiles.append(hashes[65_600:])
    assert tiles.root(len(leaves)) == root


def test_consistency_between_any_two_sizes(tmp_path):
    leaves = [str(n).encode() for n in range(40)]
    tiles = Tiles(tmp_path / "t")
    tiles.append([leaf_hash(leaf) for leaf in leaves])
    roots = {n: reference_root(leaves[:n]) for n in range(1, 41)}
    for new in range(1, 41):
        for old in range(1, new + 1):
            path = tiles.consistency(old, new)
            assert is_consistent(old, new, roots[old], roots[new], path)
            if path:
                assert not is_consistent(old, new, bytes(32), roots[new], path)


def test_tiles_whose_levels_disagree_start_over(tmp_path):
    tiles = Tiles(tmp_path / "t")
    tiles.append([leaf_hash(b"x")] * 600)
    (tmp_path / "t/1").write_bytes(b"")
    assert Tiles(tmp_path / "t").size == 0


def test_a_signed_head_opens_with_its_key_only():
    signer, other = Signer(b"s" * 32), Signer(b"t" * 32)
    root, chain = b"r" * 32, b"c" * 32
    note = signed_note(signer, 5, root, 77, chain)
    public = verify.PublicKey(signer.public_text)
    assert public.open_note(note) == (5, root)
    with pytest.raises(verify.Bad):
        verify.PublicKey(other.public_text).open_note(note)
    for at in range(len(note)):
        for bit in (1, 128):
            changed = note[:at] + chr(ord(note[at]) ^ bit) + note[at + 1 :]
            try:
                found = public.open_note(changed)
            except verify.Bad:
                continue
            assert found == (5, root)


def test_a_damaged_public_key_is_refused():
    text = Signer(b"s" * 32).public_text
    for bad in ("", "x", text[:-4], text.replace("+", "-"), "a+00000000+" + text.split("+", 2)[2]):
        with pytest.raises(verify.Bad):
            verify.PublicKey(bad)


def test_a_proof_text_proves_its_record_only(tmp_path):
    signer = Signer(b"s" * 32)
    records = [b'{"seq":%d,"x":1}' % n for n in range(1, 6)]
    tiles = Tiles(tmp_path / "t")
    tiles.append([leaf_hash(r) for r in records])
    root = tiles.root(5)
    note = signed_note(signer, 5, root, 1, bytes(32))
    public = verify.PublicKey(signer.public_text)
    text = proof_text(records[2], 2, tiles.inclusion(2, 5), note)
    assert verify.verify_proof(text, public) == (3, records[2])
    for bad in (
        text.replace("index 2", "index 1"),
        text.replace("index 2", "index -1"),
        text.replace("index 2", "index +2"),
        text.replace("index 2", "2"),
        text.replace("extra ", ""),
        text.replace("@v1\n", "@v1\nextra "),
        text.replace("extra ", "extra AAAA"),
        text[:40],
        "",
        text.replace("@v1", "@v2"),
        proof_text(records[3], 2, tiles.inclusion(2, 5), note),
        proof_text(records[2], 2, tiles.inclusion(2, 5)[:-1], note),
    ):
        with pytest.raises(verify.Bad):
            verify.verify_proof(bad, public)


def test_a_proof_has_one_spelling(tmp_path):
    signer = Signer(b"s" * 32)
    records = [b'{"seq":%d,"x":1}' % n for n in range(1, 6)]
    tiles = Tiles(tmp_path / "t")
    tiles.append([leaf_hash(r) for r in records])
    note = signed_note(signer, 5, tiles.root(5), 1, bytes(32))
    public = verify.PublicKey(signer.public_text)
    text = proof_text(records[2], 2, tiles.inclusion(2, 5), note)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    padded = [at for at in range(1, len(text)) if text[at] == "=" and text[at - 1] != "="]
    assert len(padded) >= 4  # the record, the hashes, the head
    for at in padded:  # the last letter before the padding has bits that mean nothing
        other = letters[letters.index(text[at - 1]) ^ 1]
        with pytest.raises(verify.Bad):
            verify.verify_proof(text[: at - 1] + other + text[at:], public)

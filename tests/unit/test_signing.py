"""Signatures over what leaves one appliance for another."""

from __future__ import annotations

from appliance import signing

SEED = bytes(range(32))


def test_a_signature_holds_for_its_key_purpose_and_message_only() -> None:
    public, signature = signing.sign(SEED, "bundle", b"message")
    assert signing.is_signed(public, signature, "bundle", b"message")
    assert not signing.is_signed(public, signature, "other", b"message")
    assert not signing.is_signed(public, signature, "bundle", b"massage")
    other, _ = signing.sign(bytes(32), "bundle", b"message")
    assert not signing.is_signed(other, signature, "bundle", b"message")
    for bad in (b"", b"\0" * 32, signature[:-1], bytes(64)):
        assert not signing.is_signed(public, bad, "bundle", b"message")
        assert not signing.is_signed(bad, signature, "bundle", b"message")


def test_a_key_is_known_by_its_fingerprint() -> None:
    public, _ = signing.sign(SEED, "bundle", b"")
    assert public == signing.public_from_seed(SEED)
    # RFC 8032's key of the seed 000102..1f, hashed.
    assert signing.fingerprint(public).startswith("sha256:")
    assert len(signing.fingerprint(public)) == 71

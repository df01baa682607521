"""Signatures over what leaves one appliance for another.

Owns: Ed25519 (RFC 8032) over a purpose and a message, and the fingerprint of a key.
Never: keeps a key, decides whom to trust, or signs the ledger (``store.proofs`` does).
Read next: ``supply``, which signs runtime bundles.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def sign(seed: bytes, purpose: str, message: bytes) -> tuple[bytes, bytes]:
    """The public key (32 bytes) and the signature (64 bytes) of a message.

    Args:
        seed: 32 secret bytes.
        purpose: what the signature is for; one made for another purpose does not verify.
        message: what is signed.
    """
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return key.public_key().public_bytes_raw(), key.sign(_signed(purpose, message))


def is_signed(public: bytes, signature: bytes, purpose: str, message: bytes) -> bool:
    """Whether a signature by this key is over this message, for this purpose."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _signed(purpose, message))
    except (InvalidSignature, ValueError):
        return False
    return True


def public_from_seed(seed: bytes) -> bytes:
    """The public key (32 bytes) of a secret seed."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def fingerprint(public: bytes) -> str:
    """The name of a public key for people and settings: ``sha256:`` and 64 hex digits."""
    return f"sha256:{hashlib.sha256(public).hexdigest()}"


def _signed(purpose: str, message: bytes) -> bytes:
    return purpose.encode("ascii") + b"\0" + message

"""The appliance's own certificate authority and its server certificate.

Owns: ``data_dir/tls``: ``ca.pem`` (public), ``ca.key`` (sealed under the root key), ``leaf.pem``
(certificate, chain and private key in one file, mode 0600).
Never: opens a socket, or keeps the authority's private key in memory after use.
Read next: ``serve`` (loads ``leaf.pem`` and reloads it after a renewal).

The server's private key is not sealed: a sealed appliance must still answer ``/readyz`` over TLS.
It authenticates the server only; it opens nothing that is stored. Certificate and key share one
file because a rename replaces one file atomically, not two.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance import clock
from appliance.errors import StoreCorrupt

CA_DAYS = 3650
LEAF_DAYS = 90
RENEW_AFTER_DAYS = 60
_AAD = b"appliance/tls/ca.key/1"
_NONCE_BYTES = 12
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """What the certificates in force say; ``fingerprint`` is the authority's SHA-256."""

    fingerprint: str
    not_after: str
    names: tuple[str, ...]
    ca_pem: str


def has_pair(data_dir: Path) -> bool:
    """Whether there is something to serve TLS with."""
    return (data_dir / "tls" / "leaf.pem").exists()


def describe(data_dir: Path) -> Certificates:
    """The certificates on disk.

    Raises:
        StoreCorrupt: they cannot be read.
    """
    try:
        ca = _load(data_dir / "tls" / "ca.pem")
        leaf = _load(data_dir / "tls" / "leaf.pem")
    except (OSError, ValueError) as error:
        raise StoreCorrupt(f"The TLS certificates cannot be read: {error}.") from error
    return Certificates(
        fingerprint="SHA256:" + ca.fingerprint(hashes.SHA256()).hex(":").upper(),
        not_after=leaf.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
        names=_names(leaf),
        ca_pem=ca.public_bytes(serialization.Encoding.PEM).decode(),
    )


def ensure(data_dir: Path, secret: bytes, names: tuple[str, ...]) -> bool:
    """Make what is missing and renew what is due.

    Args:
        data_dir: data folder.
        secret: 32 bytes that seal the authority's private key.
        names: DNS names and addresses the server certificate is for.

    Returns:
        Whether anything was written.

    Raises:
        StoreCorrupt: the authority exists but does not open with the secret.
    Runs: a thread; blocking.   Audit: none.
    """
    folder = data_dir / "tls"
    folder.mkdir(mode=0o700, exist_ok=True)
    if (folder / "leaf.pem").exists() and not _is_due(folder, names):
        return False
    if not (folder / "ca.pem").exists():
        _make_authority(folder, secret)
    _make_leaf(folder, secret, names)
    return True


def context(data_dir: Path) -> ssl.SSLContext:
    """A server context: TLS 1.2 and 1.3, forward secrecy, HTTP/1.1 only, no compression."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(_CIPHERS)
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    made.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_SINGLE_ECDH_USE
    made.set_alpn_protocols(["http/1.1"])
    load(made, data_dir)
    return made


def load(into: ssl.SSLContext, data_dir: Path) -> None:
    """(Re)load the certificate: new connections get it, open ones go on with theirs."""
    into.load_cert_chain(data_dir / "tls" / "leaf.pem")


def _is_due(folder: Path, names: tuple[str, ...]) -> bool:
    try:
        leaf = _load(folder / "leaf.pem")
        _load(folder / "ca.pem")
    except (OSError, ValueError):
        return True
    age = _now() - leaf.not_valid_before_utc
    return age > datetime.timedelta(days=RENEW_AFTER_DAYS) or _names(leaf) != _sorted(names)


def _make_authority(folder: Path, secret: bytes) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"Model Appliance CA {os.urandom(4).hex()}")]
    )
    public = key.public_key()
    certificate = (
        _builder(name, name, public, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    nonce = os.urandom(_NONCE_BYTES)
    sealed = nonce + AESGCM(secret).encrypt(nonce, _key_bytes(key), _AAD)
    _replace(folder / "ca.key", sealed)
    _replace(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))


def _make_leaf(folder: Path, secret: bytes, names: tuple[str, ...]) -> None:
    authority, authority_key = _open_authority(folder, secret)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    public = key.public_key()
    certificate = (
        _builder(authority.subject, subject, public, LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    _replace(
        folder / "leaf.pem",
        certificate.public_bytes(pem) + authority.public_bytes(pem) + _key_bytes(key),
    )


def _open_authority(
    folder: Path, secret: bytes
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        sealed = (folder / "ca.key").read_bytes()
        plain = AESGCM(secret).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _AAD)
        key = serialization.load_pem_private_key(plain, password=None)
        certificate = _load(folder / "ca.pem")
    except (OSError, ValueError, InvalidTag) as error:
        raise StoreCorrupt(
            "The certificate authority's key does not open.",
            hint=f"Restore {folder} from a backup, or remove it to start a new authority.",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StoreCorrupt("The certificate authority's key is of another kind.")
    return certificate, key


def _builder(
    issuer: x509.Name, subject: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    start = _now() - datetime.timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
    )


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _general_names(names: tuple[str, ...]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in _sorted(names):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    dns = extension.get_values_for_type(x509.DNSName)
    addresses = extension.get_values_for_type(x509.IPAddress)
    return _sorted((*dns, *(str(address) for address in addresses)))


def _sorted(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _now() -> datetime.datetime:
    return datetime.datetime.fromtimestamp(clock.now_ns() // 1_000_000_000, datetime.UTC)


def _replace(path: Path, data: bytes) -> None:
    """Put a file in place whole and durable, readable by its owner only."""
    partial = path.with_suffix(path.suffix + ".new")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

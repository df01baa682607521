"""The appliance's own authority: what it makes, seals, renews and refuses."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.errors import StoreCorrupt
from appliance.serve import certificates

SECRET = b"s" * 32
NAMES = ("localhost", "127.0.0.1", "::1", "model.example")


def leaf_of(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "tls" / "leaf.pem").read_bytes())


def test_a_pair_is_made_once(tmp_path: Path) -> None:
    assert not certificates.has_pair(tmp_path)
    assert certificates.ensure(tmp_path, SECRET, NAMES)
    assert certificates.has_pair(tmp_path)
    before = leaf_of(tmp_path)
    assert not certificates.ensure(tmp_path, SECRET, NAMES)
    assert leaf_of(tmp_path) == before


def test_the_certificates_say_what_they_should(tmp_path: Path) -> None:
    certificates.ensure(tmp_path, SECRET, NAMES)
    leaf = leaf_of(tmp_path)
    ca = x509.load_pem_x509_certificate((tmp_path / "tls" / "ca.pem").read_bytes())
    leaf.verify_directly_issued_by(ca)
    for certificate in (leaf, ca):
        assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == datetime.timedelta(days=90)
    assert ca.not_valid_after_utc - ca.not_valid_before_utc == datetime.timedelta(days=3650)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    found = certificates.describe(tmp_path)
    assert set(found.names) == set(NAMES)
    assert found.fingerprint.startswith("SHA256:")


def test_files_are_private_and_the_authoritys_key_is_sealed(tmp_path: Path) -> None:
    certificates.ensure(tmp_path, SECRET, NAMES)
    folder = tmp_path / "tls"
    assert folder.stat().st_mode & 0o777 == 0o700
    for file in folder.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE KEY" not in (folder / "ca.key").read_bytes()


def test_other_names_or_age_renew_under_the_same_authority(tmp_path: Path) -> None:
    certificates.ensure(tmp_path, SECRET, NAMES)
    fingerprint = certificates.describe(tmp_path).fingerprint
    assert certificates.ensure(tmp_path, SECRET, ("other.example",))
    found = certificates.describe(tmp_path)
    assert (found.names, found.fingerprint) == (("other.example",), fingerprint)


def test_another_secret_cannot_renew(tmp_path: Path) -> None:
    certificates.ensure(tmp_path, SECRET, NAMES)
    with pytest.raises(StoreCorrupt):
        certificates.ensure(tmp_path, b"x" * 32, ("other.example",))
    assert set(certificates.describe(tmp_path).names) == set(NAMES)


def test_a_damaged_leaf_is_made_again(tmp_path: Path) -> None:
    certificates.ensure(tmp_path, SECRET, NAMES)
    (tmp_path / "tls" / "leaf.pem").write_bytes(b"nonsense")
    with pytest.raises(StoreCorrupt):
        certificates.describe(tmp_path)
    assert certificates.ensure(tmp_path, SECRET, NAMES)
    certificates.context(tmp_path)


def test_the_context_takes_no_old_protocol(tmp_path: Path) -> None:
    certificates.ensure(tmp_path, SECRET, NAMES)
    made = certificates.context(tmp_path)
    assert made.minimum_version == ssl.TLSVersion.TLSv1_2
    assert all("ECDHE" in c["name"] or c["name"].startswith("TLS_") for c in made.get_ciphers())

"""Certificates for the libvirt face: a small authority of one's own, where there is no larger one.

Files have the names that libvirt gives them (`cacert.pem`, `servercert.pem`, `clientcert.pem` …), so a
client's directory is what `?pkipath=` of a URI names.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nicagent.errors import Kind, NicagentError

_DAY = datetime.timedelta(days=1)
_AUTHORITY_DAYS, _ISSUED_DAYS = 3650, 730
CA, CA_KEY = "cacert.pem", "cakey.pem"


def make_authority(directory: Path) -> None:
    """An authority in `directory`, unless there is one."""
    if (directory / CA).exists():
        return
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("nicagent libvirt CA")
    certificate = (
        _builder(name, name, key, _AUTHORITY_DAYS)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(directory, CA_KEY, _key_pem(key), private=True)
    _write(directory, CA, certificate.public_bytes(serialization.Encoding.PEM))


def issue_server(directory: Path, names: Sequence[str], certificate: Path, key: Path) -> None:
    """A certificate for an agent that clients reach under `names` (DNS names, addresses)."""
    alternatives: list[x509.GeneralName] = []
    for name in names:
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            alternatives.append(x509.DNSName(name))
    _issue(directory, names[0], ExtendedKeyUsageOID.SERVER_AUTH, certificate, key, alternatives)


def issue_client(directory: Path, name: str, to: Path) -> None:
    """A certificate for the client `CN=name`, with its key and the authority's certificate, in `to`."""
    _issue(directory, name, ExtendedKeyUsageOID.CLIENT_AUTH, to / "clientcert.pem", to / "clientkey.pem", [])
    _write(to, CA, (directory / CA).read_bytes())


def _issue(
    directory: Path,
    name: str,
    use: x509.ObjectIdentifier,
    certificate: Path,
    key: Path,
    alternatives: list[x509.GeneralName],
) -> None:
    authority, signing = _authority(directory)
    own = ec.generate_private_key(ec.SECP256R1())
    try:
        builder = _builder(authority.subject, _name(name), own, _ISSUED_DAYS)
    except ValueError as bad:
        raise NicagentError(
            Kind.INVALID, f"{name!r} cannot be in a certificate: {bad}", "choose another"
        ) from None
    # Strict verifiers, such as Python's from 3.13 on, want it known whose key signed (RFC 5280, 4.2.1.1).
    signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    builder = (
        builder.add_extension(signed_by, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    issued = builder.sign(signing, hashes.SHA256())
    _write(key.parent, key.name, _key_pem(own), private=True)
    _write(certificate.parent, certificate.name, issued.public_bytes(serialization.Encoding.PEM))


def _authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate((directory / CA).read_bytes())
        key = serialization.load_pem_private_key((directory / CA_KEY).read_bytes(), None)
    except (OSError, ValueError, TypeError):
        raise NicagentError(
            Kind.INVALID,
            f"there is no authority of ours in {directory}",
            "run `nicagent libvirt certs NAME` first; another authority's certificates are put there by hand",
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise NicagentError(
            Kind.INVALID, f"the authority in {directory} is not ours", "issue with its own tools"
        )
    return certificate, key


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder(
        issuer, subject, key.public_key(), x509.random_serial_number(), now - _DAY, now + days * _DAY
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    """libvirt's clients want key encipherment even of keys that cannot."""
    return x509.KeyUsage(
        digital_signature=not authority, key_encipherment=not authority, key_cert_sign=authority,
        crl_sign=authority, content_commitment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write(directory: Path, name: str, content: bytes, *, private: bool = False) -> None:
    """A key is never readable by others, not even while it is written."""
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        partial = directory / f".{name}.new"
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o600 if private else 0o644)
        partial.replace(directory / name)
    except OSError as failed:
        raise NicagentError(
            Kind.UNAVAILABLE,
            f"cannot write {directory / name}: {os.strerror(failed.errno or 0)}",
            "run it as the agent's user, or choose another directory",
        ) from None

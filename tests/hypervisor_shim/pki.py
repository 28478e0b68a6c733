"""A certificate authority for tests, and client directories as libvirt's `pkipath` wants them."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
_KINDS = {
    "C": NameOID.COUNTRY_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "CN": NameOID.COMMON_NAME,
}


@dataclass(frozen=True)
class Issued:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def pem(self) -> tuple[bytes, bytes]:
        form = serialization.PrivateFormat.PKCS8
        key = self.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        return self.certificate.public_bytes(serialization.Encoding.PEM), key


class Authority:
    def __init__(self, name: str = "test CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def issue(self, *name: tuple[str, str], client: bool, until: datetime.datetime = NOW + DAY) -> Issued:
        """A certificate of 127.0.0.1 whose name has these parts, such as ("CN", "nova")."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(_KINDS[kind], value) for kind, value in name])
        use = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            self._builder(subject, key, until)
            .add_extension(signed_by, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.SubjectAlternativeName([] if client else [address]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Issued(certificate, key)

    def revoke(self, *revoked: Issued) -> bytes:
        """A list of revoked certificates, PEM."""
        builder = x509.CertificateRevocationListBuilder(self._name, NOW - DAY, NOW + DAY)
        for issued in revoked:
            entry = x509.RevokedCertificateBuilder(issued.certificate.serial_number, NOW - DAY).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, until: datetime.datetime = NOW + DAY
    ) -> x509.CertificateBuilder:
        return x509.CertificateBuilder(
            self._name, subject, key.public_key(), x509.random_serial_number(), NOW - 2 * DAY, until
        )


def _usage(*, certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates, content_commitment=False, key_encipherment=not certificates,
        data_encipherment=False, key_agreement=False, key_cert_sign=certificates, crl_sign=certificates,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def client_directory(path: Path, ca: Authority, issued: Issued | None) -> Path:
    """What `?pkipath=` names: the CA's certificate, and the client's with its key, if it has one."""
    path.mkdir(exist_ok=True)
    (path / "cacert.pem").write_bytes(ca.pem())
    if issued is not None:
        certificate, key = issued.pem()
        (path / "clientcert.pem").write_bytes(certificate)
        (path / "clientkey.pem").write_bytes(key)
    return path


def server_files(path: Path, ca: Authority, issued: Issued) -> tuple[Path, Path, Path]:
    """The CA, the certificate and the key as files in `path`."""
    certificate, key = issued.pem()
    files = path / "cacert.pem", path / "servercert.pem", path / "serverkey.pem"
    for file, content in zip(files, (ca.pem(), certificate, key), strict=True):
        file.write_bytes(content)
    return files

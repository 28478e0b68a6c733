"""TLS as libvirt has it: both sides show an X.509 certificate; the client's name in it is its identity."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

log = logging.getLogger(__name__)

#: What a server says once it accepts the client's certificate: a byte inside the encrypted stream.
CONFIRMED = b"\1"

_SHORT = {
    "countryName": "C",
    "stateOrProvinceName": "ST",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "commonName": "CN",
    "domainComponent": "DC",
    "userId": "UID",
    "emailAddress": "EMAIL",
    "serialNumber": "serialNumber",
}


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the CAs whose clients are let in, the server's certificate and key, and, optional, the list
    of revoked certificates. The key has no passphrase."""

    ca: Path
    certificate: Path
    key: Path
    crl: Path | None = None

    def marks(self) -> tuple[tuple[int, int], ...]:
        """Differs once one of the files was replaced."""
        used = [self.ca, self.certificate, self.key, *([self.crl] if self.crl else [])]
        return tuple((facts.st_mtime_ns, facts.st_ino) for facts in (path.stat() for path in used))


class Tls:
    """The certificates of a listener, and which of its clients may come in.

    `allowed` are shell patterns of distinguished names; None: whoever has a certificate of the CA. New files
    hold for the next client; while they do not fit together, those before them go on.
    """

    def __init__(self, files: TlsFiles, allowed: Sequence[str] | None = None) -> None:
        """OSError, ssl.SSLError: a file cannot be read or is not what it should be."""
        self._files = files
        self._allowed = allowed
        self._marks = files.marks()
        self._context = _context(files)

    def context(self) -> ssl.SSLContext:
        """For the next client."""
        try:
            marks = self._files.marks()
            if marks != self._marks:
                self._marks = marks
                self._context = _context(self._files)
                log.info("TLS certificates were read again")
        except OSError as failed:  # ssl.SSLError is one
            log.error("new TLS certificates cannot be used, the old ones go on: %s", failed)
        return self._context

    def allows(self, name: str) -> bool:
        return self._allowed is None or any(fnmatchcase(name, pattern) for pattern in self._allowed)


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0  # libvirt 9.0 takes TLS 1.3's tickets for the confirmation it waits for
    context.load_cert_chain(files.certificate, files.key, password=_no_passphrase)
    context.load_verify_locations(files.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    if files.crl is not None:
        context.load_verify_locations(files.crl)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    return context


def _no_passphrase() -> str:
    raise ssl.SSLError("the key has a passphrase; store it without one, readable by the server alone")


def distinguished_name(connection: ssl.SSLObject) -> str:
    """The client's name as libvirt writes it: `C=GB,O=Cloud,CN=nova`, in the certificate's own order, special
    characters escaped as in RFC 4514."""
    certificate = connection.getpeercert() or {}
    subject = cast("tuple[tuple[tuple[str, str], ...], ...]", certificate.get("subject", ()))
    parts = []
    for relative in subject:
        parts.append("+".join(f"{_SHORT.get(kind, kind)}={_escaped(value)}" for kind, value in relative))
    return ",".join(parts)


def _escaped(value: str) -> str:
    escaped = "".join(f"\\{sign}" if sign in ',+"\\<>;=' else sign for sign in value)
    if escaped[:1] in ("#", " "):
        escaped = "\\" + escaped
    if escaped.endswith(" ") and len(value) > 1:
        escaped = escaped[:-1] + "\\ "
    return "".join(sign if sign.isprintable() else f"\\{ord(sign):02X}" for sign in escaped)

"""Names by which a host's initiator knows its disks: pure functions, no I/O.

Everything is derived with version 5 UUIDs (RFC 4122 §4.3) from what the controller already keeps, so deriving
twice gives the same names. The controller stores the result all the same: a later change of this module must
not rename a disk that an OS has in its fstab.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace

from nicagent.errors import Kind, NicagentError
from nicagent.model import Disk, Export, ExportIdentity, Initiator

NAMESPACE = uuid.UUID("4b6fbd6c-3e0e-5f0a-9d5b-7f6f0a6c2f11")  # ours alone; never changes
NQN_PREFIX = "nqn.2014-08.org.nvmexpress:uuid:"  # NVM Express 1.4 §7.9, the form with a UUID
SERIAL_LIMIT = 20  # Identify Controller SN (NVM Express 1.4 §5.15.2.2); virtio 1.2 §5.2.6 VIRTIO_BLK_ID_BYTES
NSID_LIMIT = 1024  # namespaces of one subsystem; far above the disks of any domain


def initiator(host: str, mac: str | None = None) -> Initiator:
    """The one initiator of a host: its NIC's MAC where it has one (unique everywhere), else its name.

    NQN and identifier carry the same UUID, as NVMe hosts refuse a pair that does not stay together.
    """
    ident = str(uuid.uuid5(NAMESPACE, f"initiator/{mac or host}"))
    return Initiator(NQN_PREFIX + ident, ident)


def exports(
    domain: str, host: str, disks: Sequence[Disk], known: Mapping[str, ExportIdentity] | None = None
) -> tuple[Export, ...]:
    """Give every disk of a domain (a UUID) its identity on this host.

    `known` holds identities stored before, by target; they are kept as they are. Raises INVALID for a serial
    that cannot be shown to a host, or for two disks with one target.
    """
    kept = dict(known or {})
    if len({disk.target for disk in disks}) < len(disks):
        raise NicagentError(
            Kind.INVALID,
            f"domain {domain} has two disks with the same target",
            "give each <target dev=…> its own name",
        )
    taken = {identity.nsid for target, identity in kept.items() if any(d.target == target for d in disks)}
    result = []
    for disk in disks:
        identity = kept.get(disk.target)
        if identity is None:
            nsid = _free_nsid(disk.target, taken)
            identity = _identity(domain, host, disk, nsid)
            taken.add(nsid)
        elif disk.serial is not None:
            # Names are kept for ever; a serial is the client's own word, and it may change its mind.
            identity = replace(identity, serial=_serial(disk, uuid.UUID(identity.uuid)))
        result.append(Export(disk, identity))
    return tuple(result)


def _identity(domain: str, host: str, disk: Disk, nsid: int) -> ExportIdentity:
    # Of the domain and the target, not of the host: a domain that moves keeps its disks' names.
    own = uuid.uuid5(NAMESPACE, f"disk/{domain}/{disk.target}")
    return ExportIdentity(
        uuid=str(own),
        nqn=subsystem_nqn(domain, host),
        nsid=nsid,
        nguid=(own.bytes[8:] + _eui64(own)).hex(),
        eui64=_eui64(own).hex(),
        serial=_serial(disk, own),
    )


def subsystem_nqn(domain: str, host: str) -> str:
    """NQN of the subsystem that holds a domain's namespaces on one host.

    The domain is part of it, so that a host's next tenant never meets an initiator's memory of the last one.
    """
    return f"{NQN_PREFIX}{uuid.uuid5(NAMESPACE, f'subsystem/{host}/{domain}')}"


def _eui64(own: uuid.UUID) -> bytes:
    """An EUI-64 without an OUI of ours: locally administered, individual (IEEE 802c; U/L set, I/G clear).

    NVM Express 1.4 §7.10: it is also bytes 8 to 15 of the NGUID (OUI and extension identifier), behind the
    vendor-specific extension.
    """
    octets = bytearray(own.bytes[:8])
    octets[0] = octets[0] & 0xFC | 0x02
    return bytes(octets)


def _serial(disk: Disk, own: uuid.UUID) -> str:
    """What a device can show of it. Clouds write a volume's whole UUID and look for its beginning in the
    guest, as QEMU's virtio-blk cuts it there (/dev/disk/by-id/virtio-6ca404f3-d844-4169-b)."""
    if disk.serial is None:
        return own.hex[:SERIAL_LIMIT]
    if not (disk.serial.isascii() and disk.serial.isprintable() and disk.serial):
        raise NicagentError(
            Kind.INVALID,
            f"disk {disk.target}: its serial has other than printable ASCII characters",
            "leave them out of <serial>",
        )
    return disk.serial[:SERIAL_LIMIT]


def _free_nsid(target: str, taken: set[int]) -> int:
    """vda, sda, hda → 1, vdb → 2 …; nvme0n2 → 2; anything else, or one that is taken: the lowest free."""
    wish = 0
    if match := re.fullmatch(r"[a-z]+\d+n(\d{1,4})", target):
        wish = int(match[1])
    elif match := re.fullmatch(r"(?:[shv]|xv)d([a-z]{1,2})", target):
        for letter in match[1]:
            wish = wish * 26 + ord(letter) - ord("a") + 1
    if 1 <= wish <= NSID_LIMIT and wish not in taken:
        return wish
    free = next((n for n in range(1, NSID_LIMIT + 1) if n not in taken), None)
    if free is None:
        raise NicagentError(
            Kind.INVALID, f"more than {NSID_LIMIT} disks in one domain", "give the domain fewer disks"
        )
    return free

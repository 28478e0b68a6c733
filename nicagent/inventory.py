"""What a host is made of, as far as the agent knows: declared in the config, or told by the host's stage-1.

The config wins, field by field. What neither of them says is not known: an empty text, None. A report comes
from the host's end of the provision link, where a tenant's system may sit: it is bounded, checked against the
same tables as the config, and believed for nothing but what is shown to libvirt clients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from nicagent.errors import Kind, NicagentError
from nicagent.strict import Strict

REPORT_MAX = 256 * 1024  # bytes of JSON

# No control characters: these texts end in XML documents and on terminals.
Text = Annotated[str, Meta(max_length=128, pattern="^[ -~\u00a0-\ud7ff\ue000-\ufffd]*$")]
Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.+:-]{0,64}$")]
Address = Annotated[str, Meta(pattern=r"^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$")]
OptionalAddress = Annotated[str, Meta(pattern=r"^([0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7])?$")]
Id = Annotated[str, Meta(pattern="^0x[0-9a-f]{4}$")]
ClassCode = Annotated[str, Meta(pattern="^(0x[0-9a-f]{6})?$")]
Uuid = Annotated[str, Meta(pattern="^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?$")]
Mac = Annotated[str, Meta(pattern="^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")]
Count = Annotated[int, Meta(ge=0, le=65_535)]
Size = Annotated[int, Meta(ge=0, le=1 << 62)]


class System(Strict, frozen=True, kw_only=True):
    """The machine as its maker calls it (SMBIOS type 1)."""

    manufacturer: Text = ""
    product: Text = ""
    version: Text = ""
    serial: Text = ""
    uuid: Uuid = ""
    sku: Text = ""
    family: Text = ""


class Firmware(Strict, frozen=True, kw_only=True):
    """What it starts with (SMBIOS type 0)."""

    kind: Literal["", "bios", "efi"] = ""
    vendor: Text = ""
    version: Text = ""
    date: Text = ""
    release: Text = ""


class Board(Strict, frozen=True, kw_only=True):
    """The main board (SMBIOS type 2)."""

    manufacturer: Text = ""
    product: Text = ""
    version: Text = ""
    serial: Text = ""


class Enclosure(Strict, frozen=True, kw_only=True):
    """What it is built into (SMBIOS type 3)."""

    manufacturer: Text = ""
    version: Text = ""
    serial: Text = ""
    asset: Text = ""


class Cpu(Strict, frozen=True, kw_only=True):
    """Its processors, all alike. sockets × cores × threads are the host's `cpus`."""

    name: Text = ""  # as the processor calls itself
    vendor: Word = ""  # as libvirt calls it: Intel, AMD
    mhz: Count | None = None
    sockets: Count | None = None
    cores: Count | None = None  # per socket
    threads: Count | None = None  # per core
    # By libvirt's names, beyond what the host's `cpu_model` implies.
    features: Annotated[tuple[Word, ...], Meta(max_length=512)] = ()


class MdevType(Strict, frozen=True, kw_only=True):
    """A slice that a GPU can be cut into: a vGPU profile, a MIG instance."""

    id: Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]{1,64}$")]
    name: Text = ""
    api: Word = "vfio-pci"
    available: Count = 0  # how many more can be made


class PciDevice(Strict, frozen=True, kw_only=True):
    """A function on the PCI bus."""

    address: Address
    vendor_id: Id
    product_id: Id
    vendor: Text = ""
    product: Text = ""
    class_code: ClassCode = ""
    parent: OptionalAddress = ""  # the bridge that it sits behind
    driver: Word = ""  # a hint: what drives it in the host's system
    numa_node: Count | None = None
    sriov_total: Count | None = None  # virtual functions that it could have
    functions: Annotated[tuple[Address, ...], Meta(max_length=256)] = ()  # that it has
    physical_function: OptionalAddress = ""  # of a virtual function
    mdev_types: Annotated[tuple[MdevType, ...], Meta(max_length=64)] = ()


class NicDevice(Strict, frozen=True, kw_only=True):
    """A network interface."""

    mac: Mac
    name: Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]{0,15}$")] = ""  # in the host's system
    pci: OptionalAddress = ""
    speed_mbit: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None


class DiskDevice(Strict, frozen=True, kw_only=True):
    """A disk of the host's own."""

    name: Annotated[str, Meta(pattern="^[a-z][a-z0-9_-]{0,31}$")]
    pci: OptionalAddress = ""
    bus: Word = ""  # nvme, sata, scsi
    model: Text = ""
    vendor: Text = ""
    serial: Text = ""
    size_bytes: Size | None = None
    block_bytes: Annotated[int, Meta(ge=512, le=65_536)] | None = None


class Inventory(Strict, frozen=True, kw_only=True):
    """All that is known of one host."""

    system: System = System()
    firmware: Firmware = Firmware()
    board: Board = Board()
    enclosure: Enclosure = Enclosure()
    cpu: Cpu = Cpu()
    pci: Annotated[tuple[PciDevice, ...], Meta(max_length=1024)] = ()
    nics: Annotated[tuple[NicDevice, ...], Meta(max_length=64)] = ()
    disks: Annotated[tuple[DiskDevice, ...], Meta(max_length=256)] = ()


S = TypeVar("S", bound=Strict)


def contradictions(inventory: Inventory) -> Iterable[tuple[str, str]]:
    """Key and what is wrong with it, for what the tables by themselves cannot tell."""
    for key, names in (
        ("pci", [each.address for each in inventory.pci]),
        ("nics", [each.mac for each in inventory.nics]),
        ("disks", [each.name for each in inventory.disks]),
    ):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            yield key, f"{twice[0]} is there twice"
    circle = _circle({each.address: each.parent for each in inventory.pci})
    if circle is not None:
        yield "pci", f"{circle} sits behind itself"


def _circle(parents: Mapping[str, str]) -> str | None:
    """An address that is above itself, if there is one."""
    sound: set[str] = set()
    for start in parents:
        above: set[str] = set()
        at = start
        while at in parents and at not in sound:
            if at in above:
                return at
            above.add(at)
            at = parents[at]
        sound |= above
    return None


def merged(declared: Inventory, reported: Inventory) -> Inventory:
    """Field by field what was declared, else what was told; devices are matched by address, MAC or name."""
    inventory = Inventory(
        system=_over(declared.system, reported.system),
        firmware=_over(declared.firmware, reported.firmware),
        board=_over(declared.board, reported.board),
        enclosure=_over(declared.enclosure, reported.enclosure),
        cpu=_over(declared.cpu, reported.cpu),
        pci=_all_over(declared.pci, reported.pci, lambda each: each.address),
        nics=_all_over(declared.nics, reported.nics, lambda each: each.mac),
        disks=_all_over(declared.disks, reported.disks, lambda each: each.name),
    )
    # Either by itself was sound; together a bridge may have come to sit behind itself.
    return declared if any(contradictions(inventory)) else inventory


def _over(declared: S, reported: S) -> S:
    said = {
        field.name: value
        for field in msgspec.structs.fields(type(declared))
        if (value := getattr(declared, field.name)) != field.default
    }
    return msgspec.structs.replace(reported, **said)


def _all_over(declared: tuple[S, ...], reported: tuple[S, ...], key: Callable[[S], str]) -> tuple[S, ...]:
    found = {key(each): each for each in reported}
    for each in declared:
        known = found.get(key(each))
        found[key(each)] = each if known is None else _over(each, known)
    return tuple(found[name] for name in sorted(found))


def parse_report(body: bytes) -> Inventory:
    """Check a report. Raises INVALID; the sentence quotes nothing of it but its keys."""
    if len(body) > REPORT_MAX:
        raise NicagentError(Kind.INVALID, f"an inventory of {len(body)} bytes is larger than {REPORT_MAX}")
    try:
        told = msgspec.json.decode(body, type=Inventory)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as wrong:
        raise NicagentError(Kind.INVALID, f"the inventory cannot be read: {str(wrong)[:200]}") from None
    for key, what in contradictions(told):
        raise NicagentError(Kind.INVALID, f"the inventory contradicts itself: {key}: {what}")
    return told

"""The shapes of a guest agent's answers (QEMU, qga/qapi-schema.json), as far as they are used here.

They come from the tenant's machine. What is not of these shapes is no answer; numbers fit what they are
passed on as, lists and names are as long as anybody needs and no longer.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Whole = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Small = Annotated[int, Meta(ge=0, le=1 << 30)]
Name = Annotated[str, Meta(max_length=4096)]
MANY = 1024


class Shape(msgspec.Struct, frozen=True, rename="kebab"):
    """Keys that we do not know are passed over: agents of later versions tell more."""


class Hostname(Shape, frozen=True, rename="kebab"):
    host_name: Name


class Address(Shape, frozen=True, rename="kebab"):
    ip_address: Name
    ip_address_type: Name
    prefix: Annotated[int, Meta(ge=0, le=128)]


class Interface(Shape, frozen=True, rename="kebab"):
    name: Name
    hardware_address: Name | None = None
    ip_addresses: Annotated[list[Address], Meta(max_length=MANY)] = []


class DiskAddress(Shape, frozen=True, rename="kebab"):
    bus_type: Name = ""
    serial: Name | None = None
    dev: Name | None = None


class FileSystem(Shape, frozen=True, rename="kebab"):
    name: Name
    mountpoint: Name
    type: Name
    used_bytes: Number | None = None
    total_bytes: Number | None = None
    disk: Annotated[list[DiskAddress], Meta(max_length=MANY)] = []


class Disk(Shape, frozen=True, rename="kebab"):
    name: Name
    partition: bool
    alias: Name | None = None
    address: DiskAddress | None = None


class DiskFigures(Shape, frozen=True, rename="kebab"):
    read_sectors: Number | None = None
    read_ios: Number | None = None
    read_ticks: Number | None = None
    write_sectors: Number | None = None
    write_ios: Number | None = None
    write_ticks: Number | None = None
    flush_ios: Number | None = None
    flush_ticks: Number | None = None


class DiskStats(Shape, frozen=True, rename="kebab"):
    name: Name
    stats: DiskFigures


class CpuStats(Shape, frozen=True, rename="kebab"):
    """Milliseconds."""

    cpu: Small
    user: Number
    nice: Number
    system: Number
    idle: Number
    iowait: Number = 0
    irq: Number = 0
    softirq: Number = 0
    steal: Number = 0


class OsInfo(Shape, frozen=True, rename="kebab"):
    id: Name | None = None
    name: Name | None = None
    pretty_name: Name | None = None
    version: Name | None = None
    version_id: Name | None = None
    machine: Name | None = None
    variant: Name | None = None
    variant_id: Name | None = None
    kernel_release: Name | None = None
    kernel_version: Name | None = None


class User(Shape, frozen=True, rename="kebab"):
    user: Name
    login_time: Annotated[float, Meta(ge=0, le=1e12)]
    domain: Name | None = None


class Timezone(Shape, frozen=True, rename="kebab"):
    offset: Annotated[int, Meta(ge=-86_400, le=86_400)]
    zone: Name | None = None


class Vcpu(Shape, frozen=True, rename="kebab"):
    logical_id: Small
    online: bool
    can_offline: bool | None = None


class Keys(Shape, frozen=True, rename="kebab"):
    keys: Annotated[list[Name], Meta(max_length=MANY)]


Interfaces = Annotated[list[Interface], Meta(max_length=MANY)]
FileSystems = Annotated[list[FileSystem], Meta(max_length=MANY)]
Disks = Annotated[list[Disk], Meta(max_length=MANY)]
DisksStats = Annotated[list[DiskStats], Meta(max_length=MANY)]
CpusStats = Annotated[list[CpuStats], Meta(max_length=16_384)]
Users = Annotated[list[User], Meta(max_length=MANY)]
Vcpus = Annotated[list[Vcpu], Meta(max_length=16_384)]

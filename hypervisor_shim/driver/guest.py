"""What the operating system inside a domain is asked: by its agent, or known from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.errors import Code, LibvirtError, error

Param = tuple[str, int, Any]


class AddressSource(IntEnum):
    """Who is asked for addresses (libvirt: virDomainInterfaceAddressesSource)."""

    LEASE = 0
    AGENT = 1
    ARP = 2


@dataclass(frozen=True, slots=True)
class Address:
    """`type`: 0 IPv4, 1 IPv6."""

    type: int
    address: str
    prefix: int


@dataclass(frozen=True, slots=True)
class GuestInterface:
    name: str
    mac: str | None
    addresses: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A mounted one. `devices`: targets of the disks that it lies on."""

    mountpoint: str
    name: str
    type: str
    devices: tuple[str, ...] = ()


class InfoTypes(IntFlag):
    """What virDomainGetGuestInfo tells."""

    USERS = 1
    OS = 2
    TIMEZONE = 4
    HOSTNAME = 8
    FILESYSTEM = 16
    DISKS = 32
    INTERFACES = 64


class KeysFlags(IntFlag):
    APPEND = 1
    REMOVE = 2


class Guest:
    """May: all of it (default: code 3). The domain runs: the library has looked.

    Errors: AGENT_UNRESPONSIVE (86) when there is a channel and nobody answers; OPERATION_UNSUPPORTED or
    CONFIG_UNSUPPORTED where there is none.
    """

    async def hostname(self, uuid: bytes, source: AddressSource) -> str:
        raise _unsupported("virDomainGetHostname")

    async def time(self, uuid: bytes) -> tuple[int, int]:
        """Seconds since 1970 and nanoseconds of the guest's clock."""
        raise _unsupported("virDomainGetTime")

    async def set_time(self, caller: Caller, uuid: bytes, time: tuple[int, int] | None) -> None:
        """None: from its own real-time clock."""
        raise _unsupported("virDomainSetTime")

    async def file_systems(self, uuid: bytes) -> Sequence[FileSystem]:
        raise _unsupported("virDomainGetFSInfo")

    async def freeze(self, caller: Caller, uuid: bytes, mountpoints: Sequence[str]) -> int:
        """How many file systems. No mountpoints: all."""
        raise _unsupported("virDomainFSFreeze")

    async def thaw(self, caller: Caller, uuid: bytes, mountpoints: Sequence[str]) -> int:
        raise _unsupported("virDomainFSThaw")

    async def trim(self, caller: Caller, uuid: bytes, mountpoint: str | None, minimum: int) -> None:
        raise _unsupported("virDomainFSTrim")

    async def addresses(self, uuid: bytes, source: AddressSource) -> Sequence[GuestInterface]:
        raise _unsupported("virDomainInterfaceAddresses")

    async def info(self, uuid: bytes, types: InfoTypes) -> Sequence[Param]:
        """Typed parameters by libvirt's names. A type that the guest cannot tell is left out if `types` is
        empty (all that can be told), else refused."""
        raise _unsupported("virDomainGetGuestInfo")

    async def set_password(
        self, caller: Caller, uuid: bytes, user: str, password: str, encrypted: bool
    ) -> None:
        raise _unsupported("virDomainSetUserPassword")

    async def vcpus(self, uuid: bytes) -> Sequence[Param]:
        """`vcpus`, `online`, `offlinable`: lists as text, `0-3,7`."""
        raise _unsupported("virDomainGetGuestVcpus")

    async def set_vcpus(self, caller: Caller, uuid: bytes, cpus: frozenset[int], online: bool) -> None:
        raise _unsupported("virDomainSetGuestVcpus")

    async def ssh_keys(self, uuid: bytes, user: str) -> Sequence[str]:
        raise _unsupported("virDomainAuthorizedSSHKeysGet")

    async def set_ssh_keys(
        self, caller: Caller, uuid: bytes, user: str, keys: Sequence[str], flags: KeysFlags
    ) -> None:
        raise _unsupported("virDomainAuthorizedSSHKeysSet")

    async def set_response_timeout(self, caller: Caller, uuid: bytes, seconds: int) -> None:
        """How long an agent may take: -2 for ever, -1 as the driver likes, 0 no wait."""
        raise _unsupported("virDomainAgentSetResponseTimeout")

    async def command(self, caller: Caller, uuid: bytes, text: str, seconds: int) -> str:
        """A command in the agent's own protocol, and its answer. Seconds: as above."""
        raise _unsupported("virDomainQemuAgentCommand")


def _unsupported(function: str) -> LibvirtError:
    return error(Code.NO_SUPPORT, function)

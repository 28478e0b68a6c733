"""Virtual networks, their ports and leases: what a driver says of them and is asked.

Networks are named by their UUID, 16 raw bytes, as domains are; so are the ports of a network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from xml.etree.ElementTree import Element

from hypervisor_shim.driver.facts import Caller, Impact, Metadata, MetadataKind
from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.xml.network_def import NetworkDef


@dataclass(frozen=True, slots=True)
class NetworkInfo:
    """What libvirt's short answers tell of a network. `bridge`: the device's name, None if it has none."""

    uuid: bytes
    name: str
    active: bool = False
    persistent: bool = True
    autostart: bool = False
    bridge: str | None = None


@dataclass(frozen=True, slots=True)
class DhcpLease:
    """An address in use. `expires`: Unix seconds, 0 never; `version`: 4 or 6."""

    interface: str
    address: str
    prefix: int
    mac: str | None = None
    hostname: str | None = None
    client_id: str | None = None
    iaid: str | None = None
    version: int = 4
    expires: int = 0
    owner: bytes | None = None  # the domain whose it is, if it is known


class Command(IntEnum):
    """What an update does with an element (libvirt: virNetworkUpdateCommand)."""

    MODIFY = 1
    DELETE = 2
    ADD_LAST = 3
    ADD_FIRST = 4


@dataclass(frozen=True, slots=True)
class Update:
    """A change of one element of a network. `section`: libvirt's number of the kind of element (4: a DHCP
    host); `index`: which `<ip>` it is under, -1 for the one that fits; `element`: what was sent, as
    `xml.network_update.parse_update` has read it."""

    command: Command
    section: int
    index: int
    element: Element


class Networks(ABC):
    """Must: the abstract methods. May: the rest, refused with code 3."""

    # ---- reading: synchronous, from memory ---------------------------------------------------------

    @abstractmethod
    def networks(self) -> Collection[NetworkInfo]:
        """All networks, active or not, in a stable order."""

    @abstractmethod
    def network(self, uuid: bytes) -> NetworkInfo | None: ...

    def network_by_name(self, name: str) -> NetworkInfo | None:
        return next((info for info in self.networks() if info.name == name), None)

    @abstractmethod
    def network_xml(self, uuid: bytes, *, inactive: bool) -> str:
        """The `<network>` document. `inactive`: what the next start will use."""

    def network_metadata(self, uuid: bytes, kind: MetadataKind, uri: str | None, impact: Impact) -> str:
        """Title, description, or the element of namespace `uri`; NO_NETWORK_METADATA (111) if not there."""
        raise error(Code.NO_SUPPORT, "virNetworkGetMetadata")

    def leases(self, uuid: bytes, mac: str | None) -> Sequence[DhcpLease]:
        """Addresses in use on the network; those of `mac` if it is given."""
        raise error(Code.NO_SUPPORT, "virNetworkGetDHCPLeases")

    def ports(self, uuid: bytes) -> Iterable[bytes]:
        """The UUIDs of the network's ports."""
        raise error(Code.NO_SUPPORT, "virNetworkListAllPorts")

    def port_xml(self, uuid: bytes, port: bytes) -> str:
        """The `<networkport>` document."""
        raise error(Code.NO_SUPPORT, "virNetworkPortGetXMLDesc")

    def port_owners(self, uuid: bytes) -> Mapping[bytes, bytes]:
        """Port → the domain whose it is, where that is known: who may not see that does not see the port."""
        return {}

    def port_parameters(self, uuid: bytes, port: bytes) -> Sequence[tuple[str, int, Any]]:
        """Typed parameters `(name, tag, value)`."""
        raise error(Code.NO_SUPPORT, "virNetworkPortGetParameters")

    # ---- acting ------------------------------------------------------------------------------------

    @abstractmethod
    async def define_network(self, caller: Caller, definition: NetworkDef) -> NetworkInfo:
        """Create or replace the persistent definition."""

    @abstractmethod
    async def create_network_xml(self, caller: Caller, definition: NetworkDef) -> NetworkInfo:
        """Start a network that is gone once it stops."""

    @abstractmethod
    async def create_network(self, caller: Caller, uuid: bytes) -> None: ...

    @abstractmethod
    async def destroy_network(self, caller: Caller, uuid: bytes) -> None: ...

    @abstractmethod
    async def undefine_network(self, caller: Caller, uuid: bytes) -> None: ...

    async def set_network_autostart(self, caller: Caller, uuid: bytes, autostart: bool) -> None:
        raise error(Code.NO_SUPPORT, "virNetworkSetAutostart")

    async def update_network(self, caller: Caller, uuid: bytes, update: Update, impact: Impact) -> None:
        raise error(Code.NO_SUPPORT, "virNetworkUpdate")

    async def set_network_metadata(
        self, caller: Caller, uuid: bytes, metadata: Metadata, impact: Impact
    ) -> None:
        raise error(Code.NO_SUPPORT, "virNetworkSetMetadata")

    async def create_port(self, caller: Caller, uuid: bytes, xml: str) -> bytes:
        """Make a port from a `<networkport>` document; its UUID."""
        raise error(Code.NO_SUPPORT, "virNetworkPortCreateXML")

    async def set_port_parameters(
        self, caller: Caller, uuid: bytes, port: bytes, params: Sequence[tuple[str, int, Any]]
    ) -> None:
        raise error(Code.NO_SUPPORT, "virNetworkPortSetParameters")

    async def delete_port(self, caller: Caller, uuid: bytes, port: bytes) -> None:
        raise error(Code.NO_SUPPORT, "virNetworkPortDelete")


def invalid_network(detail: str) -> LibvirtError:
    """A call that a network in this state does not allow: code 55."""
    return error(Code.OPERATION_INVALID, detail, origin=Origin.NETWORK)

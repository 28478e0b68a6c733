"""Segments as libvirt networks: what clients see of them, and what they ask for.

Ports and leases are those of running domains: a host gets the one address of its port and no other, for as
long as the port is there, so its lease never expires.
"""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hypervisor_shim.driver import Caller, Impact, Metadata, MetadataKind
from hypervisor_shim.driver.events import Defined, Event, NetworkEvent, NetworkMetadataEvent
from hypervisor_shim.driver.network import DhcpLease, NetworkInfo, Networks, Update
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, uuid_text
from hypervisor_shim.xml import network as network_xml
from hypervisor_shim.xml.network_def import NetworkDef
from hypervisor_shim.xml.network_update import updated
from nicagent.controller import Controller
from nicagent.errors import NicagentError
from nicagent.model import Domain, PortBinding
from nicagent.network.contract import bridge_name, hostname
from nicagent.northbound.libvirt_words import cause_of, translated
from nicagent.northbound.segment_xml import NAMESPACE, to_definition, to_network
from nicagent.segments import Definition, Record, SegmentEvent, Segments

EVENTS: Mapping[SegmentEvent, Defined] = {
    SegmentEvent.DEFINED: Defined.DEFINED,
    SegmentEvent.UNDEFINED: Defined.UNDEFINED,
    SegmentEvent.STARTED: Defined.STARTED,
    SegmentEvent.STOPPED: Defined.STOPPED,
}
_PORTS = uuid.UUID("5f0a7b0e-9a5c-4c8e-8f6b-6e6963706f72")  # a port's UUID follows from its domain and name


class MetalNetworks(Networks):
    """What libvirt clients see of the segments. `publish` takes the events."""

    def __init__(
        self,
        segments: Segments,
        controller: Controller,
        publish: Callable[[Event], None],
    ) -> None:
        self._segments = segments
        self._controller = controller
        self._publish = publish
        self._unwatch = segments.watch(self._on_change)

    def close(self) -> None:
        """Stop following the segments."""
        self._unwatch()

    def _on_change(self, event: SegmentEvent, record: Record) -> None:
        self._publish(NetworkEvent(record.name, uuid.UUID(record.uuid).bytes, EVENTS[event]))

    # ---- reading

    def networks(self) -> list[NetworkInfo]:
        return [_info(record) for record in self._segments.all()]

    def network(self, uuid: bytes) -> NetworkInfo | None:
        try:
            return _info(self._segments.get(uuid_text(uuid)))
        except NicagentError:
            return None

    def network_by_name(self, name: str) -> NetworkInfo | None:
        record = self._segments.find(name)
        return None if record is None else _info(record)

    def network_xml(self, uuid: bytes, *, inactive: bool) -> str:
        record = self._record(uuid)
        definition = record.config if inactive and record.config is not None else record.now
        return network_xml.format_network(to_network(record, definition))

    def network_metadata(self, uuid: bytes, kind: MetadataKind, uri: str | None, impact: Impact) -> str:
        record = self._record(uuid)
        definition = record.config if impact is Impact.CONFIG and record.config is not None else record.now
        return network_xml.get_metadata(to_network(record, definition), kind, uri)

    def leases(self, uuid: bytes, mac: str | None) -> Sequence[DhcpLease]:
        record = self._record(uuid)
        if record.live is None:
            return []
        assert record.live.vni is not None
        prefix = ipaddress.IPv4Network(record.live.cidr).prefixlen
        return [
            DhcpLease(
                interface=bridge_name(record.live.vni),
                address=binding.ipv4,
                prefix=prefix,
                mac=binding.mac,
                hostname=hostname(binding.hostname) or None,
                owner=_uuid(domain),
            )
            for domain, binding in self._bound(record)
            if mac is None or binding.mac == mac.lower()
        ]

    def ports(self, uuid: bytes) -> list[bytes]:
        return [_port_uuid(domain, binding) for domain, binding in self._bound(self._record(uuid))]

    def port_owners(self, uuid: bytes) -> dict[bytes, bytes]:
        bound = self._bound(self._record(uuid))
        return {_port_uuid(domain, binding): _uuid(domain) for domain, binding in bound}

    def port_xml(self, uuid: bytes, port: bytes) -> str:
        record = self._record(uuid)
        for domain, binding in self._bound(record):
            if _port_uuid(domain, binding) == port:
                return network_xml.format_port(
                    port,
                    owner=(domain.name, domain.uuid),
                    mac=binding.mac,
                    bridge=bridge_name(record.now.vni or 0),
                )
        raise error(
            Code.NO_NETWORK_PORT,
            f"Network port with UUID {uuid_text(port)} does not exist",
            origin=Origin.NETWORK,
        )

    def port_parameters(self, uuid: bytes, port: bytes) -> list[tuple[str, int, Any]]:
        """No port has a bandwidth limit yet, so there is none to tell."""
        return []

    def _bound(self, record: Record) -> Iterator[tuple[Domain, PortBinding]]:
        """The ports of running domains on a segment."""
        for status in self._controller.domains():
            for binding in status.bindings if status.id is not None else ():
                if binding.port.segment == record.name:
                    yield status.domain, binding

    def _record(self, uuid: bytes) -> Record:
        with translated(Origin.NETWORK):
            return self._segments.get(uuid_text(uuid))

    # ---- acting

    async def define_network(self, caller: Caller, definition: NetworkDef) -> NetworkInfo:
        with translated(Origin.NETWORK):
            record = await self._segments.define(
                uuid_text(definition.uuid), to_definition(definition), cause_of(caller, "net-define")
            )
        return _info(record)

    async def create_network_xml(self, caller: Caller, definition: NetworkDef) -> NetworkInfo:
        with translated(Origin.NETWORK):
            record = await self._segments.create(
                uuid_text(definition.uuid), to_definition(definition), cause_of(caller, "net-create")
            )
        return _info(record)

    async def create_network(self, caller: Caller, uuid: bytes) -> None:
        with translated(Origin.NETWORK):
            await self._segments.start(uuid_text(uuid), cause_of(caller, "net-start"))

    async def destroy_network(self, caller: Caller, uuid: bytes) -> None:
        with translated(Origin.NETWORK):
            await self._segments.stop(uuid_text(uuid), cause_of(caller, "net-destroy"))

    async def undefine_network(self, caller: Caller, uuid: bytes) -> None:
        with translated(Origin.NETWORK):
            await self._segments.undefine(uuid_text(uuid), cause_of(caller, "net-undefine"))

    async def set_network_autostart(self, caller: Caller, uuid: bytes, autostart: bool) -> None:
        with translated(Origin.NETWORK):
            await self._segments.set_autostart(uuid_text(uuid), autostart, cause_of(caller, "net-autostart"))

    async def update_network(self, caller: Caller, uuid: bytes, update: Update, impact: Impact) -> None:
        await self._amend(caller, uuid, lambda network: updated(network, update), impact, "net-update")

    async def set_network_metadata(
        self, caller: Caller, uuid: bytes, metadata: Metadata, impact: Impact
    ) -> None:
        if metadata.kind is MetadataKind.ELEMENT and metadata.uri == NAMESPACE:
            raise error(
                Code.OPERATION_UNSUPPORTED,
                "the VNI of a network does not change while it is defined: define it anew",
                origin=Origin.NETWORK,
            )
        if self._record(uuid).wired:
            raise error(
                Code.OPERATION_UNSUPPORTED,
                "the network is wired by the agent's config, which keeps no metadata",
                origin=Origin.NETWORK,
            )
        await self._amend(
            caller,
            uuid,
            lambda network: network_xml.set_metadata(network, metadata),
            impact,
            "net-metadata",
        )
        self._publish(NetworkMetadataEvent(self._record(uuid).name, uuid, metadata.kind, metadata.uri))

    async def _amend(
        self,
        caller: Caller,
        uuid: bytes,
        change: Callable[[NetworkDef], NetworkDef],
        impact: Impact,
        why: str,
    ) -> None:
        """Change the running network, its definition, or both, all or nothing."""
        record = self._record(uuid)

        def changed(definition: Definition) -> Definition:
            made = to_definition(change(to_network(record, definition)))
            # The document of a segment of the config is the config's own.
            return replace(made, xml="" if record.wired else made.xml, reserved=definition.reserved)

        live, config = record.live, record.config
        wants_live = live is not None and impact is not Impact.CONFIG
        wants_config = config is not None and (bool(impact & Impact.CONFIG) or live is None)
        with translated(Origin.NETWORK):
            await self._segments.amend(
                record.uuid,
                live=changed(live) if wants_live and live is not None else None,
                config=changed(config) if wants_config and config is not None else None,
                cause=cause_of(caller, why),
            )

    async def create_port(self, caller: Caller, uuid: bytes, xml: str) -> bytes:
        raise _with_domains("made")

    async def set_port_parameters(
        self, caller: Caller, uuid: bytes, port: bytes, params: Sequence[tuple[str, int, Any]]
    ) -> None:
        raise error(Code.OPERATION_UNSUPPORTED, "ports have no bandwidth limits yet", origin=Origin.NETWORK)

    async def delete_port(self, caller: Caller, uuid: bytes, port: bytes) -> None:
        raise _with_domains("deleted")


def _with_domains(verb: str) -> LibvirtError:
    return error(
        Code.OPERATION_UNSUPPORTED,
        f"ports are not {verb} by themselves: a port is a host's cable, and comes and goes with its domain",
        origin=Origin.NETWORK,
    )


def _info(record: Record) -> NetworkInfo:
    vni = record.now.vni
    return NetworkInfo(
        uuid=uuid.UUID(record.uuid).bytes,
        name=record.name,
        active=record.live is not None,
        persistent=record.config is not None,
        autostart=record.autostart,
        bridge=None if vni is None else bridge_name(vni),
    )


def _uuid(domain: Domain) -> bytes:
    return uuid.UUID(domain.uuid).bytes


def _port_uuid(domain: Domain, binding: PortBinding) -> bytes:
    return uuid.uuid5(_PORTS, f"{domain.uuid}/{binding.port.name}").bytes

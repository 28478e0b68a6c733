"""The guards of ports as libvirt network filters: built in, there to be looked at; and one binding a port."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.driver import Caller
from hypervisor_shim.driver.nwfilter import BindingInfo, FilterInfo, NwFilters
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, uuid_text
from hypervisor_shim.xml.nwfilter import format_binding, format_filter
from hypervisor_shim.xml.nwfilter_def import FilterDef
from nicagent.controller import Controller
from nicagent.filters import BUILT_IN, EVERY_PORT, Filter
from nicagent.model import Domain, PortBinding


class MetalNwFilters(NwFilters):
    """What libvirt clients see of the guards."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._by_uuid = {uuid.UUID(each.uuid).bytes: each for each in BUILT_IN.values()}

    def filters(self) -> list[FilterInfo]:
        return [FilterInfo(key, each.name) for key, each in self._by_uuid.items()]

    def filter_xml(self, uuid: bytes) -> str:
        found = self._by_uuid.get(uuid)
        if found is None:
            raise error(
                Code.NO_NWFILTER,
                f"no nwfilter with matching uuid '{uuid_text(uuid)}'",
                origin=Origin.NWFILTER,
            )
        return format_filter(_definition(found, uuid), uuid)

    def bindings(self) -> list[BindingInfo]:
        return [
            BindingInfo(binding.device, binding.port.filter or EVERY_PORT, uuid.UUID(domain.uuid).bytes)
            for domain, binding in self._bound()
        ]

    def binding_xml(self, port: str) -> str:
        for domain, binding in self._bound():
            if binding.device == port:
                return format_binding(
                    owner=(domain.name, domain.uuid),
                    port=port,
                    mac=binding.mac,
                    filter=binding.port.filter or EVERY_PORT,
                    parameters={"IP": binding.ipv4, "MAC": binding.mac},
                )
        raise error(
            Code.NO_NWFILTER_BINDING, f"no nwfilter binding for port dev '{port}'", origin=Origin.NWFILTER
        )

    def _bound(self) -> Iterator[tuple[Domain, PortBinding]]:
        """The ports of running domains."""
        for status in self._controller.domains():
            for binding in status.bindings if status.id is not None else ():
                yield status.domain, binding

    async def define_filter(self, caller: Caller, definition: FilterDef) -> FilterInfo:
        known = BUILT_IN.get(definition.name)
        if known is not None:
            if definition.tree.find("rule") is None and set(definition.references) == set(known.refers):
                return FilterInfo(uuid.UUID(known.uuid).bytes, known.name)  # it is so already
            raise _built_in(definition.name, "changed")
        raise error(
            Code.CONFIG_UNSUPPORTED,
            "the agent takes no filters of a client's own yet; its built-in ones guard every port:"
            " see nwfilter-list",
            origin=Origin.NWFILTER,
        )

    async def undefine_filter(self, caller: Caller, uuid: bytes) -> None:
        raise _built_in(self._by_uuid[uuid].name, "undefined")

    async def create_binding(self, caller: Caller, xml: str) -> BindingInfo:
        raise _with_ports("made")

    async def delete_binding(self, caller: Caller, port: str) -> None:
        raise _with_ports("deleted")


def _built_in(name: str, verb: str) -> LibvirtError:
    return error(
        Code.OPERATION_UNSUPPORTED,
        f"filter '{name}' is the agent's own guard and cannot be {verb}",
        origin=Origin.NWFILTER,
    )


def _with_ports(verb: str) -> LibvirtError:
    return error(
        Code.OPERATION_UNSUPPORTED,
        f"bindings are not {verb} by themselves: a port is guarded for as long as it is there",
        origin=Origin.NWFILTER,
    )


def _definition(filter: Filter, uuid: bytes) -> FilterDef:
    root = Element("filter", name=filter.name, chain=filter.chain)
    for name in filter.refers:
        SubElement(root, "filterref", filter=name)
    for rule in filter.rules:
        element = SubElement(
            root, "rule", action=rule.action, direction=rule.direction, priority=str(rule.priority)
        )
        if rule.protocol:
            SubElement(element, rule.protocol, dict(rule.match))
    return FilterDef(filter.name, uuid, filter.chain, filter.refers, root)

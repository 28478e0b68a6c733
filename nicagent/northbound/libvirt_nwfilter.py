"""Network filters as libvirt clients see them: the built-in ones and their own; and one binding a port."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.driver import Caller
from hypervisor_shim.driver.nwfilter import BindingInfo, FilterInfo, NwFilters
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, uuid_text
from hypervisor_shim.xml.nwfilter import format_binding, format_filter
from hypervisor_shim.xml.nwfilter_def import FilterDef
from nicagent.controller import Controller
from nicagent.filter_rules import Filter, Reference, Rule
from nicagent.filter_tree import leads_back, parameters, variables_of
from nicagent.filters import Filters
from nicagent.filters_builtin import BUILT_IN, EVERY_PORT
from nicagent.model import Domain, PortBinding
from nicagent.northbound.libvirt_words import cause_of, translated


class MetalNwFilters(NwFilters):
    """What libvirt clients see of filters. Their owner is `filters.Filters`."""

    def __init__(self, controller: Controller, filters: Filters) -> None:
        self._controller = controller
        self._filters = filters

    def filters(self) -> list[FilterInfo]:
        return [_info(each) for each in self._filters.all()]

    def filter_xml(self, uuid: bytes) -> str:
        found = next((each for each in self._filters.all() if _info(each).uuid == uuid), None)
        if found is None:
            raise error(
                Code.NO_NWFILTER,
                f"no nwfilter with matching uuid '{uuid_text(uuid)}'",
                origin=Origin.NWFILTER,
            )
        return found.xml or format_filter(_document(found), uuid)

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
                    parameters=_shown(binding),
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
        made = _filter(definition)
        known = self._filters.known
        if made.name in BUILT_IN and made.entries == BUILT_IN[made.name].entries:
            return _info(BUILT_IN[made.name])  # it is so already
        if made.name not in BUILT_IN and leads_back(made, known):
            raise error(Code.OPERATION_FAILED, "filter would introduce a loop", origin=Origin.NWFILTER)
        with translated(Origin.NWFILTER):
            return _info(await self._filters.define(made, cause_of(caller, "nwfilter define")))

    async def undefine_filter(self, caller: Caller, uuid: bytes) -> None:
        found = next((each for each in self._filters.all() if _info(each).uuid == uuid), None)
        if found is not None and found.name in BUILT_IN:
            raise error(
                Code.OPERATION_UNSUPPORTED,
                f"filter '{found.name}' is the agent's own guard and cannot be undefined",
                origin=Origin.NWFILTER,
            )
        with translated(Origin.NWFILTER):
            await self._filters.undefine(_text(uuid), cause_of(caller, "nwfilter undefine"))

    async def create_binding(self, caller: Caller, xml: str) -> BindingInfo:
        raise _with_ports("made")

    async def delete_binding(self, caller: Caller, port: str) -> None:
        raise _with_ports("deleted")


def _with_ports(verb: str) -> LibvirtError:
    return error(
        Code.OPERATION_UNSUPPORTED,
        f"bindings are not {verb} by themselves: a port is guarded for as long as it is there",
        origin=Origin.NWFILTER,
    )


def _text(key: bytes) -> str:
    return str(uuid.UUID(bytes=key))


def _info(filter: Filter) -> FilterInfo:
    return FilterInfo(uuid.UUID(filter.uuid).bytes, filter.name)


def _shown(binding: PortBinding) -> Mapping[str, tuple[str, ...]]:
    """The variables that the port's filter may use, by name; the DHCP server only where it is asked about."""
    asked = {name for name, _ in binding.port.parameters} | {"IP", "MAC"}
    return {name: values for name, values in sorted(variables_of(binding).items()) if name in asked}


def _filter(definition: FilterDef) -> Filter:
    """A document in our words."""
    key = definition.uuid or uuid.uuid4().bytes
    entries = tuple(
        _rule(child) if child.tag == "rule" else _reference(child)
        for child in definition.tree
        if child.tag in ("rule", "filterref")
    )
    xml = format_filter(definition, key)
    return Filter(definition.name, _text(key), definition.chain, definition.priority, entries, xml)


def _rule(element: Element) -> Rule:
    about = next(iter(element), None)
    return Rule(
        element.attrib["action"],
        element.attrib["direction"],
        "" if about is None else about.tag,
        ()
        if about is None
        else tuple((name, text) for name, text in about.attrib.items() if name != "match"),
        int(element.attrib["priority"]),
        negated=about is not None and about.get("match") == "no",
        stateful=element.get("statematch") != "false",
    )


def _reference(element: Element) -> Reference:
    values: dict[str, list[str]] = {}
    for each in element.iterfind("parameter"):
        values.setdefault(each.get("name", ""), []).append(each.get("value", ""))
    return Reference(element.attrib["filter"], parameters(values))


def _document(filter: Filter) -> FilterDef:
    """The document of a built-in filter."""
    root = Element("filter", name=filter.name, chain=filter.chain)
    if filter.chain != "root":
        root.set("priority", str(filter.priority))
    for entry in filter.entries:
        if isinstance(entry, Reference):
            SubElement(root, "filterref", filter=entry.filter)
            continue
        element = SubElement(
            root, "rule", action=entry.action, direction=entry.direction, priority=str(entry.priority)
        )
        if entry.protocol:
            SubElement(element, entry.protocol, dict(entry.match))
    return FilterDef(
        filter.name, uuid.UUID(filter.uuid).bytes, filter.chain, filter.priority, filter.refers, root
    )

"""Interfaces that exist in memory only, in the likeness of libvirt's `test:///default`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from xml.etree.ElementTree import Element

from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.driver.interface import InterfaceInfo, Interfaces
from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.xml.interface import format_interface, parse_interface

DEFAULT_INTERFACE = """\
<interface type='ethernet' name='eth1'>
  <start mode='onboot'/>
  <mtu size='1492'/>
  <protocol family='ipv4'>
    <ip address='192.168.0.5' prefix='24'/>
    <route gateway='192.168.0.1'/>
  </protocol>
  <mac address='aa:bb:cc:dd:ee:ff'/>
</interface>
"""


@dataclass(frozen=True, slots=True)
class _Interface:
    definition: Element
    active: bool


class MemoryInterfaces(Interfaces):
    """Starts with the interfaces of `documents`, up."""

    def __init__(self, documents: Iterable[str] = (DEFAULT_INTERFACE,)) -> None:
        parsed = [parse_interface(document) for document in documents]
        self._held = {each.attrib["name"]: _Interface(each, True) for each in parsed}
        self._before: dict[str, _Interface] | None = None  # while a transaction runs

    async def interfaces(self) -> list[InterfaceInfo]:
        return [_info(name, each) for name, each in self._held.items()]

    async def interface_xml(self, name: str, *, inactive: bool) -> str:
        return format_interface(self._find(name).definition)

    async def define_interface(self, caller: Caller, definition: Element) -> InterfaceInfo:
        name = definition.attrib["name"]
        known = self._held.get(name)
        self._held[name] = _Interface(definition, known is not None and known.active)
        return _info(name, self._held[name])

    async def undefine_interface(self, caller: Caller, name: str) -> None:
        self._find(name)
        del self._held[name]

    async def create_interface(self, caller: Caller, name: str) -> None:
        self._switch(name, active=True)

    async def destroy_interface(self, caller: Caller, name: str) -> None:
        self._switch(name, active=False)

    async def begin_changes(self, caller: Caller) -> None:
        if self._before is not None:
            raise _invalid("there is another transaction running.")
        self._before = dict(self._held)

    async def commit_changes(self, caller: Caller) -> None:
        if self._before is None:
            raise _invalid("no transaction running, nothing to be committed.")
        self._before = None

    async def roll_back_changes(self, caller: Caller) -> None:
        if self._before is None:
            raise _invalid("no transaction running, nothing to rollback.")
        self._held, self._before = self._before, None

    def _switch(self, name: str, *, active: bool) -> None:
        found = self._find(name)
        if found.active is active:
            raise LibvirtError(
                Code.OPERATION_INVALID, "Requested operation is not valid", origin=Origin.INTERFACE
            )
        self._held[name] = replace(found, active=active)

    def _find(self, name: str) -> _Interface:
        found = self._held.get(name)
        if found is None:
            raise error(
                Code.NO_INTERFACE, f"no interface with matching name '{name}'", origin=Origin.INTERFACE
            )
        return found


def _invalid(detail: str) -> LibvirtError:
    return error(Code.OPERATION_INVALID, detail, origin=Origin.INTERFACE)


def _info(name: str, interface: _Interface) -> InterfaceInfo:
    mac = interface.definition.find("mac")
    return InterfaceInfo(name, "" if mac is None else mac.get("address", ""), interface.active)

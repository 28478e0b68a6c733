"""The agent's own network devices as libvirt interfaces: to be looked at only."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement

from hypervisor_shim.driver import Caller
from hypervisor_shim.driver.interface import InterfaceInfo, Interfaces
from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.xml.interface import format_interface
from nicagent.netdevs import Netdev, Netdevs
from nicagent.northbound.libvirt_words import translated


class MetalInterfaces(Interfaces):
    """What libvirt clients see of the agent's devices."""

    def __init__(self, netdevs: Netdevs) -> None:
        self._netdevs = netdevs

    async def interfaces(self) -> list[InterfaceInfo]:
        return [InterfaceInfo(each.name, each.mac, each.up) for each in await self._all()]

    async def interface_xml(self, name: str, *, inactive: bool) -> str:
        found = {each.name: each for each in await self._all()}
        if name not in found:
            raise error(Code.NO_INTERFACE, f"couldn't find interface named '{name}'", origin=Origin.INTERFACE)
        return format_interface(_element(found[name], found))

    async def _all(self) -> list[Netdev]:
        with translated(Origin.INTERFACE):
            return await self._netdevs.all()

    # ---- the operator's own

    async def define_interface(self, caller: Caller, definition: Element) -> InterfaceInfo:
        raise _not_ours("defined")

    async def undefine_interface(self, caller: Caller, name: str) -> None:
        raise _not_ours("undefined")

    async def create_interface(self, caller: Caller, name: str) -> None:
        raise _not_ours("started")

    async def destroy_interface(self, caller: Caller, name: str) -> None:
        raise _not_ours("stopped")

    async def begin_changes(self, caller: Caller) -> None:
        raise _not_ours("changed")

    async def commit_changes(self, caller: Caller) -> None:
        raise _not_ours("changed")

    async def roll_back_changes(self, caller: Caller) -> None:
        raise _not_ours("changed")


def _not_ours(verb: str) -> LibvirtError:
    return error(
        Code.OPERATION_UNSUPPORTED,
        f"interfaces of the agent are not {verb} by clients: they are its operator's own",
        origin=Origin.INTERFACE,
    )


def _element(device: Netdev, others: dict[str, Netdev]) -> Element:
    """A device in libvirt's words. What the kernel does not tell is left out."""
    bridge = device.kind == "bridge"
    root = Element("interface", type="bridge" if bridge else "ethernet", name=device.name)
    SubElement(root, "mtu", size=str(device.mtu))
    if not bridge:
        SubElement(root, "link", state="up" if device.up and device.carrier else "down")
    for family, colon in (("ipv4", False), ("ipv6", True)):
        mine = [(address, prefix) for address, prefix in device.addresses if (":" in address) is colon]
        if mine:
            protocol = SubElement(root, "protocol", family=family)
            for address, prefix in mine:
                SubElement(protocol, "ip", address=address, prefix=str(prefix))
    if device.mac:
        SubElement(root, "mac", address=device.mac)
    if bridge:
        holder = SubElement(root, "bridge")
        for name in device.members:
            member = SubElement(holder, "interface", type="ethernet", name=name)
            SubElement(member, "mac", address=others[name].mac)
    return root

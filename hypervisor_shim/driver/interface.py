"""Network interfaces of the machine that the driver runs on (for metal: of the agent)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.errors import Code, error


@dataclass(frozen=True, slots=True)
class InterfaceInfo:
    """A network device. Its name is its key; `mac` is lower case."""

    name: str
    mac: str
    active: bool = True


class Interfaces(ABC):
    """Must: the abstract methods. May: the rest, refused with code 3. All may do I/O (netlink)."""

    @abstractmethod
    async def interfaces(self) -> Collection[InterfaceInfo]:
        """All interfaces, up or not, in a stable order."""

    @abstractmethod
    async def interface_xml(self, name: str, *, inactive: bool) -> str:
        """The `<interface>` document."""

    async def define_interface(self, caller: Caller, definition: Element) -> InterfaceInfo:
        """Create or replace; `definition` is checked and in libvirt's order."""
        raise error(Code.NO_SUPPORT, "virInterfaceDefineXML")

    async def undefine_interface(self, caller: Caller, name: str) -> None:
        raise error(Code.NO_SUPPORT, "virInterfaceUndefine")

    async def create_interface(self, caller: Caller, name: str) -> None:
        raise error(Code.NO_SUPPORT, "virInterfaceCreate")

    async def destroy_interface(self, caller: Caller, name: str) -> None:
        raise error(Code.NO_SUPPORT, "virInterfaceDestroy")

    async def begin_changes(self, caller: Caller) -> None:
        raise error(Code.NO_SUPPORT, "virInterfaceChangeBegin")

    async def commit_changes(self, caller: Caller) -> None:
        raise error(Code.NO_SUPPORT, "virInterfaceChangeCommit")

    async def roll_back_changes(self, caller: Caller) -> None:
        raise error(Code.NO_SUPPORT, "virInterfaceChangeRollback")

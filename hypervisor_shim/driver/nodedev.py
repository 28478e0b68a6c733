"""Devices of the host as the connection knows them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.errors import Code, LibvirtError, Origin, error


@dataclass(frozen=True, slots=True)
class NodeDevice:
    """A device. `caps`: the capability types that it lists; `kinds`: all those it is found by, nested ones
    included (an adapter of type `scsi_host` is found by `fc_host` too).
    """

    name: str
    parent: str | None
    caps: tuple[str, ...]
    kinds: frozenset[str]
    active: bool = True
    persistent: bool = True
    autostart: bool = True


class NodeDevices(ABC):
    """Must: the reading calls. May: the rest (default: code 3), each of which raises NO_NODE_DEVICE for a
    name that is not there.

    What appears, changes or goes is reported as `NodeDeviceEvent` and `NodeDeviceUpdateEvent` through the
    driver's `subscribe`.
    """

    @abstractmethod
    def devices(self) -> Iterable[NodeDevice]:
        """All of them, in a stable order."""

    @abstractmethod
    def device(self, name: str) -> NodeDevice | None: ...

    @abstractmethod
    def xml(self, name: str) -> str:
        """The device's document. Raises NO_NODE_DEVICE."""

    def by_wwn(self, wwnn: str, wwpn: str) -> NodeDevice | None:
        """The fibre channel adapter with these names."""
        raise unsupported("virNodeDeviceLookupSCSIHostByWWN")

    async def create(self, caller: Caller, document: str) -> NodeDevice:
        """Make a device (a virtual port, a mediated device) from its document."""
        raise unsupported("virNodeDeviceCreateXML")

    async def destroy(self, caller: Caller, name: str) -> None:
        raise unsupported("virNodeDeviceDestroy")

    async def define(self, caller: Caller, document: str) -> NodeDevice:
        raise unsupported("virNodeDeviceDefineXML")

    async def undefine(self, caller: Caller, name: str) -> None:
        raise unsupported("virNodeDeviceUndefine")

    async def start(self, caller: Caller, name: str) -> None:
        raise unsupported("virNodeDeviceCreate")

    async def set_autostart(self, caller: Caller, name: str, autostart: bool) -> None:
        raise unsupported("virNodeDeviceSetAutostart")

    async def detach(self, caller: Caller, name: str, driver: str | None, function: str) -> None:
        """Take it from the host's own driver, for a guest; `function` is the form that was called."""
        raise unsupported(function)

    async def reattach(self, caller: Caller, name: str) -> None:
        raise unsupported("virNodeDeviceReAttach")

    async def reset(self, caller: Caller, name: str) -> None:
        raise unsupported("virNodeDeviceReset")


def unsupported(function: str) -> LibvirtError:
    """Code 3, as libvirt words it."""
    return error(Code.NO_SUPPORT, function, origin=Origin.NODEDEV)


def no_device(name: str) -> LibvirtError:
    """The answer to any call on a device that is not there."""
    detail = f"no node device with matching name '{name}'"
    return error(Code.NO_NODE_DEVICE, detail, origin=Origin.NODEDEV)

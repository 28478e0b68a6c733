"""Devices that come and go while a domain runs or waits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from hypervisor_shim.driver.facts import Caller, Impact
from hypervisor_shim.errors import unsupported
from hypervisor_shim.xml.domain_def import Bandwidth, Device


class Devices(ABC):
    """What a driver does with one device. `impact` is resolved: LIVE, CONFIG or both, never none, and the
    domain is running where it says LIVE and persistent where it says CONFIG.

    Both or neither: a call that asks for LIVE and CONFIG and cannot do one of them does none.
    """

    @abstractmethod
    async def attach(self, caller: Caller, uuid: bytes, device: Device, impact: Impact) -> None:
        """Raises OPERATION_FAILED (live) or INVALID_ARG (config) where it is there already."""

    @abstractmethod
    async def detach(self, caller: Caller, uuid: bytes, device: Device, impact: Impact) -> None:
        """Raises DEVICE_MISSING (99) where it is not there."""

    @abstractmethod
    async def update(self, caller: Caller, uuid: bytes, device: Device, impact: Impact) -> None:
        """Raises DEVICE_MISSING, or OPERATION_UNSUPPORTED for what cannot change while it is there."""

    @abstractmethod
    async def detach_alias(self, caller: Caller, uuid: bytes, alias: str, impact: Impact) -> None:
        """Returns when asked; a DeviceRemovedEvent tells when it is gone. Raises DEVICE_MISSING."""

    def bandwidth(self, uuid: bytes, interface: str, impact: Impact) -> Bandwidth:
        """`interface`: its MAC address or its device. Raises INVALID_ARG for one that is not there."""
        raise unsupported("virDomainGetInterfaceParameters")

    async def set_bandwidth(
        self, caller: Caller, uuid: bytes, interface: str, given: Mapping[str, int], impact: Impact
    ) -> None:
        """`given`: by libvirt's names (`inbound.average` …); `xml.bandwidth.merged` says what they make."""
        raise unsupported("virDomainSetInterfaceParameters")

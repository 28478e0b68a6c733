"""Network filters, and their bindings to ports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.errors import Code, error
from hypervisor_shim.xml.nwfilter_def import FilterDef


@dataclass(frozen=True, slots=True)
class FilterInfo:
    uuid: bytes
    name: str


@dataclass(frozen=True, slots=True)
class BindingInfo:
    """A filter at a port: the port's device, the filter's name, and the domain whose port it is."""

    port: str
    filter: str
    owner: bytes | None = None


class NwFilters(ABC):
    """Must: the abstract methods, which answer from memory. May: the rest, refused with code 3."""

    @abstractmethod
    def filters(self) -> Collection[FilterInfo]:
        """All filters, in a stable order."""

    @abstractmethod
    def filter_xml(self, uuid: bytes) -> str:
        """The `<filter>` document."""

    def bindings(self) -> Collection[BindingInfo]:
        """All filters at ports."""
        return ()

    def binding_xml(self, port: str) -> str:
        """The `<filterbinding>` document."""
        raise error(Code.NO_SUPPORT, "virNWFilterBindingGetXMLDesc")

    async def define_filter(self, caller: Caller, definition: FilterDef) -> FilterInfo:
        """Create or replace a filter."""
        raise error(Code.NO_SUPPORT, "virNWFilterDefineXML")

    async def undefine_filter(self, caller: Caller, uuid: bytes) -> None:
        raise error(Code.NO_SUPPORT, "virNWFilterUndefine")

    async def create_binding(self, caller: Caller, xml: str) -> BindingInfo:
        """Put a filter at a port, from a `<filterbinding>` document."""
        raise error(Code.NO_SUPPORT, "virNWFilterBindingCreateXML")

    async def delete_binding(self, caller: Caller, port: str) -> None:
        raise error(Code.NO_SUPPORT, "virNWFilterBindingDelete")

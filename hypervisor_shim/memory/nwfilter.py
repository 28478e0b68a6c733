"""Network filters that exist in memory only, in the likeness of libvirt's `nwfilter:///system`."""

from __future__ import annotations

import uuid

from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.driver.nwfilter import FilterInfo, NwFilters
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, uuid_text
from hypervisor_shim.xml.nwfilter import format_filter
from hypervisor_shim.xml.nwfilter_def import FilterDef


class MemoryNwFilters(NwFilters):
    """Starts empty, as libvirt's own does where no filters are installed."""

    def __init__(self) -> None:
        self._held: dict[bytes, FilterDef] = {}

    def filters(self) -> list[FilterInfo]:
        found = [FilterInfo(uuid, each.name) for uuid, each in self._held.items()]
        return sorted(found, key=lambda info: info.name)

    def filter_xml(self, uuid: bytes) -> str:
        return format_filter(self._find(uuid), uuid)

    async def define_filter(self, caller: Caller, definition: FilterDef) -> FilterInfo:
        named = next((info for info in self.filters() if info.name == definition.name), None)
        key = definition.uuid
        if key in self._held and key is not None and self._held[key].name != definition.name:
            raise _failed(
                f"filter with same UUID but different name ('{self._held[key].name}') already exists"
            )
        if named is not None and named.uuid != key:
            raise _failed(f"filter '{named.name}' already exists with uuid {uuid_text(named.uuid)}")
        if self._reaches(definition.name, definition):
            raise _failed("filter would introduce a loop")
        key = key or uuid.uuid4().bytes
        self._held[key] = definition
        return FilterInfo(key, definition.name)

    async def undefine_filter(self, caller: Caller, uuid: bytes) -> None:
        self._find(uuid)
        del self._held[uuid]

    def _reaches(self, goal: str, start: FilterDef) -> bool:
        """Whether references lead from `start` to the filter `goal`."""
        known = {each.name: each for each in self._held.values()}
        ahead, seen = list(start.references), set[str]()
        while ahead:
            name = ahead.pop()
            if name == goal:
                return True
            if name not in seen and name in known:
                ahead += known[name].references
            seen.add(name)
        return False

    def _find(self, uuid: bytes) -> FilterDef:
        found = self._held.get(uuid)
        if found is None:
            raise error(
                Code.NO_NWFILTER,
                f"no nwfilter with matching uuid '{uuid_text(uuid)}'",
                origin=Origin.NWFILTER,
            )
        return found


def _failed(detail: str) -> LibvirtError:
    return error(Code.OPERATION_FAILED, detail, origin=Origin.NWFILTER)

"""Moving the definition of a domain that does not run; its disks lie where both sides reach them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.xml.domain_def import DomainDef


class Migration(ABC):
    """The far side's word. What else a move takes are definitions that come and go, which `Driver` does."""

    @abstractmethod
    async def prepare(self, caller: Caller, definition: DomainDef) -> None:
        """Whether this domain could be defined here and find its disks; raises what stands in the way."""

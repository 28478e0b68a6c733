"""The far side of a domain's move from another agent: would it find its place and its disks here?"""

from __future__ import annotations

from hypervisor_shim.driver import Caller
from hypervisor_shim.driver.migration import Migration
from hypervisor_shim.errors import Code, error
from hypervisor_shim.xml.domain_def import DomainDef
from nicagent.counters import Counters
from nicagent.northbound.libvirt_ground import Ground
from nicagent.northbound.libvirt_words import translated


class MetalMigration(Migration):
    def __init__(self, ground: Ground, counters: Counters) -> None:
        self._ground = ground
        self._counters = counters

    async def prepare(self, caller: Caller, definition: DomainDef) -> None:
        with translated():
            domain = self._ground.to_domain(definition)
        hosts = self._ground.config.hosts
        if domain.host is not None and domain.host not in hosts:
            raise error(
                Code.CONFIG_UNSUPPORTED,
                f"the definition pins the domain to host {domain.host}, which is not here"
                f" ({', '.join(hosts)}); give another with --persistent-xml",
            )
        found = await self._counters.sizes(domain.disks)
        for disk in domain.disks:
            if disk.target not in found:
                raise error(
                    Code.OPERATION_FAILED,
                    f"disk {disk.target} ({disk.path}) is not found here: a pool must show the same storage"
                    " to both agents",
                )

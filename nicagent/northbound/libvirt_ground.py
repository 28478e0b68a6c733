"""What the families of the libvirt face that work on a domain's disks and ports stand on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from hypervisor_shim.driver import DomainInfo, Event
from hypervisor_shim.errors import Code, error, no_domain, not_running, uuid_text
from hypervisor_shim.xml import domain as domain_xml
from hypervisor_shim.xml.domain_def import DomainDef
from nicagent.config import Config
from nicagent.controller import Controller
from nicagent.errors import NicagentError
from nicagent.model import Domain, DomainStatus


class Documents:
    """Definitions as they stand in the store, parsed. They were normalised when they came in: parsing them
    again changes nothing, so what was parsed lately is kept."""

    def __init__(self) -> None:
        self.parsed: Callable[[str], DomainDef] = functools.lru_cache(maxsize=4096)(domain_xml.parse_domain)


@dataclass(frozen=True)
class Ground:
    """`to_domain` makes a definition the controller's; `info` and `publish` are the driver's."""

    config: Config
    controller: Controller
    to_domain: Callable[[DomainDef], Domain]
    info: Callable[[bytes], DomainInfo]
    publish: Callable[[Event], None]
    documents: Documents

    def status(self, uuid: bytes) -> DomainStatus:
        """The domain as it is now. Raises NO_DOMAIN."""
        try:
            return self.controller.domain(uuid_text(uuid))
        except NicagentError:
            raise no_domain(uuid) from None

    def running(self, uuid: bytes) -> DomainStatus:
        """The same, and it runs. Raises OPERATION_INVALID."""
        status = self.status(uuid)
        if status.id is None or status.host is None:
            raise not_running()
        return status

    def live(self, uuid: bytes) -> DomainDef:
        """What the running domain is now. Raises OPERATION_INVALID."""
        return self.documents.parsed(self.running(uuid).domain.xml)

    def port_names(self, status: DomainStatus) -> dict[str, str]:
        """By MAC, what a running domain's ports are called: as the client chose, which looks for them by that
        name (nova compares taps' names before it detaches one), else by the agent's own device."""
        interfaces = self.documents.parsed(status.domain.xml).interfaces
        chosen = {each.mac: each.target for each in interfaces if each.target}
        return {each.mac: chosen.get(each.mac, each.device) for each in status.bindings}

    def persistent(self, uuid: bytes) -> DomainDef:
        """What the next start will use. Raises NO_DOMAIN, OPERATION_INVALID."""
        if not self.status(uuid).domain.persistent:
            raise error(Code.OPERATION_INVALID, "transient domains do not have any persistent config")
        return self.documents.parsed(self.controller.definition(uuid_text(uuid)).xml)

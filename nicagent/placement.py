"""Where a domain can run, and everything that its run needs, resolved before anything is touched.

Nothing here moves a host: it looks at walkers, keeps what is derived once (leases, identities) in the store,
and answers with a `Run` or with the reasons why there is none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence

from nicagent.config import Config
from nicagent.errors import Kind, NicagentError, Thing
from nicagent.model import Disk, Domain, Export, ExportIdentity, HostState, Port, PortBinding, Power
from nicagent.store import Run, Store
from nicagent.walker import Parts, Walker

# domain UUID, host, its disks, identities stored before → what is to be exported
DeriveExports = Callable[[str, str, Sequence[Disk], Mapping[str, ExportIdentity]], tuple[Export, ...]]


class Placement:
    """Finds a domain's host and binds its disks and ports to it. Calls must not overlap: the controller holds
    a lock, so that placements see one another's results.
    """

    def __init__(self, config: Config, store: Store, derive: DeriveExports) -> None:
        self._config = config
        self._store = store
        self._derive = derive

    # ---- where

    def place(self, domain: Domain, walkers: Mapping[str, Walker]) -> Walker:
        """The host to run on: the pinned one, else the first that is free, off and big enough.

        Raises WRONG_STATE with every host's reason when there is none.
        """
        refusals = []
        for name, walker in walkers.items():
            if domain.host is not None and domain.host != name:
                continue
            refusal = self.refusal(domain, walker)
            if refusal is None:
                return walker
            refusals.append(f"{name} {refusal}")
        raise NicagentError(
            Kind.WRONG_STATE,
            f"no host can take domain {domain.name}: "
            f"{'; '.join(refusals) or f'{domain.host} is not in the config'}",
            "nicagent hosts shows them all",
        )

    def refusal(self, domain: Domain, walker: Walker) -> str | None:
        """Why this host cannot take the domain now; None when it can."""
        if walker.record.state is not HostState.FREE:
            return f"is {walker.record.state.value} ({walker.record.reason})"
        if walker.power is Power.ON:
            return f"is switched on without a domain (nicagent power off {walker.parts.name})"
        if walker.power is Power.UNKNOWN:
            return f"has no readable power state ({walker.trouble or 'not read yet: ask again in a moment'})"
        return self.misfit(domain, walker.parts)

    def misfit(self, domain: Domain, parts: Parts) -> str | None:
        """Why this host could never run the domain, whatever its state; None when it could."""
        config = parts.config
        if len(domain.ports) > len(config.nics):
            return f"has {len(config.nics)} NICs for {len(domain.ports)} interfaces"
        for port, nic in zip(domain.ports, config.nics, strict=False):
            if port.mac not in (None, nic.mac):
                return f"has a NIC with MAC {nic.mac}, not {port.mac} (leave it out of the definition)"
        if domain.memory_kib > config.memory_mib * 1024:
            return f"has {config.memory_mib} MiB of memory, {domain.memory_kib // 1024} are asked for"
        if domain.vcpus > config.cpus:
            return f"has {config.cpus} CPUs, {domain.vcpus} are asked for"
        return None

    # ---- what it needs there

    async def plan(self, domain: Domain, parts: Parts) -> Run:
        """A new run of the domain on this host. What is derived for it is stored by now.

        Raises NOT_FOUND (segment), INVALID (address, serial), EXISTS (address), NO_SPACE (addresses).
        """
        return Run(
            domain,
            await self._store.next_domain_id(),
            await self.bindings(domain, parts),
            await self.exports(domain, parts),
        )

    async def exports(self, domain: Domain, parts: Parts) -> tuple[Export, ...]:
        """The domain's disks under the names that its host knows them by."""
        known = await self._store.identities(domain.uuid)
        exports = self._derive(domain.uuid, parts.name, domain.disks, known)
        await self._store.put_identities(domain.uuid, exports)
        return exports

    async def bindings(self, domain: Domain, parts: Parts) -> tuple[PortBinding, ...]:
        """The domain's ports on this host's NICs, each with its address."""
        return tuple(
            [await self._bind(domain, port, parts, number) for number, port in enumerate(domain.ports)]
        )

    async def _bind(self, domain: Domain, port: Port, parts: Parts, number: int) -> PortBinding:
        nic = parts.config.nics[number]
        segment = self._config.segments.get(port.segment)
        if segment is None or parts.network is None:
            known = ", ".join(self._config.segments) or "none"
            raise NicagentError(
                Kind.NOT_FOUND,
                f"no segment is called {port.segment!r}",
                f"known: {known}",
                of=Thing.SEGMENT,
            )
        if port.ipv4 is not None:
            if not _lies_in(port.ipv4, segment.cidr):
                raise NicagentError(
                    Kind.INVALID,
                    f"{port.name} of {domain.name} wants {port.ipv4}, which is no address of {segment.cidr}",
                    f"take one of segment {port.segment}, or leave it to the agent",
                )
            first = last = port.ipv4
        else:
            first, last = segment.range
        address = await self._store.lease(port.segment, domain.uuid, port.name, first, last)
        return PortBinding(port, nic.device, nic.mac, address, domain.name)


def _lies_in(address: str, cidr: str) -> bool:
    try:
        return ipaddress.IPv4Address(address) in ipaddress.IPv4Network(cidr)
    except ValueError:
        return False

"""Where a domain can run, and everything that its run needs, resolved before anything is touched.

Nothing here moves a host: it looks at walkers, keeps what is derived once (leases, identities) in the store,
and answers with a `Run` or with the reasons why there is none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from nicagent.actions import Parts
from nicagent.config import Nic
from nicagent.errors import Kind, NicagentError
from nicagent.model import (
    Disk,
    Display,
    DisplayBinding,
    Domain,
    Export,
    ExportIdentity,
    HostState,
    Port,
    PortBinding,
    Power,
)
from nicagent.segments import Segments, lies_in
from nicagent.store import Run, Store
from nicagent.walker import Walker

# domain UUID, host, its disks, identities stored before → what is to be exported
DeriveExports = Callable[[str, str, Sequence[Disk], Mapping[str, ExportIdentity]], tuple[Export, ...]]


class Placement:
    """Finds a domain's host and binds its disks and ports to it. Calls must not overlap: the controller holds
    a lock, so that placements see one another's results.
    """

    def __init__(self, store: Store, derive: DeriveExports, segments: Segments) -> None:
        self._store = store
        self._segments = segments
        self._derive = derive

    # ---- where

    def place(self, domain: Domain, walkers: Mapping[str, Walker]) -> Walker:
        """The host to run on: the pinned one, else the first that is free, off and big enough. If the domain
        has a screen, one that can show it comes before one that cannot.

        Raises WRONG_STATE with every host's reason when there is none.
        """
        fitting: list[Walker] = []
        refusals: list[str] = []
        for name, walker in walkers.items():
            if domain.host is not None and domain.host != name:
                continue
            refusal = self.refusal(domain, walker)
            if refusal is None:
                fitting.append(walker)
            else:
                refusals.append(f"{name} {refusal}")
        if fitting:
            return next((each for each in fitting if _shows(domain, each.parts)), fitting[0])
        raise NicagentError(
            Kind.WRONG_STATE,
            f"no host can take domain {domain.name}: "
            f"{'; '.join(refusals) or f'{domain.host} is not in the config'}",
            "nicagent hosts shows them all",
        )

    def never(self, domain: Domain, walkers: Mapping[str, Walker]) -> str | None:
        """Why no host could ever run the domain as it is defined; None when one could."""
        misfits = []
        for name, walker in walkers.items():
            if domain.host in (None, name):
                misfit = self.misfit(domain, walker.parts)
                if misfit is None:
                    return None
                misfits.append(f"{name} {misfit}")
        return "; ".join(misfits)

    def refusal(self, domain: Domain, walker: Walker) -> str | None:
        """Why this host cannot take the domain now; None when it can."""
        if walker.record.state is not HostState.FREE:
            return f"is {walker.record.state.value} ({walker.record.reason})"
        if walker.watch.power is Power.ON:
            return f"is switched on without a domain (nicagent power off {walker.parts.name})"
        if walker.watch.power is Power.UNKNOWN:
            trouble = walker.watch.trouble or "not read yet: ask again in a moment"
            return f"has no readable power state ({trouble})"
        return self.misfit(domain, walker.parts)

    def misfit(self, domain: Domain, parts: Parts) -> str | None:
        """Why this host could never run the domain, whatever its state; None when it could."""
        config = parts.config
        if len(domain.ports) > len(config.nics):
            return f"has {len(config.nics)} NICs for {len(domain.ports)} interfaces"
        macs = [nic.mac for nic in config.nics]
        for port in domain.ports:
            if port.mac is not None and port.mac not in macs:
                known = " or ".join(macs)
                return f"has a NIC with MAC {known}, not {port.mac} (leave it out of the definition)"
        if len({port.mac for port in domain.ports if port.mac}) < sum(
            port.mac is not None for port in domain.ports
        ):
            return "has no two NICs with one MAC"
        if domain.memory_kib > config.memory_mib * 1024:
            return f"has {config.memory_mib} MiB of memory, {domain.memory_kib // 1024} are asked for"
        if domain.vcpus > config.cpus:
            return f"has {config.cpus} CPUs, {domain.vcpus} are asked for"
        return None

    # ---- what it needs there

    async def plan(self, domain: Domain, parts: Parts, others: Iterable[Run] = ()) -> Run:
        """A new run of the domain on this host, beside `others`. What is derived for it is stored by now.

        Raises NOT_FOUND (segment), INVALID (address, serial), EXISTS (address), NO_SPACE (addresses, ports of
        screens), UNSUPPORTED and UNAVAILABLE (where its screen is to be shown).
        """
        return Run(
            domain,
            await self._store.next_domain_id(),
            await self._bindings(domain, parts),
            await self._exports(domain, parts),
            display=await self._display(domain, parts, others),
        )

    async def _display(self, domain: Domain, parts: Parts, others: Iterable[Run]) -> DisplayBinding | None:
        """Where the domain's screen is shown; None where it has none, or the host's cannot be."""
        if domain.display is None or parts.displays is None or not _shows(domain, parts):
            return None
        taken = {run.display.port for run in others if run.display is not None}
        return await parts.displays.bind(parts.name, domain.display, taken)

    async def replan(self, run: Run, domain: Domain, parts: Parts) -> Run:
        """The run going on with these disks and ports. Raises what `plan` does, UNSUPPORTED for what the host
        does not have.
        """
        misfit = self.misfit(domain, parts)
        if misfit is not None:
            raise NicagentError(Kind.UNSUPPORTED, f"host {parts.name} {misfit}", "nicagent hosts shows it")
        return replace(
            run,
            domain=domain,
            bindings=await self._bindings(domain, parts, run.bindings),
            exports=await self._exports(domain, parts),
            display=_again(run.display, domain.display),
        )

    async def _exports(self, domain: Domain, parts: Parts) -> tuple[Export, ...]:
        """The domain's disks under the names that its host knows them by."""
        known = await self._store.identities(domain.uuid)
        exports = self._derive(domain.uuid, parts.name, domain.disks, known)
        await self._store.put_identities(domain.uuid, exports)
        return exports

    async def _bindings(
        self, domain: Domain, parts: Parts, before: Sequence[PortBinding] = ()
    ) -> tuple[PortBinding, ...]:
        """The domain's ports on this host's NICs, each with its address. A NIC that had a port `before` keeps
        that port's name, and with it its address, whatever comes and goes beside it.
        """
        pairs = list(zip(domain.ports, _nics(domain.ports, parts.config.nics), strict=True))
        known = {binding.device: binding.port.name for binding in before}
        kept = {known[nic.device] for _, nic in pairs if nic.device in known}
        fresh = (name for number in itertools.count() if (name := f"port{number}") not in kept)
        named = []
        for port, nic in pairs:
            name = known.get(nic.device, port.name if not before else "") or next(fresh)
            named.append((replace(port, name=name), nic))
        return tuple([await self._bind(domain, port, nic, parts) for port, nic in named])

    async def _bind(self, domain: Domain, port: Port, nic: Nic, parts: Parts) -> PortBinding:
        segment = self._segments.carrying(port.segment)
        if parts.network is None:
            raise NicagentError(
                Kind.UNSUPPORTED,
                "this agent is no VTEP, so it carries no segments",
                "add [overlay] to nicagent.toml",
            )
        kept = segment.fixed.get(nic.mac)
        wanted = port.ipv4 or kept
        if wanted is not None and not lies_in(wanted, segment.cidr):
            raise NicagentError(
                Kind.INVALID,
                f"{port.name} of {domain.name} wants {wanted}, which is no address of {segment.cidr}",
                f"take one of segment {port.segment}, or leave it to the agent",
            )
        first, last = (wanted, wanted) if wanted is not None else segment.range
        avoid = {*segment.reserved, *segment.fixed.values()} - {kept}
        address = await self._store.lease(port.segment, domain.uuid, port.name, first, last, avoid)
        return PortBinding(port, nic.device, nic.mac, address, domain.name)


def _shows(domain: Domain, parts: Parts) -> bool:
    """Whether all of the domain that is to be seen can be, on this host."""
    return domain.display is None or (parts.displays is not None and parts.displays.shows(parts.name))


def _again(binding: DisplayBinding | None, display: Display | None) -> DisplayBinding | None:
    """A screen stays where it is, whoever may now look at it. Raises UNSUPPORTED where it is to move."""
    if binding is None or display is None:
        return binding
    before, wanted = binding.display, (display.address, display.port)
    if wanted not in ((before.address, before.port), (binding.address, binding.port)):
        raise NicagentError(
            Kind.UNSUPPORTED,
            f"the screen of a running domain stays at {binding.address} port {binding.port}",
            "change the definition, and power off and on",
        )
    return replace(binding, display=replace(display, address=before.address, port=before.port))


def _nics(ports: Sequence[Port], nics: Sequence[Nic]) -> list[Nic]:
    """A NIC for each port: the one with its MAC, else the first that is left. The host is known to fit."""
    by_mac = {nic.mac: nic for nic in nics}
    asked = {port.mac for port in ports}
    left = (nic for nic in nics if nic.mac not in asked)
    return [by_mac[port.mac] if port.mac is not None else next(left) for port in ports]

"""The overlay driver: ports of hosts on VXLAN segments, by bridge, netlink, nftables and dnsmasq.

The kernel holds the state that matters and keeps it when the agent dies. This object adds only what was asked
for, kept in a small record beside it, and one lock: changes happen one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nicagent.config import Overlay, Segment
from nicagent.errors import Kind, NicagentError, Thing
from nicagent.filter_rules import Filter
from nicagent.filters_builtin import BUILT_IN
from nicagent.model import PortBinding, PortStatus
from nicagent.network import record
from nicagent.network.contract import NetworkDriver, bridge_name
from nicagent.network.fabric import Fabric, Wanted, bridge_mac
from nicagent.network.netlink import Link

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class OverlayNetwork(NetworkDriver):
    """All segments of one agent; one agent to a network namespace. `segments` are those that may carry ports,
    `filters` those that ports may name; their owners change the mappings as clients do.
    """

    def __init__(
        self,
        overlay: Overlay,
        segments: Mapping[str, Segment],
        run_dir: Path,
        filters: Mapping[str, Filter] = BUILT_IN,
    ) -> None:
        for address in (overlay.local, *overlay.peers):
            _underlay_address(address)
        self._segments = segments
        self._folder = run_dir / "network"
        self._fabric = Fabric(overlay, self._folder, filters)
        self._record = record.Record()
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        async with self._lock:
            self._record = record.load(self._record_path)
            await self._fabric.open()

    async def present(self, host: str, bindings: Sequence[PortBinding]) -> None:
        async with self._lock:
            mine = tuple(replace(b, mac=b.mac.lower()) for b in bindings)
            others = {name: ports for name, ports in self._record.ports.items() if name != host}
            self._check(mine, others, await self._fabric.links())
            await self._become({**others, host: mine} if mine else others, {b.device for b in mine})

    async def withdraw(self, host: str) -> None:
        async with self._lock:
            # Not undone when it fails: what is to be closed is told by the kernel, so it can be repeated.
            self._record.ports = {name: p for name, p in self._record.ports.items() if name != host}
            self._save()
            await self._fabric.withdraw(self._wanted(), self._record.found)
            self._save()

    async def status(self, host: str) -> tuple[PortStatus, ...]:
        async with self._lock:
            links = await self._fabric.links()
            return tuple(self._status(b, links) for b in self._record.ports.get(host, ()))

    async def refilter(self) -> None:
        async with self._lock:
            await self._fabric.refilter(self._wanted())

    async def close(self) -> None:
        async with self._lock:
            self._fabric.close()

    async def drops(self) -> dict[str, int]:
        """Frames that the guards have dropped, by reason (`guard.COUNTERS`); empty without ports."""
        async with self._lock:
            return await self._fabric.counters()

    @property
    def _record_path(self) -> Path:
        return self._folder / "ports.json"

    async def _become(self, ports: dict[str, tuple[PortBinding, ...]], asked: Collection[str]) -> None:
        """Record what is wanted, then converge; if that fails, what was wanted before is wanted again."""
        before = self._record.ports
        try:
            await self._converge(ports, asked)
        except NicagentError:
            with contextlib.suppress(NicagentError):  # the first failure is the one to report
                await self._converge(before, asked)
            raise

    async def _converge(self, ports: dict[str, tuple[PortBinding, ...]], asked: Collection[str]) -> None:
        self._record.ports = ports
        self._save()
        await self._fabric.converge(self._wanted(), asked, self._record.found, self._save)
        self._save()

    def _wanted(self) -> dict[str, Wanted]:
        """The recorded ports by device."""
        return {
            b.device: Wanted(b, self._segments[b.port.segment])
            for bindings in self._record.ports.values()
            for b in bindings
            if b.port.segment in self._segments  # a segment may have gone meanwhile
        }

    def _save(self) -> None:
        if self._record.ports or self._record.found:
            record.save(self._record_path, self._record)
        else:
            self._record_path.unlink(missing_ok=True)

    def _status(self, binding: PortBinding, links: Mapping[str, Link]) -> PortStatus:
        name, device = binding.port.name, binding.device
        link, segment = links.get(device), self._segments.get(binding.port.segment)
        bridge = links.get(bridge_name(segment.vni)) if segment is not None else None
        if link is None:
            return PortStatus(name, device, link=False)
        return PortStatus(
            name,
            device,
            link=link.up and link.carrier and bridge is not None and link.master == bridge.index,
            # What the agent's device sends is what the host receives.
            rx_bytes=link.tx_bytes,
            rx_packets=link.tx_packets,
            tx_bytes=link.rx_bytes,
            tx_packets=link.rx_packets,
        )

    def _check(
        self,
        mine: Iterable[PortBinding],
        others: Mapping[str, Iterable[PortBinding]],
        links: Mapping[str, Link],
    ) -> None:
        """Refuse what cannot be before anything is touched."""
        taken = {claim: name for name, bindings in others.items() for b in bindings for claim in _claims(b)}
        for binding in mine:
            segment = self._segments.get(binding.port.segment)
            if segment is None:
                raise NicagentError(
                    Kind.NOT_FOUND,
                    f"segment {binding.port.segment!r} of {binding.port.name} is not configured here",
                    f"add [segments.{binding.port.segment}] to nicagent.toml, or use one of: "
                    + (", ".join(sorted(self._segments)) or "none"),
                    of=Thing.SEGMENT,
                )
            _check_addresses(binding, segment)
            _check_device(binding, links)
            self._fabric.check_filter(binding)
            for claim in _claims(binding):
                if claim in taken:
                    what, value, *_ = claim
                    raise NicagentError(
                        Kind.EXISTS,
                        f"{what} {value} of {binding.port.name} is taken by {taken[claim]}",
                        f"give each port a {what} of its own",
                    )
                taken[claim] = f"{binding.port.name} of the same host"


def _claims(binding: PortBinding) -> list[tuple[str, ...]]:
    """What a port has to itself: a device, and on its segment a MAC and an address."""
    segment = binding.port.segment
    return [("device", binding.device), ("MAC", binding.mac, segment), ("address", binding.ipv4, segment)]


def _check_addresses(binding: PortBinding, segment: Segment) -> None:
    def wrong(what: str, hint: str) -> NicagentError:
        port = binding.port
        return NicagentError(Kind.INVALID, f"port {port.name} of segment {port.segment}: {what}", hint)

    mac, nobodys = binding.mac, ("00:00:00:00:00:00", bridge_mac(segment.vni))
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or mac in nobodys:
        raise wrong(f"{mac!r} is no MAC that a host may have", "write a unicast MAC as 02:00:00:00:00:01")
    network = ipaddress.IPv4Network(segment.cidr)
    try:
        address = ipaddress.IPv4Address(binding.ipv4)
    except ValueError:
        raise wrong(f"{binding.ipv4!r} is no IPv4 address", f"choose one of {network}") from None
    if address not in network or address in (network.network_address, network.broadcast_address):
        raise wrong(f"{address} is no host's address in {network}", "choose one of that network")


def _check_device(binding: PortBinding, links: Mapping[str, Link]) -> None:
    link = links.get(binding.device)
    if link is None:
        raise NicagentError(
            Kind.NOT_FOUND,
            f"there is no network device {binding.device} for {binding.port.name}",
            "see `ip link`; the device is named under the host's nics in nicagent.toml",
        )
    master = next((other.name for other in links.values() if other.index == link.master), None)
    if master is not None and not re.fullmatch(r"na-br\d+", master):
        raise NicagentError(
            Kind.UNAVAILABLE,
            f"the network device {binding.device} for {binding.port.name} belongs to {master}",
            f"take it out: ip link set {binding.device} nomaster",
        )


def _underlay_address(address: str) -> None:
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        raise NicagentError(
            Kind.INVALID, f"overlay: {address!r} is no IPv4 address", "VTEPs are named by IPv4 address"
        ) from None

"""The agent's own network devices, as the kernel tells them: read, never changed. They are the operator's."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True)
class Netdev:
    """A device. `members`: what a bridge holds. `addresses`: each with its prefix length."""

    name: str
    mac: str
    mtu: int
    up: bool  # administratively
    carrier: bool
    kind: str | None  # bridge, vxlan, veth, tun; None for a real NIC
    addresses: tuple[tuple[str, int], ...] = ()
    members: tuple[str, ...] = ()


class Netdevs:
    """Asks the kernel anew with every call: whatever is plugged in is seen."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def all(self) -> list[Netdev]:
        """Every device of the agent's network namespace, by name. Raises UNAVAILABLE."""
        from nicagent.network.netlink import Netlink  # an agent that nobody asks does without pyroute2

        async with self._lock:
            netlink = Netlink()
            netlink.open()
            try:
                links, addresses = await netlink.links(), await netlink.addresses()
            finally:
                netlink.close()
        return [
            Netdev(
                name=link.name,
                mac=link.mac,
                mtu=link.mtu,
                up=link.up,
                carrier=link.carrier,
                kind=link.kind,
                addresses=tuple(addresses.get(link.index, ())),
                members=tuple(sorted(each.name for each in links.values() if each.master == link.index)),
            )
            for link in sorted(links.values(), key=lambda link: link.name)
        ]

"""How fast a port may go: a token bucket (htb, tc-htb(8)) for each direction that has a rate.

What the host receives waits in its bucket as it leaves the agent's device. What the host sends is taken off
that device as it comes in, waits in the bucket of an ifb device of the port's own, and then comes in as if
nothing had been: the bridge and its guards see it after that, from the device that it came from.

Every step may be repeated, and disturbs nothing where all is as it should be. Nothing is read: what is there
already says so, and what somebody else put there has another handle.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Awaitable, Collection, Mapping
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from nicagent.model import Rate
from nicagent.network.netlink import Link, Netlink, explained, silence

_ROOT, _BUCKET, _QUEUE = 0x6E61_0000, 0x6E61_0001, 0x6E62_0000  # handles: "na", and its only class
_INGRESS = 0xFFFF_0000
_FILTER = 0x8000_0800
_EVERY_PROTOCOL = 0x0003
_SHORTEST, _LONGEST = 32, 1000  # packets that wait for their turn
_WAIT = 0.2  # seconds that full-sized packets wait at most, between these two
_PACKET = 1500  # bytes
_BURST_SECONDS, _LEAST_BURST = 0.01, 16 << 10  # where none is named
_NOT_THERE, _THERE = (errno.ENOENT, errno.EINVAL), (errno.EEXIST,)
_OURS = re.compile(r"na-rl(\d+)")


def shaper_name(link: Link) -> str:
    """The ifb device in which waits what comes in by `link`."""
    return f"na-rl{link.index}"


class Rates:
    """The rates of ports, through one netlink connection."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink

    async def set(
        self, link: Link, inbound: Rate | None, outbound: Rate | None, links: Mapping[str, Link]
    ) -> None:
        """Hold a port to exactly these. Raises UNAVAILABLE where the kernel cannot."""
        with explained(f"limit the rates of {link.name}"):
            if inbound is None:
                await _unless(_NOT_THERE, self._tc("del", "htb", link.index, _ROOT))
            else:
                await self._bucket(link.index, inbound)
            if outbound is not None:
                await self._shape_what_comes_in(link, outbound, links)
            elif shaper_name(link) in links:
                await _unless(_NOT_THERE, self._tc("del", "ingress", link.index))
                await self._netlink.delete(links[shaper_name(link)])

    async def forget_others(self, ports: Collection[int], links: Mapping[str, Link]) -> None:
        """Remove what is left of ports that are gone; `ports`: indices of those that there are."""
        for name, link in links.items():
            found = _OURS.fullmatch(name)
            if found is not None and int(found[1]) not in ports:
                await self._netlink.delete(link)

    async def _shape_what_comes_in(self, link: Link, rate: Rate, links: Mapping[str, Link]) -> None:
        name = shaper_name(link)
        if name not in links:
            # A filter that is left over would lead nowhere: the device that it means is not there.
            await _unless(_NOT_THERE, self._tc("del", "ingress", link.index))
            await self._netlink.route.link("add", ifname=name, kind="ifb", mtu=link.mtu)
        silence(name)
        shaper = (await self._netlink.links())[name]
        await self._bucket(shaper.index, rate)
        if not shaper.up:
            await self._netlink.change(shaper, state="up")
        await _unless(_THERE, self._tc("add", "ingress", link.index))
        redirect = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": shaper.index}
        everything = {"keys": ["0x0/0x0+0"], "target": 0x10000, "protocol": _EVERY_PROTOCOL, "prio": 1}
        wanted = self._tc(
            "add-filter", "u32", link.index, _FILTER, parent=_INGRESS, action=redirect, **everything
        )
        await _unless(_THERE, wanted)

    async def _bucket(self, index: int, rate: Rate) -> None:
        peak = max(rate.average, rate.peak)
        burst = rate.burst or max(int(rate.average * _BURST_SECONDS), _LEAST_BURST)
        waiting = min(max(int(rate.average * _WAIT / _PACKET), _SHORTEST), _LONGEST)
        await _unless(_THERE, self._tc("add", "htb", index, _ROOT, default=_BUCKET & 0xFFFF))
        await self._tc(
            *("replace-class", "htb", index, _BUCKET),
            parent=_ROOT,
            rate=rate.average,
            ceil=peak,
            burst=burst,
            cburst=max(int(peak * _BURST_SECONDS), _LEAST_BURST),
        )
        await self._tc("replace", "pfifo", index, _QUEUE, parent=_BUCKET, limit=waiting)

    def _tc(self, command: str, kind: str, index: int, handle: int = 0, **values: Any) -> Awaitable[Any]:
        return self._netlink.route.tc(command, kind, index, handle, **values)  # type: ignore[no-any-return]


async def _unless(quiet: Collection[int], step: Awaitable[Any]) -> None:
    """Take a step; the errors in `quiet` say that there is nothing to do."""
    try:
        await step
    except NetlinkError as e:
        if e.code not in quiet:
            raise

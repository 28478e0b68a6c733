"""Bridges, tunnels and ports as they should be: reads what the kernel has and does the difference.

Per segment one bridge and one VXLAN device in it. The order of the steps is the contract's: close what must
not be open, then swap the guards in one transaction, then open. Every step looks before it acts, so a death
anywhere is mended by doing it all again, and doing it again touches nothing that carries traffic.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Collection, Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from nicagent.config import Overlay, Segment
from nicagent.dnsmasq import unprivileged_user
from nicagent.errors import Kind, NicagentError
from nicagent.filter_rules import Filter
from nicagent.model import PortBinding
from nicagent.network import dhcp
from nicagent.network.contract import RESPONDER, bridge_name
from nicagent.network.guard import Guard, Guards
from nicagent.network.netlink import Link, Netlink, Vxlan, silence
from nicagent.network.portfilter import Programs
from nicagent.network.rates import Rates
from nicagent.network.record import Found

VXLAN_OVERHEAD = 50  # bytes: Ethernet 14 + IPv4 20 + UDP 8 + VXLAN 8 (RFC 7348 §5)
log = logging.getLogger(__name__)
_OURS = re.compile(r"na-(br|vx)\d+")


def tunnel_name(vni: int) -> str:
    """The VXLAN device of a segment."""
    return f"na-vx{vni}"


def bridge_mac(vni: int) -> str:
    """The responder's MAC on a segment: the same on every agent, like its address, and as local.

    Fixed, since a bridge otherwise changes its MAC with its ports and hosts would hold a stale one.
    """
    return "02:6e:61:" + vni.to_bytes(3, "big").hex(":")


@dataclass(frozen=True)
class Wanted:
    """A port to be, with its segment."""

    binding: PortBinding
    segment: Segment


def _segments(ports: Mapping[str, Wanted]) -> dict[int, Segment]:
    """The segments of these ports, by VNI."""
    return {wanted.segment.vni: wanted.segment for wanted in ports.values()}


class Fabric:
    """The kernel side of one agent's overlay. Calls must not overlap: the owner holds a lock."""

    def __init__(self, overlay: Overlay, folder: Path, filters: Mapping[str, Filter]) -> None:
        self._overlay = overlay
        self._folder = folder
        self._netlink = Netlink()
        self._guards = Guards(overlay)
        self._programs = Programs(filters)
        self._rates = Rates(self._netlink)
        self._settled: dict[str, Wanted] = {}  # ports that this object has opened, and as what

    async def open(self) -> None:
        """Connect, and find out whether we may work at all. Raises UNAVAILABLE."""
        self._netlink.open()
        await self._guards.counters()

    def close(self) -> None:
        """Disconnect; the kernel keeps everything."""
        self._netlink.close()

    async def links(self) -> dict[str, Link]:
        """Every device by name."""
        return await self._netlink.links()

    async def counters(self) -> dict[str, int]:
        """Frames dropped by the guards, by reason."""
        return await self._guards.counters()

    async def converge(
        self,
        ports: Mapping[str, Wanted],
        asked: Collection[str],
        found: dict[str, Found],
        remember: Callable[[], None],
    ) -> None:
        """Make exactly these the ports, by device. A port whose device is not there stays closed.

        Ports in `asked` are looked at closely; the others only as far as they are new to us, so that one
        host's change does not cost a walk through a thousand others. `found` gains how a device was before
        it is first touched and loses it once that is restored; `remember` is called after each gain,
        before the touch. Raises what stands in the way of a port in `asked`; what stands in the way of
        others' segments is logged.
        """
        await self._close_others(ports, found)
        segments = _segments(ports)
        mine = {ports[device].segment.vni for device in asked if device in ports}
        await self._each(segments, mine, self._make_segment)
        await self._guard(ports)
        links = await self.links()

        async def open_segment(segment: Segment) -> None:
            await self._open_segment(segment, links)
            await self._answer_dhcp(segment, links, ports)

        await self._each(segments, mine, open_segment)
        for device, wanted in ports.items():
            link, bridge = links.get(device), links.get(bridge_name(wanted.segment.vni))
            if link is None or bridge is None or wanted.segment.vni not in segments:
                continue
            if device not in asked and link.master == bridge.index and self._settled.get(device) == wanted:
                continue
            if device not in found:
                found[device] = Found(link.mtu, link.up)
                remember()
            await self._open_port(link, bridge, wanted, links)
            self._settled[device] = wanted

    async def withdraw(self, ports: Mapping[str, Wanted], found: dict[str, Found]) -> None:
        """Close all but these ports, and make nothing: what stays may be beyond mending just now."""
        await self._close_others(ports, found)
        await self._guard(ports)
        links = await self.links()

        async def forget_leases(segment: Segment) -> None:
            if bridge_name(segment.vni) in links:
                await self._answer_dhcp(segment, links, ports)

        await self._each(_segments(ports), (), forget_leases)

    def check_filter(self, binding: PortBinding) -> None:
        """The port's filter can be had. Raises NOT_FOUND, INVALID, UNSUPPORTED."""
        self._programs.of(binding)

    async def refilter(self, ports: Mapping[str, Wanted]) -> None:
        """Bring the guards of these ports, which are all there are, to what their filters say by now."""
        await self._guard(ports)

    async def _close_others(self, ports: Mapping[str, Wanted], found: dict[str, Found]) -> None:
        """Close every port but these, then take down every segment without one."""
        await self._close_ports(ports, found)
        await self._remove_segments(_segments(ports))

    async def _guard(self, ports: Mapping[str, Wanted]) -> None:
        await self._guards.apply(
            [
                Guard(w.binding.device, w.binding.mac, w.binding.ipv4, w.binding.port.filter)
                for w in ports.values()
            ],
            [tunnel_name(vni) for vni in _segments(ports)],
            self._programs.of_all(wanted.binding for wanted in ports.values()),
        )

    async def _each(
        self, segments: dict[int, Segment], mine: Container[int], step: Callable[[Segment], Awaitable[None]]
    ) -> None:
        """Take a step for each segment. Where it fails for one that is not among `mine`, that one is logged,
        left as it is and dropped from `segments`: one host's trouble is not another's.
        """
        for vni, segment in list(segments.items()):
            try:
                await step(segment)
            except NicagentError as e:
                if vni in mine:
                    raise
                log.error("VNI %d is left as it is: %s", vni, e)
                del segments[vni]

    # ── closing ──

    async def _close_ports(self, ports: Mapping[str, Wanted], found: dict[str, Found]) -> None:
        links = await self.links()
        names = {link.index: link.name for link in links.values()}
        for link in links.values():
            bridge = names.get(link.master or 0, "")
            if not _OURS.fullmatch(bridge) or _OURS.fullmatch(link.name):
                continue
            wanted = ports.get(link.name)
            if wanted is None or bridge != bridge_name(wanted.segment.vni):
                await self._netlink.change(link, master=0)
        for device in [name for name in found if name not in ports]:
            if (former := links.get(device)) is not None:
                await self._rates.set(former, None, None, links)
                await self._restore(former, found[device])
            del found[device]
            self._settled.pop(device, None)
        await self._rates.forget_others({links[name].index for name in ports if name in links}, links)

    async def _restore(self, link: Link, found: Found) -> None:
        # IPv6 stays off: the agent's end of a host's cable must never grow an address by itself.
        if link.up != found.up:
            await self._netlink.change(link, state="up" if found.up else "down")
        if link.mtu != found.mtu:
            await self._netlink.change(link, mtu=found.mtu)

    async def _remove_segments(self, segments: Mapping[int, Segment]) -> None:
        for vni, responder in dhcp.left_behind(self._folder).items():
            if vni not in segments:
                await responder.stop()
        keep = {name(vni) for vni in segments for name in (bridge_name, tunnel_name)}
        for link in (await self.links()).values():
            if _OURS.fullmatch(link.name) and link.name not in keep:
                await self._netlink.delete(link)

    # ── segments ──

    async def _make_segment(self, segment: Segment) -> None:
        """Bridge and VXLAN device, apart from each other as long as there is no guard between them."""
        links = await self.links()
        bridge, tunnel = bridge_name(segment.vni), tunnel_name(segment.vni)
        underlay = await self._underlay(segment, links)
        if bridge not in links:
            await self._netlink.add_bridge(bridge, bridge_mac(segment.vni), segment.mtu)
        vxlan = Vxlan(segment.vni, self._overlay.local, self._overlay.port)
        if tunnel in links and links[tunnel].vxlan != vxlan:  # the VTEP's address or port was configured anew
            await self._netlink.delete(links.pop(tunnel))
        if tunnel not in links:
            await self._netlink.add_vxlan(tunnel, vxlan, segment.mtu, underlay)

    async def _underlay(self, segment: Segment, links: Mapping[str, Link]) -> int | None:
        """The underlay device's index if one is configured; checks that the segment's frames fit it."""
        local, name = self._overlay.local, self._overlay.device
        index = links[name].index if name in links else None if name else await self._netlink.underlay(local)
        link = next((link for link in links.values() if link.index == index), None)
        if link is None:
            what = f"underlay device {name} is" if name else f"underlay address {local} is"
            raise NicagentError(
                Kind.NOT_FOUND, f"the {what} not on this machine", "mend [overlay], or bring it up"
            )
        if link.mtu < segment.mtu + VXLAN_OVERHEAD:
            raise NicagentError(
                Kind.INVALID,
                f"VNI {segment.vni} has an MTU of {segment.mtu}, which with VXLAN's {VXLAN_OVERHEAD} bytes "
                f"does not fit the underlay device {link.name}'s {link.mtu}",
                f"set the segment's mtu to {link.mtu - VXLAN_OVERHEAD} or raise the underlay's",
            )
        return link.index if name else None

    async def _open_segment(self, segment: Segment, links: Mapping[str, Link]) -> None:
        bridge, tunnel = links[bridge_name(segment.vni)], links[tunnel_name(segment.vni)]
        silence(bridge.name, answers_dhcp=True)
        silence(tunnel.name)
        for link in (bridge, tunnel):
            if link.mtu != segment.mtu:
                await self._netlink.change(link, mtu=segment.mtu)
        await self._netlink.set_flood_list(
            tunnel, frozenset(self._overlay.peers) - frozenset([self._overlay.local])
        )
        if tunnel.master != bridge.index:
            await self._netlink.change(tunnel, master=bridge.index)
        await self._netlink.add_address(bridge, RESPONDER)
        for link in (bridge, tunnel):
            if not link.up:
                await self._netlink.change(link, state="up")

    async def _answer_dhcp(
        self, segment: Segment, links: Mapping[str, Link], ports: Mapping[str, Wanted]
    ) -> None:
        bridge = links[bridge_name(segment.vni)]
        bound = [w.binding for w in ports.values() if w.segment.vni == segment.vni]
        text = dhcp.config_text(segment, bridge.name, bridge.index, unprivileged_user(), bound)
        await dhcp.responder(self._folder, segment.vni).serve(text)

    # ── opening ──

    async def _open_port(self, link: Link, bridge: Link, wanted: Wanted, links: Mapping[str, Link]) -> None:
        silence(link.name)
        port = wanted.binding.port
        await self._rates.set(link, port.inbound, port.outbound, links)
        if link.mtu < wanted.segment.mtu:
            await self._netlink.change(link, mtu=wanted.segment.mtu)
        if link.master != bridge.index:
            await self._netlink.change(link, master=bridge.index)
        # The host is where its binding says, not where a frame claims; and it hears only what is for it.
        await self._netlink.set_port(link, learning=False, unicast_flood=False)
        await self._netlink.set_station(link, wanted.binding.mac)
        if not link.up:
            await self._netlink.change(link, state="up")

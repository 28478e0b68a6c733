"""One rtnetlink connection: links, addresses and forwarding entries, with errors in plain words.

pyroute2 does the encoding; this module knows which few messages the overlay needs and turns the kernel's
answer (errno and its extended acknowledgement, netlink(7)) into a sentence with a way out.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nicagent.errors import Kind, NicagentError

FLOOD_MAC = "00:00:00:00:00:00"  # a VXLAN device's default destination: where unknown and broadcast frames go
_NUD_PERMANENT = 0x80
_NUD_NOARP = 0x40  # `bridge fdb … static`
_NTF_SELF = 0x02
_NTF_MASTER = 0x04
_NTF_STICKY = 0x40
_SCOPE_LINK = 253
_IFF_UP = 0x1
_SYSCTL = Path("/proc/sys/net")  # of the calling thread's network namespace

_HINTS = {
    errno.EPERM: (Kind.UNAVAILABLE, "run the agent as root or give it CAP_NET_ADMIN"),
    errno.EACCES: (Kind.UNAVAILABLE, "run the agent as root or give it CAP_NET_ADMIN"),
    errno.EOPNOTSUPP: (Kind.UNAVAILABLE, "this kernel lacks it: load the modules bridge, vxlan and ifb"),
    errno.ENOENT: (Kind.UNAVAILABLE, "this kernel lacks it: load sch_htb, sch_ingress, cls_u32, act_mirred"),
    errno.ENODEV: (Kind.NOT_FOUND, "the device has gone: see `ip link`"),
    errno.EBUSY: (Kind.UNAVAILABLE, "the device belongs to something else: see `ip -d link`"),
    errno.EEXIST: (Kind.UNAVAILABLE, "something else made one like it: see `ip -d link`"),
    errno.EADDRINUSE: (Kind.UNAVAILABLE, "another VXLAN user holds the UDP port: see `ip -d link`"),
}


@dataclass(frozen=True)
class Vxlan:
    """What makes a VXLAN device this one and no other."""

    vni: int
    local: str | None  # the VTEP's underlay address
    port: int  # UDP


@dataclass(frozen=True)
class Link:
    """A network device as the kernel reports it."""

    index: int
    name: str
    kind: str | None  # bridge, vxlan, veth, tun; None for a real NIC
    mac: str
    mtu: int
    up: bool  # administratively
    carrier: bool
    master: int | None
    vxlan: Vxlan | None
    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn a netlink error inside into a NicagentError: "cannot <doing>: <the kernel's words>"."""
    try:
        yield
    except NetlinkError as e:
        kind, hint = _HINTS.get(e.code, (Kind.UNAVAILABLE, "see the kernel's log (dmesg)"))
        words = str(e.args[1]) if len(e.args) > 1 and e.args[1] else os.strerror(e.code)
        raise NicagentError(kind, f"cannot {doing}: {words.rstrip('.')}", hint) from None


class Netlink:
    """The connection. Not for use by two tasks at a time: its owner holds a lock."""

    def __init__(self) -> None:
        self._ip: AsyncIPRoute | None = None

    def open(self) -> None:
        """Connect, once. Reading needs no privilege."""
        if self._ip is None:
            # groups=0: no notifications, which nobody would take off the queue
            self._ip = AsyncIPRoute(ext_ack=True, strict_check=True, groups=0)

    def close(self) -> None:
        """Disconnect; the kernel keeps everything. Idempotent."""
        if self._ip is not None:
            self._ip.close()
            self._ip = None

    @property
    def route(self) -> AsyncIPRoute:
        """The connection itself, for messages that only one module knows."""
        if self._ip is None:
            raise NicagentError(Kind.INTERNAL, "the network driver is not started", "call start() first")
        return self._ip

    async def links(self) -> dict[str, Link]:
        """Every device of this namespace by name."""
        with explained("list network devices"):
            return {link.name: link async for link in _links(self.route)}

    async def addresses(self) -> dict[int, list[tuple[str, int]]]:
        """IPv4 and IPv6 addresses with their prefix lengths, by the index of the device that has them."""
        found: dict[int, list[tuple[str, int]]] = {}
        with explained("list addresses"):
            async for item in await self.route.get_addr():
                found.setdefault(int(item["index"]), []).append((item.get("address"), int(item["prefixlen"])))
        return found

    async def underlay(self, address: str) -> int | None:
        """Index of the device that has this address, None when no device has it."""
        with explained("list addresses"):
            async for item in await self.route.get_addr(address=address):
                return int(item["index"])
        return None

    async def add_bridge(self, name: str, mac: str, mtu: int) -> None:
        """A bridge without STP and multicast snooping, still down.

        Snooping off: without a querier on the segment it would starve groups nobody reports for.
        """
        with explained(f"make the bridge {name}"):
            await self.route.link(
                "add", ifname=name, kind="bridge", address=mac, mtu=mtu, br_mcast_snooping=0, br_stp_state=0
            )

    async def add_vxlan(self, name: str, vxlan: Vxlan, mtu: int, underlay: int | None) -> None:
        """A VXLAN device that learns nothing from the underlay, still down."""
        more = {} if underlay is None else {"vxlan_link": underlay}
        with explained(f"make the VXLAN device {name}"):
            await self.route.link(
                "add",
                ifname=name,
                kind="vxlan",
                mtu=mtu,
                vxlan_id=vxlan.vni,
                vxlan_local=vxlan.local,
                vxlan_port=vxlan.port,
                vxlan_learning=False,
                vxlan_ttl=64,
                **more,
            )

    async def change(self, link: Link, **values: Any) -> None:
        """Set attributes of a device: mtu=1450, state="up", master=index (0: leave it)."""
        words = ", ".join(f"{key} {value}" for key, value in values.items())
        with explained(f"set {words} on {link.name}"):
            await self.route.link("set", index=link.index, **values)

    async def delete(self, link: Link) -> None:
        """Remove a device; that it has gone already is no error."""
        try:
            with explained(f"remove {link.name}"):
                await self.route.link("del", index=link.index)
        except NicagentError as e:
            if e.kind is not Kind.NOT_FOUND:
                raise

    async def add_address(self, link: Link, address: str) -> None:
        """Give a device a /32 of link scope: no route to anything comes with it. Idempotent."""
        with explained(f"give {link.name} the address {address}"):
            await self.route.addr(
                "replace", index=link.index, address=address, prefixlen=32, scope=_SCOPE_LINK
            )

    async def set_port(self, link: Link, *, learning: bool, unicast_flood: bool) -> None:
        """How the bridge treats this port of it."""
        with explained(f"configure the bridge port {link.name}"):
            await self.route.brport(
                "set", index=link.index, learning=int(learning), unicast_flood=int(unicast_flood)
            )

    async def set_station(self, link: Link, mac: str) -> None:
        """Make `mac` the one station behind this bridge port, whatever frames claim. Idempotent.

        Sticky, since a merely static entry follows a frame with that MAC that comes in by another port.
        """
        with explained(f"pin {mac} to the bridge port {link.name}"):
            async for entry in await self.route.fdb("dump", ifindex=link.index):
                old = entry.get("lladdr")
                pinned = entry["state"] & _NUD_NOARP and not entry["state"] & _NUD_PERMANENT
                if entry["flags"] & _NTF_SELF or not pinned or old == mac:
                    continue
                await self.route.fdb("del", ifindex=link.index, lladdr=old, flags=_NTF_MASTER)
            await self.route.fdb(
                "replace",
                ifindex=link.index,
                lladdr=mac,
                state=_NUD_NOARP,
                flags=_NTF_MASTER | _NTF_STICKY,
            )

    async def set_flood_list(self, link: Link, peers: frozenset[str]) -> None:
        """Make exactly these the VTEPs that a VXLAN device sends to; what is right stays. Idempotent."""
        with explained(f"set the peers of {link.name}"):
            have = {
                entry.get("dst")
                async for entry in await self.route.fdb("dump", ifindex=link.index)
                if entry.get("lladdr") == FLOOD_MAC and entry.get("dst")
            }
            for peer in sorted(have - peers):
                await self.route.fdb("del", ifindex=link.index, lladdr=FLOOD_MAC, dst=peer)
            for peer in sorted(peers - have):
                await self.route.fdb("append", ifindex=link.index, lladdr=FLOOD_MAC, dst=peer)


async def _links(ip: AsyncIPRoute) -> AsyncIterator[Link]:
    async for message in await ip.get_links():
        info = message.get("linkinfo")
        kind = info.get("kind") if info is not None else None
        stats = message.get("stats64") or {}
        vxlan = None
        if kind == "vxlan":
            data = info.get("data")
            vxlan = Vxlan(data.get("vxlan_id"), data.get("vxlan_local"), data.get("vxlan_port"))
        yield Link(
            index=message["index"],
            name=message.get("ifname"),
            kind=kind,
            mac=message.get("address") or "",
            mtu=message.get("mtu") or 0,
            up=bool(message["flags"] & _IFF_UP),
            carrier=bool(message.get("carrier")),
            master=message.get("master"),
            vxlan=vxlan,
            rx_bytes=stats.get("rx_bytes", 0),
            rx_packets=stats.get("rx_packets", 0),
            tx_bytes=stats.get("tx_bytes", 0),
            tx_packets=stats.get("tx_packets", 0),
        )


def silence(device: str, *, answers_dhcp: bool = False) -> None:
    """Take IPv6 off a device of ours, so that it neither announces itself to the host nor listens.

    With `answers_dhcp`, also lift reverse-path filtering: a host that renews its lease has an address to
    which the agent, on purpose, has no route.
    """
    settings = {f"ipv6/conf/{device}/disable_ipv6": "1"}
    if answers_dhcp:
        settings[f"ipv4/conf/{device}/rp_filter"] = "0"
    for key, value in settings.items():
        try:
            (_SYSCTL / key).write_text(value)
        except FileNotFoundError:
            continue  # a kernel without IPv6 has nothing to silence
        except OSError as e:
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"cannot set net/{key} to {value}: {e.strerror}",
                "run the agent as root, with a writable /proc/sys/net",
            ) from None

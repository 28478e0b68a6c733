"""DHCP of a segment, answered on the agent by one dnsmasq per segment."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path

from nicagent.config import Segment
from nicagent.dnsmasq import Dnsmasq, common_lines
from nicagent.model import PortBinding
from nicagent.network.contract import RESPONDER, hostname

LEASE = "12h"


def config_text(segment: Segment, bridge: str, index: int, user: str, bindings: Iterable[PortBinding]) -> str:
    """dnsmasq's configuration for a segment (dnsmasq(8)), a pure function of what is bound.

    `index` is the bridge's. The agent has no address in the tenant's network: `shared-network` tells dnsmasq
    that requests on the bridge are of that network all the same. The classless route (RFC 3442, 0.0.0.0 means
    on-link) lets the host reach the responder to renew; it gets no router.
    """
    network = ipaddress.IPv4Network(segment.cidr)
    lines = [
        *common_lines(bridge, index, user),
        "quiet-dhcp",
        f"dhcp-range={network.network_address},static,{network.netmask},{LEASE}",
        f"shared-network={bridge},{network.network_address}",
        "dhcp-ignore-names",
        # Forced: some clients use an MTU they did not ask for, none is hurt by it.
        f"dhcp-option-force=option:mtu,{segment.mtu}",
        f"dhcp-option=option:classless-static-route,{RESPONDER}/32,0.0.0.0",
    ]
    for binding in sorted(bindings, key=lambda b: b.mac):
        name = hostname(binding.hostname)
        lines.append(f"dhcp-host={binding.mac},id:*,{binding.ipv4}" + (f",{name}" if name else ""))
    return "\n".join(lines) + "\n"


def responder(folder: Path, vni: int) -> Dnsmasq:
    """The dnsmasq of a segment, running or not."""
    return Dnsmasq(
        folder,
        f"dhcp-{vni}",
        f"the DHCP server of VNI {vni}",
        "see whether another DHCP server holds UDP port 67: `ss -lnup`",
    )


def left_behind(folder: Path) -> dict[int, Dnsmasq]:
    """Every responder that has left a trace in `folder`, running or not, by VNI."""
    vnis = {int(path.name.partition(".")[0].removeprefix("dhcp-")) for path in folder.glob("dhcp-*.*")}
    return {vni: responder(folder, vni) for vni in sorted(vnis)}

"""DHCP (and TFTP, for a firmware without iPXE) on one provision link, by a dnsmasq that outlives the agent.

It answers one MAC on one device and does nothing else: no DNS, no router, no other client.
"""

from __future__ import annotations

from ipaddress import IPv4Interface
from pathlib import Path

from nicagent.dnsmasq import Dnsmasq, common_lines, unprivileged_user
from nicagent.provision.contract import ProvisionLink
from nicagent.provision.script import url

CHAINLOADER = Path("/usr/lib/ipxe/snponly.efi")  # Debian's ipxe: iPXE on top of the firmware's own NIC driver


def config_text(link: ProvisionLink, *, index: int, user: str, tftp_root: Path | None) -> str:
    """dnsmasq's configuration (dnsmasq(8)); `index` is the device's."""
    agent = IPv4Interface(link.agent_address)
    script = url(link, f"{link.host}.ipxe")
    lines = [
        *common_lines(link.device, index, user),
        "log-dhcp",
        f"dhcp-range={agent.network.network_address},static,{agent.netmask},1h",
        f"dhcp-host={link.mac},id:*,{link.host_address}",
        "dhcp-match=set:ipxe,175",  # iPXE's own encapsulated options
        "dhcp-option=tag:ipxe,encap:175,176,1b",  # do not wait for a proxy DHCP server: seconds of every boot
        f"dhcp-boot=tag:ipxe,{script}",
    ]
    if tftp_root is not None:
        lines += [
            # UEFI on x86-64 asks as type 7 or 9, UEFI HTTP boot as 16 (RFC 4578 and IANA's processor types).
            "dhcp-match=set:efi,option:client-arch,7",
            "dhcp-match=set:efi,option:client-arch,9",
            "dhcp-match=set:efi-http,option:client-arch,16",
            "enable-tftp",
            f"tftp-root={tftp_root}",
            "tftp-single-port",  # so that the guard need open one port only
            f"dhcp-boot=tag:!ipxe,tag:efi,{CHAINLOADER.name}",
            f"dhcp-boot=tag:!ipxe,tag:efi-http,{url(link, CHAINLOADER.name)}",
            "dhcp-option-force=tag:efi-http,option:vendor-class,HTTPClient",
        ]
    return "\n".join(lines) + "\n"


def server(folder: Path, host: str) -> Dnsmasq:
    """The dnsmasq of a host's link, running or not."""
    return Dnsmasq(
        folder,
        "dnsmasq",
        f"the DHCP server of host {host}'s provision link",
        "see what else holds UDP port 67 or 69: ss -lnup",
    )


async def serve(folder: Path, link: ProvisionLink, index: int) -> None:
    """Have the dnsmasq of this link run. Raises UNAVAILABLE."""
    tftp_root = CHAINLOADER.parent if CHAINLOADER.is_file() else None
    text = config_text(link, index=index, user=unprivileged_user(), tftp_root=tftp_root)
    await server(folder, link.host).serve(text)

"""DHCP (and TFTP, for a firmware without iPXE) on one provision link, by a dnsmasq that outlives the agent.

It answers one MAC on one device and does nothing else: no DNS, no router, no other client.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path

from nicagent.errors import Kind, NicagentError
from nicagent.proc import Daemon, find_tool
from nicagent.provision.contract import ProvisionLink
from nicagent.provision.script import url

CHAINLOADER = Path("/usr/lib/ipxe/snponly.efi")  # Debian's ipxe: iPXE on top of the firmware's own NIC driver
READY_SECONDS = 5.0
_POLL_SECONDS = 0.01  # dnsmasq shows that it is ready by its pid file only


def config_text(link: ProvisionLink, *, index: int, user: str, tftp_root: Path | None) -> str:
    """dnsmasq's configuration (dnsmasq(8)); with `index`, a device made anew means a socket bound anew."""
    agent = IPv4Interface(link.agent_address)
    script = url(link, f"{link.host}.ipxe")
    lines = [
        f"# device {link.device}, index {index}",
        "port=0",
        "no-resolv",
        "no-hosts",
        "keep-in-foreground",
        "log-facility=-",
        "log-dhcp",
        f"user={user}",
        # No other group is mapped where only root is, and setgroups(2) is denied there.
        *(["group="] if user == "root" else []),
        f"interface={link.device}",
        "except-interface=lo",
        "bind-interfaces",
        "no-ping",
        "leasefile-ro",  # the one lease is static
        "dhcp-authoritative",
        f"dhcp-range={agent.network.network_address},static,{agent.netmask},1h",
        f"dhcp-host={link.mac},id:*,{link.host_address}",
        "dhcp-ignore=tag:!known",
        "dhcp-option=option:router",
        "dhcp-option=option:dns-server",
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


def unprivileged_user() -> str:
    """Whom dnsmasq becomes: root only where no other user exists, as in a user namespace that maps one."""
    for name in ("dnsmasq", "nobody"):
        with contextlib.suppress(KeyError):
            if os.geteuid() == 0 and _mapped(pwd.getpwnam(name).pw_uid):
                return name
    return "root"


def _mapped(uid: int) -> bool:
    """Whether this user namespace has `uid` (user_namespaces(7): first inside, first outside, count)."""
    try:
        lines = Path("/proc/self/uid_map").read_text().splitlines()
    except FileNotFoundError:  # a kernel without user namespaces
        return True
    return any(
        first <= uid < first + count for first, _, count in ([int(n) for n in x.split()] for x in lines)
    )


@dataclass(frozen=True)
class DhcpServer:
    """The dnsmasq of one link, known by the files in `folder`."""

    folder: Path

    @property
    def _daemon(self) -> Daemon:
        return Daemon("provision-dhcp", self.folder / "dnsmasq.pid")

    @property
    def _config(self) -> Path:
        return self.folder / "dnsmasq.conf"

    @property
    def _log(self) -> Path:
        return self.folder / "dnsmasq.log"

    @property
    def _ready(self) -> Path:
        return self.folder / "dnsmasq.ready"

    def running(self) -> bool:
        return self._daemon.pid() is not None

    async def serve(self, link: ProvisionLink, index: int) -> None:
        """Have it run with the configuration of this link; nothing happens if it already does.

        Raises UNAVAILABLE with what dnsmasq said when it does not get ready.
        """
        find_tool("dnsmasq")
        self.folder.mkdir(parents=True, exist_ok=True)
        text = config_text(
            link,
            index=index,
            user=unprivileged_user(),
            tftp_root=CHAINLOADER.parent if CHAINLOADER.is_file() else None,
        )
        if self.running() and self._written() == text:
            return
        await self.stop()
        self._config.write_text(text)
        self._log.write_bytes(b"")  # what it said before is of no use, and a log must not grow for ever
        command = ["dnsmasq", f"--conf-file={self._config}", f"--pid-file={self._ready}"]
        self._daemon.start(command, log=self._log)
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._until_ready(link)
        except TimeoutError:
            raise self._failed(link, f"did not get ready within {READY_SECONDS:g} s") from None

    async def stop(self) -> None:
        """End it. Idempotent."""
        await self._daemon.stop()
        for path in (self._config, self._ready):
            path.unlink(missing_ok=True)

    def _written(self) -> str:
        try:
            return self._config.read_text()
        except FileNotFoundError:
            return ""

    async def _until_ready(self, link: ProvisionLink) -> None:
        while not self._ready.exists():
            if not self.running():
                raise self._failed(link, "ended at once")
            await asyncio.sleep(_POLL_SECONDS)

    def _failed(self, link: ProvisionLink, what: str) -> NicagentError:
        said = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        last = f": {said[-1].strip()}" if said else ""
        return NicagentError(
            Kind.UNAVAILABLE,
            f"the DHCP server of host {link.host} on {link.device} {what}{last}",
            "see what else holds UDP port 67 or 69: ss -lnup",
        )

"""DHCP of a segment, answered on the agent by one dnsmasq per segment.

dnsmasq outlives the agent. It knows only static leases, so its memory is worth nothing and a change of the
configuration is a restart (some 20 ms, and DHCP clients repeat themselves): it is stopped, the file is
written, it is started. A running dnsmasq therefore always runs what its file says, whenever we died, and it
never withholds an address from its new owner because the old lease has not run out (which SIGHUP would).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import pwd
import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nicagent.config import Segment
from nicagent.errors import Kind, NicagentError
from nicagent.model import PortBinding
from nicagent.network.contract import RESPONDER
from nicagent.proc import Daemon

LEASE = "12h"
READY_SECONDS = 5.0
_POLL_SECONDS = 0.01
_LABEL = re.compile(r"[^A-Za-z0-9-]+")


def config_text(segment: Segment, bridge: str, index: int, user: str, bindings: Iterable[PortBinding]) -> str:
    """dnsmasq's configuration for a segment (dnsmasq(8)), a pure function of what is bound.

    `index` is the bridge's: a bridge made anew under the old name changes the text, and so dnsmasq's socket
    is bound anew. The agent has no address in the tenant's network: `shared-network` tells dnsmasq that
    requests on the bridge are of that network all the same. The classless route (RFC 3442, 0.0.0.0 means
    on-link) lets the host reach the responder to renew; it gets no router.
    """
    network = ipaddress.IPv4Network(segment.cidr)
    lines = [
        f"# bridge {bridge}, device {index}",
        "port=0",
        "no-resolv",
        "no-hosts",
        "keep-in-foreground",
        "log-facility=-",
        "quiet-dhcp",
        f"user={user}",
        # No other group is mapped where only root is, and setgroups(2) is denied there.
        *(["group="] if user == "root" else []),
        f"interface={bridge}",
        "except-interface=lo",
        "bind-interfaces",
        "no-ping",
        "leasefile-ro",
        "dhcp-authoritative",
        f"dhcp-range={network.network_address},static,{network.netmask},{LEASE}",
        f"shared-network={bridge},{network.network_address}",
        "dhcp-ignore=tag:!known",
        "dhcp-ignore-names",
        "dhcp-option=option:router",
        "dhcp-option=option:dns-server",
        # Forced: some clients use an MTU they did not ask for, none is hurt by it.
        f"dhcp-option-force=option:mtu,{segment.mtu}",
        f"dhcp-option=option:classless-static-route,{RESPONDER}/32,0.0.0.0",
    ]
    for binding in sorted(bindings, key=lambda b: b.mac):
        name = hostname(binding.hostname)
        lines.append(f"dhcp-host={binding.mac},id:*,{binding.ipv4}" + (f",{name}" if name else ""))
    return "\n".join(lines) + "\n"


def hostname(name: str) -> str:
    """The nearest DNS label to a domain's name (RFC 1123 §2.1), empty if nothing is left of it."""
    return _LABEL.sub("-", name)[:63].strip("-")


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
        ranges = [
            [int(n) for n in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()
        ]
    except FileNotFoundError:  # a kernel without user namespaces
        return True
    return any(first <= uid < first + count for first, _, count in ranges)


@dataclass(frozen=True)
class Responder:
    """The dnsmasq of one segment, known by files in `folder`."""

    folder: Path
    vni: int

    @property
    def _daemon(self) -> Daemon:
        return Daemon(f"dhcp-{self.vni}", self.folder / f"dhcp-{self.vni}.pid")

    @property
    def _config(self) -> Path:
        return self.folder / f"dhcp-{self.vni}.conf"

    @property
    def _log(self) -> Path:
        return self.folder / f"dhcp-{self.vni}.log"

    @property
    def _ready(self) -> Path:
        """Written by dnsmasq itself, with its pid, once its socket is bound."""
        return self.folder / f"dhcp-{self.vni}.ready"

    async def serve(self, text: str) -> None:
        """Have dnsmasq run with this configuration; does nothing if it already does. Raises UNAVAILABLE."""
        if self._daemon.pid() is not None and self._written() == text:
            return
        await self.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._config.write_text(text)
        self._log.write_bytes(b"")  # what it said before is of no use, and a log must not grow for ever
        self._daemon.start(
            ["dnsmasq", f"--conf-file={self._config}", f"--pid-file={self._ready}"], log=self._log
        )
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._until_ready()
        except TimeoutError:
            raise self._failed(f"did not get ready within {READY_SECONDS:g} s") from None

    async def stop(self) -> None:
        """End it and leave no file. Idempotent."""
        await self._daemon.stop()
        self._end_unrecorded()
        for path in (self._config, self._log, self._ready):
            path.unlink(missing_ok=True)

    def _written(self) -> str:
        try:
            return self._config.read_text()
        except FileNotFoundError:
            return ""

    async def _until_ready(self) -> None:
        # dnsmasq has no other sign of readiness than this file, hence the polling.
        while not self._ready.exists():
            if self._daemon.pid() is None:
                raise self._failed("ended at once")
            await asyncio.sleep(_POLL_SECONDS)

    def _failed(self, what: str) -> NicagentError:
        said = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        last = f": {said[-1].strip()}" if said else ""
        return NicagentError(
            Kind.UNAVAILABLE,
            f"the DHCP server of VNI {self.vni} {what}{last}",
            "see whether another DHCP server holds UDP port 67: `ss -lnup`",
        )

    def _end_unrecorded(self) -> None:
        """End a dnsmasq that we started but died before we recorded: it recorded itself.

        dnsmasq shares its port with others of its kind, so a second one would start and both would answer.
        """
        with contextlib.suppress(OSError, ValueError):
            pid = int(self._ready.read_text())
            handle = os.pidfd_open(pid)
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if f"--conf-file={self._config}".encode() in words:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def left_behind(folder: Path) -> list[Responder]:
    """Every responder that has left a trace in `folder`, running or not."""
    stems = {path.stem for path in folder.glob("dhcp-*.*")}
    return [Responder(folder, int(stem.removeprefix("dhcp-"))) for stem in sorted(stems)]

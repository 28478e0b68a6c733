"""A dnsmasq that outlives the agent: started with a configuration, found again, replaced when that changes.

It only ever knows static leases, so its memory is worth nothing and a change of the configuration is a
restart (some 20 ms, and DHCP clients repeat themselves): it is stopped, the file is written, it is started. A
running dnsmasq therefore always runs what its file says, whenever we died, and it never withholds an address
from its new owner because the old lease has not run out (which SIGHUP would).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from nicagent import proc
from nicagent.errors import Kind, NicagentError
from nicagent.files import make_private_directory, replace_private

READY_SECONDS = 5.0
_POLL_SECONDS = 0.01  # dnsmasq shows that it is ready by its pid file only


def common_lines(device: str, index: int, user: str) -> list[str]:
    """What every dnsmasq of ours is told (dnsmasq(8)): DHCP on one device, no DNS, no lease kept.

    `index` is the device's: one made anew under the old name changes the text, so the socket is bound anew.
    """
    return [
        f"# device {device}, index {index}",
        "port=0",
        "no-resolv",
        "no-hosts",
        "keep-in-foreground",
        "log-facility=-",
        f"user={user}",
        # No other group is mapped where only root is, and setgroups(2) is denied there.
        *(["group="] if user == "root" else []),
        f"interface={device}",
        "except-interface=lo",
        "bind-interfaces",
        "no-ping",
        "leasefile-ro",
        "dhcp-authoritative",
        "dhcp-ignore=tag:!known",
        "dhcp-option=option:router",  # empty: dnsmasq would name itself otherwise
        "dhcp-option=option:dns-server",
    ]


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
class Dnsmasq:
    """One dnsmasq, known by its files in `folder`: `<stem>.conf`, `.pid`, `.log` and `.ready`."""

    folder: Path
    stem: str
    name: str  # in errors: "the DHCP server of …"
    hint: str  # what to look at when it does not start

    @property
    def _daemon(self) -> proc.Daemon:
        return proc.Daemon(self.name, self._file("pid"))

    def _file(self, kind: str) -> Path:
        return self.folder / f"{self.stem}.{kind}"

    def running(self) -> bool:
        return self._daemon.pid() is not None

    async def serve(self, text: str) -> None:
        """Have it run with this configuration; nothing happens if it already does.

        Raises UNAVAILABLE with what dnsmasq said when it does not get ready; then it does not run.
        """
        proc.find_tool("dnsmasq")
        if self.running() and self._written() == text:
            return
        await self.stop()
        make_private_directory(self.folder)
        replace_private(self._file("conf"), text.encode())
        replace_private(self._file("log"), b"")
        command = ["dnsmasq", f"--conf-file={self._file('conf')}", f"--pid-file={self._file('ready')}"]
        self._daemon.start(command, log=self._file("log"))
        try:
            await self._until_ready()
        except NicagentError:
            await self._end()  # its log stays, to be looked at
            raise

    async def stop(self) -> None:
        """End it and leave no file. Idempotent."""
        await self._end()
        self._file("log").unlink(missing_ok=True)

    async def _end(self) -> None:
        await self._daemon.stop()
        await self._end_unrecorded()
        for kind in ("conf", "ready"):
            self._file(kind).unlink(missing_ok=True)

    async def _end_unrecorded(self) -> None:
        """End a dnsmasq that we started but died before we recorded: it recorded itself.

        dnsmasq shares its port with others of its kind, so a second one would start and both would answer.
        """
        with contextlib.suppress(OSError, ValueError):
            pid = int(self._file("ready").read_text())
            mark = f"--conf-file={self._file('conf')}".encode()
            await proc.end(pid, lambda: mark in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))

    def _written(self) -> str:
        try:
            return self._file("conf").read_text()
        except FileNotFoundError:
            return ""

    async def _until_ready(self) -> None:
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not self._file("ready").exists():
                    if not self.running():
                        raise self._failed("ended at once")
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise self._failed(f"did not get ready within {READY_SECONDS:g} s") from None

    def _failed(self, what: str) -> NicagentError:
        log = self._file("log").read_text(errors="replace")
        said = [line for line in log.splitlines() if line.strip()]
        last = f": {said[-1].strip()}" if said else ""
        return NicagentError(Kind.UNAVAILABLE, f"{self.name} {what}{last}", self.hint)

"""All provision links of an agent: address, guard, DHCP and boot server of each, every host's boot choice.

DHCP and the guard outlive the agent; the boot server dies with it, and hosts that boot meanwhile ask again.
A link that cannot be served (its NIC is not there yet, its port is taken) is tried again in the background
and keeps no other host waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import re
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path

import msgspec
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nicagent import proc
from nicagent.errors import Kind, NicagentError
from nicagent.files import make_private_directory, replace_private
from nicagent.provision import dhcp, guard, script
from nicagent.provision.bootserver import BootServer
from nicagent.provision.contract import ARTEFACTS, AUTH_ARTEFACTS, BootChoice, ProvisionLink
from nicagent.provision.dhcp import CHAINLOADER
from nicagent.provision.routeradvert import RouterAdvertiser
from nicagent.threads import in_thread

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 30.0  # between attempts at a link; doubled each time
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

Report = Callable[[str, bytes], Awaitable[None]]
Connected = Callable[[str], Awaitable[bool]]

log = logging.getLogger(__name__)


@dataclass
class _Served:
    link: ProvisionLink
    http: BootServer
    advertiser: RouterAdvertiser
    ports: frozenset[int]  # that the guard opens beside the customary ones


@dataclass
class _Down:
    """A link that could not be served yet, and the task that goes on trying."""

    link: ProvisionLink
    why: NicagentError
    retry: asyncio.Task[None]


class Provisioner:
    """Declarative and idempotent: `start` and `choose` say what shall be, whatever a former agent left."""

    def __init__(
        self, run_dir: Path, artefacts: Path, report: Report | None = None, connected: Connected | None = None
    ) -> None:
        """`run_dir` keeps pidfiles and choices across agents; `artefacts` holds vmlinuz and stage1.img;
        `report` is told what a host's stage-1 has found (host, JSON), and raises INVALID; `connected` tells
        whether a host uses its disks."""
        self._run_dir = run_dir
        self._artefacts = artefacts
        self._report = report
        self._connected = connected
        self._served: dict[str, _Served] = {}
        self._down: dict[str, _Down] = {}

    async def start(self, links: Sequence[ProvisionLink]) -> None:
        """Serve exactly these links. One that cannot be is logged and tried again until `stop`.

        Raises what holds for all of them: INVALID for links that contradict each other, UNAVAILABLE for a
        missing program or boot file.
        """
        self._check(links)
        wanted = {link.host for link in links}
        for host in self._remembered():
            if host not in wanted:
                await self._forget(host)
        for link in links:
            if link.host not in self._served and link.host not in self._down:
                await self._begin(link)

    async def choose(self, host: str, choice: BootChoice | None) -> None:
        """Set what `host` boots from its next question on; None is nothing, and needs no link that is up.

        Raises NOT_FOUND, INVALID; UNAVAILABLE with the reason while the host's link cannot be served.
        """
        served, down = self._served.get(host), self._down.get(host)
        if down is not None:
            if choice is not None:
                raise NicagentError(
                    Kind.UNAVAILABLE,
                    f"host {host} cannot boot over its provision link: {down.why.message}",
                    down.why.hint,
                )
            self._remember(host, None)
            return
        if served is None:
            raise NicagentError(
                Kind.NOT_FOUND, f"host {host} has no provision link", f"add [hosts.{host}.provision]"
            )
        self._check_files(host, choice)
        script.render(served.link, choice)  # an impossible choice fails here, not at the host
        ports = frozenset({choice.trsvcid} if choice is not None and choice.kind == "nvme-tcp" else ())
        if not ports <= served.ports:
            await guard.apply(guard.rules(served.link, ports), host)
            served.ports = ports
        self._remember(host, choice)

    def _check_files(self, host: str, choice: BootChoice | None) -> None:
        for name in AUTH_ARTEFACTS if choice is not None and choice.secret else ():
            if not (self._artefacts / name).is_file():
                raise NicagentError(
                    Kind.UNAVAILABLE,
                    f"host {host} proves itself to its disks (storage.secret), and the boot file for that, "
                    f"{self._artefacts / name}, is missing",
                    "build it: make stage1-auth",
                )

    async def _take_report(self, host: str, body: bytes) -> None:
        """The first report of a run is stage-1's; any later one may be its tenant's. Raises WRONG_STATE for
        those, INVALID."""
        if not isinstance(self._choice(host), BootChoice) or self._told_file(host).exists():
            raise NicagentError(
                Kind.WRONG_STATE, f"{host} is not asked what it is made of", "see docs/boot.md"
            )
        if self._report is not None:
            await self._report(host, body)
        replace_private(self._told_file(host), b"")

    def _told_file(self, host: str) -> Path:
        return self._run_dir / host / "told"

    def _remember(self, host: str, choice: BootChoice | None) -> None:
        make_private_directory(self._run_dir / host)
        if choice != self._choice(host):
            self._told_file(host).unlink(missing_ok=True)
        replace_private(self._choice_file(host), msgspec.json.encode(choice))

    async def stop(self) -> None:
        """Stop what dies with the agent: the boot servers. DHCP, guards and choices stay."""
        for host in list(self._down):
            await self._give_up(host)
        served, self._served = self._served, {}
        for each in served.values():
            each.advertiser.stop()
            await each.http.stop()

    async def clear(self) -> None:
        """Leave nothing: also DHCP, guards, addresses and choices, of former agents too."""
        links = [each.link for each in self._served.values()]
        links += [each.link for each in self._down.values()]
        await self.stop()
        for link in links:
            await _remove_address(link)
        for host in self._remembered():
            await self._forget(host)

    def _remembered(self) -> list[str]:
        """Hosts that have a link or had one, under whichever agent."""
        return sorted(path.name for path in self._run_dir.glob("*") if path.is_dir())

    def _check(self, links: Sequence[ProvisionLink]) -> None:
        for name in ARTEFACTS:
            if links and not (self._artefacts / name).is_file():
                raise NicagentError(
                    Kind.UNAVAILABLE,
                    f"the boot file {self._artefacts / name} is missing",
                    "build it: make stage1",
                )
        if links:
            proc.find_tool("dnsmasq")
        networks: dict[object, str] = {}
        for link in links:
            if not _HOST.fullmatch(link.host):
                raise NicagentError(Kind.INVALID, f"{link.host!r} is no name for a host")
            network = IPv4Interface(link.agent_address).network
            if network in networks:
                raise NicagentError(
                    Kind.INVALID,
                    f"the provision links of {networks[network]} and {link.host} share the network {network}",
                    f"give one of them another agent_address and host_address, such as {network[1] + 4}/30",
                )
            networks[network] = link.host

    async def _begin(self, link: ProvisionLink) -> None:
        """Serve a link now, or from when it can be."""
        why = await self._attempt(link)
        if why is not None:
            log.error("%s; trying again", why)
            retry = asyncio.create_task(self._retry(link), name=f"provision link of {link.host}")
            self._down[link.host] = _Down(link, why, retry)

    async def _retry(self, link: ProvisionLink) -> None:
        """Try until the link is served. Ended by `_give_up`."""
        wait = FIRST_RETRY_SECONDS
        while True:
            await asyncio.sleep(wait)
            wait = min(2 * wait, LAST_RETRY_SECONDS)
            why = await self._attempt(link)
            if why is None:
                log.info("the provision link of %s is served now", link.host)
                del self._down[link.host]
                return
            log.error("%s; next try in %g s", why, wait)
            self._down[link.host].why = why

    async def _attempt(self, link: ProvisionLink) -> NicagentError | None:
        """Serve a link, or tell why it cannot be."""
        try:
            await self._serve(link)
        except NicagentError as why:
            return why
        except OSError as error:
            return NicagentError(Kind.UNAVAILABLE, f"the provision link of {link.host}: {error}", "see dmesg")
        return None

    async def _give_up(self, host: str) -> None:
        retry = self._down[host].retry
        retry.cancel()
        await asyncio.wait([retry])
        self._down.pop(host, None)

    async def _serve(self, link: ProvisionLink) -> None:
        """Do all that a link needs, whatever of it is done. Raises UNAVAILABLE, NOT_FOUND."""
        folder = self._run_dir / link.host
        make_private_directory(folder)
        choice = self._choice(link.host)
        ports = frozenset({choice.trsvcid} if isinstance(choice, BootChoice) else ())
        # Before there is an address to reach. It goes by the device's name, so it may come before the device.
        await guard.apply(guard.rules(link, ports), link.host)
        index = await _put_address(link)
        await dhcp.serve(folder, link, index)
        files = {name: self._artefacts / name for name in (*ARTEFACTS, *AUTH_ARTEFACTS)}
        files[CHAINLOADER.name] = CHAINLOADER
        http = BootServer(
            link,
            files,
            lambda: self._script(link),
            functools.partial(self._take_report, link.host),
            lambda: self._login(link.host),
        )
        try:
            await http.start()
        except asyncio.CancelledError:
            await http.stop()
            raise
        advertiser = RouterAdvertiser(link.device)
        advertiser.start()
        self._served[link.host] = _Served(link, http, advertiser, ports)

    def _script(self, link: ProvisionLink) -> str:
        choice = self._choice(link.host)
        if isinstance(choice, BootChoice) or choice is None:
            return script.render(link, choice)
        return script.render(link, None, known=False)

    async def _login(self, host: str) -> str:
        """What `host` proves itself with. Raises WRONG_STATE once it has: no stage-1 asks then."""
        choice = self._choice(host)
        login = choice.login if isinstance(choice, BootChoice) else ""
        if login and self._connected is not None and await self._connected(host):
            raise NicagentError(
                Kind.WRONG_STATE, f"{host} is connected to its disks already", "its kernel has it"
            )
        return login

    def _choice_file(self, host: str) -> Path:
        return self._run_dir / host / "choice.json"

    def _choice(self, host: str) -> BootChoice | msgspec.UnsetType | None:
        """What was last chosen; UNSET when nothing ever was."""
        try:
            return msgspec.json.decode(self._choice_file(host).read_bytes(), type=BootChoice | None)
        except (FileNotFoundError, msgspec.DecodeError):
            return msgspec.UNSET

    async def _forget(self, host: str) -> None:
        if host in self._down:
            await self._give_up(host)
        await dhcp.server(self._run_dir / host, host).stop()
        await guard.apply(guard.removal(host), host)
        await in_thread(shutil.rmtree, self._run_dir / host, ignore_errors=True)


async def _put_address(link: ProvisionLink) -> int:
    """The agent's address on the device, and the device up. Returns its index."""
    address = IPv4Interface(link.agent_address)
    async with AsyncIPRoute() as netlink:
        found = await netlink.link_lookup(ifname=link.device)
        if not found:
            raise NicagentError(
                Kind.NOT_FOUND,
                f"the provision link's device {link.device} of host {link.host} is not there",
                "see `ip link`, then mend `device` or plug the NIC in",
            )
        index = int(found[0])
        try:
            with _already_there():
                await netlink.addr(
                    "add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen
                )
            await netlink.link("set", index=index, state="up")
        except NetlinkError as error:
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"cannot put {address} on {link.device}: {error.args[-1]}",
                "run the agent as root or give it CAP_NET_ADMIN",
            ) from None
    return index


async def _remove_address(link: ProvisionLink) -> None:
    address = IPv4Interface(link.agent_address)
    async with AsyncIPRoute() as netlink:
        for index in await netlink.link_lookup(ifname=link.device):
            with contextlib.suppress(NetlinkError):
                await netlink.addr(
                    "del", index=index, address=str(address.ip), prefixlen=address.network.prefixlen
                )


@contextlib.contextmanager
def _already_there() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise

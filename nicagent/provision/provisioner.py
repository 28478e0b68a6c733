"""All provision links of an agent: address, guard, DHCP and boot server of each, every host's boot choice.

DHCP and the guard outlive the agent; the boot server dies with it, and hosts that boot meanwhile ask again.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path

import msgspec
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nicagent.errors import Kind, NicagentError
from nicagent.provision import dhcp, guard, script
from nicagent.provision.bootserver import BootServer
from nicagent.provision.contract import BootChoice, ProvisionLink
from nicagent.provision.dhcp import CHAINLOADER
from nicagent.provision.routeradvert import RouterAdvertiser
from nicagent.threads import in_thread

ARTEFACTS = ("vmlinuz", "stage1.img")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass
class _Served:
    link: ProvisionLink
    http: BootServer
    advertiser: RouterAdvertiser
    ports: frozenset[int]  # that the guard opens beside the customary ones


class Provisioner:
    """Declarative and idempotent: `start` and `choose` say what shall be, whatever a former agent left."""

    def __init__(self, run_dir: Path, artefacts: Path) -> None:
        """`run_dir` keeps pidfiles and choices across agents; `artefacts` holds vmlinuz and stage1.img."""
        self._run_dir = run_dir
        self._artefacts = artefacts
        self._served: dict[str, _Served] = {}

    async def start(self, links: Sequence[ProvisionLink]) -> None:
        """Serve exactly these links. Raises on the first that cannot be; those before it stay served."""
        self._check(links)
        wanted = {link.host for link in links}
        for host in self._remembered():
            if host not in wanted:
                await self._forget(host)
        for link in links:
            if link.host not in self._served:
                await self._serve(link)

    async def choose(self, host: str, choice: BootChoice | None) -> None:
        """Set what `host` boots from its next question on; None is nothing. Raises NOT_FOUND, INVALID."""
        served = self._served.get(host)
        if served is None:
            raise NicagentError(
                Kind.NOT_FOUND, f"host {host} has no provision link", f"add [hosts.{host}.provision]"
            )
        script.render(served.link, choice)  # an impossible choice fails here, not at the host
        ports = frozenset({choice.trsvcid} if choice is not None and choice.kind == "nvme-tcp" else ())
        if not ports <= served.ports:
            await guard.apply(guard.rules(served.link, ports), host)
            served.ports = ports
        path = self._choice_file(host)
        partial = path.with_suffix(".new")
        partial.write_bytes(msgspec.json.encode(choice))
        partial.replace(path)

    async def stop(self) -> None:
        """Stop what dies with the agent: the boot servers. DHCP, guards and choices stay."""
        served, self._served = self._served, {}
        for each in served.values():
            each.advertiser.stop()
            await each.http.stop()

    async def clear(self) -> None:
        """Leave nothing: also DHCP, guards, addresses and choices, of former agents too."""
        links = [each.link for each in self._served.values()]
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

    async def _serve(self, link: ProvisionLink) -> None:
        index = await _put_address(link)
        folder = self._run_dir / link.host
        folder.mkdir(parents=True, exist_ok=True)
        choice = self._choice(link.host)
        ports = frozenset({choice.trsvcid} if isinstance(choice, BootChoice) else ())
        await guard.apply(guard.rules(link, ports), link.host)
        await dhcp.serve(folder, link, index)
        files = {name: self._artefacts / name for name in ARTEFACTS} | {CHAINLOADER.name: CHAINLOADER}
        http = BootServer(link, files, lambda: self._script(link))
        await http.start()
        advertiser = RouterAdvertiser(link.device)
        advertiser.start()
        self._served[link.host] = _Served(link, http, advertiser, ports)

    def _script(self, link: ProvisionLink) -> str:
        choice = self._choice(link.host)
        if isinstance(choice, BootChoice) or choice is None:
            return script.render(link, choice)
        return script.render(link, None, known=False)

    def _choice_file(self, host: str) -> Path:
        return self._run_dir / host / "choice.json"

    def _choice(self, host: str) -> BootChoice | msgspec.UnsetType | None:
        """What was last chosen; UNSET when nothing ever was."""
        try:
            return msgspec.json.decode(self._choice_file(host).read_bytes(), type=BootChoice | None)
        except (FileNotFoundError, msgspec.DecodeError):
            return msgspec.UNSET

    async def _forget(self, host: str) -> None:
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

"""Builds the parts from a Config, starts and stops them.

Order: the store (its lock keeps a second agent out), the parts, the controller's memory, the faces, "ready",
and only then the walking of the hosts: a client is answered within a second of exec, whatever a BMC does. On
the way out nothing of the data path is touched (promise 2) and no line moves (promise 1).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import logging
import os
import signal
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from nicagent import exportkeys
from nicagent.actions import Parts
from nicagent.config import Config, Host
from nicagent.console.contract import Displays, Screen
from nicagent.console.display import ScreenDisplays
from nicagent.console.keyboard import OF_LINUX, HidKeyboard
from nicagent.console.screen import CaptureScreen
from nicagent.console.serial import SerialConsole
from nicagent.controller import Controller
from nicagent.counters import Counters
from nicagent.errors import Kind, NicagentError
from nicagent.filters import Filters
from nicagent.hostlink.contract import GuestLink
from nicagent.hostlink.qga import QgaLink
from nicagent.inventories import Inventories
from nicagent.keyring import Keyring
from nicagent.model import Credentials, Disk, Export, Initiator, Transport
from nicagent.network.contract import NetworkDriver
from nicagent.northbound.api import ControlFace
from nicagent.northbound.libvirt import Hosts, MetalDriver
from nicagent.northbound.libvirt_control import Front
from nicagent.northbound.libvirt_face import LibvirtFace
from nicagent.pools import Pools
from nicagent.power.build import make_power
from nicagent.provision.contract import BootChoice, ProvisionLink
from nicagent.provision.provisioner import Provisioner
from nicagent.segments import Segments
from nicagent.storage import identity
from nicagent.storage.build import make_storage
from nicagent.storage.images import PoolFiles
from nicagent.store import Store
from nicagent.volumes import Volumes

log = logging.getLogger("nicagent.agent")


async def serve(config: Config, sockets: Mapping[str, Sequence[socket.socket]] | None = None) -> None:
    """Run an agent until SIGTERM or SIGINT. `sockets` were opened for it by systemd, by their names."""
    run_dir, state_dir = Path(config.agent.run_dir), Path(config.agent.state_dir)
    make_private(state_dir, 0o700)
    make_private(run_dir, 0o711)  # libvirt's sockets inside have rights of their own
    with _alone_in(run_dir):
        store = await Store.open(state_dir / "nicagent.db")
        try:
            await _serve(config, store, run_dir, state_dir, sockets or {})
        finally:
            await store.close()


@contextlib.contextmanager
def _alone_in(run_dir: Path) -> Iterator[None]:
    """Keep other agents out of our sockets and pidfiles. The store's lock does not: theirs may lie elsewhere.

    The lock goes with us, however we end: what we start does not inherit the descriptor.
    """
    handle = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"another nicagent runs in {run_dir}",
                "stop that one first, or give this one an agent.run_dir of its own",
            ) from None
        yield
    finally:
        os.close(handle)


async def _serve(
    config: Config,
    store: Store,
    run_dir: Path,
    state_dir: Path,
    sockets: Mapping[str, Sequence[socket.socket]],
) -> None:
    links = provision_links(config)
    inventories = Inventories({name: host.inventory for name, host in config.hosts.items()}, store)
    keyring = Keyring(store, functools.partial(exportkeys.users, config.hosts))
    await inventories.load()
    await keyring.load()
    parts: dict[str, Parts] = {}

    async def connected(host: str) -> bool:
        return any(export.connected for export in await parts[host].storage.status())

    provisioner = (
        Provisioner(run_dir / "provision", Path(config.agent.artefacts), inventories.report, connected)
        if links
        else None
    )
    segments = Segments(config, store)
    await segments.load(_boot_id(), await _segments_in_use(store))
    filters = Filters(store)
    await filters.load()
    network = _make_network(config, segments, filters, run_dir)
    consoles = _make_consoles(config, state_dir)
    host_uuid = await _host_uuid(store)
    pools = Pools(config, store)
    leftovers = await pools.load(host_uuid, _boot_id())
    guests: dict[str, GuestLink] = {
        name: QgaLink(name, Path(host.guest_agent.path))
        for name, host in config.hosts.items()
        if host.guest_agent is not None
    }
    screens = _make_screens(config)
    displays = ScreenDisplays(screens, config.graphics)
    for name, host in config.hosts.items():
        initiator = await store.initiator(
            name, functools.partial(identity.initiator, name, host.provision.mac if host.provision else None)
        )
        storage = make_storage(
            name,
            host.storage,
            run_dir=run_dir,
            state_dir=state_dir,
            address=host.provision.agent_address.partition("/")[0] if host.provision else None,
            pools=pools.directories,
            keys=functools.partial(exportkeys.credentials, keyring, name, host.storage),
        )
        boot = None
        if provisioner and name in links:
            boot = _BootChoices(links[name], host, initiator, provisioner, storage.credentials)
        parts[name] = Parts(
            name,
            host,
            make_power(name, host.power),
            storage,
            initiator,
            network,
            boot.set if boot is not None else None,
            displays,
        )
    files = PoolFiles(lambda: pools.directories, pools.declare_at)
    controller = Controller(store, parts, identity.exports, files, segments)
    await controller.load()
    segments.who_uses(controller.users_of_segment)
    filters.serve(controller.ports, network.refilter if network is not None else None)

    control = ControlFace(controller, consoles)
    volumes = Volumes(pools, functools.partial(running_disks, controller))
    counters = Counters(controller, guests, lambda: pools.directories)
    hosts = Hosts(consoles, guests, counters, _make_front(config, screens, displays))
    driver = MetalDriver(
        config, controller, segments, filters, pools, volumes, hosts, host_uuid, inventories, keyring
    )
    libvirt = LibvirtFace(config.libvirt, driver, sockets)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        if network is not None:
            await network.start()
        if provisioner is not None:
            await provisioner.start(list(links.values()))
        await control.start(run_dir / "nicagent.sock")
        await libvirt.start()
        _notify("READY=1")
        log.info("ready: %d hosts, libvirt on %s", len(parts), config.libvirt.socket)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(console.run()) for console in consoles.values()]
            tasks += [group.create_task(guest.run()) for guest in guests.values()]
            tasks.append(group.create_task(controller.run()))
            tasks.append(group.create_task(controller.autostart(_boot_id())))
            tasks.append(group.create_task(volumes.tidy(leftovers)))
            await stop.wait()
            _notify("STOPPING=1")
            log.info("stopping; hosts, disks and ports go on")
            for task in tasks:
                task.cancel()
    finally:
        await libvirt.stop()
        await counters.close()
        await control.stop()
        if provisioner is not None:
            await provisioner.stop()
        if network is not None:
            await network.close()
        await displays.close()
        for part in parts.values():
            await part.storage.close()


class _BootChoices:
    """What a host's firmware finds on its provision link: the boot disk of its run, or nothing."""

    def __init__(
        self,
        link: ProvisionLink,
        host: Host,
        initiator: Initiator,
        provisioner: Provisioner,
        credentials: Callable[[], Credentials | None],
    ) -> None:
        self._link = link
        self._host = host
        self._initiator = initiator
        self._provisioner = provisioner
        self._credentials = credentials

    async def set(self, name: str, export: Export | None) -> None:
        choice = None
        if export is not None and self._host.storage.transport is Transport.NVME_TCP:
            keys = self._credentials()
            choice = BootChoice(
                link=self._link,
                kind="nvme-tcp",
                nqn=export.identity.nqn,
                nsid=export.identity.nsid,
                hostnqn=self._initiator.hostnqn,
                hostid=self._initiator.hostid,
                traddr=self._link.agent_address.partition("/")[0],
                trsvcid=self._host.storage.port,
                secret=keys.host if keys is not None else "",
                controller_secret=keys.controller if keys is not None else "",
            )
        await self._provisioner.choose(name, choice)


def running_disks(controller: Controller) -> Iterator[tuple[str, Disk]]:
    """The disks of every domain that occupies a host, with the domain's name: what must not be changed under
    it, as it was defined and as it is exported.
    """
    for status in controller.domains():
        if status.host is not None:
            for disk in dict.fromkeys((*status.domain.disks, *(each.disk for each in status.exports))):
                yield status.domain.name, disk


def provision_links(config: Config) -> dict[str, ProvisionLink]:
    """The provision links of the hosts that have one."""
    return {
        name: ProvisionLink(
            host=name,
            device=host.provision.device,
            mac=host.provision.mac,
            agent_address=host.provision.agent_address,
            host_address=host.provision.host_address,
            discovery_port=host.storage.discovery_port,
        )
        for name, host in config.hosts.items()
        if host.provision is not None
    }


async def _segments_in_use(store: Store) -> set[str]:
    """The segments that hosts had ports on when the agent was last there."""
    runs = [record.run for record in (await store.hosts()).values() if record.run is not None]
    return {binding.port.segment for run in runs for binding in run.bindings}


def _make_network(
    config: Config, segments: Segments, filters: Filters, run_dir: Path
) -> NetworkDriver | None:
    if config.overlay is None:
        return None
    from nicagent.network.overlay import OverlayNetwork

    return OverlayNetwork(config.overlay, segments.active, run_dir, filters.known)


def _make_consoles(config: Config, state_dir: Path) -> dict[str, SerialConsole]:
    return {
        name: SerialConsole(
            name,
            Path(host.console.path),
            host.console.baud,
            state_dir / "console" / f"{name}.log",
            host.console.log_bytes,
        )
        for name, host in config.hosts.items()
        if host.console is not None
    }


def _make_screens(config: Config) -> dict[str, Screen]:
    return {
        name: CaptureScreen(name, Path(host.screen.path), Path(host.screen.rfb) if host.screen.rfb else None)
        for name, host in config.hosts.items()
        if host.screen is not None
    }


def _make_front(config: Config, screens: Mapping[str, Screen], displays: Displays) -> Front:
    hosts = config.hosts.items()
    return Front(
        screens,
        displays,
        {name: HidKeyboard(name, Path(host.keyboard.path)) for name, host in hosts if host.keyboard},
        OF_LINUX,
    )


def make_private(directory: Path, mode: int) -> None:
    """A directory of the agent's own, with this mode also when it was there before."""
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
        if directory.stat().st_uid == os.geteuid():
            directory.chmod(mode)
    except OSError as e:
        raise NicagentError(
            Kind.UNAVAILABLE,
            f"cannot make the directory {directory}: {e.strerror}",
            "set agent.run_dir and agent.state_dir to places that this user may write",
        ) from None


async def _host_uuid(store: Store) -> str:
    """What clouds know this agent by: drawn once, so that no two agents share it, whatever their names."""
    known = await store.meta("host-uuid")
    if known is None:
        known = str(uuid.uuid4())
        await store.put_meta("host-uuid", known)
    return known


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)): one datagram to the socket that it names, if it does."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)

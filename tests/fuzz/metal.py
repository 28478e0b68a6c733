"""The agent's own face, as a world: the real controller, store, pools and segments over servers in memory."""

from __future__ import annotations

import asyncio
import resource
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID

from hypervisor_shim.xml.domain import parse_domain
from nicagent import config as config_module
from nicagent.actions import Parts
from nicagent.config import Config
from nicagent.controller import Controller
from nicagent.counters import Counters
from nicagent.filters import Filters
from nicagent.inventories import Inventories
from nicagent.keyring import Keyring
from nicagent.model import Cause, Initiator
from nicagent.northbound.libvirt import Hosts, MetalDriver
from nicagent.northbound.libvirt_control import Front
from nicagent.northbound.libvirt_domain import to_domain
from nicagent.pools import Pools
from nicagent.segments import Segments
from nicagent.storage import identity
from nicagent.storage.images import PoolFiles
from nicagent.store import Store
from nicagent.volumes import Volumes
from tests.fakes import Body, BodyNetwork, BodyPower, BodyStorage
from tests.hypervisor_shim.serving import TEST_UUID

from .worlds import WITH_CONSOLE

CONFIG = """
[hosts.metal-1]
memory_mib = 1024
cpus = 2
pgood_seconds = 0.05
shutdown_seconds = 0.05
power = {{driver = "gpio"}}
storage = {{transport = "virtio", slot = "{0}/slot-1"}}
nics = [{{device = "nic1", mac = "52:54:00:00:00:01"}}]
[hosts.metal-2]
memory_mib = 2048
pgood_seconds = 0.05
shutdown_seconds = 0.05
power = {{driver = "gpio"}}
storage = {{transport = "virtio", slot = "{0}/slot-2"}}
[overlay]
local = "192.0.2.1"
[segments.default]
vni = 100
cidr = "10.100.0.0/24"
range = ["10.100.0.10", "10.100.0.12"]
[pools.default-pool]
path = "{0}/pool"
[libvirt]
pool_roots = ["{0}/roots"]
"""
FILE_MAX = 16 << 20  # bytes of a file that a run may make
READY_SECONDS = 5.0
STILL = 500  # looks at most, until a world that begins has come to rest
RIG = Cause("the rig", "a run begins")
HOST_UUID = "11111111-2222-3333-4444-555555555555"


class Metal:
    """Two hosts, off; a domain `test` is defined, and runs on the first one if `running`."""

    patience = 1.0

    def __init__(self, *, running: bool) -> None:
        self._running = running
        self._bodies: dict[str, Body] = {}
        self._stack = AsyncExitStack()

    async def begin(self) -> MetalDriver:
        """Everything on a small disk of its own, files bounded."""
        stack = self._stack = AsyncExitStack()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory())))
        for name in ("pool", "roots"):
            (home / name).mkdir()
        config = config_module.parse(CONFIG.format(home))
        store = self._store = await Store.open(home / "nicagent.db")
        stack.push_async_callback(store.close)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_MAX, hard))
        return await self._assembled(config, store)

    async def _assembled(self, config: Config, store: Store) -> MetalDriver:
        """As nicagent/agent.py does it."""
        self._bodies = {name: Body() for name in config.hosts}
        declared = {name: host.inventory for name, host in config.hosts.items()}
        inventories, keyring = Inventories(declared, store), Keyring(store)
        await inventories.load()
        await keyring.load()
        segments, pools = Segments(config, store), Pools(config, store)
        await segments.load("this boot")
        await pools.load(HOST_UUID, "this boot")
        filters = Filters(store)
        await filters.load()
        network = BodyNetwork(self._bodies)
        parts = {
            name: Parts(
                name,
                config.hosts[name],
                BodyPower(body),
                BodyStorage(body),
                Initiator(f"nqn.2014-08.org.example:{name}", str(UUID(int=len(name)))),
                network,
                body.set_boot,
            )
            for name, body in self._bodies.items()
        }
        files = PoolFiles(lambda: pools.directories, pools.declare_at)
        controller = Controller(store, parts, identity.exports, files, segments)
        await controller.load()
        segments.who_uses(controller.users_of_segment)
        filters.serve(controller.ports, None)
        counters = Counters(controller, {}, lambda: pools.directories)
        self._stack.push_async_callback(counters.close)
        hosts = Hosts({}, {}, counters, Front())
        driver = MetalDriver(
            config,
            controller,
            segments,
            filters,
            pools,
            Volumes(pools, list),
            hosts,
            HOST_UUID,
            inventories,
            keyring,
        )
        self._stack.callback(driver.close)
        walking = asyncio.create_task(controller.run())
        self._stack.push_async_callback(_ended, walking)
        await self._settled(controller, driver)
        return driver

    async def _settled(self, controller: Controller, driver: MetalDriver) -> None:
        """The hosts are read, and the domain is as every run begins with it."""
        async with asyncio.timeout(READY_SECONDS):
            for walker in controller._walkers.values():
                await walker.watch.until_known(READY_SECONDS)
            if driver.domain(TEST_UUID) is None:
                await controller.define(to_domain(parse_domain(WITH_CONSOLE), {}), RIG)
            if self._running:
                await controller.start(str(UUID(bytes=TEST_UUID)), RIG)
            for _ in range(STILL):  # nothing comes after it any more
                before = self.marks()
                await asyncio.sleep(0.002)
                if self.marks() == before:
                    break

    async def end(self) -> None:
        await self._stack.aclose()

    def marks(self) -> object:
        """What was done to the hosts, and how many rows were ever written."""
        acts = [(name, body.power, *body.acts) for name, body in self._bodies.items()]
        return acts, self._store._db.total_changes


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _memory() -> str | None:
    """Where a sync costs nothing."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None

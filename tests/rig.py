"""A controller over bodies in memory and a real store, with clocks that a test can wait for."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from nicagent import config as config_module
from nicagent.actions import Parts
from nicagent.config import Config
from nicagent.controller import Controller
from nicagent.model import Cause, Change, Disk, Domain, DomainEvent, HostState, Initiator, Port, VolumeFormat
from nicagent.segments import Segments
from nicagent.storage import identity
from nicagent.storage.images import PoolFiles
from nicagent.store import Store
from tests.fakes import Body, BodyDisplays, BodyNetwork, BodyPower, BodyStorage

TESTER = Cause("a tester", "the test asks")
#: What `nicagent serve` needs at the least; `{0}` is a directory of its own.
ONE_HOST = """
[agent]
state_dir = "{0}/state"
run_dir = "{0}/run"
[hosts.metal-1]
power = {{driver = "gpio", pins = "socket:{0}/lines"}}
storage = {{transport = "virtio", slot = "{0}/slot"}}
"""
NAMESPACE = uuid.UUID("8d3f3c52-7f5e-4ba7-9c1b-3f1f6d0c0001")


def two_hosts(pgood_seconds: float = 0.3, shutdown_seconds: float = 0.3) -> Config:
    """Two hosts with a NIC each, one segment."""
    host = """
        [hosts.metal-{n}]
        memory_mib = {memory}
        cpus = {n}
        pgood_seconds = {pgood}
        shutdown_seconds = {shutdown}
        power = {{driver = "gpio"}}
        storage = {{transport = "virtio", slot = "/tmp/slot-{n}"}}
        nics = [{{device = "nic{n}", mac = "52:54:00:00:00:0{n}"}}]
    """
    hosts = "".join(
        host.format(n=n, memory=1024 * n, pgood=pgood_seconds, shutdown=shutdown_seconds) for n in (1, 2)
    )
    return config_module.parse(
        hosts
        + """
        [overlay]
        local = "192.0.2.1"
        [segments.blue]
        vni = 100
        cidr = "10.100.0.0/24"
        range = ["10.100.0.10", "10.100.0.12"]
        """
    )


def domain(name: str, *, host: str | None = None, **changes: object) -> Domain:
    """A domain with two disks and a port on the segment."""
    values: dict[str, object] = {
        "uuid": str(uuid.uuid5(NAMESPACE, name)),
        "name": name,
        "xml": f"<domain><name>{name}</name></domain>",
        "memory_kib": 1 << 19,
        "vcpus": 1,
        "disks": (
            Disk("vda", "/pool/root.qcow2", VolumeFormat.QCOW2, boot_order=1),
            Disk("vdb", "/pool/data.raw", VolumeFormat.RAW),
        ),
        "ports": (Port("port0", "blue"),),
        "host": host,
    }
    return Domain(**{**values, **changes})  # type: ignore[arg-type]


class Rig:
    """One life of an agent's controller; `Rig.live` again on the same path and bodies is its next life."""

    def __init__(self, controller: Controller, bodies: dict[str, Body], store: Store) -> None:
        self.controller = controller
        self.bodies = bodies
        self.store = store
        self.changes: list[Change] = []
        self.moved = asyncio.Event()
        controller.watch(self._note)

    def _note(self, change: Change) -> None:
        self.changes.append(change)
        self.moved.set()

    @classmethod
    @contextlib.asynccontextmanager
    async def live(
        cls, path: Path, bodies: dict[str, Body], config: Config | None = None
    ) -> AsyncIterator[Rig]:
        """Leaving it is the agent's death: every task ends where it is, nothing is tidied up."""
        config = config or two_hosts()
        store = await Store.open(path)
        network = BodyNetwork(bodies)
        parts = {
            name: Parts(
                name,
                config.hosts[name],
                BodyPower(body),
                BodyStorage(body),
                Initiator(f"nqn.2014-08.org.example:{name}", str(uuid.uuid5(NAMESPACE, name))),
                network,
                body.set_boot,
                BodyDisplays(bodies),
            )
            for name, body in bodies.items()
        }
        segments = Segments(config, store)
        await segments.load("this boot")
        files = PoolFiles(lambda: [path.parent])
        controller = Controller(store, parts, identity.exports, files, segments)
        await controller.load()
        segments.who_uses(controller.users_of_segment)
        rig = cls(controller, bodies, store)
        running = asyncio.create_task(controller.run())
        try:
            yield rig
        finally:
            running.cancel()
            async with asyncio.timeout(2):  # an agent that does not end when it is told is a failure
                await asyncio.wait([running])
            await store.close()
        assert running.cancelled(), f"the controller ended by itself: {running.exception()}"

    async def until(self, what: Callable[[], bool], why: str, seconds: float = 5.0) -> None:
        """Wait for a condition that changes with the change stream."""
        try:
            async with asyncio.timeout(seconds):
                while not what():
                    self.moved.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.02):
                            await self.moved.wait()
        except TimeoutError:
            states = {status.name: (status.state.value, status.reason) for status in self.controller.hosts()}
            raise AssertionError(f"waited {seconds:g} s for: {why}; hosts are {states}") from None

    async def power_known(self) -> None:
        await self.until(
            lambda: all(status.power.value != "unknown" for status in self.controller.hosts()),
            "the first power facts",
        )

    async def in_state(self, host: str, state: HostState) -> None:
        await self.until(lambda: self.controller.host(host).state is state, f"{host} to be {state.value}")

    def events(self) -> list[DomainEvent]:
        return [change.event for change in self.changes if change.event is not None]


async def held(body: Body, seconds: float = 5.0) -> None:
    """Wait until an act of the body is held."""
    async with asyncio.timeout(seconds):
        await body.held.wait()


def bodies() -> dict[str, Body]:
    return {"metal-1": Body(), "metal-2": Body()}

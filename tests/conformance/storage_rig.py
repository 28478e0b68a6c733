"""What the storage conformance suite needs of a transport: a driver, and a host that looks at its disks."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from nicagent import config, proc
from nicagent.emulator.body import Event
from nicagent.emulator.chassis import Chassis
from nicagent.emulator.settings import Chassis as Settings
from nicagent.model import Disk, Export, Initiator, Transport, VolumeFormat
from nicagent.storage import identity
from nicagent.storage.build import make_storage
from nicagent.storage.contract import HostStorage
from tests.storage.nbd_client import NbdClient
from tests.storage.nvmetcp.initiator import Closed, Completion, Host

T = TypeVar("T")
DOMAIN = "0d7f4f4e-4b7e-4d0e-9a53-0c2f6f5b8a01"
MIB = 1 << 20
PATIENCE = 20.0  # seconds that a request waits for its disk
HELPER = """
import asyncio, sys, time
from pathlib import Path
from tests.conformance.storage_rig import Rig, RIGS
from nicagent.model import Disk, VolumeFormat

async def agent(kind, place, host, disks):
    rig = RIGS[kind](Path(place), host)
    storage = rig.driver()
    exports = rig.exports([Disk(t, p, VolumeFormat(f)) for t, p, f in (d.split(",") for d in disks)])
    print("presenting", flush=True)
    await storage.present(exports, rig.initiator)
    print("presented", flush=True)
    await storage.watch_over()

asyncio.run(agent(*sys.argv[1:4], sys.argv[4:]))
"""


class HostDisk(Protocol):
    """A disk as a host sees it, over one connection."""

    size: int

    async def read(self, offset: int, length: int) -> bytes: ...
    async def write(self, offset: int, data: bytes) -> None: ...
    async def flush(self) -> None: ...
    async def close(self) -> None: ...


@dataclass
class Rig(abc.ABC):
    """One host at `place`, a directory with a short path (unix sockets live in it)."""

    place: Path
    host: str = "metal-1"
    initiator: Initiator = field(default_factory=lambda: identity.initiator("metal-1"))

    transport: Transport = field(init=False)
    data_path: tuple[str, ...] = field(init=False, default=("qsd",))  # names of its pidfiles

    @property
    def pool(self) -> Path:
        (self.place / "pool").mkdir(exist_ok=True)
        return self.place / "pool"

    @property
    def run(self) -> Path:
        return self.place / "run" / "hosts" / self.host

    @abc.abstractmethod
    def settings(self) -> config.Storage: ...

    @abc.abstractmethod
    async def attach(self, exports: Sequence[Export], target: str) -> HostDisk:
        """Find and connect a disk, once: no waiting, no second try."""

    async def patient(self, exports: Sequence[Export], target: str) -> HostDisk:
        """A disk as a host has it for long: what goes and comes back is waited for."""
        return await self.attach(exports, target)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The host's own side of the wire, where the transport has more of it than connections."""
        yield

    @abc.abstractmethod
    def remains(self) -> list[str]:
        """What a host could still find, or somebody else stumble over."""

    def driver(self) -> HostStorage:
        return make_storage(
            self.host,
            self.settings(),
            run_dir=self.place / "run",
            state_dir=self.place / "state",
            address="127.0.0.1",
            pools=[self.pool],
        )

    def exports(self, disks: Sequence[Disk]) -> tuple[Export, ...]:
        return identity.exports(DOMAIN, self.host, disks)

    def pids(self) -> dict[str, int | None]:
        """The processes of the data path, by what each is."""
        return {name: proc.Daemon(name, self.run / f"{name}.pid").pid() for name in self.data_path}

    def raw(self, name: str, size: int = 4 * MIB) -> Path:
        path = self.pool / name
        with path.open("wb") as file:
            file.truncate(size)
        return path

    async def qcow2(self, name: str, base: Path) -> Path:
        path = self.pool / name
        await proc.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(path)])
        return path

    async def attach_soon(self, exports: Sequence[Export], target: str, deadline: float) -> HostDisk:
        """Connect within `deadline` seconds, trying as a host does."""
        async with asyncio.timeout(deadline):
            while True:
                with contextlib.suppress(OSError):
                    return await self.attach(exports, target)
                await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def agent(self, disks: Sequence[Disk]) -> AsyncIterator[asyncio.subprocess.Process]:
        """Another process that presents these disks and watches over them, killed at the end."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", HELPER, self.transport.value, str(self.place), self.host),
            *(f"{disk.target},{disk.path},{disk.format.value}" for disk in disks),
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()


@dataclass
class VirtioRig(Rig):
    """The disks in a PCIe slot, looked at over NBD as the emulated chassis does."""

    transport = Transport.VIRTIO
    data_path = ("qsd",)

    @property
    def slot(self) -> Path:
        return self.place / f"slot-{self.host}"

    def settings(self) -> config.Storage:
        return config.Storage(transport=self.transport, slot=str(self.slot))

    async def attach(self, exports: Sequence[Export], target: str) -> NbdClient:
        found = [*self.slot.glob(f"[0-9][0-9]-{target}.nbd")]
        if not found:
            raise FileNotFoundError(f"no device {target} in the slot")
        (device,) = found
        assert device.with_suffix(".json").exists(), "the description comes before the socket"
        return await NbdClient.connect(device, target)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        chassis = Settings(
            name=self.host, memory_mib=64, firmware="bios", pcie_slot=str(self.slot), hotplug_ports=2
        )
        async with Chassis(chassis, self.place / "chassis") as metal:
            await metal.order(Event.ORDER_ON, "test")
            yield

    async def patient(self, exports: Sequence[Export], target: str) -> HostDisk:
        return PatientDisk(lambda: self.attach(exports, target), await self.attach(exports, target))

    def remains(self) -> list[str]:
        return [str(path) for path in self.slot.iterdir()] if self.slot.exists() else []


class PatientDisk:
    """A disk behind a card, which connects again when its connection goes, as the chassis' does."""

    def __init__(self, connect: Callable[[], Awaitable[HostDisk]], disk: HostDisk) -> None:
        self._connect = connect
        self._disk = disk
        self.size = disk.size

    async def _done(self, work: Callable[[HostDisk], Awaitable[T]]) -> T:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await work(self._disk)
                except (OSError, EOFError):
                    await self._disk.close()
                    await asyncio.sleep(0.01)
                with contextlib.suppress(OSError, EOFError):
                    self._disk = await self._connect()

    async def read(self, offset: int, length: int) -> bytes:
        return await self._done(lambda disk: disk.read(offset, length))

    async def write(self, offset: int, data: bytes) -> None:
        await self._done(lambda disk: disk.write(offset, data))

    async def flush(self) -> None:
        await self._done(lambda disk: disk.flush())

    async def close(self) -> None:
        await self._disk.close()


class NvmeDisk:
    """A namespace over an association of its own, in threads, since the test's host is a blocking one."""

    def __init__(self, host: Host, export: Export, serials: Collection[str]) -> None:
        self._host = host
        self._nsid = export.identity.nsid
        namespace = host.identify(0, self._nsid).data
        self.size = int.from_bytes(namespace[:8], "little") * 512
        if not self.size:
            raise FileNotFoundError(f"no namespace {self._nsid}")
        names = (namespace[104:120].hex(), namespace[120:128].hex())
        assert names == (export.identity.nguid, export.identity.eui64), "identity is as given, always"
        self.serial = host.identify(1).data[4:24].decode().rstrip()
        assert self.serial in serials, "a controller has a serial of one of its disks"

    async def _done(self, work: Callable[[], Completion]) -> bytes:
        try:
            done = await asyncio.to_thread(work)
        except Closed:
            raise ConnectionError("the target closed the connection") from None
        if done.status:
            raise OSError(f"NVMe status {done.status:#x}")
        return done.data

    async def read(self, offset: int, length: int) -> bytes:
        return await self._done(lambda: self._host.read(offset, length, nsid=self._nsid))

    async def write(self, offset: int, data: bytes) -> None:
        await self._done(lambda: self._host.write(offset, data, nsid=self._nsid))

    async def flush(self) -> None:
        await self._done(lambda: self._host.flush(nsid=self._nsid))

    async def close(self) -> None:
        self._host.close()


@dataclass
class NvmeTcpRig(Rig):
    """The disks as namespaces, looked at by an initiator that shares no code with the target."""

    transport = Transport.NVME_TCP
    data_path = ("qsd", "nvmetcp")

    def settings(self) -> config.Storage:
        port, discovery_port = self.ports
        return config.Storage(transport=self.transport, port=port, discovery_port=discovery_port)

    @property
    def ports(self) -> list[int]:
        """Of the subsystem and of discovery; in a file, because another process may ask too."""
        known = self.place / f"ports-{self.host}"
        if not known.exists():
            known.write_text(" ".join(map(str, free_ports(2))))
        return [int(port) for port in known.read_text().split()]

    async def attach(self, exports: Sequence[Export], target: str) -> NvmeDisk:
        (export,) = (export for export in exports if export.disk.target == target)
        return await asyncio.to_thread(self.attach_as, export, self.initiator.hostnqn, exports)

    def attach_as(self, export: Export, hostnqn: str, exports: Sequence[Export]) -> NvmeDisk:
        """Connect under any name; what the target refuses is an OSError."""
        try:
            host = Host(self.ports[0], export.identity.nqn, hostnqn)
        except (Closed, AssertionError) as e:
            raise ConnectionRefusedError(str(e)) from None
        try:
            return NvmeDisk(host, export, [export.identity.serial for export in exports])
        except OSError:
            host.close()
            raise

    def remains(self) -> list[str]:
        found = []
        for port in self.ports:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                found.append(f"somebody listens on port {port}")
        return found


RIGS: dict[str, Callable[..., Rig]] = {"virtio": VirtioRig, "nvme-tcp": NvmeTcpRig}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """pytest's own temporary paths are too long for a unix socket."""
    place = Path(tempfile.mkdtemp(prefix="nic-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def small_file_system(place: Path) -> Iterator[None]:
    """2 MiB of room at `place`."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "nicagent-test", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def disk(target: str, path: Path, format: VolumeFormat = VolumeFormat.RAW, *, readonly: bool = False) -> Disk:
    return Disk(target, str(path), format, readonly=readonly)


async def until(condition: Callable[[], bool], deadline: float, what: str) -> float:
    """Seconds until `condition` holds; fails with `what` after `deadline`."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < deadline, what
        await asyncio.sleep(0.005)
    return time.monotonic() - start

"""Pools and volumes of an agent, by libvirt-python and virsh over the real wire: durable, whole, and never
changed under a running domain."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import libvirt
import pytest

from hypervisor_shim.driver import Event, PoolEvent, PoolRefreshEvent
from hypervisor_shim.driver.events import Defined
from hypervisor_shim.frame import Status, Type
from hypervisor_shim.memory import MemoryDriver
from nicagent import config
from nicagent.model import Disk, DiskFile, VolumeFormat
from nicagent.northbound.libvirt_storage import MetalStorage
from nicagent.pools import Pools
from nicagent.storage import imagelock
from nicagent.storage.images import PoolFiles
from nicagent.store import Store
from nicagent.volumes import Volumes
from tests.hypervisor_shim.serving import RawClient, Served, number, serving, text

MIB = 1 << 20
UPLOAD = 208  # a procedure's number
HOST = 'driver = "gpio"\npins = "mock:"'


@dataclass
class Agent:
    """The storage of an agent behind a libvirt server; `restart` is a death and a start."""

    home: Path
    served: Served
    running: list[tuple[str, Disk]] = field(default_factory=list)
    boot: str = "boot-1"
    store: Store | None = None
    pools: Any = None
    conn: Any = None

    def start(self) -> None:
        self.served.run(self._start())
        self.conn = libvirt.open(self.served.uri)

    async def _start(self) -> None:
        text = (
            f'[libvirt]\npool_roots = ["{self.home}/roots"]\n[pools.default]\npath = "{self.home}/default"\n'
        )
        text += f"[hosts.metal.power]\n{HOST}\n[hosts.metal]\nmemory_mib = 1024\n"
        text += f'[hosts.metal.storage]\ntransport = "virtio"\nslot = "{self.home}/slot"\n'
        self.store = await Store.open(self.home / "store.db")
        self.pools = pools = Pools(config.parse(text), self.store)
        leftovers = await pools.load("11111111-2222-3333-4444-555555555555", self.boot)
        volumes = Volumes(pools, lambda: self.running)
        await volumes.tidy(leftovers)
        driver = self.served.driver
        assert isinstance(driver, MemoryDriver)
        driver.storage = MetalStorage(pools, volumes, driver._publish)

    def stop(self) -> None:
        assert self.store is not None
        self.conn.close()
        self.served.run(self.store.close())

    def restart(self, *, boot: str = "boot-1") -> None:
        self.stop()
        self.boot = boot
        self.start()

    @property
    def pool(self) -> Any:
        return self.conn.storagePoolLookupByName("default")

    def files(self) -> set[str]:
        return {path.name for path in (self.home / "default").iterdir()}

    def make(self, name: str, mib: int = 1, format: str = "raw", extra: str = "", pool: Any = None) -> Any:
        text = f"<volume><name>{name}</name><capacity unit='MiB'>{mib}</capacity><allocation>0</allocation>"
        text += f"<target><format type='{format}'/></target>{extra}</volume>"
        return (pool or self.pool).createXML(text)

    def upload(self, volume: Any, data: bytes, offset: int = 0, length: int = 0) -> None:
        stream = self.conn.newStream()
        volume.upload(stream, offset, length)
        stream.sendAll(lambda _, size, at: data[at[0] : (at.__setitem__(0, at[0] + size) or at[0])], [0])
        stream.finish()

    def download(self, volume: Any, offset: int = 0, length: int = 0) -> bytes:
        stream, got = self.conn.newStream(), bytearray()
        volume.download(stream, offset, length)
        stream.recvAll(lambda _, data, kept: kept.extend(data), got)
        stream.finish()
        return bytes(got)

    def virsh(self, *words: str, check: bool = True) -> str:
        argv = ["virsh", "-q", "-c", self.served.uri, *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"virsh {' '.join(words)}: {done.stderr}"
        return (done.stdout + done.stderr).strip()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    libvirt.registerErrorHandler(lambda *_: None, None)
    for name in ("default", "roots"):
        (tmp_path / name).mkdir()
    socket = tmp_path / "s"
    socket.mkdir()
    with serving(MemoryDriver(), socket) as served:
        agent = Agent(tmp_path, served)
        agent.start()
        yield agent
        agent.stop()


def refused(work: Callable[[], object]) -> tuple[int, str]:
    """The code and the sentence of a refusal. (No traceback is kept: it would keep the client's objects, and
    the last of a closed connection would say goodbye from the server's own thread, should that collect it.)
    """
    try:
        work()
    except libvirt.libvirtError as error:
        return error.get_error_code(), str(error)
    raise AssertionError("it was not refused")


def pool_xml(agent: Agent, name: str, kind: str = "dir", path: str = "") -> str:
    path = path or f"{agent.home}/roots/{name}"
    return f"<pool type='{kind}'><name>{name}</name><target><path>{path}</path></target></pool>"


# ---- pools -----------------------------------------------------------------------------------------


def test_a_pool_of_the_config_is_active_and_nobodys_to_change(agent: Agent) -> None:
    pool = agent.pool
    assert (pool.isActive(), pool.isPersistent(), pool.autostart()) == (1, 1, 1)
    state, capacity, _, available = pool.info()
    assert state == libvirt.VIR_STORAGE_POOL_RUNNING and capacity >= available > 0
    for act in (pool.destroy, pool.undefine, pool.delete, lambda: pool.setAutostart(0)):
        code, sentence = refused(act)
        assert code == libvirt.VIR_ERR_OPERATION_INVALID and "[pools.default]" in sentence
    uuid = pool.UUIDString()
    agent.restart()
    assert agent.pool.UUIDString() == uuid, "a pool's UUID is drawn once"


def test_a_clients_pool_lives_through_restarts_and_by_autostart_through_boots(agent: Agent) -> None:
    pool = agent.conn.storagePoolDefineXML(pool_xml(agent, "more"))
    assert pool.info()[0] == libvirt.VIR_STORAGE_POOL_INACTIVE
    code, sentence = refused(pool.create)
    assert code == libvirt.VIR_ERR_OPERATION_FAILED and "pool-build" in sentence
    pool.build()
    assert (agent.home / "roots/more").stat().st_mode & 0o777 == 0o711
    pool.create()
    agent.make("kept", pool=pool)
    agent.restart()
    assert agent.conn.storagePoolLookupByName("more").listVolumes() == ["kept"], "active pools stay active"
    agent.restart(boot="boot-2")
    again = agent.conn.storagePoolLookupByName("more")
    assert again.isActive() == 0, "only autostart brings a pool back after a boot"
    assert refused(again.listVolumes)[0] == libvirt.VIR_ERR_OPERATION_INVALID
    again.setAutostart(1)
    agent.restart(boot="boot-3")
    again = agent.conn.storagePoolLookupByName("more")
    assert again.isActive() == 1
    assert refused(again.undefine)[0] == libvirt.VIR_ERR_OPERATION_INVALID
    again.destroy()
    assert "Directory not empty" in refused(again.delete)[1]
    (agent.home / "roots/more/kept").unlink()
    again.delete()
    again.undefine()
    agent.restart()
    assert [each.name() for each in agent.conn.listAllStoragePools()] == ["default"]


def test_a_transient_pool_ends_with_its_stop_or_the_boot(agent: Agent) -> None:
    (agent.home / "roots/brief").mkdir()
    pool = agent.conn.storagePoolCreateXML(pool_xml(agent, "brief"))
    assert pool.isPersistent() == 0
    agent.restart()
    assert agent.conn.storagePoolLookupByName("brief").isActive() == 1
    agent.conn.storagePoolLookupByName("brief").destroy()
    assert refused(lambda: agent.conn.storagePoolLookupByName("brief"))[0] == libvirt.VIR_ERR_NO_STORAGE_POOL
    agent.conn.storagePoolCreateXML(pool_xml(agent, "brief"))
    agent.restart(boot="boot-2")
    assert [each.name() for each in agent.conn.listAllStoragePools()] == ["default"]


def test_pools_lie_where_the_config_lets_them(agent: Agent) -> None:
    define = agent.conn.storagePoolDefineXML
    code, sentence = refused(lambda: define(pool_xml(agent, "x", path="/etc")))
    assert code == libvirt.VIR_ERR_ACCESS_DENIED and "libvirt.pool_roots" in sentence
    (agent.home / "roots/link").symlink_to("/etc")
    assert refused(lambda: define(pool_xml(agent, "link")))[0] == libvirt.VIR_ERR_ACCESS_DENIED
    for path in ("relative/x", f"{agent.home}/roots/../../x"):
        assert refused(partial(define, pool_xml(agent, "x", path=path)))[0] == libvirt.VIR_ERR_INVALID_ARG
    pool = define(pool_xml(agent, "later"))
    (agent.home / "roots/later").symlink_to("/etc")  # after it was looked at
    assert refused(pool.create)[0] == libvirt.VIR_ERR_ACCESS_DENIED


def test_what_is_no_directory_is_refused_by_name(agent: Agent) -> None:
    text = "<pool type='logical'><name>vg</name><source><device path='/dev/sdb'/></source></pool>"
    code, sentence = refused(lambda: agent.conn.storagePoolDefineXML(text))
    assert code == libvirt.VIR_ERR_CONFIG_UNSUPPORTED and "type 'dir' is" in sentence
    assert "<pool type='dir' supported='yes'>" in agent.conn.getStoragePoolCapabilities()


def test_two_pools_share_neither_name_nor_directory(agent: Agent) -> None:
    define = agent.conn.storagePoolDefineXML
    assert (
        "Storage source conflict"
        in refused(lambda: define(pool_xml(agent, "x", path=f"{agent.home}/default")))[1]
    )
    assert (
        "already exists with uuid"
        in refused(lambda: define(pool_xml(agent, "default", path=f"{agent.home}/roots/d")))[1]
    )


# ---- volumes ---------------------------------------------------------------------------------------


def test_a_volume_is_found_by_name_key_and_path(agent: Agent) -> None:
    volume = agent.make("disk.qcow2", 8, "qcow2")
    path = f"{agent.home}/default/disk.qcow2"
    assert (volume.path(), volume.key()) == (path, path)
    for found in (
        agent.conn.storageVolLookupByPath(path),
        agent.conn.storageVolLookupByKey(path),
        agent.pool.storageVolLookupByName("disk.qcow2"),
    ):
        assert found.info()[1] == 8 * MIB
    assert volume.storagePoolLookupByVolume().name() == "default"
    assert agent.conn.storagePoolLookupByTargetPath(f"{agent.home}/default").name() == "default"
    assert volume.infoFlags(1)[2] == Path(path).stat().st_size
    for work in (
        lambda: agent.conn.storageVolLookupByPath("/etc/passwd"),
        lambda: agent.pool.storageVolLookupByName("../default/disk.qcow2"),
        lambda: agent.pool.storageVolLookupByName("nothing"),
    ):
        assert refused(work)[0] == libvirt.VIR_ERR_NO_STORAGE_VOL


def test_the_declared_format_counts_whatever_the_name_says(agent: Agent) -> None:
    agent.make("plain", 4, "qcow2")
    agent.make("odd.qcow2", 4, "raw")
    agent.restart()
    assert "<format type='qcow2'/>" in agent.pool.storageVolLookupByName("plain").XMLDesc()
    assert "<format type='raw'/>" in agent.pool.storageVolLookupByName("odd.qcow2").XMLDesc()
    agent.pool.storageVolLookupByName("plain").delete()
    assert "<format type='raw'/>" in agent.make("plain", 4).XMLDesc()


def test_an_overlay_stands_on_its_base_and_keeps_it(agent: Agent) -> None:
    base = agent.make("base", 4)
    agent.upload(base, b"base" * 1024)
    extra = f"<backingStore><path>{base.path()}</path></backingStore>"
    overlay = agent.make("over", 4, "qcow2", extra)
    assert f"<path>{base.path()}</path>\n    <format type='raw'/>" in overlay.XMLDesc()
    for work in (base.delete, base.wipe, lambda: base.resize(8 * MIB), lambda: agent.upload(base, b"x")):
        code, sentence = refused(work)
        assert code == libvirt.VIR_ERR_OPERATION_INVALID and "backing file of over" in sentence
    flat = agent.pool.createXMLFrom("<volume><name>flat</name></volume>", overlay)
    assert agent.download(flat)[:4096] == b"base" * 1024
    overlay.delete()
    base.delete()
    outside = "<backingStore><path>/etc/passwd</path><format type='raw'/></backingStore>"
    assert refused(lambda: agent.make("evil", 4, "qcow2", outside))[0] == libvirt.VIR_ERR_ACCESS_DENIED
    assert agent.files() == {"flat"}


def test_a_snapshots_overlay_keeps_its_base_whatever_its_name(agent: Agent) -> None:
    """What a running host's snapshot makes beside the pools' own calls is known as what it is."""
    base = agent.make("base", 4)
    files = PoolFiles(lambda: [agent.home / "default"], agent.pools.declare_at)
    beneath = DiskFile(base.path(), VolumeFormat.RAW, 4 * MIB)
    path = f"{agent.home}/default/base.snap1"
    agent.served.run(files.create(path, VolumeFormat.QCOW2, 4 * MIB, beneath))
    assert "<format type='qcow2'/>" in agent.pool.storageVolLookupByName("base.snap1").XMLDesc()
    assert "backing file of base.snap1" in refused(base.delete)[1]


def test_names_are_taken_once(agent: Agent) -> None:
    volume = agent.make("disk")
    assert refused(lambda: agent.make("disk"))[0] == libvirt.VIR_ERR_STORAGE_VOL_EXIST
    clone = "<volume><name>disk</name></volume>"
    assert refused(lambda: agent.pool.createXMLFrom(clone, volume))[0] == libvirt.VIR_ERR_STORAGE_VOL_EXIST


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_clone_holds_the_same_and_may_be_larger(agent: Agent, format: str) -> None:
    source = agent.make("source", 3)
    data = os.urandom(2 * MIB)
    agent.upload(source, data, MIB // 2)
    text = f"<target><format type='{format}'/></target>"
    text = f"<volume><name>copy</name><capacity unit='MiB'>5</capacity>{text}</volume>"
    copy = agent.pool.createXMLFrom(text, source)
    assert copy.info()[1] == 5 * MIB
    back = agent.pool.createXMLFrom("<volume><name>back</name></volume>", copy)
    assert agent.download(back)[MIB // 2 :][: len(data)] == data


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_resize_grows_and_shrinks_only_if_told_so(agent: Agent, format: str) -> None:
    volume = agent.make("disk", 4, format)
    volume.resize(6 * MIB)
    volume.resize(MIB, libvirt.VIR_STORAGE_VOL_RESIZE_DELTA)
    assert volume.info()[1] == 7 * MIB
    code, sentence = refused(lambda: volume.resize(2 * MIB))
    assert code == libvirt.VIR_ERR_INVALID_ARG and "shrink flag" in sentence
    volume.resize(2 * MIB, libvirt.VIR_STORAGE_VOL_RESIZE_SHRINK)
    assert volume.info()[1] == 2 * MIB


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_wiped_volume_is_empty_and_whole(agent: Agent, format: str) -> None:
    seed = agent.make("seed", 2)
    agent.upload(seed, b"secret!!" * (MIB // 4))
    text = f"<volume><name>disk</name><target><format type='{format}'/></target></volume>"
    volume = agent.pool.createXMLFrom(text, seed)
    path = Path(volume.path())
    with path.open("rb") as before:  # the old content, whatever becomes of its name
        volume.wipe()
        assert b"secret" not in before.read()
    assert volume.info()[1] == 2 * MIB and b"secret" not in path.read_bytes()
    flat = agent.pool.createXMLFrom("<volume><name>flat</name></volume>", volume)
    assert agent.download(flat) == bytes(2 * MIB)
    assert agent.files() == {"seed", "disk", "flat"}
    for algorithm in (1, 8, 9):
        assert refused(partial(volume.wipePattern, algorithm))[0] == libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED


@pytest.mark.parametrize(
    "text",
    [
        "<format type='vmdk'/>",
        "<format type='qcow2'/><compat>0.10</compat>",
        "<format type='qcow2'/><features><extended_l2/></features>",
        "<format type='qcow2'/><encryption format='luks'/>",
        "<format type='qcow2'/><clusterSize unit='KiB'>4</clusterSize>",
    ],
)
def test_what_is_not_made_here_is_refused(agent: Agent, text: str) -> None:
    xml = f"<volume><name>x</name><capacity>1048576</capacity><target>{text}</target></volume>"
    assert refused(lambda: agent.pool.createXML(xml))[0] == libvirt.VIR_ERR_CONFIG_UNSUPPORTED
    assert agent.files() == set()


def test_what_virt_install_permits_is_not_made_use_of(agent: Agent) -> None:
    text = "<target><format type='qcow2'/><features><lazy_refcounts/></features></target>"
    volume = agent.pool.createXML(f"<volume><name>x.qcow2</name><capacity>1048576</capacity>{text}</volume>")
    assert "lazy_refcounts" not in volume.XMLDesc(), "the document tells what the file is"


# ---- upload and download ---------------------------------------------------------------------------


def test_content_goes_in_and_comes_out_by_offset_and_length(agent: Agent) -> None:
    volume = agent.make("disk", 4)
    data = os.urandom(3 * MIB + 17)
    agent.upload(volume, data)
    assert agent.download(volume)[: len(data)] == data and volume.info()[1] == 4 * MIB
    agent.upload(volume, b"patch", 1000, 5)
    expected = bytearray(data)
    expected[1000:1005] = b"patch"
    assert agent.download(volume, 990, 30) == bytes(expected[990:1020])
    assert agent.download(volume)[: len(data)] == bytes(expected)
    assert agent.download(volume, 5 * MIB) == b""


def test_a_larger_content_makes_the_volume_larger_in_whole_sectors(agent: Agent) -> None:
    volume = agent.make("disk", 1)
    agent.upload(volume, b"x" * (MIB + 100))
    assert volume.info()[1] == MIB + 512


def test_until_its_end_an_upload_changes_nothing(agent: Agent) -> None:
    volume = agent.make("disk", 2)
    agent.upload(volume, b"a" * MIB)
    stream = agent.conn.newStream()
    volume.upload(stream, 0, 0)
    stream.send(b"b" * 200_000)
    assert agent.download is not None and Path(volume.path()).read_bytes()[:MIB] == b"a" * MIB
    assert "being written to" in refused(volume.delete)[1]
    stream.abort()
    assert agent.files() == {"disk"} or _soon(lambda: agent.files() == {"disk"})
    assert agent.download(volume)[:MIB] == b"a" * MIB


def _soon(condition: Callable[[], bool]) -> bool:
    async def wait() -> bool:
        for _ in range(200):
            if condition():
                return True
            await asyncio.sleep(0.02)
        return False

    return asyncio.run(wait())


def test_more_than_announced_is_refused_and_nothing_stays_of_it(agent: Agent) -> None:
    volume = agent.make("disk", 1)
    code, sentence = refused(lambda: agent.upload(volume, b"x" * 100, 0, 10))
    assert "announced" in sentence and code == libvirt.VIR_ERR_OPERATION_FAILED
    assert agent.download(volume) == bytes(MIB)


def test_an_upload_that_is_no_image_leaves_the_old_one(agent: Agent) -> None:
    volume = agent.make("disk.qcow2", 4, "qcow2")
    before = Path(volume.path()).read_bytes()
    assert "not in qcow2 format" in refused(lambda: agent.upload(volume, b"junk" * MIB))[1]
    outside = agent.home / "forged.qcow2"
    argv = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw"]
    subprocess.run([*argv, str(outside), "1M"], check=True)
    assert refused(lambda: agent.upload(volume, outside.read_bytes()))[0] == libvirt.VIR_ERR_ACCESS_DENIED
    assert Path(volume.path()).read_bytes() == before
    assert _soon(lambda: agent.files() == {"disk.qcow2"})


def test_holes_travel_as_holes(agent: Agent, tmp_path: Path) -> None:
    volume = agent.make("disk", 64)
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(64 * MIB)
        for at in (0, 20 * MIB, 63 * MIB):
            file.seek(at)
            file.write(os.urandom(MIB))
    agent.virsh("vol-upload", "--sparse", "disk", str(source), "default")
    assert Path(volume.path()).read_bytes() == source.read_bytes()
    assert volume.info()[2] <= 4 * MIB, "what was a hole takes no room"
    agent.virsh("vol-download", "--sparse", "disk", str(target), "default")
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 <= 4 * MIB


def test_virsh_carries_a_file_there_and_back(agent: Agent, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(20 * MIB))
    agent.virsh("vol-create-as", "default", "disk", "20M", "--format", "raw")
    agent.virsh("vol-upload", "disk", str(source), "default")
    agent.virsh("vol-clone", "disk", "copy", "default")
    agent.virsh("vol-download", "copy", str(target), "default")
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()


def test_a_client_that_vanishes_leaves_the_volume_as_it_was(agent: Agent) -> None:
    volume = agent.make("disk", 1)
    with RawClient(agent.served.path) as client:
        client.open()
        ref = text("default") + text("disk") + text(volume.path())
        assert client.call(UPLOAD, ref + bytes(16) + number(0)).code == 0
        client.send(UPLOAD, b"half" * 1000, type=Type.STREAM, status=Status.CONTINUE, serial=client.serial)
        assert _soon(lambda: len(agent.files()) == 2)
    assert _soon(lambda: agent.files() == {"disk"})
    agent.upload(volume, b"whole")
    assert agent.download(volume).startswith(b"whole")


def test_what_happens_to_pools_is_told(agent: Agent) -> None:
    heard: list[tuple[str, int | None]] = []

    class Sink:
        def event(self, event: Event) -> None:
            if isinstance(event, PoolEvent | PoolRefreshEvent):
                heard.append((event.name, event.event if isinstance(event, PoolEvent) else None))

    agent.served.driver.subscribe(Sink())
    pool = agent.conn.storagePoolDefineXML(pool_xml(agent, "more"))
    pool.build()
    pool.create()
    agent.upload(agent.make("disk", pool=pool), b"x")
    pool.refresh()
    agent.pool.refresh()
    pool.storageVolLookupByName("disk").delete()
    pool.destroy()
    pool.delete()
    pool.undefine()
    steps = [Defined.DEFINED, Defined.CREATED, Defined.STARTED, None, None]
    steps_after = [Defined.STOPPED, Defined.DELETED, Defined.UNDEFINED]
    assert heard == [
        *(("more", step) for step in steps), ("default", None), *(("more", step) for step in steps_after)
    ]  # fmt: skip


# ---- running domains -------------------------------------------------------------------------------


def test_nothing_changes_under_a_running_domain(agent: Agent) -> None:
    base = agent.make("base", 4)
    over = agent.make("over", 4, "qcow2", f"<backingStore><path>{base.path()}</path></backingStore>")
    agent.running.append(("web", Disk("vda", over.path(), VolumeFormat.QCOW2)))
    works = (over.delete, over.wipe, lambda: over.resize(8 * MIB), lambda: agent.upload(over, b"x"))
    for work in (*works, base.delete):
        code, sentence = refused(work)
        assert code == libvirt.VIR_ERR_OPERATION_INVALID and "running domain web" in sentence
    assert "being written by the running domain web" in refused(lambda: agent.download(over))[1]
    assert len(agent.download(base)) == 4 * MIB, "what is only read may be read by others"
    agent.running.clear()
    over.resize(8 * MIB)


def test_a_pool_with_a_running_domain_is_not_stopped(agent: Agent) -> None:
    pool = agent.conn.storagePoolDefineXML(pool_xml(agent, "more"))
    pool.create(libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD)
    volume = agent.make("disk", pool=pool)
    agent.running.append(("web", Disk("vda", volume.path(), VolumeFormat.RAW)))
    assert "in use by the running domain web" in refused(pool.destroy)[1]
    agent.running.clear()
    pool.destroy()


def test_a_domain_that_starts_during_an_upload_keeps_its_disk(agent: Agent) -> None:
    volume = agent.make("disk", 1)
    stream = agent.conn.newStream()
    volume.upload(stream, 0, 0)
    stream.send(b"new" * 1000)
    agent.running.append(("web", Disk("vda", volume.path(), VolumeFormat.RAW)))
    assert "running domain web" in refused(stream.finish)[1]
    agent.running.clear()
    assert agent.download(volume) == bytes(MIB)


def test_what_another_process_has_open_is_left_alone(agent: Agent) -> None:
    """QEMU's locks tell of another agent on the same storage."""
    volume = agent.make("disk", 1)
    with imagelock.alone(Path(volume.path())):
        resize, upload = (lambda: volume.resize(2 * MIB)), (lambda: agent.upload(volume, b"x"))
        for work in (volume.wipe, volume.delete, resize, upload):
            code, sentence = refused(work)
            assert code == libvirt.VIR_ERR_OPERATION_INVALID and "open in another process" in sentence
    volume.wipe()


# ---- after a death ---------------------------------------------------------------------------------


def test_what_a_death_left_is_cleared_away_but_not_another_agents(agent: Agent) -> None:
    volume = agent.make("disk", 1)
    ours = "11111111222233334444555555555555"
    place = agent.home / "default"
    (place / f".new-{ours}-aa").write_bytes(b"half")
    (place / f".new-{'0' * 32}-bb").write_bytes(b"another agent's")
    (place / f".wipe-{ours}-cc").write_bytes(b"secret")
    os.link(volume.path(), place / f".wipe-{ours}-dd")
    agent.restart()
    assert agent.files() == {"disk", f".new-{'0' * 32}-bb"}
    assert agent.pool.listVolumes() == ["disk"]

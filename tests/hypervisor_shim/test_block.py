"""Sizes, limits and block jobs on the wire: what reaches a driver, and in which units, by libvirt-python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import libvirt
import pytest

from hypervisor_shim.driver import BlockJobEvent, Caller, Impact
from hypervisor_shim.driver.block import Block, BlockJobInfo, BlockJobType, Copy, IoTune
from hypervisor_shim.memory import MemoryDriver
from tests.hypervisor_shim.serving import Served, serving

MIB = 1 << 20


class Recorded(Block):
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def resize(self, caller: Caller, uuid: bytes, disk: str, size: int) -> None:
        self.asked.append((disk, size))

    def io_tune(self, uuid: bytes, disk: str | None, impact: Impact) -> IoTune:
        return {"total_iops_sec": 7}

    async def set_io_tune(
        self, caller: Caller, uuid: bytes, disk: str, given: IoTune, impact: Impact
    ) -> None:
        self.asked.append((disk, given, impact))

    async def copy(self, caller: Caller, uuid: bytes, disk: str, copy: Copy) -> None:
        self.asked.append((disk, copy))

    async def pull(self, caller: Caller, uuid: bytes, disk: str, base: str | None, bandwidth: int) -> None:
        self.asked.append((disk, base, bandwidth))

    async def commit(
        self, caller: Caller, uuid: bytes, disk: str, base: str | None, top: str | None, bandwidth: int,
        *, shallow: bool, active: bool,
    ) -> None:  # fmt: skip
        self.asked.append((disk, base, top, bandwidth, shallow, active))

    async def job_info(self, uuid: bytes, disk: str) -> BlockJobInfo | None:
        return BlockJobInfo(BlockJobType.COPY, 3 * MIB, 5, 9) if disk == "vda" else None

    async def set_job_speed(self, caller: Caller, uuid: bytes, disk: str, bandwidth: int) -> None:
        self.asked.append((disk, bandwidth))

    async def abort(self, caller: Caller, uuid: bytes, disk: str, *, pivot: bool) -> None:
        self.asked.append((disk, pivot))


@pytest.fixture
def served() -> Iterator[Served]:
    libvirt.registerErrorHandler(lambda *_: None, None)
    driver = MemoryDriver()
    driver.block = Recorded()
    with TemporaryDirectory(prefix="nic-") as place, serving(driver, Path(place)) as served:
        yield served


@pytest.fixture
def domain(served: Served) -> Iterator[libvirt.virDomain]:
    connection = libvirt.open(served.uri)
    yield connection.lookupByName("test")
    connection.close()


def last(served: Served) -> Any:
    return served.driver.block.asked[-1]


def test_sizes_and_speeds_come_in_bytes(served: Served, domain: libvirt.virDomain) -> None:
    domain.blockResize("vda", 10)
    assert last(served) == ("vda", 10240), "KiB without the flag"
    domain.blockResize("vda", 10, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    assert last(served) == ("vda", 10)
    domain.blockPull("vda", 2)
    assert last(served) == ("vda", None, 2 * MIB)
    domain.blockPull("vda", 2, libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
    assert last(served) == ("vda", None, 2)
    domain.blockJobSetSpeed("vda", 1)
    assert last(served) == ("vda", MIB)
    assert domain.blockJobInfo("vda") == {"type": 2, "bandwidth": 3, "cur": 5, "end": 9}
    info = domain.blockJobInfo("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
    assert info["bandwidth"] == 3 * MIB
    assert not domain.blockJobInfo("vdb"), "no job is no error"


def test_a_copy_may_be_asked_for_in_two_ways(served: Served, domain: libvirt.virDomain) -> None:
    disk = "<disk type='file'><driver type='raw'/><source file='/p/copy'/></disk>"
    domain.blockCopy("vda", disk, {"bandwidth": 5}, libvirt.VIR_DOMAIN_BLOCK_COPY_SHALLOW)
    assert last(served) == ("vda", Copy("/p/copy", "raw", shallow=True, bandwidth=5))
    flags = libvirt.VIR_DOMAIN_BLOCK_REBASE_COPY | libvirt.VIR_DOMAIN_BLOCK_REBASE_REUSE_EXT
    domain.blockRebase("vda", "/p/copy", 1, flags)
    assert last(served) == ("vda", Copy("/p/copy", None, reuse=True, bandwidth=MIB))
    domain.blockRebase("vda", "/p/base", 0)
    assert last(served) == ("vda", "/p/base", 0)
    domain.blockCommit("vda", "/p/base", None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    assert last(served) == ("vda", "/p/base", None, 0, False, True)
    domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    assert last(served) == ("vda", True)


def test_limits_are_typed_parameters(served: Served, domain: libvirt.virDomain) -> None:
    assert domain.blockIoTune("vda")["total_iops_sec"] == 7
    domain.setBlockIoTune("vda", {"read_bytes_sec": 100}, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    assert last(served) == ("vda", {"read_bytes_sec": 100}, Impact.CONFIG)
    domain.destroy()
    for refused in (lambda: domain.blockResize("vda", 1), lambda: domain.blockJobInfo("vda")):
        with pytest.raises(libvirt.libvirtError) as off:
            refused()
        assert off.value.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID


def test_news_of_a_job_reach_both_kinds_of_registration(served: Served) -> None:
    """The ids 8 and 16: by the disk's file, and by its target."""
    libvirt.virEventRegisterDefaultImpl()
    connection = libvirt.open(served.uri)
    told: list[Any] = []
    for event in (libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB, libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2):
        connection.domainEventRegisterAny(
            None, event, lambda c, d, name, *rest: told.append((name, *rest[:2])), None
        )

    async def publish() -> None:
        info = served.driver.domain_by_name("test")
        assert info is not None
        served.driver._publish(BlockJobEvent(info, "/p/disk", "vda", 2, 3))  # type: ignore[attr-defined]

    served.run(publish())
    for _ in range(100):
        libvirt.virEventRunDefaultImpl() if len(told) < 2 else None
    assert sorted(told) == [("/p/disk", 2, 3), ("vda", 2, 3)]
    connection.close()

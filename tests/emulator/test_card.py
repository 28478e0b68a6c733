"""Disks come and go in the PCIe slot of a running host: the agent's own driver on one side, a chassis on the
other.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest

from nicagent import proc
from nicagent.emulator.body import Event
from nicagent.emulator.chassis import Chassis
from nicagent.emulator.settings import Chassis as Settings
from nicagent.emulator.settings import DirectKernel
from nicagent.errors import Kind, NicagentError, NotReleased
from nicagent.model import BlockJob, JobKind, JobState, VolumeFormat
from nicagent.storage import slotwire, virtio
from nicagent.storage.contract import HostStorage
from nicagent.storage.slot import card_in
from tests.conformance.storage_rig import DOMAIN, MIB, VirtioRig, disk, short_directory
from tests.emulator.test_chassis import Console

PORTS = 3
BARE = Settings(name="bare", memory_mib=64, firmware="bios", hotplug_ports=PORTS)  # no OS: nobody lets go


@asynccontextmanager
async def powered(rig: VirtioRig, settings: Settings) -> AsyncIterator[Chassis]:
    wired = msgspec.structs.replace(settings, pcie_slot=str(rig.slot))
    async with Chassis(wired, rig.place / "c") as chassis:
        await chassis.order(Event.ORDER_ON, "test")
        yield chassis


@pytest.fixture
async def rig() -> AsyncIterator[VirtioRig]:
    with short_directory() as place:
        yield VirtioRig(place)


@pytest.fixture
async def storage(rig: VirtioRig) -> AsyncIterator[HostStorage]:
    driver = rig.driver()
    yield driver
    await driver.withdraw()
    await driver.close()


def disks_of(chassis: Chassis) -> dict[str, slotwire.Stage]:
    assert chassis.card is not None
    return {name.partition("-")[2]: each.stage for name, each in chassis.card.state().disks.items()}


async def until_job(storage: HostStorage, state: JobState) -> None:
    deadline = time.monotonic() + 20
    while not (found := await storage.jobs()) or found[0].state is not state:
        assert time.monotonic() < deadline, f"the job is not {state.value}: {found}"
        await asyncio.sleep(0.02)


@pytest.mark.guest
async def test_a_running_os_gets_disks_sees_them_grow_and_lets_go(
    tiny_guest: DirectKernel, rig: VirtioRig, storage: HostStorage
) -> None:
    root = rig.raw("root.raw", 16 * MIB)
    more = await rig.qcow2("more.qcow2", rig.raw("base.raw", 16 * MIB))
    one = rig.exports([disk("vda", root)])
    two = rig.exports([disk("vda", root), disk("vdb", more, VolumeFormat.QCOW2)])
    await storage.present(one, rig.initiator)
    settings = Settings(name="metal", memory_mib=256, direct_kernel=tiny_guest, hotplug_ports=PORTS)
    async with powered(rig, settings) as chassis:
        console = await Console.open(chassis)
        await console.expect("GUEST is up")

        async def shows(name: str, facts: str) -> None:
            """Wait until the OS lists a disk with this serial number or size."""
            async with asyncio.timeout(15):
                while True:
                    console.type("disks")
                    console.type("all of them")
                    lines = await console.until("GUEST heard all of them")
                    if any(f"DISK {name}" in line and line.endswith(facts) for line in lines):
                        return
                    await asyncio.sleep(0.1)

        await storage.present(two, rig.initiator)
        await shows("vdb", f"{two[1].identity.serial} {32 << 10}")
        console.type("write vdb pattern")
        await console.expect("GUEST wrote 0")
        console.type("load vdb")

        await storage.resize("vdb", 32 * MIB)
        await shows("vdb", str(64 << 10))
        await storage.resize("vda", 32 * MIB)
        await shows("vda", str(64 << 10))

        overlay = rig.pool / "over.qcow2"
        await proc.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(more), "-F", "qcow2", str(overlay)]
        )
        above = (two[0], replace(two[1], disk=replace(two[1].disk, path=str(overlay))))
        await storage.present(above, rig.initiator)
        await storage.start_job(BlockJob(DOMAIN, "vdb", JobKind.ACTIVE_COMMIT, str(more)))
        await until_job(storage, JobState.READY)
        await storage.end_job("vdb")
        overlay.unlink()
        await storage.present(two, rig.initiator)

        again = rig.driver()  # an agent that comes back
        before = disks_of(chassis)
        await again.present(two, rig.initiator)
        assert disks_of(chassis) == before, "an agent that comes back moved the host's disks"

        console.type("rest")
        await console.expect("GUEST rests")
        console.type("sum vdb")
        pattern = (b"pattern\n" * (MIB // 8 + 1))[:MIB]
        assert hashlib.md5(pattern).hexdigest() in await console.expect("SUM ")

        began = time.monotonic()
        await again.present(one, rig.initiator)
        print(f"the OS let go of its disk in {time.monotonic() - began:.1f} s")
        assert disks_of(chassis) == {"vda": slotwire.Stage.ATTACHED}
        await proc.run(["qemu-img", "check", "-q", str(more)])  # its file is nobody's any more
        await again.present(two, rig.initiator)
        await shows("vdb", f"{two[1].identity.serial} {64 << 10}")
        await again.close()
        await console.close()


async def test_a_host_without_an_os_keeps_what_it_has(
    rig: VirtioRig, storage: HostStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtio, "RELEASE_SECONDS", 1.0)
    disks = [disk(f"vd{letter}", rig.raw(f"{letter}.raw"), readonly=letter == "b") for letter in "abcde"]
    sets = [rig.exports(disks[:count]) for count in range(6)]
    await storage.present(sets[1], rig.initiator)
    async with powered(rig, BARE) as chassis:
        await storage.check_pluggable(more=2)
        await storage.present(sets[3], rig.initiator)
        assert disks_of(chassis) == dict.fromkeys(("vda", "vdb", "vdc"), slotwire.Stage.ATTACHED)
        with pytest.raises(NicagentError, match="none of the 3 ports"):
            await storage.check_pluggable(more=1)
        with pytest.raises(NicagentError, match="ports is free") as full:
            await storage.present(sets[4], rig.initiator)
        assert full.value.kind is Kind.UNAVAILABLE
        await storage.present(sets[3], rig.initiator)

        await storage.present(sets[2], rig.initiator)  # nobody has ever used the third: it goes at once
        assert set(disks_of(chassis)) == {"vda", "vdb"}
        with pytest.raises(NotReleased, match="disk vda"):
            await storage.present(sets[2][1:], rig.initiator)
        assert disks_of(chassis)["vda"] is slotwire.Stage.LEAVING
        await storage.present(sets[2], rig.initiator)  # as the controller does, which rolls back
        assert disks_of(chassis)["vda"] is slotwire.Stage.ATTACHED
        await (await rig.attach(sets[2], "vda")).close()

        await chassis.order(Event.ORDER_OFF, "test")
        await storage.present(sets[5], rig.initiator)  # nobody to ask
        await chassis.order(Event.ORDER_ON, "test")
        assert set(disks_of(chassis)) == {"vda", "vdb", "vdc", "vdd", "vde"}
        with pytest.raises(NicagentError, match="disk vde is in none of the ports"):
            await storage.check_pluggable(gone=["vde"])
        await storage.check_pluggable(gone=["vda"])
        await storage.resize("vde", 8 * MIB)
        assert chassis.card is not None and chassis.card.state().disks["04-vde"].size == 8 * MIB
        await chassis.order(Event.ORDER_OFF, "test")
    assert not [path for path in rig.slot.iterdir() if path.name == slotwire.SOCKET]


async def test_a_slot_that_is_read_at_power_on_says_so(rig: VirtioRig, storage: HostStorage) -> None:
    exports = rig.exports([disk("vda", rig.raw("a.raw"))])
    await storage.present(exports, rig.initiator)
    async with powered(rig, Settings(name="bare", memory_mib=64, firmware="bios")) as chassis:
        assert chassis.card is None
        with pytest.raises(NicagentError, match="at power-on only") as refused:
            await storage.check_pluggable(more=1)
        assert refused.value.kind is Kind.UNSUPPORTED
        with pytest.raises(NicagentError, match="had at power-on"):
            await storage.resize("vda", 8 * MIB)


async def test_whoever_speaks_nonsense_to_a_card_is_hung_up_on(rig: VirtioRig) -> None:
    async with powered(rig, BARE) as chassis:
        for nonsense in (b"hello\n", b"\0" * (slotwire.LINE_LIMIT + 2), b"look"):
            reader, writer = await asyncio.open_unix_connection(rig.slot / slotwire.SOCKET)
            await reader.readline()
            writer.write(nonsense)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
        async with card_in(rig.slot) as card:
            assert card is not None and card.state.powered and card.state.free == PORTS
            await chassis.order(Event.ORDER_OFF, "test")
            await card.hear(5)
            assert not card.state.powered, "a client hears of the power going"
    async with card_in(rig.slot) as card:
        assert card is None

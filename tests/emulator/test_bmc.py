"""The emulated BMC, seen by clients that others wrote: ipmitool and pyghmi."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from nicagent import proc
from nicagent.emulator.bmclink import BmcUnit
from nicagent.emulator.body import Event, Power
from nicagent.emulator.chassis import Chassis
from nicagent.emulator.faults import Fault
from nicagent.emulator.settings import Bmc
from nicagent.emulator.settings import Chassis as Settings
from nicagent.errors import NicagentError

PYGHMI = """
import sys
from pyghmi.ipmi.command import Command
port, password_file = sys.argv[1:]
c = Command("127.0.0.1", "admin", open(password_file).readline().strip(), port=int(port))
print(c.get_power()["powerstate"])
c.set_power("on", wait=True)
print(c.get_power()["powerstate"])
c.set_bootdev("network", persist=True, uefiboot=True)
print(c.get_bootdev())
c.set_power("off", wait=True)
print(c.get_power()["powerstate"])
"""


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Rig:
    """A chassis that boots nothing, its BMC, and ipmitool."""

    def __init__(self, chassis: Chassis, bmc: BmcUnit, port: int) -> None:
        self.chassis, self.bmc, self.port = chassis, bmc, port

    async def ipmitool(self, *words: str, password: Path | None = None, tries: int = 3) -> proc.Completed:
        login = ["-H", "127.0.0.1", "-p", str(self.port), "-U", "admin"]
        file = str(password or self.bmc.password_file)
        argv = ["ipmitool", "-I", "lanplus", "-N", "1", "-R", str(tries), *login, "-f", file, *words]
        return await proc.run(argv, check=False, timeout=60)

    async def says(self, *words: str) -> str:
        done = await self.ipmitool(*words)
        assert done.status == 0, f"ipmitool {' '.join(words)}: {done.stderr}"
        return done.stdout.strip()

    async def answers(self) -> None:
        """Until the BMC answers (again)."""
        async with asyncio.timeout(20):
            while (await self.ipmitool("chassis", "power", "status", tries=1)).status != 0:
                pass


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    port = free_port()
    settings = Settings(name="metal", memory_mib=64, firmware="bios")
    async with Chassis(settings, tmp_path / "c") as chassis, BmcUnit(chassis, Bmc(port=port)) as bmc:
        yield Rig(chassis, bmc, port)


@pytest.mark.parametrize("suite", ["3", "17"])
async def test_power_by_ipmitool(rig: Rig, suite: str) -> None:
    assert await rig.says("-C", suite, "chassis", "power", "status") == "Chassis Power is off"
    await rig.says("-C", suite, "chassis", "power", "on")
    assert rig.chassis.power is Power.ON and rig.chassis.bank.level(24) == 1, "the LED follows"
    assert await rig.says("-C", suite, "chassis", "power", "status") == "Chassis Power is on"
    await rig.says("-C", suite, "chassis", "power", "reset")
    await rig.says("-C", suite, "chassis", "power", "soft")
    await rig.says("-C", suite, "chassis", "power", "cycle")
    assert rig.chassis.power is Power.CYCLING
    await rig.says("-C", suite, "chassis", "power", "off")
    assert rig.chassis.power is Power.OFF
    asked = [each.event for each in rig.chassis.history if each.who == "BMC"]
    assert asked == [
        Event.ORDER_ON,
        Event.ORDER_RESET,
        Event.ORDER_SOFT,
        Event.ORDER_CYCLE,
        Event.ORDER_OFF,
    ], "each order once"


async def test_what_cannot_be_done_is_refused(rig: Rig) -> None:
    refused = await rig.ipmitool("-C", "3", "chassis", "power", "cycle")
    assert "not supported in present state" in refused.stderr


async def test_boot_device_round_trip_and_once_only(rig: Rig) -> None:
    await rig.says("-C", "3", "chassis", "bootdev", "pxe", "options=efiboot,persistent")
    kept = await rig.says("-C", "3", "chassis", "bootparam", "get", "5")
    assert "Force PXE" in kept and "all future boots" in kept and "EFI" in kept
    await rig.says("-C", "3", "chassis", "power", "on")
    assert rig.chassis.boot.network_first, "persistent flags outlive a boot"
    await rig.says("-C", "3", "chassis", "power", "off")
    await rig.says("-C", "3", "chassis", "bootdev", "pxe")
    await rig.says("-C", "3", "chassis", "power", "on")
    assert not rig.chassis.boot.network_first, "others are for one boot"


async def test_pyghmi_logs_in_and_works(rig: Rig) -> None:
    argv = [sys.executable, "-c", PYGHMI, str(rig.port), str(rig.bmc.password_file)]
    done = await proc.run(argv, timeout=60)
    off, on, boot, off_again = done.stdout.strip().splitlines()
    assert (off, on, off_again) == ("off", "on", "off")
    assert "'bootdev': 'network'" in boot and "'persistent': True" in boot and "'uefimode': True" in boot


async def test_nobody_gets_in_without_the_password(rig: Rig, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("guess\n")
    done = await rig.ipmitool("-C", "3", "chassis", "power", "on", password=wrong)
    assert done.status != 0 and rig.chassis.history == type(rig.chassis.history)()
    mode = stat.S_IMODE(rig.bmc.password_file.stat().st_mode)
    assert mode == 0o600, "the password it made up is its owner's alone"


async def test_cipher_suite_0_does_not_exist(rig: Rig) -> None:
    assert (await rig.ipmitool("-C", "0", "chassis", "power", "on")).status != 0
    assert rig.chassis.power is Power.OFF


async def test_it_starts_again_after_death_and_cold_reset(rig: Rig) -> None:
    await rig.says("-C", "3", "chassis", "power", "on")
    pid = rig.bmc.status()["bmc"]["pid"]  # type: ignore[index]
    os.kill(pid, signal.SIGKILL)
    await rig.answers()
    assert rig.bmc.starts == 2
    assert await rig.says("-C", "3", "chassis", "power", "status") == "Chassis Power is on", (
        "power is the chassis' business, not the BMC's"
    )
    await rig.says("-C", "3", "mc", "reset", "cold")
    async with asyncio.timeout(20):
        while rig.bmc.starts < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await rig.answers()


async def test_odd_input_does_not_kill_it(rig: Rig) -> None:
    pick = random.Random(7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as shower:
        for length in range(0, 400, 3):
            head = pick.choice([b"", b"\x06\x00\xff\x07", b"\x06\x00\xff\x07\x06", b"\x06\x00\xff\x06"])
            shower.sendto(head + pick.randbytes(length), ("127.0.0.1", rig.port))
    assert await rig.says("-C", "3", "chassis", "power", "status") == "Chassis Power is off"
    assert rig.bmc.starts == 1


async def test_a_silent_bmc(rig: Rig) -> None:
    rig.chassis.set_fault(Fault.BMC_SILENT, 1)
    assert (await rig.ipmitool("-C", "3", "chassis", "power", "status", tries=1)).status != 0
    rig.chassis.clear_fault(None)
    assert await rig.says("-C", "3", "chassis", "power", "status") == "Chassis Power is off"


async def test_a_slow_bmc_takes_its_time_for_every_answer(rig: Rig) -> None:
    rig.chassis.set_fault(Fault.BMC_SLOW, 0.5)
    began = asyncio.get_running_loop().time()
    await rig.says("-C", "3", "chassis", "power", "on")
    assert asyncio.get_running_loop().time() - began > 3, "a pause before each answer of login and order"
    assert [each.event for each in rig.chassis.history] == [Event.ORDER_ON]


async def test_a_lying_bmc(rig: Rig) -> None:
    rig.chassis.set_fault(Fault.BMC_LIES, 1)
    assert "Up/On" in await rig.says("-C", "3", "chassis", "power", "on")
    assert rig.chassis.power is Power.OFF


async def test_no_mains_no_bmc(rig: Rig) -> None:
    await rig.chassis.mains(False, "test")
    assert (await rig.ipmitool("-C", "3", "chassis", "power", "status", tries=1)).status != 0
    await rig.chassis.mains(True, "test")
    await rig.answers()


async def test_a_taken_address_is_a_clear_error(rig: Rig, tmp_path: Path) -> None:
    async with Chassis(Settings(name="other", memory_mib=64), tmp_path / "other") as other:
        with pytest.raises(NicagentError, match=f"cannot listen on 127.0.0.1:{rig.port}"):
            async with BmcUnit(other, Bmc(port=rig.port)):
                pass

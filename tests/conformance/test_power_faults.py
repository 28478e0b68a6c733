"""Hardware that lies, bounces, hangs: what a power driver makes of each fault the emulator can act out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from nicagent.config import GpioPower, IpmiPower
from nicagent.emulator.bmclink import BmcUnit
from nicagent.emulator.body import Event
from nicagent.emulator.chassis import Chassis
from nicagent.emulator.faults import Fault
from nicagent.emulator.settings import Bmc
from nicagent.emulator.settings import Chassis as ChassisSettings
from nicagent.errors import Kind, NicagentError
from nicagent.model import Cause, Power, PowerAction
from nicagent.power.build import make_power
from tests.power.driving import reads, started
from tests.power.ipmi_sim import free_udp_port

pytestmark = pytest.mark.guest
WHY = Cause("the conformance suite", "to see what happens")


@pytest.fixture
async def chassis(tmp_path: Path) -> AsyncIterator[Chassis]:
    settings = ChassisSettings(name="c", memory_mib=128, firmware="bios")
    async with Chassis(settings, tmp_path / "c") as made:
        yield made


@pytest.fixture
async def bmc(tmp_path: Path) -> AsyncIterator[tuple[Chassis, BmcUnit]]:
    settings = Bmc(port=free_udp_port())
    whole = ChassisSettings(name="c", memory_mib=128, firmware="bios", bmc=settings)
    async with Chassis(whole, tmp_path / "c") as chassis, BmcUnit(chassis, settings) as unit:
        yield chassis, unit


def polling(chassis: Chassis, unit: BmcUnit) -> IpmiPower:
    bmc = chassis.settings.bmc
    assert bmc is not None
    return IpmiPower(
        address=bmc.address,
        port=bmc.port,
        user=bmc.user,
        password_file=str(unit.password_file),
        poll_seconds=0.3,
        command_seconds=4.0,
    )


def wired_to(chassis: Chassis) -> GpioPower:
    return GpioPower(pins=f"socket:{chassis.directory / 'lines.sock'}", off_on_gap_seconds=0.3)


async def test_a_stuck_led_is_believed_and_nothing_is_pressed_on_its_word_alone(chassis: Chassis) -> None:
    chassis.set_fault(Fault.LED_STUCK, 1)
    async with started(make_power("h", wired_to(chassis))) as driver:
        assert await driver.read() is Power.ON
        await driver.apply(PowerAction.ON, WHY)
        assert chassis.bank.waveform(chassis.settings.front_panel.power_button) == []


async def test_off_with_a_led_stuck_on_holds_the_button_to_the_end_and_lets_go(chassis: Chassis) -> None:
    await chassis.order(Event.ORDER_ON, "a test")
    chassis.set_fault(Fault.LED_STUCK, 1)
    config = msgspec.structs.replace(wired_to(chassis), hold_seconds=4.4)
    async with started(make_power("h", config)) as driver:
        await driver.apply(PowerAction.OFF, WHY)
        down, up = chassis.bank.waveform(chassis.settings.front_panel.power_button)
        assert up.level == 0
        held = (up.t_ns - down.t_ns) / 1e9
        assert 4.4 <= held < 5.4, f"held for {held:.2f} s"
        assert str(chassis.power) == "off", "the hold did not cut the power"
        assert await driver.read() is Power.ON, "the LED says on, whatever is so"


async def test_glitches_of_the_led_are_no_events(chassis: Chassis) -> None:
    told: list[Power] = []
    await chassis.order(Event.ORDER_ON, "a test")
    async with started(make_power("h", wired_to(chassis))) as driver:
        driver.watch(told.append)
        chassis.set_fault(Fault.LED_BOUNCE, 40)
        read = set()
        for _ in range(60):
            read.add(await driver.read())
            await asyncio.sleep(0.025)
        assert Power.OFF not in read, "a glitch of 40 ms was read as a host that is off"
        assert told == [Power.ON], "a glitch was told as a change"
        touched = len(chassis.bank.waveform(chassis.settings.front_panel.power_button))
        await driver.apply(PowerAction.ON, WHY)
        assert len(chassis.bank.waveform(chassis.settings.front_panel.power_button)) == touched
        chassis.clear_fault(None)
        await reads(driver, Power.ON)


async def test_a_dead_button_presses_nothing_and_is_let_go(chassis: Chassis) -> None:
    chassis.set_fault(Fault.BUTTON_DEAD, 1)
    config = msgspec.structs.replace(wired_to(chassis), hold_seconds=0.5)
    async with started(make_power("h", config)) as driver:
        await driver.apply(PowerAction.ON, WHY)
        assert await driver.read() is Power.OFF
        assert chassis.bank.level(config.power_button.offset) == 0


async def test_a_line_busy_with_another_agent_is_named(chassis: Chassis) -> None:
    async with started(make_power("first", wired_to(chassis))):
        with pytest.raises(NicagentError, match="nicagent first") as busy:
            await make_power("second", wired_to(chassis)).start()
        assert busy.value.kind is Kind.UNAVAILABLE


async def test_a_silent_bmc_is_unknown_within_the_deadline_and_known_when_it_answers(
    bmc: tuple[Chassis, BmcUnit],
) -> None:
    told: list[Power] = []
    async with started(make_power("h", polling(*bmc))) as driver:
        driver.watch(told.append)
        await reads(driver, Power.OFF)
        bmc[0].set_fault(Fault.BMC_SILENT, 1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(NicagentError) as silent:
            await driver.apply(PowerAction.ON, WHY)
        assert silent.value.kind is Kind.UNAVAILABLE
        assert loop.time() - began <= driver.deadline(PowerAction.ON)
        assert await driver.read() is Power.UNKNOWN
        bmc[0].clear_fault(None)
        await reads(driver, Power.OFF)
        await driver.apply(PowerAction.ON, WHY)
        await reads(driver, Power.ON)
    assert told == [Power.OFF, Power.UNKNOWN, Power.OFF, Power.ON]


async def test_a_slow_bmc_is_waited_for_within_the_deadline(bmc: tuple[Chassis, BmcUnit]) -> None:
    async with started(make_power("h", polling(*bmc))) as driver:
        await reads(driver, Power.OFF)
        bmc[0].set_fault(Fault.BMC_SLOW, 0.4)
        await driver.apply(PowerAction.ON, WHY)
        await reads(driver, Power.ON)


async def test_a_bmc_that_says_yes_and_does_nothing_is_seen_by_its_facts(
    bmc: tuple[Chassis, BmcUnit],
) -> None:
    bmc[0].set_fault(Fault.BMC_LIES, 1)
    async with started(make_power("h", polling(*bmc))) as driver:
        await driver.apply(PowerAction.ON, WHY)
        await asyncio.sleep(1.0)
        assert await driver.read() is Power.OFF, "the BMC's promise was taken for a fact"

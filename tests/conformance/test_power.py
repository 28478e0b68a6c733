"""What every power driver must do, whatever it drives: `nicagent.power.contract`, line by line.

Each rig is a real driver on a real counterpart:

- `gpio-chassis`: GPIO lines of an emulated chassis, with the virtual machine that is its board;
- `gpio-lines`: the same lines and the same table of a board's behaviour, with a quick clock and no machine;
- `ipmi-chassis`: the emulated chassis' BMC;
- `ipmi-openipmi`: OpenIPMI's simulator, a BMC that others wrote.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from nicagent.config import GpioPower, IpmiPower
from nicagent.emulator import chassis as emulator
from nicagent.emulator.bmclink import BmcUnit
from nicagent.emulator.body import Event
from nicagent.emulator.body import Power as Board
from nicagent.emulator.faults import Fault
from nicagent.emulator.settings import Bmc
from nicagent.emulator.settings import Chassis as ChassisSettings
from nicagent.errors import Kind, NicagentError
from nicagent.model import Cause, Power, PowerAction
from nicagent.power.build import make_power
from nicagent.power.contract import PowerDriver
from nicagent.power.gpio import GpioPowerDriver
from nicagent.power.ipmi import IpmiPowerDriver
from tests.power.driving import SETTLE, reads
from tests.power.ipmi_sim import IpmiSim, free_udp_port
from tests.power.server_body import ServerBody, quick

WHY = Cause("the conformance suite", "to see what happens")


class Rig(abc.ABC):
    """A driver, and the far end as only a test can see it."""

    driver: PowerDriver

    @abc.abstractmethod
    def is_on(self) -> bool:
        """Whether the server really has power."""

    @abc.abstractmethod
    def touched(self) -> int:
        """How often a button was moved or the BMC was told to do something."""

    @abc.abstractmethod
    def switches_itself(self, on: bool) -> None:
        """The host goes on or off with nobody asking."""

    @abc.abstractmethod
    def goes_dead(self) -> None:
        """Presses and orders are taken, and nothing comes of them."""

    async def knows(self, wanted: Power) -> None:
        await reads(self.driver, wanted)

    async def sees(self, so: Callable[[], bool]) -> None:
        async with asyncio.timeout(SETTLE):
            while not so():  # noqa: ASYNC110
                await asyncio.sleep(0.02)


class GpioLines(Rig):
    def __init__(self, body: ServerBody) -> None:
        self.body = body
        self.driver = make_power("h", quick(body.path))

    def is_on(self) -> bool:
        return self.body.is_on()

    def touched(self) -> int:
        return len(self.body.edges())

    def switches_itself(self, on: bool) -> None:
        self.body.state = Board.ON if on else Board.OFF
        self.body.show()

    def goes_dead(self) -> None:
        self.body.button_dead = True


class GpioChassis(Rig):
    def __init__(self, chassis: emulator.Chassis) -> None:
        self.chassis = chassis
        lines = chassis.directory / "lines.sock"
        self.driver = make_power(
            "h", GpioPower(pins=f"socket:{lines}", off_on_gap_seconds=0.3, holdoff_seconds=0.2)
        )

    def is_on(self) -> bool:
        return self.chassis.power is Board.ON

    def touched(self) -> int:
        panel = self.chassis.settings.front_panel
        buttons = (panel.power_button, panel.reset)
        return sum(edge.line in buttons for edge in self.chassis.bank.waveform())

    def switches_itself(self, on: bool) -> None:
        event = Event.ORDER_ON if on else Event.ORDER_OFF
        self.order = asyncio.ensure_future(self.chassis.order(event, "a test"))

    def goes_dead(self) -> None:
        self.chassis.set_fault(Fault.BUTTON_DEAD, 1)


class IpmiChassis(Rig):
    def __init__(self, chassis: emulator.Chassis, bmc: BmcUnit) -> None:
        self.chassis = chassis
        status = chassis.settings.bmc
        assert status is not None
        config = IpmiPower(
            address=status.address,
            port=status.port,
            user=status.user,
            password_file=str(bmc.password_file),
            poll_seconds=0.3,
            command_seconds=6.0,
        )
        self.driver = make_power("h", config)

    def is_on(self) -> bool:
        return self.chassis.power is Board.ON

    def touched(self) -> int:
        return sum(event.who == "BMC" for event in self.chassis.history)

    def switches_itself(self, on: bool) -> None:
        event = Event.ORDER_ON if on else Event.ORDER_OFF
        self.order = asyncio.ensure_future(self.chassis.order(event, "a test"))

    def goes_dead(self) -> None:
        self.chassis.set_fault(Fault.BMC_LIES, 1)


class IpmiOpenIpmi(Rig):
    def __init__(self, bmc: IpmiSim) -> None:
        self.bmc = bmc
        self.driver = make_power(
            "h",
            IpmiPower(
                address="127.0.0.1",
                port=bmc.port,
                password_file=str(bmc.password_file),
                poll_seconds=0.3,
                command_seconds=4.0,
            ),
        )

    def is_on(self) -> bool:
        return self.bmc.is_on

    def touched(self) -> int:
        return len(self.bmc.calls)

    def switches_itself(self, on: bool) -> None:
        self.bmc.set_power(on)

    def goes_dead(self) -> None:
        (self.bmc.directory / "dead").touch()


@contextlib.asynccontextmanager
async def gpio_lines(where: Path) -> AsyncIterator[Rig]:
    async with ServerBody(where / "lines") as body:
        yield GpioLines(body)


@contextlib.asynccontextmanager
async def gpio_chassis(where: Path) -> AsyncIterator[Rig]:
    settings = ChassisSettings(name="c", memory_mib=128, firmware="bios")
    async with emulator.Chassis(settings, where / "c") as chassis:
        yield GpioChassis(chassis)


@contextlib.asynccontextmanager
async def ipmi_chassis(where: Path) -> AsyncIterator[Rig]:
    bmc = Bmc(port=free_udp_port())
    settings = ChassisSettings(name="c", memory_mib=128, firmware="bios", bmc=bmc)
    async with emulator.Chassis(settings, where / "c") as chassis, BmcUnit(chassis, bmc) as unit:
        yield IpmiChassis(chassis, unit)


@contextlib.asynccontextmanager
async def ipmi_openipmi(where: Path) -> AsyncIterator[Rig]:
    async with IpmiSim(where / "bmc") as bmc:
        yield IpmiOpenIpmi(bmc)


RIGS = {
    "gpio-lines": gpio_lines,
    "gpio-chassis": gpio_chassis,
    "ipmi-chassis": ipmi_chassis,
    "ipmi-openipmi": ipmi_openipmi,
}


# A board that is a virtual machine needs QEMU; nothing boots on it.
PARAMS = [pytest.param(name, marks=[pytest.mark.guest] if "chassis" in name else []) for name in RIGS]


@pytest.fixture(params=PARAMS)
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    async with RIGS[request.param](tmp_path) as made:
        yield made
        await made.driver.close()


async def test_start_and_close_touch_nothing(rig: Rig) -> None:
    for _ in range(2):
        await rig.driver.start()
        await rig.knows(Power.OFF)
        await rig.driver.close()
        await rig.driver.close()
    assert rig.touched() == 0


async def test_on_off_and_off_again(rig: Rig) -> None:
    await rig.driver.start()
    await rig.driver.apply(PowerAction.ON, WHY)
    await rig.knows(Power.ON)
    assert rig.is_on()
    touched = rig.touched()
    await rig.driver.apply(PowerAction.ON, WHY)
    assert rig.touched() == touched, "ON of a host that is on did something"
    await rig.driver.apply(PowerAction.OFF, WHY)
    await rig.knows(Power.OFF)
    assert not rig.is_on()
    touched = rig.touched()
    await rig.driver.apply(PowerAction.OFF, WHY)
    await rig.driver.apply(PowerAction.SHUTDOWN, WHY)
    assert rig.touched() == touched, "OFF of a host that is off did something"
    with pytest.raises(NicagentError) as refused:
        await rig.driver.apply(PowerAction.RESET, WHY)
    assert refused.value.kind is Kind.WRONG_STATE
    assert rig.touched() == touched


async def test_press_shutdown_and_reset_of_a_running_host_leave_it_on(rig: Rig) -> None:
    """No OS runs here that would obey a short press."""
    await rig.driver.start()
    await rig.driver.apply(PowerAction.PRESS, WHY)
    await rig.knows(Power.ON)
    for action in (PowerAction.RESET, PowerAction.SHUTDOWN, PowerAction.PRESS):
        touched = rig.touched()
        await rig.driver.apply(action, WHY)
        assert rig.touched() > touched, f"{action} of a running host did nothing"
    assert rig.is_on()


async def test_a_host_that_switches_itself_is_seen_and_told(rig: Rig) -> None:
    told: list[Power] = []
    rig.driver.watch(told.append)
    await rig.driver.start()
    await rig.sees(lambda: told == [Power.OFF])
    rig.switches_itself(True)
    await rig.sees(lambda: told == [Power.OFF, Power.ON])
    rig.switches_itself(False)
    await rig.sees(lambda: told == [Power.OFF, Power.ON, Power.OFF])
    assert await rig.driver.read() is Power.OFF
    late: list[Power] = []
    rig.driver.watch(late.append)
    await rig.sees(lambda: late == [Power.OFF])


async def test_an_order_without_effect_is_reported_as_the_facts_are(rig: Rig) -> None:
    await rig.driver.start()
    await rig.knows(Power.OFF)
    rig.goes_dead()
    await rig.driver.apply(PowerAction.ON, WHY)
    await asyncio.sleep(0.5)
    assert await rig.driver.read() is Power.OFF, "the driver told a wish as a fact"
    assert not rig.is_on()


async def test_actions_queue_and_each_ends_within_its_deadline(rig: Rig) -> None:
    await rig.driver.start()
    await rig.driver.apply(PowerAction.ON, WHY)
    await rig.knows(Power.ON)
    loop = asyncio.get_running_loop()
    began = loop.time()
    actions = (PowerAction.RESET, PowerAction.PRESS, PowerAction.RESET)
    await asyncio.gather(*(rig.driver.apply(action, WHY) for action in actions))
    assert loop.time() - began < sum(rig.driver.deadline(action) for action in actions)


async def test_every_order_is_logged_with_its_cause(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    await rig.driver.start()
    with caplog.at_level(logging.INFO, "nicagent.power"):
        await rig.driver.apply(PowerAction.ON, WHY)
    told = [record for record in caplog.records if hasattr(record, "cause")]
    assert told, "the host was switched on and the log does not say why"
    assert {(record.host, record.cause) for record in told} == {("h", str(WHY))}  # type: ignore[attr-defined]


async def test_a_closed_driver_says_unknown_and_refuses_to_act(rig: Rig) -> None:
    await rig.driver.start()
    await rig.driver.close()
    assert await rig.driver.read() is Power.UNKNOWN
    with pytest.raises(NicagentError) as closed:
        await rig.driver.apply(PowerAction.ON, WHY)
    assert closed.value.kind is Kind.UNAVAILABLE
    assert rig.touched() == 0


async def test_cancelled_actions_leave_the_driver_usable(rig: Rig) -> None:
    await rig.driver.start()
    for delay in (0.0, 0.005, 0.02):
        task = asyncio.create_task(rig.driver.apply(PowerAction.PRESS, WHY))
        await asyncio.sleep(delay)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await rig.driver.apply(PowerAction.ON, WHY)
    await rig.knows(Power.ON)


async def test_the_config_chooses_the_driver() -> None:
    assert isinstance(make_power("h", GpioPower()), GpioPowerDriver)
    assert isinstance(make_power("h", IpmiPower(address="::1", password_file="/nosuch")), IpmiPowerDriver)

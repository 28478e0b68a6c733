"""A chassis behaves as a server does, seen only from outside: lines, console, network and disks."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

from nicagent import proc
from nicagent.emulator.body import Event, Power, Verdict
from nicagent.emulator.chassis import Chassis
from nicagent.emulator.control import ChassisControl, serve_control
from nicagent.emulator.faults import Fault
from nicagent.emulator.settings import Chassis as Settings
from nicagent.emulator.settings import DirectKernel, FrontPanel, LocalDisk
from nicagent.emulator.slot import slot_disks
from nicagent.errors import NicagentError
from nicagent.power.linewire import Direction, Reply, Request, decode_answer, encode

BUTTON, RESET, LED = 23, 27, 24
BARE = Settings(name="bare", memory_mib=64, firmware="bios")  # boots nothing: enough to have power


class Hand:
    """A hand on the front panel: holds a line over the socket."""

    def __init__(self, chassis: Chassis) -> None:
        self._path = chassis.directory / "lines.sock"
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Hand:
        self._reader, self._writer = await asyncio.open_unix_connection(str(self._path))
        self._stack.callback(self._writer.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def claim(self, line: int, level: int | None = None, direction: Direction = "out") -> None:
        await self._ask(Request(1, "claim", line, direction, level, "hand"))  # type: ignore[arg-type]

    async def set(self, line: int, level: int) -> None:
        await self._ask(Request(1, "set", line, level=level))  # type: ignore[arg-type]

    async def press(self, line: int, seconds: float, active: int = 1) -> None:
        await self.claim(line)
        await self.set(line, active)
        await asyncio.sleep(seconds)
        await self.set(line, 1 - active)

    async def _ask(self, request: Request) -> None:
        self._writer.write(encode(request))
        reply = decode_answer(await self._reader.readline())
        assert isinstance(reply, Reply) and reply.ok, reply


class Console:
    """A terminal on the serial console."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, chassis: Chassis) -> Console:
        return cls(*await asyncio.open_unix_connection(str(chassis.serial.path)))

    async def expect(self, text: str, limit: float = 60.0) -> str:
        """The next line that holds `text`."""
        return (await self.until(text, limit))[-1]

    async def until(self, text: str, limit: float = 60.0) -> list[str]:
        """All lines up to that one."""
        lines = []
        async with asyncio.timeout(limit):
            while line := await self._reader.readline():
                lines.append(line.decode(errors="replace").strip())
                if text in lines[-1]:
                    return lines
        raise AssertionError(f"the console ended before {text!r}")

    def type(self, text: str) -> None:
        self._writer.write(text.encode() + b"\n")

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def until(condition: Callable[[], bool], what: str, limit: float = 15.0) -> None:
    try:
        async with asyncio.timeout(limit):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {limit} s: {what}") from None


@asynccontextmanager
async def running(settings: Settings, directory: Path) -> AsyncIterator[tuple[Chassis, Hand]]:
    async with Chassis(settings, directory) as chassis, Hand(chassis) as hand:
        yield chassis, hand


def led(chassis: Chassis) -> int:
    return chassis.bank.level(LED)


def pid_of(chassis: Chassis) -> int | None:
    pid = chassis.status()["qemu_pid"]
    assert pid is None or isinstance(pid, int)
    return pid


@pytest.mark.guest
async def test_a_day_in_the_life(tiny_guest: DirectKernel, tmp_path: Path) -> None:
    """Press: on. Reboot: stays on. Reset line: held, then boots anew. Press: the OS hears it and goes off."""
    settings = Settings(name="metal", memory_mib=256, direct_kernel=tiny_guest)
    async with running(settings, tmp_path / "c") as (chassis, hand):
        console = await Console.open(chassis)
        assert (led(chassis), pid_of(chassis)) == (0, None), "off: no QEMU at all"
        await hand.press(BUTTON, 0.1)
        await until(lambda: led(chassis) == 1, "LED on")
        pid = pid_of(chassis)
        await console.expect("GUEST is up")

        busy = await Console.open(chassis)
        await busy.expect("in use by another client")
        await busy.close()

        console.type("reboot")
        await console.expect("GUEST is up")
        assert pid_of(chassis) == pid and len(chassis.bank.waveform(LED)) == 1, "a reboot is no power cycle"

        await console.close()
        console = await Console.open(chassis)
        await hand.press(RESET, 0.3)
        await console.expect("GUEST is up")
        assert len(chassis.bank.waveform(LED)) == 1

        await hand.press(BUTTON, 0.1)
        await console.expect("GUEST sees the power button")
        await until(lambda: led(chassis) == 0, "LED off after the OS switched off")
        assert chassis.power is Power.OFF and pid_of(chassis) is None
        assert Event.OS_OFF in {each.event for each in tuple(chassis.history)[-2:]}, "the OS did it"
        await console.close()
    assert b"GUEST sees the power button" in (tmp_path / "c/console.log").read_bytes()


@pytest.mark.guest
async def test_disks_in_the_slot_are_virtio_disks(tiny_guest: DirectKernel, tmp_path: Path) -> None:
    slot = tmp_path / "c/slot"
    slot.mkdir(parents=True)
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    local = tmp_path / "local.img"
    local.write_bytes(bytes(2 << 20))
    server = await proc.spawn(
        ["qemu-nbd", "-k", str(slot / "00-vda.nbd"), "-x", "root", "-f", "raw", "-t", str(disk)]
    )
    try:
        await until((slot / "00-vda.nbd").exists, "the NBD server listens")
        (slot / "00-vda.json").write_text(
            json.dumps({"export": "root", "serial": "SN-SLOT", "bootindex": 1, "readonly": False})
        )
        settings = Settings(
            name="metal",
            memory_mib=256,
            direct_kernel=tiny_guest,
            local_disks=(LocalDisk(path=str(local), serial="SN-LOCAL"),),
        )
        async with running(settings, tmp_path / "c") as (chassis, hand):
            console = await Console.open(chassis)
            await hand.press(BUTTON, 0.1)
            await console.expect("GUEST is up")
            console.type("disks")
            assert await console.expect("DISK vda SN") == "DISK vda SN-SLOT 2048"
            assert await console.expect("DISK vdb SN") == "DISK vdb SN-LOCAL 4096"
            await console.close()
    finally:
        server.kill()
        await server.wait()


def test_the_slot_is_read_in_boot_order(tmp_path: Path) -> None:
    for name, order in (("a", 7), ("b", 1 << 30), ("c", 1)):
        (tmp_path / f"{name}.nbd").touch()
        (tmp_path / f"{name}.json").write_text(json.dumps({"bootindex": order, "export": name}))
    assert [disk.export for _, disk in slot_disks(tmp_path)] == ["c", "a", "b"]
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(NicagentError, match=r"a\.json"):
        slot_disks(tmp_path)


async def test_three_seconds_are_a_press_and_four_a_power_cut(tmp_path: Path) -> None:
    async with running(BARE, tmp_path / "c") as (chassis, hand):
        await hand.press(BUTTON, 0.1)
        await until(lambda: led(chassis) == 1, "LED on")
        await hand.press(BUTTON, 3.0)
        assert chassis.power is Power.ON
        await hand.claim(BUTTON, 1)
        began = asyncio.get_running_loop().time()
        await until(lambda: led(chassis) == 0, "LED off while the button is still held", 6.0)
        assert 3.9 < asyncio.get_running_loop().time() - began < 5.5
        await hand.set(BUTTON, 0)
        await asyncio.sleep(0.1)
        assert chassis.power is Power.OFF, "letting go after a power cut does not switch on"


async def test_a_press_left_by_its_holder_goes_on_to_the_power_cut(tmp_path: Path) -> None:
    """`keep`: a dead agent's finger stays on the button; `input`: the resistor lets go."""

    async def state_after(policy: Literal["keep", "input"]) -> Power:
        panel = FrontPanel(on_holder_death=policy)
        settings = Settings(name="bare", memory_mib=64, firmware="bios", front_panel=panel)
        async with Chassis(settings, tmp_path / policy) as chassis:
            async with Hand(chassis) as hand:
                await hand.claim(BUTTON, 1)
                await until(lambda: led(chassis) == 1, "LED on")
            await asyncio.sleep(4.5)
            return chassis.power

    states = await asyncio.gather(state_after("keep"), state_after("input"))
    assert states == [Power.OFF, Power.ON]


async def test_glitches_are_not_presses(tmp_path: Path) -> None:
    async with running(BARE, tmp_path / "c") as (chassis, hand):
        for _ in range(5):
            await hand.press(BUTTON, 0)
        await asyncio.sleep(0.1)
        assert chassis.power is Power.OFF
        assert len(chassis.bank.waveform(BUTTON)) == 10, "they are on the record all the same"


async def test_active_low_wiring(tmp_path: Path) -> None:
    panel = FrontPanel(button_active_high=False, led_active_high=False)
    settings = Settings(name="bare", memory_mib=64, firmware="bios", front_panel=panel)
    async with running(settings, tmp_path / "c") as (chassis, hand):
        assert (chassis.bank.level(BUTTON), led(chassis)) == (1, 1), "idle is high"
        await hand.press(BUTTON, 0.1, active=0)
        await until(lambda: led(chassis) == 0, "lit is low")


async def test_a_board_that_dies_takes_the_led_along(tmp_path: Path) -> None:
    async with running(BARE, tmp_path / "c") as (chassis, hand):
        await hand.press(BUTTON, 0.1)
        await until(lambda: led(chassis) == 1, "LED on")
        pid = pid_of(chassis)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: led(chassis) == 0, "LED off")
        assert chassis.history[-1].event is Event.DIED
        await hand.press(BUTTON, 0.1)
        await until(lambda: led(chassis) == 1, "and it can be switched on again")


async def test_a_board_that_cannot_start_says_why(tmp_path: Path) -> None:
    disks = (LocalDisk(path=str(tmp_path / "missing.img")),)
    settings = Settings(name="bare", memory_mib=64, firmware="bios", local_disks=disks)
    async with running(settings, tmp_path / "c") as (chassis, _):
        assert await chassis.order(Event.ORDER_ON, "test") is Verdict.IMPOSSIBLE
        await until(lambda: chassis.power is Power.OFF, "off again")
        assert "missing.img" in chassis.history[-1].note
        assert chassis.bank.waveform(LED) == [], "there never was power good"


async def test_mains(tmp_path: Path) -> None:
    settings = Settings(name="bare", memory_mib=64, firmware="bios", after_ac="last")
    async with running(settings, tmp_path / "c") as (chassis, hand):
        assert await chassis.mains(False, "test") is Verdict.DONE
        await hand.press(BUTTON, 0.1)
        assert chassis.power is Power.NO_AC, "a button without mains does nothing"
        await chassis.mains(True, "test")
        assert chassis.power is Power.OFF, "last: it was off"
        await hand.press(BUTTON, 0.1)
        await until(lambda: led(chassis) == 1, "LED on")
        await chassis.mains(False, "test")
        assert (led(chassis), pid_of(chassis)) == (0, None)
        await chassis.mains(True, "test")
        assert led(chassis) == 1, "last: it was on"


async def test_faults_on_the_front_panel(tmp_path: Path) -> None:
    async with running(BARE, tmp_path / "c") as (chassis, hand):
        chassis.set_fault(Fault.BUTTON_DEAD, 1)
        await hand.press(BUTTON, 0.1)
        await asyncio.sleep(0.1)
        assert chassis.power is Power.OFF, "button-dead"
        chassis.clear_fault(Fault.BUTTON_DEAD)

        chassis.set_fault(Fault.LED_STUCK, 0)
        await hand.press(BUTTON, 0.1)
        await until(lambda: chassis.power is Power.ON and pid_of(chassis) is not None, "on")
        assert led(chassis) == 0, "led-stuck"
        chassis.clear_fault(Fault.LED_STUCK)
        assert led(chassis) == 1

        before = len(chassis.bank.waveform(LED))
        chassis.set_fault(Fault.LED_BOUNCE, 5)
        await until(lambda: len(chassis.bank.waveform(LED)) >= before + 4, "two glitches")
        chassis.clear_fault(None)
        await until(lambda: led(chassis) == 1, "steady again")
        glitch = chassis.bank.waveform(LED)[before : before + 2]
        assert 4e6 < glitch[1].t_ns - glitch[0].t_ns < 1e8, "a glitch of about 5 ms"


async def test_control_socket(tmp_path: Path) -> None:
    async with running(BARE, tmp_path / "bare") as (chassis, hand), serve_control(chassis):
        control = ChassisControl.of(tmp_path, "bare")
        call = asyncio.to_thread
        status = await call(control.status)
        assert (status["power"], status["lines"]["power_led"]) == ("off", 0)
        await hand.press(BUTTON, 0.1)
        await until(lambda: led(chassis) == 1, "LED on")
        edges = await call(control.waveform)
        assert [(e["line"], e["level"], e["who"]) for e in edges if e["line"] == BUTTON] == [
            (BUTTON, 1, "hand"),
            (BUTTON, 0, "hand"),
        ]
        assert (await call(control.history))[0]["event"] == "button-down"
        assert await call(control.fault, "led-stuck", 0) == {"led-stuck": 0}
        assert await call(control.clear) == {}
        with pytest.raises(NicagentError, match="choose one of led-stuck"):
            await call(control.fault, "gremlin")
        with pytest.raises(NicagentError, match="needs a value"):
            await call(control.fault, "bmc-slow")
        assert await call(control.mains, False) == "done"
    with pytest.raises(NicagentError, match="does not answer"):
        await asyncio.to_thread(control.status)


async def test_uefi_keeps_its_variables(tmp_path: Path) -> None:
    settings = Settings(name="uefi", memory_mib=256)
    async with running(settings, tmp_path / "c") as (chassis, hand):
        await hand.press(BUTTON, 0.1)
        await until(lambda: led(chassis) == 1, "LED on")
        variables = tmp_path / "c/vars.fd"
        fresh = variables.read_bytes()
        await until(lambda: variables.read_bytes() != fresh, "the firmware writes its variables", 60)
        await chassis.order(Event.ORDER_OFF, "test")
    kept = tmp_path / "kept.fd"
    shutil.copy(variables, kept)
    async with running(settings, tmp_path / "c") as (chassis, _):
        assert variables.read_bytes() == kept.read_bytes(), "a new emulator finds the old variables"

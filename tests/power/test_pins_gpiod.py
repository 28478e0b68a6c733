"""The libgpiod factory against a chip that behaves as the kernel's uAPI v2 says (linux/gpio.h)."""

from __future__ import annotations

import asyncio
import enum
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nicagent.config import GpioPower
from nicagent.errors import Kind, NicagentError
from nicagent.model import Cause, Power, PowerAction
from nicagent.power import pins_gpiod
from nicagent.power.gpio import GpioPowerDriver

Direction = enum.Enum("Direction", "AS_IS INPUT OUTPUT")
EdgeKind = enum.Enum("EdgeKind", "NONE BOTH")
Value = enum.Enum("Value", "INACTIVE ACTIVE")
Type = enum.Enum("Type", "RISING_EDGE FALLING_EDGE")
BUTTON, RESET, LED = 23, 27, 24


@dataclass
class FakeChip:
    """Levels, and every change of one; a line that is not an output floats to its pull."""

    levels: dict[int, int] = field(default_factory=dict)
    history: list[tuple[int, int]] = field(default_factory=list)
    holders: dict[int, Any] = field(default_factory=dict)
    label: str = "pinctrl-bcm2711"

    def drive(self, line: int, level: int) -> None:
        if self.levels.get(line, 0) == level:
            return
        self.levels[line] = level
        self.history.append((line, level))
        if line in self.holders:
            self.holders[line].happened(level)

    def module(self) -> Any:
        chip = self

        class Chip:
            def __init__(self, path: str) -> None: ...

            def __enter__(self) -> Chip:
                return self

            def __exit__(self, *_: object) -> None: ...

            def get_info(self) -> Any:
                return SimpleNamespace(label=chip.label)

        def request_lines(path: str, config: dict[int, Any], consumer: str) -> Request:
            ((line, settings),) = config.items()
            if line in chip.holders:
                raise OSError(16, "Device or resource busy")
            chip.holders[line] = Request(chip, line)
            chip.holders[line].reconfigure_lines({line: settings})
            return chip.holders[line]

        return SimpleNamespace(
            Chip=Chip,
            LineSettings=_settings,
            EdgeEvent=SimpleNamespace(Type=Type),
            RequestReleasedError=RuntimeError,
            line=SimpleNamespace(Direction=Direction, Edge=EdgeKind, Value=Value),
            request_lines=request_lines,
        )


def _settings(
    direction: Direction = Direction.AS_IS,
    edge_detection: EdgeKind = EdgeKind.NONE,
    output_value: Value = Value.INACTIVE,
) -> Any:
    return SimpleNamespace(direction=direction, edges=edge_detection, output_value=output_value)


class Request:
    def __init__(self, chip: FakeChip, line: int) -> None:
        self.chip, self.line = chip, line
        self.fd, self.events = os.pipe()
        self.edges = EdgeKind.NONE

    def reconfigure_lines(self, config: dict[int, Any]) -> None:
        settings = config[self.line]
        self.edges = settings.edges
        if settings.direction is Direction.OUTPUT:
            self.chip.drive(self.line, int(settings.output_value is Value.ACTIVE))

    def get_value(self, line: int) -> Value:
        return Value.ACTIVE if self.chip.levels.get(line, 0) else Value.INACTIVE

    def set_value(self, line: int, value: Value) -> None:
        self.chip.drive(line, int(value is Value.ACTIVE))

    def happened(self, level: int) -> None:
        if self.edges is EdgeKind.BOTH:
            os.write(self.events, b"r" if level else b"f")

    def read_edge_events(self) -> list[Any]:
        seen = os.read(self.fd, 64)
        return [
            SimpleNamespace(
                timestamp_ns=0, event_type=Type.RISING_EDGE if kind == ord("r") else Type.FALLING_EDGE
            )
            for kind in seen
        ]

    def release(self) -> None:
        del self.chip.holders[self.line]
        os.close(self.fd)
        os.close(self.events)


def driver_on(chip: FakeChip) -> GpioPowerDriver:
    def maker(spec: str, consumer: str, lost: object) -> Any:
        return pins_gpiod.GpiodFactory(chip.module(), "/dev/gpiochip0", consumer)

    config = GpioPower(
        press_seconds=0.03, debounce_seconds=0.01, holdoff_seconds=0.01, off_on_gap_seconds=0.01
    )
    return GpioPowerDriver("h", config, maker=maker)


@pytest.mark.parametrize("level", [0, 1])
async def test_claiming_and_letting_go_keeps_the_level(level: int) -> None:
    chip = FakeChip(levels={5: level})
    factory = pins_gpiod.GpiodFactory(chip.module(), "/dev/gpiochip0", "t")
    pin = factory.pin(5)
    pin.function = "output"
    assert int(pin.state) == level
    factory.close()
    assert chip.history == []
    assert chip.holders == {}, "a line was not let go"


async def test_the_driver_presses_and_hears_the_led() -> None:
    chip = FakeChip()
    told: list[Power] = []
    driver = driver_on(chip)
    driver.watch(told.append)
    await driver.start()
    assert chip.history == []
    await driver.apply(PowerAction.ON, Cause("a test", "on"))
    assert chip.history == [(BUTTON, 1), (BUTTON, 0)]
    chip.drive(LED, 1)
    async with asyncio.timeout(5):
        while Power.ON not in told:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await driver.close()
    assert chip.holders == {}
    assert chip.history == [(BUTTON, 1), (BUTTON, 0), (LED, 1)]
    assert told == [Power.OFF, Power.ON]


async def test_a_line_that_others_hold_is_unavailable() -> None:
    chip = FakeChip()
    chip.holders[RESET] = object()
    with pytest.raises(NicagentError) as busy:
        await driver_on(chip).start()
    assert busy.value.kind is Kind.UNAVAILABLE
    assert list(chip.holders) == [RESET], "lines claimed before the failure were kept"
    assert chip.history == []


def test_offsets_beyond_a_raspberry_pi_are_lines_too() -> None:
    factory = pins_gpiod.GpiodFactory(FakeChip().module(), "/dev/gpiochip0", "t")
    assert factory.pin(300).info.name == "GPIO300"
    factory.close()


def test_auto_without_any_chip_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NicagentError) as missing:
        pins_gpiod.open_chip(None, "t", dev=tmp_path)
    assert missing.value.kind is Kind.UNAVAILABLE
    assert "socket:" in missing.value.hint

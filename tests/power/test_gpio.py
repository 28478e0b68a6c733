"""The GPIO driver's waveforms, on gpiozero's mock pins: what moves, when, and that nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from gpiozero.pins.mock import MockFactory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nicagent.config import GpioPower, Line
from nicagent.errors import Kind, NicagentError
from nicagent.model import Cause, Power, PowerAction
from nicagent.power import led
from nicagent.power.gpio import GpioPowerDriver

BUTTON, RESET, LED = 23, 27, 24
WHY = Cause("a test", "to see what happens")
QUICK = GpioPower(
    pins="mock",
    press_seconds=0.05,
    hold_seconds=0.3,
    reset_seconds=0.08,
    debounce_seconds=0.01,
    holdoff_seconds=0.06,
    off_on_gap_seconds=0.1,
)
SLACK = 0.5  # seconds that a busy machine may be late


class Lines:
    """Mock pins whose history survives the driver's close."""

    def __init__(self) -> None:
        self.factory = MockFactory()
        self.pins: dict[int, Any] = {offset: self.factory.pin(offset) for offset in (BUTTON, RESET, LED)}

    def maker(self, spec: str, consumer: str, lost: object) -> Any:
        return self.factory

    def edges(self, offset: int) -> list[bool]:
        """Levels this line went to, in order."""
        return [bool(state.state) for state in self.pins[offset].states[1:]]

    def lengths(self, offset: int) -> list[float]:
        """Seconds of each press."""
        times = list(itertools.accumulate(state.timestamp for state in self.pins[offset].states))[1:]
        return [up - down for down, up in zip(times[::2], times[1::2], strict=False)]

    def light(self, lit: bool) -> None:
        (self.pins[LED].drive_high if lit else self.pins[LED].drive_low)()


@contextlib.asynccontextmanager
async def driving(lines: Lines, config: GpioPower = QUICK) -> AsyncIterator[GpioPowerDriver]:
    driver = GpioPowerDriver("h", config, maker=lines.maker)
    await driver.start()
    try:
        yield driver
    finally:
        await driver.close()


async def until(so: Callable[[], bool], seconds: float = 3.0) -> None:
    """Wait for something that only a mock pin's state can tell."""
    async with asyncio.timeout(seconds):
        while not so():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def lit(lines: Lines, driver: GpioPowerDriver, on: bool) -> None:
    """Light the LED and wait until the driver says so."""
    lines.light(on)
    says = Power.UNKNOWN
    async with asyncio.timeout(3):
        while says is not (Power.ON if on else Power.OFF):
            await asyncio.sleep(0.002)
            says = await driver.read()


async def test_start_and_close_cause_no_edge() -> None:
    lines = Lines()
    for _ in range(3):
        async with driving(lines):
            pass
        assert not lines.edges(BUTTON), "starting or stopping the agent moved the power button"
        assert not lines.edges(RESET), "starting or stopping the agent moved the reset line"
        lines.pins = {offset: lines.factory.pin(offset) for offset in lines.pins}  # close forgot them


async def test_a_button_found_held_is_released_at_once_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    lines = Lines()
    lines.pins[BUTTON].function = "output"
    lines.pins[BUTTON].state = True
    lines.pins[BUTTON].clear_states()
    with caplog.at_level(logging.INFO, "nicagent.power"):
        async with driving(lines):
            assert lines.edges(BUTTON) == [False], "the button was left held"
            assert not lines.edges(RESET)
    record = next(r for r in caplog.records if getattr(r, "line", "") == "power_button")
    assert "found held" in record.cause  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("action", "on", "offset", "seconds"),
    [
        (PowerAction.ON, False, BUTTON, QUICK.press_seconds),
        (PowerAction.SHUTDOWN, True, BUTTON, QUICK.press_seconds),
        (PowerAction.PRESS, False, BUTTON, QUICK.press_seconds),
        (PowerAction.PRESS, True, BUTTON, QUICK.press_seconds),
        (PowerAction.OFF, True, BUTTON, QUICK.hold_seconds),  # this LED never goes out
        (PowerAction.RESET, True, RESET, QUICK.reset_seconds),
    ],
)
async def test_one_press_of_the_configured_length(
    action: PowerAction, on: bool, offset: int, seconds: float
) -> None:
    lines = Lines()
    async with driving(lines) as driver:
        await lit(lines, driver, on)
        await driver.apply(action, WHY)
        assert lines.edges(offset) == [True, False], f"{action} is one press and one release"
        assert lines.edges(BUTTON + RESET - offset) == [], f"{action} moved the other line too"
        (length,) = lines.lengths(offset)
        assert seconds <= length < seconds + SLACK


@pytest.mark.parametrize(
    ("action", "on"), [(PowerAction.ON, True), (PowerAction.OFF, False), (PowerAction.SHUTDOWN, False)]
)
async def test_what_is_already_so_moves_nothing(action: PowerAction, on: bool) -> None:
    lines = Lines()
    async with driving(lines) as driver:
        await lit(lines, driver, on)
        await driver.apply(action, WHY)
        assert lines.edges(BUTTON) == lines.edges(RESET) == []


async def test_off_lets_go_as_soon_as_power_good_is_gone() -> None:
    lines = Lines()
    async with driving(lines, GpioPower(**{**_fields(QUICK), "hold_seconds": 5.0})) as driver:
        await lit(lines, driver, True)
        asyncio.get_running_loop().call_later(0.1, lines.light, False)
        await driver.apply(PowerAction.OFF, WHY)
        (length,) = lines.lengths(BUTTON)
        assert 0.09 <= length < 1.0, "the button was held on after the power had gone"


async def test_reset_of_a_host_that_is_off_is_refused() -> None:
    lines = Lines()
    async with driving(lines) as driver:
        with pytest.raises(NicagentError) as refused:
            await driver.apply(PowerAction.RESET, WHY)
        assert refused.value.kind is Kind.WRONG_STATE
        assert lines.edges(RESET) == []


async def test_presses_keep_the_hold_off_and_come_in_the_order_of_asking(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = Lines()
    with caplog.at_level(logging.INFO, "nicagent.power"):
        async with driving(lines) as driver:
            await lit(lines, driver, True)
            asked = [Cause("a test", f"press {number}") for number in range(4)]
            await asyncio.gather(*(driver.apply(PowerAction.PRESS, cause) for cause in asked))
    assert lines.edges(BUTTON) == [True, False] * 4, "presses ran into each other"
    pauses = [state.timestamp for state in lines.pins[BUTTON].states[1:] if state.state][1:]
    assert all(pause >= QUICK.holdoff_seconds for pause in pauses), "no hold-off between presses"
    causes = [r.cause for r in caplog.records if getattr(r, "level", None) == 1]  # type: ignore[attr-defined]
    assert causes == [str(cause) for cause in asked]


async def test_no_press_within_the_gap_after_power_good_is_gone() -> None:
    lines = Lines()
    config = GpioPower(**{**_fields(QUICK), "off_on_gap_seconds": 0.3})
    async with driving(lines, config) as driver:
        await lit(lines, driver, True)
        await lit(lines, driver, False)
        gone = asyncio.get_running_loop().time()
        await driver.apply(PowerAction.ON, WHY)
        assert asyncio.get_running_loop().time() - gone >= 0.25, "pressed while the supply still discharges"


async def test_every_edge_is_logged_with_its_cause_before_it_happens() -> None:
    lines = Lines()
    seen: list[tuple[int, int, str, str]] = []

    class Look(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            at = int(lines.pins[BUTTON].state)
            seen.append((record.level, at, record.cause, record.host))  # type: ignore[attr-defined]

    handler, logger = Look(), logging.getLogger("nicagent.power")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        async with driving(lines) as driver:
            await driver.apply(PowerAction.ON, WHY)
    finally:
        logger.removeHandler(handler)
    assert seen == [(1, 0, str(WHY), "h"), (0, 1, str(WHY), "h")], "(to be, is, cause, host) of each edge"


BRISK = GpioPower(
    pins="mock",
    press_seconds=0.012,
    hold_seconds=0.03,
    reset_seconds=0.012,
    debounce_seconds=0.002,
    holdoff_seconds=0.004,
    off_on_gap_seconds=0.004,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    action=st.sampled_from(PowerAction),
    on=st.booleans(),
    turns=st.integers(0, 40),
    wait=st.sampled_from([0.0, 0.001, 0.004, 0.008, 0.016]),
    again=st.integers(0, 3),
)
def test_a_cancelled_action_leaves_nothing_pressed(
    action: PowerAction, on: bool, turns: int, wait: float, again: int
) -> None:
    async def scene() -> None:
        lines = Lines()
        async with driving(lines, BRISK) as driver:
            await lit(lines, driver, on)
            task = asyncio.create_task(driver.apply(action, WHY))
            for _ in range(turns):  # `turns` steps of the loop: every await point is among them
                await asyncio.sleep(0)
            await asyncio.sleep(wait)
            for _ in range(again + 1):
                task.cancel()
                await asyncio.sleep(0)
            with contextlib.suppress(asyncio.CancelledError, NicagentError):
                await task
            assert not lines.pins[BUTTON].state, f"{action} was cancelled and left the power button pressed"
            assert not lines.pins[RESET].state, f"{action} was cancelled and left reset asserted"
            before = len(lines.edges(BUTTON)) + len(lines.edges(RESET))
            await asyncio.sleep(0.02)
            after = len(lines.edges(BUTTON)) + len(lines.edges(RESET))
            assert before == after, "a line moved after the cancelled action had ended"

    asyncio.run(scene())


async def test_close_in_mid_press_releases_and_tells_the_caller() -> None:
    lines = Lines()
    async with driving(lines) as driver:
        await lit(lines, driver, True)
        task = asyncio.create_task(driver.apply(PowerAction.OFF, WHY))
        queued = asyncio.create_task(driver.apply(PowerAction.PRESS, WHY))
        await until(lambda: bool(lines.pins[BUTTON].state))
    assert lines.edges(BUTTON) == [True, False], "closing left the button pressed, or pressed it again"
    for each in (task, queued):
        with pytest.raises(NicagentError) as given_up:
            await each
        assert given_up.value.kind is Kind.UNAVAILABLE


async def test_a_line_that_fails_is_told_as_unavailable_and_released(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines()
    async with driving(lines) as driver:
        pin, real = lines.pins[BUTTON], type(lines.pins[BUTTON])._set_state

        def fail_after_moving(self: Any, value: float) -> None:
            real(self, value)
            if self is pin and value:
                raise OSError(5, "Input/output error")

        monkeypatch.setattr(type(pin), "_set_state", fail_after_moving)
        with pytest.raises(NicagentError) as failed:
            await driver.apply(PowerAction.ON, WHY)
        assert failed.value.kind is Kind.UNAVAILABLE
        assert lines.edges(BUTTON) == [True, False]


async def test_a_bouncing_led_reads_unknown_and_tells_no_false_fact() -> None:
    lines = Lines()
    told: list[Power] = []
    config = GpioPower(**{**_fields(QUICK), "debounce_seconds": 0.3})
    async with driving(lines, config) as driver:
        driver.watch(told.append)
        assert told == [Power.OFF], "a watcher is told the first fact"
        for number in range(21):
            lines.light(number % 2 == 0)
            await asyncio.sleep(0.01)
        assert await driver.read() is Power.UNKNOWN, "an LED that has not stood still says nothing"
        await lit(lines, driver, True)
    assert told == [Power.OFF, Power.ON], "bounces were told as facts"


async def test_an_led_that_never_stands_still_forbids_guessing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        led, "PATIENCE", 2
    )  # a debounce time no busy machine mistakes for rest, not too often
    lines = Lines()
    told: list[Power] = []

    async def chatter() -> None:
        for on in itertools.cycle((True, False)):
            lines.light(on)
            await asyncio.sleep(0.004)

    async with driving(lines, GpioPower(**{**_fields(QUICK), "debounce_seconds": 0.5})) as driver:
        driver.watch(told.append)
        task = asyncio.create_task(chatter())
        with pytest.raises(NicagentError) as refused:
            await driver.apply(PowerAction.ON, WHY)
        assert refused.value.kind is Kind.UNAVAILABLE
        assert lines.edges(BUTTON) == []
        assert told == [Power.OFF, Power.UNKNOWN]
        await driver.apply(PowerAction.OFF, WHY)
        assert lines.edges(BUTTON) == [True, False], "a full hold switches off whatever the LED says"
        task.cancel()


async def test_active_low_lines_are_refused_with_a_factory_that_would_assert_them() -> None:
    low = Line(offset=BUTTON, active_high=False, boot_level_safe=True)
    with pytest.raises(NicagentError) as refused:
        await GpioPowerDriver("h", GpioPower(pins="lgpio", power_button=low)).start()
    assert refused.value.kind is Kind.UNSUPPORTED
    assert "power_button" in refused.value.message


async def test_a_factory_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(NicagentError) as missing:
        await GpioPowerDriver("h", GpioPower(pins="nosuch")).start()
    assert missing.value.kind is Kind.UNAVAILABLE
    assert "lgpio" in str(missing.value)


@pytest.mark.skipif(bool(list(Path("/dev").glob("gpiochip*"))), reason="this machine has a GPIO chip")
async def test_auto_without_a_chip_says_what_to_do() -> None:
    with pytest.raises(NicagentError) as missing:
        await GpioPowerDriver("h", GpioPower()).start()
    assert missing.value.kind is Kind.UNAVAILABLE
    assert "socket:" in missing.value.hint


def _fields(config: GpioPower) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}

"""The GPIO driver on an emulated board's lines: deaths of either end, and who holds a line."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Literal

import pytest

from nicagent.errors import Kind, NicagentError
from nicagent.model import Cause, Power, PowerAction
from nicagent.power.gpio import GpioPowerDriver
from tests.power.driving import reads, started
from tests.power.server_body import BUTTON, ServerBody, quick

WHY = Cause("a test", "to see what happens")

# An agent of its own process that holds the power button until somebody kills it.
HOLDER = """
import asyncio, sys
from pathlib import Path
import msgspec
from nicagent.model import Cause, PowerAction
from nicagent.power.gpio import GpioPowerDriver
from tests.power.driving import reads, started
from tests.power.server_body import quick

async def main():
    config = msgspec.structs.replace(quick(Path(sys.argv[1])), press_seconds=60.0)
    driver = GpioPowerDriver("h", config)
    await driver.start()
    await driver.apply(PowerAction.PRESS, Cause("a test", "to be killed in mid-press"))

asyncio.run(main())
"""


def driving(body: ServerBody) -> contextlib.AbstractAsyncContextManager[GpioPowerDriver]:
    return started(GpioPowerDriver("h", quick(body.path, active_high=body.active_high)))


@pytest.mark.parametrize("policy", ["keep", "input"])
@pytest.mark.parametrize("active_high", [True, False])
async def test_no_edge_over_many_starts_and_stops_of_a_running_host(
    tmp_path: Path, policy: Literal["keep", "input"], active_high: bool
) -> None:
    async with ServerBody(tmp_path / "lines", active_high=active_high, on_holder_death=policy) as body:
        async with driving(body) as driver:
            await driver.apply(PowerAction.ON, WHY)
            await reads(driver, Power.ON)
        asked = len(body.edges())
        for _ in range(10):
            async with driving(body) as driver:
                assert await driver.read() is Power.ON
        assert len(body.edges()) == asked, f"unasked edges: {body.edges()[asked:]}"
        assert body.is_on()


async def test_a_sigkill_in_mid_press_leaves_no_button_held_after_the_next_start(tmp_path: Path) -> None:
    async with ServerBody(tmp_path / "lines", on_holder_death="keep", button_dead=True) as body:
        agent = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDER, str(body.path))
        async with asyncio.timeout(20):
            while not body.pressed():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        agent.kill()
        await agent.wait()
        await asyncio.sleep(0.05)
        assert body.pressed() == {BUTTON}, "this kernel keeps the level of a dead holder's line"
        async with driving(body):
            assert not body.pressed(), "the next agent did not release the button at its start"
        assert [edge.level for edge in body.edges()] == [1, 0]


async def test_lines_that_go_away_read_unknown_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    told: list[Power] = []
    async with ServerBody(path) as first:
        driver = GpioPowerDriver("h", quick(first.path))
        driver.watch(told.append)
        await driver.start()
    try:
        await reads(driver, Power.UNKNOWN)
        with pytest.raises(NicagentError) as gone:
            await driver.apply(PowerAction.ON, WHY)
        assert gone.value.kind is Kind.UNAVAILABLE
        async with ServerBody(path) as second:
            second.state = type(second.state).ON
            second.show()
            await reads(driver, Power.ON)
            assert not second.edges(), "coming back moved a line"
            await driver.close()
    finally:
        await driver.close()
    assert told == [Power.OFF, Power.UNKNOWN, Power.ON]


async def test_lines_lost_in_mid_press_are_released_when_they_come_back(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    async with ServerBody(path) as first:
        driver = GpioPowerDriver("h", quick(path))
        await driver.start()
        pressing = asyncio.create_task(driver.apply(PowerAction.PRESS, WHY))
        async with asyncio.timeout(5):
            while not first.pressed():  # noqa: ASYNC110
                await asyncio.sleep(0.002)
    try:
        with pytest.raises(NicagentError) as gone:
            await pressing
        assert gone.value.kind is Kind.UNAVAILABLE
        second = ServerBody(path, button_dead=True)
        second.bank = first.bank  # the same wires, still at their level
        assert second.pressed() == {BUTTON}
        async with second, asyncio.timeout(5):
            while second.pressed():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await driver.close()
    finally:
        await driver.close()


async def test_lines_that_another_agent_holds_are_refused_by_name(tmp_path: Path) -> None:
    async with ServerBody(tmp_path / "lines") as body, driving(body):
        second = GpioPowerDriver("h2", quick(body.path))
        with pytest.raises(NicagentError) as busy:
            await second.start()
        assert busy.value.kind is Kind.UNAVAILABLE
        assert "nicagent h" in busy.value.message, "the error does not say who holds the line"
        assert not body.edges()


async def test_a_closed_driver_can_be_started_again(tmp_path: Path) -> None:
    async with ServerBody(tmp_path / "lines") as body:
        driver = GpioPowerDriver("h", quick(body.path))
        for _ in range(2):
            await driver.start()
            await driver.apply(PowerAction.PRESS, WHY)
            await driver.close()
            await driver.close()
            assert await driver.read() is Power.UNKNOWN
        assert [edge.level for edge in body.edges()] == [1, 0, 1, 0]

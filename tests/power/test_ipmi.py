"""The IPMI driver against OpenIPMI's simulator: deadlines, one session, one worker, no secret let out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from nicagent import proc
from nicagent.config import IpmiPower
from nicagent.errors import Kind, NicagentError
from nicagent.model import Cause, Power, PowerAction
from nicagent.power.ipmi import IpmiPowerDriver
from tests.power.driving import reads, started
from tests.power.ipmi_sim import PASSWORD, IpmiSim, free_udp_port

WHY = Cause("a test", "to see what happens")
DEADLINE = 2.0  # seconds for one command


def config_of(bmc: IpmiSim, **changes: object) -> IpmiPower:
    settings = {
        "address": "127.0.0.1",
        "port": bmc.port,
        "password_file": str(bmc.password_file),
        "poll_seconds": 0.3,
        "command_seconds": DEADLINE,
    }
    return IpmiPower(**{**settings, **changes})  # type: ignore[arg-type]


def driving(config: IpmiPower) -> contextlib.AbstractAsyncContextManager[IpmiPowerDriver]:
    return started(IpmiPowerDriver("h", config, spacing=0.02, longest_backoff=0.5))


def workers_of(pid: int) -> list[int]:
    """The IPMI workers among the children of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"ipmi_worker" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
    return found


async def test_a_dead_bmc_delays_nobody_and_reads_unknown(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("x\n")
    config = IpmiPower(
        address="127.0.0.1", port=free_udp_port(), password_file=str(password), command_seconds=1.0
    )
    began = time.monotonic()
    async with driving(config) as driver:
        assert time.monotonic() - began < 0.5, "the agent's start waited for a BMC"
        assert await driver.read() is Power.UNKNOWN
        with pytest.raises(NicagentError) as dead:
            await driver.apply(PowerAction.ON, WHY)
        assert dead.value.kind is Kind.UNAVAILABLE
        began = time.monotonic()
        with pytest.raises(NicagentError) as broken:
            await driver.apply(PowerAction.ON, WHY)
        assert time.monotonic() - began < 0.2, "the circuit breaker let a command through to a dead BMC"
        assert "asked again in" in broken.value.hint


async def test_a_bmc_that_is_silent_from_the_start_is_not_said_to_refuse_the_password(tmp_path: Path) -> None:
    """The login has an end of its own, before the deadline."""
    password = tmp_path / "password"
    password.write_text("x\n")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bmc:
        bmc.bind(("127.0.0.1", 0))
        port = bmc.getsockname()[1]
        config = IpmiPower(address="127.0.0.1", port=port, password_file=str(password), command_seconds=15.0)
        async with driving(config) as driver:
            with pytest.raises(NicagentError, match="does not answer") as silent:
                await driver.apply(PowerAction.ON, WHY)
    assert "password" not in f"{silent.value}{silent.value.hint}" and "None" not in str(silent.value)


async def test_a_bmc_that_falls_silent_is_given_up_at_the_deadline_and_found_again(tmp_path: Path) -> None:
    async with IpmiSim(tmp_path / "bmc") as bmc, driving(config_of(bmc)) as driver:
        await reads(driver, Power.OFF)
        bmc.freeze()
        began = time.monotonic()
        with pytest.raises(NicagentError) as silent:
            await driver.apply(PowerAction.ON, WHY)
        assert silent.value.kind is Kind.UNAVAILABLE
        assert time.monotonic() - began < driver.deadline(PowerAction.ON)
        assert await driver.read() is Power.UNKNOWN
        bmc.thaw()
        bmc.set_power(False)
        async with asyncio.timeout(15):
            while await driver.read() is Power.UNKNOWN:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_a_bmc_that_restarts_is_logged_in_to_again(tmp_path: Path) -> None:
    async with IpmiSim(tmp_path / "bmc") as bmc, driving(config_of(bmc)) as driver:
        await reads(driver, Power.OFF)
        await bmc.end()
        await reads(driver, Power.UNKNOWN)
        await bmc.begin()
        await reads(driver, Power.OFF)
        await driver.apply(PowerAction.ON, WHY)
        await reads(driver, Power.ON)


async def test_a_reset_is_sent_once_even_if_nobody_answers(tmp_path: Path) -> None:
    async with IpmiSim(tmp_path / "bmc") as bmc:
        bmc.set_power(True)
        async with driving(config_of(bmc, command_seconds=2.5, poll_seconds=60.0)) as driver:
            await reads(driver, Power.ON)
            bmc.freeze()  # datagrams wait in its socket meanwhile, and are all acted on
            with pytest.raises(NicagentError):
                await driver.apply(PowerAction.RESET, WHY)
            bmc.thaw()
        async with asyncio.timeout(5):
            while not bmc.calls:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        assert bmc.calls == ["reset 1"]


async def test_a_wrong_password_says_so_and_is_not_tried_on_and_on(tmp_path: Path) -> None:
    async with IpmiSim(tmp_path / "bmc") as bmc:
        bmc.password_file.write_text("wrong-one\n")
        async with driving(config_of(bmc, poll_seconds=30.0)) as driver:
            with pytest.raises(NicagentError) as refused:
                await driver.apply(PowerAction.ON, WHY)
            assert refused.value.kind is Kind.UNAVAILABLE
            assert "wrong-one" not in str(refused.value)
            assert "password" in str(refused.value).lower()
            assert not workers_of(os.getpid()), "a worker goes on with a refused password"


async def test_a_missing_password_file_is_told_at_start(tmp_path: Path) -> None:
    config = IpmiPower(address="127.0.0.1", password_file=str(tmp_path / "nosuch"))
    with pytest.raises(NicagentError) as missing:
        await IpmiPowerDriver("h", config).start()
    assert missing.value.kind is Kind.UNAVAILABLE
    assert "nosuch" in missing.value.message


async def test_the_password_is_in_no_argument_environment_or_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with IpmiSim(tmp_path / "bmc") as bmc:
        with caplog.at_level(logging.DEBUG):
            async with driving(config_of(bmc)) as driver:
                await reads(driver, Power.OFF)
                await driver.apply(PowerAction.ON, WHY)
                (worker,) = workers_of(os.getpid())
                for secret_free in ("cmdline", "environ"):
                    assert PASSWORD.encode() not in Path(f"/proc/{worker}/{secret_free}").read_bytes()
        assert PASSWORD not in caplog.text
        assert f"chassis on: {WHY}" in caplog.text, "a command went out without its cause in the log"


async def test_a_cancelled_caller_leaves_the_conversation_whole(tmp_path: Path) -> None:
    async with IpmiSim(tmp_path / "bmc") as bmc, driving(config_of(bmc)) as driver:
        for delay in (0.0, 0.001, 0.01, 0.03, 0.1):
            task = asyncio.create_task(driver.apply(PowerAction.PRESS, WHY))
            await asyncio.sleep(delay)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await driver.apply(PowerAction.ON, WHY)
        await reads(driver, Power.ON)
        await driver.apply(PowerAction.OFF, WHY)
        await reads(driver, Power.OFF)


async def test_close_ends_the_worker_even_while_the_bmc_is_silent(tmp_path: Path) -> None:
    async with IpmiSim(tmp_path / "bmc") as bmc:
        async with driving(config_of(bmc, command_seconds=30.0)) as driver:
            await reads(driver, Power.OFF)
            bmc.freeze()
            task = asyncio.create_task(driver.apply(PowerAction.ON, WHY))
            await asyncio.sleep(0.2)
            began = time.monotonic()
        assert time.monotonic() - began < 3.0
        assert not workers_of(os.getpid())
        with pytest.raises(NicagentError):
            await task


AGENT = """
import asyncio, sys
from nicagent.config import IpmiPower
from nicagent.power.ipmi import IpmiPowerDriver

async def main():
    port, password_file = int(sys.argv[1]), sys.argv[2]
    driver = IpmiPowerDriver("h", IpmiPower(address="127.0.0.1", port=port, password_file=password_file))
    await driver.start()
    print(await driver.read(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_worker_dies_with_its_agent(tmp_path: Path, frozen: bool) -> None:
    async with IpmiSim(tmp_path / "bmc") as bmc:
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", AGENT, str(bmc.port), str(bmc.password_file), stdout=asyncio.subprocess.PIPE
        )
        assert agent.stdout is not None
        assert (await agent.stdout.readline()).strip() == b"off"
        (worker,) = workers_of(agent.pid)
        if frozen:
            bmc.freeze()
        agent.kill()
        await agent.wait()
        async with asyncio.timeout(5):
            while proc.start_time(worker) is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

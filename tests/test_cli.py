"""The `nicagent` command as a user meets it: a process, its exit code, and what it prints where."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nicagent import cli
from nicagent.errors import Kind, NicagentError
from nicagent.northbound.api import ControlFace
from tests.rig import ONE_HOST, TESTER, Rig, bodies, domain

COMMANDS = ("serve", "emulate", "chassis", "hosts", "power", "console", "libvirt", "doctor")


def nicagent(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("NICAGENT_")}
    return subprocess.run(
        [sys.executable, "-m", "nicagent.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
        env={**clean, "COLUMNS": "80", **environment},
    )


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[tuple[Rig, str]]:
    """The control face of an agent whose hosts are bodies in memory."""
    async with Rig.live(tmp_path / "nicagent.db", bodies()) as rig:
        await rig.power_known()
        control = ControlFace(rig.controller, {})
        await control.start(tmp_path / "nicagent.sock")
        yield rig, str(tmp_path / "nicagent.sock")
        await control.stop()


async def ask(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(nicagent, *arguments, **environment)


# ---- help


def test_it_tells_its_version() -> None:
    told = nicagent("--version")
    assert told.returncode == 0 and told.stdout.startswith("nicagent "), told.stderr


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_screen(command: str) -> None:
    done = nicagent(*([command] if command else []), "--help")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) <= 24, f"{len(lines)} lines"
    assert max(map(len, lines)) <= 80


def test_help_names_every_command() -> None:
    shown = nicagent("--help").stdout
    assert all(f"\n    {command} " in shown for command in COMMANDS)


# ---- exit codes


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["power", "explode", "metal-1"], ["power", "on"], ["hosts", "x"]]
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    done = nicagent(*arguments)
    assert done.returncode == 2
    assert "usage: nicagent" in done.stderr


def test_mains_are_not_switched_by_a_word_that_is_neither_on_nor_off() -> None:
    for word in ((), ("sideways",)):
        told = nicagent("chassis", "mains", "metal-1", *word, "--lab", "/nonexistent")
        assert (told.returncode, "on or off?" in told.stderr) == (2, True), told


def test_a_wrong_config_is_a_sentence_and_2(tmp_path: Path) -> None:
    file = tmp_path / "nicagent.toml"
    file.write_text(ONE_HOST.format(tmp_path) + "memory_mb = 1\n")
    for command in ("serve", "doctor", "hosts"):
        done = nicagent(command, "--config", str(file))
        assert done.returncode == 2
        told = f"nicagent: {file}: hosts.metal-1: no key is called 'memory_mb' here\n  → did you mean"
        assert done.stderr.startswith(told), done.stderr
        assert "Traceback" not in done.stderr
    missing = nicagent("serve", "--config", str(tmp_path / "nothing.toml"))
    assert missing.returncode == 2
    assert "cannot read the config file" in missing.stderr


def test_no_agent_is_a_sentence_and_3(tmp_path: Path) -> None:
    socket = str(tmp_path / "nothing.sock")
    for arguments in (["hosts"], ["power", "status", "metal-1"], ["console", "metal-1"]):
        done = nicagent(*arguments, "--socket", socket)
        assert done.returncode == 3, done.stderr
        assert f"no agent answers at {socket}" in done.stderr
        assert "nicagent serve" in done.stderr
        assert "Traceback" not in done.stderr


def test_an_error_in_json_is_one_object_on_stdout(tmp_path: Path) -> None:
    done = nicagent("hosts", "--json", "--socket", str(tmp_path / "nothing.sock"))
    assert done.returncode == 3
    told = json.loads(done.stdout)
    assert set(told) == {"error", "message", "hint"}
    assert told["error"] == "unavailable"


async def test_an_unknown_host_is_1_and_a_wrong_moment_4(agent: tuple[Rig, str]) -> None:
    rig, socket = agent
    done = await ask("power", "status", "metal-9", "--socket", socket)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "nicagent: no host is called 'metal-9'\n  → known hosts: metal-1, metal-2\n"
    await rig.controller.define(domain("vm"), TESTER)
    rig.bodies["metal-1"].hold.add("exports up")
    start = asyncio.create_task(rig.controller.start(domain("vm").uuid, TESTER))
    await rig.bodies["metal-1"].held.wait()
    assert (await ask("power", "reset", "metal-1", "--socket", socket)).returncode == 4
    rig.bodies["metal-1"].hold.clear()
    await start


# ---- what works


async def test_hosts_in_a_pipe_are_plain_and_in_json_whole(agent: tuple[Rig, str]) -> None:
    rig, socket = agent
    await rig.controller.define(domain("vm"), TESTER)
    await rig.controller.start(domain("vm").uuid, TESTER)
    plain = await ask("hosts", NICAGENT_SOCKET=socket)
    first, second = (line.split("\t") for line in plain.stdout.splitlines())
    assert first[:4] == ["metal-1", "on", "running", "vm"]
    assert second[:4] == ["metal-2", "off", "free", "-"]
    assert "\x1b" not in plain.stdout
    whole = json.loads((await ask("hosts", "--json", "--socket", socket)).stdout)
    assert [host["name"] for host in whole] == ["metal-1", "metal-2"]


async def test_power_on_status_and_off(agent: tuple[Rig, str]) -> None:
    rig, socket = agent
    for action, told in (
        ("on", "power on"),
        ("status", "power on"),
        ("cycle", "power on"),
        ("off", "power off"),
    ):
        done = await ask("power", action, "metal-1", "--socket", socket)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"metal-1: {told}, free ("), done.stdout
    assert rig.bodies["metal-1"].acts == ["power on", "power off", "power on", "power off"]
    assert (
        json.loads((await ask("power", "status", "metal-1", "--json", "--socket", socket)).stdout)["power"]
        == "off"
    )


def test_why_a_host_is_as_it_is_is_said_once() -> None:
    silent = "its BMC does not answer; see its cable"
    assert cli._why({"reason": f"power-off failed: {silent}", "trouble": silent}).count(silent) == 1
    assert cli._why({"reason": "power-good", "trouble": silent}) == f"power-good; {silent}"
    assert cli._why({"reason": "power-good"}) == "power-good"


async def test_a_reader_that_has_seen_enough_is_no_error(agent: tuple[Rig, str]) -> None:
    _, socket = agent
    command = f"{sys.executable} -m nicagent.cli hosts --socket {socket} | true; echo ${{PIPESTATUS[0]}}"
    for unbuffered in ({}, {"PYTHONUNBUFFERED": "1"}):  # it is noticed at the end, or at once
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | unbuffered
        run = functools.partial(subprocess.run, env=environment, capture_output=True, text=True, timeout=30)
        done = await asyncio.to_thread(run, ["bash", "-c", command])
        assert (done.stdout, done.stderr) == ("0\n", ""), unbuffered


def test_doctor_is_1_when_something_is_broken_and_says_it_in_json_too(tmp_path: Path) -> None:
    file = tmp_path / "nicagent.toml"
    file.write_text(ONE_HOST.format(tmp_path))
    done = nicagent("doctor", "--config", str(file))
    assert done.returncode == 1
    assert f"broken\tmetal-1 power\tno lines at {tmp_path}/lines" in done.stdout
    checks = json.loads(nicagent("doctor", "--json", NICAGENT_CONFIG=str(file)).stdout)
    assert {"verdict", "subject", "finding", "mend"} == set(checks[0])
    assert any(check["verdict"] == "broken" for check in checks)
    assert nicagent("doctor", "metal-9", "--config", str(file)).returncode == 1


def test_an_agent_that_cannot_have_its_places_says_so(tmp_path: Path) -> None:
    file = tmp_path / "nicagent.toml"
    (tmp_path / "run").write_text("a file")
    file.write_text(ONE_HOST.format(tmp_path))
    done = nicagent("serve", "--config", str(file))
    assert done.returncode == 3
    assert "Traceback" not in done.stderr, done.stderr
    assert "set agent.run_dir" in done.stderr


# ---- groups of errors, as the agent's tasks raise them


def test_of_a_group_of_errors_the_first_sentence_is_told_and_faults_are_not_hidden() -> None:
    known = NicagentError(Kind.UNAVAILABLE, "the port is taken")
    nested = BaseExceptionGroup("", [BaseExceptionGroup("", [known])])
    assert cli._first(nested) is known
    assert cli._first(BaseExceptionGroup("", [known, RuntimeError("ours")])) is None

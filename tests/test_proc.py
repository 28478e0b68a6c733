"""The choke point for processes: deadlines that kill, daemons that are found again, others' pids."""

# The processes here are other agents and strangers: awaiting them by asyncio would make them ours.
# ruff: noqa: ASYNC110, ASYNC220, ASYNC221

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nicagent import proc
from nicagent.errors import Kind, NicagentError
from nicagent.proc import Daemon


def alive(pid: int) -> bool:
    return proc.start_time(pid) is not None


async def gone(pid: int, seconds: float = 5.0) -> bool:
    """Wait for a process that is not ours to await."""
    try:
        async with asyncio.timeout(seconds):
            while alive(pid):
                await asyncio.sleep(0.01)
    except TimeoutError:
        return False
    return True


async def read_pid(path: Path, seconds: float = 5.0) -> int:
    async with asyncio.timeout(seconds):
        while not path.exists() or not path.read_text().strip():
            await asyncio.sleep(0.01)
    return int(path.read_text())


# ---- short commands


async def test_run_gives_status_and_both_outputs() -> None:
    done = await proc.run(["sh", "-c", "cat; echo bad >&2; exit 3"], stdin=b"in\xff", check=False)
    assert done == proc.Completed(3, "in�", "bad\n")


async def test_a_command_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(NicagentError, match="sh failed with status 3: the reason") as caught:
        await proc.run(["sh", "-c", "echo first >&2; echo the reason >&2; exit 3"])
    assert caught.value.kind is Kind.INTERNAL


async def test_a_command_beyond_its_deadline_is_killed_with_its_children(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/child; wait"
    with pytest.raises(NicagentError, match=r"sh did not finish within 0\.3 s") as caught:
        await proc.run(["sh", "-c", script], timeout=0.3)
    assert caught.value.kind is Kind.UNAVAILABLE
    assert await gone(await read_pid(tmp_path / "child")), "the command's own child lives on"


async def test_a_command_is_killed_when_its_caller_is_cancelled(tmp_path: Path) -> None:
    task = asyncio.create_task(proc.run(["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60"]))
    pid = await read_pid(tmp_path / "pid")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(pid), "cancelled, and back before the process has ended"


async def test_output_that_is_kept_is_bounded() -> None:
    done = await proc.run(["head", "-c", str(3 * proc.OUTPUT_LIMIT), "/dev/zero"])
    assert len(done.stdout) == proc.OUTPUT_LIMIT


async def test_a_missing_tool_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nicagent.proc.shutil.which", lambda name, path: None)
    with pytest.raises(NicagentError) as caught:
        await proc.run(["qemu-storage-daemon", "--version"])
    assert caught.value.kind is Kind.UNAVAILABLE
    assert caught.value.message == "the program 'qemu-storage-daemon' is missing"
    assert caught.value.hint == "install it: apt-get install qemu-system-common qemu-utils"


@pytest.mark.parametrize("tool", sorted(proc.PACKAGE_OF))
def test_the_packages_named_are_those_that_ship_the_tool(tool: str) -> None:
    try:
        path = proc.find_tool(tool)
    except NicagentError:
        pytest.skip(f"{tool} is not installed here")
    for name in {path, os.path.realpath(path), path.removeprefix("/usr"), "/usr" + path}:
        done = subprocess.run(["dpkg", "-S", name], capture_output=True, text=True)
        if done.returncode == 0:
            assert done.stdout.split(":")[0] in proc.PACKAGE_OF[tool].split()
            return
    pytest.skip(f"{path} belongs to no package")


# ---- processes that end with us


async def test_a_spawned_process_dies_with_the_agent_even_when_that_is_killed(tmp_path: Path) -> None:
    agent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import asyncio\n"
            "from nicagent import proc\n"
            "async def main():\n"
            f"    p = await proc.spawn(['sh', '-c', 'echo $$ > {tmp_path}/pid; exec sleep 60'])\n"
            "    await p.wait()\n"
            "asyncio.run(main())\n",
        ]
    )
    pid = await read_pid(tmp_path / "pid")
    agent.kill()
    agent.wait()
    assert await gone(pid), "a process of a dead agent lives on"


# ---- daemons that outlive us


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon("sleeper", tmp_path / "run" / "sleeper.pid")
    yield daemon
    pid = daemon.pid()
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


async def test_a_daemon_outlives_the_agent_and_is_found_again(daemon: Daemon, tmp_path: Path) -> None:
    agent = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, signal\n"
            "from pathlib import Path\n"
            "from nicagent.proc import Daemon\n"
            f"daemon = Daemon('sleeper', Path('{daemon.pidfile}'))\n"
            f"daemon.start(['sleep', '60'], log=Path('{tmp_path}/log'))\n"
            "os.kill(0, signal.SIGKILL)\n",  # the whole group, as a terminal or a supervisor would
        ],
        start_new_session=True,
    )
    assert agent.returncode == -signal.SIGKILL
    pid = daemon.pid()
    assert pid is not None, "the daemon died with the agent, or was not found again"
    await daemon.stop()
    assert await gone(pid)
    assert not daemon.pidfile.exists()
    await daemon.stop()  # idempotent


async def test_a_recycled_pid_is_never_signalled(daemon: Daemon) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        started = proc.start_time(stranger.pid)
        assert started is not None
        daemon.pidfile.parent.mkdir()
        daemon.pidfile.write_text(f"{stranger.pid} {started - 1}\n")
        assert daemon.pid() is None
        await daemon.stop()
        assert stranger.poll() is None, "a stranger was killed"
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("text", ["", "12", "x y", "1 2 3", "999999999 1"])
async def test_a_damaged_pidfile_is_no_daemon(daemon: Daemon, text: str) -> None:
    daemon.pidfile.parent.mkdir()
    daemon.pidfile.write_text(text)
    assert daemon.pid() is None
    await daemon.stop()


async def test_a_daemon_that_ignores_sigterm_is_killed_after_its_grace(
    daemon: Daemon, tmp_path: Path
) -> None:
    stubborn = f"trap '' TERM; echo $$ > {tmp_path}/ready; while :; do sleep 0.05; done"
    pid = daemon.start(["sh", "-c", stubborn], log=tmp_path / "log")
    await read_pid(tmp_path / "ready")
    began = asyncio.get_running_loop().time()
    await daemon.stop(grace=0.2)
    assert not alive(pid)
    assert 0.2 <= asyncio.get_running_loop().time() - began < 5


async def test_a_daemon_that_dies_at_once_is_not_there(daemon: Daemon, tmp_path: Path) -> None:
    pid = daemon.start(["sh", "-c", "echo no >&2; exit 1"], log=tmp_path / "log")
    assert await gone(pid)
    assert daemon.pid() is None, "a zombie is not alive"
    assert (tmp_path / "log").read_text() == "no\n"

"""The serial console against a real pty and a real unix socket: no byte is lost, nobody blocks another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import termios
import tty
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nicagent.console import serial
from nicagent.console.serial import ConsoleSession, SerialConsole
from nicagent.errors import Kind, NicagentError


class Chassis:
    """The other end of the line: a server on a unix socket, as the emulator's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.typed = bytearray()
        self._server: asyncio.Server | None = None
        self._peers: list[asyncio.StreamWriter] = []
        self.connected = asyncio.Event()

    async def up(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._peers.append(writer)
        self.connected.set()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4096):
                self.typed += data

    async def say(self, data: bytes) -> None:
        self._peers[-1].write(data)
        await self._peers[-1].drain()

    async def down(self) -> None:
        self.connected.clear()
        for peer in self._peers:
            peer.close()
        if self._server is not None:
            self._server.close()
            self._server = None
        self.path.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def running(console: SerialConsole) -> AsyncIterator[SerialConsole]:
    task = asyncio.create_task(console.run())
    try:
        yield console
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=2)
        assert task.cancelled(), f"the console ended by itself: {task.exception() if task.done() else 'no'}"


def console_at(tmp_path: Path, path: Path | None = None, log_bytes: int = 1 << 20) -> SerialConsole:
    return SerialConsole(
        "metal-1", path or tmp_path / "serial", 115200, tmp_path / "log" / "metal-1.log", log_bytes
    )


@pytest.fixture
async def chassis(tmp_path: Path) -> AsyncIterator[Chassis]:
    chassis = Chassis(tmp_path / "serial")
    await chassis.up()
    yield chassis
    await chassis.down()


@pytest.fixture
async def console(tmp_path: Path, chassis: Chassis) -> AsyncIterator[SerialConsole]:
    async with running(console_at(tmp_path)) as console:
        await until(lambda: console.connected and chassis.connected.is_set())
        yield console


async def until(condition: object, seconds: float = 5.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (the subject has no event to wait for)
            await asyncio.sleep(0.005)


async def take(session: ConsoleSession, size: int, seconds: float = 10.0) -> bytes:
    """Exactly `size` bytes."""
    got = bytearray()
    async with asyncio.timeout(seconds):
        while len(got) < size:
            data = await session.read(size - len(got))
            assert data, f"the session ended after {bytes(got)!r}"
            got += data
    return bytes(got)


async def test_every_session_sees_everything_and_each_may_type(
    console: SerialConsole, chassis: Chassis
) -> None:
    first, second = console.attach(), console.attach()
    await chassis.say(b"login: ")
    assert await take(first, 7) == await take(second, 7) == b"login: "
    await first.write(b"ro")
    await second.write(b"ot\n")
    await until(lambda: bytes(chassis.typed) == b"root\n")


async def test_a_new_session_is_shown_the_past_only_if_it_asks(
    console: SerialConsole, chassis: Chassis
) -> None:
    watcher = console.attach()
    await chassis.say(b"boot messages\n")
    await take(watcher, 14)
    assert await take(console.attach(replay=True), 14) == b"boot messages\n"
    fresh = console.attach()
    await chassis.say(b"now")
    assert await take(fresh, 3) == b"now"


async def test_the_past_survives_the_agent(tmp_path: Path, chassis: Chassis) -> None:
    async with running(console_at(tmp_path)) as console:
        await chassis.connected.wait()
        session = console.attach()
        await chassis.say(b"kernel panic\n")
        await take(session, 13)
    async with running(console_at(tmp_path)) as console:
        assert await take(console.attach(replay=True), 13) == b"kernel panic\n"


async def test_force_ends_the_sessions_of_others(console: SerialConsole, chassis: Chassis) -> None:
    old = console.attach()
    new = console.attach(force=True)
    assert await old.read(10) == b""
    await chassis.say(b"mine")
    assert await take(new, 4) == b"mine"


async def test_a_session_that_does_not_read_loses_its_oldest_and_costs_the_others_nothing(
    console: SerialConsole, chassis: Chassis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serial, "BACKLOG", 100_000)
    asleep, awake = console.attach(), console.attach()
    total = 0
    for number in range(40):
        block = f"{number:08d}".encode() * 1000
        await chassis.say(block)
        assert await take(awake, len(block)) == block
        total += len(block)
    assert asleep._held <= 100_000 < total
    held = await take(asleep, asleep._held)
    assert held.endswith(b"00000039"), "the newest is kept"


async def test_leaving_ends_a_read_and_may_be_done_twice(console: SerialConsole) -> None:
    session = console.attach()
    reading = asyncio.create_task(session.read(10))
    await asyncio.sleep(0)
    await session.close()
    await session.close()
    assert await reading == b""
    assert console._sessions == []


async def test_the_line_comes_back_and_sessions_go_on(
    console: SerialConsole, chassis: Chassis, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = console.attach()
    await chassis.say(b"before ")
    await chassis.down()
    await until(lambda: not console.connected)
    with pytest.raises(NicagentError, match="is not connected") as caught:
        await session.write(b"x")
    assert caught.value.kind is Kind.UNAVAILABLE
    await chassis.up()
    await chassis.connected.wait()
    await chassis.say(b"after")
    assert await take(session, 12) == b"before after"


async def test_a_console_may_be_there_before_its_line(tmp_path: Path) -> None:
    async with running(console_at(tmp_path)) as console:
        session = console.attach()
        await asyncio.sleep(0.05)
        chassis = Chassis(tmp_path / "serial")
        await chassis.up()
        await chassis.connected.wait()
        await chassis.say(b"hello")
        assert await take(session, 5) == b"hello"
        await chassis.down()


async def test_an_attentive_reader_gets_every_byte_at_full_speed(
    console: SerialConsole, chassis: Chassis
) -> None:
    """16 MiB: hundreds of times what a UART can do, and nothing of it dropped."""
    size = 16 << 20
    block = bytes(range(256)) * 256
    session = console.attach()

    async def flood() -> None:
        for _ in range(size // len(block)):
            await chassis.say(block)

    flooding = asyncio.create_task(flood())
    began = asyncio.get_running_loop().time()
    got = await take(session, size, 30)
    await flooding
    assert got == block * (size // len(block))
    assert asyncio.get_running_loop().time() - began < 20


# ---- the log


def log_files(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / "log").iterdir()}


async def test_the_log_is_kept_twice_its_size_and_in_order(tmp_path: Path, chassis: Chassis) -> None:
    async with running(console_at(tmp_path, log_bytes=4096)) as console:
        await chassis.connected.wait()
        session = console.attach()
        said = b"".join(b"line %06d\n" % number for number in range(2000))
        for start in range(0, len(said), 1000):
            await chassis.say(said[start : start + 1000])
            await take(session, len(said[start : start + 1000]))
    files = log_files(tmp_path)
    assert set(files) == {"metal-1.log", "metal-1.1"}
    assert all(len(content) <= 4096 for content in files.values())
    assert said.endswith(files["metal-1.1"] + files["metal-1.log"])


async def test_one_burst_larger_than_the_log_does_not_overfill_it(tmp_path: Path, chassis: Chassis) -> None:
    said = b"".join(b"line %06d\n" % number for number in range(8000))
    async with running(console_at(tmp_path, log_bytes=4096)) as console:
        await chassis.connected.wait()
        session = console.attach()
        await chassis.say(said)
        await take(session, len(said))
    files = log_files(tmp_path)
    assert all(len(content) <= 4096 for content in files.values())
    assert said.endswith(files["metal-1.1"] + files["metal-1.log"]), "the log's end, without a gap"


async def test_a_log_that_cannot_be_written_costs_the_console_nothing(
    tmp_path: Path, chassis: Chassis
) -> None:
    async with running(console_at(tmp_path, log_bytes=4096)) as console:
        await chassis.connected.wait()
        session = console.attach()
        for path in (tmp_path / "log").iterdir():
            path.unlink()
        (tmp_path / "log").rmdir()  # rotation now fails at every step
        for _ in range(5):
            await chassis.say(bytes(3000))
            assert await take(session, 3000) == bytes(3000)


# ---- a tty


@pytest.fixture
async def pty() -> AsyncIterator[tuple[int, Path]]:
    master, slave = os.openpty()
    tty.setraw(master)
    os.set_blocking(master, False)
    path = Path(os.ttyname(slave))
    os.close(slave)
    yield master, path
    with contextlib.suppress(OSError):
        os.close(master)


async def test_a_tty_is_raw_at_its_speed_and_carries_both_ways(tmp_path: Path, pty: tuple[int, Path]) -> None:
    master, path = pty
    async with running(console_at(tmp_path, path)) as console:
        await until(lambda: console.connected)
        session = console.attach()
        os.write(master, b"\x03\x04 raw \r\n")
        assert await take(session, 9) == b"\x03\x04 raw \r\n"
        await session.write(b"ls\r")
        await until(lambda: _readable(master))
        assert os.read(master, 100) == b"ls\r", "no echo, no translation"
        mode = termios.tcgetattr(master)
        assert mode[4] == mode[5] == termios.B115200
    held = [each.readlink() for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    assert path not in held, "the tty is still open after the console has ended"


def _readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


async def test_a_tty_in_full_flow_loses_nothing_and_ends_with_its_last_byte(
    tmp_path: Path, pty: tuple[int, Path]
) -> None:
    master, path = pty
    said = b"".join(b"line %06d\n" % number for number in range(40_000))
    async with running(console_at(tmp_path, path)) as console:
        await until(lambda: console.connected)
        session = console.attach()
        os.set_blocking(master, True)
        flowing = asyncio.create_task(asyncio.to_thread(_write_all, master, said))
        assert await take(session, len(said)) == said
        await flowing
        again = console.attach(replay=True)
        assert await again.read(1 << 20) == said[-4096:], "a new reader is shown the last 4 KiB"


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


async def test_a_tty_that_goes_away_and_something_that_is_none(tmp_path: Path, pty: tuple[int, Path]) -> None:
    master, path = pty
    async with running(console_at(tmp_path, path)) as console:
        await until(lambda: console.connected)
        os.close(master)
        await until(lambda: not console.connected)
    (tmp_path / "plain").write_text("")
    async with running(console_at(tmp_path, tmp_path / "plain")) as console:
        await asyncio.sleep(0.05)
        assert not console.connected


async def test_a_line_that_takes_nothing_is_given_up_and_opened_again(
    tmp_path: Path, pty: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serial, "WRITE_SECONDS", 0.2)
    master, path = pty
    async with running(console_at(tmp_path, path)) as console:
        await until(lambda: console.connected)
        session = console.attach()
        with pytest.raises(NicagentError, match="takes nothing"):
            await session.write(bytes(1 << 20))
        with contextlib.suppress(BlockingIOError):
            while os.read(master, 65536):
                pass
        await until(lambda: console.connected)
        os.write(master, b"back")
        assert await take(session, 4) == b"back"

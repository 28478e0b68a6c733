"""A host's screen at a TCP port: who is let in, what it costs, what ends it. Real sockets; the screen's own
server is a few lines that speak RFB's opening and then echo.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nicagent.config import Graphics
from nicagent.console import display as display_module
from nicagent.console import rfb
from nicagent.console.contract import Phase, Viewing
from nicagent.console.display import ScreenDisplays
from nicagent.console.screen import CaptureScreen
from nicagent.errors import Kind, NicagentError
from nicagent.model import Display, DisplayBinding, Sharing

HOST = "metal"
SERVER_INIT = b"a screen of 4 by 3"
VERSIONS = {3: b"RFB 003.003\n", 7: b"RFB 003.007\n", 8: b"RFB 003.008\n"}


class Source:
    """The screen's own RFB server: says what it was told to say, then echoes, or floods."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opening: tuple[bytes, ...] = (b"\1\1", b"\0\0\0\0")  # None alone is offered; result: OK
        self.version = b"RFB 003.008\n"
        self.flood = False
        self.sent = 0
        self.clients = 0
        self.shared: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients += 1
        try:
            writer.write(self.version)
            await reader.readexactly(12)
            for said in self.opening:
                writer.write(said)
                await reader.readexactly(1)
            writer.write(SERVER_INIT)
            while self.flood:
                writer.write(bytes(1 << 16))
                await writer.drain()
                self.sent += 1 << 16
            while data := await reader.read(1 << 16):
                writer.write(data)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.clients -= 1
            writer.close()


@dataclass
class Stage:
    displays: ScreenDisplays
    source: Source
    told: list[tuple[Phase, Viewing]] = field(default_factory=list)

    async def show(self, **wishes: object) -> DisplayBinding:
        binding = await self.displays.bind(HOST, Display(**wishes), ())  # type: ignore[arg-type]
        await self.displays.present(HOST, binding)
        return binding

    def phases(self) -> list[Phase]:
        return [phase for phase, _ in self.told]


async def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within 5 s: {what}")


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(rfb, "WRONG_PASSWORD_SECONDS", 0.05)
    source = Source(tmp_path / "vnc.sock")
    server = await asyncio.start_unix_server(source.serve, str(source.path))
    screen = CaptureScreen(HOST, tmp_path / "capture.sock", source.path)
    pictures_only = CaptureScreen("blind", tmp_path / "capture.sock")
    first = free_ports(3)
    graphics = Graphics(ports=(first, first + 2), viewers=3)
    stage = Stage(ScreenDisplays({HOST: screen, "blind": pictures_only}, graphics), source)
    stage.displays.watch(lambda host, phase, who: stage.told.append((phase, who)))
    yield stage
    await stage.displays.close()
    server.close()


def free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(21000, 32000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    sock = stack.enter_context(socket.socket())
                    sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


@dataclass
class Look:
    """A viewer."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def at(cls, binding: DisplayBinding) -> Look:
        return cls(*await asyncio.open_connection(binding.address, binding.port))

    async def read(self, count: int) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.readexactly(count)

    async def ended(self) -> bool:
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read() == b""
            return True

    async def open(self, minor: int = 8, password: str | None = None, *, shared: bool = True) -> bytes:
        """The whole opening; what the server says after it."""
        assert await self.read(12) == b"RFB 003.008\n"
        self.writer.write(VERSIONS[minor])
        kind = 1 if password is None else 2
        if minor == 3:
            assert await self.read(4) == struct.pack(">I", kind)
        else:
            assert await self.read(2) == bytes((1, kind)), "exactly one way to show who one is"
            self.writer.write(bytes((kind,)))
        if password is not None:
            self.writer.write(rfb.answer(password, await self.read(16)))
        if minor == 8 or password is not None:
            (result,) = struct.unpack(">I", await self.read(4))
            if result:
                (length,) = struct.unpack(">I", await self.read(4)) if minor == 8 else (0,)
                raise PermissionError((await self.read(length)).decode())
        self.writer.write(bytes((shared,)))
        return await self.read(len(SERVER_INIT))

    def close(self) -> None:
        self.writer.close()


# ---- who sees


@pytest.mark.parametrize("minor", [3, 7, 8])
@pytest.mark.parametrize("password", [None, "s3cret"])
async def test_every_version_of_viewers_is_let_in_and_types(
    stage: Stage, minor: int, password: str | None
) -> None:
    look = await Look.at(await stage.show(password=password))
    assert await look.open(minor, password) == SERVER_INIT
    look.writer.write(b"keys")
    assert await look.read(4) == b"keys", "what a viewer sends reaches the screen, and back"
    look.close()
    await until(lambda: stage.phases() == list(Phase), "it comes, is let in, and goes")
    who = stage.told[0][1]
    assert who.local[0] == who.remote[0] == "127.0.0.1" and who.local[1] != who.remote[1]
    assert {each.scheme for _, each in stage.told} == {"none" if password is None else "vnc"}
    await until(lambda: not stage.source.clients, "the screen's server is left alone")


@pytest.mark.parametrize("minor", [3, 7, 8])
async def test_a_wrong_password_sees_nothing(stage: Stage, minor: int) -> None:
    binding = await stage.show(password="s3cret")
    for wrong in ("", "s3cre", "s3cret!", "S3CRET"):
        look = await Look.at(binding)
        with pytest.raises(PermissionError):
            await look.open(minor, wrong)
        assert await look.ended()
    assert stage.source.clients == 0 and Phase.INITIALIZE not in stage.phases()


@pytest.mark.parametrize(
    ("password", "valid_to"),
    [("", None), ("s3cret", time.time() - 1), ("s3cret", 0.0)],
    ids=["empty", "over for a second", "over for ever"],
)
async def test_an_empty_password_and_one_that_is_over_let_nobody_in(
    stage: Stage, password: str, valid_to: float | None
) -> None:
    look = await Look.at(await stage.show(password=password, valid_to=valid_to))
    with pytest.raises(PermissionError, match="Authentication failed"):
        await look.open(8, password)


async def test_no_viewer_passes_by_choosing_another_security_type(stage: Stage) -> None:
    look = await Look.at(await stage.show(password="s3cret"))
    await look.read(12)
    look.writer.write(VERSIONS[8])
    assert await look.read(2) == b"\1\2"
    look.writer.write(b"\1\1")  # None, and ClientInit right behind it
    assert await look.ended() and stage.source.clients == 0


async def test_a_new_password_counts_for_the_next_viewer_and_disturbs_none(stage: Stage) -> None:
    binding = await stage.show(password="old")
    inside = await Look.at(binding)
    await inside.open(8, "old")
    changed = DisplayBinding(Display(password="new"), binding.address, binding.port)
    await stage.displays.present(HOST, changed)
    inside.writer.write(b"still here")
    assert await inside.read(10) == b"still here"
    refused, let_in = await Look.at(binding), await Look.at(binding)
    with pytest.raises(PermissionError):
        await refused.open(8, "old")
    assert await let_in.open(8, "new") == SERVER_INIT


def test_des_is_the_textbooks() -> None:
    """Key 133457799BBCDFF1 of the well-known worked example, its bytes mirrored and parity left out."""
    block = bytes.fromhex("0123456789abcdef")
    assert rfb.answer("H,j\x1eY={\x0f", block).hex() == "85e813540f0ab405"


def test_passwords_are_not_shown_where_they_might_be_logged() -> None:
    assert "s3cret" not in repr(rfb.Password("s3cret")) + repr(
        DisplayBinding(Display(password="s3cret"), "", 1)
    )


# ---- sharing


@pytest.mark.parametrize("sharing", Sharing)
async def test_a_viewer_that_wants_to_be_alone(stage: Stage, sharing: Sharing) -> None:
    binding = await stage.show(sharing=sharing)
    first, alone = await Look.at(binding), await Look.at(binding)
    await first.open()
    if sharing is Sharing.SHARED:
        with pytest.raises(asyncio.IncompleteReadError):
            await alone.open(shared=False)
    else:
        await alone.open(shared=False)
    if sharing is Sharing.EXCLUSIVE:
        assert await first.ended(), "it has the screen for itself"
    else:
        first.writer.write(b"here")
        assert await first.read(4) == b"here"


# ---- the screen's own server


async def test_a_dark_screen_says_so_and_comes_back(stage: Stage) -> None:
    binding = await stage.show()
    stage.source.path.rename(stage.source.path.with_suffix(".away"))
    look = await Look.at(binding)
    with pytest.raises(PermissionError, match="the screen of host metal is dark"):
        await look.open()
    stage.source.path.with_suffix(".away").rename(stage.source.path)
    again = await Look.at(binding)
    assert await again.open() == SERVER_INIT


@pytest.mark.parametrize(
    ("opening", "says"),
    [
        ((b"\0" + struct.pack(">I", 4) + b"busy",), "it says: busy"),
        ((b"\1\2",), "it asks for a password"),
        ((b"\1\1", struct.pack(">II", 1, 3) + b"n\0o"), "it says: n?o"),
        ((b"\0" + struct.pack(">I", 1 << 31),), "server does not answer"),
    ],
)
async def test_a_screen_that_refuses_is_a_sentence(
    stage: Stage, opening: tuple[bytes, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nicagent.console.screen.OPENING_SECONDS", 0.3)
    stage.source.opening = opening
    screen = CaptureScreen(HOST, Path("/nowhere"), stage.source.path)
    with pytest.raises(NicagentError) as refused:
        await screen.stream()
    assert refused.value.kind is Kind.UNAVAILABLE and says in str(refused.value)


async def test_older_screens_are_understood(stage: Stage) -> None:
    for version, opening in ((b"RFB 003.003\n", (struct.pack(">I", 1),)), (b"RFB 003.007\n", (b"\1\1", b""))):
        stage.source.version, stage.source.opening = version, opening
        look = await Look.at(await stage.show())
        assert await look.open() == SERVER_INIT
        look.close()


async def test_the_end_of_the_screen_is_the_end_of_its_viewers(stage: Stage) -> None:
    binding = await stage.show()
    inside, opening = await Look.at(binding), await Look.at(binding)
    await inside.open()
    await opening.read(12)
    await stage.displays.withdraw(HOST)
    assert await inside.ended() and await opening.ended()
    with pytest.raises(OSError):
        await Look.at(binding)
    await stage.displays.withdraw(HOST)
    assert stage.phases().count(Phase.DISCONNECT) == 2


# ---- bounds


async def test_more_viewers_than_may_are_hung_up_on(stage: Stage) -> None:
    binding = await stage.show()
    inside = [await Look.at(binding) for _ in range(3)]
    for look in inside:
        await look.open()
    assert await (await Look.at(binding)).ended()
    inside[0].close()
    await until(lambda: Phase.DISCONNECT in stage.phases(), "its place is free")
    assert await (await Look.at(binding)).open() == SERVER_INIT


async def test_who_does_not_show_that_he_may_loses_his_place(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display_module, "OPENING_SECONDS", 0.1)
    look = await Look.at(await stage.show())
    await look.read(12)
    assert await look.ended()
    assert stage.phases() == [Phase.CONNECT, Phase.DISCONNECT]


async def test_a_viewer_that_does_not_read_stops_the_screens_server_not_us(stage: Stage) -> None:
    stage.source.flood = True
    binding = await stage.show()
    lazy = await Look.at(binding)
    lazy.writer.transport.pause_reading()  # type: ignore[attr-defined]
    lazy.writer.transport.resume_reading()  # type: ignore[attr-defined]
    await lazy.open()
    seen = -1
    async with asyncio.timeout(20):
        while seen != stage.source.sent:  # until nothing goes any more
            seen = stage.source.sent
            await asyncio.sleep(0.3)
    assert seen < 16 << 20, f"{seen} bytes went towards a viewer that reads nothing"
    await stage.displays.withdraw(HOST)
    await until(lambda: not stage.source.clients, "the screen's server is left alone")


# ---- places


async def test_ports_are_given_from_the_first_on_and_kept(stage: Stage) -> None:
    first = stage.displays._graphics.ports[0]
    assert (await stage.displays.bind(HOST, Display(), ())).port == first
    assert (await stage.displays.bind(HOST, Display(), {first})).port == first + 1
    with socket.socket() as other:
        other.bind(("127.0.0.1", first))
        other.listen()
        assert (await stage.displays.bind(HOST, Display(), ())).port == first + 1
        with pytest.raises(NicagentError, match=f"port {first} at 127.0.0.1 is taken by another program"):
            await stage.displays.bind(HOST, Display(port=first), ())
        with pytest.raises(NicagentError, match="taken by another program"):
            await stage.displays.present(HOST, DisplayBinding(Display(), "127.0.0.1", first))
        with pytest.raises(NicagentError, match="no port from") as full:
            await stage.displays.bind(HOST, Display(), {first + 1, first + 2})
        assert full.value.kind is Kind.NO_SPACE
    with pytest.raises(NicagentError, match="taken by another domain's screen"):
        await stage.displays.bind(HOST, Display(port=first), {first})


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "localhost", "", "127.0.0.1 "])
async def test_a_screen_is_shown_only_where_the_operator_allows(stage: Stage, address: str) -> None:
    wish = Display(address=address or "nonsense")
    with pytest.raises(NicagentError, match=r"only at 127\.0\.0\.1 or ::1") as refused:
        await stage.displays.bind(HOST, wish, ())
    assert refused.value.kind is Kind.UNSUPPORTED


@pytest.mark.parametrize("port", [22, 8009, 20999, 65535])
async def test_a_screen_takes_no_port_of_others(stage: Stage, port: int) -> None:
    with pytest.raises(NicagentError, match="none that a screen may have"):
        await stage.displays.bind(HOST, Display(port=port), ())


async def test_the_same_port_is_there_again_after_a_crash_under_a_viewer(stage: Stage) -> None:
    """Connections of the agent that was killed are still about; they keep no port from the next one."""
    binding = await stage.show()
    look = await Look.at(binding)
    await look.open()
    await stage.displays.close()  # the listener's end of the connection was closed first: TIME_WAIT is ours
    await stage.displays.present(HOST, binding)
    assert await (await Look.at(binding)).open() == SERVER_INIT


async def test_presenting_again_disturbs_nobody_and_another_place_ends_the_first(stage: Stage) -> None:
    binding = await stage.show()
    look = await Look.at(binding)
    await look.open()
    await stage.displays.present(HOST, binding)
    look.writer.write(b"here")
    assert await look.read(4) == b"here"
    moved = DisplayBinding(binding.display, binding.address, binding.port + 1)
    await stage.displays.present(HOST, moved)
    assert await look.ended()
    assert await (await Look.at(moved)).open() == SERVER_INIT
    await stage.displays.present(HOST, None)
    with pytest.raises(OSError):
        await Look.at(moved)


async def test_a_screen_of_pictures_only_is_not_shown(stage: Stage) -> None:
    assert stage.displays.shows(HOST) and not stage.displays.shows("blind")
    with pytest.raises(NicagentError, match=r"set hosts\.blind\.screen\.rfb"):
        await stage.displays.present("blind", DisplayBinding(Display(), "127.0.0.1", 5900))


# ---- whatever a viewer says


@given(st.binary(max_size=40))
@example(b"RFB 003.008\n")
@example(b"RFB 005.000\n")
@example(b"RFB 003.889\n")
def test_a_version_is_one_of_three_or_none(line: bytes) -> None:
    try:
        assert rfb.minor_of(line) in (3, 7, 8)
    except rfb.RfbError:
        assert not line.startswith(b"RFB 003.0") or len(line) != 12 or not line[8:11].isdigit()


@given(st.lists(st.binary(min_size=1, max_size=24), max_size=4), st.booleans())
@example([b"RFB 003.008\n", b"\2", bytes(16), b"\1"], True)
@example([b"RFB 003.003\n", bytes(16)], True)
def test_no_bytes_get_past_a_password(said: list[bytes], known: bool) -> None:
    """Whatever is sent, the opening ends in an error, never in a viewer that is let in."""

    async def opening() -> None:
        reader = asyncio.StreamReader()
        for each in said:
            reader.feed_data(each)
        reader.feed_eof()
        sink, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
        writer = asyncio.StreamWriter(
            sink, asyncio.streams.FlowControlMixin(), None, asyncio.get_running_loop()
        )
        viewer = rfb.Viewer(reader, writer)
        try:
            await viewer.admit(rfb.Password("s3cret" if known else ""))
        except (rfb.RfbError, asyncio.IncompleteReadError):
            return
        finally:
            sink.abort()
        raise AssertionError(f"let in by {said!r}")

    ours, theirs = socket.socketpair()
    wait, rfb.WRONG_PASSWORD_SECONDS = rfb.WRONG_PASSWORD_SECONDS, 0.0
    try:
        asyncio.run(opening())
    finally:
        rfb.WRONG_PASSWORD_SECONDS = wait
        ours.close()
        theirs.close()

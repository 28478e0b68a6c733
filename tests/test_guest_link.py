"""The guest agent's client against guests of every kind: a stock one's way of speaking, and hostile ones."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nicagent.hostlink import qga
from nicagent.hostlink.contract import GuestRefused, GuestSilent, answers
from nicagent.hostlink.qga import QgaLink

Guest = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def channel(guest: Guest) -> AsyncIterator[QgaLink]:
    """A link to a guest that behaves like this."""
    with tempfile.TemporaryDirectory(prefix="qga-") as directory:
        path = Path(directory) / "guest.sock"
        server = await asyncio.start_unix_server(guest, str(path), limit=1 << 22)
        link = QgaLink("metal", path)
        try:
            yield link
        finally:
            link._hang_up()
            server.close()


def speaking(answer: bytes) -> Guest:
    """A guest that synchronises as qemu-ga 7.2 does, then says this to whatever it is asked."""

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line.startswith(b"\xff"):  # to its parser a stray byte, which it complains of
                writer.write(b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n')
            asked = json.loads(line.lstrip(b"\xff"))
            if asked["execute"] == "guest-sync-delimited":
                writer.write(b"\xff" + json.dumps({"return": asked["arguments"]["id"]}).encode() + b"\n")
            else:
                writer.write(answer + b"\n")
        writer.close()

    return guest


def ask(answer: bytes, kind: Any = answers.Hostname, seconds: float = 1.0) -> Any:
    async def run() -> Any:
        async with channel(speaking(answer)) as link:
            return await link.ask("guest-get-host-name", kind=kind, seconds=seconds)

    return asyncio.run(run())


def test_an_answer_is_found_behind_the_noise_of_former_talks() -> None:
    assert ask(b'{"return": {"host-name": "debian", "later": [1, 2]}}').host_name == "debian"


def test_a_refusal_is_told_as_one_and_a_missing_command_as_unknown() -> None:
    for kind, unknown in (("GenericError", False), ("CommandNotFound", True)):
        with pytest.raises(GuestRefused, match="no such luck") as refused:
            ask(json.dumps({"error": {"class": kind, "desc": "no such luck"}}).encode())
        assert refused.value.unknown is unknown


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"{", b"\xff\xff\xff", b'{"return": 5}', b'{"return": {"host-name": 5}}', b"[" * 100_000,
        b'{"return": {"host-name": "' + b"a" * (qga.ANSWER_LIMIT + 10) + b'"}}',
        b'{"return": {"host-name": "\\ud800"}}', b'{"return": {"host-name": "\xc3\x28"}}',
    ],
    ids=["silence", "half", "marks", "number", "wrong member", "deep", "endless", "surrogate", "no UTF-8"],
)  # fmt: skip
def test_a_guest_that_talks_nonsense_is_silent_to_us(answer: bytes) -> None:
    with pytest.raises((GuestSilent, GuestRefused)):
        ask(answer)


def test_numbers_that_nothing_else_could_hold_are_no_answer() -> None:
    for number in (-1, 1 << 63, 1 << 200):
        disk = {"name": "vda", "stats": {"read-sectors": number}}
        with pytest.raises(GuestSilent):
            ask(json.dumps({"return": [disk]}).encode(), answers.DisksStats)


def test_what_is_no_text_is_not_sent() -> None:
    async def run() -> None:
        async with channel(speaking(b'{"return": {}}')) as link:
            for user in ("\udcff", "\ud800"):  # as bytes that are not UTF-8 come through libvirt's wire
                with pytest.raises(GuestRefused):
                    await link.ask("guest-set-user-password", {"username": user}, kind=dict)
            for text in ("", "[]", "{}", "\udcff", '{"execute": "a' + "\udcff" + '"}'):
                with pytest.raises(GuestRefused):
                    await link.ask_raw(text, 1.0)
            assert await link.ask_raw('{"execute": "guest-ping"}', 1.0) == '{"return":{}}'

    asyncio.run(run())


def test_a_flood_ends_at_the_deadline_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qga, "SYNC_SECONDS", 0.5)

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        except ConnectionError:
            writer.close()

    async def run() -> float:
        slowest, loop = 0.0, asyncio.get_running_loop()
        async with channel(flood) as link:
            asking = asyncio.create_task(link.ask("guest-ping", kind=dict))
            while not asking.done():
                before = loop.time()
                await asyncio.sleep(0.01)
                slowest = max(slowest, loop.time() - before)
            with pytest.raises(GuestSilent):
                await asking
            assert not link.connected
        return slowest

    assert asyncio.run(run()) < 0.4, "the loop was held up by a guest"


def test_a_cancelled_question_leaves_no_answer_for_the_next() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            asked = json.loads(line.lstrip(b"\xff"))
            if asked["execute"] == "guest-sync-delimited":
                writer.write(b"\xff" + json.dumps({"return": asked["arguments"]["id"]}).encode() + b"\n")
            else:
                await asyncio.sleep(0.2)
                writer.write(json.dumps({"return": {"host-name": asked["execute"]}}).encode() + b"\n")
        writer.close()

    async def run() -> None:
        async with channel(slow) as link:
            first = asyncio.create_task(link.ask("one", kind=answers.Hostname))
            await asyncio.sleep(0.1)
            first.cancel()
            await asyncio.wait([first])
            assert (await link.ask("two", kind=answers.Hostname)).host_name == "two"

    asyncio.run(run())


def test_a_tty_is_a_channel_too_and_its_coming_and_going_is_told() -> None:
    async def run() -> list[bool]:
        master, slave = os.openpty()
        told: list[bool] = []
        link = QgaLink("metal", Path(os.ttyname(slave)))
        link.watch(told.append)
        loop = asyncio.get_running_loop()

        def guest() -> None:
            """Answers a line at a time until the line is cut."""
            rest = b""
            while True:
                try:
                    rest += os.read(master, 4096)
                except OSError:
                    return
                *lines, rest = rest.split(b"\n")
                for line in lines:
                    asked = json.loads(line.lstrip(b"\xff"))
                    mark = b"\xff" if "arguments" in asked else b""
                    number = asked.get("arguments", {}).get("id")
                    value = {"host-name": "metal"} if number is None else number
                    os.write(master, mark + json.dumps({"return": value}).encode() + b"\n")

        answering = loop.run_in_executor(None, guest)
        answer = await link.ask("guest-get-host-name", kind=answers.Hostname)
        assert answer.host_name == "metal"
        link._hang_up()
        os.close(slave)  # the last holder: the guest reads the end of the line
        await answering
        os.close(master)
        with pytest.raises(GuestSilent):
            await link.ask("guest-ping", kind=dict)
        return told

    assert asyncio.run(run()) == [True, False]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_line_is_an_answer_or_none(line: bytes) -> None:
    with suppress(ValueError):
        qga._decode(line)

"""Talking to the card in a host's PCIe slot, where it is one that can do more than be read at power-on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from nicagent.errors import Kind, NicagentError
from nicagent.storage import slotwire
from nicagent.storage.slotwire import State

ANSWER_SECONDS = 10.0  # for the card to have looked: what it does for a host itself takes milliseconds


class Card:
    """One connection. Everything raises UNAVAILABLE when the card falls silent."""

    def __init__(self, slot: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.state = State(powered=False, ports=0, free=0)  # as last told
        self._slot = slot
        self._reader = reader
        self._writer = writer

    async def settle(self, settled: Callable[[State], bool], seconds: float) -> bool:
        """Have the slot looked at, and wait until `settled`; False when it is not so `seconds` later."""
        asked = self.state.looks
        self._writer.write(slotwire.LOOK)
        while self.state.looks == asked:
            await self.hear(ANSWER_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not settled(self.state):
                    await self.hear(None)
        return settled(self.state)

    async def hear(self, seconds: float | None) -> None:
        """Wait for what the card tells next."""
        try:
            async with asyncio.timeout(seconds):
                line = await self._reader.readuntil(b"\n")
            self.state = slotwire.decode(line)
        except (TimeoutError, OSError, EOFError, asyncio.LimitOverrunError, msgspec.DecodeError) as e:
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"the card in the PCIe slot {self._slot} does not answer ({str(e) or 'timeout'})",
                "look at the log of whoever provides it",
            ) from None


@contextlib.asynccontextmanager
async def card_in(slot: Path) -> AsyncIterator[Card | None]:
    """The card of a slot; None when nobody answers there."""
    path = slot / slotwire.SOCKET
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=slotwire.LINE_LIMIT)
    except OSError:
        yield None
        return
    try:
        card = Card(slot, reader, writer)
        await card.hear(ANSWER_SECONDS)
        yield card
    finally:
        writer.close()

"""What is known of domains' snapshots beside their files: a face's own notes, kept and not looked into.

Notes end with their domain. They are out of sight at once; the store forgets them when it can, at the latest
before another domain of that UUID comes to be. An agent that dies in between finds notes of no domain when it
is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from nicagent.errors import NicagentError
from nicagent.store import Store

log = logging.getLogger("nicagent.snapshots")

OBJECT = "snapshots"  # the store's kind of object, one a domain
RETRY_SECONDS = 10.0  # between two attempts to have the store forget


@dataclass(frozen=True)
class Notes:
    """A domain's snapshots, as the face that took them writes them."""

    domain: str  # UUID
    text: str


class Snapshots:
    """By domain; durable when `keep` returns. `is_there`: whether a domain runs, is defined, or both."""

    def __init__(self, store: Store, is_there: Callable[[str], bool]) -> None:
        self._store = store
        self._is_there = is_there
        self._notes: dict[str, str] = {}
        self._left: set[str] = set()  # domains that are gone and whose notes the store still has
        self._some_left = asyncio.Event()

    async def load(self) -> None:
        """Read what is stored, once it is known which domains there are."""
        self._notes = {each.domain: each.text for each in await self._store.objects(OBJECT, Notes)}
        for uuid in tuple(self._notes):
            self.look_at(uuid)

    async def run(self) -> None:
        """Have the store forget what is left, until cancelled."""
        while True:
            await self._some_left.wait()
            try:
                for uuid in tuple(self._left):
                    await self.settle(uuid)
                self._some_left.clear()
            except NicagentError as e:  # a full disk
                log.warning("notes of snapshots of domains that are gone stay for now: %s", e)
                await asyncio.sleep(RETRY_SECONDS)

    def of(self, uuid: str) -> str | None:
        """From memory; None where there are none."""
        return self._notes.get(uuid)

    async def keep(self, uuid: str, text: str | None) -> None:
        """None: there are none any more."""
        if text is None:
            await self._store.drop_object(OBJECT, uuid)
            self._notes.pop(uuid, None)
        else:
            await self._store.put_object(OBJECT, uuid, uuid, Notes(uuid, text))
            self._notes[uuid] = text
            self.look_at(uuid)  # it may have ended meanwhile

    def look_at(self, uuid: str) -> None:
        """The domain's run, its definition, or both may have gone."""
        if not self._is_there(uuid) and self._notes.pop(uuid, None) is not None:
            self._left.add(uuid)
            self._some_left.set()

    async def settle(self, uuid: str) -> None:
        """Nothing of an earlier domain of that UUID is in the store once this returns."""
        if uuid in self._left:
            await self._store.drop_object(OBJECT, uuid)
            self._left.discard(uuid)

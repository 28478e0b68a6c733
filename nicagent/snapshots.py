"""What is known of domains' snapshots beside their files: a face's own notes, kept and not looked into."""

from __future__ import annotations

from dataclasses import dataclass

from nicagent.store import Store

OBJECT = "snapshots"  # the store's kind of object, one a domain


@dataclass(frozen=True)
class Notes:
    """A domain's snapshots, as the face that took them writes them."""

    domain: str  # UUID
    text: str


class Snapshots:
    """By domain; durable when `keep` returns."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._notes: dict[str, str] = {}

    async def load(self) -> None:
        """Read what is stored."""
        self._notes = {each.domain: each.text for each in await self._store.objects(OBJECT, Notes)}

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

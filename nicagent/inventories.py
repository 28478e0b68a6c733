"""The inventory of every host: what the config declares, over what the hosts have told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nicagent.errors import NicagentError
from nicagent.inventory import Inventory, merged, parse_report
from nicagent.store import Store

_KIND = "inventory"  # of the objects in the store

log = logging.getLogger("nicagent.inventory")


@dataclass(frozen=True)
class Report:
    """A host's report as it came, in the store under the host's name."""

    host: str
    body: str  # JSON of an Inventory


class Inventories:
    """The inventory of every host; the only writer of what was told."""

    def __init__(self, declared: Mapping[str, Inventory], store: Store) -> None:
        self._declared = dict(declared)
        self._store = store
        self._reported: dict[str, Inventory] = {}
        self._watchers: list[Callable[[str], None]] = []

    async def load(self) -> None:
        """Remember what was told to former agents. What this one cannot read is told again."""
        for report in await self._store.objects(_KIND, Report):
            try:
                self._reported[report.host] = parse_report(report.body.encode())
            except NicagentError as unreadable:
                log.warning("the kept inventory of %s is left out: %s", report.host, unreadable)

    def of(self, host: str) -> Inventory:
        """What is known of a host."""
        declared = self._declared[host]
        reported = self._reported.get(host)
        return declared if reported is None else merged(declared, reported)

    async def report(self, host: str, body: bytes) -> None:
        """A host's stage-1 has told. Durable when it returns. Raises INVALID."""
        told = parse_report(body)
        if told == self._reported.get(host):
            return
        await self._store.put_object(_KIND, host, host, Report(host, body.decode()))
        self._reported[host] = told
        log.info("%s told what it is made of: %d PCI devices", host, len(told.pci))
        for watcher in list(self._watchers):
            watcher(host)

    def watch(self, watcher: Callable[[str], None]) -> Callable[[], None]:
        """Call `watcher` with the host's name after each change, until the returned function is called."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

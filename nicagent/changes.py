"""The change stream: what happens to hosts and domains, in order, to whoever watches."""

from __future__ import annotations

import logging
from collections.abc import Callable

from nicagent.model import Change, DomainEvent, DomainStatus, HostStatus

log = logging.getLogger("nicagent.changes")

Watcher = Callable[[Change], None]


class Changes:
    """One stream; its changes are numbered from 1."""

    def __init__(self) -> None:
        self._watchers: list[Watcher] = []
        self._serial = 0

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Have `watcher` called with every change, in order, in the event loop. Returns how to end that."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def emit(
        self,
        *,
        host: HostStatus | None = None,
        event: DomainEvent | None = None,
        domain: DomainStatus | None = None,
    ) -> None:
        """Tell every watcher, now. One that fails keeps none of the others from being told."""
        self._serial += 1
        change = Change(self._serial, host, event, domain)
        for watcher in list(self._watchers):
            try:
                watcher(change)
            except Exception:
                log.exception("a watcher failed; the others are still told")

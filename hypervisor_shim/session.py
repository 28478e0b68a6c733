"""What one client has said so far: the state that decides which calls it may make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypervisor_shim.driver import Caller, Driver
from hypervisor_shim.events import Registrations


@dataclass(slots=True, eq=False)
class Session:
    """A client between accept and close. `listener_read_only` is the socket's own verdict, which no flag of
    CONNECT_OPEN can undo; `caller.read_only` is what holds once it is open.

    `changed` is called when a call moved the session on (opened, keepalive wanted), so that the connection
    can choose its table of permitted calls anew.
    """

    driver: Driver
    caller: Caller
    listener_read_only: bool
    changed: Callable[[], None] = lambda: None
    opened: bool = False
    closing: bool = False  # CONNECT_CLOSE was served: hang up after the reply
    keepalive: bool = False
    wants_close_event: bool = False
    registrations: Registrations = field(default_factory=Registrations)

    def enter(self, *, read_only: bool) -> None:
        """CONNECT_OPEN was granted."""
        self.caller = replace(self.caller, read_only=read_only)
        self.opened = True
        self.changed()

    def want_keepalive(self) -> None:
        """The client answers pings."""
        self.keepalive = True
        self.changed()

    def hang_up(self) -> None:
        """CONNECT_CLOSE was granted."""
        self.closing = True
        self.changed()

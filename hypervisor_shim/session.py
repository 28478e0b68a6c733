"""What one client has said so far: the state that decides which calls it may make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypervisor_shim.access import EVERYTHING, Access, Policy, view
from hypervisor_shim.driver import Caller, Driver
from hypervisor_shim.events import Registrations
from hypervisor_shim.sasl import Authenticator, Exchange


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
    policy: Policy = field(default_factory=Policy)
    identities: tuple[str, ...] = ()  # all that rules may name; `caller.identity` is the most telling one
    authenticator: Authenticator | None = None  # who must be asked before anything else, if anybody
    exchange: Exchange | None = None  # under way with it
    attempts: int = 0  # that failed
    authenticated: bool = True
    access: Access = EVERYTHING
    changed: Callable[[], None] = lambda: None
    opened: bool = False
    closing: bool = False  # CONNECT_CLOSE was served: hang up after the reply
    keepalive: bool = False
    registrations: Registrations = field(default_factory=Registrations)

    def identify(self, identity: str) -> None:
        """The client has proved that it is `identity` too."""
        self.identities = (identity, *self.identities)
        self.caller = replace(self.caller, identity=identity)

    def authenticate(self, identity: str) -> None:
        """It has proved who it is, to the authenticator of its listener."""
        self.identify(identity)
        self.authenticated = True
        self.changed()

    def enter(self, access: Access, *, read_only: bool) -> None:
        """CONNECT_OPEN was granted."""
        self.caller = replace(self.caller, read_only=read_only)
        self.access = access
        if not access.unlimited:
            self.driver = view(self.driver, access, self)
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

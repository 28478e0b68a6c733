"""What can go wrong, as the user is told it: a sentence, a hint, and a kind that faces map to codes."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """The class of a failure. A face maps it: the CLI to an exit code, libvirt to a virErrorNumber."""

    INVALID = "invalid"  # the request itself is wrong: bad XML, bad config, an impossible value
    NOT_FOUND = "not-found"  # no such host, domain, volume, segment
    EXISTS = "exists"  # the name or UUID is taken
    WRONG_STATE = "wrong-state"  # right request, wrong moment: "domain is not running"
    UNSUPPORTED = "unsupported"  # true of this wiring or this metal: it cannot do that
    DENIED = "denied"  # the caller may not
    UNAVAILABLE = "unavailable"  # a peer or device does not answer: dead BMC, missing tool, taken port
    NO_SPACE = "no-space"  # a disk is full
    INTERNAL = "internal"  # our own fault


class Thing(StrEnum):
    """What a failure is about. Most faces do not care; libvirt has a code of its own for each thing that is
    not found.
    """

    DOMAIN = "domain"
    SEGMENT = "segment"
    PORT = "port"
    FILTER = "filter"
    INTERFACE = "interface"
    POOL = "pool"
    VOLUME = "volume"
    DEVICE = "device"
    SECRET = "secret"  # noqa: S105 (a word, not one)
    SNAPSHOT = "snapshot"


class NicagentError(Exception):
    """A failure with a sentence for people.

    `message` says what happened and where; `hint` what to do next. Neither carries secrets. `of`: what
    was NOT_FOUND or EXISTS, where a face may want to know.
    """

    def __init__(self, kind: Kind, message: str, hint: str = "", *, of: Thing | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint
        self.of = of

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class NotReleased(NicagentError):
    """The OS of a host was asked to let go of a device, and has not."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(Kind.UNAVAILABLE, message, hint)

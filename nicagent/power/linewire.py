"""The line protocol: how a pin factory reaches GPIO lines that live in another process.

One unix stream socket a chassis, one JSON object a line of text, both ways. A client sends a `Request` and
gets one `Reply` with the same `id`; an `Edge` comes unasked for every line it watches. Levels are
electrical (0 low, 1 high), never "active": polarity is the client's business, as on a real GPIO chip.

| op       | fields                                | reply                                         |
|----------|---------------------------------------|-----------------------------------------------|
| claim    | line, direction, level?, consumer     | level; refused while another connection holds |
| set      | line, level                           | level; the holder only, direction out         |
| get      | line                                  | level; anybody                                |
| release  | line                                  | level after the release                       |
| watch    | line                                  | level now; edges follow                       |
| unwatch  | line                                  | level now                                     |
| waveform | line?, since?, limit?                 | edges, oldest first, `seq` > since            |

A claim without a level is "as is": the line keeps the level it has. Times are CLOCK_MONOTONIC nanoseconds, so
processes on one machine can compare them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

MESSAGE_LIMIT = 1 << 20  # bytes in one message, newline included; longer closes the connection
WAVEFORM_LIMIT = 2000  # edges in one waveform reply; ask again with `since` for more

Op = Literal["claim", "set", "get", "release", "watch", "unwatch", "waveform"]
Direction = Literal["in", "out"]
Level = Literal[0, 1]

# Why a line moved: someone who holds it set it; the chassis drove it; its holder died; its holder let go of
# it.
Cause = Literal["holder", "chassis", "holder-death", "release"]


class WireError(ValueError):
    """What arrived is not a message of this protocol."""


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """Client to chassis. `line` is the offset on the chip; `consumer` names the holder in refusals and the
    log.
    """

    id: int
    op: Op
    line: int | None = None
    direction: Direction | None = None
    level: Level | None = None
    consumer: str = ""
    since: int = 0
    limit: int = WAVEFORM_LIMIT


class Recorded(msgspec.Struct, frozen=True):
    """One edge of the kept waveform. `seq` counts up from 1 over all lines of the chassis; `pid` 0 is the
    chassis.
    """

    seq: int
    t_ns: int
    line: int
    level: Level
    cause: Cause
    who: str
    pid: int


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Chassis to client, one per request. `error` is a sentence when not `ok`."""

    id: int
    ok: bool
    level: Level | None = None
    error: str = ""
    edges: tuple[Recorded, ...] = ()


class Edge(msgspec.Struct, frozen=True):
    """Chassis to client, unasked: a watched line moved to `level` at `t_ns`."""

    line: int
    level: Level
    t_ns: int
    event: Literal["edge"] = "edge"


def encode(message: Request | Reply | Edge) -> bytes:
    """One message as a line of JSON, newline included."""
    return msgspec.json.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """The chassis' end. Raises WireError, with the field at fault, on anything that is not a request."""
    try:
        return msgspec.json.decode(line, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(str(error)) from None


def decode_answer(line: bytes) -> Reply | Edge:
    """The client's end: a reply or an edge. Raises WireError on anything else."""
    try:
        found = msgspec.json.decode(line)
        if isinstance(found, dict) and "event" in found:
            return msgspec.convert(found, Edge)
        return msgspec.convert(found, Reply)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise WireError(str(error)) from None

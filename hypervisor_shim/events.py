"""Events: who registered for what, and what each looks like on the wire.

A client registers per event id, for one domain or for all, and gets a callback id; every packet carries that
id. Registration of any id libvirt 10 knows succeeds; those without a row in `_SHAPES` never fire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hypervisor_shim.driver import DomainEvent, DomainInfo, LifecycleEvent, RebootEvent
from hypervisor_shim.errors import Code, Origin, error
from hypervisor_shim.frame import NONNULL_DOMAIN, Program, Status, Type, packet
from hypervisor_shim.xdr import INT, Codec, Record

DOMAIN_EVENT_IDS = 27  # ids 0..26
REGISTRATIONS_MAX = 1024  # per client
CONNECTION_CLOSED = 362  # the event of procedure 360


def domain_value(info: DomainInfo) -> tuple[str, bytes, int]:
    """A domain as replies and events carry it, with its id of this moment."""
    return info.name, info.uuid, info.id


@dataclass(frozen=True, slots=True)
class _Shape:
    """An event id's procedure number and body. The body starts with the callback id."""

    event_id: int
    procedure: int
    body: Codec
    values: Callable[[Any], tuple[Any, ...]]


_SHAPES: dict[type, _Shape] = {
    LifecycleEvent: _Shape(
        0, 318, Record(INT, NONNULL_DOMAIN, INT, INT), lambda e: (domain_value(e.domain), e.event, e.detail)
    ),
    RebootEvent: _Shape(1, 319, Record(INT, NONNULL_DOMAIN), lambda e: (domain_value(e.domain),)),
}


class Registrations:
    """One client's event registrations."""

    def __init__(self) -> None:
        self._next = 0
        self._by_callback: dict[int, tuple[int, bytes | None]] = {}  # callback id → event id, domain or all

    def add(self, event_id: int, uuid: bytes | None) -> int:
        if not 0 <= event_id < DOMAIN_EVENT_IDS:
            raise error(Code.INTERNAL_ERROR, f"unsupported event ID {event_id}", origin=Origin.RPC)
        if (event_id, uuid) in self._by_callback.values():
            raise error(Code.INVALID_ARG, "event callback already tracked", origin=Origin.NONE)
        if len(self._by_callback) >= REGISTRATIONS_MAX:
            raise error(Code.INTERNAL_ERROR, "too many event callbacks registered", origin=Origin.RPC)
        callback = self._next
        self._next += 1
        self._by_callback[callback] = (event_id, uuid)
        return callback

    def remove(self, callback: int) -> None:
        if self._by_callback.pop(callback, None) is None:
            raise error(
                Code.INTERNAL_ERROR, f"domain event callback {callback} not registered", origin=Origin.RPC
            )

    def __len__(self) -> int:
        return len(self._by_callback)

    def packets(self, event: DomainEvent) -> Iterator[bytes]:
        """The packets this client gets for `event`: one per matching registration."""
        if not self._by_callback:
            return
        shape = _SHAPES[type(event)]
        uuid = event.domain.uuid
        for callback, (event_id, only) in self._by_callback.items():
            if event_id == shape.event_id and (only is None or only == uuid):
                out: list[bytes] = []
                shape.body.write((callback, *shape.values(event)), out)
                yield packet(Program.REMOTE, 1, shape.procedure, Type.MESSAGE, 0, Status.OK, b"".join(out))

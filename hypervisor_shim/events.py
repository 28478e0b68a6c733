"""Events: who registered for what, and what each looks like on the wire.

A client registers per family and event id, for one object or for all, and gets a callback id; every packet
carries that id in front of the event's own body, which is therefore encoded once for all clients.
Registration of any id libvirt 10 knows succeeds; those without a row in `_SHAPES` never fire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hypervisor_shim.driver.events import (
    AgentLifecycleEvent,
    BlockJobEvent,
    BlockThresholdEvent,
    DeviceAddedEvent,
    DeviceRemovalFailedEvent,
    DeviceRemovedEvent,
    DomainEvent,
    Event,
    Family,
    GraphicsEvent,
    HandoverEvent,
    IoErrorEvent,
    JobCompletedEvent,
    LifecycleEvent,
    MetadataChangeEvent,
    NetworkEvent,
    NetworkMetadataEvent,
    NodeDeviceEvent,
    NodeDeviceUpdateEvent,
    PoolEvent,
    PoolRefreshEvent,
    RebootEvent,
    SecretEvent,
    SecretValueEvent,
    TunableEvent,
    WatchdogEvent,
)
from hypervisor_shim.driver.facts import DefinedDetail, DomainInfo, Lifecycle
from hypervisor_shim.errors import Code, Origin, error
from hypervisor_shim.frame import (
    NONNULL_DOMAIN,
    NONNULL_NETWORK,
    NONNULL_SECRET,
    Program,
    Status,
    Type,
    packet,
)
from hypervisor_shim.xdr import INT, OPTIONAL_TEXT, TEXT, TYPED_PARAM, UHYPER, Array, Codec, Record

#: How many event ids each family has in libvirt 10, and how its errors name it.
_IDS: Mapping[Family, tuple[int, str]] = {
    Family.DOMAIN: (27, "domain"),
    Family.NETWORK: (2, "network"),
    Family.POOL: (2, "storage pool"),
    Family.NODE_DEVICE: (2, "node device"),
    Family.SECRET: (2, "secret"),
}
#: Clients from before 2013 register for a domain event by its id alone (below `_OLD_IDS`), for all domains;
#: what they get has a procedure number of its own and no callback id in front. Event id → procedure.
_OLD: Mapping[int, int] = {0: 107, 1: 169, 3: 171, 4: 172, 5: 173, 6: 195, 8: 224, 15: 311}
_OLD_IDS = 16
REGISTRATIONS_MAX = 1024  # per client

Key = bytes | str  # what names an object: a UUID, or a node device's name


def domain_value(info: DomainInfo) -> tuple[str, bytes, int]:
    """A domain as replies and events carry it, with its id of this moment."""
    return info.name, info.uuid, info.id


@dataclass(frozen=True, slots=True)
class _Shape:
    """An event id's procedure number and the body behind the callback id."""

    family: Family
    event_id: int
    procedure: int
    body: Codec
    values: Callable[[Any], tuple[Any, ...]]


def _domain(event_id: int, procedure: int, *members: tuple[Codec, str]) -> _Shape:
    """The domain, then the named attributes of the event."""
    names = [name for _, name in members]
    return _Shape(
        Family.DOMAIN,
        event_id,
        procedure,
        Record(NONNULL_DOMAIN, *(codec for codec, _ in members)),
        lambda e: (domain_value(e.domain), *(getattr(e, name) for name in names)),
    )


_PARAMS = (Array(TYPED_PARAM), "params")
_ADDRESS = Record(INT, TEXT, TEXT)
_SECRET = Record(NONNULL_SECRET, INT, INT)

_SHAPES: Mapping[type[Event], tuple[_Shape, ...]] = {
    LifecycleEvent: (_domain(0, 318, (INT, "event"), (INT, "detail")),),
    RebootEvent: (_domain(1, 319),),
    WatchdogEvent: (_domain(3, 321, (INT, "action")),),
    IoErrorEvent: (
        _domain(4, 322, (TEXT, "path"), (TEXT, "alias"), (INT, "action")),
        _domain(6, 324, (TEXT, "path"), (TEXT, "alias"), (INT, "action"), (TEXT, "reason")),
    ),
    GraphicsEvent: (
        _domain(5, 323, (INT, "phase"), (_ADDRESS, "local"), (_ADDRESS, "remote"), (TEXT, "scheme"),
                (Array(Record(TEXT, TEXT)), "subject")),
    ),
    BlockJobEvent: (
        _domain(8, 326, (TEXT, "path"), (INT, "type"), (INT, "status")),
        _domain(16, 339, (TEXT, "target"), (INT, "type"), (INT, "status")),
    ),
    DeviceRemovedEvent: (_domain(15, 333, (TEXT, "alias")),),
    TunableEvent: (_domain(17, 346, _PARAMS),),
    AgentLifecycleEvent: (_domain(18, 348, (INT, "state"), (INT, "reason")),),
    DeviceAddedEvent: (_domain(19, 354, (TEXT, "alias")),),
    JobCompletedEvent: (_domain(21, 363, _PARAMS),),
    DeviceRemovalFailedEvent: (_domain(22, 367, (TEXT, "alias")),),
    MetadataChangeEvent: (_domain(23, 379, (INT, "kind"), (OPTIONAL_TEXT, "uri")),),
    BlockThresholdEvent: (
        _domain(24, 385, (TEXT, "target"), (OPTIONAL_TEXT, "path"), (UHYPER, "threshold"),
                (UHYPER, "excess")),
    ),
    NetworkEvent: (
        _Shape(Family.NETWORK, 0, 315, Record(NONNULL_NETWORK, INT, INT),
               lambda e: ((e.name, e.uuid), e.event, e.detail)),
    ),
    NetworkMetadataEvent: (
        _Shape(Family.NETWORK, 1, 446, Record(NONNULL_NETWORK, INT, OPTIONAL_TEXT),
               lambda e: ((e.name, e.uuid), e.kind, e.uri)),
    ),
    PoolEvent: (
        _Shape(Family.POOL, 0, 370, Record(NONNULL_NETWORK, INT, INT),
               lambda e: ((e.name, e.uuid), e.event, e.detail)),
    ),
    PoolRefreshEvent: (
        _Shape(Family.POOL, 1, 373, Record(NONNULL_NETWORK), lambda e: ((e.name, e.uuid),)),
    ),
    NodeDeviceEvent: (
        _Shape(Family.NODE_DEVICE, 0, 376, Record(TEXT, INT, INT), lambda e: (e.name, e.event, e.detail)),
    ),
    NodeDeviceUpdateEvent: (_Shape(Family.NODE_DEVICE, 1, 377, Record(TEXT), lambda e: (e.name,)),),
    SecretEvent: (
        _Shape(Family.SECRET, 0, 382, _SECRET,
               lambda e: ((e.uuid, e.usage_type, e.usage_id), e.event, e.detail)),
    ),
    SecretValueEvent: (
        _Shape(Family.SECRET, 1, 383, Record(NONNULL_SECRET),
               lambda e: ((e.uuid, e.usage_type, e.usage_id),)),
    ),
}  # fmt: skip


def _key(event: Any) -> Key:
    """What a registration for one object is compared with."""
    if isinstance(event, DomainEvent):
        return event.domain.uuid
    if isinstance(event, NodeDeviceEvent | NodeDeviceUpdateEvent):
        return event.name
    uuid: bytes = event.uuid
    return uuid


@dataclass(frozen=True, slots=True)
class Encoded:
    """An event as the wire has it, but for the callback id of each client."""

    family: Family
    event_id: int
    key: Key
    procedure: int
    body: bytes
    domain: DomainInfo | None = None  # where the event is a domain's
    unless: DomainInfo | None = None  # not for those who see this one


def encode(event: Event) -> list[Encoded]:
    """One packet body per event id that tells of `event`."""
    if isinstance(event, HandoverEvent):
        return _handover(event)
    domain = event.domain if isinstance(event, DomainEvent) else None
    found = []
    for shape in _SHAPES[type(event)]:
        out: list[bytes] = []
        shape.body.write(shape.values(event), out)
        found.append(
            Encoded(shape.family, shape.event_id, _key(event), shape.procedure, b"".join(out), domain)
        )
    return found


def _handover(event: HandoverEvent) -> list[Encoded]:
    """libvirt knows no tenants, so it has no event of its own for what one of them sees of this."""
    gone = encode(LifecycleEvent(event.was, Lifecycle.UNDEFINED))
    come = encode(LifecycleEvent(event.domain, Lifecycle.DEFINED, DefinedDetail.ADDED))
    return [
        *(replace(each, unless=event.domain) for each in gone),
        *(replace(each, unless=event.was) for each in come),
    ]


class Registrations:
    """One client's event registrations."""

    def __init__(self) -> None:
        self._next = 0
        #: callback id → family, event id, the one object or None for all; below 0: as old clients do
        self._by_callback: dict[int, tuple[Family, int, Key | None]] = {}

    def add(self, family: Family, event_id: int, key: Key | None) -> int:
        """The callback id of a new registration."""
        if not 0 <= event_id < _IDS[family][0]:
            raise error(Code.INTERNAL_ERROR, f"unsupported event ID {event_id}", origin=Origin.RPC)
        if (family, event_id, key) in self._by_callback.values():
            raise error(Code.INVALID_ARG, "event callback already tracked", origin=Origin.NONE)
        if len(self._by_callback) >= REGISTRATIONS_MAX:
            raise error(Code.INTERNAL_ERROR, "too many event callbacks registered", origin=Origin.RPC)
        callback = self._next
        self._next += 1
        self._by_callback[callback] = (family, event_id, key)
        return callback

    def add_old(self, event_id: int) -> None:
        """Register as old clients do."""
        if not 0 <= event_id < _OLD_IDS:
            raise error(Code.INTERNAL_ERROR, f"unsupported event ID {event_id}", origin=Origin.RPC)
        callback = self.add(Family.DOMAIN, event_id, None)
        self._by_callback[-1 - event_id] = self._by_callback.pop(callback)

    def remove_old(self, event_id: int) -> None:
        """End what `add_old` began."""
        if not 0 <= event_id < _OLD_IDS:
            raise error(Code.INTERNAL_ERROR, f"unsupported event ID {event_id}", origin=Origin.RPC)
        if self._by_callback.pop(-1 - event_id, None) is None:
            raise error(Code.INTERNAL_ERROR, f"domain event {event_id} not registered", origin=Origin.RPC)

    def remove(self, family: Family, callback: int) -> None:
        """End a registration; the id of another family's is unknown here."""
        if callback < 0 or self._by_callback.get(callback, (None,))[0] is not family:
            name = _IDS[family][1]
            raise error(
                Code.INTERNAL_ERROR, f"{name} event callback {callback} not registered", origin=Origin.RPC
            )
        del self._by_callback[callback]

    def __len__(self) -> int:
        return len(self._by_callback)

    def packets(self, event: Encoded) -> Iterator[bytes]:
        """The packets this client gets for `event`: one per matching registration."""
        for callback, (family, event_id, key) in self._by_callback.items():
            if event_id == event.event_id and family is event.family and (key is None or key == event.key):
                old = callback < 0
                procedure = _OLD[event_id] if old else event.procedure
                body = event.body if old else callback.to_bytes(4, "big") + event.body
                yield packet(Program.REMOTE, 1, procedure, Type.MESSAGE, 0, Status.OK, body)

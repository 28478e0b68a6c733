"""What a driver reports: plain data, one class per event id of libvirt's families.

Each names the object it is about; numbers are those of libvirt's public headers. How they look on the wire is
a row in `hypervisor_shim.events`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from hypervisor_shim.driver.facts import DomainInfo, Lifecycle, MetadataKind


class Family(IntEnum):
    """Kinds of objects that events are about; a client registers per family and event id."""

    DOMAIN = 0
    NETWORK = 1
    POOL = 2
    NODE_DEVICE = 3
    SECRET = 4


@dataclass(frozen=True, slots=True)
class Event:
    """Anything that a client can register for."""


# ---- domains -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DomainEvent(Event):
    domain: DomainInfo


@dataclass(frozen=True, slots=True)
class LifecycleEvent(DomainEvent):
    """`detail` is the value of the matching *Detail enum of `facts`."""

    event: Lifecycle
    detail: int = 0


@dataclass(frozen=True, slots=True)
class HandoverEvent(DomainEvent):
    """The domain is another tenant's now. `was`: as it was before. Who may see it no longer is told that it
    is undefined, who may see it only now that it is defined, and nobody else anything."""

    was: DomainInfo


@dataclass(frozen=True, slots=True)
class RebootEvent(DomainEvent):
    """The guest was reset or restarted itself."""


@dataclass(frozen=True, slots=True)
class WatchdogEvent(DomainEvent):
    """`action`: 0 none, 1 pause, 2 reset, 3 power off, 4 shutdown, 5 debug, 6 inject NMI."""

    action: int


@dataclass(frozen=True, slots=True)
class IoErrorEvent(DomainEvent):
    """A disk failed a request. `action`: 0 none, 1 pause, 2 report. `reason`: "enospc" or ""."""

    path: str
    alias: str
    action: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class GraphicsEvent(DomainEvent):
    """A viewer of the screen. `phase`: 0 connected, 1 let in, 2 gone. Addresses are (family: 0 IPv4, 1 IPv6,
    2 unix; node; service). `subject`: who it is, (type, name), as far as `scheme` tells."""

    phase: int
    local: tuple[int, str, str]
    remote: tuple[int, str, str]
    scheme: str  # none, vnc …
    subject: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class BlockJobEvent(DomainEvent):
    """`type`: 1 pull, 2 copy, 3 commit, 4 active commit, 5 backup; `status`: 0 completed, 1 failed,
    2 cancelled, 3 ready. Clients register with the path (id 8) or with the target (id 16)."""

    path: str
    target: str
    type: int
    status: int


@dataclass(frozen=True, slots=True)
class DeviceAddedEvent(DomainEvent):
    alias: str


@dataclass(frozen=True, slots=True)
class DeviceRemovedEvent(DomainEvent):
    alias: str


@dataclass(frozen=True, slots=True)
class DeviceRemovalFailedEvent(DomainEvent):
    alias: str


@dataclass(frozen=True, slots=True)
class TunableEvent(DomainEvent):
    """Typed parameters `(name, tag, value)` that have changed."""

    params: Sequence[tuple[str, int, Any]]


@dataclass(frozen=True, slots=True)
class AgentLifecycleEvent(DomainEvent):
    """`state`: 1 connected, 2 disconnected; `reason`: 0 unknown, 1 domain started, 2 channel."""

    state: int
    reason: int = 0


@dataclass(frozen=True, slots=True)
class JobCompletedEvent(DomainEvent):
    params: Sequence[tuple[str, int, Any]]


@dataclass(frozen=True, slots=True)
class MetadataChangeEvent(DomainEvent):
    kind: MetadataKind
    uri: str | None = None


@dataclass(frozen=True, slots=True)
class BlockThresholdEvent(DomainEvent):
    target: str
    path: str | None
    threshold: int
    excess: int


# ---- other objects -------------------------------------------------------------------------------


class Defined(IntEnum):
    """What a lifecycle event of a network or a pool says."""

    DEFINED = 0
    UNDEFINED = 1
    STARTED = 2
    STOPPED = 3
    CREATED = 4  # pools: their place was made
    DELETED = 5  # pools: their place was removed


class Created(IntEnum):
    """What a lifecycle event of a node device says."""

    CREATED = 0
    DELETED = 1
    DEFINED = 2
    UNDEFINED = 3


@dataclass(frozen=True, slots=True)
class NetworkEvent(Event):
    name: str
    uuid: bytes
    event: Defined
    detail: int = 0


@dataclass(frozen=True, slots=True)
class NetworkMetadataEvent(Event):
    name: str
    uuid: bytes
    kind: MetadataKind
    uri: str | None = None


@dataclass(frozen=True, slots=True)
class PoolEvent(Event):
    name: str
    uuid: bytes
    event: Defined
    detail: int = 0


@dataclass(frozen=True, slots=True)
class PoolRefreshEvent(Event):
    name: str
    uuid: bytes


@dataclass(frozen=True, slots=True)
class NodeDeviceEvent(Event):
    name: str
    event: Created
    detail: int = 0


@dataclass(frozen=True, slots=True)
class NodeDeviceUpdateEvent(Event):
    name: str


@dataclass(frozen=True, slots=True)
class SecretEvent(Event):
    """`event`: 0 defined, 1 undefined."""

    uuid: bytes
    usage_type: int
    usage_id: str
    event: int
    detail: int = 0


@dataclass(frozen=True, slots=True)
class SecretValueEvent(Event):
    uuid: bytes
    usage_type: int
    usage_id: str


class EventSink(Protocol):
    """Where a driver reports what happened; to be called in the event loop's thread."""

    def event(self, event: Event) -> None: ...

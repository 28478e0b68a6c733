"""What an agent may ask of any NVMe/TCP target, ours or the kernel's: converge, and report.

The contract is declarative. Whoever implements it
- MUST, when `apply` returns, show exactly the subsystems, hosts, namespaces and listeners it was given, with
  the identity given there; when `apply` raises, what was there before stays as it was.
- MUST NOT disturb a namespace whose entry did not change: no reset, no lost connection, no failed command.
- MUST tell connected hosts of namespaces that came, went or changed size (asynchronous event 02h/00h).
- MUST end the associations of hosts that are no longer allowed.
- MAY leave a counter at 0 that it cannot know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgspec

from nicagent.storage.nvmetcp.config import TargetConfig


class NamespaceStatus(msgspec.Struct, frozen=True):
    """Counters since the target started; `first_read_time` in unix seconds, 0 before the first host read."""

    nsid: int
    uuid: str
    size: int  # bytes
    read_ops: int
    read_bytes: int
    write_ops: int
    write_bytes: int
    flush_ops: int
    write_zeroes_ops: int
    discard_ops: int
    errors: int
    first_read_time: float


class ControllerStatus(msgspec.Struct, frozen=True):
    """One association of a host; `queues` are queue ids, 0 is the admin queue."""

    cntlid: int
    hostnqn: str
    subnqn: str
    peer: str
    queues: list[int]
    kato: int  # milliseconds
    header_digest: bool
    data_digest: bool
    authenticated: bool = False  # by DH-HMAC-CHAP, on every queue


class SubsystemStatus(msgspec.Struct, frozen=True):
    """A subsystem and its namespaces."""

    nqn: str
    hosts: list[str]
    namespaces: list[NamespaceStatus]


class TargetStatus(msgspec.Struct, frozen=True):
    """The whole target. `connections` counts TCP connections, also those that have not connected yet."""

    pid: int
    listen: list[str]  # "host:port"
    connections: int
    controllers: list[ControllerStatus]
    subsystems: list[SubsystemStatus]


class Changes(msgspec.Struct, frozen=True):
    """What `apply` did, as `nqn` or `nqn/nsid`."""

    added: list[str]
    removed: list[str]
    changed: list[str]


class NvmeTarget(ABC):
    """See the module."""

    @abstractmethod
    async def apply(self, config: TargetConfig) -> Changes:
        """Converges to `config`. Raises NicagentError: a disk does not open, an address is taken."""

    @abstractmethod
    def status(self) -> TargetStatus:
        """What is there now. Never waits."""

    @abstractmethod
    async def close(self) -> None:
        """Takes everything down. Idempotent."""

"""What the target shows: subsystems and their namespaces with counters, and the disk behind each NSID."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from nicagent.storage.nvmetcp import config
from nicagent.storage.nvmetcp.auth import Requirement
from nicagent.storage.nvmetcp.backend import Backend


@dataclass(slots=True)
class Counters:
    """Since this process started. Times are unix seconds, 0 for never."""

    read_ops: int = 0
    read_bytes: int = 0
    write_ops: int = 0
    write_bytes: int = 0
    flush_ops: int = 0
    write_zeroes_ops: int = 0
    discard_ops: int = 0
    errors: int = 0
    first_read_time: float = 0.0

    def read(self, length: int) -> None:
        """Counts one read command."""
        if not self.read_ops:
            self.first_read_time = time.time()
        self.read_ops += 1
        self.read_bytes += length

    def outcome(self, error: Exception | None) -> None:
        """Counts how an operation ended."""
        if error is not None:
            self.errors += 1


@dataclass(slots=True)
class Namespace:
    """A disk under its NSID."""

    config: config.Namespace
    backend: Backend
    counters: Counters = field(default_factory=Counters)
    shift: int = 9  # log2 of the block size
    readonly: bool = False

    def __post_init__(self) -> None:
        self.shift = self.config.block_size.bit_length() - 1
        self.readonly = self.config.readonly

    @property
    def nsid(self) -> int:
        """The NSID."""
        return self.config.nsid

    @property
    def blocks(self) -> int:
        """Size in logical blocks."""
        return self.backend.size >> self.shift


@dataclass(slots=True)
class Subsystem:
    """An NVM subsystem: who may connect, and the namespaces by NSID."""

    config: config.Subsystem
    namespaces: dict[int, Namespace]

    @property
    def nqn(self) -> str:
        """The subsystem NQN."""
        return self.config.nqn

    def allows(self, hostnqn: str) -> bool:
        """Whether this host may connect."""
        return hostnqn in self.config.hosts

    def requirement(self) -> Requirement | None:
        """What a host has to prove when it connects now, None for nothing."""
        return self.config.auth.requirement() if self.config.auth is not None else None


@dataclass(slots=True)
class Catalogue:
    """All that a host can find here."""

    subsystems: dict[str, Subsystem] = field(default_factory=dict)  # by NQN
    listeners: list[config.Listen] = field(default_factory=list)  # port 0 is shown as the port it became
    generation: int = 0  # of the discovery log

    def seen(self) -> list[object]:
        """What the discovery log is made of, to be compared."""
        return [*((one.nqn, one.config.hosts) for one in self.subsystems.values()), *self.listeners]

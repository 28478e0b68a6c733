"""Which ports were asked for, and how their devices were found: one small file in the run directory.

It says what the agent wants, so that a new agent knows the ports of every host before it is asked again; what
*is*, the kernel says. Both vanish together when the machine restarts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from nicagent.errors import Kind, NicagentError
from nicagent.files import make_private_directory, replace_private
from nicagent.model import PortBinding


@dataclass(frozen=True)
class Found:
    """A device as it was before it became a port, and as it is left afterwards."""

    mtu: int
    up: bool


@dataclass
class Record:
    """The ports of every host, and the former state of every device that is or was about to be a port."""

    ports: dict[str, tuple[PortBinding, ...]] = field(default_factory=dict)
    found: dict[str, Found] = field(default_factory=dict)


def load(path: Path) -> Record:
    """Read the record; an absent file is an empty one. Raises INTERNAL if it cannot be understood."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return Record()
    except (OSError, msgspec.DecodeError) as e:
        raise NicagentError(
            Kind.INTERNAL,
            f"cannot read the record of ports {path}: {e}",
            "remove it, then start the agent again",
        ) from None


def save(path: Path, record: Record) -> None:
    """Replace the record in one step, so that a death leaves the old or the new one."""
    make_private_directory(path.parent)
    replace_private(path, msgspec.json.encode(record))

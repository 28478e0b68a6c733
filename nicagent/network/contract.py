"""What a host's network is: exactly these ports, each on its segment, each guarded.

Declarative like storage. An implementation **must**

- make `present(bindings)` idempotent and disturb no port that is already as asked;
- open a port only after its guard is in place, and take the guard away only after the port is closed;
- let a port send only with its own MAC and IPv4 address (ARP included), serve no DHCP from it, and keep its
  own DHCP answers from leaving the agent;
- hold a port to its own filter as well, where it names one that is more than that (`filters.Filters`), from
  before it opens, and to what that filter says by now once `refilter` returns;
- hold a port to its rates, each direction for itself, from before it opens;
- answer the host's DHCP on the agent: the one address of its binding, the segment's MTU;
- survive the agent: kernel state stays when the agent dies, and is found again.

Errors: NOT_FOUND (segment, device, filter), INVALID and UNSUPPORTED (a filter and its variables), UNAVAILABLE
(missing program, no privilege, kernel lacks the feature).
"""

from __future__ import annotations

import abc
import re
from collections.abc import Sequence

from nicagent.model import PortBinding, PortStatus

# The address of the agent's DHCP responder on every segment of every agent. Link-local (RFC 3927 §2), so
# that it takes none of the tenant's addresses; the same everywhere, so that a host keeps it when it moves to
# another agent; and therefore never seen on an overlay. 169.254.169.254 is left to the metadata service.
RESPONDER = "169.254.169.253"
RATE_MAX = (1 << 32) - 1  # bytes a second, and of a burst, as tc's messages have them: some 34 Gbit/s


_LABEL = re.compile(r"[^A-Za-z0-9-]+")


def hostname(name: str) -> str:
    """What DHCP tells a host it is called: the nearest DNS label to a domain's name (RFC 1123 §2.1), empty
    if nothing is left of it.
    """
    return _LABEL.sub("-", name)[:63].strip("-")


def bridge_name(vni: int) -> str:
    """The agent's bridge of a segment, as clients are told it."""
    return f"na-br{vni}"


class NetworkDriver(abc.ABC):
    """The overlay side of one agent: all its segments, and the ports of all its hosts."""

    @abc.abstractmethod
    async def start(self) -> None:
        """Read what is there. Raises UNAVAILABLE when the kernel or the privileges do not allow the work."""

    @abc.abstractmethod
    async def present(self, host: str, bindings: Sequence[PortBinding]) -> None:
        """Make exactly these the ports of `host`; segments come up with their first port."""

    @abc.abstractmethod
    async def withdraw(self, host: str) -> None:
        """Close every port of `host`; a segment without ports goes down. Idempotent."""

    @abc.abstractmethod
    async def status(self, host: str) -> tuple[PortStatus, ...]:
        """Facts and counters of the ports of `host`, from the host's point of view."""

    @abc.abstractmethod
    async def refilter(self) -> None:
        """Filters have changed: bring the rules of all ports to what theirs say by now, in one step."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of sockets; ports go on carrying traffic."""

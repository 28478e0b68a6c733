"""What talking to a host's operating system is: commands of a stock qemu-guest-agent, over whatever channel.

The tenant owns the other end. An implementation **must**

- believe nothing: bound every answer in size and time, check its shape, and be ready for none at all;
- put commands one after the other, whoever asks, and give no answer to a question that did not ask for it;
- never hold up the agent: an OS that is silent costs the asker his deadline and nobody else anything.

Errors: GuestSilent (a channel, and nobody answers in time), GuestRefused (the agent answers with an error).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nicagent.errors import Kind, NicagentError

Answer = TypeVar("Answer")
ANSWER_SECONDS = 5.0  # an agent that works answers in milliseconds; freezing file systems takes longer


class GuestSilent(NicagentError):
    """Nobody answers at the other end of the channel, or nothing that could be understood."""

    def __init__(self, message: str) -> None:
        super().__init__(Kind.UNAVAILABLE, message)


class GuestRefused(NicagentError):
    """The guest's agent will not, or cannot. `unknown`: it has no such command, or it is switched off."""

    def __init__(self, message: str, *, unknown: bool = False) -> None:
        super().__init__(Kind.UNSUPPORTED if unknown else Kind.UNAVAILABLE, message)
        self.unknown = unknown


class GuestLink(abc.ABC):
    """The channel to one host's operating system."""

    connected: bool = False  # whether its agent answered the last time that somebody asked

    @abc.abstractmethod
    async def ask(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        kind: type[Answer],
        seconds: float = ANSWER_SECONDS,
    ) -> Answer:
        """Run one command; its answer, of the shape `kind` (what msgspec can check)."""

    @abc.abstractmethod
    async def tell(self, command: str, arguments: Mapping[str, Any] | None = None) -> None:
        """Run a command that is not answered when it works (shutdown)."""

    @abc.abstractmethod
    async def ask_raw(self, text: str, seconds: float) -> str:
        """A command as JSON text, and the answer as JSON text."""

    @abc.abstractmethod
    def watch(self, watcher: Callable[[bool], None]) -> None:
        """Have `watcher` called whenever `connected` changes, in the event loop."""

    @abc.abstractmethod
    async def run(self) -> None:
        """Look after the channel until cancelled: find out whether somebody answers."""

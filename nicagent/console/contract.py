"""What a host's screen and keyboard are to those who look and type from afar."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum

from nicagent.model import Display, DisplayBinding


@dataclass(frozen=True)
class Picture:
    """The screen at one moment."""

    mime: str  # image/png, image/jpeg, image/x-portable-pixmap
    data: bytes


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Screen(abc.ABC):
    """A capture of what the host shows. Errors: UNAVAILABLE (no capture source, no picture in time)."""

    @property
    @abc.abstractmethod
    def streams(self) -> bool:
        """Whether the screen can be looked at live, not only picture by picture."""

    @abc.abstractmethod
    async def picture(self) -> Picture: ...

    @abc.abstractmethod
    async def stream(self) -> Stream:
        """A connection to the screen's RFB server, past its opening: what is read is its ServerInit, what is
        written its client's messages (RFC 6143, 7.3.2 on). The caller closes it.

        The server is to share its screen, and to ask for no password: it is the agent's alone. Raises
        UNSUPPORTED where there is none, UNAVAILABLE while the screen is dark.
        """


class Phase(IntEnum):
    """How far a viewer is; libvirt's numbers."""

    CONNECT = 0
    INITIALIZE = 1  # it is let in and sees the screen
    DISCONNECT = 2


@dataclass(frozen=True)
class Viewing:
    """Who looks: addresses and ports of both ends, and how a viewer shows that it may."""

    local: tuple[str, int]
    remote: tuple[str, int]
    scheme: str  # none, vnc


Watcher = Callable[[str, Phase, Viewing], None]  # host, phase, who


class Displays(abc.ABC):
    """The screens of one agent's hosts, as viewers find them at TCP ports. An implementation **must**

    - make `present` idempotent, and disturb no viewer where nothing but the password has changed;
    - let nobody in who lacks the password that the binding asks for;
    - bound viewers, what is kept for each, and the time that one takes to show that it may look;
    - end every viewer at `withdraw`.

    Nothing of it outlives the agent: `present` is called again after a restart, with the same binding.
    """

    @abc.abstractmethod
    def shows(self, host: str) -> bool:
        """Whether the screen of this host can be shown."""

    @abc.abstractmethod
    async def bind(self, host: str, display: Display, taken: Collection[int]) -> DisplayBinding:
        """Where this display is to be: at the port that it names, else at a free one that is none of `taken`.

        Raises UNSUPPORTED (an address or a way of showing that is not to be had here), UNAVAILABLE (the port
        is another's), NO_SPACE (no port left).
        """

    @abc.abstractmethod
    async def present(self, host: str, binding: DisplayBinding | None) -> None:
        """Show the screen there and nowhere else. Raises UNAVAILABLE when the port is another's."""

    @abc.abstractmethod
    async def withdraw(self, host: str) -> None:
        """Show it no longer. Idempotent."""

    @abc.abstractmethod
    def watch(self, watcher: Watcher) -> None:
        """Have `watcher` called whenever a viewer comes, is let in, and goes."""

    @abc.abstractmethod
    async def close(self) -> None:
        """End all of them."""


class Keyboard(abc.ABC):
    """A keyboard that the host believes to be plugged in. Errors: UNAVAILABLE, INVALID (no such key)."""

    @abc.abstractmethod
    async def press(self, keys: Sequence[int], seconds: float) -> None:
        """Hold these keys down together, then let them go, whatever happens meanwhile.

        Keys are usages of the USB HID keyboard page (HID Usage Tables 1.12, section 10): at most six, and any
        number of modifiers.
        """

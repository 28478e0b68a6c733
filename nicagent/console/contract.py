"""What a host's screen and keyboard are to those who look and type from afar."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """The screen at one moment."""

    mime: str  # image/png, image/jpeg, image/x-portable-pixmap
    data: bytes


class Screen(abc.ABC):
    """A capture of what the host shows. Errors: UNAVAILABLE (no capture source, no picture in time)."""

    @abc.abstractmethod
    async def picture(self) -> Picture: ...


class Keyboard(abc.ABC):
    """A keyboard that the host believes to be plugged in. Errors: UNAVAILABLE, INVALID (no such key)."""

    @abc.abstractmethod
    async def press(self, keys: Sequence[int], seconds: float) -> None:
        """Hold these keys down together, then let them go, whatever happens meanwhile.

        Keys are usages of the USB HID keyboard page (HID Usage Tables 1.12, section 10): at most six, and any
        number of modifiers.
        """

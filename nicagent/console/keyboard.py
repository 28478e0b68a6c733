"""A host's keyboard by boot-protocol reports: a USB HID gadget (/dev/hidg0), or a socket that takes the same.

A report is eight bytes: the modifiers held, a zero, and up to six keys (USB HID 1.11, appendix B.1).
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from nicagent.console.contract import Keyboard
from nicagent.errors import Kind, NicagentError

FIRST_MODIFIER, LAST_MODIFIER = 0xE0, 0xE7
KEYS_AT_ONCE = 6
NOTHING = bytes(8)
SECONDS = 5.0  # for the host to take a report

# Linux's key codes (input-event-codes.h) in the order of HID usages: from 0x04, and modifiers from 0xE0.
_IN_USAGE_ORDER = (
    30, 48, 46, 32, 18, 33, 34, 35, 23, 36, 37, 38, 50,  # a-m
    49, 24, 25, 16, 19, 31, 20, 22, 47, 17, 45, 21, 44,  # n-z
    2, 3, 4, 5, 6, 7, 8, 9, 10, 11,  # 1-0
    28, 1, 14, 15, 57, 12, 13, 26, 27, 43, 0, 39, 40, 41, 51, 52, 53, 58,
    59, 60, 61, 62, 63, 64, 65, 66, 67, 68, 87, 88,  # F1-F12
    99, 70, 119, 110, 102, 104, 111, 107, 109, 106, 105, 108, 103,
    69, 98, 55, 74, 78, 96, 79, 80, 81, 75, 76, 77, 71, 72, 73, 82, 83, 86, 127,
)  # fmt: skip
_MODIFIERS = (29, 42, 56, 125, 97, 54, 100, 126)
OF_LINUX: Mapping[int, int] = {
    **{code: 0x04 + place for place, code in enumerate(_IN_USAGE_ORDER) if code},
    **{code: FIRST_MODIFIER + place for place, code in enumerate(_MODIFIERS)},
}


def report(keys: Sequence[int]) -> bytes:
    """The report of these usages held together. Raises INVALID."""
    modifiers, others = 0, []
    for key in dict.fromkeys(keys):
        if FIRST_MODIFIER <= key <= LAST_MODIFIER:
            modifiers |= 1 << key - FIRST_MODIFIER
        elif 4 <= key < FIRST_MODIFIER:
            others.append(key)
        else:
            raise NicagentError(Kind.INVALID, f"0x{key:x} is no key of a USB keyboard")
    if len(others) > KEYS_AT_ONCE:
        raise NicagentError(Kind.INVALID, f"a USB keyboard reports at most {KEYS_AT_ONCE} keys at once")
    return bytes([modifiers, 0, *others]).ljust(8, b"\0")


class HidKeyboard(Keyboard):
    def __init__(self, host: str, path: Path) -> None:
        self._host = host
        self._path = path
        self._turn = asyncio.Lock()

    async def press(self, keys: Sequence[int], seconds: float) -> None:
        down = report(keys)
        async with self._turn:
            try:
                async with asyncio.timeout(SECONDS):
                    writer = await self._open()
            except (TimeoutError, OSError) as error:
                raise NicagentError(
                    Kind.UNAVAILABLE,
                    f"the keyboard of host {self._host} at {self._path} cannot be reached: {error}",
                    "see that the HID gadget is there and the host is on",
                ) from None
            try:
                writer.write(down)
                await asyncio.sleep(seconds)
            finally:
                writer.write(NOTHING)  # no key is left held, also when the client is gone
                writer.close()

    async def _open(self) -> asyncio.WriteTransport:
        """A socket, or the character device of a gadget: one `write` is one report."""
        loop = asyncio.get_running_loop()
        if stat.S_ISSOCK(self._path.stat().st_mode):
            transport, _ = await loop.create_unix_connection(asyncio.Protocol, str(self._path))
            return transport
        descriptor = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        pipe, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(descriptor, "wb", buffering=0))
        return pipe

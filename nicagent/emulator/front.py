"""What is plugged into the front of a chassis: a capture card at its screen, and a USB keyboard.

Both speak as the real ones do: the card as ustreamer, `GET /snapshot` over a unix socket; the keyboard as a
USB gadget's /dev/hidg0, boot-protocol reports of eight bytes (USB HID 1.11, appendix B.1).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from aiohttp import web

from nicagent.emulator.listener import Listener

REPORT = 8  # bytes
ROLL_OVER = 0x01  # a report of too many keys at once: means nothing
FIRST_KEY, FIRST_MODIFIER = 0x04, 0xE0

# QEMU's names of keys (QAPI's QKeyCode) in the order of HID usages, from 0x04 on; "-" where it has none.
QCODES = """
    a b c d e f g h i j k l m n o p q r s t u v w x y z 1 2 3 4 5 6 7 8 9 0
    ret esc backspace tab spc minus equal bracket_left bracket_right backslash backslash semicolon apostrophe
    grave_accent comma dot slash caps_lock f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 f11 f12
    print scroll_lock pause insert home pgup delete end pgdn right left down up
    num_lock kp_divide kp_multiply kp_subtract kp_add kp_enter
    kp_1 kp_2 kp_3 kp_4 kp_5 kp_6 kp_7 kp_8 kp_9 kp_0 kp_decimal less compose
"""
MODIFIERS = "ctrl shift alt meta_l ctrl_r shift_r alt_r meta_r"

KeyEvent = tuple[str, bool]  # its name, and whether it goes down


def names(report: bytes) -> frozenset[str]:
    """The keys that a report says are held down."""
    keys, modifiers = QCODES.split(), MODIFIERS.split()
    held = {modifiers[bit] for bit in range(8) if report[0] & 1 << bit}
    held |= {keys[usage - FIRST_KEY] for usage in report[2:] if FIRST_KEY <= usage < FIRST_KEY + len(keys)}
    return frozenset(held)


def changes(before: frozenset[str], now: frozenset[str]) -> list[KeyEvent]:
    """What goes up, then what goes down; modifiers down first."""
    modifiers = MODIFIERS.split()
    down = sorted(now - before, key=lambda key: (key not in modifiers, key))
    return [(key, False) for key in sorted(before - now)] + [(key, True) for key in down]


def serve_keyboard(path: Path, type_: Callable[[Sequence[KeyEvent]], Awaitable[None]]) -> Listener:
    """Takes reports on a unix socket, `async with` it."""

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held: frozenset[str] = frozenset()
        while True:
            report = await reader.readexactly(REPORT)
            if ROLL_OVER in report[2:]:
                continue
            now = names(report)
            if events := changes(held, now):
                await type_(events)
            held = now

    return Listener(path, client)


class CaptureServer:
    """`async with` it: gives a picture to whoever asks, 503 while the screen is dark."""

    def __init__(self, path: Path, look: Callable[[], Awaitable[bytes | None]]) -> None:
        self._path = path
        self._look = look
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> CaptureServer:
        app = web.Application()
        app.add_routes([web.get("/snapshot", self._snapshot)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        await web.UnixSite(self._runner, str(self._path)).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _snapshot(self, request: web.Request) -> web.Response:
        picture = await self._look()
        if picture is None:
            return web.Response(status=503, text="no signal")
        return web.Response(body=picture, content_type="image/png")

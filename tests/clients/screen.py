"""A screen without glass: Xvfb, what is on it, and a hand at its keyboard and mouse."""

from __future__ import annotations

import os
import struct
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.clients.programs import environment, eventually, program

_WIDTH, _HEIGHT = 1280, 900
_XWD_WORDS = 25  # of the header of Xvfb's frame buffer file, X11/XWDFile.h
_COLOUR_SIZE = 12


@dataclass(frozen=True)
class Screen:
    display: str
    home: Path

    def rows(self) -> list[bytes]:
        """The picture, a row a bytes object, four bytes a pixel: blue, green, red, unused."""
        raw = (self.home / "Xvfb_screen0").read_bytes()
        words = struct.unpack_from(f">{_XWD_WORDS}I", raw)
        start, width, height, stride, colours = words[0], words[4], words[5], words[12], words[19]
        first = start + colours * _COLOUR_SIZE
        return [raw[first + y * stride : first + y * stride + width * 4] for y in range(height)]

    def colours(self, left: int, top: int, width: int, height: int) -> int:
        """How many different colours are in a part of the picture."""
        part = b"".join(row[left * 4 : (left + width) * 4] for row in self.rows()[top : top + height])
        return len({part[i : i + 3] for i in range(0, len(part), 4)})

    def save(self, path: Path) -> None:
        """The picture as a PNG, for a person's eye."""
        lines = []
        for row in self.rows():
            rgb = bytearray(len(row) // 4 * 3)
            rgb[0::3], rgb[1::3], rgb[2::3] = row[2::4], row[1::4], row[0::4]
            lines.append(b"\0" + bytes(rgb))
        header = struct.pack(">IIBBBBB", len(lines[0]) // 3, len(lines), 8, 2, 0, 0, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + _chunk(b"IHDR", header)
            + _chunk(b"IDAT", zlib.compress(b"".join(lines)))
            + _chunk(b"IEND", b"")
        )

    def do(self, *words: str) -> str:
        """One command of xdotool."""
        done = subprocess.run(
            [program("xdotool"), *words],
            env=environment(self.home, {"DISPLAY": self.display}),
            capture_output=True,
            text=True,
            timeout=30,
        )
        return done.stdout.strip()

    def click(self, x: int, y: int) -> None:
        self.do("mousemove", str(x), str(y), "click", "1")

    def window(self, name: str) -> bool:
        """Whether a window of that name is shown."""
        return bool(self.do("search", "--onlyvisible", "--name", name))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@contextmanager
def screen(home: Path) -> Iterator[Screen]:
    """Xvfb on the first display that is free, until the block ends."""
    read, write = os.pipe()
    argv = [
        str(program("Xvfb")), "-displayfd", str(write), "-screen", "0", f"{_WIDTH}x{_HEIGHT}x24",
        "-nolisten", "tcp", "-fbdir", str(home),
    ]  # fmt: skip
    with (home / "xvfb.log").open("wb") as log:
        server = subprocess.Popen(argv, pass_fds=[write], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    os.close(write)
    try:
        with os.fdopen(read) as line:
            number = line.readline().strip()
        assert number, f"Xvfb did not start: {(home / 'xvfb.log').read_text()}"
        shown = Screen(f":{number}", home)
        eventually((home / "Xvfb_screen0").exists, 5, "a picture of Xvfb")
        yield shown
    finally:
        server.terminate()
        server.wait(10)

"""A server that serves nothing but writes down what it is asked: which procedure goes with which function."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hypervisor_shim.errors import LibvirtError, rpc_error
from hypervisor_shim.frame import HEADER, HEADER_SIZE, Program, Status, Type, error_body, packet

from .serving import number, text

UUID = bytes(range(1, 17))
DOMAIN = text("d") + UUID + number(7)

#: What lets a client come in and gives it one object of each kind; every other call gets an error.
_ANSWERS: dict[int, bytes] = {
    1: b"",
    2: b"",
    23: DOMAIN,
    46: text("n") + UUID,
    66: number(1) + number(0),
    84: text("p") + UUID,
    97: text("p") + text("v") + text("/v"),
    113: text("dev"),
    128: text("i") + text("52:54:00:00:00:01"),
    141: UUID + number(1) + text("/v"),
    175: text("f") + UUID,
    189: text("s") + DOMAIN,
    397: text("tap0") + text("f"),
    405: text("n") + UUID + UUID,
    **dict.fromkeys((105, 106, 167, 168), number(0)),
    **dict.fromkeys((313, 316, 368, 374, 380), number(9)),
    **dict.fromkeys((314, 317, 369, 375, 381, 360, 361), b""),
    415: text("c") + DOMAIN,
}
_SUPPORTS_FEATURE = 60
_CALL_WITH_FDS = 4  # of the packets' types


class Recorder:
    """`features`: what it says to every question for a feature; with 0 a client falls back on old calls.
    `asked`: (program, procedure) of each call since the last `clear`."""

    def __init__(self, path: Path, features: int) -> None:
        self.path = path
        self.asked: list[tuple[int, int]] = []
        self._answers = {**_ANSWERS, _SUPPORTS_FEATURE: number(features)}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()

    def serve(self) -> None:
        with suppress(OSError):  # closed: the end
            while True:
                threading.Thread(target=self._answer, args=(self._listener.accept()[0],), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _answer(self, sock: socket.socket) -> None:
        refused = error_body(LibvirtError(rpc_error("").code, "written down"))
        with sock, sock.makefile("rb") as packets:
            while len(head := packets.read(HEADER_SIZE)) == HEADER_SIZE:
                size, program, version, procedure, type_, serial, _ = HEADER.unpack(head)
                body = packets.read(size - HEADER_SIZE)
                if type_ == _CALL_WITH_FDS:  # a byte follows for each descriptor
                    packets.read(int.from_bytes(body[:4], "big"))
                if program == Program.KEEPALIVE or type_ not in (Type.CALL, _CALL_WITH_FDS):
                    continue
                self.asked.append((program, procedure))
                known = self._answers.get(procedure) if program == Program.REMOTE else None
                status = Status.ERROR if known is None else Status.OK
                answer = refused if known is None else known
                sock.sendall(packet(program, version, procedure, Type.REPLY, serial, status, answer))


@contextmanager
def recording(path: Path, features: int = 1) -> Iterator[Recorder]:
    recorder = Recorder(path, features)
    thread = threading.Thread(target=recorder.serve)
    thread.start()
    try:
        yield recorder
    finally:
        recorder.close()
        thread.join(10)

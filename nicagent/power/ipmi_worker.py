"""One process that talks to one BMC: JSON lines in, JSON lines out, one IPMI session for all of its life.

pyghmi blocks, keeps state in its module, and cannot be trusted with a second session to the same BMC in one
process. So it gets a process of its own, which the driver (`ipmi.py`) kills without regret when a deadline is
missed. It holds nothing worth keeping.

Its standard input is a socket, used both ways:

    → {"address": "10.0.0.9", "port": 623, "user": "admin", "password_file": "/etc/…"}     once, first
    → {"id": 1, "op": "status"}
    ← {"id": 1, "ok": true, "power": "on"}
    → {"id": 2, "op": "soft"}
    ← {"id": 2, "ok": false, "fault": "unsupported", "text": "the BMC refuses soft: …"}

Ops: status, on, off, reset, soft, interrupt. Faults: `silent` (no answer, session lost), `denied` (login or
privilege), `unsupported`, `state` (not in the host's present state), `refused` (anything else that the BMC
says). After `silent` and `denied` the process ends: its session is worth nothing any more. When its socket is
closed it logs out and ends, within EXIT_SECONDS also while pyghmi blocks.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXIT_SECONDS = 1.5
KEEPALIVE_SECONDS = (
    5.0  # between looks at the session's own keep-alive; BMCs forget a session after about 60 s
)
ONCE_SECONDS = 30.0  # for the answer to a command that is not repeated; the driver's deadline is shorter
LINE_LIMIT = 65536
NO_SESSION = "no answer to the login"
SILENCE = ("timeout", "timed out", "no longer connected", NO_SESSION)

# IPMI 2.0, network function Chassis (00h): Get Chassis Status (28.2), Chassis Control (28.3).
OPS: Mapping[str, tuple[int, tuple[int, ...]]] = {
    "status": (0x01, ()),
    "off": (0x02, (0x00,)),
    "on": (0x02, (0x01,)),
    "reset": (0x02, (0x03,)),
    "soft": (0x02, (0x05,)),
    "interrupt": (0x02, (0x04,)),  # pulse diagnostic interrupt
}

# Sent once and never again: a second copy of these does harm where a BMC does not notice that it is a copy (a
# second ACPI button press makes some systems switch off at once). A lost datagram is then a missed deadline.
ONCE = frozenset({"reset", "soft", "interrupt"})

# Completion codes (IPMI 2.0, table 5-2) that mean something to us.
FAULTS: Mapping[int, str] = {
    0xC1: "unsupported",  # invalid command
    0xC9: "unsupported",  # parameter out of range
    0xCC: "unsupported",  # invalid data field
    0xD4: "denied",  # insufficient privilege
    0xD5: "state",  # not supported in present state
    0xD6: "unsupported",  # sub-function disabled
    0xFFFF: "silent",  # pyghmi's own: timed out
}

Message = dict[str, Any]


class Trouble(Exception):
    """What went wrong, as the driver is told."""

    def __init__(self, fault: str, text: str) -> None:
        super().__init__(text)
        self.fault = fault


class Bmc:
    """The session, made on first use."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._session: Any = None

    def do(self, op: str) -> Message:
        """Run one op. Raises Trouble."""
        command, data = OPS[op]
        import pyghmi.exceptions

        try:
            if self._session is None:
                self._session = self._login()
            send = self._send_once if op in ONCE else self._session.raw_command
            answer = send(netfn=0x00, command=command, data=data)
        except pyghmi.exceptions.IpmiException as error:
            # pyghmi tells a refused login from a dead BMC by its words only, and has none for a login to
            # which nothing came at all.
            text = str(error.args[0] or NO_SESSION) if error.args else NO_SESSION
            raise Trouble("silent" if any(word in text for word in SILENCE) else "denied", text) from None
        except OSError as error:
            raise Trouble("silent", f"{error.strerror or error}") from None
        if answer.get("code"):
            text = str(answer.get("error", ""))
            raise Trouble(FAULTS.get(answer["code"], "refused"), f"{op}: {text or hex(answer['code'])}")
        if op != "status":
            return {}
        return {"power": "on" if answer["data"][0] & 1 else "off"}  # bit 0: power is on

    def keep_alive(self) -> None:
        """Let pyghmi send its keep-alive when it is due."""
        if self._session is not None:
            type(self._session).wait_for_rsp(timeout=0)

    def logout(self) -> None:
        if self._session is not None:
            self._session.logout()

    def _send_once(self, netfn: int, command: int, data: tuple[int, ...]) -> Message:
        """raw_command without retransmission, which pyghmi only offers without waiting for the answer."""
        session = self._session
        answers: list[Message] = []
        session.raw_command(netfn=netfn, command=command, data=data, retry=False, callback=answers.append)
        until = time.monotonic() + ONCE_SECONDS
        while not answers and time.monotonic() < until:
            type(session).wait_for_rsp(timeout=until - time.monotonic())
        session.incommand = False  # what its documentation asks of whoever brings a callback
        while session.evq:
            session.evq.popleft().set()
        if not answers:
            raise Trouble("silent", f"no answer within {ONCE_SECONDS:g} s")
        return answers[0]

    def _login(self) -> Any:
        # The session alone, not pyghmi.ipmi.command: that imports every vendor's extensions, 10 MB a worker.
        from pyghmi.ipmi.private.session import Session

        settings = self._settings
        return Session(
            bmc=settings["address"],
            userid=settings["user"],
            password=_first_line(Path(settings["password_file"])),
            port=settings["port"],
        )


def _first_line(path: Path) -> str:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise Trouble("denied", f"cannot read the password file {path}: {reason}") from None
    if not lines or not lines[0]:
        raise Trouble("denied", f"the password file {path} is empty")
    return lines[0]


def serve(channel: socket.socket) -> None:
    """Answer requests until the other end closes."""
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(channel, lines), name="requests", daemon=True).start()
    first = lines.get()
    if first is None:
        return
    bmc = Bmc(json.loads(first))
    while True:
        try:
            line = lines.get(timeout=KEEPALIVE_SECONDS)
        except queue.Empty:
            bmc.keep_alive()
            continue
        if line is None:
            bmc.logout()
            return
        request = json.loads(line)
        try:
            answer: Message = {"ok": True, **bmc.do(request["op"])}
        except Trouble as trouble:
            answer = {"ok": False, "fault": trouble.fault, "text": str(trouble)}
        channel.sendall(json.dumps({"id": request["id"], **answer}).encode() + b"\n")
        if answer.get("fault") in ("silent", "denied"):
            return


def _read(channel: socket.socket, lines: queue.SimpleQueue[bytes | None]) -> None:
    try:
        with channel.makefile("rb") as stream:
            while line := stream.readline(LINE_LIMIT):
                lines.put(line)
    except OSError:
        pass
    lines.put(None)
    # The agent is gone. pyghmi may be waiting for a dead BMC in the other thread: it is not asked.
    threading.Event().wait(EXIT_SECONDS)
    os._exit(0)


def main() -> None:
    with socket.socket(fileno=0) as channel:
        try:
            serve(channel)
        except (OSError, ValueError, KeyError) as error:  # the agent is gone, or is not an agent
            print(f"ipmi worker: {type(error).__name__}: {error}", file=sys.stderr)
    os._exit(0)  # pyghmi's threads have nothing to say any more


if __name__ == "__main__":
    main()

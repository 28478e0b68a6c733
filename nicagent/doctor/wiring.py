"""What is wired to a host: lines, a BMC, ttys and sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from importlib.metadata import entry_points
from pathlib import Path

from nicagent.config import IpmiPower
from nicagent.doctor.check import Check

BMC_SECONDS = 2.0  # for an answer that takes milliseconds

# IPMI 2.0 §13.1.3 RMCP header, §13.6 session-less packet, §22.13 Get Channel Authentication Capabilities: the
# one question that every BMC answers before a login.
BMC_QUESTION = bytes.fromhex("0600ff07 00 00000000 00000000 09 20 18 c8 81 00 38 8e 04 b5")
RMCP_VERSION = b"\x06\x00"


def gpio(subject: str, pins: str) -> Check:
    """Whether the chip can be opened. Its lines are not looked at: reading one claims it."""
    mend = "see docs/config.md, hosts.NAME.power.pins"
    if pins.startswith("socket:"):
        path = pins.removeprefix("socket:")
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.settimeout(1.0)
            try:
                sock.connect(path)
            except OSError as e:
                return Check(
                    "broken", subject, f"no lines at {path}: {e.strerror or e}", "start the chassis; " + mend
                )
        return Check("ok", subject, f"the lines of {path} answer")
    if pins == "auto" or pins.startswith("/dev/"):
        chips = [Path(pins)] if pins != "auto" else sorted(Path("/dev").glob("gpiochip*"))
        if not any(chip.exists() for chip in chips):
            return Check(
                "broken", subject, f"there is no {'/dev/gpiochip*' if pins == 'auto' else pins}", mend
            )
        if not any(os.access(chip, os.R_OK | os.W_OK) for chip in chips):
            return Check(
                "broken", subject, f"{chips[0]} may not be used by this user", "add it to group gpio"
            )
        return Check("ok", subject, ", ".join(map(str, chips)))
    if not entry_points(group="gpiozero_pin_factories", name=pins):
        return Check("broken", subject, f"there is no pin factory {pins!r}", mend)
    return Check("ok", subject, f"gpiozero's pin factory {pins}")


def password(subject: str, path: Path) -> Check:
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            empty = not file.readline(4096).strip()
    except OSError as e:
        return Check(
            "broken", subject, f"cannot read {path}: {e.strerror}", "write the password to its first line"
        )
    if empty:
        return Check("broken", subject, f"the first line of {path} is empty", "write the password to it")
    if mode & stat.S_IROTH:
        return Check("broken", subject, f"{path} can be read by everybody", f"chmod 600 {path}")
    return Check("ok", subject, str(path))


def bmc(subject: str, power: IpmiPower) -> Check:
    """One packet that needs no session, asked again each half second."""
    where = f"{power.address} UDP port {power.port}"
    mend = "check its cable and address, and that IPMI over LAN is switched on in it"
    try:
        found = socket.getaddrinfo(power.address, power.port, type=socket.SOCK_DGRAM)[0]
    except OSError as e:
        return Check(
            "broken", subject, f"{power.address} is no address: {e.strerror}", "mend its address key"
        )
    end = time.monotonic() + BMC_SECONDS
    with contextlib.closing(socket.socket(found[0], socket.SOCK_DGRAM)) as sock:
        sock.settimeout(0.5)
        try:
            sock.connect(found[4])
            while time.monotonic() < end:
                with contextlib.suppress(TimeoutError):
                    began = time.monotonic()
                    sock.send(BMC_QUESTION)
                    if sock.recv(512)[:2] == RMCP_VERSION:
                        took = 1000 * (time.monotonic() - began)
                        return Check("ok", subject, f"{where} answers in {took:.0f} ms")
                    return Check(
                        "broken", subject, f"what answers at {where} is no BMC", "mend its address key"
                    )
        except OSError as e:
            return Check("broken", subject, f"no BMC at {where}: {e.strerror or e}", mend)
    return Check("broken", subject, f"{where} is silent for {BMC_SECONDS:g} s", mend)


def wire(subject: str, path: Path) -> Check:
    mend = "start the chassis, plug the adapter in, or mend its path key"
    try:
        mode = path.stat().st_mode
    except OSError as e:
        return Check("broken", subject, f"{path}: {e.strerror}", mend)
    if not (stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)):
        return Check("broken", subject, f"{path} is neither a tty nor a socket", mend)
    if not os.access(path, os.R_OK | os.W_OK):
        return Check("broken", subject, f"{path} may not be used by this user", "add it to group dialout")
    return Check("ok", subject, str(path))

"""Sockets that systemd opened before the server ran (sd_listen_fds(3))."""

from __future__ import annotations

import socket
from collections.abc import Mapping

_FIRST = 3  # the first descriptor that is handed over


def handed_over(environment: Mapping[str, str], pid: int) -> dict[str, list[socket.socket]]:
    """The listening sockets that `environment` hands to process `pid`, by their names (`FileDescriptorName=`
    of the unit). None when it speaks to another process or not at all. ValueError: it is malformed."""
    if environment.get("LISTEN_PID") != str(pid):
        return {}
    count = int(environment.get("LISTEN_FDS", "0"))
    names = environment.get("LISTEN_FDNAMES", "").split(":") if environment.get("LISTEN_FDNAMES") else []
    if count < 0 or (names and len(names) != count):
        raise ValueError(f"LISTEN_FDS says {count} sockets, LISTEN_FDNAMES names {len(names)}")
    found: dict[str, list[socket.socket]] = {}
    for index in range(count):
        sock = socket.socket(fileno=_FIRST + index)
        sock.set_inheritable(False)
        found.setdefault(names[index] if names else "unknown", []).append(sock)
    return found

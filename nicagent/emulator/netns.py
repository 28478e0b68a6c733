"""Reaching into a named network namespace: the tap device that a host's cable ends in, a BMC's socket.

Named namespaces are files under /run/netns, as `ip netns` makes them. A thread enters one and ends there,
so the rest of the process never moves (setns(2) works per thread).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nicagent.errors import Kind, NicagentError

NETNS_DIR = Path("/run/netns")
CLONE_NEWNET = 0x40000000

TUN = "/dev/net/tun"

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETCARRIER = 0x400454E2
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000

# linux/sockios.h
SIOCSIFMTU = 0x8922
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1

T = TypeVar("T")


def enter(name: str) -> None:
    """Move the calling thread into a named network namespace. Raises NicagentError when there is none."""
    path = NETNS_DIR / name
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NicagentError(
            Kind.NOT_FOUND,
            f"there is no network namespace {name!r} ({error.strerror})",
            "name it in the lab's `netns`, or make it: ip netns add " + name,
        ) from None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(handle, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise NicagentError(
                Kind.DENIED,
                f"cannot enter network namespace {name!r}: {os.strerror(number)}",
                "run as root, or inside a lab",
            )
    finally:
        os.close(handle)


def inside(name: str | None, work: Callable[[], T]) -> T:
    """Run `work` in a named network namespace (None: here) and return what it returned."""
    if name is None:
        return work()
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            enter(name)
            results.append(work())
        except BaseException as error:  # handed on to the caller below
            errors.append(error)

    thread = threading.Thread(target=body, name=f"netns {name}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class Tap:
    """The network end of a host's cable. The chassis holds it for life; the host has carrier while it is
    on.
    """

    def __init__(self, name: str, netns: str | None, mtu: int) -> None:
        self.name = name
        self._fd = inside(netns, lambda: _open_tap(name, mtu))

    def fileno(self) -> int:
        return self._fd

    def carrier(self, on: bool) -> None:
        """Link up or down, as the other end sees it."""
        fcntl.ioctl(self._fd, TUNSETCARRIER, struct.pack("i", int(on)))

    def drain(self) -> None:
        """Throw away frames that were sent to a host that was off."""
        os.set_blocking(self._fd, False)
        try:
            while os.read(self._fd, 65536 + 64):
                pass
        except (BlockingIOError, OSError):
            pass

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open_tap(name: str, mtu: int) -> int:
    """Make the tap in this thread's namespace, up, without carrier; QEMU gets the descriptor at power-on."""
    try:
        fd = os.open(TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NicagentError(
            Kind.UNAVAILABLE,
            f"cannot open {TUN} for the tap device {name}: {error.strerror}",
            f"udev opens it to everybody; where it does not run: chmod 0666 {TUN} (as root)",
        ) from None
    try:
        request = struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        fcntl.ioctl(fd, TUNSETIFF, request)
        fcntl.ioctl(fd, TUNSETCARRIER, struct.pack("i", 0))
        _set_up(name, mtu)
    except OSError as error:
        os.close(fd)
        raise NicagentError(
            Kind.UNAVAILABLE,
            f"cannot make the tap device {name}: {error.strerror}",
            "is the name taken? without root, run it inside a lab (nicagent emulate)",
        ) from None
    return fd


def _set_up(name: str, mtu: int) -> None:

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFMTU, struct.pack("16si12x", name.encode(), mtu))
        request = struct.pack("16sh14x", name.encode(), 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(control, SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", name.encode(), flags | IFF_UP))

"""Answers a host's IPv6 router solicitations with "no router here": lifetime 0, no prefix (RFC 4861 §4.2).

Nothing on the link speaks IPv6. But iPXE configures IPv6 beside IPv4 and waits until both have ended: without
an answer that is sixteen seconds of every boot.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct

ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT = 133, 134
ALL_NODES, ALL_ROUTERS = "ff02::1", "ff02::2"
_ICMP6_FILTER = 1  # linux/icmpv6.h
_SOLICITATION_SIZE = 8  # octets at least
# Type, code, checksum (the kernel's work), hop limit 64, no flags, lifetime 0 s, reachable and retransmission
# times unspecified.
ADVERTISEMENT = struct.pack("!BBHBBHII", ROUTER_ADVERTISEMENT, 0, 0, 64, 0, 0, 0, 0)

log = logging.getLogger(__name__)


class RouterAdvertiser:
    """One raw socket on one device, read from the event loop; it lives as long as the agent."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Listen. Where the machine has no IPv6 this only costs a boot its seconds, and says so."""
        try:
            self._socket = self._open()
        except OSError as error:
            log.warning("no router advertisements on %s (%s): iPXE waits 16 s", self._device, error.strerror)
            return
        asyncio.get_running_loop().add_reader(self._socket, self._answer)

    def stop(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _open(self) -> socket.socket:
        opened = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._device.encode())
            # One bit a type, set bits are not delivered: all but solicitations.
            blocked = [0xFFFFFFFF] * 8
            blocked[ROUTER_SOLICITATION >> 5] &= ~(1 << (ROUTER_SOLICITATION & 31))
            opened.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("8I", *blocked))
            index = socket.if_nametoindex(self._device)
            member = socket.inet_pton(socket.AF_INET6, ALL_ROUTERS) + struct.pack("@I", index)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)  # §6.1.2: else discarded
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        except BaseException:
            opened.close()
            raise
        return opened

    def _answer(self) -> None:
        assert self._socket is not None
        # A host that floods gets one answer a wake-up, which is also the bound on our work.
        with contextlib.suppress(OSError):
            if len(self._socket.recv(256)) >= _SOLICITATION_SIZE:
                self._socket.sendto(ADVERTISEMENT, (ALL_NODES, 0))

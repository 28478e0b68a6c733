"""What a host does on its provision link, run in its network namespace; each command prints one answer.

`get PATH [PORT]` (from that port) · `post PATH TEXT|BYTES` (a number: that many) ·
`knock PORT [ADDRESS]` (open, refused, silence) · `solicit DEVICE` (an IPv6 router, RFC 4861 §4.1)
"""

from __future__ import annotations

import http.client
import socket
import struct
import sys
import time
from collections.abc import Callable

AGENT = "172.31.0.1"


def get(path: str, port: str = "0") -> str:
    source = ("", int(port)) if port != "0" else None
    connection = http.client.HTTPConnection(AGENT, 8080, timeout=2, source_address=source)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read().decode() if answer.status == 200 else f"status {answer.status}"
    except OSError:
        return "silence"


def post(path: str, body: str) -> str:
    connection = http.client.HTTPConnection(AGENT, 8080, timeout=5)
    try:
        connection.request("POST", path, "x" * int(body) if body.isdigit() else body)
        return f"status {connection.getresponse().status}"
    except OSError:
        return "silence"


def knock(port: str, address: str = AGENT) -> str:
    try:
        socket.create_connection((address, int(port)), timeout=1).close()
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "silence"
    return "open"


def solicit(device: str) -> str:
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as asking:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        asking.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        asking.settimeout(1.0)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                # Until duplicate address detection is over there is no address to send from.
                asking.sendto(struct.pack("!BBHI", 133, 0, 0, 0), ("ff02::2", 0))
                answer = asking.recv(256)
            except OSError:
                continue
            if answer[0] == 134:
                return f"lifetime {struct.unpack('!H', answer[6:8])[0]}"
    return "silence"


if __name__ == "__main__":
    commands: dict[str, Callable[..., str]] = {"get": get, "post": post, "knock": knock, "solicit": solicit}
    print(commands[sys.argv[1]](*sys.argv[2:]))

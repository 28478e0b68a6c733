"""Load on a libvirt server by raw packets: connections of one process, each with one call under way.

The server is what is measured: a libvirt.so client costs several times the server's time per call, this one a
fraction of it, and it is the same for both servers. It runs as a process; an order is a line of JSON on
standard input, its answer a line on standard output.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypervisor_shim.frame import HEADER, HEADER_SIZE, packet

REMOTE = 0x20008086
OPEN, INFO, LOOKUP, LIST_ALL, STATS, REGISTER, DEFINE = 1, 16, 23, 273, 344, 316, 11
_CHUNK = 1 << 20


def number(value: int) -> bytes:
    return struct.pack(">I", value & 0xFFFFFFFF)


def text(value: str) -> bytes:
    raw = value.encode()
    return number(len(raw)) + raw + bytes(-len(raw) % 4)


@dataclass
class Server:
    """Where a server listens, and what it calls itself."""

    uri: str  # of CONNECT_OPEN
    path: str = ""
    port: int = 0
    pki: str = ""  # a client's directory; then `port` is a TLS one

    def connect(self) -> Client:
        sock: socket.socket
        if self.path:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(20)
            sock.connect(self.path)
        else:
            sock = socket.create_connection(("127.0.0.1", self.port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            context = ssl.create_default_context(cafile=Path(self.pki) / "cacert.pem")
            context.check_hostname = False
            context.load_cert_chain(Path(self.pki) / "clientcert.pem", Path(self.pki) / "clientkey.pem")
            sock = context.wrap_socket(sock)
            assert sock.recv(1) == b"\1", "the server did not confirm"
        client = Client(sock)
        client.call(66)
        client.call(OPEN, number(1) + text(self.uri) + number(0))
        return client


class Client:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.kept = b""
        self.sent = 0.0

    def call(self, procedure: int, body: bytes = b"") -> bytes:
        """The body of the answer; an error is an assertion."""
        self.sock.sendall(packet(REMOTE, 1, procedure, 0, 1, 0, body))
        while True:
            head, body = self.receive()
            if head[4] == 1:
                assert head[6] == 0, f"procedure {procedure} failed: {body!r}"
                return body

    def receive(self) -> tuple[tuple[int, ...], bytes]:
        while len(self.kept) < 4 or len(self.kept) < int.from_bytes(self.kept[:4], "big"):
            data = self.sock.recv(_CHUNK)
            assert data, "the server hung up"
            self.kept += data
        size = int.from_bytes(self.kept[:4], "big")
        whole, self.kept = self.kept[:size], self.kept[size:]
        return HEADER.unpack_from(whole), whole[HEADER_SIZE:]


class Load:
    """The connections of one process."""

    def __init__(self, server: Server, count: int, domain: str) -> None:
        self.clients = [server.connect() for _ in range(count)]
        reference = self.clients[0].call(LOOKUP, text(domain))
        self.calls = {
            "info": packet(REMOTE, 1, INFO, 0, 2, 0, reference),
            "list": packet(REMOTE, 1, LIST_ALL, 0, 2, 0, number(1) + number(0)),
            "state": packet(REMOTE, 1, STATS, 0, 2, 0, number(0) + number(1) + number(0)),
            "stats": packet(REMOTE, 1, STATS, 0, 2, 0, number(0) + number(0) + number(0)),
        }

    def run(self, call: str, seconds: float) -> dict[str, float]:
        """Calls a second, and the 99th percentile of their times in ms."""
        request, times = self.calls[call], []
        clock, took = time.perf_counter, 0.0
        began = clock()
        end = began + seconds
        if len(self.clients) == 1:
            sock, recv, send = self.clients[0].sock, self.clients[0].sock.recv, self.clients[0].sock.sendall
            while (now := clock()) < end:
                send(request)
                data = recv(_CHUNK)
                left = int.from_bytes(data[:4], "big") - len(data)
                while left > 0:
                    left -= len(recv(_CHUNK))
                times.append(clock() - now)
            assert sock
        else:
            self._many(request, end, times)
        took = clock() - began
        times.sort()
        return {"rate": len(times) / took, "p99": times[int(len(times) * 0.99)] * 1000 if times else 0.0}

    def _many(self, request: bytes, end: float, times: list[float]) -> None:
        clock, poll = time.perf_counter, select.epoll()
        by_number = {client.sock.fileno(): client for client in self.clients}
        for handle, client in by_number.items():
            client.sock.setblocking(False)
            poll.register(handle, select.EPOLLIN)
            client.sent = clock()
            client.sock.send(request)
        waiting = len(by_number)
        while waiting:
            for handle, _ in poll.poll():
                client = by_number[handle]
                try:
                    data = client.sock.recv(_CHUNK)
                except (ssl.SSLWantReadError, BlockingIOError):
                    continue
                if client.kept:
                    data = client.kept + data
                if len(data) < 4 or len(data) < int.from_bytes(data[:4], "big"):
                    client.kept = data
                    continue
                client.kept = b""
                now = clock()
                times.append(now - client.sent)
                if now < end:
                    client.sent = now
                    client.sock.send(request)
                else:
                    waiting -= 1
        for client in self.clients:
            client.sock.setblocking(True)
        poll.close()

    def events(self, document: str) -> float:
        """Milliseconds from a client's call until all the others were told of it."""
        actor, *listeners = self.clients
        for client in listeners:
            if not client.sent:
                client.call(REGISTER, number(0) + number(0))
                client.sent = 1.0
        began = time.perf_counter()
        actor.sock.sendall(packet(REMOTE, 1, DEFINE, 0, 3, 0, text(document)))
        for client in listeners:
            client.receive()
        took = (time.perf_counter() - began) * 1000
        actor.receive()
        return took


def main() -> None:
    order = json.loads(sys.argv[1])
    load = Load(Server(**order["server"]), order["count"], order["domain"])
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        what = json.loads(line)
        answer: Any
        if "events" in what:
            answer = [load.events(what["events"]) for _ in range(what["times"])]
        else:
            answer = load.run(what["call"], what["seconds"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

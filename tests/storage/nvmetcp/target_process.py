"""The target as tests run it: the real process, its configuration file and its control socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NQN = "nqn.2024-01.org.nicagent:metal-1"
HOST = "nqn.2024-01.org.nicagent:host-1"
UUID = "11111111-2222-4333-8444-{:012d}"
START_TIMEOUT = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: str, ready: Any, timeout: float = START_TIMEOUT) -> Any:
    """Polls `ready()` until it is true; fails with `what`."""
    deadline = time.monotonic() + timeout
    while not (value := ready()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout:g} s"
        time.sleep(0.02)
    return value


def file_backend(path: Path) -> dict[str, Any]:
    return {"type": "file", "path": str(path)}


def namespace(nsid: int, backend: dict[str, Any], **more: Any) -> dict[str, Any]:
    identity = {"nguid": f"{nsid:032x}", "eui64": f"{nsid:016x}"}
    return {"nsid": nsid, "uuid": UUID.format(nsid), "backend": backend, **identity, **more}


@dataclass
class TargetProcess:
    """One target. Namespaces are those of the one subsystem most tests need."""

    home: Path
    namespaces: list[dict[str, Any]]
    hosts: list[str] = field(default_factory=lambda: [HOST])
    port: int = field(default_factory=free_port)
    discovery_port: int = 0
    auth: dict[str, Any] | None = None
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.control = self.home / "ctl.sock"
        self.file = self.home / "target.json"
        self.log = self.home / "target.log"

    def config(self) -> dict[str, Any]:
        listen: list[dict[str, Any]] = [{"host": "127.0.0.1", "port": self.port}]
        if self.discovery_port:
            listen.append({"host": "127.0.0.1", "port": self.discovery_port, "discovery": True})
        subsystem = {"nqn": NQN, "serial": "NA0001", "hosts": self.hosts, "namespaces": self.namespaces}
        if self.auth is not None:
            subsystem["auth"] = self.auth
        return {"listen": listen, "control": str(self.control), "subsystems": [subsystem]}

    def write(self) -> None:
        self.file.write_text(json.dumps(self.config()))

    def spawn(self) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "nicagent.storage.nvmetcp", "--config", str(self.file)]
        with self.log.open("ab") as sink:
            return subprocess.Popen(argv, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL)

    def start(self) -> TargetProcess:
        self.write()
        self.process = self.spawn()
        until(f"the target answers; its log: {self.log.read_text()}", self.answers)
        return self

    def answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text()
        try:
            return bool(self.ask("ping")["ok"])
        except OSError:
            return False

    def ask(self, command: str) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(START_TIMEOUT)
            client.connect(str(self.control))
            client.sendall(json.dumps({"cmd": command}).encode() + b"\n")
            answer = client.makefile("rb").readline()
        return dict(json.loads(answer))

    def status(self) -> dict[str, Any]:
        return dict(self.ask("status")["status"])

    def reload(self) -> dict[str, Any]:
        self.write()
        return self.ask("reload")

    def kill(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(20)

"""A server in a process of its own, so that what it costs can be read from the kernel.

    with alone(directory) as process:
        RawClient(process.path) …
        assert process.descriptors() == before

`python -m tests.hypervisor_shim.alone DIRECTORY` serves until its standard input ends. Limits are given as
JSON on the command line; what it logs goes to `log` in the directory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypervisor_shim.connection import Limits
from hypervisor_shim.memory import MemoryDriver
from hypervisor_shim.server import Server

_DOMAIN = (
    "<domain type='test'><name>{0}</name><uuid>6695eb01f6a4830479aa97f2502e{1:04x}</uuid>"
    "<memory>1024</memory><os><type>hvm</type></os><devices><serial type='pty'/></devices></domain>"
)
_FIRST = 0x193F  # the end of the UUID of domain "test"


@dataclass(frozen=True)
class Process:
    directory: Path
    pid: int

    @property
    def path(self) -> Path:
        return self.directory / "sock"

    @property
    def read_only_path(self) -> Path:
        return self.directory / "sock-ro"

    def descriptors(self) -> int:
        """How many are open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def resident(self) -> int:
        """Bytes of memory in use."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    def descriptors_settle(self, at_most: int, within: float = 10.0) -> int:
        """Wait until no more are open; how many it is then."""
        deadline = time.monotonic() + within
        while (found := self.descriptors()) > at_most and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def log(self) -> str:
        return (self.directory / "log").read_text()


@contextmanager
def alone(directory: Path, *, domains: int = 1, **limits: float) -> Iterator[Process]:
    """`domains`: how many there are, test, test1, test2 …, all running. `limits`: of `Limits`."""
    argv = [sys.executable, "-m", __name__, str(directory), str(domains), json.dumps(limits)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n", "the server did not start"
        yield Process(directory, process.pid)
        assert process.poll() is None, f"the server ended with {process.returncode}"
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()
    log = (directory / "log").read_text()
    assert process.returncode == 0, f"the server ended with {process.returncode}: {log[-2000:]}"
    assert "ERROR" not in log, f"the server's log tells of a mistake of its own: {log[-2000:]}"


async def _serve(directory: Path, domains: int, limits: Limits) -> None:
    names = ["test", *(f"test{i}" for i in range(1, domains))]
    driver = MemoryDriver([_DOMAIN.format(name, _FIRST + i) for i, name in enumerate(names)])
    server = Server(driver, limits)
    await server.listen_unix(directory / "sock")
    await server.listen_unix(directory / "sock-ro", read_only=True)
    print("ready", flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
    await server.close()


def main() -> None:
    directory, domains, limits = Path(sys.argv[1]), int(sys.argv[2]), Limits(**json.loads(sys.argv[3]))
    logging.basicConfig(filename=directory / "log", format="%(levelname)s %(message)s")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_serve(directory, domains, limits))


if __name__ == "__main__":
    main()

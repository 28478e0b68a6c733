"""An agent's provisioner as a process of its own, so that it can live in a network namespace and be killed.

    python -m tests.provision.agent RUN_DIR ARTEFACTS

Reads one JSON list `[method, …arguments]` a line, answers one line each: `ok` or the error's sentence.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import msgspec

from nicagent.errors import Kind, NicagentError
from nicagent.provision.contract import BootChoice, ProvisionLink
from nicagent.provision.provisioner import Provisioner


async def obey(provisioner: Provisioner, line: str) -> None:
    match json.loads(line):
        case ["start", links]:
            await provisioner.start(msgspec.convert(links, list[ProvisionLink]))
        case ["choose", host, choice]:
            await provisioner.choose(host, msgspec.convert(choice, BootChoice | None))
        case ["stop"]:
            await provisioner.stop()
        case ["clear"]:
            await provisioner.clear()


async def keep(host: str, body: bytes) -> None:
    """What a host tells of itself: anything but `bad` is taken."""
    if body == b"bad":
        raise NicagentError(Kind.INVALID, "that is no inventory")
    Path(sys.argv[1], f"{host}.told").write_bytes(body)


async def connected(host: str) -> bool:
    """A host uses its disks while this file is there."""
    return Path(sys.argv[1], f"{host}.connected").exists()


async def main() -> None:
    provisioner = Provisioner(Path(sys.argv[1]), Path(sys.argv[2]), keep, connected)
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            await obey(provisioner, line)
            print("ok", flush=True)
        except NicagentError as error:
            print(str(error), flush=True)


if __name__ == "__main__":
    asyncio.run(main())

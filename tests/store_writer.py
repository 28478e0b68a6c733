"""Writes to a store until it is killed, and says on stdout what has been acknowledged. Run by test_store."""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

from nicagent.model import HostState
from nicagent.store import HostRecord, Store


async def write_for_ever(path: Path) -> None:
    store = await Store.open(path)
    for number in itertools.count(1):
        await store.put_host(HostRecord("metal-1", HostState.RUNNING, str(number)))
        identifier = await store.next_domain_id()
        print(number, identifier, flush=True)


if __name__ == "__main__":
    asyncio.run(write_for_ever(Path(sys.argv[1])))

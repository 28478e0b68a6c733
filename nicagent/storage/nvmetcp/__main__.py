"""`python -m nicagent.storage.nvmetcp --config FILE`: the target as a process that outlives the agent.

SIGHUP reloads the file, SIGTERM and SIGINT stop. Exit status: 0 stopped as asked, 2 wrong configuration or
disk, 3 an address or the control socket is taken.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from pathlib import Path

from nicagent.errors import Kind, NicagentError
from nicagent.storage.nvmetcp.config import TargetConfig, load
from nicagent.storage.nvmetcp.contract import Changes
from nicagent.storage.nvmetcp.control import ControlServer
from nicagent.storage.nvmetcp.target import Target

log = logging.getLogger("nicagent.storage.nvmetcp")

EXIT_CONFIG = 2
EXIT_TAKEN = 3
GC_THRESHOLD = 50_000  # allocations between collections: the hot path makes no cycles


async def _serve(path: Path, config: TargetConfig) -> None:
    loop = asyncio.get_running_loop()
    target = Target()

    async def reload() -> Changes:
        fresh = load(path)
        if fresh.control != config.control:
            raise NicagentError(Kind.INVALID, "`control` cannot change while the target runs", "restart it")
        changes = await target.apply(fresh)
        log.info(
            "reloaded: added %s, removed %s, changed %s", changes.added, changes.removed, changes.changed
        )
        return changes

    async def reload_by_signal() -> None:
        while True:
            await hangup.wait()
            hangup.clear()
            try:
                await reload()
            except NicagentError as error:
                log.error("reload refused, everything stays as it was: %s", error)

    hangup, stop = asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    control = ControlServer(Path(config.control), target.status, reload)
    reloader = asyncio.create_task(reload_by_signal())
    try:
        await target.apply(config)
        await control.start()  # last: who gets an answer here finds every disk served
        for listen in target.listeners():
            log.info("listening on %s:%d", listen.host, listen.port)
        gc.freeze()
        await stop.wait()
        log.info("stopping")
    finally:
        reloader.cancel()
        await control.close()
        await target.close()


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m nicagent.storage.nvmetcp", description="NVMe/TCP target")
    parser.add_argument("--config", required=True, type=Path, help="JSON file; SIGHUP reads it again")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    gc.set_threshold(GC_THRESHOLD)
    try:
        asyncio.run(_serve(arguments.config, load(arguments.config)))
    except NicagentError as error:
        print(error, file=sys.stderr)
        return EXIT_TAKEN if error.kind is Kind.UNAVAILABLE else EXIT_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())

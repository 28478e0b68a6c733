"""A network driver in a process of its own: takes calls as JSON lines on stdin, answers on stdout."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from nicagent.config import Overlay, Segment
from nicagent.errors import NicagentError
from nicagent.filter_rules import Filter
from nicagent.filters_builtin import BUILT_IN
from nicagent.model import PortBinding
from nicagent.network.contract import NetworkDriver
from nicagent.network.overlay import OverlayNetwork

Filters = dict[str, Filter]
BACKENDS: dict[str, Callable[[Overlay, dict[str, Segment], Path, Filters], NetworkDriver]] = {
    "bridge": OverlayNetwork
}


async def perform(driver: NetworkDriver, filters: Filters, call: str, args: list[Any]) -> Any:
    if call == "filter":  # as their owner would
        made = msgspec.convert(args[0], Filter)
        filters[made.name] = made
        return await driver.refilter()
    if call == "present":
        return await driver.present(args[0], msgspec.convert(args[1], list[PortBinding]))
    if call == "status":
        return [asdict(status) for status in await driver.status(args[0])]
    return await getattr(driver, call)(*args)


async def main(settings: dict[str, Any]) -> None:
    filters = dict(BUILT_IN)
    driver = BACKENDS[settings["backend"]](
        msgspec.convert(settings["overlay"], Overlay),
        msgspec.convert(settings["segments"], dict[str, Segment]),
        Path(settings["run_dir"]),
        filters,
    )
    while line := await asyncio.to_thread(sys.stdin.readline):
        call, *args = json.loads(line)
        try:
            answer: dict[str, Any] = {"value": await perform(driver, filters, call, args)}
        except NicagentError as e:
            answer = {"error": [e.kind.value, e.message, e.hint]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))

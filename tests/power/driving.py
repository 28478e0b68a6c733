"""A power driver as tests hold it: started and closed, and awaited until it reads what it should."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar

from nicagent.model import Power
from nicagent.power.contract import PowerDriver

SETTLE = 15.0  # seconds that a fact may take on a busy machine

D = TypeVar("D", bound=PowerDriver)


@contextlib.asynccontextmanager
async def started(driver: D) -> AsyncIterator[D]:
    await driver.start()
    try:
        yield driver
    finally:
        await driver.close()


async def reads(driver: PowerDriver, wanted: Power, seconds: float = SETTLE) -> None:
    async with asyncio.timeout(seconds):
        while await driver.read() is not wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

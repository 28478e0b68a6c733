"""What is known of one host's power: its driver is brought up, its last fact kept, the next one awaited."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

from nicagent.config import GpioPower, Host, IpmiPower
from nicagent.errors import NicagentError
from nicagent.model import Power
from nicagent.power.contract import PowerDriver

log = logging.getLogger("nicagent.host")

Tell = Callable[[Power, str], None]

RETRY_FIRST_SECONDS = 1.0  # until a driver that is not there is tried again; twice that the next time
RETRY_LAST_SECONDS = 30.0
LOOK_SECONDS = 0.25  # between two looks at what a driver could not watch

# What to look at where an action was done and the fact did not follow.
WIRING: Mapping[type, str] = {
    GpioPower: "check the wires of its power button and its power LED, and its power cord",
    IpmiPower: "its BMC said yes and did nothing: look at the BMC's own log",
}


class PowerWatch:
    """`tell` is called with every new fact and the words for it."""

    def __init__(self, host: str, config: Host, driver: PowerDriver, tell: Tell) -> None:
        self.power = Power.UNKNOWN
        self._host = host
        self._config = config
        self._driver = driver
        self._tell = tell
        self._missing = ""  # why the driver does not start
        self._seen = asyncio.Event()

    @property
    def trouble(self) -> str:
        """Why power cannot be read, while it cannot and that is known."""
        if self.power is not Power.UNKNOWN:
            return ""
        return self._missing or self._driver.trouble

    @property
    def wiring(self) -> str:
        """What to look at where power does not follow what was asked for."""
        return WIRING[type(self._config.power)]

    @property
    def pgood_seconds(self) -> float:
        """How long power-good may take to come or go after it was asked for."""
        return self._config.pgood_seconds

    async def start(self) -> None:
        """Have the driver watch. One that is not there is tried again, and the host reads UNKNOWN."""
        wait = RETRY_FIRST_SECONDS
        while True:
            try:
                await self._driver.start()
            except NicagentError as e:
                self._missing = str(e)
                log.error("%s: power: %s; trying again in %g s", self._host, e, wait)
                await asyncio.sleep(wait)
                wait = min(wait * 2, RETRY_LAST_SECONDS)
            else:
                self._missing = ""
                self._driver.watch(self._fact)
                return

    async def close(self) -> None:
        await self._driver.close()

    def _fact(self, power: Power) -> None:
        if power is self.power:
            return
        self.power = power
        self._seen.set()
        log.info("%s: power is %s", self._host, power.value)
        self._tell(power, f"power is {power.value}")

    async def until(self, wanted: Power, seconds: float) -> bool:
        """Wait until power reads `wanted`; False when the time is spent."""
        return await self._until(lambda power: power is wanted, seconds)

    async def until_known(self, seconds: float) -> bool:
        """Wait until power can be read and that was told; False when the time is spent."""
        return await self._until(lambda _: self.power is not Power.UNKNOWN, seconds)

    async def _until(self, enough: Callable[[Power], bool], seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while not enough(await self._driver.read()):
                    # Watch and read both: an edge wakes us, a poll finds what a driver could not watch.
                    self._seen.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_SECONDS):
                            await self._seen.wait()
        except TimeoutError:
            return False
        return True

    async def compare(self) -> None:
        """What the LED says counts: unless power reads ON, tell what it reads. A driver that does not answer
        yet, after a restart, is waited for."""
        if await self.until(Power.ON, self.pgood_seconds):
            return
        fact = await self._driver.read()
        self._tell(fact, f"power is found {fact.value}")

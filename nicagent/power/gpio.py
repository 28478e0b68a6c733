"""Power by front-panel lines: a power button and a reset line to press, a power LED to read.

The driver reports what the LED says and does what a finger does. Its one hard duty is that a pressed button
is released, whatever happens to the request (`_held`), and that no line moves otherwise.

All line work happens in one thread of the driver's own, in the order it was handed over. That is what makes
the release safe: it is handed over without an await in between, so it cannot be lost to a cancellation, and
it runs after the press however late that was.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from nicagent.config import GpioPower
from nicagent.errors import Kind, NicagentError
from nicagent.model import Cause, Power, PowerAction
from nicagent.power.causes import announce
from nicagent.power.contract import ALREADY_SO, PowerDriver, PowerWatcher
from nicagent.power.led import Led
from nicagent.power.panel import Button, Panel, claim
from nicagent.power.pins import FactoryMaker, make_factory
from nicagent.threads import to_the_end

CALLS_SECONDS = 6.0  # of a deadline: for the handful of line calls, each bounded by the pin factory
LOOK_AGAIN_SECONDS = 1.0  # between attempts to reach lines that went away
LOOK_ANYWAY_SECONDS = 5.0  # an edge can get lost (the kernel's queue is finite), so the LED is also read

log = logging.getLogger("nicagent.power")
T = TypeVar("T")


class GpioPowerDriver(PowerDriver):
    """`PowerDriver` over GPIO lines. `maker` makes the pin factory; tests hand in gpiozero's mock."""

    def __init__(self, host: str, config: GpioPower, *, maker: FactoryMaker = make_factory) -> None:
        self._host = host
        self._config = config
        self._maker = maker
        self._led = Led(config.debounce_seconds)
        self._exclusive = asyncio.Lock()  # one action at a time; asyncio's lock is first come, first served
        self._watcher: PowerWatcher | None = None
        self._told: Power | None = None  # what the watcher was last told
        self._news = asyncio.Event()  # set and replaced whenever the LED may say something new
        self._reports = 0  # edges heard, to notice one that overtook a read
        self._settle: asyncio.TimerHandle | None = None
        self._released_at = float("-inf")
        self._closing = False
        self._panel: Panel | None = None
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()

    # ---- the contract

    @property
    def trouble(self) -> str:
        if self._gone.is_set():
            return "its power lines do not answer"
        unsteady = self._panel is not None and self._now_says() is Power.UNKNOWN
        return "its power LED does not stand still" if unsteady else ""

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._closing = False
        self._led = Led(self._config.debounce_seconds)
        self._told = None
        self._gone.clear()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, f"power {self._host}")

        def lost() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody is left to care
                loop.call_soon_threadsafe(self._lost)

        def heard(lit: bool) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._heard, lit)

        claiming = self._thread.submit(claim, self._host, self._config, self._maker, lost, heard)
        try:
            await to_the_end(claiming)
            self._panel = claiming.result()
            await self._let_go_of_held_buttons("a holder before us ended in mid-press")
            await self._look()
            # An LED can be believed once it stood still; until then the first fact would be UNKNOWN.
            await self._until(lambda: self._now_says() is not Power.UNKNOWN, 2 * self._led.debounce)
        except BaseException:
            if claiming.done() and claiming.exception() is None:
                self._panel = claiming.result()
            await self._shut()
            raise
        self._keeper = asyncio.create_task(self._keep(), name=f"power lines of {self._host}")

    async def close(self) -> None:
        if self._thread is None:
            return
        self._closing = True
        self._wake()  # an action under way lets go and gives up
        async with self._exclusive:
            await self._shut()

    async def read(self) -> Power:
        await self._look()
        return self._now_says()

    async def apply(self, action: PowerAction, cause: Cause) -> None:
        async with self._exclusive:
            self._check_open(action)
            try:
                async with asyncio.timeout(self.deadline(action)):
                    await self._act(action, cause)
            except TimeoutError:
                raise NicagentError(
                    Kind.UNAVAILABLE,
                    f"host {self._host}: {action} did not end within {self.deadline(action):g} s",
                    "check the power lines with `nicagent doctor`",
                ) from None

    def deadline(self, action: PowerAction) -> float:
        config = self._config
        work = {PowerAction.OFF: config.hold_seconds, PowerAction.RESET: config.reset_seconds}
        waits = config.holdoff_seconds + config.off_on_gap_seconds + 2 * self._led.patience
        return CALLS_SECONDS + waits + work.get(action, config.press_seconds)

    def watch(self, watcher: PowerWatcher) -> None:
        self._watcher = watcher
        self._told = None
        if self._panel is not None:
            self._publish()

    # ---- actions

    async def _act(self, action: PowerAction, cause: Cause) -> None:
        if action is PowerAction.INTERRUPT:
            raise NicagentError(
                Kind.UNSUPPORTED,
                f"host {self._host}: the front panel has no line for a diagnostic interrupt",
                "a BMC can (driver ipmi)",
            )
        panel, config = self._claimed(), self._config
        says = await self._known()
        if (action, says) in ALREADY_SO:
            return
        await self._quiet(panel.power if action is not PowerAction.RESET else panel.reset)
        says = await self._known()  # it may have moved meanwhile
        if (action, says) in ALREADY_SO:
            return
        match action:
            case PowerAction.PRESS:
                pass
            case PowerAction.RESET if says is Power.OFF:
                raise NicagentError(
                    Kind.WRONG_STATE,
                    f"host {self._host} is off, so it cannot be reset",
                    "power it on instead",
                )
            case PowerAction.OFF:
                # Held to its end with an LED that bounces: that switches off from either state.
                async with self._held(panel.power, cause):
                    await self._until(lambda: self._now_says() is Power.OFF, config.hold_seconds)
                return
            case _ if says is Power.UNKNOWN:
                raise NicagentError(
                    Kind.UNAVAILABLE,
                    f"host {self._host}: its power LED does not stand still, {action} could do the opposite",
                    "look at the host and its LED's cable; `nicagent power press` presses the button anyway",
                )
        button = panel.reset if action is PowerAction.RESET else panel.power
        async with self._held(button, cause):
            await self._pause(config.reset_seconds if button is panel.reset else config.press_seconds)

    @contextlib.asynccontextmanager
    async def _held(self, button: Button, cause: Cause) -> AsyncIterator[None]:
        """`button` asserted while the body runs, and released whatever becomes of the body."""
        thread = self._thread
        assert thread is not None
        announce(self._host, button.name, button.level(True), cause, "asserted")
        try:
            await self._call(lambda: button.put(True))
            yield
        finally:
            announce(self._host, button.name, button.level(False), cause, "released")
            release = thread.submit(button.put, False)
            try:
                await to_the_end(release)
            finally:
                self._released_at = self._now()
                if release.exception() is not None:
                    log.error(
                        "%s: %s could not be released: %s", self._host, button.name, release.exception()
                    )
                    self._gone.set()  # the keeper goes on trying
            release.result()

    async def _quiet(self, button: Button) -> None:
        """Wait out the hold-off since the last press, and for the power button the off → on gap."""
        ready = self._released_at + self._config.holdoff_seconds
        if button.name == "power_button" and self._led.lit is False:
            ready = max(ready, self._led.moved_at + self._config.off_on_gap_seconds)
        if ready > self._now():
            await self._pause(ready - self._now())

    async def _known(self) -> Power:
        """What the LED says, after giving a bouncing one its time to stand still."""
        await self._look(must=True)
        await self._until(lambda: self._now_says() is not Power.UNKNOWN, self._led.patience)
        return self._now_says()

    async def _pause(self, seconds: float) -> None:
        await self._until(lambda: False, seconds)

    async def _until(self, so: Callable[[], bool], seconds: float) -> None:
        """Wait for `so`, at most `seconds`. Raises UNAVAILABLE when the driver is being closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not so():
                    self._check_open("waiting for its lines")
                    await self._news.wait()
        self._check_open("waiting for its lines")

    # ---- facts

    async def _look(self, *, must: bool = False) -> None:
        """Read the LED. With `must`, lines that do not answer raise; else they are a fact, UNKNOWN."""
        panel = self._panel
        if panel is None:
            return
        before = self._reports
        try:
            lit = await self._call(panel.led_is_lit)
        except NicagentError:
            self._lost()
            if must:
                raise
            return
        if before == self._reports:  # else an edge overtook this read and is the newer truth
            self._heard(lit)

    def _heard(self, lit: bool) -> None:
        """The LED is, or has become, lit or dark. In the loop's thread."""
        if self._panel is None or not self._led.heard(lit, self._now()):
            return
        self._reports += 1
        self._publish()
        self._rearm()

    def _rearm(self) -> None:
        if self._settle is not None:
            self._settle.cancel()
        loop = asyncio.get_running_loop()
        self._settle = loop.call_at(self._led.settles_at(), self._settled)

    def _settled(self) -> None:
        self._settle = None
        if not self._led.stands_still(self._now()):  # the clock's grain
            self._rearm()
            return
        self._publish()

    def _publish(self) -> None:
        self._wake()
        fact = self._led.publish(self._now())
        if fact is None or fact is self._told or self._panel is None:
            return
        if self._told is None and fact is Power.UNKNOWN and self._led.lit is not None:
            return
        self._told = fact
        if self._watcher is not None:
            self._watcher(fact)

    def _lost(self) -> None:
        """The lines do not answer."""
        if self._panel is None:
            return
        self._led.lost()
        self._reports += 1
        self._publish()
        self._gone.set()

    async def _keep(self) -> None:
        """Reach lines that went away again; release a button that was caught pressed. Ends by `close`."""
        while True:
            try:
                async with asyncio.timeout(LOOK_ANYWAY_SECONDS):
                    await self._gone.wait()
            except TimeoutError:
                await self._look()
                continue
            self._gone.clear()
            async with self._exclusive:
                with contextlib.suppress(NicagentError):
                    await self._let_go_of_held_buttons("the lines went away in mid-press")
                    await self._look(must=True)
            if self._gone.is_set() or self._led.lit is None:
                self._gone.set()
                await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _let_go_of_held_buttons(self, why: str) -> None:
        for button in self._claimed().buttons:
            if await self._call(button.is_held):
                log.warning("%s: %s was found held: %s; releasing it", self._host, button.name, why)
                announce(
                    self._host,
                    button.name,
                    button.level(False),
                    Cause("nicagent", f"found held: {why}"),
                    "released",
                )
                await self._call(lambda button=button: button.put(False))  # type: ignore[misc]
                self._released_at = self._now()

    # ---- the ground

    async def _shut(self) -> None:
        """End the keeper, let go of the lines, end the thread."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        if self._settle is not None:
            self._settle.cancel()
            self._settle = None
        self._led.lost()
        panel, self._panel = self._panel, None
        thread, self._thread = self._thread, None
        if thread is not None:
            if panel is not None:
                await to_the_end(thread.submit(panel.close))
            thread.shutdown(wait=False)

    async def _call(self, work: Callable[[], T]) -> T:
        """Run blocking line work in the driver's thread, in turn."""
        if self._thread is None:
            raise self._closed("using its lines")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _claimed(self) -> Panel:
        if self._panel is None:
            raise self._closed("using its lines")
        return self._panel

    def _check_open(self, doing: str) -> None:
        if self._closing or self._thread is None:
            raise self._closed(doing)

    def _closed(self, doing: str) -> NicagentError:
        return NicagentError(
            Kind.UNAVAILABLE, f"host {self._host}: its power driver is closed; {doing} was given up", ""
        )

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _now_says(self) -> Power:
        return self._led.says(self._now())

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

"""Walks one host through its life: takes events one at a time, makes each move durable, then acts.

The walker owns no facts of its own. What must survive is in its `HostRecord`, written before the first action
of a state; the actions are idempotent, so after a crash RESTARTED repeats them. One task works through the
queue; the actions of a state run as a second task that a later event may cancel, which every driver is built
for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from nicagent import lifecycle
from nicagent.config import GpioPower, Host, IpmiPower
from nicagent.console.contract import Displays
from nicagent.errors import Kind, NicagentError
from nicagent.lifecycle import Action, Event, Row
from nicagent.model import Cause, DomainEvent, Export, HostState, Initiator, Power, PowerAction
from nicagent.network.contract import NetworkDriver
from nicagent.power.contract import PowerDriver
from nicagent.storage.contract import HostStorage
from nicagent.store import HostRecord, Run, Store

log = logging.getLogger("nicagent.host")

BootSetter = Callable[[str, Export | None], Awaitable[None]]
Publish = Callable[[HostRecord, Power, DomainEvent | None], None]

POWER_FACTS: Mapping[Power, Event] = {
    Power.ON: Event.POWER_ON_SEEN,
    Power.OFF: Event.POWER_OFF_SEEN,
    Power.UNKNOWN: Event.POWER_UNKNOWN_SEEN,
}
RETRY_LAST_SECONDS = 30.0  # the longest wait between two attempts
RETRY_SECONDS = 1.0  # until a fact that could not be made durable is tried again
INTENTS_WAITING = 256  # more are refused; facts never are
AT_REST = frozenset({HostState.RUNNING, HostState.FREE, HostState.FAULT})
AGENT = "nicagent"  # who asks, when a fact or a deadline moves the host


@dataclass(frozen=True)
class Parts:
    """One host's drivers and wiring, built by `agent` from the config."""

    name: str
    config: Host
    power: PowerDriver
    storage: HostStorage
    initiator: Initiator
    network: NetworkDriver | None
    set_boot: BootSetter | None
    displays: Displays | None = None


@dataclass
class Step:
    """An event in the queue.

    `taken` resolves once its move is durable, or fails when it is illegal. `acted` resolves once the move's
    actions have ended well, or fails with what went wrong. `reached` resolves with the first state of `until`
    that the host comes into. `of` is the move that our own DONE, FAILED and DEADLINE
    belong to: they are stale, and dropped, once another move was made.
    """

    event: Event
    cause: Cause
    taken: asyncio.Future[None]
    acted: asyncio.Future[None]
    reached: asyncio.Future[HostState]
    until: frozenset[HostState] = frozenset()
    run: Run | None = None
    of: int | None = None

    def fail(self, error: NicagentError) -> None:
        """Whoever still waits for any of it is told."""
        for outcome in (self.taken, self.acted, self.reached):
            if not outcome.done():
                outcome.set_exception(error)


class Walker:
    """The life of one host. Only the controller talks to it."""

    def __init__(self, parts: Parts, record: HostRecord, store: Store, publish: Publish) -> None:
        self.parts = parts
        self.record = record
        self.power = Power.UNKNOWN
        self.last: Run | None = None  # the run that ended here last, with its ending
        self._store = store
        self._publish = publish
        self._power_missing = ""  # why the power driver does not start
        self._queue: asyncio.Queue[Step] = asyncio.Queue()
        self._ended = False
        self._acting: asyncio.Task[None] | None = None
        self._recovering: asyncio.Task[None] | None = None
        self._changing: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._power_seen = asyncio.Event()
        self._moves = 0
        self._waiting: list[Step] = []

    @property
    def trouble(self) -> str:
        """Why power cannot be read, while it cannot and that is known."""
        if self.power is not Power.UNKNOWN:
            return ""
        return self._power_missing or self.parts.power.trouble

    # ---- life of the walker itself

    async def run(self) -> None:
        """Work until cancelled. A power driver that is not there is tried again; the host reads UNKNOWN."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.parts.storage.watch_over())
            group.create_task(self._start_power())
            self._put(Event.RESTARTED, Cause(AGENT, "agent start"))
            try:
                while True:
                    await self._take(await self._queue.get())
            finally:
                self._set_deadline(None)
                await self._stop_acting()
                await self._stop_recovering()
                await self._stop_changing()
                await self.parts.power.close()
                self._dismiss()

    def _dismiss(self) -> None:
        """Nobody may wait for a walker that has ended; what was made durable goes on at the next start."""
        self._ended = True
        while not self._queue.empty():
            self._waiting.append(self._queue.get_nowait())
        for step in self._waiting:
            step.fail(self._stopping())
        self._waiting.clear()

    def _stopping(self) -> NicagentError:
        return NicagentError(
            Kind.UNAVAILABLE,
            f"the agent of host {self.parts.name} is stopping",
            "what was asked is gone on with when it is back",
        )

    async def _start_power(self) -> None:
        wait = 1.0
        while True:
            try:
                await self.parts.power.start()
            except NicagentError as e:
                self._power_missing = str(e)
                log.error("%s: power: %s; trying again in %g s", self.parts.name, e, wait)
                await asyncio.sleep(wait)
                wait = min(wait * 2, 30.0)
            else:
                self._power_missing = ""
                self.parts.power.watch(self._power_fact)
                return

    def _power_fact(self, power: Power) -> None:
        if power is self.power:
            return
        self.power = power
        self._power_seen.set()
        log.info("%s: power is %s", self.parts.name, power.value)
        self._put(POWER_FACTS[power], Cause(AGENT, f"power is {power.value}"))

    def _put(
        self,
        event: Event,
        cause: Cause,
        *,
        run: Run | None = None,
        until: frozenset[HostState] = frozenset(),
        of: int | None = None,
    ) -> Step:
        loop = asyncio.get_running_loop()
        step = Step(
            event, cause, loop.create_future(), loop.create_future(), loop.create_future(), until, run, of
        )
        for outcome in (step.taken, step.acted, step.reached):
            # Nobody need look at the outcome of a fact; an unobserved failure must not be logged as lost.
            outcome.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self._ended:
            step.fail(self._stopping())
        else:
            self._queue.put_nowait(step)
        return step

    # ---- what the controller asks

    async def ask(
        self, event: Event, cause: Cause, *, run: Run | None = None, until: frozenset[HostState] = frozenset()
    ) -> Step:
        """Put an intent through the table; returns once it is durable. Raises WRONG_STATE when it is illegal.

        Await the step's `acted` or `reached` for more.
        """
        if self._queue.qsize() >= INTENTS_WAITING:
            raise NicagentError(
                Kind.WRONG_STATE, f"host {self.parts.name} has too much to do", "ask again later"
            )
        step = self._put(event, cause, run=run, until=until)
        await step.taken
        return step

    async def change(self, after: Run, cause: Cause) -> None:
        """Have the run go on with other disks or ports; returns once they are there. Calls must not overlap.

        Durable first: after a death in between the new ones are brought up at recovery. When a driver
        refuses, all is as before, and what it said is raised. Raises WRONG_STATE when the host does not run,
        or no longer.
        """
        before = self.record.run
        if before is None or before.id != after.id:
            raise NicagentError(Kind.WRONG_STATE, "domain is not running")
        await self.ask(Event.CHANGE, cause, run=after)
        refused = await self._changed(before, after, cause)
        if refused is None:
            return
        back = Cause(AGENT, f"a change was refused: {refused}")
        with contextlib.suppress(NicagentError):  # it was stopped meanwhile: nothing is left to go back to
            await self.ask(Event.CHANGE, back, run=before)
            failed = await self._changed(after, before, back)
            if failed is not None:
                log.error(
                    "%s: what was before a refused change did not come back: %s", self.parts.name, failed
                )
        raise refused

    async def _changed(self, before: Run, after: Run, cause: Cause) -> NicagentError | None:
        """Bring a durable change about; what stood in the way, if anything did."""
        if self.record.run is not after:
            return NicagentError(Kind.WRONG_STATE, "the domain was stopped meanwhile")
        task = self._changing = asyncio.create_task(self._apply(before, after, cause))
        await asyncio.wait([task])
        if self._changing is task:
            self._changing = None
        if task.cancelled():
            return NicagentError(Kind.WRONG_STATE, "the domain was stopped meanwhile")
        failure = task.exception()
        if failure is None or isinstance(failure, NicagentError):
            return failure
        log.error("%s: our own fault", self.parts.name, exc_info=failure)
        return NicagentError(Kind.INTERNAL, f"internal error: {failure}")

    async def at_rest(self, seconds: float) -> None:
        """Wait until power was read, and what that means for a run is walked through; at most `seconds`."""
        if not await self.await_fact(seconds):
            return
        if self.record.run is not None and self.power is Power.OFF:
            step = self._put(Event.POWER_OFF_SEEN, Cause(AGENT, "power is off"), until=AT_REST)
            with contextlib.suppress(TimeoutError, NicagentError):
                async with asyncio.timeout(seconds):
                    await step.reached

    async def await_power(self, wanted: Power, seconds: float) -> bool:
        """Wait until power reads `wanted`; False when the time is spent."""
        return await self._await_power(lambda power: power is wanted, seconds)

    async def await_fact(self, seconds: float) -> bool:
        """Wait until power can be read and its watcher has said so; False when the time is spent."""
        return await self._await_power(lambda _: self.power is not Power.UNKNOWN, seconds)

    async def _await_power(self, enough: Callable[[Power], bool], seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while not enough(await self.parts.power.read()):
                    # Watch and read both: an edge wakes us, a poll finds what a driver could not watch.
                    self._power_seen.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.25):
                            await self._power_seen.wait()
        except TimeoutError:
            return False
        return True

    # ---- one step

    async def _take(self, step: Step) -> None:
        if step.of is not None and step.of != self._moves:
            return
        try:
            row = lifecycle.step(self.record.state, step.event)
            if row.quiet:
                self._publish(self.record, self.power, None)
            else:
                await self._make_move(row, step)
        except NicagentError as e:
            # Illegal, or it could not be made durable (a full disk): nothing is done, nothing has changed.
            log.warning("%s: %s not taken: %s", self.parts.name, step.event.value, e)
            step.fail(e)
            if step.event not in lifecycle.INTENTS and e.kind is not Kind.WRONG_STATE:
                # What happened stays true while the disk is full: it is taken once there is room.
                asyncio.get_running_loop().call_later(RETRY_SECONDS, self._again, step)
            return
        if step.until:
            self._waiting.append(step)
            if row.quiet:
                self._arrived(self.record.state)
        if not step.taken.done():
            step.taken.set_result(None)
        if not row.actions and not step.acted.done():
            step.acted.set_result(None)

    def _again(self, step: Step) -> None:
        event = step.event
        if event in POWER_FACTS.values():
            event = POWER_FACTS[self.power]  # the fact of now, not that of a second ago
        self._put(event, step.cause, run=step.run, until=step.until, of=step.of)

    async def _make_move(self, row: Row, step: Step) -> None:
        record = self._after(row, step)
        await self._store.put_host(record, must=step.event in lifecycle.ENDS)
        if row.actions or row.next is not self.record.state:
            await self._stop_acting()
        if row.next is HostState.CLEANING:
            await self._stop_recovering()
            await self._stop_changing()
        self._moves += 1
        log.log(
            logging.WARNING if step.event in (Event.FAILED, Event.DEADLINE) else logging.INFO,
            "%s: %s → %s: %s (%s)",
            record.name,
            self.record.state.value,
            record.state.value,
            record.reason,
            step.cause.who,
        )
        self._tell(row, record)
        if step.event is not Event.CHANGE:  # an OS that was asked to go down has no more time for it
            self._set_deadline(self._seconds(row, step.event))
        if row.actions:
            self._acting = asyncio.create_task(self._act(row, step, self._moves))
        if row.recovers and self._recovering is None:
            self._recovering = asyncio.create_task(self._recover(step.cause))

    def _after(self, row: Row, step: Step) -> HostRecord:
        """The record after a move."""
        old = self.record
        run = step.run if step.run is not None else old.run
        failed = step.event in (Event.FAILED, Event.DEADLINE)
        reason = row.reason
        if failed and step.cause.why:
            reason = f"{row.reason}: {step.cause.why}"
        if run is not None and row.ending is not None:
            run = replace(run, ending=row.ending, failure=reason if failed else "")
        changed = row.next is not old.state
        marks = dict(old.marks)
        if step.event is Event.START:
            marks = {"asked": time.time()}
        if changed and row.next is HostState.RUNNING and "power-good" not in marks:
            marks["power-good"] = time.time()
        return HostRecord(
            name=old.name,
            state=row.next,
            reason=reason or old.reason,
            cause=step.cause if changed or step.event in lifecycle.INTENTS else old.cause,
            since=time.time() if changed else old.since,
            run=None if row.next is HostState.FREE else run,
            marks=marks,
        )

    def _tell(self, row: Row, record: HostRecord) -> None:
        """Publish the move, and the end of a run with it."""
        old, self.record = self.record, record
        if record.state is HostState.FREE and old.run is not None:
            self.last = old.run
            self._publish(replace(record, run=old.run), self.power, old.run.ending)
        else:
            # A run starts once: power-good after a cycle or a reboot is no start.
            again = row.tells is DomainEvent.STARTED and "power-good" in old.marks
            self._publish(record, self.power, None if again else row.tells)
        if record.state is not old.state:
            self._arrived(record.state)

    def _arrived(self, state: HostState) -> None:
        for step in [step for step in self._waiting if state in step.until]:
            self._waiting.remove(step)
            if not step.reached.done():
                step.reached.set_result(state)

    def _seconds(self, row: Row, event: Event) -> float | None:
        """The clock of the state that was entered; how long an OS may take to go down is the host's own."""
        if event is Event.SHUTDOWN or row.next is HostState.REBOOTING:
            return self.parts.config.shutdown_seconds
        return lifecycle.DEADLINES[row.next]

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if seconds is not None:
            cause, of = Cause(AGENT, f"not done within {seconds:g} s"), self._moves
            self._deadline = asyncio.get_running_loop().call_later(
                seconds, lambda: self._put(Event.DEADLINE, cause, of=of)
            )

    # ---- actions

    async def _stop_acting(self) -> None:
        if self._acting is not None:
            self._acting.cancel()
            # Not `await` with its CancelledError suppressed: that would swallow our own cancellation too.
            await asyncio.wait([self._acting])
            self._acting = None

    async def _stop_recovering(self) -> None:
        if self._recovering is not None:
            self._recovering.cancel()
            await asyncio.wait([self._recovering])
            self._recovering = None

    async def _act(self, row: Row, step: Step, of: int) -> None:
        name = self.parts.name
        try:
            for action in row.actions:
                log.debug("%s: %s", name, action.value)
                await self._do(action, step.cause)
        except NicagentError as e:
            step.acted.set_exception(e)
            self._put(Event.FAILED, Cause(AGENT, str(e)), of=of)
        except asyncio.CancelledError:
            step.acted.set_exception(
                NicagentError(
                    Kind.WRONG_STATE, f"{step.event.value} of host {name} was overtaken by something else"
                )
            )
            raise
        except Exception as e:
            log.exception("%s: our own fault", name)
            step.acted.set_exception(NicagentError(Kind.INTERNAL, f"internal error: {e}"))
            self._put(Event.FAILED, Cause(AGENT, f"internal error: {e}"), of=of)
        else:
            step.acted.set_result(None)
            self._put(Event.DONE, step.cause, of=of)

    async def _stop_changing(self) -> None:
        if self._changing is not None:
            self._changing.cancel()
            await asyncio.wait([self._changing])
            self._changing = None

    async def _apply(self, before: Run, after: Run, cause: Cause) -> None:
        """What differs between two stages of one run, through the drivers."""
        if after.exports != before.exports:
            await self._do(Action.EXPORTS_UP, cause)
            await self._do(Action.BOOT_SET, cause)
        if after.bindings != before.bindings:
            await self._do(Action.PORTS_UP, cause)
        if after.display != before.display:
            await self._do(Action.SCREEN_UP, cause)

    async def _recover(self, cause: Cause) -> None:
        """After a restart: what a run that goes on needs beside power, each part until it is up again.

        Not part of the state's actions: what a client then asks of the host must not cut it short.
        """
        left, wait = list(lifecycle.UP), RETRY_SECONDS
        while left:
            for action in tuple(left):
                try:
                    await self._do(action, cause)
                except NicagentError as e:
                    log.error("%s: %s: %s; trying again in %g s", self.parts.name, action.value, e, wait)
                else:
                    left.remove(action)
            if left:
                await asyncio.sleep(wait)
                wait = min(wait * 2, RETRY_LAST_SECONDS)

    async def _do(self, action: Action, cause: Cause) -> None:
        parts, run = self.parts, self.record.run
        power = POWER_OF.get(action)
        if power is not None:
            await parts.power.apply(power, cause)
            return
        match action:
            case Action.EXPORTS_UP if run is not None:
                await parts.storage.present(run.exports, parts.initiator)
            case Action.PORTS_UP if run is not None and parts.network is not None:
                await parts.network.present(parts.name, [b for b in run.bindings if b.port.link])
            case Action.SCREEN_UP if run is not None and parts.displays is not None:
                await parts.displays.present(parts.name, run.display)
            case Action.BOOT_SET if run is not None and parts.set_boot is not None:
                first = boot_export(run)
                await parts.set_boot(parts.name, first)
            case Action.BOOT_CLEAR if parts.set_boot is not None:
                await parts.set_boot(parts.name, None)
            case Action.SCREEN_DOWN if parts.displays is not None:
                await parts.displays.withdraw(parts.name)
            case Action.PORTS_DOWN if parts.network is not None:
                await parts.network.withdraw(parts.name)
            case Action.EXPORTS_DOWN:
                await parts.storage.withdraw()
            case Action.SETTLE:
                await self.await_power(Power.ON, parts.config.pgood_seconds)
            case Action.AWAIT_PGOOD:
                await self._require(Power.ON, "power-good did not come")
            case Action.AWAIT_OFF:
                await self._require(Power.OFF, "power-good did not go")
            case Action.CHECK_POWER:
                await self._check_power()

    async def _require(self, wanted: Power, otherwise: str) -> None:
        seconds = self.parts.config.pgood_seconds
        if not await self.await_power(wanted, seconds):
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"{otherwise} on host {self.parts.name} within {seconds:g} s",
                WIRING[type(self.parts.config.power)],
            )

    async def _check_power(self) -> None:
        """What the LED says counts. A driver that does not answer yet, after a restart, is waited for."""
        seconds = self.parts.config.pgood_seconds
        if await self.await_power(Power.ON, seconds):
            return
        fact = await self.parts.power.read()
        self._put(POWER_FACTS[fact], Cause(AGENT, f"power is found {fact.value}"))


# What to look at where an action was done and the fact did not follow.
WIRING: Mapping[type, str] = {
    GpioPower: "check the wires of its power button and its power LED, and its power cord",
    IpmiPower: "its BMC said yes and did nothing: look at the BMC's own log",
}

POWER_OF: Mapping[Action, PowerAction] = {
    Action.POWER_ON: PowerAction.ON,
    Action.POWER_OFF: PowerAction.OFF,
    Action.POWER_SHUTDOWN: PowerAction.SHUTDOWN,
    Action.POWER_RESET: PowerAction.RESET,
    Action.POWER_PRESS: PowerAction.PRESS,
}


def boot_export(run: Run) -> Export | None:
    """The disk that the host boots: the lowest boot order, else the first disk that can be written."""
    ordered = [e for e in run.exports if e.disk.boot_order is not None]
    if ordered:
        return min(ordered, key=lambda e: e.disk.boot_order or 0)
    return next((e for e in run.exports if not e.disk.readonly), None)

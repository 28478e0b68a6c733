"""Walks one host through its life: takes events one at a time, makes each move durable, then acts.

The walker owns no facts of its own. What must survive is in its `HostRecord`, written before the first action
of a state; the actions are idempotent, so after a crash RESTARTED repeats them. One task works through the
queue; what a move begins runs beside it, as an errand that a later event may cancel, which every driver is
built for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from nicagent import actions, lifecycle
from nicagent.actions import Parts
from nicagent.errors import Kind, NicagentError
from nicagent.lifecycle import Action, Event, Row
from nicagent.model import Cause, DomainEvent, HostState, Power
from nicagent.powerwatch import PowerWatch
from nicagent.store import HostRecord, Run, Store

log = logging.getLogger("nicagent.host")

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
STOPPED = frozenset({HostState.FREE, HostState.FAULT})
AGENT = "nicagent"  # who asks, when a fact or a deadline moves the host


class Errand(Enum):
    """What the walker has under way beside its queue: one task of each at a time, begun by a move."""

    ACTING = "the actions of a state"
    CHANGING = "a change of disks or ports"
    RECOVERING = "what a run needs again after a restart"


@dataclass
class Step:
    """An event in the queue.

    `taken` resolves once its move is durable, or fails when it is illegal. `acted` resolves once the move's
    actions have ended well, or fails with what went wrong. `reached` resolves with the first state of `until`
    that the host comes into. `of` is the move that our own DONE, FAILED and DEADLINE belong to: they are
    stale, and dropped, once another move was made.
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
        self.watch = PowerWatch(parts.name, parts.config, parts.power, self._power_fact)
        self.last: Run | None = None  # the run that ended here last, with its ending
        self._store = store
        self._publish = publish
        self._queue: asyncio.Queue[Step] = asyncio.Queue()
        self._ended = False
        self._errands: dict[Errand, asyncio.Task[None]] = {}
        self._deadline: asyncio.TimerHandle | None = None
        self._moves = 0
        self._waiting: list[Step] = []

    # ---- life of the walker itself

    async def run(self) -> None:
        """Work until cancelled. A power driver that is not there is tried again; the host reads UNKNOWN."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.parts.storage.watch_over())
            group.create_task(self.watch.start())
            self._put(Event.RESTARTED, Cause(AGENT, "agent start"))
            try:
                while True:
                    await self._take(await self._queue.get())
            finally:
                self._set_deadline(None)
                await self._end(*Errand)
                await self.watch.close()
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

    def _power_fact(self, power: Power, words: str) -> None:
        self._put(POWER_FACTS[power], Cause(AGENT, words))

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
        task = self._begin(Errand.CHANGING, self._apply(before, after, cause))
        await asyncio.wait([task])
        if self._errands.get(Errand.CHANGING) is task:
            del self._errands[Errand.CHANGING]
        if task.cancelled():
            return NicagentError(Kind.WRONG_STATE, "the domain was stopped meanwhile")
        failure = task.exception()
        if failure is None or isinstance(failure, NicagentError):
            return failure
        log.error("%s: our own fault", self.parts.name, exc_info=failure)
        return NicagentError(Kind.INTERNAL, f"internal error: {failure}")

    async def at_rest(self, seconds: float) -> None:
        """Wait until power was read, and what that means for a run is walked through; at most `seconds`."""
        if not await self.watch.until_known(seconds):
            return
        if self.record.run is not None and self.watch.power is Power.OFF:
            step = self._put(Event.POWER_OFF_SEEN, Cause(AGENT, "power is off"), until=AT_REST)
            with contextlib.suppress(TimeoutError, NicagentError):
                async with asyncio.timeout(seconds):
                    await step.reached

    # ---- one step

    async def _take(self, step: Step) -> None:
        if step.of is not None and step.of != self._moves:
            return
        try:
            row = lifecycle.step(self.record.state, step.event)
            if row.quiet:
                self._publish(self.record, self.watch.power, None)
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
            event = POWER_FACTS[self.watch.power]  # the fact of now, not that of a second ago
        self._put(event, step.cause, run=step.run, until=step.until, of=step.of)

    async def _make_move(self, row: Row, step: Step) -> None:
        record = self._after(row, step)
        await self._store.put_host(record, must=step.event in lifecycle.ENDS)
        if row.actions or row.next is not self.record.state:
            await self._end(Errand.ACTING)
        if row.next is HostState.CLEANING:
            await self._end(Errand.RECOVERING, Errand.CHANGING)
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
            self._begin(Errand.ACTING, self._act(row, step, self._moves))
        if row.recovers and Errand.RECOVERING not in self._errands:
            self._begin(Errand.RECOVERING, self._recover(step.cause))

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
            self._publish(replace(record, run=old.run), self.watch.power, old.run.ending)
        else:
            # A run starts once: power-good after a cycle or a reboot is no start.
            again = row.tells is DomainEvent.STARTED and "power-good" in old.marks
            self._publish(record, self.watch.power, None if again else row.tells)
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

    # ---- errands

    def _begin(self, errand: Errand, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = self._errands[errand] = asyncio.create_task(work)
        return task

    async def _end(self, *errands: Errand) -> None:
        for errand in errands:
            task = self._errands.get(errand)
            if task is not None:
                task.cancel()
                # Not `await` with its CancelledError suppressed: that would swallow our own cancellation too.
                await asyncio.wait([task])
                self._errands.pop(errand, None)

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
            if row.done is not None and self.record.run is not None:
                self._publish(self.record, self.watch.power, row.done)
            step.acted.set_result(None)
            self._put(Event.DONE, step.cause, of=of)

    async def _apply(self, before: Run, after: Run, cause: Cause) -> None:
        for action in actions.between(before, after):
            await self._do(action, cause)

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
        await actions.do(action, self.parts, self.watch, self.record.run, cause)

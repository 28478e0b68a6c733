"""Power by a BMC that speaks IPMI 2.0 over LAN.

One task owns the conversation with the BMC (`_run`): it polls the power state for facts and serves the orders
that `apply` queues. So there is one session and one command at a time, never two closer than SPACING, and a
cancelled caller leaves nothing half-said. The IPMI library lives in a worker process (`ipmi_worker`), which
is replaced when it misses a deadline.

What the BMC says is reported, not what it promised: a BMC that answers "done" and does nothing is seen in the
facts, by whoever waits for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nicagent.config import IpmiPower
from nicagent.errors import Kind, NicagentError
from nicagent.model import Cause, Power, PowerAction
from nicagent.power.breaker import Breaker
from nicagent.power.causes import announce
from nicagent.power.contract import ALREADY_SO, PowerDriver, PowerWatcher
from nicagent.power.ipmi_link import Answer, Op, WorkerGone, WorkerLink

SPACING = 0.25  # seconds between two commands to a BMC: bursts have silenced many
RECENT = 1.0  # seconds for which a fact is good enough to decide an action by
LONGEST_BACKOFF = 60.0  # seconds
FIRST_FACT_SECONDS = 2.0  # that the first `read` waits for the first poll to end
QUICK_POLLS = 5  # after an action its effect is wanted soon: this many polls…
QUICK_SECONDS = 1.0  # …this far apart

log = logging.getLogger("nicagent.power")

_OP: Mapping[tuple[PowerAction, Power], Op] = {
    (PowerAction.ON, Power.OFF): "on",
    (PowerAction.OFF, Power.ON): "off",
    (PowerAction.SHUTDOWN, Power.ON): "soft",
    (PowerAction.RESET, Power.ON): "reset",
    (PowerAction.INTERRUPT, Power.ON): "interrupt",
    # IPMI has no button to press, so what a press would do is asked for.
    (PowerAction.PRESS, Power.OFF): "on",
    (PowerAction.PRESS, Power.ON): "soft",
}


@dataclass(frozen=True)
class _Order:
    """An action on its way to the BMC; a cancelled `done` means that nobody waits any more."""

    action: PowerAction
    cause: Cause
    done: asyncio.Future[None]


class IpmiPowerDriver(PowerDriver):
    """`PowerDriver` over one BMC."""

    def __init__(
        self,
        host: str,
        config: IpmiPower,
        *,
        spacing: float = SPACING,
        longest_backoff: float = LONGEST_BACKOFF,
    ) -> None:
        self._host = host
        self._config = config
        self._spacing = spacing
        self._breaker = Breaker(config.poll_seconds, max(longest_backoff, config.poll_seconds))
        self.freshness = config.poll_seconds + config.command_seconds + spacing
        self._watcher: PowerWatcher | None = None
        self._told: Power | None = None
        self._fact = Power.UNKNOWN
        self._fact_at = float("-inf")
        self._worked = False  # a command went out since that fact
        self._known = asyncio.Event()  # the first poll has ended, well or badly
        self._orders: asyncio.Queue[_Order] = asyncio.Queue()
        self._link: WorkerLink | None = None
        self._trouble: NicagentError | None = None  # the last failure, while it lasts
        self._spoke_at = float("-inf")
        self._poll_at = float("-inf")
        self._quick_polls = 0
        self._task: asyncio.Task[None] | None = None

    # ---- the contract

    @property
    def trouble(self) -> str:
        return str(self._trouble).removeprefix(f"host {self._host}: ") if self._trouble else ""

    async def start(self) -> None:
        """Begin to poll. The BMC is not waited for: one that is dead is a fact, not a reason not to start."""
        self._check_password_file()
        self._breaker.worked()
        self._trouble = None
        self._fact, self._fact_at, self._told = Power.UNKNOWN, float("-inf"), None
        self._known.clear()
        self._poll_at = float("-inf")
        self._task = asyncio.create_task(self._run(), name=f"BMC of {self._host}")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def read(self) -> Power:
        if self._task is not None and not self._known.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_FACT_SECONDS):
                    await self._known.wait()
        if self._task is None or self._now() - self._fact_at > self.freshness:
            return Power.UNKNOWN
        return self._fact

    async def apply(self, action: PowerAction, cause: Cause) -> None:
        if self._task is None or self._task.done():
            raise self._unavailable(f"{action} was given up: its power driver is closed", "")
        order = _Order(action, cause, asyncio.get_running_loop().create_future())
        self._orders.put_nowait(order)
        await order.done

    def deadline(self, action: PowerAction) -> float:
        return 2 * (self._config.command_seconds + self._spacing) + 1.0

    def watch(self, watcher: PowerWatcher) -> None:
        self._watcher = watcher
        self._told = None
        if self._known.is_set():
            self._tell()

    # ---- the one task that talks

    async def _run(self) -> None:
        try:
            while True:
                order = await self._next_order()
                if order is None:
                    await self._poll()
                elif not order.done.done():
                    await self._serve(order)
        except Exception:
            log.exception("%s: the power driver failed", self._host)
            raise
        finally:
            await self._end_link()
            while not self._orders.empty():
                self._finish(self._orders.get_nowait(), self._unavailable("its power driver is closed", ""))

    async def _next_order(self) -> _Order | None:
        """The next order, or None when it is time to poll."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._poll_at):
                return await self._orders.get()
        return None

    async def _poll(self) -> None:
        with contextlib.suppress(NicagentError):
            await self._exchange("status")
        if self._breaker.failures:
            self._poll_at = self._breaker.retry_at
        elif self._quick_polls:
            self._quick_polls -= 1
            self._poll_at = self._now() + min(QUICK_SECONDS, self._config.poll_seconds)
        else:
            self._poll_at = self._now() + self._config.poll_seconds

    async def _serve(self, order: _Order) -> None:
        try:
            await self._act(order)
        except NicagentError as error:
            self._finish(order, error)
        except BaseException:  # closed, or our own fault: the caller must not wait for ever
            self._finish(order, self._unavailable(f"{order.action} was interrupted", "ask again"))
            raise
        else:
            self._finish(order, None)

    @staticmethod
    def _finish(order: _Order, error: NicagentError | None) -> None:
        if order.done.done():
            return
        if error is None:
            order.done.set_result(None)
        else:
            order.done.set_exception(error)

    async def _act(self, order: _Order) -> None:
        action, now = order.action, self._now()
        if self._breaker.is_open(now):
            wait = self._breaker.retry_at - now
            raise self._unavailable(
                f"its BMC at {self._config.address} {self._breaker.why}",
                f"it is asked again in {wait:.0f} s; {self._trouble.hint if self._trouble else ''}",
            )
        if self._worked or now - self._fact_at > RECENT or self._fact is Power.UNKNOWN:
            # What was read before our own last command says nothing about what came of it.
            await self._exchange("status")
        if (action, self._fact) in ALREADY_SO:
            return
        op = _OP.get((action, self._fact))
        if op is None:
            raise NicagentError(
                Kind.WRONG_STATE,
                f"host {self._host} is {self._fact}, so {action} is not possible",
                "power it on instead",
            )
        self._quick_polls = QUICK_POLLS
        self._poll_at = self._now() + min(QUICK_SECONDS, self._config.poll_seconds)
        self._worked = True
        await self._exchange(op, order.cause)

    async def _exchange(self, op: Op, cause: Cause | None = None) -> None:
        """One command and its answer, within `command_seconds`. Raises what the contract allows."""
        await asyncio.sleep(max(0.0, self._spoke_at + self._spacing - self._now()))
        if cause is not None:
            announce(self._host, "ipmi", op, cause, f"chassis {op}")
        try:
            async with asyncio.timeout(self._config.command_seconds):
                if self._link is None:
                    self._link = await WorkerLink.spawn(self._config)
                answer = await self._link.ask(op)
        except TimeoutError:
            raise await self._failed(
                f"does not answer (not within {self._config.command_seconds:g} s)"
            ) from None
        except WorkerGone as gone:
            raise await self._failed(f"could not be asked (its IPMI worker ended: {gone})") from None
        finally:
            self._spoke_at = self._now()
        if not answer.ok:
            raise await self._refused(op, answer)
        self._trouble = None
        if self._breaker.worked():
            log.info("%s: its BMC at %s answers again", self._host, self._config.address)
        if answer.power is not None:
            self._learn(Power(answer.power))

    # ---- outcomes

    async def _refused(self, op: Op, answer: Answer) -> NicagentError:
        """The error for an answer that is not "ok"."""
        match answer.fault:
            case "silent":
                return await self._failed(f"does not answer ({answer.text})")
            case "denied":
                return await self._failed(
                    f"does not let us in ({answer.text})",
                    "check user and password_file of this host's power table",
                    for_sure=True,
                )
            case "unsupported":
                return NicagentError(
                    Kind.UNSUPPORTED,
                    f"host {self._host}: its BMC cannot do {answer.text}",
                    "use another action",
                )
            case "state":
                return NicagentError(
                    Kind.WRONG_STATE,
                    f"host {self._host}: its BMC will not do {answer.text} now",
                    "see its state",
                )
            case "refused":
                return self._unavailable(f"its BMC refuses {answer.text}", "try again")

    async def _failed(
        self, why: str, hint: str = "see that the BMC has power and its cable", *, for_sure: bool = False
    ) -> NicagentError:
        """No usable answer: the fact is unknown, the worker is replaced, the breaker counts."""
        self._trouble = self._unavailable(f"its BMC at {self._config.address} {why}", hint)
        if not self._breaker.failures:
            log.warning("%s", self._trouble)
        self._breaker.failed(self._now(), why, for_sure=for_sure)
        self._poll_at = self._breaker.retry_at
        self._learn(Power.UNKNOWN)
        link, self._link = self._link, None
        if link is not None:
            await link.kill()
        return self._trouble

    def _learn(self, fact: Power) -> None:
        self._worked = False
        self._fact, self._fact_at = fact, self._now()
        self._known.set()
        self._tell()

    def _tell(self) -> None:
        if self._fact is self._told:
            return
        self._told = self._fact
        if self._watcher is not None:
            self._watcher(self._fact)

    # ---- the ground

    async def _end_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.end()

    def _check_password_file(self) -> None:
        path = Path(self._config.password_file)
        if not os.access(path, os.R_OK):
            raise self._unavailable(
                f"its BMC's password file {path} cannot be read",
                "write the password into its first line, mode 0600",
            )
        if path.stat().st_mode & 0o077:
            log.warning("%s: others can read the password file %s; chmod 600 it", self._host, path)

    def _unavailable(self, what: str, hint: str) -> NicagentError:
        return NicagentError(Kind.UNAVAILABLE, f"host {self._host}: {what}", hint)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

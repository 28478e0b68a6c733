"""Power of hosts, for whoever stands in front of them: through a host's domain where it has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nicagent.errors import Kind, NicagentError
from nicagent.lifecycle import Event
from nicagent.model import Cause, HostState, HostStatus, Power, PowerAction
from nicagent.walker import AT_REST, STOPPED, Walker

# What is asked of a host that has no domain to be started or stopped by it.
ASKS: Mapping[PowerAction, Event] = {
    PowerAction.ON: Event.SWITCH_ON,
    PowerAction.OFF: Event.SWITCH_OFF,
    PowerAction.SHUTDOWN: Event.SHUTDOWN,
    PowerAction.RESET: Event.RESET,
    PowerAction.PRESS: Event.PRESS,
}
EFFECTS: Mapping[PowerAction, Power] = {PowerAction.ON: Power.ON, PowerAction.OFF: Power.OFF}


class Technician:
    """`walker` and `status` are the controller's look-ups by a host's name."""

    def __init__(self, walker: Callable[[str], Walker], status: Callable[[str], HostStatus]) -> None:
        self._walker = walker
        self._status = status

    async def power(self, host: str, action: PowerAction, cause: Cause) -> HostStatus:
        """Work the power of a host; returns once it was worked, and for ON and OFF once power reads so.

        Raises NOT_FOUND, WRONG_STATE, UNAVAILABLE.
        """
        walker = self._walker(host)
        occupied = walker.record.run is not None
        if action is PowerAction.INTERRUPT:
            await walker.parts.power.apply(action, cause)
        elif occupied and action is PowerAction.OFF:
            await (await walker.ask(Event.STOP, cause, until=STOPPED)).reached
        elif occupied and action is PowerAction.ON:
            if walker.record.state is not HostState.RUNNING:
                raise not_now(walker)
        else:
            step = await walker.ask(ASKS[action], cause)
            await step.acted
            await _see_effect(walker, action)
        return self._status(host)

    async def cycle(self, host: str, cause: Cause) -> HostStatus:
        """Off and on again; a domain keeps its disks and ports."""
        walker = self._walker(host)
        if walker.record.run is None:
            await self.power(host, PowerAction.OFF, cause)
            return await self.power(host, PowerAction.ON, cause)
        state = await (await walker.ask(Event.CYCLE, cause, until=AT_REST)).reached
        if state is not HostState.RUNNING:
            raise NicagentError(Kind.UNAVAILABLE, f"host {host} did not come back: {walker.record.reason}")
        return self._status(host)


async def _see_effect(walker: Walker, action: PowerAction) -> None:
    """What the LED says is told, not what the line was told."""
    wanted = EFFECTS.get(action)
    if wanted and not await walker.watch.until(wanted, walker.watch.pgood_seconds):
        raise NicagentError(
            Kind.UNAVAILABLE,
            f"host {walker.parts.name} was told to power {action.value} but its power reads"
            f" {walker.watch.power.value}",
            walker.watch.trouble or walker.watch.wiring,
        )


def not_now(walker: Walker) -> NicagentError:
    """The error of an act that a host's state does not allow."""
    name, state = walker.parts.name, walker.record.state
    return NicagentError(
        Kind.WRONG_STATE,
        f"host {name} is in state {state.value} ({walker.record.reason})",
        f"nicagent power off {name} clears it" if state is HostState.FAULT else "ask again later",
    )

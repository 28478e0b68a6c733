"""What a power driver is: the one contract behind GPIO lines, an IPMI BMC and whatever comes next.

An implementation **must**

- cause no edge and send no command on `start` and `close`: lines are claimed as they are;
- treat every action but PRESS as a target state: asking for what is already so does nothing;
- let go of a button whatever happens to the request: cancelled, failed, or the agent told to stop;
- log every edge or command with its cause, before it happens;
- run one action at a time on a host: `apply` calls queue in the order of their coming;
- finish each action within `deadline(action)` seconds, or raise UNAVAILABLE;
- report facts only: `read` gives what the LED or the BMC says now, UNKNOWN when it says nothing (a silent
  BMC, a bouncing LED), and never what an action was meant to achieve.

It **may** read facts ahead (poll, watch edges) and answer `read` from the last fact, if that is younger than
`freshness` seconds.

Legal order: `start` → (`read` | `apply` | `watch`)* → `close`. `start` after `close` is a new life.
Errors: UNAVAILABLE (no answer within the deadline, chip missing), UNSUPPORTED (this wiring cannot do it),
WRONG_STATE (RESET of a host that is off). Never anything else from a driver's own work.
"""

from __future__ import annotations

import abc
from collections.abc import Callable

from nicagent.model import Cause, Power, PowerAction

PowerWatcher = Callable[[Power], None]

# Target states that a fact shows to be reached: there is nothing to do, whatever the wiring.
ALREADY_SO = frozenset(
    {
        (PowerAction.ON, Power.ON),
        (PowerAction.OFF, Power.OFF),
        (PowerAction.SHUTDOWN, Power.OFF),
    }
)


class PowerDriver(abc.ABC):
    """Power of one host. See the module's text for what must hold."""

    freshness: float = 0.0  # seconds for which the answer of `read` may be old

    @property
    def trouble(self) -> str:
        """Why power cannot be read now, for people; empty while it can, or where the driver cannot tell."""
        return ""

    @abc.abstractmethod
    async def start(self) -> None:
        """Claim the wiring as it is and begin to watch facts. Raises UNAVAILABLE when it is not there.

        A button found pressed (a holder before us died in mid-press) is released at once and logged: the only
        edge that `start` may cause.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Stop watching and let go, without an edge. Idempotent; ends every task of the driver."""

    @abc.abstractmethod
    async def read(self) -> Power:
        """What the power LED or the BMC says. UNKNOWN rather than an error."""

    @abc.abstractmethod
    async def apply(self, action: PowerAction, cause: Cause) -> None:
        """Do it. Returns once the line has been worked or the BMC has agreed; `read` tells the effect."""

    @abc.abstractmethod
    def deadline(self, action: PowerAction) -> float:
        """The longest that `apply(action)` takes, in seconds, waiting for its turn excluded."""

    @abc.abstractmethod
    def watch(self, watcher: PowerWatcher) -> None:
        """Call `watcher` in the event loop's thread with every change of the fact, debounced, and once with
        the first fact known. One watcher at a time; a later one replaces the earlier.
        """

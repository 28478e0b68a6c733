"""What a power LED says, debounced: levels and times in, a `Power` out. No I/O, no clock of its own.

A level counts once it has stood still for `debounce` seconds. Until then the LED says UNKNOWN, for the truth
is on its way. What is *published* is calmer: a single clean edge goes straight from ON to OFF, and UNKNOWN is
only told of an LED that has not stood still for `patience` seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from nicagent.model import Power

PATIENCE = 10  # debounce times that an LED may bounce before its watchers are told UNKNOWN


@dataclass
class Led:
    """One power LED. Times are seconds of one monotonic clock, handed in by the caller."""

    debounce: float
    lit: bool | None = None  # as last heard; None: nobody says
    moved_at: float = float("-inf")  # when it last changed
    restless_since: float = float("-inf")  # when it left the last level that had stood still

    @property
    def patience(self) -> float:
        return self.debounce * PATIENCE

    def heard(self, lit: bool, now: float) -> bool:
        """Take a level in; True if it is news."""
        if lit == self.lit:
            return False
        if self.lit is None or self.stands_still(now):
            self.restless_since = now
        self.lit, self.moved_at = lit, now
        return True

    def lost(self) -> None:
        """Nobody can say any more."""
        self.lit = None

    def stands_still(self, now: float) -> bool:
        return now >= self.settles_at()

    def says(self, now: float) -> Power:
        """The fact at this moment: UNKNOWN while it bounces or nobody says."""
        if self.lit is None or not self.stands_still(now):
            return Power.UNKNOWN
        return Power.ON if self.lit else Power.OFF

    def publish(self, now: float) -> Power | None:
        """What watchers should hold for true at this moment; None: nothing new yet, ask at `settles_at`."""
        if self.lit is None or self.stands_still(now) or now >= self.restless_since + self.patience:
            return self.says(now)
        return None

    def settles_at(self) -> float:
        """When the level that was last heard will have stood still, if it does not move."""
        return self.moved_at + self.debounce

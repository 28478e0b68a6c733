"""When to try a silent BMC again: a circuit breaker, as plain data with a clock handed in."""

from __future__ import annotations

from dataclasses import dataclass

OPEN_AFTER = 2  # failures in a row; one lost datagram is nobody's outage


@dataclass
class Breaker:
    """Waits `floor` seconds after the first failure, twice that after the next, and so on up to `ceiling`."""

    floor: float
    ceiling: float
    failures: int = 0
    retry_at: float = float("-inf")
    why: str = ""

    def is_open(self, now: float) -> bool:
        """Whether asking is pointless at this moment."""
        return self.failures >= OPEN_AFTER and now < self.retry_at

    def failed(self, now: float, why: str, *, for_sure: bool = False) -> None:
        """Count a failure. `for_sure`: trying again cannot help (a wrong password), so it opens at once."""
        self.failures = max(self.failures + 1, OPEN_AFTER if for_sure else 0)
        wait = self.floor * 2.0 ** min(self.failures - 1, 30)
        self.retry_at = now + min(wait, self.ceiling)
        self.why = why

    def worked(self) -> bool:
        """An answer came; True if it ends an outage."""
        recovered = self.failures > 0
        self.failures, self.retry_at, self.why = 0, float("-inf"), ""
        return recovered

"""A grace period before leases are reaped: workers need time to renew them after an outage of Postgres or of this process."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.config.settings import settings

# A longer gap between two passes may have been a pause of the whole machine, so workers may have paused too.
MAX_PASS_GAP_S = 3.0


@dataclass
class ReapGrace:
    """Begins when Postgres has restarted, or when passes of this process were further apart than MAX_PASS_GAP_S."""

    postmaster: str | None = None
    until: float = 0.0
    last: float = field(default=float("-inf"))

    def is_on(self, *, postmaster: str, now: float) -> bool:
        """Whether leases may not be reaped now. postmaster: Postgres's start time; now: monotonic seconds."""
        if postmaster != self.postmaster or now - self.last > MAX_PASS_GAP_S:
            self.until = now + settings().lease_s + 2
        self.postmaster, self.last = postmaster, now
        return now < self.until

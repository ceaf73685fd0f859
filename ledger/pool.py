"""One pool as its holder sees it: what is free, bound and spent of the lease, and how much to hold.

All operations are synchronous and move credit between four buckets; only a grant, a return and an
acknowledged posting change their sum. `outstanding` is the holder's knowledge of the store's lease.

H   free + pending + unposted + returning = outstanding, and each of them ≥ 0, after every step.
    `returning` is credit already taken out of `free` whose return the store has not confirmed.

Sizing (rates are estimates, so floats are allowed there; the amounts they lead to are integers):
demand is 15 s of the spend rate, one large reservation, and what requests had bound lately and will
bind again. The pool asks below half of its target, or where the next large reservation would have
to wait; it gives back above twice its target, and everything when scarce, idle or recalled.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

from ledger.errors import LedgerDivergence, PoolKind
from ledger.store import PoolId, PoolStatus

BUDGET_POOL_MIN = 1 << 40
"""Pools of accounts carry the account's id; budget pools are numbered from here."""

HALF_LIFE_SECONDS = 10.0
RATE_SAMPLE_SECONDS = 0.2
SIZES_KEPT = 32
SCARCE_SECONDS = 10.0
EXHAUSTED_SECONDS = 1.0


class Lane(enum.Enum):
    """Which request to the store a pool takes part in; at most one."""

    IDLE = "idle"
    EXCHANGE = "exchange"
    GRANT = "grant"


@dataclass(frozen=True, slots=True)
class Sizing:
    """How much credit a holder keeps: nano-dollars and seconds."""

    lease_max: int = 50_000_000_000
    horizon_seconds: float = 15.0
    holding_seconds: float = 30.0


class HolderPool:
    """The holder's side of one lease, moved by the engine."""

    __slots__ = (
        "ask_after",
        "available",
        "balance",
        "charged",
        "exhausted_until",
        "free",
        "kind",
        "lane",
        "outstanding",
        "peak",
        "pending",
        "pool_id",
        "posting",
        "postings",
        "rate",
        "rate_at",
        "recalled",
        "recalls_asked",
        "recent",
        "refused_need",
        "returning",
        "scarce_until",
        "seen",
        "short_of",
        "sizes",
        "spent_total",
        "status",
        "told_pending",
        "unposted",
        "used_at",
    )

    def __init__(self, pool_id: int, now: float) -> None:
        self.pool_id = PoolId(pool_id)
        self.kind: PoolKind = "budget" if pool_id >= BUDGET_POOL_MIN else "account"
        self.free = 0
        self.pending = 0
        self.told_pending = 0  # as the store knows it
        self.unposted = 0
        self.returning = 0
        self.outstanding = 0
        self.status: int = PoolStatus.OPEN
        self.lane = Lane.IDLE
        # What the store said last; `charged` is what was charged since it posted anything.
        self.balance: int | None = None
        self.available = 0
        self.charged = 0
        self.posting = False  # events of this pool are on their way …
        self.postings = 0  # … and how often they arrived: tells which replies are of one time
        self.spent_total: int | None = None
        # Shortage.
        self.scarce_until = 0.0
        self.exhausted_until = 0.0
        self.refused_need = 0
        self.ask_after = 0.0  # while others give back, for reservations …
        self.short_of = 0  # … of this size or more
        self.recalls_asked = 0
        self.recalled = False
        # Estimates.
        self.used_at = now
        self.rate = 0.0
        self.seen = 0.0  # the weight of all samples of it
        self.peak = 0.0  # of what reservations bound at once
        self.rate_at = now
        self.recent = 0
        self.sizes: deque[int] = deque(maxlen=SIZES_KEPT)

    def check(self) -> None:
        """Raise LedgerDivergence unless invariant H holds."""
        if (
            self.free + self.pending + self.unposted + self.returning != self.outstanding
            or self.free < 0
            or self.pending < 0
            or self.unposted < 0
            or self.returning < 0
        ):
            raise LedgerDivergence(
                f"pool {self.pool_id}: free {self.free} + pending {self.pending} + unposted "
                f"{self.unposted} + returning {self.returning} ≠ outstanding {self.outstanding}"
            )

    @property
    def posted_balance(self) -> int | None:
        """Credited − charged, including what the store has not heard of yet."""
        return None if self.balance is None else self.balance - self.charged

    def knows_exhausted(self, now: float, amount: int) -> bool:
        """Whether the store refused this much a moment ago, and nothing it said since contradicts.

        What other holders have they may give back any time, so then it has to be asked.
        """
        need = amount - self.free
        return (
            now < self.exhausted_until
            and need >= self.refused_need
            and need > self.available
            and (self.balance is None or self.balance <= self.available + self.outstanding)
        )

    def exhausted(self, now: float, need: int) -> None:
        """Remember that the store had less than `need` to give."""
        self.exhausted_until = now + EXHAUSTED_SECONDS
        self.refused_need = need

    def target(self, now: float, sizing: Sizing) -> int:
        """The free credit this pool should hold."""
        if (
            now < self.scarce_until
            or self.recalled
            or self.status != PoolStatus.OPEN
            or now - self.used_at >= sizing.holding_seconds
        ):
            return 0
        self._sample(now)
        idle = max(int(self.peak) - self.pending, 0)  # bound again as soon as requests come
        demand = int(self.rate * sizing.horizon_seconds) + self.large_reservation() + idle
        return min(demand, sizing.lease_max)

    def surplus(self, target: int) -> int:
        """How much of `free` goes back to the store."""
        return self.free - target if self.free > 2 * target else 0

    def shortage(self, now: float, target: int) -> int:
        """How much to ask for ahead of need, so that the next reservation need not wait."""
        if self.free >= target or now < self.exhausted_until:
            return 0
        enough = max(target // 2, min(self.large_reservation(), target))
        return target - self.free if self.free < enough else 0

    def large_reservation(self) -> int:
        """The 95th percentile of recent reservations."""
        if not self.sizes:
            return 0
        return sorted(self.sizes)[len(self.sizes) * 95 // 100]

    def _sample(self, now: float) -> None:
        elapsed = now - self.rate_at
        if elapsed < RATE_SAMPLE_SECONDS:
            return
        decay = 0.5 ** (elapsed / HALF_LIFE_SECONDS)
        # Weighed by what was seen, so that the first second counts for all there is.
        self.seen = self.seen * decay + (1 - decay)
        self.rate += (self.recent / elapsed - self.rate) * (1 - decay) / self.seen
        self.peak = max(self.peak * decay, self.pending)
        self.recent = 0
        self.rate_at = now

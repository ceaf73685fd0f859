"""What a holder holds: its pools, the reservations bound in them, and the events they became.

The engine decides who may reserve, the lanes talk to the store; both change this book, and only
by the methods here does credit move between the buckets of a pool. Invariant H (`pool.py`) is
checked once for all that was moved together, before anything of it is journalled, answered or told
to the store; a breach halts the holder for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ledger.errors import LedgerDivergence
from ledger.outbox import Outbox
from ledger.pool import HolderPool
from ledger.records import Extend, Record, Reserve
from ledger.reservation import Hold, ReservationRequest, Settlement
from ledger.store import UsageEvent


class Book:
    """The state of one holder. Amounts are nano-dollars, times any clock that never goes back.

    `active` are the pools to look at in the next exchange; `moved` become active once they are
    checked. `records` is what the journal has to be told before anything is answered.
    """

    def __init__(self, applied_seq: int, next_seq: int) -> None:
        self.outbox = Outbox(applied_seq, next_seq)
        self.open: dict[int, Hold] = {}
        self.active: dict[HolderPool, None] = {}
        self.moved: dict[HolderPool, None] = {}
        self.records: list[Record] = []
        self.leased = 0
        self.overrun = 0
        self.halted: str | None = None
        self._pools: dict[int, HolderPool] = {}

    # -- pools --------------------------------------------------------------------------------

    def pool(self, pool_id: int, now: float) -> HolderPool:
        """The pool, new if nothing is known of it."""
        pool = self._pools.get(pool_id)
        if pool is None:
            pool = self._pools[pool_id] = HolderPool(pool_id, now)
        return pool

    def pools_of(self, pool_ids: Iterable[int], now: float) -> tuple[HolderPool, ...]:
        """The pools in this order, new ones where nothing is known of them."""
        try:
            return tuple(map(self._pools.__getitem__, pool_ids))
        except KeyError:
            return tuple([self.pool(pool_id, now) for pool_id in pool_ids])

    def find_pool(self, pool_id: int) -> HolderPool | None:
        """The pool, if anything is known of it."""
        return self._pools.get(pool_id)

    @property
    def pools(self) -> Iterable[HolderPool]:
        """Every known pool."""
        return self._pools.values()

    def forget(self, pool: HolderPool) -> None:
        """Nothing is held of it, nothing happens with it."""
        del self._pools[pool.pool_id]

    def set_outstanding(self, pool: HolderPool, outstanding: int) -> None:
        """The store's lease is now this much."""
        if pool.kind == "account":
            self.leased += outstanding - pool.outstanding
        pool.outstanding = outstanding

    # -- reservations -------------------------------------------------------------------------

    def bind(self, now: float, hold: Hold) -> None:
        """Take a new reservation's amount out of what is free."""
        request, amount = hold.request, hold.amount
        for pool in hold.pools:
            pool.free -= amount
            pool.pending += amount
            pool.used_at = now
            if amount:
                pool.sizes.append(amount)
                if pool.pending > pool.peak:
                    pool.peak = pool.pending
            self.moved[pool] = None
        self.open[hold.id] = hold
        self.records.append(
            Reserve(
                hold.id,
                request.request_id,
                request.account_id,
                request.key_id,
                request.pools,
                amount,
                request.model_id,
                request.provider_id,
                request.price_id,
                request.endpoint,
            )
        )

    def grow(self, now: float, hold: Hold, extra: int) -> None:
        """Take more for an open reservation."""
        hold.amount += extra
        for pool in hold.pools:
            pool.free -= extra
            pool.pending += extra
            pool.used_at = now
            self.moved[pool] = None
        self.records.append(Extend(hold.id, extra))

    def shrink(self, hold: Hold, extra: int) -> None:
        """The opposite of `grow`, where that could not be journalled: it never was."""
        hold.amount -= extra
        for pool in hold.pools:
            pool.pending -= extra
            pool.free += extra
            self.moved[pool] = None

    def release(self, now: float, hold: Hold) -> None:
        """Void a reservation: all of it is free again."""
        del self.open[hold.id]
        hold.state = "void"
        for pool in hold.pools:
            pool.pending -= hold.amount
            pool.free += hold.amount
            pool.used_at = now
            self.moved[pool] = None

    def post(self, now: float, hold: Hold, settlement: Settlement) -> UsageEvent:
        """Settle a reservation: the event that says what of the charge each pool's lease covers."""
        del self.open[hold.id]
        hold.state = "settled"
        pools, amount, charge = hold.pools, hold.amount, settlement.charge
        covered, short = (charge,) * len(pools), (0,) * len(pools)
        if charge > amount or self.halted is not None:  # else nothing free is below 0
            covered = tuple([min(charge, amount + pool.free) for pool in pools])
            short = tuple([charge - part for part in covered])
            self.overrun += charge - amount
        for pool, part in zip(pools, covered):  # noqa: B905  # `strict` takes as long as all of it
            pool.pending -= amount
            pool.free += amount - part
            pool.unposted += part
            pool.charged += charge
            pool.recent += charge
            pool.used_at = now
            self.moved[pool] = None
        return self._add(now, hold, settlement, amount, charge, covered, short)

    def add_event(
        self, now: float, hold: Hold, settlement: Settlement, *, reserved: int
    ) -> UsageEvent:
        """Append the next event of the sequence, one that charges nothing anywhere."""
        nothing = (0,) * len(hold.request.pools)
        return self._add(now, hold, settlement, reserved, 0, nothing, nothing)

    def _add(
        self,
        now: float,
        hold: Hold,
        settlement: Settlement,
        reserved: int,
        charge: int,
        covered: tuple[int, ...],
        short: tuple[int, ...],
    ) -> UsageEvent:
        request, counts = hold.request, settlement.tokens
        event = UsageEvent(  # in the order of its fields: with their names it takes 5 × as long
            self.outbox.next_seq,
            settlement.occurred_at,
            request.request_id,
            request.account_id,
            request.key_id,
            request.model_id,
            settlement.provider_id,
            settlement.price_id,
            request.endpoint,
            int(settlement.status),
            reserved,
            settlement.cost,
            charge,
            counts.input,
            counts.cached_input,
            counts.output,
            counts.reasoning,
            settlement.ttfb_ms,
            settlement.duration_ms,
            counts.units,
            request.pools,
            covered,
            short,
        )
        self.outbox.add(now, event)
        return event

    # -- events that the store has, or will never have --------------------------------------------

    def charges(self, event: UsageEvent) -> Iterator[tuple[HolderPool, int, int]]:
        """What an event takes from each pool: covered by the lease, and not."""
        for pool_id, part, rest in zip(event.pools, event.covered, event.short, strict=True):
            if part or rest:  # else the pool may have been forgotten
                yield self._pools[pool_id], part, rest

    def owe(self, now: float, event: UsageEvent) -> None:
        """An event of the journal is to be posted, although no lease is known to cover it.

        Until a session tells the lease, H holds with what is certain.
        """
        for pool_id, part, rest in zip(event.pools, event.covered, event.short, strict=True):
            pool = self.pool(pool_id, now)
            pool.unposted += part
            pool.charged += part + rest
            self.set_outstanding(pool, pool.outstanding + part)

    # -- consistency ------------------------------------------------------------------------------

    def take_records(self) -> list[Record]:
        """What the journal has to be told since the last call. Raises as of `check_moved`."""
        if self.moved:
            self.check_moved()
        records = self.records
        self.records = []
        return records

    def check_moved(self) -> None:
        """Invariant H for what was moved since the last call. Raises as of `check`."""
        moved, self.moved = self.moved, {}
        self.active.update(moved)
        self.check(moved)

    def check(self, pools: Iterable[HolderPool]) -> None:
        """Invariant H for `pools`. Raises LedgerDivergence and halts."""
        try:
            for pool in pools:
                pool.check()
        except LedgerDivergence as divergence:
            self.halted = f"the books disagree: {divergence}"
            raise

    def diverged(self, what: str) -> LedgerDivergence:
        """Halt; the exception to raise."""
        self.halted = f"the books disagree: {what}"
        return LedgerDivergence(what)

    def check_all(self) -> None:
        """Every invariant that can be seen from inside; for tests and after doubt."""
        self.check(self._pools.values())
        outbox = self.outbox
        assert len(outbox.events) == outbox.next_seq - outbox.applied_seq - 1, "a gap in the outbox"
        for pool in self._pools.values():
            bound = sum(hold.amount for hold in self.open.values() if pool in hold.pools)
            assert bound == pool.pending, f"pool {pool.pool_id}: {bound} bound, {pool.pending}"


def request_of(reserve: Reserve) -> ReservationRequest:
    """The request of a reservation that the journal remembers."""
    return ReservationRequest(
        request_id=reserve.request_id,
        account_id=reserve.account_id,
        key_id=reserve.key_id,
        pools=reserve.pools,
        amount=reserve.amount,
        tokens=0,
        limits=(),
        model_id=reserve.model_id,
        provider_id=reserve.provider_id,
        price_id=reserve.price_id,
        endpoint=reserve.endpoint,
    )

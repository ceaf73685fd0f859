"""The books in memory: what `migrations/` do for the ledger, in plain Python.

For tests and simulations of everything above the store. Each operation is one transaction: it
checks everything first and then changes, refuses with the same SQLSTATE as the database would,
and the two must end in the same figures. Nothing here fails or delays, and only `hints` awaits;
faults are put around it. A failover is `fail_over`, to a standby that is a `copy` of earlier.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import msgspec
import trio

from ledger.pool import BUDGET_POOL_MIN
from ledger.store import (
    MAX_REQUEST_SECONDS,
    VALIDITY_SECONDS,
    Ask,
    CreditHint,
    Hint,
    HolderId,
    HolderRow,
    HolderState,
    PoolGrant,
    PoolId,
    PoolReport,
    PoolStatus,
    RecallHint,
    Session,
    StoreRefused,
    UsageEvent,
    Violation,
    emptied,
)

CUSTOMER_CREDIT, PROVIDER_PAYABLE = 1, 2  # kinds that have an owner
MARGIN_REVENUE, PROMOTIONS, UNBILLED_COST, OVERRUN_LOSS, FAILOVER_LOSS = 3, 8, 10, 11, 12
_FIRST_OWNED_ACCOUNT = 100  # those above are ours, and have the id of their kind
_FORCED_CODES = frozenset({7})  # debits that may take an account below its limit
_HINTS_MAX = 1000  # not yet read by a subscriber; what does not fit is lost, as hints may be


@dataclass(slots=True)
class Pool:
    """A row of `pool`."""

    pool_id: PoolId
    account_id: int
    gl_account_id: int | None
    funded: int = 0
    available: int = 0
    leased: int = 0
    spent: int = 0
    credit_limit: int = 0
    status: int = PoolStatus.OPEN
    expired: bool = False
    overgranted: int = 0

    @property
    def shortage(self) -> int:
        """How far what is available is below the credit limit."""
        return max(-(self.available + self.credit_limit), 0)

    @property
    def leasable(self) -> bool:
        """Whether grants may come from here."""
        return self.status == PoolStatus.OPEN and not self.expired

    def check(self) -> None:
        """The row's constraints."""
        sums = self.funded == self.available + self.leased + self.spent
        if not sums or self.leased < 0 or self.spent < 0:
            raise StoreRefused("23514", f"pool {self.pool_id} violates a check constraint")


@dataclass(slots=True)
class Lease:
    """A row of `lease`."""

    outstanding: int = 0
    pending: int = 0
    recall: bool = False
    spent_total: int = 0

    def check(self) -> None:
        """The row's constraints."""
        if self.outstanding < 0:
            raise StoreRefused("23514", "a lease violates a check constraint")


@dataclass(slots=True)
class Holder:
    """A row of `holder` with its progress."""

    journal_id: bytes
    node: str = ""
    epoch: int = 0
    state: HolderState = HolderState.ACTIVE
    applied_seq: int = 0
    heartbeat: int = 0
    validity_seconds: int = VALIDITY_SECONDS
    max_request_seconds: int = MAX_REQUEST_SECONDS
    timeline: int = 0  # of the database when the holder attested its leases


@dataclass(frozen=True, slots=True)
class Transfer:
    """A row of `transfer`: amounts are positive."""

    code: int
    debit: int
    credit: int
    amount: int
    account_id: int
    holder_id: int | None = None
    last_seq: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """A row of `batch`."""

    holder_id: int
    first_seq: int
    last_seq: int
    cost: int
    charge: int


@dataclass(slots=True)
class _Change:
    """The pools and leases that one transaction is about to write."""

    pools: dict[int, Pool] = field(default_factory=dict)
    leases: dict[tuple[int, int], Lease] = field(default_factory=dict)
    transfers: list[Transfer] = field(default_factory=list)


_TABLES = (
    *("pools", "leases", "holder_rows", "transfers", "batches", "events", "quarantine_rows"),
    *("timeline", "grants_enabled", "_gl", "_refs"),
)


class MemoryStore:
    """LedgerStore without a database. `server_timeline` changes when a standby takes over."""

    def __init__(self, *, synchronous_replication: bool = True) -> None:
        self.synchronous_replication = synchronous_replication
        self.server_timeline = 1
        self.timeline = 0  # as the latest session saw it
        self.pools: dict[int, Pool] = {}
        self.leases: dict[tuple[int, int], Lease] = {}
        self.holder_rows: dict[int, Holder] = {}
        self.transfers: list[Transfer] = []
        self.batches: list[Batch] = []
        self.events: list[tuple[int, UsageEvent]] = []  # with the holder
        self.quarantine_rows: dict[tuple[int, int], tuple[UsageEvent, str]] = {}
        self.grants_enabled = True
        self._gl: dict[tuple[int, int], int] = {}
        self._refs: set[tuple[int, str]] = set()
        self._subscribers: set[trio.MemorySendChannel[Hint]] = set()
        self._has_reaper = False

    def copy(self) -> MemoryStore:
        """The same books, from here on apart: what a standby or a backup knows."""
        standby = MemoryStore(synchronous_replication=self.synchronous_replication)
        standby.server_timeline = self.server_timeline
        standby._take_tables(self)
        return standby

    def fail_over(self, standby: MemoryStore) -> None:
        """A standby takes over: what it has not heard of never happened."""
        self._take_tables(standby)
        self.server_timeline += 1

    def _take_tables(self, other: MemoryStore) -> None:
        for name in _TABLES:
            setattr(self, name, copy.deepcopy(getattr(other, name)))

    # -- master data ------------------------------------------------------------------------

    def add_account(self, account_id: int, *, credit_limit: int = 0) -> PoolId:
        """A customer and its pool."""
        gl_account_id = self._owned(CUSTOMER_CREDIT, account_id)
        pool = Pool(PoolId(account_id), account_id, gl_account_id, credit_limit=credit_limit)
        self.pools[account_id] = pool
        return pool.pool_id

    def add_budget(self, pool_id: int, account_id: int, limit: int) -> PoolId:
        """A budget of `limit` nano-dollars; its id is at least 2⁴⁰."""
        assert pool_id >= BUDGET_POOL_MIN
        pool = Pool(PoolId(pool_id), account_id, None, funded=limit, available=limit)
        self.pools[pool_id] = pool
        return pool.pool_id

    def add_provider(self, provider_id: int) -> int:
        """A provider's account in the general ledger."""
        return self._owned(PROVIDER_PAYABLE, provider_id)

    # -- holders ----------------------------------------------------------------------------

    async def register_holder(
        self,
        journal_id: bytes,
        node: str,
        *,
        validity_seconds: int = VALIDITY_SECONDS,
        max_request_seconds: int = MAX_REQUEST_SECONDS,
    ) -> HolderId:
        """The id of the journal's holder; the same one every time."""
        known = (key for key, row in self.holder_rows.items() if row.journal_id == journal_id)
        holder_id = next(known, len(self.holder_rows) + 1)
        holder = self.holder_rows.setdefault(holder_id, Holder(journal_id))
        holder.node = node
        holder.validity_seconds = validity_seconds
        holder.max_request_seconds = max_request_seconds
        return HolderId(holder_id)

    async def open_session(self, holder: HolderId, journal_id: bytes) -> Session:
        """Supersede the holder's earlier sessions and say where it stands."""
        row = self.holder_rows.get(holder)
        if row is None or row.journal_id != journal_id or row.state is HolderState.CLOSED:
            raise StoreRefused("LE006", "holder unknown or closed")
        if self.timeline != self.server_timeline:
            self.timeline = self.server_timeline
            self.grants_enabled = self.synchronous_replication
        if row.epoch == 0:
            row.timeline = self.timeline  # it has nothing to attest
        row.epoch += 1
        row.heartbeat += 1
        if row.state is HolderState.FENCED:
            row.state = HolderState.ACTIVE
        leases = {
            PoolId(pool_id): lease.outstanding
            for (pool_id, owner), lease in self.leases.items()
            if owner == holder and lease.outstanding > 0
        }
        timeline = f"{self.timeline:08X}"
        return Session(holder, row.epoch, row.applied_seq, leases, row.state, timeline)

    async def reattest(self, session: Session, held: Mapping[PoolId, int]) -> int:
        """Make each lease at least what the holder says it holds. Unknown pools are left out."""
        holder = self._holder(session, HolderState.ACTIVE)
        change = _Change()
        total = 0
        for pool_id in held.keys() & self.pools.keys():
            lease = self._change_lease(change, pool_id, session.holder_id)
            lost = max(held[pool_id] - lease.outstanding, 0)
            pool = self._change_pool(change, pool_id)
            shortage = pool.shortage
            pool.available -= lost
            pool.leased += lost
            lease.outstanding += lost
            if pool.gl_account_id is not None:
                pool.overgranted += pool.shortage - shortage
            total += lost
        self._commit(change)
        holder.timeline = self.timeline
        return total

    async def close_holder(self, session: Session) -> None:
        """The end of a reclaimed holder; no session can be opened any more."""
        self._holder(session, HolderState.RECLAIMED).state = HolderState.CLOSED

    # -- what the reaper does -----------------------------------------------------------------

    @asynccontextmanager
    async def reaper_lock(self) -> AsyncIterator[bool]:
        """Whether nobody else has it."""
        free, self._has_reaper = not self._has_reaper, True
        try:
            yield free
        finally:
            self._has_reaper = not free

    async def holders(self) -> list[HolderRow]:
        """Everyone who may have credit."""
        return [
            HolderRow(
                HolderId(holder_id),
                holder.node,
                holder.state,
                holder.epoch,
                holder.heartbeat,
                holder.validity_seconds,
                holder.max_request_seconds,
            )
            for holder_id, holder in self.holder_rows.items()
            if holder.state in (HolderState.ACTIVE, HolderState.FENCED)
        ]

    async def fence_holder(self, holder: HolderId, heartbeat_seen: int) -> bool:
        """End the holder's session, if nothing arrived from it since."""
        row = self.holder_rows.get(holder)
        if row is None or row.state is not HolderState.ACTIVE or row.heartbeat != heartbeat_seen:
            return False
        row.state = HolderState.FENCED
        row.epoch += 1
        return True

    async def reclaim_holder(self, holder: HolderId, epoch_seen: int) -> int | None:
        """Put a fenced holder's credit back into its pools; None where it came back meanwhile."""
        row = self.holder_rows.get(holder)
        if row is None or row.state is not HolderState.FENCED or row.epoch != epoch_seen:
            return None
        change = _Change()
        total = 0
        for pool_id, owner in self.leases:
            if owner != holder:
                continue
            lease = self._change_lease(change, pool_id, holder)
            if lease.outstanding:
                pool = self._change_pool(change, pool_id)
                pool.available += lease.outstanding
                pool.leased -= lease.outstanding
                total += lease.outstanding
            lease.outstanding = lease.pending = 0
            lease.recall = False
        self._commit(change)
        row.state = HolderState.RECLAIMED
        return total

    async def end_learning(self) -> bool:
        """Grant again, if every active holder has attested its leases; False if nothing changed."""
        unknown = any(
            holder.state is HolderState.ACTIVE and holder.timeline != self.timeline
            for holder in self.holder_rows.values()
        )
        if self.grants_enabled or unknown:
            return False
        self.grants_enabled = True
        return True

    # -- hints ----------------------------------------------------------------------------------

    async def hints(self) -> AsyncIterator[Hint]:
        """What happens from now on that others may want to know."""
        sender, receiver = trio.open_memory_channel[Hint](_HINTS_MAX)
        self._subscribers.add(sender)
        try:
            async for hint in receiver:
                yield hint
        finally:
            self._subscribers.discard(sender)

    def _notify(self, hint: Hint) -> None:
        for subscriber in self._subscribers:
            with suppress(trio.WouldBlock):
                subscriber.send_nowait(hint)

    # -- the two lanes --------------------------------------------------------------------------

    async def exchange(
        self, session: Session, events: Sequence[UsageEvent], pools: Sequence[PoolReport]
    ) -> list[PoolGrant]:
        """Post the next run of events, take back surplus, grant what the reports want."""
        holder = self._holder(session, HolderState.ACTIVE, HolderState.RECLAIMED)
        change = _Change()
        if events:
            self._expect_sequence(holder, events[0].seq)
            contiguous = range(events[0].seq, events[0].seq + len(events))
            if [event.seq for event in events] != list(contiguous):
                raise StoreRefused("LE003", "batch length")
        self._expect_pools([report.pool_id for report in pools])
        self._expect_equal_charges(events, pools)
        last_seq = events[-1].seq if events else holder.applied_seq
        replies = [self._report(change, session, report, last_seq) for report in pools]
        told = {report.pool_id for report in pools}
        recalls = [
            self._reply(self.pools[pool_id], lease, 0)
            for (pool_id, owner), lease in sorted(self.leases.items())
            if owner == session.holder_id and lease.recall and pool_id not in told
        ]
        change.transfers += self._usage_transfers(session, events, last_seq)
        self._commit(change)
        if events:
            self._post(session, events)
        holder.heartbeat += 1
        return sorted(replies, key=lambda reply: reply.pool_id) + recalls

    async def grant_lease(self, session: Session, asks: Sequence[Ask]) -> list[PoolGrant]:
        """More credit for pools with waiting callers; recalls from others what is short."""
        self._holder(session, HolderState.ACTIVE)
        self._expect_pools([ask.pool_id for ask in asks])
        change = _Change()
        replies = []
        for ask in sorted(asks, key=lambda ask: ask.pool_id):
            pool = self._change_pool(change, ask.pool_id)
            cap = pool.available + pool.credit_limit
            granted = 0
            if self.grants_enabled and pool.leasable:
                granted = grant_amount(cap, ask.need, ask.want)
            lease = self.leases.get((pool.pool_id, session.holder_id), Lease())
            if granted:
                lease = self._change_lease(change, pool.pool_id, session.holder_id)
                pool.available -= granted
                pool.leased += granted
                lease.outstanding += granted
            recalled = 0
            if not granted and pool.status == PoolStatus.OPEN:
                recalled = self._recall(change, pool.pool_id, session.holder_id)
            reply = self._reply(pool, lease, granted)
            replies.append(msgspec.structs.replace(reply, recalled=recalled))
        self._commit(change)
        for reply in replies:
            if reply.recalled:
                self._notify(RecallHint(reply.pool_id))
        return replies

    async def quarantine(self, session: Session, event: UsageEvent, error: str) -> None:
        """Put the event aside and an empty one in its place of the sequence."""
        holder = self._holder(session, HolderState.ACTIVE, HolderState.RECLAIMED)
        self._expect_sequence(holder, event.seq)
        self.quarantine_rows[session.holder_id, event.seq] = (event, error)
        self._post(session, [emptied(event)])
        holder.heartbeat += 1

    # -- credit -----------------------------------------------------------------------------

    async def credit_pool(
        self, pool: PoolId, amount: int, code: int, contra: int, ref: str
    ) -> bool:
        """Add credit; False if (code, ref) was posted before."""
        if (code, ref) in self._refs:
            return False
        row = self._account(pool)
        row.funded += amount
        row.available += amount
        self._transfer(row, code, ref, contra, _ledger_account(row), amount)
        self._book_failover_loss(row)
        self._notify(CreditHint(row.account_id))
        return True

    async def debit_pool(
        self, pool: PoolId, amount: int, code: int, contra: int, ref: str, *, forced: bool = False
    ) -> bool:
        """Take available credit back; False if (code, ref) was posted before."""
        if (code, ref) in self._refs:
            return False
        row = self._account(pool)
        if row.available < amount and not forced:
            raise StoreRefused("LE007", "insufficient available credit")
        row.funded -= amount
        row.available -= amount
        self._transfer(row, code, ref, _ledger_account(row), contra, amount)
        self._book_failover_loss(row)
        return True

    # -- verification -----------------------------------------------------------------------

    async def check(self) -> list[Violation]:
        """The invariants C1 to C8 of the books."""
        return [
            *self._check_pools(),
            *self._check_sequences(),
            *self._check_batches(),
            *self._check_dead(),
        ]

    def _check_pools(self) -> Iterator[Violation]:
        forced = {t.account_id for t in self.transfers if t.code in _FORCED_CODES}
        for pool in self.pools.values():
            subject = f"pool {pool.pool_id}"
            leased = sum(
                lease.outstanding
                for (pool_id, _), lease in self.leases.items()
                if pool_id == pool.pool_id
            )
            if leased != pool.leased:
                yield Violation("C1", subject, f"leased {pool.leased}, leases {leased}")
            if pool.gl_account_id is None:
                continue
            if pool.shortage > pool.overgranted and pool.account_id not in forced:
                yield Violation("C2", subject, f"available {pool.available}")
            balance = sum(t.amount for t in self.transfers if t.credit == pool.gl_account_id)
            balance -= sum(t.amount for t in self.transfers if t.debit == pool.gl_account_id)
            if balance != pool.funded - pool.spent:
                yield Violation("C3", subject, f"{balance} ≠ {pool.funded} − {pool.spent}")
            charged = sum(e.charge for _, e in self.events if e.account_id == pool.account_id)
            if charged != pool.spent:
                yield Violation("C8", subject, f"spent {pool.spent}, events {charged}")

    def _check_sequences(self) -> Iterator[Violation]:
        for holder_id, holder in self.holder_rows.items():
            expected = 1
            for batch in self.batches:
                if batch.holder_id != holder_id:
                    continue
                if batch.first_seq != expected:
                    yield Violation("C4", f"holder {holder_id}", f"gap at {expected}")
                expected = batch.last_seq + 1
            if holder.applied_seq != expected - 1:
                yield Violation("C4", f"holder {holder_id}", f"applied {holder.applied_seq}")

    def _check_batches(self) -> Iterator[Violation]:
        for batch in self.batches:
            subject = f"holder {batch.holder_id} batch {batch.last_seq}"
            span = range(batch.first_seq, batch.last_seq + 1)
            events = [e for h, e in self.events if h == batch.holder_id and e.seq in span]
            sums = sum(e.cost for e in events), sum(e.charge for e in events)
            if len(events) != len(span) or sums != (batch.cost, batch.charge):
                yield Violation("C5", subject, f"{len(events)} events, {sums}")
            posted = [
                t
                for t in self.transfers
                if (t.holder_id, t.last_seq) == (batch.holder_id, batch.last_seq)
            ]
            cost = sum(t.amount for t in posted if t.code in (30, 32))
            charge = sum(t.amount for t in posted if t.code in (30, 31))
            if (cost, charge) != (batch.cost, batch.charge):
                yield Violation("C6", subject, f"postings {cost}, {charge}")

    def _check_dead(self) -> Iterator[Violation]:
        for (pool_id, holder_id), lease in self.leases.items():
            dead = self.holder_rows[holder_id].state in (HolderState.RECLAIMED, HolderState.CLOSED)
            if dead and lease.outstanding:
                held = f"holder {holder_id} still holds {lease.outstanding}"
                yield Violation("C7", f"pool {pool_id}", held)

    # -- inside -----------------------------------------------------------------------------

    def _owned(self, kind: int, owner: int) -> int:
        return self._gl.setdefault((kind, owner), _FIRST_OWNED_ACCOUNT + len(self._gl))

    def _holder(self, session: Session, *states: HolderState) -> Holder:
        holder = self.holder_rows.get(session.holder_id)
        if holder is None or holder.epoch != session.epoch or holder.state not in states:
            raise StoreRefused("LE001", "stale epoch")
        return holder

    def _account(self, pool_id: int) -> Pool:
        """The pool of a customer; a budget is no money, so none can be paid in."""
        pool = self.pools.get(pool_id)
        if pool is None or pool.gl_account_id is None:
            raise StoreRefused("LE004", "unknown pool")
        return pool

    def _expect_pools(self, pool_ids: Sequence[int]) -> None:
        if len(self.pools.keys() & set(pool_ids)) != len(pool_ids):
            raise StoreRefused("LE004", "unknown or duplicate pool")

    @staticmethod
    def _expect_sequence(holder: Holder, seq: int) -> None:
        if seq != holder.applied_seq + 1:
            raise StoreRefused("LE002", f"expected seq {holder.applied_seq + 1}, got {seq}")

    def _expect_equal_charges(
        self, events: Sequence[UsageEvent], reports: Sequence[PoolReport]
    ) -> None:
        """An account's events and its pool must say the same."""
        difference: dict[int, int] = {}
        for event in events:
            difference[event.account_id] = difference.get(event.account_id, 0) + event.charge
        for report in reports:
            if self.pools[report.pool_id].gl_account_id is not None:
                taken = report.covered + report.short
                difference[report.pool_id] = difference.get(report.pool_id, 0) - taken
        if any(difference.values()):
            raise StoreRefused("LE003", "charges and pools differ")

    def _change_pool(self, change: _Change, pool_id: int) -> Pool:
        if pool_id not in change.pools:
            change.pools[pool_id] = dataclasses.replace(self.pools[pool_id])
        return change.pools[pool_id]

    def _change_lease(self, change: _Change, pool_id: int, holder_id: int) -> Lease:
        key = pool_id, holder_id
        if key not in change.leases:
            change.leases[key] = dataclasses.replace(self.leases.get(key, Lease()))
        return change.leases[key]

    def _report(
        self, change: _Change, session: Session, report: PoolReport, last_seq: int
    ) -> PoolGrant:
        pool = self._change_pool(change, report.pool_id)
        lease = self._change_lease(change, report.pool_id, session.holder_id)
        is_account = pool.gl_account_id is not None
        left_over = lease.outstanding - report.covered
        if report.sync and not 0 <= report.held <= left_over:
            raise StoreRefused("23514", "more is held than was leased")
        returned = left_over - report.held if report.sync else 0
        collected = report.short  # a budget is a limit, not money: an overrun is just recorded
        if is_account:
            spendable = max(pool.available + returned + pool.credit_limit, 0)
            collected = min(report.short, spendable)
        granted = 0
        is_active = self.holder_rows[session.holder_id].state is HolderState.ACTIVE
        if report.sync and is_active and self.grants_enabled and pool.leasable:
            cap = pool.available + returned - collected + pool.credit_limit
            granted = grant_amount(cap, report.need, report.want)
        pool.available += returned - collected - granted
        pool.leased += granted - report.covered - returned
        pool.spent += report.covered + report.short
        pool.funded += report.short - collected
        lease.outstanding = left_over - returned + granted
        lease.spent_total += report.covered
        if report.sync:
            lease.pending = report.pending
            lease.recall = False
        if is_account and report.short > collected:
            absorbed = report.short - collected
            customer = _ledger_account(pool)
            change.transfers.append(
                Transfer(
                    code=40,
                    debit=OVERRUN_LOSS,
                    credit=customer,
                    amount=absorbed,
                    account_id=pool.account_id,
                    holder_id=session.holder_id,
                    last_seq=last_seq,
                )
            )
        return self._reply(pool, lease, granted)

    @staticmethod
    def _reply(pool: Pool, lease: Lease, granted: int) -> PoolGrant:
        return PoolGrant(
            pool_id=pool.pool_id,
            granted=granted,
            outstanding=lease.outstanding,
            spent_total=lease.spent_total,
            available=pool.available + pool.credit_limit,
            balance=pool.funded - pool.spent,
            status=pool.status,
            recall=lease.recall,
        )

    def _recall(self, change: _Change, pool_id: int, holder_id: int) -> int:
        recalled = 0
        for (leased, owner), lease in self.leases.items():
            idle = lease.outstanding > lease.pending
            if leased == pool_id and owner != holder_id and idle:
                self._change_lease(change, leased, owner).recall = True
                recalled += 1
        return recalled

    def _usage_transfers(
        self, session: Session, events: Sequence[UsageEvent], last_seq: int
    ) -> Iterator[Transfer]:
        sums: dict[tuple[int, int], list[int]] = {}
        for event in events:
            parts = sums.setdefault((event.account_id, event.provider_id), [0, 0, 0])
            parts[0] += min(event.cost, event.charge)
            parts[1] += max(event.charge - event.cost, 0)
            parts[2] += max(event.cost - event.charge, 0)
        for (account, provider), (billed, margin, unbilled) in sums.items():
            customer = self._gl.get((CUSTOMER_CREDIT, account))
            payable = self._gl.get((PROVIDER_PAYABLE, provider))
            for code, debit, credit, amount in (
                (30, customer, payable, billed),
                (31, customer, MARGIN_REVENUE, margin),
                (32, UNBILLED_COST, payable, unbilled),
            ):
                if not amount:
                    continue
                if debit is None or credit is None:
                    raise StoreRefused("23502", "a transfer lacks an account")
                yield Transfer(code, debit, credit, amount, account, session.holder_id, last_seq)

    def _commit(self, change: _Change) -> None:
        for pool in change.pools.values():
            pool.check()
            self._book_failover_loss(pool)
        for lease in change.leases.values():
            lease.check()
        self.pools.update(change.pools)
        self.leases.update(change.leases)
        self.transfers += change.transfers

    def _book_failover_loss(self, pool: Pool) -> None:
        """Bear what was granted twice, as far as it is spent and the customer has no more."""
        deficit = max(-(pool.funded - pool.spent + pool.credit_limit), 0)
        loss = min(pool.overgranted, deficit)
        pool.funded += loss
        pool.available += loss
        pool.overgranted = min(pool.overgranted - loss, pool.shortage)
        if loss:
            customer, account = _ledger_account(pool), pool.account_id
            self.transfers.append(Transfer(12, FAILOVER_LOSS, customer, loss, account))

    def _post(self, session: Session, events: Sequence[UsageEvent]) -> None:
        cost = sum(event.cost for event in events)
        charge = sum(event.charge for event in events)
        first, last = events[0].seq, events[-1].seq
        self.events += [(session.holder_id, event) for event in events]
        self.batches.append(Batch(session.holder_id, first, last, cost, charge))
        self.holder_rows[session.holder_id].applied_seq = last

    def _transfer(
        self, pool: Pool, code: int, ref: str, debit: int, credit: int, amount: int
    ) -> None:
        self._refs.add((code, ref))
        self.transfers.append(Transfer(code, debit, credit, amount, pool.account_id))


def _ledger_account(pool: Pool) -> int:
    assert pool.gl_account_id is not None, "a budget has no account in the general ledger"
    return pool.gl_account_id


def grant_amount(cap: int, need: int, want: int) -> int:
    """The grant policy: what is wanted, of a poor pool a quarter, or exactly what is needed."""
    if want <= 0 or cap <= 0 or cap < need:
        return 0
    return min(cap, max(need, min(want, cap // 4)))

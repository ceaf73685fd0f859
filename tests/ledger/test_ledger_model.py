"""Engine and store against a model of plain integers, in any order, with lost messages and deaths.

The model knows only what a customer could check by hand: what was paid in, and what was charged.
After every step the books balance and nobody was promised more than there is; in the end every
request was charged once and all credit is back.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from ledger.errors import InsufficientCredit, LedgerError
from ledger.lanes import EngineSettings, Exchange
from ledger.memory import PROMOTIONS, MemoryStore
from ledger.messages import OpenReservation
from ledger.pool import Sizing
from ledger.reservation import Hold, Waiter
from ledger.segments import RecoveredState
from ledger.store import Ask, EventStatus, PoolGrant, PoolId, PoolReport, StoreRefused
from tests.fakes.holder import WORKER, Holder, finish, posted_balance
from tests.fakes.ledger import ACCOUNT, BUDGET, PROVIDER, request, top_up

SECOND = ACCOUNT + 1
POOLS = [(ACCOUNT,), (SECOND,), (ACCOUNT, BUDGET)]
amounts = st.one_of(st.integers(0, 20), st.integers(0, 600))
lost = st.sampled_from(["nothing", "nothing", "request", "reply"])


class RenewableHolder(Holder):
    """One that may have to begin anew, as another holder with a journal of its own."""

    def __init__(self, store: MemoryStore, *, settings: EngineSettings) -> None:
        self.lives = 0
        super().__init__(store, settings=settings, open_=False)
        self.begin_anew()

    @property
    def journal_id(self) -> bytes:
        return self.lives.to_bytes(16)

    def open(self) -> None:
        """A session of the present life."""
        self.session = finish(self.store.open_session(self.holder_id, self.journal_id))
        self.engine.lanes.session_opened(self.now, self.now, self.session)
        self.journal.acknowledge(self.engine.book.outbox.applied_seq)
        self.write()

    def begin_anew(self) -> None:
        """Nothing leased, nothing to post."""
        self.lives += 1
        self.holder_id = finish(self.store.register_holder(self.journal_id, "test"))
        self.journal = RecoveredState()
        self.engine.begin_anew(self.now)
        self.open()

    def be_reclaimed(self) -> None:
        """Silent for so long that the leases are given away; then heard of again."""
        row = self.store.holder_rows[self.holder_id]
        assert finish(self.store.fence_holder(self.holder_id, row.heartbeat))
        assert finish(self.store.reclaim_holder(self.holder_id, row.epoch)) is not None
        self.reopen()

    def end_as_history(self) -> None:
        """Post what is left, and be closed."""
        for _ in range(1000):
            if self.engine.drained:
                break
            self.exchange()
        assert self.session is not None
        finish(self.store.close_holder(self.session))
        self.begin_anew()


class LedgerMachine(RuleBasedStateMachine):
    """Rules are what callers, the network and the machine may do."""

    holds = Bundle("holds")
    waiters = Bundle("waiters")

    @initialize(lease_max=st.sampled_from([0, 50, 10_000]), batch_max=st.integers(1, 5))
    def begin(self, lease_max: int, batch_max: int) -> None:
        self.store = MemoryStore()
        self.store.add_provider(PROVIDER)
        self.paid = {ACCOUNT: 1_000, SECOND: 100}
        self.refunded = {ACCOUNT: 0, SECOND: 0}
        self.references = 0
        self.charged = {ACCOUNT: 0, SECOND: 0}
        self.budget_charged = 0
        self.charges: list[int] = []  # of every event, in order
        for account, amount in self.paid.items():
            finish(top_up(self.store, amount, f"start {account}", account=account, new=True))
        self.store.add_budget(BUDGET, ACCOUNT, 700)
        self.rival = finish(self.store.register_holder(b"r" * 16, "rival"))
        self.rival_session = finish(self.store.open_session(self.rival, b"r" * 16))
        self.holder = RenewableHolder(
            self.store,
            settings=EngineSettings(
                sizing=Sizing(lease_max=lease_max), batch_max=batch_max, waiters_max=4
            ),
        )
        self.open: dict[int, tuple[Hold, int]] = {}  # id → reservation and its amount
        self.waiting: list[Waiter] = []
        self.exchange_in_flight: tuple[Exchange, list[PoolGrant]] | None = None
        self.grant_in_flight: tuple[list[Ask], list[PoolGrant]] | None = None

    # -- callers

    @rule(target=holds, pools=st.sampled_from(POOLS), amount=amounts)
    def reserve(self, pools: tuple[int, ...], amount: int) -> object:
        try:
            outcome = self.holder.reserve(request(amount, account=pools[0], pools=pools))
        except LedgerError:
            return multiple()
        if isinstance(outcome, Waiter):
            self.waiting.append(outcome)
            return multiple()
        return self._opened(outcome)

    @rule(hold=holds, extra=amounts)
    def extend(self, hold: Hold, extra: int) -> None:
        if hold.id not in self.open:
            return
        outcome = self.holder.extend(hold, extra)
        # A new wish takes the place of one that waits.
        self.waiting = [waiter for waiter in self.waiting if waiter.outcome is None]
        if isinstance(outcome, Waiter):
            self.waiting.append(outcome)
        elif outcome:
            self.open[hold.id] = hold, self.open[hold.id][1] + extra

    @rule(hold=consumes(holds), charge=amounts)
    def settle(self, hold: Hold, charge: int) -> None:
        if hold.id not in self.open:
            return
        del self.open[hold.id]
        self.holder.settle(hold, charge)
        self.waiting = [waiter for waiter in self.waiting if waiter.outcome is None]
        self.holder.settle(hold, charge + 1)  # changes nothing
        self._charged(hold, charge)

    @rule(hold=holds, cost=st.integers(0, 50))
    def attempt(self, hold: Hold, cost: int) -> None:
        if hold.id in self.open:
            self.holder.attempt(hold, cost)
            self.charges.append(0)

    @rule(hold=consumes(holds), contacted=st.booleans())
    def void(self, hold: Hold, contacted: bool) -> None:
        if hold.id not in self.open:
            return
        del self.open[hold.id]
        self.holder.void(hold, EventStatus.FAILED if contacted else None)
        self.waiting = [waiter for waiter in self.waiting if waiter.outcome is None]
        if contacted:
            self.charges.append(0)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(waiter)
        self.holder.cancel(waiter)
        self.holder.write()

    @rule(
        account=st.sampled_from([ACCOUNT, SECOND]), amount=st.integers(1, 500), again=st.booleans()
    )
    def pay(self, account: int, amount: int, again: bool) -> None:
        self.references += 1
        ref = f"payment {self.references}"
        finish(top_up(self.store, amount, ref, account=account))
        if again:
            finish(top_up(self.store, amount, ref, account=account))
        self.paid[account] += amount
        self.holder.engine.credit_hint(account)

    @rule(account=st.sampled_from([ACCOUNT, SECOND]), amount=st.integers(1, 500))
    def refund(self, account: int, amount: int) -> None:
        """Only what nobody has leased can be paid back."""
        available = self.store.pools[account].available
        self.references += 1
        ref = f"refund {self.references}"
        refund = self.store.debit_pool(PoolId(account), amount, 3, PROMOTIONS, ref)
        if amount > available:
            with pytest.raises(StoreRefused, match="LE007"):
                finish(refund)
        else:
            assert finish(refund)
            self.paid[account] -= amount
            self.refunded[account] += amount

    # -- other holders and the reaper

    @rule(account=st.sampled_from([ACCOUNT, SECOND]), need=st.integers(1, 1500))
    def another_holder_asks(self, account: int, need: int) -> None:
        """It gets what it needs or nothing; then this holder is asked to give back."""
        before = self.store.pools[account].available
        ask = Ask(PoolId(account), need, need)
        (reply,) = finish(self.store.grant_lease(self.rival_session, [ask]))
        assert reply.granted == (need if need <= before else 0)
        lease = self.store.leases.get((account, self.holder.holder_id))
        if not reply.granted and lease is not None and lease.outstanding > lease.pending:
            assert lease.recall
            if self.exchange_in_flight is None and self.grant_in_flight is None:
                self.holder.engine.lanes.recall(account)
                self.holder.exchange()
                if not self.holder.engine.room.pools:
                    assert self.holder.engine.book.pool(account, 0).free == 0

    @rule()
    def another_holder_gives_back(self) -> None:
        reports = [
            PoolReport(PoolId(pool), 0, 0, sync=True, held=0, pending=0, need=0, want=0)
            for (pool, owner), lease in sorted(self.store.leases.items())
            if owner == self.rival and lease.outstanding
        ]
        finish(self.store.exchange(self.rival_session, [], reports))

    @rule()
    def fenced_and_back_in_time(self) -> None:
        """Nothing was given away, so nothing is lost but the session."""
        row = self.store.holder_rows[self.holder.holder_id]
        assert not finish(self.store.fence_holder(self.holder.holder_id, row.heartbeat - 1))
        assert finish(self.store.fence_holder(self.holder.holder_id, row.heartbeat))
        self.exchange_in_flight = self.grant_in_flight = None
        self.holder.reopen()
        assert finish(self.store.reclaim_holder(self.holder.holder_id, row.epoch)) is None

    @rule(charge=amounts)
    def reclaimed_and_back_too_late(self, charge: int) -> None:
        """What is open is settled late, from whatever is available; then life begins anew."""
        self.exchange_in_flight = self.grant_in_flight = None
        self.holder.be_reclaimed()
        assert self.holder.engine.book.leased == 0
        for hold, _ in list(self.open.values()):
            self.holder.settle(hold, charge)
            self._charged(hold, charge)
        self.open.clear()
        refused = self.holder.engine.lanes.next_asks(self.holder.now)[1]
        self.holder.engine.refuse(refused)
        self.waiting = [waiter for waiter in self.waiting if waiter.outcome is None]
        assert not self.waiting
        self.holder.end_as_history()

    # -- workers

    @rule()
    def worker_dies(self) -> None:
        self.holder.engine.worker_gone(self.holder.now, WORKER, 1)
        self.holder.write()
        self.charges += [0] * len(self.open)  # each leaves an orphaned event
        self.open.clear()
        self.waiting.clear()

    @rule(data=st.data())
    def worker_attests(self, data: st.DataObject) -> None:
        """It has lost its link, and has some of its reservations still."""
        known = data.draw(st.sets(st.sampled_from(sorted(self.open)))) if self.open else set()
        said = [OpenReservation(number, (), 0) for number in known]
        self.holder.engine.attest(self.holder.now, WORKER, said, 1)
        self.holder.write()
        self.charges += [0] * (len(self.open) - len(known))
        self.open = {number: self.open[number] for number in self.open if number in known}
        self.waiting = [waiter for waiter in self.waiting if waiter.outcome is None]

    # -- the network

    @rule(seconds=st.sampled_from([0.25, 1.0, 5.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.holder.now += seconds

    @precondition(lambda self: self.exchange_in_flight is None)
    @rule()
    def send_exchange(self) -> None:
        exchange = self.holder.next_exchange()
        if exchange is not None:
            self.exchange_in_flight = exchange, self.holder.send(exchange)

    @precondition(lambda self: self.exchange_in_flight is not None)
    @rule()
    def exchange_answered(self) -> None:
        assert self.exchange_in_flight is not None
        _, replies = self.exchange_in_flight
        self.exchange_in_flight = None
        self.holder.acknowledge(replies)

    @precondition(lambda self: self.grant_in_flight is None)
    @rule(target=holds)
    def send_grant(self) -> object:
        engine = self.holder.engine
        opened = self._decided(engine.serve_waiters(self.holder.now))
        asks, refused = engine.lanes.next_asks(self.holder.now)
        assert not refused
        if asks:
            self.grant_in_flight = asks, self.holder.ask(asks)
        return multiple(*opened)

    @precondition(lambda self: self.grant_in_flight is not None)
    @rule(target=holds)
    def grant_answered(self) -> object:
        assert self.grant_in_flight is not None
        asks, replies = self.grant_in_flight
        self.grant_in_flight = None
        opened = self._decided(self.holder.granted(asks, replies))
        return multiple(*opened)

    @precondition(lambda self: self.exchange_in_flight is None and self.grant_in_flight is None)
    @rule(lost=lost)
    def whole_exchange(self, lost: str) -> None:
        self.holder.exchange(lost)  # type: ignore[arg-type]  # sampled from the literal's values

    @precondition(lambda self: self.exchange_in_flight is None)
    @rule()
    def request_comes_too_late(self) -> None:
        """A new session supersedes whatever the network still carries."""
        exchange, session = self.holder.next_exchange(), self.holder.session
        self.grant_in_flight = None
        self.holder.reopen()
        if exchange is not None and session is not None:
            with pytest.raises(StoreRefused, match="LE001"):
                finish(self.store.exchange(session, exchange.events, exchange.reports))

    @rule()
    def session_breaks(self) -> None:
        """Whatever was under way has happened, but its answer never comes."""
        self.exchange_in_flight = self.grant_in_flight = None
        self.holder.reopen()

    @rule()
    def restart(self) -> None:
        self.exchange_in_flight = self.grant_in_flight = None
        self.waiting.clear()
        self.charges += [0] * len(self.open)  # each leaves an orphaned event
        self.open.clear()
        self.holder.restart()

    # -- what always holds

    @invariant()
    def holder_agrees_with_itself(self) -> None:
        engine = self.holder.engine
        engine.check()
        assert engine.book.halted is None
        assert engine.open_reservations == len(self.open)

    @invariant()
    def nobody_is_promised_more_than_there_is(self) -> None:
        for account, paid in self.paid.items():
            pool = self.store.pools[account]
            assert pool.available >= 0
            assert pool.leased + pool.available <= paid
            promised = sum(
                amount for hold, amount in self.open.values() if hold.request.account_id == account
            )
            assert promised <= pool.leased

    @invariant()
    def books_balance(self) -> None:
        assert not finish(self.store.check())

    @invariant()
    def balance_is_what_was_paid_minus_what_was_charged(self) -> None:
        """As far as the holder can know: payments and refunds show with the store's next answer."""
        for account, charged in self.charged.items():
            balance = posted_balance(self.holder.engine, account)
            absorbed = sum(
                t.amount for t in self.store.transfers if t.code == 40 and t.account_id == account
            )
            paid = self.paid[account] + self.refunded[account]
            if balance is not None:
                assert balance <= paid - charged + absorbed + self._unabsorbed(account)

    def teardown(self) -> None:
        """Everything ends: what was charged was charged once, and all credit is back."""
        if not hasattr(self, "holder"):
            return
        self.exchange_in_flight = self.grant_in_flight = None
        self.holder.reopen()
        for waiter in self.waiting:
            self.holder.cancel(waiter)
        for hold, _ in list(self.open.values()):
            self.holder.void(hold)
        self.another_holder_gives_back()
        self.holder.drain()
        events = [event for _, event in self.store.events]
        for holder in self.store.holder_rows:
            numbers = [event.seq for owner, event in self.store.events if owner == holder]
            assert numbers == list(range(1, len(numbers) + 1))
        assert [event.charge for event in events] == self.charges
        assert not finish(self.store.check())
        for account, charged in self.charged.items():
            pool = self.store.pools[account]
            absorbed = sum(
                t.amount for t in self.store.transfers if t.code == 40 and t.account_id == account
            )
            assert pool.leased == 0
            assert pool.spent == charged
            assert pool.available == self.paid[account] - charged + absorbed
        assert self.store.pools[BUDGET].spent == self.budget_charged

    # -- helpers

    def _opened(self, hold: Hold) -> Hold:
        self.open[hold.id] = hold, hold.amount
        return hold

    def _charged(self, hold: Hold, charge: int) -> None:
        self.charges.append(charge)
        self.charged[hold.request.account_id] += charge
        if BUDGET in hold.request.pools:
            self.budget_charged += charge

    def _unabsorbed(self, account: int) -> int:
        """Charges the store may yet have to write off: they are not the customer's."""
        return sum(
            event.short[0]
            for event in self.holder.engine.book.outbox.events
            if event.account_id == account and event.short
        )

    def _decided(self, waiters: list[Waiter]) -> list[Hold]:
        self.holder.write()
        opened = []
        for waiter in waiters:
            self.waiting.remove(waiter)
            outcome = waiter.outcome
            if isinstance(outcome, InsufficientCredit):
                assert outcome.available < outcome.required
            elif waiter.hold is not None:
                if isinstance(outcome, Hold):
                    self.open[outcome.id] = outcome, outcome.amount
            elif isinstance(outcome, Hold):
                opened.append(self._opened(outcome))
        return opened


TestLedgerModel = LedgerMachine.TestCase
TestLedgerModel.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

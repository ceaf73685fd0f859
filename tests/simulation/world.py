"""A fleet in one process on virtual time, decided by a seed: built, disturbed, and brought to rest.

`run(seed)` draws a `Plan` (how many nodes, which faults, how often), lets the world live for a
while under `faults.Chaos`, then ends all faults and waits for what must follow: everything settled,
every lease given back, every account spendable to its last nano-dollar. Meanwhile, after every step
of a ledger's task its engine must agree with itself, and after every statement with the store.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import trio

from ledger.client import LedgerError
from ledger.engine import Engine
from ledger.errors import LedgerDivergence
from ledger.memory import FAILOVER_LOSS, OVERRUN_LOSS, PROMOTIONS, MemoryStore
from ledger.store import EventStatus, HolderState, PoolId, StoreError
from tests.fakes.ledger import PROVIDER
from tests.simulation.client import Customer
from tests.simulation.database import Database
from tests.simulation.faults import Chaos
from tests.simulation.node import Node, Worker
from tests.simulation.oracle import Oracle, Violated, WatchedJournal
from tests.simulation.plan import Plan
from tests.simulation.process import Process
from tests.simulation.scheduling import (
    STEPS_MAX,
    Scheduler,
    VirtualClock,
    deterministic,
    virtual_sleep,
    virtual_threads,
)

REST_SECONDS = 60.0
ANSWER_SECONDS = 5.0  # a worker tells its client something within one
REFUND = 3  # the code of its posting


@dataclass
class Report:
    """What a seed did."""

    seed: int
    steps: int = 0
    active_steps: int = 0  # until all faults were over
    virtual_seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    permitted: int = 0
    settled: int = 0
    lost: int = 0
    violation: str = ""
    digest: int = 0


class World:
    """Everything there is."""

    def __init__(self, plan: Plan, traffic: Traffic | None = None) -> None:
        """`traffic` is what each worker does; without it customers come all the time."""
        self.plan = plan
        self.generator = plan.generator
        self.books = MemoryStore(synchronous_replication=plan.synchronous)
        self.oracle = Oracle(is_silent=self._is_silent)
        self.scheduler = Scheduler(self._after_step)
        self.database = Database(
            self.books,
            self.generator,
            after_commit=self._after_commit,
            validity_seconds=int(plan.node.engine.validity_seconds),
            max_request_seconds=plan.max_request_seconds,
        )
        self.nodes: list[Node] = []
        self.paid: dict[str, tuple[int, int]] = {}  # reference → account, amount
        self.refunds = 0
        self.busy = True  # customers come
        self.lost_by_failover = False
        self.violation = ""  # found between two steps
        self.interruption: tuple[int, Callable[[World], None]] | None = None  # at this step
        self.active_steps = 0  # until all faults were over
        self.ended = trio.Event()
        self.digest = 0
        self._traffic = traffic or World._customers

    # -- life -----------------------------------------------------------------------------------

    async def live(self, story: Callable[[World], Awaitable[None]]) -> None:
        """Be there for a story."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.database.run)
            nursery.start_soon(self._complain)
            self.books.add_provider(PROVIDER)
            for account, credit_limit in self.plan.accounts.items():
                self.books.add_account(account, credit_limit=credit_limit)
            for account, budget in self.plan.habits.budgets.items():
                self.books.add_budget(budget, account, self.plan.budget)
            for account in self.plan.accounts:
                await self.pay(account, self.plan.balance)
            for number in range(self.plan.nodes):
                self.add_node(f"node {number}")
            for node in self.nodes:
                nursery.start_soon(node.run)
            await story(self)
            for node in self.nodes:
                node.destroyed = True
                node._die()
            nursery.cancel_scope.cancel()

    async def _complain(self) -> None:
        await self.ended.wait()
        raise Violated(self.violation)

    def add_node(self, name: str) -> Node:
        """One more machine."""
        node = Node(
            name,
            self.database,
            self.oracle,
            self.scheduler,
            self.generator,
            self.plan.node,
            lambda node, worker: self._traffic(self, node, worker),
            self._check_engine,
        )
        self.nodes.append(node)
        return node

    async def _customers(self, node: Node, worker: Worker) -> None:
        customer = self.customer(worker)
        async with trio.open_nursery() as customers:
            while True:
                await trio.sleep(self.generator.expovariate(self.plan.requests_per_worker))
                if self.busy:
                    customers.start_soon(customer.ask)
                else:
                    await trio.sleep(10)

    def customer(self, worker: Worker) -> Customer:
        """Somebody who is served by this worker."""
        return Customer(
            worker.process,
            worker.ledger,
            self.oracle,
            self.generator,
            self.plan.habits,
            self.database.poison,
        )

    # -- money ----------------------------------------------------------------------------------

    async def pay(self, account: int, amount: int) -> None:
        """A customer pays, for certain; the payment provider says so again after a failover."""
        ref = f"payment {len(self.paid)}"
        self.paid[ref] = account, amount
        await self.books.credit_pool(PoolId(account), amount, 6, PROMOTIONS, ref)

    async def repeat_payments(self) -> None:
        """What was paid is paid, whatever the database remembers."""
        for ref, (account, amount) in self.paid.items():
            await self.books.credit_pool(PoolId(account), amount, 6, PROMOTIONS, ref)

    async def refund(self, account: int, amount: int) -> None:
        """Credit that nobody has leased goes back to who paid it."""
        self.refunds += 1
        with suppress(StoreError):
            ref = f"refund {self.refunds}"
            await self.books.debit_pool(PoolId(account), amount, REFUND, PROMOTIONS, ref)

    def fail_over(self, standby: MemoryStore) -> None:
        """A standby takes over that has not heard of everything."""
        books = self.books
        lost = [event for _, event in books.events[len(standby.events) :]]
        self.lost_by_failover = True
        self.database.break_connections()
        books.fail_over(standby)
        kept = self.oracle.kept(
            node.journal.journal_id
            for node in self.nodes
            if node.journal is not None and not node.destroyed
        )
        self.oracle.failed_over(lost, kept)

    # -- what always holds ------------------------------------------------------------------------

    def _after_step(self, process: Process | None) -> None:
        if self.violation:
            return
        try:
            if self.scheduler.steps >= STEPS_MAX:
                raise Violated(f"no end within {STEPS_MAX} steps")
            if process is not None and process.after_step is not None:
                process.after_step()
            if self.interruption is not None and self.scheduler.steps == self.interruption[0]:
                self.interruption[1](self)
        except Exception as error:  # whatever it is, trio would not let it through
            self.violation = str(error) if isinstance(error, Violated) else repr(error)
            self.ended.set()

    def _check_engine(self, node: Node, engine: Engine) -> None:
        """The holder agrees with itself, and made no promise after its leases were given away."""
        try:
            engine.check()
        except (LedgerDivergence, AssertionError) as error:
            raise Violated(f"{node.name}: {error}") from error
        if engine.book.halted:
            raise Violated(f"{node.name} halted: {engine.book.halted}")
        if not engine.book.open.keys() <= node.seen_open:
            node.seen_open.clear()
            node.seen_open.update(engine.book.open)
            journal_id = node.journal.journal_id if node.journal else b""
            for row in self.books.holder_rows.values():
                late = row.state in (HolderState.RECLAIMED, HolderState.CLOSED)
                if row.journal_id == journal_id and late and not self.lost_by_failover:
                    raise Violated(f"{node.name} reserved after its leases were given away")

    def _after_commit(self, name: str) -> None:
        self.digest = zlib.crc32(f"{name} {trio.current_time()}".encode(), self.digest)
        for pool in self.books.pools.values():
            if pool.gl_account_id is not None and pool.funded - pool.spent + pool.credit_limit < 0:
                raise Violated(f"account {pool.pool_id} owes more than its limit")
            if pool.available + pool.credit_limit + pool.overgranted < 0 and (
                pool.gl_account_id is not None
            ):
                raise Violated(f"account {pool.pool_id} was leased more than there is")
        self._check_collected()
        for node in self.nodes:
            self._check_lease(node)

    def _check_collected(self) -> None:
        """What was collected is never more than what was paid, plus the credit limit."""
        credit = dict(self.plan.accounts)
        for account, amount in self.paid.values():
            credit[account] += amount
        for transfer in self.books.transfers:
            if transfer.code == REFUND:
                credit[transfer.account_id] -= transfer.amount
            elif transfer.debit in (OVERRUN_LOSS, FAILOVER_LOSS):
                credit[transfer.account_id] += transfer.amount
        for account, most in credit.items():
            spent = self.books.pools[account].spent
            if spent > most:
                raise Violated(f"account {account} has credit for {most}, and was charged {spent}")

    def _check_lease(self, node: Node) -> None:
        """Invariant H against the store: a holder never holds more than is leased to it."""
        server, journal = node.server, node.journal
        if server is None or journal is None or not node.up:
            return
        self._check_durable(node, journal)
        if server._sessions.session is None:
            return
        session = server._sessions.session
        row = self.books.holder_rows.get(session.holder_id)
        current = row is not None and row.journal_id == journal.journal_id
        if not current or row is None or row.epoch != session.epoch:
            return
        if row.state is not HolderState.ACTIVE or row.timeline != self.books.server_timeline:
            return
        unposted: dict[int, int] = {}
        for event in server.engine.book.outbox.events:
            if event.seq > row.applied_seq:
                for pool_id, part in zip(event.pools, event.covered, strict=True):
                    unposted[pool_id] = unposted.get(pool_id, 0) + part
        for pool in server.engine.book.pools:
            held = pool.free + pool.pending + unposted.get(pool.pool_id, 0)
            lease = self.books.leases.get((pool.pool_id, session.holder_id))
            leased = lease.outstanding if lease else 0
            if held > leased:
                raise Violated(
                    f"{node.name} holds {held} of pool {pool.pool_id}, and {leased} is leased"
                )

    def _check_durable(self, node: Node, journal: WatchedJournal) -> None:
        """The store never knows more than the journal would remember after a power cut."""
        written = self.oracle.written.get(journal.journal_id, {})
        for row in self.books.holder_rows.values():
            last = written.get(row.applied_seq) if row.journal_id == journal.journal_id else None
            if last is not None and last.position > journal.synced:
                raise Violated(f"{node.name} posted event {row.applied_seq} too early")

    def _is_silent(self, process: Process) -> bool:
        return any(
            node.is_silent(process)
            for node in self.nodes
            if any(worker.process is process for worker in node.workers.values())
        )

    # -- rest -------------------------------------------------------------------------------------

    async def come_to_rest(self) -> None:
        """All faults are over: what must follow, within the time that it may take."""
        self.busy = False
        self.active_steps = self.scheduler.steps
        with trio.move_on_after(REST_SECONDS):
            while self.database.astray:  # noqa: ASYNC110  # a fault that is still to come
                await trio.sleep(1)
        seconds = REST_SECONDS + self.plan.patience_seconds(self.nodes)
        await self._rest(seconds)
        await self._books_balance()
        await self._spend_the_rest()
        await self._books_balance()
        quarantined = {event.request_id for event, _ in self.books.quarantine_rows.values()}
        quarantined |= {  # a failover may have lost the row
            event.request_id
            for _, event in self.books.events
            if event.status == EventStatus.QUARANTINED
        }
        for complaint in self.oracle.verdict(self.books, quarantined=quarantined):
            raise Violated(complaint)

    async def _rest(self, seconds: float) -> None:
        """Wait until nothing has been under way for a second: no message, no reservation."""
        calm = False
        with trio.move_on_after(seconds):
            while not (calm and not self._restless()):
                calm = not self._restless()
                await trio.sleep(1)
            return
        raise Violated(f"no rest within {seconds:g} s: {self._restless()}")

    def _restless(self) -> str:
        """What is not at rest yet."""
        if self.database.astray:
            return f"{self.database.astray} statements are still to come"
        for node in self.nodes:
            if node.destroyed:
                continue
            if node.server is None or not node.server.ready:
                return f"{node.name} is not ready"
            session = node.server._sessions.session
            row = self.books.holder_rows.get(session.holder_id) if session else None
            if row is None or row.timeline != self.books.server_timeline:
                return f"{node.name} has not heard of the failover"
            if not all(worker.link.connected for worker in node.workers.values()):
                return f"a worker of {node.name} is not connected"
            engine = node.server.engine
            if engine.open_reservations or engine.pending_events:
                open_, pending = engine.open_reservations, engine.pending_events
                return f"{node.name} has {open_} open and {pending} unposted"
        if not self.books.grants_enabled:
            return "no credit is granted"
        for pool in self.books.pools.values():
            if pool.leased:
                return f"{pool.leased} of pool {pool.pool_id} is leased"
        return ""

    async def _books_balance(self) -> None:
        for violation in await self.books.check():
            raise Violated(f"{violation.check} {violation.subject}: {violation.detail}")

    async def _spend_the_rest(self) -> None:
        """Each account can be spent to its last nano-dollar, on whatever node is left."""
        nodes = [node for node in self.nodes if not node.destroyed]
        if not nodes:
            return
        for account in self.plan.accounts:
            pool = self.books.pools[account]
            left = pool.funded - pool.spent + pool.credit_limit  # some may be leased, if refused
            while left > 0:
                exposure = self.plan.node.engine.exposure_max
                part = min(left, exposure - exposure // 10)  # the last tenth is never one account's
                await self._spend(nodes, account, part)
                left -= part
        await self._rest(REST_SECONDS)
        for account in self.plan.accounts:
            pool = self.books.pools[account]
            left = pool.available + pool.credit_limit
            if left > 0:
                raise Violated(f"{left} of account {account} cannot be spent")

    async def _spend(self, nodes: Sequence[Node], account: int, amount: int) -> None:
        for _ in range(20):  # another holder may have to give back first, or a worker be replaced
            workers = self.generator.choice(nodes).workers.values()
            worker = self.generator.choice(list(workers))
            customer = self.customer(worker)
            request = customer.request(account)
            self.database.poison.clear()
            try:
                with trio.fail_after(ANSWER_SECONDS):
                    reservation = await customer.reserve(request, amount)
            except LedgerError as error:
                refusal = error
                await trio.sleep(1.5)
                continue
            except trio.TooSlowError:
                if worker.process.alive:
                    raise Violated("a worker waits for ever for its ledger") from None
                continue
            request.contacted = True
            customer.settle(request, reservation, amount)
            await customer.deliver(request, reservation)
            return
        raise Violated(f"{amount} of account {account} cannot be reserved: {refusal!r}")


Traffic = Callable[[World, Node, Worker], Awaitable[None]]


# -- one seed -------------------------------------------------------------------------------------


async def chaos(world: World) -> None:
    """The story of a seed: disturbed life, then rest."""
    chaos = Chaos(world)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chaos.run)
        await trio.sleep(world.plan.active_seconds)
        nursery.cancel_scope.cancel()
    await chaos.end()
    await world.come_to_rest()


def run(
    seed: int,
    plan: Plan | None = None,
    story: Callable[[World], Awaitable[None]] = chaos,
    *,
    traffic: Traffic | None = None,
    interruption: tuple[int, Callable[[World], None]] | None = None,
) -> Report:
    """Everything that follows from a seed; `Report.violation` says what is wrong."""
    plan = plan or Plan.of(seed)
    report = Report(seed)

    async def main() -> None:
        world = World(plan, traffic)
        if interruption is not None:
            world.interruption, world.scheduler.interruption = interruption, interruption[0]
        world.scheduler.watch()
        started = trio.current_time()
        try:
            await world.live(story)
        except* Violated as violations:
            report.violation = str(_first(violations))
        except* Exception as errors:  # not even the world expected this
            report.violation = report.violation or repr(_first(errors))
        finally:
            requests = world.oracle.requests.values()
            report.steps = world.scheduler.steps
            report.active_steps = world.active_steps
            report.virtual_seconds = trio.current_time() - started
            report.faults = {**plan.injected, **world.database.injected}
            report.requests = len(requests)
            report.permitted = sum(request.permitted for request in requests)
            report.settled = sum(request.charge is not None for request in requests)
            report.lost = world.oracle.lost_events
            report.digest = world.digest

    clock = VirtualClock()
    with (
        _quiet(),
        deterministic(plan.scheduling),
        virtual_sleep(clock),
        virtual_threads(plan.disk_seconds),
    ):
        try:
            trio.run(main, clock=clock)
        except trio.TrioInternalError as error:  # of the clock: nothing would ever happen again
            report.violation = repr(error.__cause__)
    return report


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextmanager
def _quiet() -> Iterator[None]:
    """The ledger complains of what is done to it here; nobody reads that."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)

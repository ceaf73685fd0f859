"""The books in Postgres: `LedgerStore` over blocking psycopg in worker threads.

One connection per lane, so that a grant never waits behind an exchange. Every call is a single
autocommit statement: one round trip, no session state. psycopg's own asynchronous classes need
another event loop; a thread hop is small against a durable commit.

An error is sorted by what it says about the outcome: the server refused (`StoreRefused`), or
nobody can tell (`StoreUncertain`). After the latter, and after a call that was abandoned by its
caller, the lane's connection is thrown away, and the next call opens another.

A session is with one server. After a failover the address may lead to another one, whose books may
have lost some of what the first has acknowledged, though the session's epoch is valid in both. So
the connections of both lanes are made together with the session, and every one that is made later
must be to the session's timeline.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from operator import attrgetter
from typing import LiteralString, TypeVar

import msgspec
import psycopg
import trio
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from ledger import verify
from ledger.arrays import BIGINT, INTEGER, SMALLINT, UUID
from ledger.connection import TIMELINE, announce, connect
from ledger.errors import brief
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
    RecallHint,
    Session,
    StoreError,
    StoreRefused,
    StoreUncertain,
    UsageEvent,
    Violation,
)

T = TypeVar("T")
Work = Callable[[psycopg.Connection], T]

_THREADS_MAX = 16  # threads of abandoned calls stay until their call ends

# SQLSTATEs, by their beginning, that speak of the database and not of what it was asked, or leave
# the outcome open: connection, read-only, wrong user, no such database, rolled back (serialisation,
# deadlock), missing rights, columns, functions or tables (it is of another version), out of
# resources, locked, cancelled or shut down (57014 is the statement time-out), system, internal.
_UNCERTAIN_CODES = (
    *("08", "25", "28", "3D", "40", "42501", "42703", "42883", "42P01"),
    *("53", "55", "57", "58", "XX"),
)

_OUT_OF_RANGE = "22003"  # numeric_value_out_of_range

# In the order of exchange's e_* arguments, up to the two that need converting.
_EVENT_COLUMNS = {
    "occurred_at": BIGINT,
    "account_id": BIGINT,
    "key_id": BIGINT,
    "model_id": INTEGER,
    "provider_id": INTEGER,
    "price_id": BIGINT,
    "status": SMALLINT,
    "endpoint": SMALLINT,
    "input_tokens": INTEGER,
    "cached_input_tokens": INTEGER,
    "output_tokens": INTEGER,
    "reasoning_tokens": INTEGER,
    "reserved": BIGINT,
    "cost": BIGINT,
    "charge": BIGINT,
    "ttfb_ms": INTEGER,
    "duration_ms": INTEGER,
    "request_id": UUID,
}
# In the order of its x_* arguments.
_POOL_COLUMNS = ("pool_id", "covered", "short", "sync", "held", "pending", "need", "want")

_EXCHANGE = """
SELECT pool_id, granted, outstanding, spent_total, available, balance, status, recall
  FROM ledger.exchange(
    %b, %b, %b, %b,
    %b::bigint[], %b::bigint[], %b::bigint[], %b::integer[], %b::integer[],
    %b::bigint[], %b::smallint[], %b::smallint[],
    %b::integer[], %b::integer[], %b::integer[], %b::integer[],
    %b::bigint[], %b::bigint[], %b::bigint[], %b::integer[], %b::integer[],
    %b::uuid[], %b::jsonb[],
    %b::bigint[], %b::bigint[], %b::bigint[],
    %b::boolean[], %b::bigint[], %b::bigint[], %b::bigint[], %b::bigint[])
"""
_GRANT = """
SELECT pool_id, granted, outstanding, spent_total, available, balance, status, recall, recalled
  FROM ledger.grant_lease(%b, %b, %b::bigint[], %b::bigint[], %b::bigint[])
"""


_HOLDERS = """
SELECT h.holder_id, h.node_name, h.state, h.epoch, p.heartbeat, h.validity_s, h.max_request_s
  FROM ledger.holder h JOIN ledger.holder_progress p USING (holder_id)
 WHERE h.state IN (1, 2) ORDER BY h.holder_id
"""

_TIMELINE = f"SELECT {TIMELINE}"
_OPEN_SESSION = f"""
SELECT epoch, applied_seq, lease_pool, lease_outstanding, state, {TIMELINE}
  FROM ledger.open_session(%s, %s)
"""  # noqa: S608
_SESSION_LANES = ("exchange", "grant")

_LISTEN = "LISTEN ledger_recall; LISTEN ledger_account"
_HINTS: Mapping[bytes, Callable[[int], Hint]] = {
    b"ledger_recall": lambda pool: RecallHint(PoolId(pool)),
    b"ledger_account": CreditHint,
}
_REAPER_LOCK = 0x7265_6170_6572  # "reaper"; migrations have another


class PostgresStore:
    """`LedgerStore` on a migrated database. `aclose` lets the connections go."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._limiter = trio.CapacityLimiter(_THREADS_MAX)
        self._lanes: dict[str, _Lane] = {}

    async def aclose(self) -> None:
        """Close every connection; running calls end as they end."""
        lanes, self._lanes = self._lanes, {}
        for lane in lanes.values():
            lane.discard()

    async def ping(self) -> None:
        """Raise StoreUncertain where the database does not answer."""
        await self._call("control", lambda connection: connection.execute("SELECT 1"))

    async def maintain(self) -> None:
        """Make the partitions of the coming week; call it at start and once a day."""
        await self._row("control", "SELECT ledger.create_partitions()", [])

    # -- sessions -------------------------------------------------------------------------------

    async def register_holder(
        self,
        journal_id: bytes,
        node: str,
        *,
        validity_seconds: int = VALIDITY_SECONDS,
        max_request_seconds: int = MAX_REQUEST_SECONDS,
    ) -> HolderId:
        """The holder that owns the journal, new or known."""
        statement = "SELECT ledger.register_holder(%s, %s, %s, %s)"
        journal = uuid.UUID(bytes=journal_id)
        parameters = [journal, node, validity_seconds, max_request_seconds]
        row = await self._row("control", statement, parameters)
        return HolderId(row[0])

    async def open_session(self, holder: HolderId, journal_id: bytes) -> Session:
        """End whatever session the holder had and begin another, at what was really applied.

        Both lanes are connected to the same server by then.
        """
        row = await self._row("control", _OPEN_SESSION, [holder, uuid.UUID(bytes=journal_id)])
        epoch, applied_seq, pools, outstanding, state, timeline = row
        leases = dict(zip(pools, outstanding, strict=True))
        session = Session(holder, epoch, applied_seq, leases, HolderState(state), timeline)
        try:
            await self._connect_lanes(session)
        except StoreError:
            self._discard("control")  # whichever of them met the wrong server
            raise
        return session

    async def _connect_lanes(self, session: Session) -> None:
        problems: list[StoreError] = []

        async def connect(lane: str) -> None:
            try:
                await self._call(lane, lambda _connection: None, session)
            except StoreError as error:
                problems.append(error)

        async with trio.open_nursery() as nursery:
            for lane in _SESSION_LANES:
                nursery.start_soon(connect, lane)
        if problems:
            raise problems[0]

    async def reattest(self, session: Session, held: Mapping[PoolId, int]) -> int:
        """Make each lease at least what is held; see `ledger.reattest`."""
        statement = "SELECT ledger.reattest(%s, %s, %s::bigint[], %s::bigint[])"
        parameters = [session.holder_id, session.epoch, list(held), list(held.values())]
        row = await self._row("control", statement, parameters, session)
        return int(row[0])

    async def close_holder(self, session: Session) -> None:
        """The end of a reclaimed holder that has posted everything."""
        statement = "SELECT ledger.close_holder(%s, %s)"
        await self._row("control", statement, [session.holder_id, session.epoch], session)

    # -- the two lanes --------------------------------------------------------------------------

    async def exchange(
        self, session: Session, events: Sequence[UsageEvent], pools: Sequence[PoolReport]
    ) -> list[PoolGrant]:
        """Post the next events, report what is held, obtain credit; see `ledger.exchange`."""

        def work(connection: psycopg.Connection) -> list[TupleRow]:
            # In the thread: to pack a thousand events takes 10 ms, which nobody should wait for.
            parameters = _exchange_parameters(session, events, pools)
            return connection.execute(_EXCHANGE, parameters).fetchall()

        rows = await self._call("exchange", work, session)
        return [PoolGrant(*row) for row in rows]

    async def grant_lease(self, session: Session, asks: Sequence[Ask]) -> list[PoolGrant]:
        """More credit for pools with waiting requests; see `ledger.grant_lease`."""
        parameters = [
            session.holder_id,
            session.epoch,
            *_columns(asks, ("pool_id", "need", "want")),
        ]
        rows = await self._rows("grant", _GRANT, parameters, session)
        return [PoolGrant(*row) for row in rows]

    async def quarantine(self, session: Session, event: UsageEvent, error: str) -> None:
        """Let an event that the books refuse take its place in the sequence, without amounts."""
        payload = msgspec.structs.asdict(event) | {
            "request_id": event.request_id.hex(),
            "units": ascii(event.units),  # the only text in it; jsonb does not take all of Unicode
        }
        statement = "SELECT ledger.quarantine_event(%s, %s, %s, %s, %s, %s, %s, %s, %s)"
        parameters = [
            session.holder_id,
            session.epoch,
            event.seq,
            _bigint_or_zero(event.occurred_at),
            _bigint_or_zero(event.account_id),
            _bigint_or_zero(event.key_id),
            uuid.UUID(bytes=event.request_id[:16].ljust(16, b"\0")),
            Jsonb(payload),
            error,
        ]
        await self._row("exchange", statement, parameters, session)

    # -- money in and out -----------------------------------------------------------------------

    async def credit_pool(
        self, pool: PoolId, amount: int, code: int, contra: int, ref: str
    ) -> bool:
        """Credit an account from the gl_account `contra`; False where (code, ref) is known."""
        statement = "SELECT ledger.credit_pool(%s, %s, %s::smallint, %s, %s)"
        row = await self._row("control", statement, [pool, amount, code, contra, ref])
        if row[0]:
            with suppress(StoreError):  # it is credited, whoever hears of it
                await self._call("control", lambda connection: announce(connection, pool))
        return bool(row[0])

    async def debit_pool(
        self, pool: PoolId, amount: int, code: int, contra: int, ref: str, *, forced: bool = False
    ) -> bool:
        """The reverse of `credit_pool`; unless `forced`, only what is available (LE007)."""
        statement = "SELECT ledger.debit_pool(%s, %s, %s::smallint, %s, %s, %s)"
        row = await self._row("control", statement, [pool, amount, code, contra, ref, forced])
        return bool(row[0])

    # -- hints ----------------------------------------------------------------------------------

    async def hints(self) -> AsyncIterator[Hint]:
        """What other sessions notify of, on a connection of its own that does nothing else."""
        lane = _Lane(self._conninfo)
        try:
            connection = await self._in_thread(lane, _listen)
            while True:
                await trio.lowlevel.wait_readable(connection.fileno())
                for channel, payload in _notifications(connection):
                    yield _HINTS[channel](payload)
        finally:
            lane.discard()

    # -- what the reaper does -------------------------------------------------------------------

    @asynccontextmanager
    async def reaper_lock(self) -> AsyncIterator[bool]:
        """Whether no other session has it. It belongs to the connection of the operations below,
        so whoever loses the one hears of it from the next of the others (StoreUncertain)."""
        row = await self._row("reaper", "SELECT pg_try_advisory_lock(%s)", [_REAPER_LOCK])
        acquired = bool(row[0])
        try:
            yield acquired
        finally:
            if acquired:
                self._discard("reaper")

    async def holders(self) -> list[HolderRow]:
        """Everyone who may have credit."""
        rows = await self._rows("reaper", _HOLDERS, [])
        return [HolderRow(row[0], row[1], HolderState(row[2]), *row[3:]) for row in rows]

    async def fence_holder(self, holder: HolderId, heartbeat_seen: int) -> bool:
        """End the holder's session, if nothing arrived from it since."""
        statement = "SELECT ledger.fence_holder(%s, %s)"
        row = await self._row("reaper", statement, [holder, heartbeat_seen])
        return bool(row[0])

    async def reclaim_holder(self, holder: HolderId, epoch_seen: int) -> int | None:
        """Put a fenced holder's credit back into its pools; None where it came back meanwhile."""
        statement = "SELECT ledger.reclaim_holder(%s, %s)"
        row = await self._row("reaper", statement, [holder, epoch_seen])
        return None if row[0] is None else int(row[0])

    async def end_learning(self) -> bool:
        """Grant again, if every active holder has attested its leases; False if nothing changed."""
        row = await self._row("reaper", "SELECT ledger.end_learning()", [])
        return bool(row[0])

    # -- invariants -----------------------------------------------------------------------------

    async def check(self) -> list[Violation]:
        """What contradicts the invariants of the books; empty where they are sound."""
        return await self._call(
            "check",
            lambda connection: [
                violation for result in verify.run_on(connection) for violation in result.violations
            ],
        )

    # -- threads --------------------------------------------------------------------------------

    async def _row(
        self,
        lane: str,
        statement: LiteralString,
        parameters: Sequence[object],
        session: Session | None = None,
    ) -> TupleRow:
        (row,) = await self._rows(lane, statement, parameters, session)
        return row

    async def _rows(
        self,
        lane: str,
        statement: LiteralString,
        parameters: Sequence[object],
        session: Session | None = None,
    ) -> list[TupleRow]:
        return await self._call(
            lane, lambda connection: connection.execute(statement, parameters).fetchall(), session
        )

    async def _call(self, name: str, work: Work[T], session: Session | None = None) -> T:
        """Do `work` on a lane's connection: the server of `session`, where one is given."""
        lane = self._lanes.setdefault(name, _Lane(self._conninfo))
        timeline = session.timeline if session else ""
        try:
            return await self._in_thread(lane, work, timeline)
        except trio.Cancelled:
            if self._lanes.get(name) is lane:
                self._discard(name)
            raise

    async def _in_thread(self, lane: _Lane, work: Work[T], timeline: str = "") -> T:
        try:
            return await trio.to_thread.run_sync(
                lane.run, work, timeline, abandon_on_cancel=True, limiter=self._limiter
            )
        except trio.Cancelled:
            lane.discard()
            raise

    def _discard(self, name: str) -> None:
        lane = self._lanes.pop(name, None)
        if lane is not None:
            lane.discard()


class _Lane:
    """One connection, opened when first needed, used by one thread at a time."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._lock = threading.Lock()
        self._connection: psycopg.Connection | None = None
        self._timeline = ""  # of its server, once somebody wanted to know
        self._discarded = False

    def run(self, work: Work[T], timeline: str = "") -> T:
        """Do `work` on the connection, which has to be to `timeline`, if that is given.

        Raises StoreRefused or StoreUncertain.
        """
        try:
            with self._lock:
                try:
                    return self._run(work, timeline)
                except StoreUncertain:
                    self._close()
                    raise
        finally:
            if self._discarded:
                self._close()

    def discard(self) -> None:
        """Use the lane no more. A call that still runs closes the connection when it ends.

        The flag is set before the lock is tried, and `run` looks at it after the lock is free, so
        at least one of the two closes.
        """
        self._discarded = True
        if self._lock.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._lock.release()

    def _run(self, work: Work[T], timeline: str) -> T:
        try:
            if self._connection is None:
                self._connection = connect(self._conninfo, limited=True)
            if timeline and not self._timeline:
                self._timeline = _timeline_of(self._connection)
            if timeline and self._timeline != timeline:
                raise StoreUncertain(
                    f"the session is with timeline {timeline}, this server is on {self._timeline}"
                )
            return work(self._connection)
        except psycopg.Error as error:
            raise _sort(error) from error

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        self._timeline = ""
        if connection is not None:
            connection.close()


def _timeline_of(connection: psycopg.Connection) -> str:
    row = connection.execute(_TIMELINE).fetchone()
    assert row is not None
    return str(row[0])


def _listen(connection: psycopg.Connection) -> psycopg.Connection:
    connection.execute(_LISTEN)
    return connection


def _notifications(connection: psycopg.Connection) -> Iterator[tuple[bytes, int]]:
    """What has arrived on a connection that listens. Raises StoreUncertain when it broke."""
    try:
        connection.pgconn.consume_input()
        while (notification := connection.pgconn.notifies()) is not None:
            yield notification.relname, int(notification.extra)
    except psycopg.Error as error:
        raise _sort(error) from error


def _sort(error: psycopg.Error) -> StoreError:
    """Say what an error means for the outcome of the statement."""
    message = brief(error)
    code = error.sqlstate
    if code is None:
        # From the driver itself: a lost connection, or a value that it could not even send.
        lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        return StoreUncertain(message) if lost else StoreRefused("22000", message)
    if code.startswith(_UNCERTAIN_CODES):
        return StoreUncertain(f"{code}: {message}")
    return StoreRefused(code, message)


def _exchange_parameters(
    session: Session, events: Sequence[UsageEvent], pools: Sequence[PoolReport]
) -> list[object]:
    """Raises StoreRefused for an event that holds a number of more than 64 bits."""
    first, last = (events[0].seq, events[-1].seq) if events else (1, 0)
    units = [event.units for event in events]
    try:
        columns = [
            kind.array(list(map(attrgetter(name), events))) for name, kind in _EVENT_COLUMNS.items()
        ]
    except OverflowError as error:
        raise StoreRefused(_OUT_OF_RANGE, str(error)) from error
    return [
        session.holder_id,
        session.epoch,
        first,
        last,
        *columns,
        # Where there are none, as a rule, the column may end before the others do.
        [Jsonb(each) if each else None for each in units] if any(units) else [],
        *_columns(pools, _POOL_COLUMNS),
    ]


def _columns(rows: Sequence[object], names: Sequence[str]) -> list[list[object]]:
    return [list(map(attrgetter(name), rows)) for name in names]


def _bigint_or_zero(number: int) -> int:
    return number if -(2**63) <= number < 2**63 else 0

"""Every invariant of the books as a query with a figure: `farebox ledger verify`.

Each check looks at all rows of one snapshot and returns what contradicts it; a clean result says
how much was examined, so that "no violation" cannot mean "nothing was looked at". Read only: it
may run beside the gateway, and repairs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg

from ledger.connection import connect
from ledger.store import Violation

VIOLATIONS_MAX = 1000  # of one check: a person reads them


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant. `violations` selects (subject, detail), `examined` one number."""

    name: str
    claim: str
    unit: str
    examined: str
    violations: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found. `unit` is what `examined` counts."""

    name: str
    claim: str
    unit: str
    examined: int
    violations: tuple[Violation, ...]


CHECKS: Sequence[Check] = (
    Check(
        "C1",
        "a pool's leased credit is the sum of its leases",
        "pools",
        "SELECT count(*) FROM ledger.pool",
        """
        SELECT format('pool %s', p.pool_id),
               format('leased %s, its leases hold %s', p.leased, coalesce(l.held, 0))
          FROM ledger.pool p
          LEFT JOIN (SELECT pool_id, sum(outstanding) AS held FROM ledger.lease GROUP BY 1) l
                 USING (pool_id)
         WHERE p.leased <> coalesce(l.held, 0)
        """,
    ),
    Check(
        "C2",
        "no account is below its limit, unless a refund, a dispute or a failover put it there",
        "accounts",
        "SELECT count(*) FROM ledger.pool WHERE kind = 1",
        """
        SELECT format('account %s', p.account_id),
               format('available %s, credit limit %s', p.available, p.credit_limit)
          FROM ledger.pool p
         WHERE p.kind = 1 AND p.available < -p.credit_limit - p.overgranted
           AND NOT EXISTS (SELECT FROM ledger.transfer t
                            WHERE t.account_id = p.account_id AND t.code IN (3, 7))
        """,
    ),
    Check(
        "C3",
        "an account's journal entries add up to its balance",
        "transfers",
        "SELECT count(*) FROM ledger.transfer",
        """
        SELECT format('account %s', p.account_id),
               format('balance %s, journal %s', p.funded - p.spent, coalesce(b.balance, 0))
          FROM ledger.pool p
          LEFT JOIN (SELECT gl, sum(amount) AS balance FROM (
                       SELECT credit_account_id AS gl, amount FROM ledger.transfer
                       UNION ALL
                       SELECT debit_account_id, -amount FROM ledger.transfer) t GROUP BY gl) b
                 ON b.gl = p.gl_account_id
         WHERE p.kind = 1 AND coalesce(b.balance, 0) <> p.funded - p.spent
        """,
    ),
    Check(
        "C4",
        "each holder's batches are contiguous: nothing lost, nothing twice",
        "batches",
        "SELECT count(*) FROM ledger.batch",
        """
        SELECT format('holder %s', holder_id), format('seq %s follows %s', first_seq, previous)
          FROM (SELECT holder_id, first_seq, lag(last_seq, 1, 0::bigint)
                         OVER (PARTITION BY holder_id ORDER BY last_seq) AS previous
                  FROM ledger.batch) b
         WHERE first_seq <> previous + 1
        UNION ALL
        SELECT format('holder %s', h.holder_id),
               format('applied up to %s, batches end at %s', h.applied_seq, coalesce(b.last, 0))
          FROM ledger.holder_progress h
          LEFT JOIN (SELECT holder_id, max(last_seq) AS last FROM ledger.batch GROUP BY 1) b
                 USING (holder_id)
         WHERE h.applied_seq <> coalesce(b.last, 0)
        """,
    ),
    Check(
        "C5",
        "usage events agree with the header of their batch",
        "events",
        "SELECT count(*) FROM ledger.usage_event",
        # Batches older than the oldest event kept are left out: their partition was dropped.
        """
        SELECT format('holder %s, batch at %s', holder_id, recorded_at),
               format('events %s/%s, cost %s/%s, charge %s/%s',
                      e.events, b.events, e.cost, b.cost, e.charge, b.charge)
          FROM (SELECT holder_id, recorded_at, sum(events) AS events,
                       sum(cost) AS cost, sum(charge) AS charge
                  FROM ledger.batch
                 WHERE recorded_at >= (SELECT coalesce(min(recorded_at), '-infinity')
                                         FROM ledger.usage_event)
                 GROUP BY 1, 2) b
          FULL JOIN (SELECT holder_id, recorded_at, count(*) AS events,
                            sum(cost) AS cost, sum(charge) AS charge
                       FROM ledger.usage_event GROUP BY 1, 2) e USING (holder_id, recorded_at)
         WHERE (e.events, e.cost, e.charge) IS DISTINCT FROM (b.events, b.cost, b.charge)
        """,
    ),
    Check(
        "C6",
        "postings agree with their batch: accounts pay the charge, providers are owed the cost",
        "postings",
        "SELECT count(*) FROM ledger.transfer WHERE code IN (30, 31, 32)",
        """
        SELECT format('holder %s, seq %s', holder_id, last_seq),
               format('charge %s, posted %s; cost %s, posted %s',
                      b.charge, coalesce(t.charge, 0), b.cost, coalesce(t.cost, 0))
          FROM ledger.batch b
          FULL JOIN (SELECT holder_id, last_seq,
                            sum(amount) FILTER (WHERE code IN (30, 31)) AS charge,
                            sum(amount) FILTER (WHERE code IN (30, 32)) AS cost
                       FROM ledger.transfer WHERE code IN (30, 31, 32) GROUP BY 1, 2) t
                 USING (holder_id, last_seq)
         WHERE (coalesce(t.charge, 0), coalesce(t.cost, 0)) IS DISTINCT FROM (b.charge, b.cost)
        """,
    ),
    Check(
        "C7",
        "dead holders hold nothing",
        "leases",
        "SELECT count(*) FROM ledger.lease",
        """
        SELECT format('pool %s', l.pool_id),
               format('holder %s still holds %s', l.holder_id, l.outstanding)
          FROM ledger.lease l JOIN ledger.holder h USING (holder_id)
         WHERE h.state IN (3, 4) AND l.outstanding <> 0
        """,
    ),
    Check(
        "C8",
        "what an account has spent is what its usage events were charged",
        "accounts",
        "SELECT count(*) FROM ledger.pool WHERE kind = 1",
        """
        SELECT format('account %s', coalesce(p.account_id, e.account_id)),
               format('spent %s, charged %s', coalesce(p.spent, 0), coalesce(e.charged, 0))
          FROM (SELECT account_id, spent FROM ledger.pool WHERE kind = 1) p
          FULL JOIN (SELECT account_id, sum(charge) AS charged FROM ledger.usage_event GROUP BY 1) e
                 ON e.account_id = p.account_id
         WHERE coalesce(p.spent, 0) <> coalesce(e.charged, 0)
        """,
    ),
)


@dataclass(frozen=True, slots=True)
class Holder:
    """A lease holder, as `farebox ledger holders` shows it; `outstanding` in nano-dollars.

    `seen_at` is for people: nothing is decided by it.
    """

    holder_id: int
    node: str
    state: str
    epoch: int
    heartbeat: int
    applied_seq: int
    opened_at: datetime
    seen_at: datetime
    leases: int
    outstanding: int


_HOLDERS = """
SELECT h.holder_id, h.node_name,
       (ARRAY['active', 'fenced', 'reclaimed', 'closed'])[h.state],
       h.epoch, p.heartbeat, p.applied_seq, h.opened_at, p.seen_at,
       count(l.pool_id), coalesce(sum(l.outstanding), 0)::bigint
  FROM ledger.holder h
  JOIN ledger.holder_progress p USING (holder_id)
  LEFT JOIN ledger.lease l ON l.holder_id = h.holder_id AND l.outstanding > 0
 GROUP BY h.holder_id, p.holder_id
 ORDER BY h.holder_id
"""


def run(conninfo: str) -> list[CheckResult]:
    """All checks, in order, on one consistent snapshot."""
    with connect(conninfo) as connection:
        return run_on(connection)


def run_on(connection: psycopg.Connection) -> list[CheckResult]:
    """The same on a connection that is in no transaction."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # The books may be large; a time-out that suits a lane would say nothing about them.
        connection.execute("SET LOCAL statement_timeout = 0")
        return [_run(connection, check) for check in CHECKS]


def holders(conninfo: str) -> list[Holder]:
    """Everyone who ever held leased credit, and what they hold now."""
    with connect(conninfo) as connection:
        return [Holder(*row) for row in connection.execute(_HOLDERS)]


def _run(connection: psycopg.Connection, check: Check) -> CheckResult:
    counted = connection.execute(check.examined).fetchone()
    assert counted is not None
    found = connection.execute(check.violations).fetchmany(VIOLATIONS_MAX)
    violations = tuple(Violation(check.name, subject, detail) for subject, detail in found)
    return CheckResult(check.name, check.claim, check.unit, counted[0], violations)

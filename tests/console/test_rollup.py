"""Sums of usage say what the events say, whatever was posted when, and whoever was cut short."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from console.store import usage
from console.store.usage import Span
from tests.fakes import history, postgres
from tests.fakes.history import Posted

pytestmark = pytest.mark.unsound_books("events without transfers")

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
_SUMS = """
SELECT account_id, date_trunc(%(name)s, starts_at, 'UTC'), key_id, model_id,
       sum(requests)::bigint, sum(failed)::bigint, sum(charge)::bigint, sum(tok_in)::bigint
  FROM console.usage_slice WHERE span = %(span)s GROUP BY 1, 2, 3, 4
"""
_EVENTS = """
SELECT account_id, date_trunc(%(name)s, recorded_at, 'UTC'), key_id, model_id,
       count(*) FILTER (WHERE reserved > 0 OR charge > 0 OR status IN (1, 2, 8, 10)),
       count(*) FILTER (WHERE (reserved > 0 OR charge > 0) AND status IN (5, 6, 7, 9)),
       sum(charge)::bigint, sum(tok_in)::bigint
  FROM ledger.usage_event GROUP BY 1, 2, 3, 4
"""

events = st.builds(
    Posted,
    at=st.integers(0, 200_000).map(lambda seconds: NOON + timedelta(seconds=seconds)),
    account_id=st.integers(1, 2),
    key_id=st.integers(1, 3),
    model_id=st.integers(1, 2),
    status=st.sampled_from([1, 2, 3, 5, 6, 8]),
    reserved=st.sampled_from([0, 200]),
    charge=st.sampled_from([0, 110]),
    cost=st.just(100),
    input_tokens=st.integers(0, 99),
    output_tokens=st.just(7),
    ttfb_ms=st.integers(0, 100_000),
)


def rows(connection: psycopg.Connection, statement: str, name: str, span: int) -> set[object]:
    return set(connection.execute(statement.encode(), {"name": name, "span": span}))


@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.integers(0, 1), st.lists(events, min_size=1, max_size=5)),
            st.sampled_from(["sum", "sum and die"]),
        ),
        max_size=12,
    )
)
def test_sums_are_those_of_the_events(
    postgres_server: postgres.TestServer, steps: list[object]
) -> None:
    with (
        postgres_server.database() as conninfo,
        psycopg.connect(conninfo, autocommit=True) as connection,
    ):
        holders = [history.holder(connection, "a"), history.holder(connection, "b")]
        following = [1, 1]
        for step in steps:
            if step == "sum":
                usage.sum_up(connection, 2)
            elif step == "sum and die":
                with connection.transaction(force_rollback=True):
                    usage.sum_up(connection, 100)
            elif isinstance(step, tuple):
                number, batch = step
                following[number] = history.post(
                    connection, holders[number], following[number], batch
                )
        while usage.sum_up(connection, 3):
            pass
        for name, span in (("hour", 1), ("day", 2)):
            assert rows(connection, _SUMS, name, span) == rows(connection, _EVENTS, name, span)


def test_a_second_console_leaves_the_work_to_the_first(database: str) -> None:
    with (
        psycopg.connect(database, autocommit=True) as first,
        psycopg.connect(database, autocommit=True) as second,
    ):
        history.post(first, history.holder(first), 1, [Posted(NOON, 1)])
        with first.transaction():
            assert usage.sum_up(first, 10) == 1
            assert usage.sum_up(second, 10) == 0
        assert usage.sum_up(second, 10) == 0


def test_slices_are_by_time_and_model_of_the_wanted_keys(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("INSERT INTO directory.model (name) VALUES ('gpt'), ('claude')")
        holder = history.holder(connection)
        seq = history.post(
            connection,
            holder,
            1,
            [Posted(NOON, 1), Posted(NOON, 1, key_id=2), Posted(NOON, 1, model_id=2, status=5)],
        )
        history.post(connection, holder, seq, [Posted(NOON + timedelta(hours=2), 1)])
        usage.sum_up(connection, 10)
        until = NOON + timedelta(days=1)
        hours = usage.slices(connection, 1, Span.HOUR, NOON, until)
        days = usage.slices(connection, 1, Span.DAY, NOON - timedelta(hours=12), until, [2])

    found = [(each.starts_at, each.model, each.requests, each.failed) for each in hours]
    assert found == [
        (NOON, "claude", 1, 1),
        (NOON, "gpt", 2, 0),
        (NOON + timedelta(hours=2), "gpt", 1, 0),
    ]
    assert [(each.model, each.requests, each.charge) for each in days] == [("gpt", 1, 110)]


def test_buckets_of_latency_tell_it_to_a_fifth(database: str) -> None:
    waited = [1, 2, 5, 40, 333, 1000, 45_000]
    with psycopg.connect(database, autocommit=True) as connection:
        history.post(
            connection,
            history.holder(connection),
            1,
            [Posted(NOON, 1, ttfb_ms=each) for each in waited],
        )
        usage.sum_up(connection, 10)
        until = NOON + timedelta(days=1)
        found = usage.latencies(connection, 1, Span.HOUR, NOON, until)
    by_hour = [each for each in found if each.starts_at == NOON and each.model is None]
    by_model = [each for each in found if each.starts_at is None and each.model == ""]
    assert len(found) == len(by_hour) + len(by_model)
    begins = sorted(2 ** (each.bucket / 4) - 1 for each in by_hour)
    assert begins == sorted(2 ** (each.bucket / 4) - 1 for each in by_model)
    for begin, real in zip(begins, waited, strict=True):
        assert begin <= real <= (begin + 1) * 2**0.25

"""Request ids, what is told of an exchange, and the log."""

from __future__ import annotations

import functools
import itertools
import operator
import uuid

import msgspec
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from adapters import registry
from adapters.canonical import Usage
from ledger.client import Settled
from ledger.store import EventStatus
from proxy.metrics import Metrics
from proxy.record import Log, Record, new_request_id, uuid_text
from tests.fakes.gateway import principal_of

MOMENTS = st.integers(0, 2**48 - 1)


@given(MOMENTS)
def test_request_ids_are_version_7_and_tell_their_time(milliseconds: int) -> None:
    made = {new_request_id(milliseconds) for _ in range(10)}
    assert len(made) == 10
    for value in made:
        parsed = uuid.UUID(bytes=value)
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
        assert uuid_text(value) == str(parsed)
        assert int.from_bytes(value[:6]) == milliseconds


def test_every_other_bit_of_a_request_id_is_random() -> None:
    made = [int.from_bytes(new_request_id(0)) for _ in range(200)]
    varied = functools.reduce(operator.or_, made) & ~functools.reduce(operator.and_, made)
    assert varied == (2**12 - 1) << 64 | 2**62 - 1


def told(record: Record) -> dict[str, object]:
    """Its line, but for what changes each time."""
    line = msgspec.json.decode(record.line())
    assert line.pop("request_id") == record.id
    assert line.pop("time").endswith("Z")
    return dict(line)


def test_a_line_tells_all_that_is_known_in_its_order() -> None:
    seconds = itertools.count(100.0, 0.25)
    record = Record(lambda: next(seconds))
    record.start(1_700_000_000.5)
    assert int.from_bytes(record.request_id[:6]) == 1_700_000_000_500
    record.operation = registry.find("POST", "/v1/chat/completions").operation
    record.principal = principal_of(key_id=7, account="acme", project="pay")
    record.model, record.stream, record.attempts = "gpt", True, 2
    record.dropped = "top_k,seed"
    record.upstream, record.provider = "p/gpt-x", "p"
    record.status, record.code = 200, "cut"
    record.hear()
    record.usage = Usage(input_tokens=11, output_tokens=5)
    record.estimated, record.reserved = True, 123_000_000
    record.settled, record.charge_usd = Settled(20, 22, EventStatus.ESTIMATED), "0.000000022"
    record.upstream_seconds = 0.125
    assert record.duration_ms == 500  # it goes on
    record.ended = 101.0
    expected = {
        "event": "request",
        "surface": "openai",
        "endpoint": "chat.completions",
        "status": 200,
        "code": "cut",
        "account": "acme",
        "project": "pay",
        "key_id": 7,
        "model": "gpt",
        "upstream": "p/gpt-x",
        "attempts": 2,
        "dropped": "top_k,seed",
        "stream": True,
        "reserved_usd": "0.123",
        "input_tokens": 11,
        "output_tokens": 5,
        "estimated": True,
        "charge_usd": "0.000000022",
        "ttfb_ms": 250,
        "duration_ms": 1000,
        "upstream_ms": 125,
    }
    line = told(record)
    assert line == expected
    assert list(line) == list(expected)


def test_a_line_leaves_out_what_is_not_known_but_never_status_and_duration() -> None:
    record = Record(lambda: 5.0)
    record.start(1_700_000_000.0)
    record.ended = 5.0
    assert told(record) == {"event": "request", "surface": "unknown", "status": 0, "duration_ms": 0}


def test_an_exchange_is_counted_once_in_each_of_its_figures() -> None:
    seconds = iter((100.0, 100.25))
    record, metrics = Record(lambda: next(seconds)), Metrics()
    record.start(0.0)
    record.operation = registry.find("POST", "/v1/chat/completions").operation
    record.model, record.provider, record.status = "gpt", "p", 200
    record.hear()
    record.usage = Usage(
        input_tokens=11, cached_input_tokens=3, output_tokens=5, reasoning_tokens=2
    )
    record.reserved, record.ending = 30, "settled"
    record.settled = Settled(25, 20, EventStatus.SETTLED)
    record.upstream_seconds, record.client_seconds, record.ended = 0.5, 0.25, 101.0
    record.count(metrics)
    of_model = {"model": "gpt", "provider": "p"}
    of_surface = {"surface": "openai", "model": "gpt"}
    read = metrics.registry.get_sample_value
    assert read("farebox_requests_total", of_model | {"surface": "openai", "status": "200"}) == 1
    assert read("farebox_request_duration_seconds_sum", of_surface) == 1.0
    assert read("farebox_time_to_first_byte_seconds_sum", of_surface) == 0.25
    assert read("farebox_overhead_seconds_sum", {}) == 0.25
    tokens = {"input": 11, "cached_input": 3, "output": 5, "reasoning": 2}
    assert tokens == {
        kind: read("farebox_tokens_total", of_model | {"kind": kind}) for kind in tokens
    }
    assert read("farebox_settlements_total", of_model | {"status": "settled"}) == 1
    assert read("farebox_charged_usd_total", of_model) == 20 / 10**9
    assert read("farebox_provider_cost_usd_total", of_model) == 25 / 10**9
    assert read("farebox_unbilled_provider_cost_usd_total", {"provider": "p"}) == 5 / 10**9


async def test_a_log_that_nobody_reads_stops_nothing(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    def broken(data: bytes) -> None:
        raise BrokenPipeError

    log = Log(broken)
    nursery.start_soon(log.run)
    for number in range(1, 4):
        log.add(b"line")
        while log.dropped < number:  # noqa: ASYNC110 - a thread tries to write it
            await trio.sleep(1)
    log.add(b"one more")
    nursery.cancel_scope.cancel()

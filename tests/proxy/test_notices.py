"""What operators are told of upstreams, in the log, in sentences and as figures."""

from __future__ import annotations

import json

import pytest
import trio

from adapters.catalogue import Provider, Upstream
from proxy.health import Alarm, Change, Health, Notice
from proxy.metrics import Metrics
from proxy.notices import Teller, line, remarks, shown
from proxy.record import Log

EPOCH_SECONDS = 1_800_000_000
P = Provider("openai", "openai", "http://p")
Q = Provider("other", "openai", "http://q")
BIG, SMALL, ELSEWHERE = Upstream(P, "big", None), Upstream(P, "small", None), Upstream(Q, "m", None)


def well() -> Health:
    health = Health(dice=lambda: 1.0)
    health.serve([BIG, SMALL, ELSEWHERE])
    return health


# -- the log --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("notice", "told"),
    [
        (
            Change("openai/big", "opened", "server_error", failures=5, seconds=4.8321),
            {
                "event": "upstream",
                "upstream": "openai/big",
                "state": "opened",
                "cause": "server_error",
                "failures": 5,
                "seconds": 4.832,
            },
        ),
        (
            Change("openai", "closed"),
            {"event": "upstream", "provider": "openai", "state": "closed"},
        ),
        (
            Change("openai/a/b", "limited", "rate_limited", limit=15),
            {
                "event": "upstream",
                "upstream": "openai/a/b",
                "state": "limited",
                "cause": "rate_limited",
                "limit": 15,
            },
        ),
        (
            Alarm("openai", "openai/big", "auth", loud=True),
            {"event": "alarm", "provider": "openai", "upstream": "openai/big", "cause": "auth"},
        ),
    ],
)
def test_a_notice_is_a_line(notice: Notice, told: dict[str, object]) -> None:
    written = line(notice, EPOCH_SECONDS)
    assert b"\n" not in written
    assert json.loads(written) == {"time": "2027-01-15T08:00:00Z"} | told


async def test_every_alarm_is_counted_and_one_a_minute_is_told() -> None:
    written: list[bytes] = []
    log, metrics = Log(written.append), Metrics()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        health = Health(told=Teller(log, metrics).tell)
        for second in range(90):
            health.failed(BIG, "forbidden", second)
        nursery.cancel_scope.cancel()
    lines = [json.loads(each) for each in b"".join(written).splitlines()]
    assert [each["event"] for each in lines].count("alarm") == 2
    labels = {"provider": "openai", "reason": "forbidden"}
    found = metrics.registry.get_sample_value("farebox_upstream_alarms_total", labels)
    assert found == 90


# -- sentences ------------------------------------------------------------------------------------


def test_of_what_is_well_nothing_is_said() -> None:
    assert remarks(well(), 3.0) == []


def test_a_circuit_is_a_sentence_with_its_cause() -> None:
    health = well()
    for _ in range(5):
        health.failed(BIG, "server_error", 1.0)
    assert remarks(health, 2.0) == ["openai/big: circuit open, 4 s, after 5 × server_error"]
    assert remarks(health, 6.0) == ["openai/big: circuit half-open, after 5 × server_error"]


def test_a_provider_s_circuit_is_told_once() -> None:
    health = well()
    health.failed(BIG, "auth", 1.0)
    assert remarks(health, 1.0) == ["openai: circuit open, 60 s, after auth"]


def test_rests_and_limits_are_sentences() -> None:
    health = well()
    places = [health.enter(SMALL, 0.0) for _ in range(4)]
    health.failed(ELSEWHERE, "overloaded", 0.0, hint=0.2)
    health.failed(SMALL, "rate_limited", 0.0)
    assert remarks(health, 0.0) == [
        "openai/small: full, 4 of 4 in flight",
        "other/m: resting, 1 s, after overloaded",
    ]
    assert all(places)


# -- figures --------------------------------------------------------------------------------------


def test_every_upstream_is_shown() -> None:
    health = well()
    place = health.enter(BIG, 0.0)
    for _ in range(5):
        health.failed(SMALL, "connect", 0.0)
    big, small, elsewhere = shown(health, 1.5)
    assert place is not None
    assert (big.name, big.state, big.by, big.seconds) == ("openai/big", "open", "openai", 3.5)
    assert (big.failures, big.cause, big.in_flight, big.limit) == (5, "connect", 1, 0)
    assert (small.name, small.state) == ("openai/small", "open")
    assert (elsewhere.state, elsewhere.seconds, elsewhere.cause) == ("ready", 0, "")


def test_figures_are_the_node_s() -> None:
    health = well()
    metrics = Metrics()
    metrics.watch_upstreams(lambda: health.states(5.0))
    for _ in range(4):
        assert health.enter(SMALL, 0.0) is not None
    health.failed(SMALL, "rate_limited", 0.0)
    for _ in range(5):
        health.failed(BIG, "server_error", 0.0)
    health.failed(ELSEWHERE, "quota", 0.0)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"farebox_{name}", labels)

    assert value("upstream_state", upstream="openai/big") == 1
    assert value("upstream_state", upstream="openai/small") == 4
    assert value("upstream_state", upstream="other/m") == 2
    assert value("circuit_state", provider="openai") == 1
    assert value("circuit_state", provider="other") == 2
    assert value("upstream_in_flight", upstream="openai/small") == 4
    assert value("upstream_limit", upstream="openai/small") == 4
    assert value("upstream_limit", upstream="openai/big") == 0

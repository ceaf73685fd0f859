"""What operators are told of upstreams: log lines, sentences, figures.

A *notice* is a moment at which something changed; the process in which it did says so, once, in
the log. A *state* is how things are now, and the same whichever process is asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from proxy.health import Alarm, Health, Notice, State, UpstreamState

if TYPE_CHECKING:
    from proxy.metrics import Metrics
    from proxy.record import Log

_ENCODER = msgspec.json.Encoder()


# -- the log --------------------------------------------------------------------------------------


class _Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    time: str
    event: str  # "upstream" or "alarm"
    provider: str = ""
    upstream: str = ""
    state: str = ""  # of an upstream, or of a whole provider
    cause: str = ""
    failures: int = 0
    seconds: float = 0
    limit: int = 0


def line(notice: Notice, epoch_seconds: int) -> bytes:
    """A notice as one line of JSON; what is unknown is left out."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch_seconds))
    if isinstance(notice, Alarm):
        told = _Line(
            time=moment,
            event="alarm",
            provider=notice.provider,
            upstream=notice.upstream,
            cause=notice.cause,
        )
    else:
        whole = "/" not in notice.name
        told = _Line(
            time=moment,
            event="upstream",
            provider=notice.name if whole else "",
            upstream="" if whole else notice.name,
            state=notice.what,
            cause=notice.cause or "",
            failures=notice.failures,
            seconds=round(notice.seconds, 3),
            limit=notice.limit,
        )
    return _ENCODER.encode(told)


@dataclass(frozen=True, slots=True)
class Teller:
    """Has a worker's log and metrics tell its notices."""

    log: Log
    metrics: Metrics

    def tell(self, notice: Notice) -> None:
        """As of `Health`. Alarms are all counted, and told once a minute."""
        if isinstance(notice, Alarm):
            self.metrics.alarm(notice.provider, notice.cause).inc()
            if not notice.loud:
                return
        self.log.add(line(notice, time.time_ns() // 10**9))


# -- how things are -------------------------------------------------------------------------------


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """An upstream in `/status`.

    `state`: ready, probe (half-open: one request at a time), open, resting or full; `by` says whose
    it is, the upstream's own or its provider's. `seconds` are those until that may be otherwise;
    `failures` in a row; `limit` is how many requests may be in flight, 0 where nothing says so.
    """

    name: str
    state: str
    by: str
    seconds: float
    failures: int
    cause: str
    in_flight: int
    limit: int


def shown(health: Health, now: float) -> list[Shown]:
    """Every upstream that is served."""
    return [
        Shown(
            name=state.name,
            state=state.state.value,
            by=state.by,
            seconds=round(state.until - now, 3),
            failures=state.failures,
            cause=state.cause or "",
            in_flight=state.in_flight,
            limit=state.limit,
        )
        for state in health.states(now)
    ]


def remarks(health: Health, now: float) -> list[str]:
    """A sentence for each circuit that is not closed, each rest and each upstream that is full.

    A provider's circuit is told once, not with each of its models.
    """
    return list(dict.fromkeys(_remarks(health.states(now), now)))


def _remarks(states: Iterable[UpstreamState], now: float) -> Iterator[str]:
    for state in states:
        seconds = f"{max(1, round(state.until - now))} s"
        match state.state:
            case State.OPEN:
                yield f"{state.by}: circuit open, {seconds}, {_after(state)}"
            case State.PROBE:
                yield f"{state.by}: circuit half-open, {_after(state)}"
            case State.RESTING:
                yield f"{state.by}: resting, {seconds}, {_after(state)}"
            case State.FULL:
                yield f"{state.by}: full, {state.in_flight} of {state.limit} in flight"


def _after(state: UpstreamState) -> str:
    several = f"{state.failures} × " if state.failures > 1 else ""
    return f"after {several}{state.cause}"

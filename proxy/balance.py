"""Whom to ask first: the order in which one request tries its model's upstreams.

Groups are tried in the order in which they are configured, and that order is never crossed. Inside
a group all are equals, and two things decide among them:

- *Affinity*, where the request has a key of it (`adapters.affinity`). The key draws a number for
  each upstream, and the best wins: rendezvous hashing, with the weights as rates of exponential
  draws. Every worker and node comes to the same order without being told, and where an upstream
  comes or goes only its own share of the conversations moves. An upstream that has 1.5 times its
  share of what is in flight, and a few more, is full for strangers and friends alike (hashing with
  bounded loads, Mirrokni et al. 2016): the next in the key's own order has them meanwhile.
- Else *two choices*. One upstream is drawn by weight, and so is another one; the request goes to
  the other where that would still be no busier, for its weight, than the first is already. In an
  idle group requests are therefore spread as the weights say, in a busy one what is in flight.

An upstream that takes longer to say something than the others counts for less when it is drawn, by
as much as it is slower, at most by four: prompts differ, and so do models behind one name. One that
has been slower than that for a whole window is an *outlier*. It comes last in its group, also for
those who know it, until its window is forgotten; it is never left out.

Nothing here knows whether an upstream can be asked at all: that is seen when its turn has come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from math import log
from statistics import median_low

import msgspec

from adapters.catalogue import Upstream
from proxy.latency import Latencies
from proxy.route import Candidate, Route

_SLOWER_MAX = 4.0
_NOTICED_SECONDS = 0.05  # what is quicker than that is equally quick
_SHARE_MAX = 1.5
_MORE_THAN_SHARE = 4
_DRAW_BITS = 52  # as many as let a float be more than 0 and less than 1


class _Equal(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One of a group. `share` is its weight for as long as it is no slower than the others."""

    candidate: Candidate
    in_flight: int
    share: float
    is_outlier: bool

    @property
    def weight(self) -> int:
        return self.candidate.weight


def arranged(
    route: Route,
    *,
    streamed: bool,
    affinity: int | None,
    in_flight: Callable[[Upstream], int],
    latencies: Latencies,
    dice: Callable[[], float],
    now: float,
) -> tuple[Candidate, ...]:
    """The candidates of `route` in the order in which one request tries them.

    `dice` are evenly spread from 0 to below 1. `now` is on the clock of `latencies`.
    """
    if not route.has_equals:
        return route.candidates
    order: list[Candidate] = []
    for group in route.groups:
        if len(group) == 1:
            order += group
            continue
        equals = _measured(group, streamed, in_flight, latencies, now)
        ranked = list(_drawn(equals, dice)) if affinity is None else _ranked(equals, affinity)
        ranked.sort(key=lambda equal: equal.is_outlier)  # a stable sort
        order += [equal.candidate for equal in ranked]
    return tuple(order)


def _measured(
    group: Sequence[Candidate],
    streamed: bool,
    in_flight: Callable[[Upstream], int],
    latencies: Latencies,
    now: float,
) -> list[_Equal]:
    """A group with what is known of each one's load and latency."""
    known = [latencies.of(candidate.upstream.name, streamed=streamed) for candidate in group]
    slower = _slower([latency.mean(now) for latency in known])
    lasting = _slower([latency.whole_mean(now) for latency in known])
    return [
        _Equal(
            candidate,
            in_flight(candidate.upstream),
            candidate.weight / min(by, _SLOWER_MAX),
            lastingly > _SLOWER_MAX,
        )
        for candidate, by, lastingly in zip(group, slower, lasting, strict=True)
    ]


def _slower(means: Sequence[float | None]) -> list[float]:
    """By how much each is slower than the median; 1 where it is not, or nothing is known.

    Of two, the median is the quicker one.
    """
    known = [max(mean, _NOTICED_SECONDS) for mean in means if mean is not None]
    if len(known) < 2:
        return [1.0] * len(means)
    usual = median_low(known)
    return [1.0 if mean is None else max(1.0, mean / usual) for mean in means]


# -- two choices ----------------------------------------------------------------------------------


def _drawn(equals: list[_Equal], dice: Callable[[], float]) -> Iterator[_Equal]:
    """All of them, each the better one of two that were drawn from those that are left."""
    left = list(equals)
    while len(left) > 1:
        one = _draw(left, dice)
        other = _draw([equal for equal in left if equal is not one], dice)
        chosen = other if _is_rather(other, one) else one
        left.remove(chosen)
        yield chosen
    yield from left


def _draw(equals: Sequence[_Equal], dice: Callable[[], float]) -> _Equal:
    """One of them, by their shares."""
    if len(equals) == 1:
        return equals[0]
    at = dice() * sum(equal.share for equal in equals)
    for equal in equals:
        at -= equal.share
        if at < 0:
            return equal
    return equals[-1]  # the sum was rounded


def _is_rather(other: _Equal, one: _Equal) -> bool:
    """Whether `other` with one request more is no busier than `one` is without it."""
    return (other.in_flight + 1) * one.share <= one.in_flight * other.share


# -- affinity -------------------------------------------------------------------------------------


def _ranked(equals: Sequence[_Equal], affinity: int) -> list[_Equal]:
    """All of them in the order of one key; those that have too much to do come last."""
    mean = sum(equal.in_flight for equal in equals) / sum(equal.weight for equal in equals)
    ranked = sorted(equals, key=lambda equal: _distance(equal, affinity))
    ranked.sort(
        key=lambda equal: equal.in_flight > _SHARE_MAX * mean * equal.weight + _MORE_THAN_SHARE
    )
    return ranked


def _distance(equal: _Equal, affinity: int) -> float:
    """How far an upstream is from a key: exponentially distributed, with its weight as the rate."""
    both = affinity.to_bytes(8) + equal.candidate.upstream.name.encode()
    bits = int.from_bytes(blake2b(both, digest_size=8).digest()) >> (64 - _DRAW_BITS)
    return -log((bits + 0.5) / 2**_DRAW_BITS) / equal.weight

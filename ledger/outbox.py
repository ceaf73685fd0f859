"""Events on their way to the store: the contiguous run from `applied_seq + 1` to `next_seq - 1`.

Events leave in order, at the front, when the store has applied them. If the store refuses a batch
for what is in it, halving batches narrows down which event is to blame; that one can be replaced
by an empty event, which keeps the sequence contiguous. Pure: which credit events carry is for the
engine to account for.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence

import msgspec

from ledger.store import UsageEvent, emptied

REFUSALS_BEFORE_BISECTION = 2


class Outbox:
    """The events that the store has not acknowledged. Times are the engine's."""

    __slots__ = (
        "_refusal",
        "_refusals",
        "_suspect_last",
        "_times",
        "applied_seq",
        "events",
        "next_seq",
        "quarantined",
    )

    def __init__(self, applied_seq: int, next_seq: int) -> None:
        self.applied_seq = applied_seq
        self.next_seq = next_seq
        self.quarantined = 0
        self.events: deque[UsageEvent] = deque()
        """All of them, in their order. Only this class changes it."""
        self._times: deque[float] = deque()
        self._refusal: tuple[int, int, str] | None = None  # first, last, code
        self._refusals = 0
        self._suspect_last: int | None = None

    def add(self, now: float, event: UsageEvent) -> None:
        """Append the next event; its number must be `next_seq`."""
        seq = event.seq
        assert seq == self.next_seq, f"event {seq} is not the next, {self.next_seq}"
        self.events.append(event)
        self._times.append(now)
        self.next_seq = seq + 1

    def restore(self, now: float, events: Sequence[UsageEvent]) -> None:
        """Put events in front that the store has, or may have, lost: the ones before the first.

        They are in order, contiguous and end right before what is here already.
        """
        for event in reversed(events):
            assert event.seq == self.applied_seq, "a gap in front of the outbox"
            self.events.appendleft(event)
            self._times.appendleft(now)
            self.applied_seq -= 1

    def oldest_seconds(self, now: float) -> float:
        """How long the first event has been waiting."""
        return now - self._times[0] if self._times else 0.0

    def batch(self, upto: int, count_max: int) -> list[UsageEvent]:
        """The next events to post, none above `upto`; fewer while one of them is suspected."""
        count = min(len(self.events), upto - self.applied_seq, count_max)
        if self._suspect_last is not None:
            count = min(count, max((self._suspect_last - self.applied_seq) // 2, 1))
        return list(itertools.islice(self.events, max(count, 0)))

    def applied(self, last_seq: int) -> list[UsageEvent]:
        """The store has everything up to `last_seq`: the events that leave."""
        count = min(len(self.events), max(last_seq - self.applied_seq, 0))
        left = [self.events.popleft() for _ in range(count)]
        for _ in left:
            self._times.popleft()
        self.applied_seq = max(self.applied_seq, last_seq)
        # A store that knows more than the journal (which then lost its tail): carry on behind it.
        self.next_seq = max(self.next_seq, last_seq + 1)
        if self._suspect_last is not None and self.applied_seq >= self._suspect_last:
            self._suspect_last = None
        return left

    def accepted(self) -> None:
        """A batch went through: earlier refusals say nothing any more."""
        self._refusal = None

    def refused_twice(self, first_seq: int, last_seq: int, code: str) -> bool:
        """The store refused a batch for its content: whether it did so before, for the same."""
        refusal = (first_seq, last_seq, code)
        self._refusals = self._refusals + 1 if refusal == self._refusal else 1
        self._refusal = refusal
        if self._refusals < REFUSALS_BEFORE_BISECTION:
            return False
        self._refusal = None
        return True

    def suspect(self, last_seq: int) -> None:
        """One of the events up to `last_seq` is to blame: the next batch is half of them."""
        self._suspect_last = last_seq

    def empty_first(self, event: UsageEvent) -> None:
        """Replace the first event, which is to blame, by an empty one."""
        assert self.events[0].seq == event.seq, "only the first unposted event can be to blame"
        self.events[0] = emptied(event)
        self._suspect_last = None
        self.quarantined += 1

    def uncover(self) -> None:
        """The leases are gone: what events took out of them becomes a shortfall."""
        for index, event in enumerate(self.events):
            self.events[index] = _uncovered(event)


def _uncovered(event: UsageEvent) -> UsageEvent:
    return msgspec.structs.replace(
        event,
        covered=(0,) * len(event.pools),
        short=tuple(map(sum, zip(event.covered, event.short, strict=True))),
    )

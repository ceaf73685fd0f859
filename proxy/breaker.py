"""A circuit as one worker handles it: the row that all share, and what only this worker knows.

The rules are `proxy.circuit`'s. Here they meet the locks (`proxy.shared_rows`): who may change a
row, who probes, and whose word counts. Two things are a worker's own: that it has probed an
opening, since only who has asked may say what came of it; and how often its attempts failed of
late, for an upstream that fails often, if not in a row.

Whatever changes is told, once, by the process in which it did.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from adapters.catalogue import Upstream
from proxy import circuit
from proxy.circuit import (
    BESIDE,
    CAUSE,
    FAILURES,
    LIMIT,
    OPENINGS,
    RESTS_UNTIL,
    UNTIL,
    Terms,
    seconds,
)
from proxy.shared_rows import Row
from proxy.verdicts import VERDICTS, Outcome

if TYPE_CHECKING:
    from proxy.seat import Place, Seat

_PROBED_SECONDS: Final = 1.0  # for so long, at least, others wait for a probe's outcome
_ELSEWHERE_SECONDS: Final = 0.1  # so long another process is taken to be probing
_WINDOW_SECONDS: Final = 10.0
_WINDOW_FAILURES_MAX: Final = 512
_WINDOW_ATTEMPTS_MIN: Final = 20
_OUTCOMES: Final[tuple[Outcome, ...]] = tuple(VERDICTS)
_NUMBERS: Final = {outcome: number for number, outcome in enumerate(_OUTCOMES, 1)}


@dataclass(frozen=True, slots=True)
class Change:
    """An upstream or a provider, `name`, is otherwise from now on.

    `seconds`: for how long at least. `limit`: how many requests at once.
    """

    name: str
    what: Literal["opened", "closed", "resting", "limited"]
    cause: Outcome | None = None
    failures: int = 0
    seconds: float = 0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Alarm:
    """An operator has to do something. `loud`: nobody has said so for a minute."""

    provider: str
    upstream: str
    cause: Outcome
    loud: bool


Notice = Change | Alarm


def unheard(notice: Notice) -> None:
    """For who does not want to be told."""


class Breaker:
    """A row of an upstream or a provider, and what this worker alone knows of it."""

    def __init__(self, name: str, row: Row, told: Callable[[Notice], None]) -> None:
        self.name = name
        self.words = row.words
        self.seats: list[Seat] = []  # that depend on it
        self._row = row
        self._told = told
        self._window = _Window()
        self._prober: Place | None = None
        self._probed = 0  # the opening, by its end, that we have probed
        self._elsewhere_until = -math.inf

    @property
    def cause(self) -> Outcome | None:
        """The last outcome that was counted."""
        number = self.words[CAUSE]
        return _OUTCOMES[number - 1] if number else None

    def open_until(self, now: float, account: int) -> float:
        """Until when an account may not ask; 0 where it may."""
        if not circuit.is_open_to(self.words, account):
            return 0
        if (moment := seconds(self.words[UNTIL])) > now:
            return moment
        probing = self._prober is not None or self._elsewhere_until > now
        return now + _PROBED_SECONDS if probing else 0

    def claim(self, place: Place, now: float, account: int) -> bool:
        """Whether `place` may find out about it, if it is half-open."""
        if not circuit.is_open_to(self.words, account):
            return True
        if not self._row.claim():
            self._elsewhere_until = now + _ELSEWHERE_SECONDS
            return False
        self._prober, self._probed = place, self.words[UNTIL]
        if seconds(self._probed) <= now:
            return True
        self.release(place)  # another process has probed it in this very moment
        return False

    def release(self, place: Place) -> None:
        """It finds out no more."""
        if self._prober is place:
            self._found_out()

    def _found_out(self) -> None:
        self._prober = None
        self._row.release()

    def alive(self, account: int = 0) -> None:
        """It has answered."""
        words = self.words
        if (words[FAILURES] or words[UNTIL]) and not circuit.is_spared(words, account):
            self._close(circuit.close)

    def calm(self, now: float, account: int) -> None:
        """It has answered to the end."""
        words = self.words
        if circuit.is_spared(words, account):
            words[BESIDE] = 0  # without the lock: at worst one failure too few is counted
        elif words[FAILURES] or words[UNTIL] or words[OPENINGS] or words[RESTS_UNTIL]:
            self._close(lambda words: circuit.calm(words, now))

    def _close(self, change: Callable[[circuit.Words], None]) -> None:
        with self._row.changing() as mine:
            until = self.words[UNTIL]
            if not mine or (until and until != self._probed):
                return  # said late, of before the opening
            change(self.words)
        if until:
            self._found_out()
            self._told(Change(self.name, "closed"))

    def failed(self, now: float, terms: Terms, outcome: Outcome, account: int) -> None:
        """It has failed."""
        words = self.words
        with self._row.changing() as mine:
            until = words[UNTIL]
            spared = circuit.is_spared(words, account)
            if not mine or (until and until != self._probed and not spared):
                return  # as above
            if spared:
                if not circuit.fail_beside(words, now, terms, _NUMBERS[outcome]):
                    return
            elif until:
                circuit.fail_again(words, now, terms, account, _NUMBERS[outcome])
            elif not circuit.fail(words, now, terms, account, _NUMBERS[outcome]):
                if not self._fails_often(now, account):
                    return
                circuit.open_(words, now, terms, sole=self._window.sole)
        self._opened(now, outcome)

    def _fails_often(self, now: float, account: int) -> bool:
        answers = sum(seat.answers for seat in self.seats)
        others = circuit.serves_others(self.words, account, now)
        return self._window.bad(now, account, answers, others_served=others)

    def out(self, now: float, outcome: Outcome) -> None:
        """It will fail until somebody does something."""
        known = self.words[UNTIL] > circuit.micros(now)
        with self._row.changing() as mine:
            if not mine:
                return
            circuit.out(self.words, now, _NUMBERS[outcome])
        if not known:
            self._opened(now, outcome)

    def _opened(self, now: float, outcome: Outcome) -> None:
        self._found_out()
        self._window.clear()
        pause = seconds(self.words[UNTIL]) - now
        self._told(Change(self.name, "opened", outcome, self.words[FAILURES], pause))

    def rest(self, now: float, pause: float, outcome: Outcome) -> None:
        """It wants to be left alone for so long."""
        known = self.words[RESTS_UNTIL] > circuit.micros(now)
        with self._row.changing() as mine:
            if not mine:
                return
            circuit.rest(self.words, now + pause, _NUMBERS[outcome])
        if not known:
            self._told(Change(self.name, "resting", outcome, seconds=pause))

    def cut(self, now: float, in_flight: int, outcome: Outcome, account: int) -> None:
        """It has too much to do, at least for an account."""
        known = self.words[LIMIT]
        with self._row.changing() as mine:
            overloaded = mine and circuit.is_overloaded(self.words, account, now)
            cut = overloaded and circuit.cut(self.words, now, in_flight)
        if cut and not known:
            self._told(Change(self.name, "limited", outcome, limit=self.words[LIMIT]))

    def raise_limit(self, most: int) -> None:
        """It can do more."""
        with self._row.changing() as mine:
            if mine:
                circuit.raise_limit(self.words, most)

    def forget_limit(self) -> None:
        """It has said nothing of it for long."""
        with self._row.changing() as mine:
            if mine:
                circuit.forget_limit(self.words)

    def alarm(self, upstream: Upstream, outcome: Outcome, now: float) -> None:
        """Somebody has to do something."""
        with self._row.changing() as mine:
            loud = mine and circuit.alarm(self.words, now)
        self._told(Alarm(upstream.provider.name, upstream.name, outcome, loud))


class _Window:
    """Failures of the last seconds, to find an upstream that fails often, if not in a row."""

    def __init__(self) -> None:
        self._failures: deque[tuple[float, int, int]] = deque()
        self._of_account: Counter[int] = Counter()

    def bad(self, now: float, account: int, answers: int, *, others_served: bool) -> bool:
        """Whether half of the attempts since the oldest failure here have failed, with this one.

        `answers` counts all whole answers so far. As long as others are served, an account counts
        for no more than all the others together.
        """
        self._failures.append((now, account, answers))
        self._of_account[account] += 1
        while (
            self._failures[0][0] < now - _WINDOW_SECONDS
            or len(self._failures) > _WINDOW_FAILURES_MAX
        ):
            self._forget_oldest()
        failures = len(self._failures)
        if others_served:
            most = max(self._of_account.values())
            failures = min(failures, 2 * (failures - most))
        attempts = failures + answers - self._failures[0][2]
        return attempts >= _WINDOW_ATTEMPTS_MIN and 2 * failures >= attempts

    def _forget_oldest(self) -> None:
        _, account, _ = self._failures.popleft()
        self._of_account[account] -= 1
        if not self._of_account[account]:
            del self._of_account[account]

    @property
    def sole(self) -> int:
        """The one account that all of them are of; 0 where they are of several."""
        return next(iter(self._of_account)) if len(self._of_account) == 1 else 0

    def clear(self) -> None:
        """Begin anew."""
        self._failures.clear()
        self._of_account.clear()

"""What is known of an upstream, in the words of a row, and the rules by which it changes: pure.

There are rows of two kinds: of an upstream (`provider/model`), and of a provider, for what happens
to all of its models together (names, connections, credentials). Every function here takes the
words and the moment, and changes the words of that row alone; nothing is waited for, nothing asked.

The circuit
- CLOSED while `UNTIL` is 0. So many failures in a row open it, and so does an upstream of whose
  last attempts half have failed (`proxy.breaker` counts those).
- OPEN until the moment in `UNTIL`. Each opening that follows without a whole answer in between
  lasts twice as long, up to a minute, less up to a fifth by chance: upstreams that failed together
  are not to be tried together.
- HALF-OPEN from then on: one attempt at a time may find out (*probe*). Its first content closes the
  circuit, its failure opens it again. What attempts from before the opening have to say late is
  not heard.
- In a row is what no whole answer interrupts. First content does not: an upstream that cuts every
  stream in its middle has to be found out as well.

One customer is not to close an upstream for the others, by requests that nobody can serve. So as
long as others have whole answers (within ten seconds), an account's failures count in pairs only,
each with one of another account: Boyer and Moore's count of a majority, of which `UNPAIRED` is what
one account is ahead of all others together. And where no others were there to be heard, an opening
that one account alone has caused (`SOLE`) holds for that account alone: the others are served as
before, until as many of their attempts have failed in a row as close it for everybody.

The limit
Of requests at once, found by what providers say: none until one says that it is overloaded, and not
only to one account while others are served, whose requests may be all that is too much; then
three quarters of what was in flight, at most once a second, or once in five where nothing is
answered in between; one more for each round of whole answers while it is used, and after ten quiet
seconds twice what it was; forgotten after a minute without a word of overload. What an answer took
says nothing here: one may take 1 s or 300.

All moments are microseconds of one clock, in which 0 is no moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

# A row's first two words are its name (`proxy.shared_rows`).
UNEASY: Final = 2  # 0: nothing of what follows is set; all that a healthy upstream is asked
FAILURES: Final = 3  # in a row
UNTIL: Final = 4  # 0: closed
OPENINGS: Final = 5  # since the last whole answer
RESTS_UNTIL: Final = 6
LIMIT: Final = 7  # 0: none
LIMITED_UNTIL: Final = 8
CAUSE: Final = 9  # the latest outcome that was counted, as a number of the caller's
RUN_OF: Final = 10  # the account that is ahead in the failures in a row …
UNPAIRED: Final = 11  # … and by how many
SERVED: Final = 12  # who had a whole answer, and when …
SERVED_BEFORE: Final = 13  # … and who else had one before
SOLE: Final = 14  # the account for which alone it is open; 0: for all
BESIDE: Final = 15  # failures in a row of the others meanwhile
OVERLOADED: Final = 16  # who was told so last, and when
ALARM_FROM: Final = 17
WORDS: Final = 16  # of a row, beside its name and its places

PAUSE_SECONDS_MAX: Final = 60.0
OUT_SECONDS: Final = 60.0
REST_SECONDS_MAX: Final = 60.0
LIMIT_MIN: Final = 4
_LIMITED_SECONDS: Final = 60.0
_CUT_SECONDS: Final = 1.0
_CUT_AGAIN_SECONDS: Final = 5.0  # where nothing was answered since
_CALM_SECONDS: Final = 10.0
_ALARM_SECONDS: Final = 60.0
_JITTER: Final = 0.2
_DOUBLINGS_MAX: Final = 32
_PROTECTED_SECONDS: Final = 10.0
_SAID_AGAIN_SECONDS: Final = 1.0
_SECOND: Final = 1_000_000
_TAG_BITS: Final = 16
_TAGS: Final = (1 << _TAG_BITS) - 1

Words = memoryview


@dataclass(frozen=True, slots=True)
class Terms:
    """When an upstream is left alone, and for how long. `dice` gives 0 to 1; 1 changes nothing."""

    failures_to_open: int
    open_seconds: float
    dice: Callable[[], float]


def micros(now: float) -> int:
    """A moment as it stands in a row."""
    return round(now * _SECOND)


def seconds(moment: int) -> float:
    """A moment of a row as everybody else has it."""
    return moment / _SECOND


# -- circuit --------------------------------------------------------------------------------------


def fail(words: Words, now: float, terms: Terms, account: int, cause: int) -> bool:
    """Count a failure while the circuit is closed; whether that opened it."""
    _count(words, account, cause)
    counted, enough = words[FAILURES], terms.failures_to_open
    if serves_others(words, account, now):
        counted -= max(words[UNPAIRED] - 1, 0)
        enough = max(enough, 2)
    if counted < enough:
        return False
    alone = words[UNPAIRED] == words[FAILURES]
    open_(words, now, terms, sole=account if alone else 0)
    return True


def fail_again(words: Words, now: float, terms: Terms, account: int, cause: int) -> None:
    """A probe has failed."""
    _count(words, account, cause)
    _shut(words, now, terms)


def fail_beside(words: Words, now: float, terms: Terms, cause: int) -> bool:
    """Count a failure of an account for which it is not open; whether it is now, for all."""
    words[BESIDE] += 1
    words[CAUSE] = cause
    if words[BESIDE] < terms.failures_to_open:
        return False
    words[OPENINGS] = 0
    open_(words, now, terms)
    return True


def _count(words: Words, account: int, cause: int) -> None:
    tag = _tag(account)
    if words[UNPAIRED] == 0:
        words[RUN_OF] = tag
    words[UNPAIRED] += 1 if words[RUN_OF] == tag else -1
    words[FAILURES] += 1
    words[CAUSE] = cause
    words[UNEASY] = 1


def open_(words: Words, now: float, terms: Terms, *, sole: int = 0) -> None:
    """Have it left alone, by one account or by all."""
    words[SOLE] = _tag(sole)
    words[BESIDE] = 0
    _shut(words, now, terms)


def _shut(words: Words, now: float, terms: Terms) -> None:
    """The longer the more often that was necessary."""
    doubled = terms.open_seconds * 2 ** min(words[OPENINGS], _DOUBLINGS_MAX)
    pause = min(doubled, PAUSE_SECONDS_MAX)
    words[OPENINGS] += 1
    words[UNTIL] = micros(now + pause * (1 - _JITTER * (1 - terms.dice())))
    words[UNEASY] = 1


def is_open_to(words: Words, account: int) -> bool:
    """Whether an account has to leave it alone, or to find out about it. 0: any."""
    return words[UNTIL] != 0 and (not words[SOLE] or words[SOLE] == _tag(account) or not account)


def is_spared(words: Words, account: int) -> bool:
    """Whether it is open, but not to this account."""
    return words[UNTIL] != 0 and not is_open_to(words, account)


def out(words: Words, now: float, cause: int) -> None:
    """Leave it alone at once: nothing mends itself within seconds."""
    words[UNTIL] = max(words[UNTIL], micros(now + OUT_SECONDS))
    words[SOLE] = 0
    words[CAUSE] = cause
    words[UNEASY] = 1


def close(words: Words) -> None:
    """It has answered: the run of failures is over, and so is the opening."""
    words[FAILURES] = 0
    words[UNPAIRED] = 0
    words[UNTIL] = 0
    words[SOLE] = 0
    _ease(words)


def calm(words: Words, now: float) -> None:
    """It has answered to the end: what was before is forgotten."""
    words[OPENINGS] = 0
    if words[RESTS_UNTIL] <= micros(now):
        words[RESTS_UNTIL] = 0
    close(words)


def rest(words: Words, until: float, cause: int) -> None:
    """It is not to be asked before."""
    words[RESTS_UNTIL] = max(words[RESTS_UNTIL], micros(until))
    words[CAUSE] = cause
    _ease(words)


def _ease(words: Words) -> None:
    troubled = words[FAILURES] or words[UNTIL] or words[OPENINGS]
    words[UNEASY] = 1 if troubled or words[RESTS_UNTIL] or words[LIMIT] else 0


# -- limit ----------------------------------------------------------------------------------------


def is_overloaded(words: Words, account: int, now: float) -> bool:
    """Note that an account was told so; whether it is so for all, as far as is known."""
    before = words[OVERLOADED]
    words[OVERLOADED] = _noted(account, now)
    if before & _TAGS != _tag(account) and before and _since(before, now) < _PROTECTED_SECONDS:
        return True
    return not serves_others(words, account, now)


def cut(words: Words, now: float, in_flight: int) -> bool:
    """Overloaded with so many in flight; whether that changed the limit.

    With next to nothing in flight it is not that: a quota by the minute, say, or the network. And
    where nothing was answered since the last cut, it is more than that: who refuses everybody is
    away, which is for the circuit to know, and needs no small limit when it is back.
    """
    if not words[LIMIT] and in_flight < LIMIT_MIN:
        return False
    if words[LIMIT]:
        since_cut = now - seconds(words[LIMITED_UNTIL]) + _LIMITED_SECONDS
        latest = words[SERVED]
        answered = latest and _since(latest, now) < since_cut + _SAID_AGAIN_SECONDS
        if since_cut < (_CUT_SECONDS if answered else _CUT_AGAIN_SECONDS):
            return False
    held = min(in_flight, words[LIMIT]) if words[LIMIT] else in_flight
    words[LIMIT] = max(held * 3 // 4, LIMIT_MIN)
    words[LIMITED_UNTIL] = micros(now + _LIMITED_SECONDS)
    words[UNEASY] = 1
    return True


def growth(words: Words, now: float) -> float:
    """What a whole answer adds to the limit while it is used: one for a round of them; and one for
    each, which doubles it with every round, once nothing was heard of overload for a while.

    A limit may be far below what an upstream can do: little was in flight there when it was unwell.
    """
    calm_seconds = now - seconds(words[LIMITED_UNTIL]) + _LIMITED_SECONDS
    return 1.0 if calm_seconds >= _CALM_SECONDS else 1 / words[LIMIT]


def raise_limit(words: Words, most: int) -> None:
    """One more may be in flight; a limit of `most` is none."""
    if words[LIMIT]:
        words[LIMIT] += 1
        if words[LIMIT] >= most:
            forget_limit(words)


def forget_limit(words: Words) -> None:
    """There has been no word of overload for long."""
    words[LIMIT] = 0
    _ease(words)


# -- accounts -------------------------------------------------------------------------------------


def serve(words: Words, account: int, now: float) -> None:
    """Note who had a whole answer. Without a lock: what is lost is said again by the next one."""
    latest = words[SERVED]
    if latest & _TAGS == account % _TAGS + 1:
        if now - (latest >> _TAG_BITS) / 1000 < _SAID_AGAIN_SECONDS:
            return
    elif latest:
        words[SERVED_BEFORE] = latest
    words[SERVED] = _noted(account, now)


def serves_others(words: Words, account: int, now: float) -> bool:
    """Whether another account has had a whole answer of late. Nobody is told from account 0."""
    if not account:
        return False
    latest = words[SERVED]
    other = words[SERVED_BEFORE] if latest & _TAGS == _tag(account) else latest
    return other != 0 and _since(other, now) < _PROTECTED_SECONDS


def _tag(account: int) -> int:
    return account % _TAGS + 1 if account else 0


def _noted(account: int, now: float) -> int:
    """An account and a moment in one word: milliseconds are enough."""
    return int(now * 1000) << _TAG_BITS | _tag(account)


def _since(noted: int, now: float) -> float:
    return now - (noted >> _TAG_BITS) / 1000


# -- alarms ---------------------------------------------------------------------------------------


def alarm(words: Words, now: float) -> bool:
    """Whether an alarm may be raised: one a minute is enough."""
    if now < seconds(words[ALARM_FROM]):
        return False
    words[ALARM_FROM] = micros(now + _ALARM_SECONDS)
    return True

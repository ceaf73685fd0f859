"""Rate limits and concurrency, decided inside the reserve call: pure, `now` is an argument.

Requests and tokens per minute follow the generic cell rate algorithm: per scope one number, the
theoretical arrival time (`tat`), up to which the limit is already spent. A request of weight w
moves it by w × 60 / limit seconds and is admitted while it stays at most one minute ahead of now,
so the burst is a full minute's limit and no window of one minute sees more than limit + burst.
Concurrency is a count of open requests.

Rules: all limits of a request admit or nothing is consumed. Tokens are reserved by the estimate
and corrected at settlement, downwards (given back) or upwards (a debt that delays later requests).
Changing a limit keeps what was used. A scope whose `tat` has passed is as good as unknown and is
forgotten, so memory follows the number of scopes active within a minute.

`Limiter` counts for one node, exactly. `fleet.FleetLimiter` counts for several, against rights
drawn from Valkey. The engine sees both as a `LimiterPort` and need not know which it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

if TYPE_CHECKING:  # the fleet's words build on these
    from ledger.draws import Draw, DrawReply

LimitKind = Literal["rpm", "tpm", "concurrent"]

WINDOW_SECONDS = 60.0
CONCURRENT_RETRY_SECONDS = 1.0  # nobody knows when an open request ends
_ROUNDING = 1e-6  # seconds of float error forgiven, so that the last of a full burst still fits
_SWEEP_MIN = 1024


class LimitRef(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A limit that applies to a request; (`scope`, `kind`) names what is counted.

    What belongs to one account starts with the same words up to a slash (`account:7`,
    `account:7/model:3`): a fleet decides about all of it in one step.
    """

    scope: str
    kind: LimitKind
    limit: int


class LimitState(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What is left of a limit after this request, for response headers."""

    kind: LimitKind
    limit: int
    remaining: int
    reset_seconds: float


class Denied(msgspec.Struct, frozen=True, gc=False):
    """The limit that refused (the one to wait for longest) and the state of all of them.

    `never_fits`: the request alone is larger than the limit, so waiting cannot help.
    """

    limit: LimitRef
    retry_after: float
    never_fits: bool
    states: tuple[LimitState, ...]


class NotYet(msgspec.Struct, frozen=True, gc=False):
    """The node holds too few rights and has to ask the fleet first; nothing was consumed.

    Try again after the next `drawn` or `lost`.
    """


NOT_YET = NotYet()


class LimiterPort(Protocol):
    """What the engine needs of a limiter, on one node or in a fleet.

    `admit` decides at once, or answers `NotYet`: then the request waits, and one task of the
    server (`valkey.QuotaLane`) does the asking, one batch at a time::

        draws = limiter.next_draws(now)
        replies = await quotas.draw(draws)     # raises QuotasUnavailable
        limiter.drawn(now, draws, replies)     # or limiter.lost(now)
        ...                                    # every waiting request is tried again, in order

    Every waiting request must be tried again after each `drawn` and `lost`, because a limiter
    then forgets who waits: those who still do say so by asking. One that no longer waits needs no
    word: what was drawn for it serves others or goes back. Each batch decides the first who waits
    of each account it has room for, and nobody overtakes, so nobody waits for ever.
    """

    @property
    def fleet_connected(self) -> bool | None:
        """Whether the fleet's limits hold; None where there is no fleet."""

    @property
    def wants_draw(self) -> bool:
        """Whether `next_draws` is due now; else it is enough to call it every POLL_SECONDS."""

    def admit(
        self, now: float, refs: Sequence[LimitRef], tokens: int
    ) -> tuple[LimitState, ...] | Denied | NotYet:
        """Consume one request, `tokens` tokens and one slot; or deny, or defer, and consume
        nothing."""

    def occupy(self, refs: Sequence[LimitRef]) -> None:
        """A request that is under way takes its slots again, after a restart."""

    def settle(self, refs: Sequence[LimitRef], reserved_tokens: int, used_tokens: int) -> None:
        """An admitted request ended."""

    def undo(self, refs: Sequence[LimitRef], tokens: int) -> None:
        """An admitted request was refused for another reason: as if it had never been admitted."""

    def next_draws(self, now: float) -> list[Draw]:
        """What to ask Valkey for now; to be followed by `drawn` or `lost`."""

    def drawn(self, now: float, draws: Sequence[Draw], replies: Sequence[DrawReply]) -> None:
        """Valkey's replies, one for each draw of the batch."""

    def lost(self, now: float) -> None:
        """Valkey did not answer; whether it did anything is unknown."""


class Limiter:
    """Every counted scope of one node. A request must not name the same scope and kind twice."""

    __slots__ = ("_requests", "_slots", "_sweep_at", "_tokens")

    def __init__(self) -> None:
        # By scope: the theoretical arrival time, or slots that are taken.
        self._requests: dict[str, float] = {}
        self._tokens: dict[str, float] = {}
        self._slots: dict[str, float] = {}
        self._sweep_at = _SWEEP_MIN

    def __len__(self) -> int:
        return len(self._requests) + len(self._tokens) + len(self._slots)

    def admit(
        self, now: float, refs: Sequence[LimitRef], tokens: int
    ) -> tuple[LimitState, ...] | Denied:
        """Consume one request, `tokens` tokens and one slot, or deny and consume nothing."""
        worst: LimitRef | None = None
        longest = 0.0
        moved: list[tuple[dict[str, float], str, float]] = []  # counters, and where to
        states: list[LimitState] = []
        for ref in refs:  # once for everything: three rounds cost twice as much
            kind, scope, limit = ref.kind, ref.scope, ref.limit
            if kind == "concurrent":
                level = self._slots.get(scope, 0) + 1
                if level <= limit:
                    moved.append((self._slots, scope, level))
                    states.append(LimitState(kind, limit, limit - int(level), 0.0))
                    continue
                wait = CONCURRENT_RETRY_SECONDS if limit > 0 else math.inf
            else:
                if kind == "rpm":
                    counters, weight = self._requests, 1
                else:
                    counters, weight = self._tokens, tokens
                if limit >= weight and limit > 0:
                    level = weight * WINDOW_SECONDS / limit
                    tat = counters.get(scope, now)
                    if tat > now:
                        level += tat - now
                    wait = level - WINDOW_SECONDS
                    if wait <= _ROUNDING:
                        moved.append((counters, scope, now + level))
                        states.append(LimitState(kind, limit, _left(limit, level), level))
                        continue
                else:
                    wait = math.inf
            if wait > longest:
                worst, longest = ref, wait
        if worst is not None:
            return self._denied(now, refs, worst, longest)
        for counters, scope, level in moved:
            counters[scope] = level
        if len(self._requests) + len(self._tokens) >= self._sweep_at:
            self._forget_idle(now)
        return tuple(states)

    def _denied(self, now: float, refs: Sequence[LimitRef], worst: LimitRef, wait: float) -> Denied:
        """The refusal, with what is left of each limit. An infinite wait is a request too large."""
        states = tuple([self._state(now, ref) for ref in refs])
        never = wait == math.inf
        return Denied(worst, WINDOW_SECONDS if never else wait, never, states)

    def occupy(self, refs: Sequence[LimitRef]) -> None:
        """A request that is under way takes its slots again, after a restart."""
        slots = self._slots
        for ref in refs:
            if ref.kind == "concurrent":
                slots[ref.scope] = slots.get(ref.scope, 0) + 1

    def settle(self, refs: Sequence[LimitRef], reserved_tokens: int, used_tokens: int) -> None:
        """The request ended: free its slots, correct its tokens."""
        excess = used_tokens - reserved_tokens
        for ref in refs:
            kind = ref.kind
            if kind == "concurrent":
                self._release(ref.scope)
            elif kind == "tpm" and excess:
                _shift(self._tokens, ref, excess)

    def undo(self, refs: Sequence[LimitRef], tokens: int) -> None:
        """The request was refused for another reason: as if it had never been admitted."""
        for ref in refs:
            if ref.kind == "concurrent":
                self._release(ref.scope)
            elif ref.kind == "rpm":
                _shift(self._requests, ref, -1)
            else:
                _shift(self._tokens, ref, -tokens)

    @property
    def fleet_connected(self) -> None:
        """There is no fleet."""
        return None

    @property
    def wants_draw(self) -> bool:
        """Never: what is counted here is all there is."""
        return False

    def next_draws(self, now: float) -> list[Draw]:
        """Nothing: nobody else counts."""
        return []

    def drawn(self, now: float, draws: Sequence[Draw], replies: Sequence[DrawReply]) -> None:
        """Nothing was asked for."""

    def lost(self, now: float) -> None:
        """Nothing was asked for."""

    def _state(self, now: float, ref: LimitRef) -> LimitState:
        """What is left of a limit."""
        if ref.kind == "concurrent":
            left = ref.limit - int(self._slots.get(ref.scope, 0))
            return LimitState(ref.kind, ref.limit, max(left, 0), 0.0)
        counters = self._requests if ref.kind == "rpm" else self._tokens
        level = max(counters.get(ref.scope, now) - now, 0.0)
        return LimitState(ref.kind, ref.limit, max(_left(ref.limit, level), 0), level)

    def _release(self, scope: str) -> None:
        slots = self._slots
        used = slots.get(scope, 0)
        if used > 1:
            slots[scope] = used - 1
        else:
            slots.pop(scope, None)

    def _forget_idle(self, now: float) -> None:
        """Amortised: runs when the tables have doubled since the last time."""
        self._requests = {scope: tat for scope, tat in self._requests.items() if tat > now}
        self._tokens = {scope: tat for scope, tat in self._tokens.items() if tat > now}
        self._sweep_at = max(_SWEEP_MIN, 2 * (len(self._requests) + len(self._tokens)))


def _shift(counters: dict[str, float], ref: LimitRef, weight: int) -> None:
    """Correct a rate, unless its scope is forgotten."""
    scope, limit = ref.scope, ref.limit
    if scope in counters and limit > 0:
        counters[scope] += weight * WINDOW_SECONDS / limit


def _left(limit: int, level: float) -> int:
    """What is left of a rate that is spent `level` seconds ahead: below 0 after a correction."""
    left = int((WINDOW_SECONDS + _ROUNDING - level) * limit / WINDOW_SECONDS)
    return min(left, limit)

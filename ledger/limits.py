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
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

LimitKind = Literal["rpm", "tpm", "concurrent"]

WINDOW_SECONDS = 60.0
CONCURRENT_RETRY_SECONDS = 1.0  # nobody knows when an open request ends
_ROUNDING = 1e-6  # seconds of float error forgiven, so that the last of a full burst still fits
_SWEEP_MIN = 1024


class LimitRef(msgspec.Struct, frozen=True):
    """A limit that applies to a request; (`scope`, `kind`) names what is counted."""

    scope: str
    kind: LimitKind
    limit: int


class LimitState(msgspec.Struct, frozen=True):
    """What is left of a limit after this request, for response headers."""

    kind: LimitKind
    limit: int
    remaining: int
    reset_seconds: float


class Denied(msgspec.Struct, frozen=True):
    """The limit that refused (the one to wait for longest) and the state of all of them.

    `never_fits`: the request alone is larger than the limit, so waiting cannot help.
    """

    limit: LimitRef
    retry_after: float
    never_fits: bool
    states: tuple[LimitState, ...]


class Limiter:
    """Every counted scope of one node. A request must not name the same scope and kind twice."""

    __slots__ = ("_open", "_sweep_at", "_tat")

    def __init__(self) -> None:
        self._tat: dict[tuple[str, LimitKind], float] = {}
        self._open: dict[str, int] = {}
        self._sweep_at = _SWEEP_MIN

    def __len__(self) -> int:
        return len(self._tat) + len(self._open)

    def admit(
        self, now: float, refs: Sequence[LimitRef], tokens: int
    ) -> tuple[LimitState, ...] | Denied:
        """Consume one request, `tokens` tokens and one slot, or deny and consume nothing."""
        worst: LimitRef | None = None
        wait = 0.0
        for ref in refs:
            needed = self._wait(now, ref, tokens)
            if needed > wait:
                worst, wait = ref, needed
        if worst is not None:
            states = tuple([self._state(now, ref) for ref in refs])
            never = wait == float("inf")
            return Denied(worst, WINDOW_SECONDS if never else wait, never, states)
        for ref in refs:
            if ref.kind == "concurrent":
                self._open[ref.scope] = self._open.get(ref.scope, 0) + 1
            else:
                key = ref.scope, ref.kind
                weight = 1 if ref.kind == "rpm" else tokens
                self._tat[key] = (
                    max(self._tat.get(key, now), now) + weight * WINDOW_SECONDS / ref.limit
                )
        if len(self._tat) >= self._sweep_at:
            self._forget_idle(now)
        return tuple([self._state(now, ref) for ref in refs])

    def settle(self, refs: Sequence[LimitRef], reserved_tokens: int, used_tokens: int) -> None:
        """The request ended: free its slots, correct its tokens."""
        excess = used_tokens - reserved_tokens
        for ref in refs:
            if ref.kind == "concurrent":
                self._release(ref.scope)
            elif ref.kind == "tpm" and excess:
                self._shift(ref, excess)

    def undo(self, refs: Sequence[LimitRef], tokens: int) -> None:
        """The request was refused for another reason: as if it had never been admitted."""
        for ref in refs:
            if ref.kind == "concurrent":
                self._release(ref.scope)
            else:
                self._shift(ref, -1 if ref.kind == "rpm" else -tokens)

    def _wait(self, now: float, ref: LimitRef, tokens: int) -> float:
        """Seconds until `ref` could admit: 0 now, infinity never."""
        if ref.kind == "concurrent":
            if self._open.get(ref.scope, 0) < ref.limit:
                return 0.0
            return CONCURRENT_RETRY_SECONDS if ref.limit > 0 else float("inf")
        weight = 1 if ref.kind == "rpm" else tokens
        if weight > ref.limit or ref.limit <= 0:
            return float("inf")
        ahead = max(self._tat.get((ref.scope, ref.kind), now) - now, 0.0)
        late = ahead + weight * WINDOW_SECONDS / ref.limit - WINDOW_SECONDS
        return late if late > _ROUNDING else 0.0

    def _state(self, now: float, ref: LimitRef) -> LimitState:
        if ref.kind == "concurrent":
            used = self._open.get(ref.scope, 0)
            return LimitState(ref.kind, ref.limit, max(ref.limit - used, 0), 0.0)
        ahead = max(self._tat.get((ref.scope, ref.kind), now) - now, 0.0)
        left = int((WINDOW_SECONDS + _ROUNDING - ahead) * ref.limit / WINDOW_SECONDS)
        return LimitState(ref.kind, ref.limit, min(max(left, 0), ref.limit), ahead)

    def _shift(self, ref: LimitRef, weight: int) -> None:
        key = ref.scope, ref.kind
        tat = self._tat.get(key)
        if tat is not None and ref.limit > 0:
            self._tat[key] = tat + weight * WINDOW_SECONDS / ref.limit

    def _release(self, scope: str) -> None:
        used = self._open.get(scope, 0)
        if used > 1:
            self._open[scope] = used - 1
        else:
            self._open.pop(scope, None)

    def _forget_idle(self, now: float) -> None:
        """Amortised: runs when the table has doubled since the last time."""
        self._tat = {key: tat for key, tat in self._tat.items() if tat > now}
        self._sweep_at = max(_SWEEP_MIN, 2 * len(self._tat))

"""A stream that holds less than its output cap, and how the hold keeps ahead of the output.

With `billing.reserve = "adaptive"` a stream without a cap of the client's begins with as much as
its model's answers usually take. Once its counted output passes three quarters of what is held, the
reservation is asked to grow, without waiting: the ledger has the last quarter's time to decide. A
refusal is met with a smaller wish, down to the least; where even that is refused and the output
has reached what is held, the stream ends there, as at its output cap.

Output is counted by looking at the relay, which costs too much to do for every piece that arrives.
But nothing that is counted is shorter on the wire than four bytes a token, save figures of the
provider's: so as long as fewer bytes have come than what is held has room for, no look is needed,
and the question is one of two integers. At least every few kilobytes there is one, for figures.
Where more bytes come than that, the relay has a limit, and looks at each event: the first without
room waits in it (`StreamRelay.full`) until the hold has grown, or is known not to.

Nothing here can make a stream cost more than is held, with one exception: tokens that are not in
the stream, such as reasoning that a provider does not show and tells of only at the end. They are
settled like any cost above its reservation.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Protocol

from adapters.codec import Expected, StreamRelay

OUTPUT_TOKENS_MIN = 64
"""The least output that is worth a reservation, and the least that one grows by."""

_BYTES_PER_TOKEN = 4  # no token is counted for less
_LOOK_BYTES_MAX = 4096
_UNLIMITED_BYTES = 2**62


class Growing(Protocol):
    """What is needed of a reservation."""

    amount: int

    @property
    def refused(self) -> bool: ...

    def ask_for(self, amount: int) -> None: ...

    async def extend(self, extra: int) -> bool: ...


class Allowance:
    """The output that one stream may still produce.

    `price` tells what to hold for so many output tokens, with all that the request may cost
    besides. `output_tokens_max` is all that it may ever produce: once that is held, nothing is
    counted any more. `expected` is the input of the request, for a stream that ends here.
    """

    __slots__ = (
        "_amount",
        "_asked",
        "_expected",
        "_held",
        "_max",
        "_price",
        "_reservation",
        "_step",
        "_unseen_bytes",
    )

    def __init__(
        self,
        reservation: Growing,
        price: Callable[[int], int],
        output_tokens_max: int,
        expected: Expected,
    ) -> None:
        self._reservation = reservation
        self._price = price
        self._max = output_tokens_max
        self._expected = expected
        self._amount = -1  # that `_held` tokens were found to be covered by
        self._held = 0
        self._unseen_bytes = 0  # that may come before the next look
        self._asked = 0  # for so many tokens, and not decided yet
        self._step = 0  # to ask for beyond what is held; 0: as much again

    def takes(self, size: int) -> bool:
        """Whether `size` more bytes fit without a look. The one question of the hot path."""
        self._unseen_bytes -= size
        return self._unseen_bytes >= 0

    async def feed(self, relay: StreamRelay, data: bytes) -> bytes:
        """Feed what was not taken, or close the relay; the client's bytes of it."""
        out = self.feed_now(relay, data) + await self.room_made(relay)
        if not (data or relay.ended):  # the last event had to wait
            out += relay.close()
        return out

    def feed_now(self, relay: StreamRelay, data: bytes) -> bytes:
        """The same without waiting for credit: the relay may be `full` after it."""
        self._look(relay, len(data))
        return relay.feed(data) if data else relay.close()

    async def room_made(self, relay: StreamRelay) -> bytes:
        """Wait until what is in a full relay has room, or is known not to get it."""
        out = b""
        while relay.full:
            if await self._grown():
                out += relay.limit(self._limit())
            else:
                relay.cut_short(self._expected)
        return out

    def _look(self, relay: StreamRelay, size: int) -> None:
        """Count, and find out how much may be fed from here on without another look."""
        held = self._covered()
        if held >= self._max:
            relay.limit(None)
            self._unseen_bytes = _UNLIMITED_BYTES
            return
        counted = relay.output_tokens
        if 4 * counted > 3 * held:
            self._ask(held)
            held = self._covered()
        room = _BYTES_PER_TOKEN * (held - counted) - relay.waiting_bytes - size
        relay.limit(self._limit() if room < 0 else None)
        self._unseen_bytes = min(room, _LOOK_BYTES_MAX)

    def _limit(self) -> int | None:
        """What the relay may let pass; None: all that comes."""
        held = self._covered()
        return held if held < self._max else None

    def _covered(self) -> int:
        """The output that is held now."""
        amount = self._reservation.amount
        if amount != self._amount:
            self._amount = amount
            self._held = bisect_right(range(self._max + 1), amount, key=self._price) - 1
        return self._held

    def _ask(self, held: int) -> None:
        """Have the hold grow, unless it is just about to."""
        if self._asked > held:
            if not self._reservation.refused or self._step == OUTPUT_TOKENS_MIN:
                return
            self._shrink(held)
        else:
            self._step = self._step * 2 if 2 * self._step < held else 0
        self._asked = self._wanted(held)
        self._reservation.ask_for(self._price(self._asked))

    async def _grown(self) -> bool:
        """Whether there is more, where the output was faster than the decision: wait for one."""
        held = self._covered()
        while held < self._max:
            extra = self._price(self._wanted(held)) - self._reservation.amount
            if await self._reservation.extend(extra):
                return True
            if self._step == OUTPUT_TOKENS_MIN:
                return False
            self._shrink(held)
        return True

    def _wanted(self, held: int) -> int:
        return min(held + (self._step or held), self._max)

    def _shrink(self, held: int) -> None:
        self._step = max((self._step or held) // 2, OUTPUT_TOKENS_MIN)

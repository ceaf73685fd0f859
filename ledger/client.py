"""What the data plane calls: reserve before anything is sent, settle or void on every way out.

A `Ledger` says messages through its links, one per shard of the node's ledger, and hears replies.
In one process the reply is there when the call returns; through a socket it takes a tenth of a
millisecond. `reserve` waits for it; ending a reservation is synchronous, so a cancellation cannot
fall into it: the message is on its way, and is said again until the ledger confirms it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec
import trio

from ledger import messages
from ledger.clocks import wall_microseconds
from ledger.errors import (
    AccountSuspended,
    InsufficientCredit,
    LedgerError,
    LedgerUnavailable,
    RateLimited,
    ReservationClosed,
)
from ledger.limits import LimitKind, LimitRef, LimitState
from ledger.messages import Message, OpenReservation, Reply, refusal_of
from ledger.money import AMOUNT_MAX, Price, cost_and_charge
from ledger.reservation import ReservationRequest, Settlement, TokenCounts, reservation_id
from ledger.store import EventStatus

__all__ = [
    "AccountSuspended",
    "InsufficientCredit",
    "Ledger",
    "LedgerError",
    "LedgerUnavailable",
    "LimitKind",
    "LimitRef",
    "LimitState",
    "RateLimited",
    "Reservation",
    "ReservationClosed",
    "ReservationRequest",
    "Settled",
    "TokenCounts",
    "bill",
]

IMPLAUSIBLE_FACTOR = 3
RETRY_AFTER_SECONDS = 1.0
FLUSH_SECONDS = 2.0
JOURNALLED_SECONDS = 5.0  # a ledger that restarts takes less
SWEEP_SECONDS = 0.05
UNCONFIRMED_MAX = 50_000  # reservations of one shard; more are not begun
_FREE = EventStatus.FREE  # looked up once: in an enum's class it takes a while to find


class Settled(msgspec.Struct, frozen=True, gc=False):
    """What a settlement charged, in nano-dollars, and its status: REVIEW where that is cut."""

    cost: int
    charge: int
    status: EventStatus


class Link(Protocol):
    """The way to one shard of the ledger; see `ledger.link`."""

    instance: int
    sweeps: bool
    """Whether it runs the listener's `sweep`; else callers look after their own time."""

    def attach(self, listener: Listener) -> None:
        """Say from now on what is heard. Called once."""

    def post(self, message: Message) -> None:
        """Say something. If the link is broken it is dropped: the listener says it again."""


class Listener(Protocol):
    """The worker's end of a link."""

    def hear(self, replies: Sequence[Reply]) -> None: ...

    async def sweep(self) -> None:
        """To be run as long as the link is, connected or not."""

    def introduce(self) -> tuple[list[OpenReservation], list[Message]]:
        """What a new link begins with: what is still open, and what was not answered yet."""


class Reservation(msgspec.Struct, eq=False):
    """Credit set aside for one request. It must end in `settle` or `void`; see `open`."""

    _shard: _Shard
    id: int
    request: ReservationRequest
    amount: int = 0
    """Nano-dollars set aside, extensions included."""
    limits: tuple[LimitState, ...] = ()
    """What was left of each limit when this was admitted."""
    balance: int | None = None
    """The account's balance after the settlement, once it is journalled and if it is known."""
    settled: Settled | None = None
    granted: bool = False
    """Whether it was reserved; it may have ended since."""
    refusal: LedgerError | None = None
    """Why it was not reserved, and never will be."""

    _closing: bool = False
    _asked: int = 0  # the amount that an extension shall lead to; 0: none is under way
    _attempts: int = 0
    _notes: tuple[Message, ...] = ()  # said, and to be said again after a broken link

    @property
    def open(self) -> bool:
        """Whether it was neither settled nor voided."""
        return self.granted and not self._closing

    @property
    def refused(self) -> bool:
        """Whether the last extension that was asked for was refused."""
        return self._asked < 0

    def attempt(
        self,
        *,
        provider_id: int,
        price_id: int,
        status: EventStatus,
        cost: int = 0,
        ttfb_ms: int = 0,
        duration_ms: int = 0,
    ) -> None:
        """A provider failed and another may be tried: an event with charge 0.

        Raises ReservationClosed.
        """
        if not self.open:
            raise self._is_closed()
        self._attempts += 1
        settlement = Settlement(
            status=status,
            provider_id=provider_id,
            price_id=price_id,
            cost=cost,
            ttfb_ms=ttfb_ms,
            duration_ms=duration_ms,
            occurred_at=self._shard.wall_clock(),
        )
        self._say(messages.Attempt(self.id, self._attempts, settlement))

    def settle(
        self,
        *,
        price: Price,
        provider_id: int,
        quantities: Mapping[str, int],
        tokens: TokenCounts,
        status: EventStatus,
        ttfb_ms: int,
        duration_ms: int,
        plausible: int = 0,
    ) -> Settled:
        """Charge what was used. It is on its way to the journal; `journalled` waits until there.

        `plausible` is what it may cost at most, where less than that is reserved.

        A second call changes nothing and returns the first one's result. Raises UnpricedUnit (the
        reservation then stays open) and, after `void`, ReservationClosed.
        """
        if self.settled is not None:
            return self.settled
        if self._closing or not self.granted:
            raise self._is_closed()
        cost, charge, status = bill(price, quantities, self.amount, status, plausible)
        settlement = Settlement(  # in the order of its fields, which is quicker
            status,
            provider_id,
            price.price_id,
            cost,
            charge,
            tokens.bounded(),
            ttfb_ms,
            duration_ms,
            self._shard.wall_clock(),
        )
        self._closing = True
        settled = self.settled = Settled(cost, charge, status)
        self._say(messages.Settle(self.id, settlement))
        return settled

    def void(
        self,
        *,
        status: EventStatus | None = None,
        provider_id: int = 0,
        price_id: int = 0,
        duration_ms: int = 0,
        cost: int = 0,
    ) -> None:
        """Charge nothing. With a `status` a provider was contacted, and an event says so.

        Does nothing if the reservation is closed.
        """
        if not self.open:
            return
        settlement = None
        if status is not None:
            settlement = Settlement(
                status=status,
                provider_id=provider_id,
                price_id=price_id,
                cost=cost,
                duration_ms=duration_ms,
                occurred_at=self._shard.wall_clock(),
            )
        self._closing = True
        self._say(messages.Void(self.id, settlement))

    async def journalled(self) -> int | None:
        """Wait until the settlement is in the journal; the account's balance then, if known.

        No checkpoint where it is there already. A ledger that is away is waited for, within
        bounds; the settlement is not lost even so, unless this process is.
        """
        shard = self._shard
        if self.id in shard.reservations:
            await shard.lounge.wait(self, JOURNALLED_SECONDS)
        return self.balance

    def ask_for(self, amount: int) -> None:
        """Ask that the whole become `amount`, without waiting: `amount` grows, or `refused` is set.

        What was asked for already, or is there, is not asked for again.
        """
        amount = min(amount, AMOUNT_MAX)
        if self.open and amount > max(self.amount, self._asked):
            self._asked = amount
            self._shard.link.post(messages.Extend(self.id, amount))

    async def extend(self, extra: int) -> bool:
        """Set `extra` more aside; False if that is refused or takes too long."""
        wanted = self.amount + extra
        self.ask_for(wanted)
        try:
            if self._asked > 0:
                await self._shard.lounge.wait(self, self._shard.extend_seconds)
        finally:
            if self._asked > 0 and self.open:  # withdraw the wish
                self._asked = 0
                self._shard.link.post(messages.Extend(self.id, self.amount))
        return self.amount >= wanted

    # -- what the shard tells

    async def permit(self, seconds: float) -> None:
        """Wait until it is granted. Raises the refusal; leaves nothing held unless it returns."""
        permitted = False
        try:
            if not self.granted and self.refusal is None:
                await self._shard.lounge.wait(self, seconds)
            permitted = self.granted
        finally:
            if not permitted and self.refusal is None:
                self._closing = True
                self._say(messages.Void(self.id, None))
        if self.refusal is not None:
            raise self.refusal
        if not permitted:
            raise LedgerUnavailable(RETRY_AFTER_SECONDS, "the ledger did not answer in time")

    def hear_extended(self, extended: messages.Extended) -> bool:
        """What is reserved by now; whether it is for that that somebody waits."""
        self.amount = max(self.amount, extended.amount)
        if extended.asked == self._asked:
            self._asked = 0 if extended.amount >= extended.asked else -1
        return self._asked <= 0 and not self._closing

    def leave(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        """Who waits for this is cancelled."""
        del self._shard.lounge.waiting[self]
        return trio.lowlevel.Abort.SUCCEEDED

    def unanswered(self) -> list[Message]:
        """Everything to be said again, in its order."""
        wanted = not (self.granted or self._closing)
        begun = [messages.Reserve(self.id, self.request)] if wanted else []
        asked = [messages.Extend(self.id, self._asked)] if self._asked > 0 else []
        return [*begun, *asked, *self._notes]

    def _say(self, message: Message) -> None:
        self._notes += (message,)
        self._shard.link.post(message)

    def _is_closed(self) -> ReservationClosed:
        return ReservationClosed(f"reservation {self.id} is closed")


class _Lounge:
    """Where callers wait for what their reservation hears, each for a time of its own.

    A cancel scope for each wait would cost more than all else that a worker does for its ledger.
    So one task, which the link runs, looks after all of them and counts time in its rounds: who has
    waited for too long is woken up to `SWEEP_SECONDS` late. A link in this process answers at once
    but for those who wait for credit; it runs no task, and those few have scopes.
    """

    def __init__(self, *, swept: bool) -> None:
        self.waiting: dict[Reservation, tuple[trio.lowlevel.Task, int]] = {}
        """Who waits, and the round until which; the shard wakes who has heard it."""
        self.wait = self._wait if swept else self._wait_alone
        """As `_wait`: until it is heard, or for some seconds."""
        self._rounds = 0
        self._occupied = trio.Event()

    async def sweep(self) -> None:
        """Wake who has waited for too long, until cancelled."""
        while True:
            if not self.waiting:
                self._occupied = trio.Event()
                await self._occupied.wait()
            await trio.sleep(SWEEP_SECONDS)
            self._rounds += 1
            late = [each for each, (_, last) in self.waiting.items() if last <= self._rounds]
            for reservation in late:
                trio.lowlevel.reschedule(self.waiting.pop(reservation)[0])

    async def _wait(self, reservation: Reservation, seconds: float) -> None:
        """Until the reservation has heard what there is to wait for, or for `seconds`."""
        waiting = self.waiting
        assert reservation not in waiting, "one caller waits for a reservation"
        if not waiting:
            self._occupied.set()
        last = self._rounds + int(seconds / SWEEP_SECONDS) + 2
        waiting[reservation] = trio.lowlevel.current_task(), last
        await trio.lowlevel.wait_task_rescheduled(reservation.leave)

    async def _wait_alone(self, reservation: Reservation, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._wait(reservation, seconds)


class _Shard:
    """One link, and the reservations that its ledger has not confirmed the end of."""

    def __init__(self, link: Link, wall_clock: Callable[[], int], extend_seconds: float) -> None:
        self.link = link
        self.wall_clock = wall_clock
        self.extend_seconds = extend_seconds
        self.reservations: dict[int, Reservation] = {}
        self._flushes: dict[int, trio.Event] = {}
        self._numbers = itertools.count(reservation_id(link.instance, 1))
        self.lounge = _Lounge(swept=link.sweeps)
        self.sweep = self.lounge.sweep
        link.attach(self)

    def reserve(self, request: ReservationRequest) -> Reservation:
        """A reservation that is on its way, or has been answered already."""
        if request.amount > AMOUNT_MAX or request.tokens > AMOUNT_MAX:
            raise ValueError(f"{request.amount} nano-dollars, {request.tokens} tokens")
        if len(self.reservations) >= UNCONFIRMED_MAX:
            raise LedgerUnavailable(RETRY_AFTER_SECONDS, "too much waits for the ledger")
        number = next(self._numbers)
        reservation = self.reservations[number] = Reservation(self, number, request)
        self.link.post(messages.Reserve(number, request))
        return reservation

    async def flush(self) -> None:
        number = next(self._numbers)
        flushed = self._flushes[number] = trio.Event()
        try:
            self.link.post(messages.Flush(number))
            with trio.move_on_after(FLUSH_SECONDS):
                await flushed.wait()
        finally:
            self._flushes.pop(number, None)
        if not flushed.is_set():
            raise LedgerUnavailable(RETRY_AFTER_SECONDS, "usage could not be posted in time")

    @property
    def unconfirmed(self) -> int:
        """As of `Ledger`."""
        return len(self.reservations)

    def hear(self, replies: Sequence[Reply]) -> None:
        known, waiting = self.reservations, self.lounge.waiting
        for reply in replies:  # `match` would take three times as long
            reservation: Reservation | None
            if type(reply) is messages.Reserved:
                reservation = known.get(reply.reservation_id)
                if reservation is None or reservation.granted:
                    continue
                reservation.granted = True
                reservation.amount, reservation.limits = reply.amount, reply.limits
            elif type(reply) is messages.Closed:
                reservation = known.pop(reply.reservation_id, None)
                if reservation is None:
                    continue
                reservation.balance = reply.balance
            else:
                reservation = self._hear_rare(reply)
                if reservation is None:
                    continue
            if place := waiting.pop(reservation, None):
                trio.lowlevel.reschedule(place[0])

    def _hear_rare(self, reply: Reply) -> Reservation | None:
        """What not every request hears; whose wait has an end by it."""
        match reply:
            case messages.Refused():
                reservation = self.reservations.pop(reply.reservation_id, None)
                if reservation is not None:
                    reservation.refusal = refusal_of(reply.facts)
                return reservation
            case messages.Extended():
                reservation = self.reservations.get(reply.reservation_id)
                if reservation is not None and reservation.hear_extended(reply):
                    return reservation
            case messages.Flushed() if reply.number in self._flushes:
                self._flushes[reply.number].set()
        return None

    def introduce(self) -> tuple[list[OpenReservation], list[Message]]:
        open_reservations: list[OpenReservation] = []
        again: list[Message] = []
        for reservation in self.reservations.values():
            request = reservation.request
            open_reservations.append(
                OpenReservation(reservation.id, request.limits, request.tokens)
            )
            again += reservation.unanswered()
        again += [messages.Flush(number) for number in self._flushes]
        return open_reservations, again


class Ledger:
    """The data plane's view of the ledger. Times are seconds.

    An account's reservations always go to the same one of `links`, so that its credit and its
    limits have one owner on a node.
    """

    def __init__(
        self,
        links: Sequence[Link],
        *,
        reserve_timeout: float = 0.5,
        extend_timeout: float = 0.25,
        wall_clock: Callable[[], int] = wall_microseconds,
    ) -> None:
        self._shards = [_Shard(link, wall_clock, extend_timeout) for link in links]
        self._reserve_timeout = reserve_timeout

    async def reserve(self, request: ReservationRequest) -> Reservation:
        """Set credit and limits aside for a request; no checkpoint if the answer is there at once.

        Raises InsufficientCredit, RateLimited, AccountSuspended or LedgerUnavailable; after any of
        them, and after cancellation, nothing is held. Raises ValueError above AMOUNT_MAX.
        """
        reservation = self._shards[request.account_id % len(self._shards)].reserve(request)
        if not reservation.granted:  # as a rule it is, where the ledger is in this process
            await reservation.permit(self._reserve_timeout)
        return reservation

    async def flush(self) -> None:
        """Have everything posted that was settled so far. Raises LedgerUnavailable."""
        for shard in self._shards:
            await shard.flush()

    @property
    def unconfirmed(self) -> int:
        """How many reservations are open, or have ended without the ledger having said so."""
        return sum(shard.unconfirmed for shard in self._shards)

    def credit_hint(self, account_id: int) -> None:
        """The account may have been credited: ask the store again at the next request."""
        self._shard(account_id).link.post(messages.CreditHint(account_id))

    def _shard(self, account_id: int) -> _Shard:
        return self._shards[account_id % len(self._shards)]


def bill(
    price: Price,
    quantities: Mapping[str, int],
    reserved: int,
    status: EventStatus,
    plausible: int = 0,
) -> tuple[int, int, EventStatus]:
    """Cost, charge and status of a settlement. Implausible usage is charged at most as reserved.

    Implausible is a negative quantity, or a charge of more than three times what the request may
    cost (`reserved`, or `plausible` where that is more): the provider is wrong, and the customer
    must not pay for it before somebody has looked. FREE costs the customer nothing.
    """
    negative = False
    try:
        cost, charge = cost_and_charge(price, quantities)
    except ValueError:
        negative = True
        counted = {unit: max(quantity, 0) for unit, quantity in quantities.items()}
        cost, charge = cost_and_charge(price, counted)
    if cost > AMOUNT_MAX or charge > AMOUNT_MAX:
        cost, charge = min(cost, AMOUNT_MAX), min(charge, AMOUNT_MAX)
    if status is _FREE:
        return cost, 0, status
    if negative or charge > IMPLAUSIBLE_FACTOR * max(reserved, plausible):
        return cost, min(charge, reserved), EventStatus.REVIEW
    return cost, charge, status

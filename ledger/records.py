"""What the journal remembers: the facts from which a holder can be rebuilt.

The engine says which record to write, the journal writes it, recovery replays it. A settlement
carries its whole event, so nothing has to be looked up to post it again.
"""

from __future__ import annotations

import msgspec

from ledger.store import UsageEvent


class Reserve(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """A reservation became pending. It is written before the permit is answered."""

    reservation_id: int
    request_id: bytes
    account_id: int
    key_id: int
    pools: tuple[int, ...]
    amount: int
    model_id: int
    provider_id: int
    price_id: int
    endpoint: int
    attempts: int = 0  # how many have left an event since


class Extend(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """A pending reservation grew by `extra` in each of its pools."""

    reservation_id: int
    extra: int


class Settle(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    """A reservation was posted: its event is part of the sequence from here on."""

    reservation_id: int
    event: UsageEvent


class Void(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=4):
    """A reservation was given back; `event` only where a provider was contacted."""

    reservation_id: int
    reason: str
    event: UsageEvent | None


class Attempt(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=5):
    """A failed attempt inside a reservation: an event with charge 0."""

    reservation_id: int
    event: UsageEvent


class Ack(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=7):
    """The store has applied every event up to `applied_seq`."""

    applied_seq: int


class Timeline(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=6):
    """The timeline of the database that a session was opened with."""

    timeline: str


class Worker(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=8):
    """A worker introduced itself: its reservations carry `instance` in their ids."""

    instance: int
    pid: int
    started: int


class WorkerGone(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=9):
    """A worker's process has ended; what it left open was voided."""

    instance: int


Record = Reserve | Extend | Settle | Void | Attempt | Ack | Timeline | Worker | WorkerGone

"""What really happened, as only the world can know it, and what the books have to say about it.

The oracle hears of every request from its client and its provider, and of every record as it is
written to a journal. It computes which settlements a power cut or a destroyed disk has taken, and
accepts the loss of exactly those; see `Oracle.verdict` for what must be true in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import trio

from ledger.journal import Journal
from ledger.memory import MemoryStore
from ledger.records import Attempt, Record, Reserve, Settle, Void
from ledger.store import EventStatus, UsageEvent
from tests.simulation.process import Process


class Violated(Exception):
    """A promise was broken."""


@dataclass
class Request:
    """One request as its client, its provider and its worker saw it."""

    id: bytes
    account: int
    pools: tuple[int, ...]
    worker: Process
    permitted: bool = False
    contacted: bool = False
    charge: int | None = None  # what `settle` said
    confirmed: bool = False  # in the journal, before the client got its last byte
    delivered: bool = False
    excused: str = ""  # why its settlement may be lost


@dataclass(frozen=True)
class _Written:
    """An event in a journal."""

    request_id: bytes
    position: int
    at: float
    settles: bool


class Oracle:
    """The world's memory."""

    def __init__(self, *, is_silent: Callable[[Process], bool]) -> None:
        """`is_silent`: whether a living worker was without a link for all of its grace."""
        self._is_silent = is_silent
        self.requests: dict[bytes, Request] = {}
        self.written: dict[bytes, dict[int, _Written]] = {}  # journal → sequence number → event
        self.reserved: dict[bytes, bytes] = {}  # request → journal that remembers it
        self.lost_events = 0

    # -- what happens

    def wrote(
        self, journal_id: bytes, position: int, now: float, records: Sequence[Record]
    ) -> None:
        """A journal has these records."""
        events = self.written.setdefault(journal_id, {})
        for record in records:
            if isinstance(record, Reserve):
                self.reserved[record.request_id] = journal_id
            elif isinstance(record, Settle | Void | Attempt) and record.event is not None:
                event = record.event
                settles = isinstance(record, Settle)
                events[event.seq] = _Written(event.request_id, position, now, settles)
                if isinstance(record, Void) and record.reason == "orphaned":
                    self._orphaned(event.request_id)

    def cut(
        self,
        journal_id: bytes,
        next_seq: int,
        *,
        open_requests: set[bytes],
        synced: int,
        unsynced_since: float,
    ) -> None:
        """A power cut has left a journal with the events before `next_seq`.

        What was durable must be there, and what was written before `unsynced_since` has to be.
        """
        events = self.written.get(journal_id, {})
        for seq in sorted(seq for seq in events if seq >= next_seq):
            lost = events.pop(seq)
            if lost.position <= synced:
                raise Violated(f"event {seq} was durable, and a power cut took it")
            if lost.at < unsynced_since:
                raise Violated(f"event {seq} of {lost.at:.3f} was not durable in time")
            self._excuse(lost.request_id, "its journal lost power")
        for request_id, journal in list(self.reserved.items()):
            if journal == journal_id and request_id not in open_requests:
                kept = any(event.request_id == request_id for event in events.values())
                if not kept:
                    del self.reserved[request_id]

    def destroyed(self, journal_id: bytes, applied_seq: int, *, unposted_since: float) -> None:
        """A disk is gone, and with it what was not posted: nothing older than that."""
        events = self.written.pop(journal_id, {})
        for seq in sorted(seq for seq in events if seq > applied_seq):
            lost = events[seq]
            if lost.at < unposted_since:
                raise Violated(f"event {seq} of {lost.at:.3f} was not posted in time")
            self._excuse(lost.request_id, "its disk was destroyed")
        for request_id, journal in list(self.reserved.items()):
            if journal == journal_id:
                del self.reserved[request_id]

    def kept(self, journals: Iterable[bytes]) -> set[bytes]:
        """The requests whose events these journals have."""
        return {
            event.request_id
            for journal_id in journals
            for event in self.written.get(journal_id, {}).values()
        }

    def failed_over(self, lost: Sequence[UsageEvent], kept_elsewhere: set[bytes]) -> None:
        """The database has lost events; what no journal has any more is lost for good."""
        for event in lost:
            if event.request_id not in kept_elsewhere:
                self._excuse(event.request_id, "no journal has it for a database that lost it")

    def _orphaned(self, request_id: bytes) -> None:
        request = self.requests[request_id]
        if not request.worker.alive:
            return
        if not self._is_silent(request.worker):
            raise Violated(f"request {request_id.hex()[-6:]} was orphaned, and its worker lives")
        request.excused = "its worker was not heard of for too long"

    def _excuse(self, request_id: bytes, why: str) -> None:
        self.lost_events += 1
        request = self.requests.get(request_id)
        if request is not None and not request.excused:
            request.excused = why

    # -- the verdict

    def verdict(self, books: MemoryStore, *, quarantined: set[bytes]) -> Iterator[str]:
        """What is wrong with the books, when all has come to rest.

        1. Nothing is charged twice, and nothing that was not settled.
        2. What was settled is charged exactly as the client was told, unless it is excused: the
           journal had not got it when its worker died, or the journal's disk lost it.
        3. Whatever reached a provider has left an event, unless its journal is lost.
        """
        events: dict[bytes, list[UsageEvent]] = {}
        for _, event in books.events:
            events.setdefault(event.request_id, []).append(event)
        settlements = {
            written.request_id
            for journal in self.written.values()
            for written in journal.values()
            if written.settles
        }
        for request in self.requests.values():
            found = events.pop(request.id, [])
            yield from self._judge(request, found, request.id in settlements, quarantined)
        for request_id, strange in events.items():
            if request_id not in quarantined:
                yield f"{len(strange)} events of an unknown request"

    def _judge(
        self, request: Request, events: list[UsageEvent], written: bool, quarantined: set[bytes]
    ) -> Iterator[str]:
        name = request.id.hex()[-6:]
        charging = [event for event in events if event.charge]
        closing = [event for event in events if event.status != EventStatus.FAILED]
        charged = sum(event.charge for event in events)
        if request.id in quarantined:
            if charged not in (0, request.charge):
                yield f"request {name} is in quarantine, and was charged {charged}"
            return
        if len(charging) > 1 or len(closing) > 1:
            ends = ", ".join(f"{EventStatus(each.status).name} {each.charge}" for each in closing)
            yield f"request {name} ended {len(closing)} times: {ends}"
        if request.charge is None:
            if charged:
                yield f"request {name} was charged {charged}, and never settled"
        elif charged != request.charge and (charged or not _may_be_lost(request, written)):
            told = "confirmed" if request.confirmed else "not confirmed"
            yield (
                f"request {name} was settled for {request.charge} ({told}, "
                f"{'written' if written else 'not written'}), and charged {charged}"
            )
        expected = request.contacted and request.id in self.reserved and not request.excused
        if expected and not events:
            yield f"request {name} reached a provider, and left no event"


def _may_be_lost(request: Request, written: bool) -> bool:
    return bool(request.excused) or not (written or request.worker.alive)


class WatchedJournal(Journal):
    """The real journal; from `watch` on, the oracle hears what is written."""

    _oracle: Oracle | None = None

    def watch(self, oracle: Oracle) -> None:
        """Tell this one."""
        self._oracle = oracle

    def append(self, records: Sequence[Record]) -> int:
        journal_id = self.journal_id
        position = super().append(records)
        if self._oracle is not None:
            self._oracle.wrote(journal_id, position, trio.current_time(), records)
        return position

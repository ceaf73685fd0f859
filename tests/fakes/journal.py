"""A journal in memory: the interface of `ledger.journal.Journal`, with a disk that tests control.

`state` is what survives the death of the process, `durable` what survives a power cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from ledger.journal import JournalFailed, JournalFull, RecoveredState
from ledger.records import Ack, Attempt, Record, Settle, Void
from ledger.store import UsageEvent


class MemoryJournal:
    """Positions count records; `full`, `failed` and `sync_seconds` make the disk misbehave."""

    def __init__(self, state: RecoveredState | None = None, journal_id: bytes = b"j" * 16) -> None:
        self.journal_id = journal_id
        self.state = (state or RecoveredState()).copy()
        self.durable = self.state.copy()
        self.records: list[Record] = []
        self.synced = 0
        self.full = False
        self.failed = False
        self.headroom_seen: bool | None = None  # to be wrong about
        self.room: int | None = None  # how many open reservations can be settled
        self.closed = False
        self.sync_seconds = 0.0
        self._born = 0  # how many records are an earlier holder's
        self._dirty = trio.Event()

    def append(self, records: Sequence[Record]) -> int:
        if self.failed:
            raise JournalFailed("the disk is gone")
        if self.full:
            raise JournalFull("the disk is full")
        for record in records:
            self.state.apply(record)
        self.records += records
        self._dirty.set()
        return len(self.records)

    async def sync(self, upto: int) -> None:
        if self.failed:
            raise JournalFailed("the disk is gone")
        if self.synced < upto:
            await trio.sleep(self.sync_seconds)
            self.make_durable(upto)
        await trio.lowlevel.checkpoint()

    def make_durable(self, upto: int | None = None) -> None:
        """Everything up to there survives a power cut."""
        upto = len(self.records) if upto is None else upto
        for record in self.records[self.synced : upto]:
            self.durable.apply(record)
        self.synced = max(self.synced, upto)

    def acknowledge(self, applied_seq: int) -> None:
        if applied_seq > self.state.acked_seq:
            self.append([Ack(applied_seq)])

    def headroom(self, open_reservations: int) -> bool:
        if self.headroom_seen is not None:
            return self.headroom_seen
        if self.room is not None:
            return open_reservations < self.room
        return not self.full and not self.failed

    async def events_after(self, applied_seq: int) -> list[UsageEvent]:
        records = self.records[self._born :]
        written = [each.event for each in records if isinstance(each, Settle | Attempt | Void)]
        return [event for event in written if event is not None and event.seq > applied_seq]

    def begin_anew(self) -> None:
        self.make_durable()
        self._born = len(self.records)
        self.journal_id = (int.from_bytes(self.journal_id) + 1).to_bytes(16)
        self.state, self.durable = RecoveredState(), RecoveredState()

    async def run(self) -> None:
        await trio.sleep_forever()

    def close(self) -> None:
        self.closed = True

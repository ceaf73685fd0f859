"""What happened is written down before anybody is told of it.

The engine leaves records; the scribe takes them to the journal, in their order, one write for all
that was done together. Where the journal has no room nothing new is admitted, but settlements
proceed: room for them was kept (`has_room`). Where the journal is lost, this ledger ends as by a
kill: what was not journalled has not happened, is not told to anybody, and workers will say it
again to who comes after us.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from ledger.engine import Engine
from ledger.journal import JournalFailed, JournalFull
from ledger.records import Record
from ledger.store import UsageEvent

log = logging.getLogger(__name__)


class JournalPort(Protocol):
    """What the server needs of `journal.Journal`."""

    journal_id: bytes
    synced: int

    def append(self, records: Sequence[Record]) -> int: ...

    async def sync(self, upto: int) -> None: ...

    def acknowledge(self, applied_seq: int) -> None: ...

    def headroom(self, open_reservations: int) -> bool: ...

    async def events_after(self, applied_seq: int) -> list[UsageEvent]: ...

    def begin_anew(self) -> None: ...

    async def run(self) -> None: ...

    def close(self) -> None: ...


class Scribe:
    """The only one who writes into the journal."""

    def __init__(self, engine: Engine, journal: JournalPort, *, lost: Callable[[], None]) -> None:
        """`lost` is called once, when the journal cannot be kept any more; see `failure`."""
        self.failure: JournalFailed | None = None
        self.ended = False
        """Whether nothing can be written, and so nothing be told, any more."""
        self._engine = engine
        self._journal = journal
        self._lost = lost
        self._position = 0

    @property
    def journal_id(self) -> bytes:
        """Which journal this is: another one after `begin_anew`."""
        return self._journal.journal_id

    async def run(self) -> None:
        """Let the journal make durable what is written, until cancelled."""
        try:
            await self._journal.run()
        except JournalFailed as error:
            self.lose(error)

    def close(self) -> None:
        """Flush what is possible and give the journal back; what happens later has not happened."""
        self.ended = True
        self._journal.close()

    def has_room(self, more: int = 1) -> bool:
        """Whether the journal can take so many more, and the end of all that are open or wait."""
        engine = self._engine
        held = len(engine.book.open) + len(engine.room.reservations)
        return self._journal.headroom(held + more - 1)

    def write(self, records: Sequence[Record]) -> None:
        """Raises JournalFull or JournalFailed; nothing of it is written then."""
        if records:
            self._position = self._journal.append(records)

    def settle(self, records: Sequence[Record] | None = None) -> bool:
        """Write what always has room: these records, or what the engine has left; if it is done."""
        if self.ended:
            return False
        try:
            self.write(self._engine.take_records() if records is None else records)
        except (JournalFull, JournalFailed) as error:  # if not even that has room, this ends
            self.lose(error)
            return False
        return True

    async def make_durable(self) -> None:
        """Everything written up to here is on disk, or this ledger ends."""
        try:
            await self._journal.sync(self._position)
        except JournalFailed as error:
            self.lose(error)
        await trio.lowlevel.checkpoint_if_cancelled()

    def acknowledge(self) -> None:
        """Let the journal forget what is posted; a later call makes up for a failed one."""
        if self.ended:
            return
        try:
            self._journal.acknowledge(self._engine.book.outbox.applied_seq)
        except JournalFull:
            pass  # the room that is left belongs to settlements
        except JournalFailed as error:
            self.lose(error)

    async def lost_by(self, applied_seq: int) -> list[UsageEvent]:
        """What a store that knows events up to `applied_seq` had acknowledged beyond that."""
        acknowledged = self._engine.book.outbox.applied_seq
        if applied_seq >= acknowledged:
            return []
        found = await self._journal.events_after(applied_seq)
        return [event for event in found if event.seq <= acknowledged]

    def begin_anew(self) -> bool:
        """Become the journal of another holder; False if that cannot be written."""
        try:
            self._journal.begin_anew()
        except (JournalFull, JournalFailed) as error:
            self.lose(error)
            return False
        return True

    def lose(self, error: JournalFull | JournalFailed) -> None:
        """End as by a kill: what was not journalled has not happened."""
        if self.ended:
            return
        self.ended = True
        log.critical("the journal cannot be kept: %s", error)
        self.failure = error if isinstance(error, JournalFailed) else JournalFailed(str(error))
        self._lost()

"""The journal: an append-only log from which a lease holder can be rebuilt after any crash.

Problem: a permit is answered within microseconds, yet neither the death of this process nor a
power cut may lose a charge that the store was told about, or forget a reservation whose request
reached a provider. Approach: records are *written* (page cache) before the permit is answered,
which survives `kill -9`; a thread makes them *durable* in groups, and nothing is posted to the
store before it is durable (`sync`). Prior art: the write-ahead logs of databases.

What is on disk, and how it is read back, is told in `ledger.segments`. Rules of writing
1. One writer per directory, one system call per `append`, records never change.
2. A finished segment is kept until the store has acknowledged its events, and a while longer. One
   that cannot be removed then only takes room: it is told once and tried again now and then.
3. After a failed fsync the kernel may have dropped the pages, so a second try could succeed
   without them. The file is abandoned and the state goes from memory into a new segment. So it
   is where a write broke off; with no room for another segment the journal has failed.
4. A reservation is admitted only while everything needed to settle it fits (`headroom`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import trio

from ledger.records import Ack, Record
from ledger.segments import (
    SUFFIX,
    DiskFiles,
    Files,
    Header,
    JournalCorrupt,
    JournalError,
    JournalFailed,
    JournalFull,
    JournalLocked,
    JournalReport,
    RecoveredState,
    Synced,
    encode_header,
    encode_records,
    events_in,
    newest_segment,
    read_header,
    segment_number,
    truncate_corrupt,
    verify,
)
from ledger.store import UsageEvent

__all__ = [
    "Journal",
    "JournalCorrupt",
    "JournalError",
    "JournalFailed",
    "JournalFull",
    "JournalLocked",
    "JournalReport",
    "JournalStatistics",
    "RecoveredState",
    "truncate_corrupt",
    "verify",
]

log = logging.getLogger(__name__)

T = TypeVar("T")

SEGMENT_BYTES = 64 << 20
RETENTION_SECONDS = 3600.0
RETENTION_BYTES = 2 << 30
GROUP_BYTES = 256 << 10  # so much unsynced data does not wait for the interval
SETTLEMENT_BYTES = 512  # what one reservation may still write: its settlement and some attempts
SPARE_RETRY_SECONDS = 1.0
REMOVAL_RETRY_SECONDS = 60.0


@dataclass(slots=True)
class _Segment:
    """A segment that this process may write to."""

    path: Path
    number: int
    file: int
    size: int
    start: int = 0
    offset: int = 0  # where the next frame goes

    @property
    def free(self) -> int:
        return self.size - self.offset


@dataclass(slots=True)
class _Retired:
    """A finished segment, kept for re-sending until its retention is over."""

    path: Path
    size: int
    last_seq: int
    acked_at: float = math.inf  # on trio's clock, when the store had all its events


@dataclass(frozen=True, slots=True)
class JournalStatistics:
    """A snapshot for metrics and tests; positions and sizes are bytes, times are seconds."""

    segment: int
    position: int
    synced: int
    segment_free: int
    spare_bytes: int
    retained_segments: int
    open_reservations: int
    unacknowledged_events: int
    syncs: int
    sync_seconds: float
    rescues: int
    failed: bool


class Blocking(Protocol):
    """How what may wait for the disk is called. Tests, whose disk is memory, call it as it is."""

    async def __call__(self, work: Callable[[], T]) -> T: ...


class OwnThread:
    """One thread, so that syncs never wait for others' work."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(1)

    async def __call__(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


class Journal:
    """The one writer of a journal directory. Made by `recover`; `run` must be running for `sync`.

    All methods belong to one trio thread. `append` never waits for the disk's platter.
    """

    def __init__(
        self,
        directory: Path,
        files: Files,
        lock: int,
        state: RecoveredState,
        *,
        journal_id: bytes,
        boot_id: str,
        segment_bytes: int,
        fsync_interval: float,
        retention_seconds: float,
        retention_bytes: int,
        last_number: int,
        position: int,
        history: Sequence[_Retired],
        blocking: Blocking,
    ) -> None:
        self.journal_id = journal_id
        self.synced = position
        self._directory = directory
        self._files = files
        self._lock = lock
        self._state = state
        self._boot_id = boot_id
        self._segment_bytes = segment_bytes
        self._fsync_interval = fsync_interval
        self._retention_seconds = retention_seconds
        self._retention_bytes = retention_bytes
        self._number = last_number  # of the newest segment file, spare included
        self._noted = 0  # the durable position that the log itself knows of
        self._retired = deque(history)
        self._readers = 0
        self._unremoved: dict[Path, float] = {}  # files of no use, and when to try them again
        self._spare: _Segment | None = None
        self._failure: JournalFailed | None = None
        self._rescuing = False
        self._syncs = 0
        self._sync_seconds = 0.0
        self._rescues = 0
        self._blocking = blocking
        self._clean = True  # since the last group of records; `_dirty` is set where not
        self._dirty = trio.Event()
        self._group_full = trio.Event()
        self._progress = trio.Event()
        self._segment = self._begin(position)
        self._unsynced = [self._segment]  # oldest first; the current one is always the last

    @classmethod
    def recover(
        cls,
        directory: Path,
        *,
        boot_id: str,
        segment_bytes: int = SEGMENT_BYTES,
        fsync_interval: float = 0.010,
        retention_seconds: float = RETENTION_SECONDS,
        retention_bytes: int = RETENTION_BYTES,
        files: Files | None = None,
        blocking: Blocking | None = None,
    ) -> tuple[Journal, RecoveredState]:
        """Take the directory, read what it remembers, and begin a durable segment of its own.

        An empty directory becomes a new journal. `boot_id` names this run of the machine. Blocks
        for one read of a segment and a few syncs. Raises `JournalLocked`, `JournalCorrupt`,
        `JournalFull`.
        """
        files = files or DiskFiles()
        lock = files.lock(directory)
        try:
            newest = newest_segment(directory, files, boot_id)
            paths = files.segments(directory)
            state = RecoveredState() if newest is None else newest.state
            born = [path for path in paths if newest is not None and path <= newest.path]
            journal = cls(
                directory,
                files,
                lock,
                state,
                journal_id=newest.header.journal_id
                if newest is not None and newest.header is not None
                else uuid.uuid4().bytes,
                boot_id=boot_id,
                segment_bytes=segment_bytes,
                fsync_interval=fsync_interval,
                retention_seconds=retention_seconds,
                retention_bytes=retention_bytes,
                last_number=segment_number(paths[-1]) if paths else 0,
                position=0 if newest is None else newest.end_position,
                blocking=blocking or OwnThread(),
                history=[_Retired(path, segment_bytes, state.next_seq - 1) for path in born],
            )
            journal.flush()
            for path in paths[len(born) :]:  # spares, and segments torn at birth
                try:
                    files.remove(path)
                except OSError as error:
                    journal._keep(path, error, again_at=0.0)
        except BaseException:
            files.close(lock)
            raise
        return journal, state.copy()

    def append(self, records: Sequence[Record]) -> int:
        """Write the records with one system call; they now survive the death of this process.

        Returns the position after them, to be given to `sync`. Raises `JournalFull` (nothing was
        written) or `JournalFailed`.
        """
        if self._failure is not None:
            raise self._failure
        segment, synced = self._segment, self.synced
        noted = (Synced(synced), *records) if self._noted < synced else records
        frames = encode_records(noted, segment.number)
        end = segment.offset + len(frames)
        if end > segment.size:
            segment = self._go_on(records)
        else:
            try:
                self._files.write(segment.file, frames, segment.offset)
                segment.offset = end
                self._noted = synced
            except OSError:  # a bad place on this disk: what was written of it is a torn tail
                self._rescues += 1
                segment = self._leave(records)
        for record in records:
            self._state.apply(record)
        position = segment.start + segment.offset
        if self._clean:
            self._clean = False
            self._dirty.set()
        if position - synced >= GROUP_BYTES:
            self._group_full.set()
        return position

    async def sync(self, upto: int) -> None:
        """Wait until everything before `upto` is durable; all waiters share the next group sync.

        Raises `JournalFailed`. Cancelling the wait changes nothing.
        """
        while self.synced < upto:
            self._check()
            await self._progress.wait()
        await trio.lowlevel.checkpoint()

    def acknowledge(self, applied_seq: int) -> None:
        """The store has applied every event up to `applied_seq`."""
        if applied_seq <= self._state.acked_seq:
            return
        if self._spare or self._segment.free > SETTLEMENT_BYTES * (len(self._state.open) + 1):
            self.append((Ack(applied_seq),))
        else:  # a full disk: the room left belongs to settlements, and the store knows it anyway
            self._state.acknowledge(applied_seq)

    def headroom(self, open_reservations: int) -> bool:
        """Whether one more reservation can be admitted so that all of them can still be settled."""
        if self._failure or self._rescuing:
            return False
        needed = (open_reservations + 1) * SETTLEMENT_BYTES
        segment = self._segment
        return segment.size - segment.offset >= needed or self._spare_room() >= needed

    async def events_after(self, applied_seq: int) -> list[UsageEvent]:
        """Events above `applied_seq`, also acknowledged ones, for a store that lost them.

        Reads segments from disk, newest first, as far back as needed and still retained.
        """
        paths = [*(retired.path for retired in self._retired), self._segment.path]
        paths.reverse()
        self._readers += 1  # what was found here is not removed meanwhile
        try:
            return await self._blocking(partial(self._read_back, paths, applied_seq))
        finally:
            self._readers -= 1

    def _read_back(self, paths: Sequence[Path], applied_seq: int) -> list[UsageEvent]:
        found: dict[int, UsageEvent] = {}
        for path in paths:
            data = self._files.read(path)
            found.update((e.seq, e) for e in events_in(path, data) if e.seq > applied_seq)
            header, _ = read_header(data, segment_number(path))
            if header is not None and header.acked_seq <= applied_seq:
                break
        return [found[seq] for seq in sorted(found)]

    def begin_anew(self) -> None:
        """Become the journal of another holder, empty, in a segment of its own.

        For a holder whose leases were given away, once the store has all its events. Raises
        `JournalFull`, and `JournalFailed`.
        """
        self._check()
        self._state = RecoveredState()
        self.journal_id = uuid.uuid4().bytes
        self._roll()
        for retired in self._retired:  # the store will never ask for these again
            retired.last_seq = 0

    async def run(self) -> None:
        """Sync in groups, keep a spare segment, drop old ones; until cancelled.

        Raises `JournalFailed` when durability is lost for good.
        """
        while True:
            with trio.move_on_after(await self._keep_house()):
                await self._dirty.wait()
            if self._dirty.is_set():
                with trio.move_on_after(self._fsync_interval):
                    await self._group_full.wait()
                await self._commit()

    def flush(self) -> None:
        """Make everything durable now, blocking: for start and shutdown. Raises `JournalFailed`."""
        self._check()
        position = self._segment.start + self._segment.offset
        try:
            self._sync_seconds += self._sync_files(self._unsynced)
        except OSError as error:
            raise self._fail(error) from error
        self._advance(position, self._unsynced[:-1])

    def close(self) -> None:
        """Flush what is possible and give the directory back. Raises `JournalFailed`.

        Whoever appends from now on gets that, too: the numbers of closed files may be others' soon.
        """
        try:
            if self._failure is None:
                self.flush()
        finally:
            self._failure = self._failure or JournalFailed("the journal is closed")
            if self._spare is not None:
                self._files.close(self._spare.file)
                with contextlib.suppress(OSError):  # the next start removes it
                    self._files.remove(self._spare.path)
            for segment in self._unsynced:
                self._files.close(segment.file)
            self._unsynced = []
            self._files.close(self._lock)

    def statistics(self) -> JournalStatistics:
        """A frozen snapshot."""
        return JournalStatistics(
            segment=self._segment.number,
            position=self._segment.start + self._segment.offset,
            synced=self.synced,
            segment_free=self._segment.free,
            spare_bytes=self._spare.size if self._spare else 0,
            retained_segments=len(self._retired),
            open_reservations=len(self._state.open),
            unacknowledged_events=len(self._state.events),
            syncs=self._syncs,
            sync_seconds=self._sync_seconds,
            rescues=self._rescues,
            failed=self._failure is not None,
        )

    # frames into the current segment, or the next one

    def _leave(self, records: Sequence[Record]) -> _Segment:
        """`_go_on` where these records broke off, which nothing may follow in the same segment.

        Good frames of theirs may lie there already. Shorter records, written over the first of
        them, would leave the others behind a bad one: damage, from which no start recovers.
        """
        try:
            return self._go_on(records)
        except JournalFull as error:
            raise self._fail(error) from error

    def _go_on(self, records: Sequence[Record]) -> _Segment:
        """Write into the next segment, which becomes the current one."""
        self._roll()
        segment = self._segment
        frames = encode_records(records, segment.number)  # another segment, another seed
        if len(frames) > segment.free:
            raise JournalFull(f"{len(frames)} bytes of records do not fit into a segment")
        try:
            self._files.write(segment.file, frames, segment.offset)
        except OSError as error:
            raise self._fail(error) from error
        segment.offset += len(frames)
        return segment

    def _roll(self) -> None:
        """Go on in the next segment. Raises `JournalFull` and leaves everything as it is."""
        finished = self._segment
        self._segment = self._begin(finished.start + finished.offset)
        self._unsynced.append(self._segment)
        self._retired.append(_Retired(finished.path, finished.size, self._state.next_seq - 1))

    def _begin(self, position: int) -> _Segment:
        """A segment whose header holds the state; written, not yet synced."""
        segment = self._spare or self._allocate(self._next_number(), self._wanted_bytes())
        header = self._header(segment.number, position)
        if len(header) > segment.size:
            raise JournalFull(f"the state of {len(header)} bytes does not fit into a segment")
        self._spare = None
        try:
            self._files.write(segment.file, header, 0)
        except OSError as error:
            raise self._fail(error) from error
        segment.start, segment.offset = position, len(header)
        return segment

    def _header(self, number: int, position: int) -> bytes:
        state = self._state
        header = Header(
            self.journal_id,
            number,
            self._boot_id,
            position,
            state.acked_seq,
            state.next_seq,
            list(state.open.values()),
            state.events,
            list(state.workers.values()),
            state.timeline,
        )
        return encode_header(header)

    def _allocate(self, number: int, size: int) -> _Segment:
        path = self._directory / f"{number:012}{SUFFIX}"
        try:
            return _Segment(path, number, self._files.create(path, size), size)
        except OSError as error:
            raise JournalFull(f"no room for a segment of {size} bytes: {error}") from error

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _wanted_bytes(self) -> int:
        return self._segment_bytes + self._state_bytes()

    def _state_bytes(self) -> int:
        """An upper estimate of a header with the present state."""
        state = self._state
        return (len(state.open) + len(state.events) + len(state.workers) + 2) * SETTLEMENT_BYTES

    def _spare_room(self) -> int:
        return self._spare.size - self._state_bytes() if self._spare else 0

    # durability

    async def _commit(self) -> None:
        self._clean, self._dirty, self._group_full = True, trio.Event(), trio.Event()
        position = self._segment.start + self._segment.offset
        segments = list(self._unsynced)
        try:
            elapsed = await self._blocking(partial(self._sync_files, segments))
        except OSError:
            await self._rescue(segments)
        else:
            self._sync_seconds += elapsed
            self._advance(position, segments[:-1])

    async def _rescue(self, segments: Sequence[_Segment]) -> None:
        """Rule 3: the header of a new segment holds all that the abandoned files may have lost."""
        self._rescues += 1
        self._rescuing = True
        try:
            if self._segment is segments[-1]:
                self._roll()
            position = self._segment.start + self._segment.offset
            await self._blocking(partial(self._files.sync, self._segment.file))
        except (OSError, JournalError) as error:
            raise self._fail(error) from error
        finally:
            self._rescuing = False
        self._advance(position, segments)

    def _sync_files(self, segments: Sequence[_Segment]) -> float:
        begin = time.perf_counter()
        for segment in segments:
            self._files.sync(segment.file)
        return time.perf_counter() - begin

    def _advance(self, position: int, finished: Sequence[_Segment]) -> None:
        """Everything before `position` is durable; `finished` segments need no further sync."""
        for segment in finished:
            self._files.close(segment.file)
        self._unsynced = [segment for segment in self._unsynced if segment not in finished]
        self.synced = max(self.synced, position)
        self._syncs += 1
        self._wake()

    def _fail(self, error: Exception) -> JournalFailed:
        self._failure = JournalFailed(f"the journal in {self._directory} is lost: {error}")
        self._wake()
        return self._failure

    def _wake(self) -> None:
        self._progress.set()
        self._progress = trio.Event()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    # segments to come and segments gone by

    async def _keep_house(self) -> float:
        """A part of it, as what is written in the meantime waits; the rest in so many seconds."""
        if self._spare_room() < self._segment_bytes // 2:
            await self._prepare_spare()
        now = trio.current_time()
        if await self._drop_oldest(now):
            return 0.0
        pauses = [again_at - now for again_at in self._unremoved.values()]
        return min([math.inf if self._spare else SPARE_RETRY_SECONDS, *pauses])

    async def _prepare_spare(self) -> None:
        """Allocate the next segment ahead of time; a full disk shows in `headroom`."""
        number, size = self._next_number(), self._wanted_bytes()
        try:
            fresh = await self._blocking(partial(self._allocate, number, size))
        except JournalFull:
            return
        useless: _Segment | None = fresh
        if number > self._segment.number:  # else the log went on without it, to a higher number
            useless, self._spare = self._spare, fresh
        if useless is not None:
            self._files.close(useless.file)
            await self._remove(useless.path)

    async def _drop_oldest(self, now: float) -> bool:
        """Whether there was a file to remove: the oldest finished segment, or one that stayed."""
        for retired in self._retired:
            if retired.last_seq > self._state.acked_seq:
                break
            retired.acked_at = min(retired.acked_at, now)
        if self._retired and self._expired(self._retired[0], now):
            await self._remove(self._retired.popleft().path)
            return True
        for path, again_at in self._unremoved.items():
            if again_at <= now:
                await self._remove(path)
                return True
        return False

    async def _remove(self, path: Path) -> None:
        """A file that nothing needs; where the disk refuses, `_drop_oldest` tries it again."""
        try:
            await self._blocking(partial(self._files.remove, path))
        except OSError as error:
            self._keep(path, error, trio.current_time() + REMOVAL_RETRY_SECONDS)
        else:
            self._unremoved.pop(path, None)

    def _keep(self, path: Path, error: OSError, again_at: float) -> None:
        if path not in self._unremoved:
            log.warning("cannot remove %s, which only takes room now: %s", path, error.strerror)
        self._unremoved[path] = again_at

    def _expired(self, oldest: _Retired, now: float) -> bool:
        if self._readers or oldest.acked_at > now:
            return False
        if any(each.path == oldest.path for each in self._unsynced):
            return False  # until its successor is durable, it is the log
        retained = sum(retired.size for retired in self._retired)
        return now - oldest.acked_at >= self._retention_seconds or retained > self._retention_bytes

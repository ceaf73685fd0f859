"""What a journal looks like on disk, how it is read, judged, and cut.

A journal is a directory of segments `000000000001.journal`, …, preallocated, never overwritten.
- Segment: 8 bytes of magic, one frame with the `Header`, then frames with records.
- Frame: `u32 length | u32 crc32 of the payload, seeded with the segment number | payload`, padded
  with zeros to 8 bytes. The seed keeps a frame of another segment from ever looking valid.
- A header carries the whole state at its birth (open reservations, unacknowledged events). So the
  newest segment with a sound header is all that recovery reads; older ones are history, kept for
  a store that lost acknowledged batches in a failover.
- A position is a byte offset in the log as a whole: a segment starts where its predecessor ended.

Rules of reading
1. The first bad frame ends the log: a torn tail, which was never promised to anyone.
2. A good frame *behind* a bad one is corruption: refuse to start, cut only when told to.
   One exception: a power cut may keep later pages of an unsynced tail and lose earlier ones. So
   the log notes what is durable (`Synced`); if the machine was restarted since, and no note behind
   the damage says that the damaged place was durable, it is a torn tail too.

`ledger.journal` writes all this.
"""

from __future__ import annotations

import bisect
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from ledger.records import (
    Ack,
    Attempt,
    Extend,
    Record,
    Reserve,
    Settle,
    Timeline,
    Void,
    Worker,
    WorkerGone,
)
from ledger.store import UsageEvent

RECORD_BYTES_MAX = 1 << 20  # bounds the search for good frames behind a bad one
SUFFIX = ".journal"

_MAGIC = b"FAREBOX2"
_OTHER_MAGICS = (b"FAREBOX1",)
_FRAME = struct.Struct("<II")
_ZEROS = bytes(1 << 16)
_PADDING = tuple(bytes(-length & 7) for length in range(8))  # by length modulo 8


# -- what can go wrong --------------------------------------------------------------------------


class JournalError(Exception):
    """The journal cannot do what was asked."""


class JournalFull(JournalError):
    """There is no room for the records and no next segment; nothing was written."""


class JournalFailed(JournalError):
    """Durability is gone: the disk refused to write or sync twice. Final for this process."""


class JournalLocked(JournalError):
    """Another process holds this journal."""

    def __init__(self, directory: Path) -> None:
        super().__init__(f"another process holds the journal {directory}: stop it first")
        self.directory = directory


class JournalCorrupt(JournalError):
    """A frame is bad although good ones follow; `segment` and `offset` say where.

    `frames_behind` good frames follow it, with the events `sequences` (first, last) among them.
    """

    def __init__(
        self, segment: Path, offset: int, frames_behind: int, sequences: tuple[int, int] | None
    ) -> None:
        events = f", with events {sequences[0]} to {sequences[1]}" if sequences else ""
        super().__init__(
            f"{segment} is damaged at byte {offset}, and {frames_behind} good records follow"
            f"{events}; `farebox ledger journal verify` shows and can cut it"
        )
        self.segment = segment
        self.offset = offset
        self.frames_behind = frames_behind
        self.sequences = sequences


# -- the disk, as far as the journal needs it ---------------------------------------------------


class Files(Protocol):
    """File operations; the ones that fail raise `OSError`. Tests put broken disks here."""

    def lock(self, directory: Path) -> int:
        """Take the directory for this process; raises `JournalLocked`. `close` gives it back."""

    def segments(self, directory: Path) -> list[Path]:
        """The segments in order of their numbers."""

    def read(self, path: Path) -> bytes: ...

    def create(self, path: Path, size: int) -> int:
        """A new file of zeros with `size` bytes reserved; file and name survive a power cut."""

    def write(self, file: int, data: bytes | bytearray, offset: int) -> None: ...

    def sync(self, file: int) -> None: ...

    def close(self, file: int) -> None: ...

    def remove(self, path: Path) -> None: ...


class DiskFiles:
    """`Files` on a real file system."""

    def lock(self, directory: Path) -> int:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise JournalError(
                f"cannot keep the journal in {directory}: {error.strerror}; "
                "give permission there, or set [database] data_dir to another folder"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise JournalLocked(directory) from None
        return descriptor

    def segments(self, directory: Path) -> list[Path]:
        return sorted(directory.glob(f"*{SUFFIX}"))

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def create(self, path: Path, size: int) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            os.fsync(descriptor)
            self._sync_directory(path.parent)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        return descriptor

    def write(self, file: int, data: bytes | bytearray, offset: int) -> None:
        written = os.pwrite(file, data, offset)
        while written < len(data):  # rare: a huge write, or a signal in the middle of one
            written += os.pwrite(file, memoryview(data)[written:], offset + written)

    def sync(self, file: int) -> None:
        os.fdatasync(file)

    def close(self, file: int) -> None:
        os.close(file)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    @staticmethod
    def _sync_directory(directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# -- what the log says --------------------------------------------------------------------------


class Synced(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=0):
    """The journal's own note: everything before `position` is durable."""

    position: int


class Header(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The first frame of a segment: who writes it, and the state when it was begun."""

    journal_id: bytes
    segment: int
    boot_id: str
    start: int  # the position of the segment's first byte
    acked_seq: int
    next_seq: int
    open: list[Reserve]
    events: list[UsageEvent]
    workers: list[Worker]
    timeline: str


@dataclass(slots=True)
class RecoveredState:
    """What a holder knows about itself: the sum of all records.

    The amount in `open` includes extensions; `events` are the unacknowledged ones in order;
    `workers` are those that were connected last, by instance.
    """

    acked_seq: int = 0
    next_seq: int = 1
    open: dict[int, Reserve] = field(default_factory=dict)
    events: list[UsageEvent] = field(default_factory=list)
    workers: dict[int, Worker] = field(default_factory=dict)
    timeline: str = ""

    def apply(self, record: Record | Synced) -> None:
        """Take one more record into account."""
        if type(record) is Reserve:  # the two of every request: `match` takes three times as long
            self.open[record.reservation_id] = record
            return
        if type(record) is Settle:
            self.open.pop(record.reservation_id, None)
            event = record.event
            self.events.append(event)
            self.next_seq = event.seq + 1
            return
        match record:
            case Void():
                self.open.pop(record.reservation_id, None)
                if record.event is not None:
                    self._add(record.event)
            case Attempt():
                self._add(record.event)
                self._change(record.reservation_id, 0, 1)
            case Extend():
                self._change(record.reservation_id, record.extra, 0)
            case Worker():
                self.workers[record.instance] = record
            case WorkerGone():
                self.workers.pop(record.instance, None)
            case Ack():
                self.acknowledge(record.applied_seq)
            case Timeline():
                self.timeline = record.timeline
            case Synced():  # evidence, not state
                pass

    def acknowledge(self, applied_seq: int) -> None:
        """The store has every event up to `applied_seq`; never goes back."""
        if applied_seq <= self.acked_seq:
            return
        self.acked_seq = applied_seq
        self.next_seq = max(self.next_seq, applied_seq + 1)
        del self.events[: bisect.bisect_right(self.events, applied_seq, key=_sequence)]

    def copy(self) -> RecoveredState:
        """A state that can be changed independently; records and events are immutable."""
        return RecoveredState(
            self.acked_seq,
            self.next_seq,
            dict(self.open),
            list(self.events),
            dict(self.workers),
            self.timeline,
        )

    def _change(self, reservation_id: int, extra: int, attempts: int) -> None:
        """An open reservation grew, or has left an event; of another there is nothing to know."""
        reserve = self.open.get(reservation_id)
        if reserve is not None:
            self.open[reservation_id] = msgspec.structs.replace(
                reserve, amount=reserve.amount + extra, attempts=reserve.attempts + attempts
            )

    def _add(self, event: UsageEvent) -> None:
        self.events.append(event)
        self.next_seq = event.seq + 1


def _sequence(event: UsageEvent) -> int:
    return event.seq


_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(Header)
_record_decoder: msgspec.msgpack.Decoder[Record | Synced] = msgspec.msgpack.Decoder(Record | Synced)


def _event(record: Record | Synced) -> UsageEvent | None:
    return record.event if isinstance(record, Settle | Void | Attempt) else None


# -- writing frames -----------------------------------------------------------------------------


def encode_header(header: Header) -> bytes:
    """The first bytes of a segment."""
    payload = _encoder.encode(header)
    frame = _FRAME.pack(len(payload), zlib.crc32(payload, header.segment))
    return _MAGIC + frame + payload + _PADDING[len(payload) & 7]


def encode_records(records: Sequence[Record | Synced], seed: int) -> bytes:
    """One frame per record, for the segment number `seed`."""
    frames: list[bytes] = []
    for payload in map(_encoder.encode, records):
        length = len(payload)
        frames += _FRAME.pack(length, zlib.crc32(payload, seed)), payload, _PADDING[length & 7]
    return b"".join(frames)


# -- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scan:
    """One segment as found: the sum of its good frames up to `end`, and what lies behind.

    Without a sound header there are no records: the segment is unused, torn at birth or damaged.
    """

    path: Path
    header: Header | None
    state: RecoveredState
    records: int
    end: int
    dirty: bool  # something other than zeros follows `end`
    behind: list[Record | Synced]  # good frames after a bad one

    @property
    def end_position(self) -> int:
        return self.end + (self.header.start if self.header else 0)

    def corruption(self) -> JournalCorrupt:
        sequences = [event.seq for event in map(_event, self.behind) if event is not None]
        span = (min(sequences), max(sequences)) if sequences else None
        return JournalCorrupt(self.path, self.end, len(self.behind), span)


def segment_number(path: Path) -> int:
    return int(path.name.removesuffix(SUFFIX))


def scan_segment(path: Path, data: bytes) -> Scan:
    seed, count = segment_number(path), 0
    try:
        header, end = read_header(data, seed)
        state = RecoveredState() if header is None else _state_of(header)
        for record, record_end in _records(data, end, seed) if header else ():
            state.apply(record)
            count, end = count + 1, record_end
    except msgspec.DecodeError as error:  # the checksum holds, so this is no damage
        raise JournalError(f"{path} was written by another version: {error}") from error
    used = _used(data, end)
    behind = list(_frames_behind(data, end, used, seed))
    return Scan(path, header, state, count, end, used > end, behind)


def _used(data: bytes, end: int) -> int:
    """Where the zeros begin that fill the segment, not before `end`."""
    used = len(data)
    while used - len(_ZEROS) >= end and data[used - len(_ZEROS) : used] == _ZEROS:
        used -= len(_ZEROS)  # a block at a time: nearly all of a segment may be unwritten
    return end + len(data[end:used].rstrip(b"\0"))


def read_header(data: bytes, seed: int) -> tuple[Header | None, int]:
    """The header and where the first record begins; (None, 0) if there is no sound one."""
    if not data.startswith(_MAGIC):
        if data.startswith(_OTHER_MAGICS):
            raise msgspec.DecodeError(f"format {data[: len(_MAGIC)]!r}")
        return None, 0
    payload, end = _frame(data, len(_MAGIC), seed, len(data))
    return (None, 0) if payload is None else (_header_decoder.decode(payload), end)


def _records(data: bytes, offset: int, seed: int) -> Iterator[tuple[Record | Synced, int]]:
    """The log from `offset` to the first bad frame: each record, and where it ends."""
    payload, offset = _frame(data, offset, seed, RECORD_BYTES_MAX)
    while payload is not None:
        yield _record_decoder.decode(payload), offset
        payload, offset = _frame(data, offset, seed, RECORD_BYTES_MAX)


def _state_of(header: Header) -> RecoveredState:
    return RecoveredState(
        header.acked_seq,
        header.next_seq,
        {reserve.reservation_id: reserve for reserve in header.open},
        list(header.events),
        {worker.instance: worker for worker in header.workers},
        header.timeline,
    )


def events_in(path: Path, data: bytes) -> Iterator[UsageEvent]:
    """Every event in a segment's header and records, acknowledged or not."""
    header, offset = read_header(data, segment_number(path))
    if header is None:
        return
    yield from header.events
    for record, _ in _records(data, offset, segment_number(path)):
        event = _event(record)
        if event is not None:
            yield event


def _frame(data: bytes, offset: int, seed: int, limit: int) -> tuple[bytes | None, int]:
    """The payload of a sound frame at `offset`, and where the next one begins."""
    begin = offset + _FRAME.size
    if begin > len(data):
        return None, offset
    length, crc = _FRAME.unpack_from(data, offset)
    end = _aligned(begin + length)
    if length == 0 or length > limit or end > len(data):
        return None, offset
    payload = data[begin : begin + length]
    if zlib.crc32(payload, seed) != crc or any(data[begin + length : end]):
        return None, offset
    return payload, end


def _frames_behind(data: bytes, bad: int, used: int, seed: int) -> Iterator[Record | Synced]:
    """Sound records after the bad frame at `bad`, whose length cannot be trusted."""
    offset = bad + 8
    while offset < used:
        payload, end = _frame(data, offset, seed, RECORD_BYTES_MAX)
        # A damaged header frame may contain nothing that decodes: only records count.
        record = None if payload is None else _decoded(payload)
        if record is not None:
            yield record
        offset = offset + 8 if record is None else end


def _decoded(payload: bytes) -> Record | Synced | None:
    try:
        return _record_decoder.decode(payload)
    except msgspec.DecodeError:
        return None


def _aligned(offset: int) -> int:
    return (offset + 7) & ~7


def newest_segment(directory: Path, files: Files, boot_id: str | None) -> Scan | None:
    """The segment that recovery starts from; None if nothing was ever written.

    `boot_id` names the present run of the machine, None stands for the one that wrote the log.
    Raises `JournalCorrupt` where rule 2 forbids to go on.
    """
    unborn: list[Scan] = []  # newer segments without a sound header
    newest: Scan | None = None
    for path in reversed(files.segments(directory)):
        scan = scan_segment(path, files.read(path))
        if scan.header is not None:
            newest = scan
            break
        unborn.append(scan)
    for scan in (*unborn, *([newest] if newest else ())):
        if _is_corrupt(scan, newest, boot_id):
            raise scan.corruption()
    return newest


def _is_corrupt(scan: Scan, log: Scan | None, boot_id: str | None) -> bool:
    """Rule 2 for a segment; `log` is itself, or the last one with a header if it has none."""
    if not scan.behind:
        return False
    if log is None or log.header is None or boot_id in (None, log.header.boot_id):
        return True
    noted = (record.position for record in scan.behind if isinstance(record, Synced))
    return max(noted, default=0) > log.end_position


# -- looking at a journal, and cutting it -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """One segment: its good records, where they end, and what follows them."""

    path: Path
    state: Literal["intact", "torn", "corrupt", "unused"]
    records: int
    end: int
    frames_behind: int


@dataclass(frozen=True, slots=True)
class JournalReport:
    """What `farebox ledger journal verify` shows.

    A torn segment is normal after a crash: a later one, or the next start, takes over from it.
    `gaps` are sequence numbers (last before, first after) between which events are missing.
    """

    journal_id: bytes | None
    segments: tuple[SegmentReport, ...]
    gaps: tuple[tuple[int, int], ...]
    acked_seq: int
    next_seq: int
    open_reservations: int
    unacknowledged_events: int

    @property
    def ok(self) -> bool:
        return not self.gaps and all(segment.state != "corrupt" for segment in self.segments)


def verify(directory: Path, *, files: Files | None = None) -> JournalReport:
    """Read every segment; changes nothing and may run beside the ledger (its tail looks torn)."""
    files = files or DiskFiles()
    scans: list[Scan] = []
    gaps: list[tuple[int, int]] = []
    last_seq = None
    for path in files.segments(directory):
        data = files.read(path)
        scans.append(scan_segment(path, data))
        for event in events_in(path, data):
            if last_seq is not None and event.seq > last_seq + 1:
                gaps.append((last_seq, event.seq))
            last_seq = max(event.seq, last_seq or 0)
    sound = [scan for scan in scans if scan.header is not None]
    state = sound[-1].state if sound else RecoveredState()
    return JournalReport(
        sound[-1].header.journal_id if sound and sound[-1].header else None,
        tuple(_reports(scans)),
        tuple(gaps),
        state.acked_seq,
        state.next_seq,
        len(state.open),
        len(state.events),
    )


def truncate_corrupt(directory: Path, *, files: Files | None = None) -> JournalReport:
    """Give up what lies behind the damage, so that the ledger starts again; the operator's choice.

    Exactly what keeps `newest_segment` from going on is cut, from the first bad frame of a segment
    to its end; the segment as it was is kept beside it as `….journal.damaged`. Does nothing to a
    journal that can be recovered. Raises `JournalLocked` while the ledger runs.
    """
    files = files or DiskFiles()
    lock = files.lock(directory)
    try:
        while damage := _refusal(directory, files):
            _cut(damage, files)
    finally:
        files.close(lock)
    return verify(directory, files=files)


def _refusal(directory: Path, files: Files) -> JournalCorrupt | None:
    try:
        newest_segment(directory, files, None)
    except JournalCorrupt as error:
        return error
    return None


def _cut(damage: JournalCorrupt, files: Files) -> None:
    path, data = damage.segment, files.read(damage.segment)
    _replace(path.with_name(f"{path.name}.damaged"), data, len(data), files)
    _replace(path, data[: damage.offset], len(data), files)


def _replace(path: Path, content: bytes, size: int, files: Files) -> None:
    files.remove(path)
    file = files.create(path, size)
    files.write(file, content, 0)
    files.sync(file)
    files.close(file)


def _reports(scans: Sequence[Scan]) -> Iterator[SegmentReport]:
    """Judge each segment as the start after it did: knowing on which boot that happened."""
    log: Scan | None = None
    for index, scan in enumerate(scans):
        log = scan if scan.header is not None else log
        later = (later.header.boot_id for later in scans[index + 1 :] if later.header is not None)
        state: Literal["intact", "torn", "corrupt", "unused"] = "intact"
        if _is_corrupt(scan, log, next(later, None)):
            state = "corrupt"
        elif scan.dirty:
            state = "torn"
        elif scan.header is None:
            state = "unused"
        yield SegmentReport(scan.path, state, scan.records, scan.end, len(scan.behind))

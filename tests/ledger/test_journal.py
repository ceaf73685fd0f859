"""The journal against crashes, broken disks and flipped bits.

A fact counts as promised once `sync` covered its position (any crash) or `append` returned (death
of the process only); after every crash the recovered state must be the sum of a prefix of the
records that holds everything promised.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import itertools
import multiprocessing
import os
import random
import signal
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.journal import (
    Journal,
    JournalCorrupt,
    JournalFailed,
    JournalFull,
    JournalLocked,
    RecoveredState,
    truncate_corrupt,
    verify,
)
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
from tests.fakes.disk import MemoryDisk

T = TypeVar("T")

HOME = Path("/ledger")
SMALL = 4096
BOOT = "first-boot"
PATIENCE_SECONDS = 10.0  # a busy machine is not what is tested


def reserve(reservation_id: int, amount: int = 1000) -> Reserve:
    request_id = reservation_id.to_bytes(16, "big")
    return Reserve(reservation_id, request_id, 7, 8, (70, 80), amount, 1, 2, 3, 4)


def event(seq: int, charge: int = 900) -> UsageEvent:
    return UsageEvent(
        seq=seq,
        occurred_at=1_700_000_000_000_000 + seq,
        request_id=seq.to_bytes(16, "big"),
        account_id=7,
        key_id=8,
        model_id=1,
        provider_id=2,
        price_id=3,
        endpoint=4,
        status=1,
        reserved=1000,
        cost=800,
        charge=charge,
        input_tokens=10,
        cached_input_tokens=0,
        output_tokens=20,
        reasoning_tokens=0,
        ttfb_ms=5,
        duration_ms=50,
        units={"image": 1},
        pools=(70, 80),
        covered=(charge, charge),
        short=(0, 0),
    )


def request(number: int) -> list[Record]:
    """One whole request: reserved and settled."""
    return [reserve(number), Settle(number, event(number))]


def sum_of(records: Sequence[Record]) -> RecoveredState:
    state = RecoveredState()
    for record in records:
        state.apply(record)
    return state


recover = functools.partial(Journal.recover, HOME, segment_bytes=SMALL, boot_id=BOOT)


def written(disk: MemoryDisk, records: Sequence[Record], *, segment_bytes: int = SMALL) -> Path:
    """A journal with these records, whose process was killed; returns its segment."""
    journal, _ = recover(files=disk, segment_bytes=segment_bytes)
    journal.append(records)
    journal.flush()
    disk.kill()
    return disk.segments(HOME)[-1]


@contextlib.asynccontextmanager
async def running(journal: Journal) -> AsyncIterator[None]:
    """The journal with its syncer, which has ended when the block is left."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.run)
            yield
            nursery.cancel_scope.cancel()


async def at_once(work: Callable[[], T]) -> T:
    """What waits for the disk, without a thread."""
    await trio.lowlevel.checkpoint()
    return work()


# -- what is remembered -------------------------------------------------------------------------


def test_empty_directory_becomes_a_journal(tmp_path: Path) -> None:
    journal, state = Journal.recover(tmp_path / "new", boot_id=BOOT, segment_bytes=SMALL)
    assert state == RecoveredState()
    assert len(journal.journal_id) == 16
    journal.close()


def test_everything_comes_back_with_its_identity(tmp_path: Path) -> None:
    journal, _ = Journal.recover(tmp_path, boot_id=BOOT, segment_bytes=SMALL)
    journal.append([reserve(1), reserve(2), reserve(3), Extend(2, 50), Worker(9, 10, 11)])
    journal.append([Worker(7, 8, 9), Timeline("00000002"), WorkerGone(7), reserve(4)])
    journal.append([Attempt(1, event(1, charge=0)), Settle(1, event(2))])
    journal.append([Void(3, "refused", None), Ack(1), Void(4, "failed", event(3, charge=0))])
    journal.close()
    again, state = Journal.recover(tmp_path, boot_id=BOOT, segment_bytes=SMALL)
    assert again.journal_id == journal.journal_id
    assert state.open == {2: reserve(2, amount=1050)}
    assert state.events == [event(2), event(3, charge=0)]
    assert (state.acked_seq, state.next_seq, state.timeline) == (1, 4, "00000002")
    assert state.workers == {9: Worker(9, 10, 11)}
    again.close()


def test_an_acknowledgement_never_goes_back() -> None:
    state = sum_of([*request(1), *request(2), Ack(2), Ack(1)])
    assert (state.acked_seq, state.next_seq, state.events) == (2, 3, [])


def test_recovered_state_belongs_to_the_caller() -> None:
    disk = MemoryDisk()
    written(disk, request(1))
    _, state = recover(files=disk)
    state.events.clear()
    disk.kill()
    assert recover(files=disk)[1].events == [event(1)]


def test_positions_grow_by_what_was_written_and_survive_restarts() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk)
    before = journal.statistics().position
    after = journal.append(request(1))
    assert after == journal.statistics().position > before
    journal.close()
    assert recover(files=disk)[0].statistics().position > after


def test_appending_nothing_writes_nothing() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk)
    journal.append(request(1))
    position = journal.append([Timeline("1")])
    assert journal.append([]) == position


def test_next_segment_starts_with_a_checkpoint() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk)
    records: list[Record] = []
    while journal.statistics().segment < 4:
        batch = [*request(len(records)), reserve(10_000 + len(records))][: len(records) % 2 + 2]
        journal.append(batch)
        records += batch
        if len(records) % 5 == 0:
            journal.acknowledge(len(records) - 4)
            records.append(Ack(len(records) - 4))
    journal.close()
    for path in disk.segments(HOME)[:-1]:
        disk.remove(path)
    assert recover(files=disk)[1] == sum_of(records)


async def test_a_journal_can_begin_anew_as_another_holders() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk)
    journal.append(request(1))
    journal.acknowledge(1)
    first = journal.journal_id
    journal.begin_anew()
    assert journal.journal_id != first
    assert journal.statistics().unacknowledged_events == 0
    journal.append(request(1))
    disk.kill()
    again, state = recover(files=disk)
    assert again.journal_id == journal.journal_id
    assert state == sum_of(request(1))
    assert [e.seq for e in await again.events_after(0)] == [1]


async def test_acknowledged_events_can_be_read_again() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk)
    for number in range(1, 101):
        journal.append(request(number))
        journal.acknowledge(number)
    assert journal.statistics().retained_segments > 2
    assert [e.seq for e in await journal.events_after(40)] == list(range(41, 101))
    journal.close()
    again, state = recover(files=disk)
    assert state.events == []
    assert [e.seq for e in await again.events_after(90)] == list(range(91, 101))


class OwnedDeque(deque[T]):
    """Only the thread that made it may look through it."""

    def __init__(self, content: Iterable[T]) -> None:
        super().__init__(content)
        self._owner = threading.get_ident()

    def __iter__(self) -> Iterator[T]:
        assert threading.get_ident() == self._owner
        return super().__iter__()


async def test_segments_may_be_finished_while_events_are_read() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk)
    for number in range(1, 101):
        journal.append(request(number))
        journal.acknowledge(number)
    journal._retired = OwnedDeque(journal._retired)
    assert [e.seq for e in await journal.events_after(40)] == list(range(41, 101))


async def test_a_segment_is_kept_while_events_are_read(autojump_clock: object) -> None:
    seconds = itertools.chain([10], itertools.repeat(1))  # of the reading, and of all later work

    async def slowly(work: Callable[[], T]) -> T:
        await trio.sleep(next(seconds))
        return work()

    disk = MemoryDisk()
    journal, _ = recover(files=disk, retention_seconds=0.0, blocking=slowly)
    for number in range(1, 101):
        journal.append(request(number))
        journal.acknowledge(number)
    journal.flush()
    assert journal.statistics().retained_segments > 2
    read: list[UsageEvent] = []

    async def read_all() -> None:
        read.extend(await journal.events_after(0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all)
        await trio.sleep(1)
        await journal._keep_house()
        await journal._keep_house()
        assert not read
        await trio.sleep(10)
        assert [e.seq for e in read] == list(range(1, 101))
        while await journal._keep_house() == 0.0:
            pass
    assert not journal.statistics().retained_segments


# -- torn tails and damage ----------------------------------------------------------------------


def test_cut_anywhere_gives_exactly_the_durable_prefix() -> None:
    disk = MemoryDisk()
    records = [*request(1), reserve(2), Extend(2, 5), Settle(2, event(2)), Void(9, "x", event(3))]
    journal, _ = recover(files=disk)
    begin = journal.statistics().position  # in the first segment, positions are offsets
    ends = [journal.append([record]) for record in records]
    (path,) = disk.segments(HOME)
    whole = disk.read(path)
    for cut in range(begin, ends[-1] + 1):
        crashed = MemoryDisk()
        crashed.content[path] = bytearray(whole[:cut].ljust(len(whole), b"\0"))
        crashed.durable[path] = bytes(crashed.content[path])
        complete = sum(end <= _padded_back(whole, cut) for end in ends)
        assert recover(files=crashed)[1] == sum_of(records[:complete]), cut


def _padded_back(whole: bytes, cut: int) -> int:
    """Zeros cut off and read as zeros again are no loss."""
    while cut < len(whole) and whole[cut] == 0:
        cut += 1
    return cut


def test_any_flipped_byte_is_noticed() -> None:
    disk = MemoryDisk()
    records = [record for number in range(1, 5) for record in request(number)]
    path = written(disk, records)
    end = verify(HOME, files=disk).segments[0].end
    last = end - len(_last_frame(disk.read(path), end))
    for offset in range(end):
        damaged = MemoryDisk()
        damaged.content[path] = bytearray(disk.content[path])
        damaged.content[path][offset] ^= 0x41
        damaged.durable[path] = bytes(damaged.content[path])
        if offset >= last:
            assert recover(files=damaged)[1] == sum_of(records[:-1])
        else:
            with pytest.raises(JournalCorrupt) as caught:
                recover(files=damaged)
            assert caught.value.segment == path
            assert caught.value.offset <= offset
            assert caught.value.frames_behind


def _last_frame(data: bytes, end: int) -> bytes:
    encoded = msgspec.msgpack.encode(Settle(4, event(4)))
    return data[data.index(encoded) - 8 : end]


def test_damage_is_refused_with_facts_and_cut_only_on_request(tmp_path: Path) -> None:
    journal, _ = Journal.recover(tmp_path, boot_id=BOOT, segment_bytes=SMALL)
    for number in (1, 2, 3):
        journal.append(request(number))
    journal.close()
    (path,) = tmp_path.glob("*.journal")
    data = bytearray(path.read_bytes())
    damaged_at = data.index(msgspec.msgpack.encode(reserve(2)))
    data[damaged_at + 3] ^= 1
    path.write_bytes(data)

    with pytest.raises(JournalCorrupt, match="events 2 to 3; `farebox ledger journal verify`"):
        Journal.recover(tmp_path, boot_id=BOOT, segment_bytes=SMALL)
    report = verify(tmp_path)
    assert not report.ok
    assert report.segments[0].state == "corrupt"
    assert report.segments[0].frames_behind == 3
    assert path.read_bytes() == data

    assert truncate_corrupt(tmp_path).ok
    assert path.with_name(f"{path.name}.damaged").read_bytes() == data
    again, state = Journal.recover(tmp_path, boot_id=BOOT, segment_bytes=SMALL)
    assert state == sum_of(request(1))
    again.close()


def test_nothing_is_cut_from_a_sound_journal(tmp_path: Path) -> None:
    journal, _ = Journal.recover(tmp_path, boot_id=BOOT, segment_bytes=SMALL)
    journal.append(request(1))
    with pytest.raises(JournalLocked):
        truncate_corrupt(tmp_path)
    journal.close()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert truncate_corrupt(tmp_path).ok
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_power_cut_that_lost_an_early_page_of_the_unsynced_tail_is_a_torn_tail() -> None:
    disk = MemoryDisk()
    records = [record for number in range(1, 21) for record in request(number)]
    journal, _ = recover(files=disk)
    journal.append(records)
    fates = itertools.chain([True, False], itertools.repeat(True))  # the second page is lost
    disk.cut_power(functools.partial(next, fates))
    with pytest.raises(JournalCorrupt):
        recover(files=disk)  # the machine was not restarted: this is damage
    _, state = recover(files=disk, boot_id="second-boot")
    assert 0 < len(state.events) < 20
    assert state.events == sum_of(records).events[: len(state.events)]
    assert verify(HOME, files=disk).ok


def test_damage_of_what_was_durable_is_no_torn_tail_after_a_power_cut() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk)
    journal.append(request(1))
    journal.flush()
    journal.append(request(2))  # notes how far the log is durable
    journal.flush()
    disk.cut_power(lambda: True)
    (path,) = disk.segments(HOME)
    disk.content[path][disk.content[path].index(b"\x07\x08\x92")] ^= 1
    with pytest.raises(JournalCorrupt):
        recover(files=disk, boot_id="second-boot")


def test_dirt_far_behind_the_end_is_seen() -> None:
    disk = MemoryDisk()
    path = written(disk, request(1), segment_bytes=1 << 20)

    def state() -> str:
        (segment,) = verify(HOME, files=disk).segments
        return segment.state

    for place in (70_000, 1 << 19, (1 << 20) - 1):
        disk.content[path][place] = 1
        assert state() == "torn"
        disk.content[path][place] = 0
    assert state() == "intact"


def test_segment_torn_at_birth_is_ignored() -> None:
    disk = MemoryDisk()
    path = written(disk, request(1))
    disk.create(path.with_name("000000000002.journal"), SMALL)
    disk.content[path.with_name("000000000002.journal")][:5] = b"FAREB"
    disk.kill()
    journal, state = recover(files=disk)
    assert state == sum_of(request(1))
    assert journal.statistics().segment == 3
    assert [p.name for p in disk.segments(HOME)] == ["000000000001.journal", "000000000003.journal"]


def test_gap_between_events_is_reported() -> None:
    disk = MemoryDisk()
    written(disk, [*request(1), *request(4)])
    report = verify(HOME, files=disk)
    assert report.gaps == ((1, 4),)
    assert not report.ok


# -- crashes ------------------------------------------------------------------------------------


class History:
    """All records ever appended, how many were written and how many were durable."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.synced = 0
        self.next_id = 1
        self.next_seq = 1
        self.open: list[int] = []

    def next_records(self, draw: random.Random) -> list[Record]:
        return [self._next_record(draw) for _ in range(draw.randint(1, 4))]

    def lost_after(self, kept: int) -> None:
        """The crash took what came later; the holder goes on from there."""
        del self.records[kept:]
        state = sum_of(self.records)
        self.synced, self.open = kept, list(state.open)
        self.next_seq = state.next_seq

    def _next_record(self, draw: random.Random) -> Record:
        if not self.open or draw.random() < 0.4:
            self.open.append(self.next_id)
            self.next_id += 1
            return reserve(self.open[-1], draw.randint(1, 10**9))
        match draw.choice(["settle", "void", "orphan", "attempt", "extend", "worker"]):
            case "settle":
                return Settle(self._close(draw), self._event())
            case "void":
                return Void(self._close(draw), "refused", None)
            case "orphan":
                return Void(self._close(draw), "orphaned", self._event())
            case "attempt":
                return Attempt(draw.choice(self.open), self._event())
            case "extend":
                return Extend(draw.choice(self.open), draw.randint(1, 1000))
            case _:
                return Worker(draw.randint(1, 3), draw.randint(1, 9), 1)

    def _close(self, draw: random.Random) -> int:
        return self.open.pop(draw.randrange(len(self.open)))

    def _event(self) -> UsageEvent:
        self.next_seq += 1
        return event(self.next_seq - 1)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(min_value=0, max_value=2**32),
    st.lists(
        st.sampled_from(
            ["append", "append", "append", "bad-write", "no-room", "sync", "ack", "kill", "power"]
        ),
        min_size=5,
        max_size=60,
    ),
)
def test_every_crash_leaves_a_prefix_with_all_that_was_promised(
    seed: int, steps: list[str]
) -> None:
    draw, disk, history = random.Random(seed), MemoryDisk(), History()
    boot = 0
    journal, _ = recover(files=disk, boot_id=str(boot))
    for step in [*steps, "power"]:
        if step in {"append", "bad-write"}:
            disk.refuse_writes = int(step == "bad-write")
            records = history.next_records(draw)
            journal.append(records)
            history.records += records
        elif step == "no-room":
            before = copy.deepcopy(history)
            records = history.next_records(draw)
            disk.full, disk.refuse_writes = True, 1
            try:
                journal.append(records)
            except JournalFull:  # nothing was written, and other records may follow
                history = before
            except JournalFailed:  # whatever was written of them, nothing follows
                history.records += records
                disk.full = False
                disk.kill()
                journal = judged(disk, history, len(before.records), boot)
            disk.full, disk.refuse_writes = False, 0
        elif step == "sync":
            journal.flush()
            history.synced = len(history.records)
        elif step == "ack":
            durable = sum_of(history.records[: history.synced])
            if durable.events:  # only what is durable was ever sent to the store
                journal.acknowledge(durable.events[-1].seq)
                history.records.append(Ack(durable.events[-1].seq))
        else:
            promised = history.synced
            if step == "kill":
                disk.kill()
                promised = len(history.records)
            else:
                disk.cut_power(lambda: draw.random() < 0.5)
                boot += 1
            journal = judged(disk, history, promised, boot)


def judged(disk: MemoryDisk, history: History, promised: int, boot: int) -> Journal:
    """The journal of who comes after a crash that may have taken all but so many records."""
    journal, state = recover(files=disk, boot_id=str(boot))
    candidates = range(promised, len(history.records) + 1)
    kept = [n for n in candidates if sum_of(history.records[:n]) == state]
    assert kept, "the recovered state is the sum of no allowed prefix"
    history.lost_after(kept[-1])
    return journal


def _write_until_killed(directory: Path, pipe: Connection[int, int]) -> None:
    journal, state = Journal.recover(directory, boot_id=BOOT, segment_bytes=16 << 10)
    while True:
        number = state.next_seq
        records = request(number)
        journal.append(records)
        state.next_seq += 1
        pipe.send(number)


def test_killed_process_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    acknowledged = 0
    for round_ in range(3):
        reader, writer = context.Pipe(duplex=False)
        child = context.Process(target=_write_until_killed, args=(tmp_path, writer))
        child.start()
        writer.close()
        for _ in range(40 * (round_ + 1)):
            assert reader.poll(30)
            acknowledged = reader.recv()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join(30)
        while reader.poll():
            try:
                acknowledged = reader.recv()
            except EOFError:
                break
        journal, state = Journal.recover(tmp_path, boot_id=BOOT, segment_bytes=16 << 10)
        assert [e.seq for e in state.events] == list(range(1, state.next_seq))
        assert acknowledged < state.next_seq <= acknowledged + 2
        journal.close()
    assert verify(tmp_path).ok


# -- durability ---------------------------------------------------------------------------------


async def test_waiters_share_one_sync() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk, segment_bytes=1 << 20)
    async with running(journal):
        syncs = disk.syncs
        async with trio.open_nursery() as waiters:
            for number in range(1, 51):
                waiters.start_soon(journal.sync, journal.append(request(number)))
        assert disk.syncs == syncs + 1
    assert journal.synced == journal.statistics().position


async def test_much_unsynced_data_does_not_wait_for_the_interval() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk, segment_bytes=1 << 20, fsync_interval=3600.0)
    async with running(journal):
        position = 0
        while position < 300 << 10:
            position = journal.append([reserve(position)])
        with trio.fail_after(PATIENCE_SECONDS):
            await journal.sync(256 << 10)


async def test_what_is_written_during_a_sync_is_not_durable_by_it() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk, segment_bytes=1 << 20)
    durable: list[int] = []

    def write_more() -> None:
        trio.from_thread.run_sync(journal.append, request(2))
        disk.after_sync = lambda: durable.append(journal.synced)  # of the next one, at its end

    async with running(journal):
        disk.after_sync = write_more
        first = journal.append(request(1))
        await journal.sync(first)
        await journal.sync(journal.statistics().position)
    assert durable == [first]


async def test_sync_of_something_durable_returns_at_once() -> None:
    journal, _ = recover(files=MemoryDisk())
    with trio.fail_after(PATIENCE_SECONDS):  # nobody runs it
        await journal.sync(journal.synced)


async def test_failed_fsync_is_never_retried_on_the_same_file() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk)
    disk.refuse_syncs = 1
    async with running(journal):
        await journal.sync(journal.append([*request(1), reserve(2)]))
        assert journal.statistics().rescues == 1
        assert journal.statistics().segment > 1
        assert journal.headroom(1)
    disk.cut_power(lambda: False)  # what was never synced is gone
    _, state = recover(files=disk, boot_id="second-boot")
    assert state == sum_of([*request(1), reserve(2)])


async def test_second_failure_is_final() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk)
    disk.refuse_syncs = 2
    position = journal.append(request(1))
    waiting = []

    async def wait() -> None:
        with pytest.raises(JournalFailed) as caught:
            await journal.sync(position)
        waiting.append(caught.value)

    with trio.fail_after(20):
        async with trio.open_nursery() as waiters:
            waiters.start_soon(wait)
            with pytest.raises(JournalFailed):
                await journal.run()
    assert waiting
    assert not journal.headroom(0)
    assert journal.statistics().failed
    with pytest.raises(JournalFailed):
        journal.append(request(2))
    journal.close()
    recover(files=disk)  # the directory was given back


def test_write_error_moves_on_to_the_next_segment() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk)
    journal.append(request(1))
    disk.refuse_writes = 1
    journal.append(request(2))
    assert journal.statistics().rescues == 1
    disk.kill()
    assert recover(files=disk)[1] == sum_of([*request(1), *request(2)])


def test_write_errors_everywhere_are_final() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk)
    disk.refuse_writes = 3
    with pytest.raises(JournalFailed):
        journal.append(request(1))
    with pytest.raises(JournalFailed):
        journal.flush()


@pytest.mark.parametrize("crash", ["kill", "power"])
def test_a_batch_that_breaks_off_with_no_next_segment_is_final(crash: str) -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk)
    journal.append([reserve(1)])
    journal.flush()
    batch = [reserve(number) for number in range(2, 10)]
    disk.full, disk.refuse_writes = True, 1
    with pytest.raises(JournalFailed, match="No space left on device"):
        journal.append(batch)
    assert not journal.headroom(0)
    with pytest.raises(JournalFailed):  # shorter than what the batch left behind the log's end
        journal.append([Settle(1, event(1))])
    if crash == "kill":
        disk.kill()
    else:
        disk.cut_power(lambda: True)
    disk.full = False
    _, state = recover(files=disk, boot_id=BOOT if crash == "kill" else "second-boot")
    assert state == sum_of([reserve(1), *batch[: len(state.open) - 1]])


# -- room ---------------------------------------------------------------------------------------


def test_full_disk_refuses_reservations_while_settlements_fit() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk, segment_bytes=32 << 10)
    disk.full = True
    number = 0
    while journal.headroom(number):
        number += 1
        journal.append([reserve(number)])
    assert number > 20
    for reservation_id in range(1, number + 1):
        journal.append([Settle(reservation_id, event(reservation_id))])
    journal.acknowledge(number)
    assert not journal.statistics().open_reservations


def test_journal_without_any_room_says_so_and_stays_usable() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk)
    disk.full = True
    number = 1
    while journal.statistics().segment_free >= 512:
        journal.append(request(number))
        number += 1
    with pytest.raises(JournalFull, match="No space left on device"):
        journal.append(request(number) * 4)
    journal.acknowledge(number - 1)  # known to the store; not written before the next checkpoint
    assert journal.statistics().unacknowledged_events == 0
    disk.full = False
    later = range(number, number + 4)
    for number in later:
        journal.append(request(number))
    disk.kill()
    assert recover(files=disk)[1].events == [event(number) for number in later]


def test_records_larger_than_a_segment_are_refused() -> None:
    journal, _ = recover(files=MemoryDisk())
    with pytest.raises(JournalFull, match="do not fit into a segment"):
        journal.append([reserve(n) for n in range(200)])


async def test_spare_segment_comes_back_when_the_disk_has_room_again(
    autojump_clock: object,
) -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk)
    disk.full = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.run)
        await seconds_until(lambda: disk.refused > 0)
        assert journal.statistics().spare_bytes == 0
        disk.full = False
        await seconds_until(lambda: journal.statistics().spare_bytes > 0)
        nursery.cancel_scope.cancel()


async def seconds_until(condition: Callable[[], bool]) -> None:
    """Virtual seconds, many: the clock runs on while a thread works."""
    for _ in range(100_000):
        if condition():
            return
        await trio.sleep(1)
    raise AssertionError("it never happened")


async def test_old_segments_go_after_acknowledgement_and_retention() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk, retention_seconds=0.0, fsync_interval=0.0)
    async with running(journal):
        for number in range(1, 61):
            await journal.sync(journal.append(request(number)))
        assert journal.statistics().retained_segments > 0
        journal.acknowledge(60)
        while journal.statistics().retained_segments:
            await trio.lowlevel.checkpoint()
    disk.kill()
    assert recover(files=disk)[1] == RecoveredState(60, 61)


class BusyDisk(MemoryDisk):
    """Something is written whenever a file was removed."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[str] = []
        self.after_remove: Callable[[], object] = lambda: None

    def sync(self, file: int) -> None:
        super().sync(file)
        self.steps.append("sync")

    def remove(self, path: Path) -> None:
        super().remove(path)
        self.steps.append("remove")
        self.after_remove()


async def test_what_is_written_waits_for_one_removal_at_most() -> None:
    disk = BusyDisk()
    journal, _ = recover(files=disk, retention_seconds=0.0, fsync_interval=0.0, blocking=at_once)
    number = 0
    async with running(journal):
        while journal.statistics().retained_segments < 4:
            number += 1
            await journal.sync(journal.append(request(number)))
        later = itertools.count(number + 1)
        disk.after_remove = lambda: journal.append(request(next(later)))
        disk.steps.clear()
        journal.acknowledge(number)
        while disk.steps.count("remove") < 4:
            await trio.lowlevel.checkpoint()
    assert ("remove", "remove") not in itertools.pairwise(disk.steps)


async def test_a_segment_is_kept_until_its_successor_is_durable() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk, retention_seconds=0.0, retention_bytes=0)
    number = 0
    while not journal.statistics().retained_segments:
        number += 1
        journal.append(request(number))
    journal.acknowledge(number)
    await journal._keep_house()
    disk.cut_power(lambda: False)
    assert recover(files=disk)[0].journal_id == journal.journal_id


async def test_unacknowledged_events_are_kept_whatever_the_bounds() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk, retention_seconds=0.0, retention_bytes=0, fsync_interval=0.0)
    async with running(journal):
        for number in range(1, 61):
            await journal.sync(journal.append(request(number)))
    assert journal.statistics().retained_segments == len(disk.segments(HOME)) - 2 > 0


async def test_spare_that_comes_too_late_is_thrown_away() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk)
    later = itertools.count(1)

    def roll() -> None:
        while journal.statistics().segment < 3:
            journal.append(request(next(later)))

    disk.after_create = roll
    async with running(journal):
        await journal.sync(journal.append(request(next(later))))
        assert disk.segments(HOME)[1].name == "000000000003.journal"
        for _ in range(100):
            await journal.sync(journal.append(request(next(later))))
    disk.kill()
    assert len(recover(files=disk)[1].events) == next(later) - 1


async def test_retention_is_bounded_in_bytes() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk, retention_bytes=4 * SMALL, fsync_interval=0.0)
    async with running(journal):
        for number in range(1, 401):
            await journal.sync(journal.append(request(number)))
            journal.acknowledge(number)
        await journal.sync(journal.append(request(401)))
        assert journal.statistics().segment > 8
        with trio.fail_after(PATIENCE_SECONDS):
            while journal.statistics().retained_segments > 4:
                await trio.lowlevel.checkpoint()


class StickyDisk(MemoryDisk):
    """Files in `stuck` cannot be removed; `tries` is how often that was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck: set[str] = set()
        self.tries = 0

    def remove(self, path: Path) -> None:
        if path.name in self.stuck:
            self.tries += 1
            raise OSError(errno.EPERM, "Operation not permitted")
        super().remove(path)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


async def test_a_segment_that_cannot_be_removed_stays_and_harms_nothing(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    disk = StickyDisk()
    disk.stuck = {"000000000001.journal"}
    journal, _ = recover(files=disk, retention_seconds=0.0, blocking=at_once)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.run)
        for number in range(1, 201):
            await journal.sync(journal.append(request(number)))
            journal.acknowledge(number)
        await trio.sleep(1000)
        assert not journal.statistics().retained_segments
        assert journal.statistics().segment > 3
        assert disk.segments(HOME)[0].name == "000000000001.journal"
        assert len(disk.segments(HOME)) == 3  # that one, the current one and the spare
        assert 10 < disk.tries < 30
        disk.stuck.clear()
        await trio.sleep(100)
        assert len(disk.segments(HOME)) == 2
        nursery.cancel_scope.cancel()
    assert warnings(caplog) == [
        "cannot remove /ledger/000000000001.journal, which only takes room now: "
        "Operation not permitted"
    ]


async def test_a_spare_that_cannot_be_removed_stays_and_harms_nothing(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    disk = StickyDisk()
    disk.stuck = {"000000000002.journal"}
    journal, _ = recover(files=disk, blocking=at_once)
    later = itertools.count(1)

    def roll() -> None:
        while journal.statistics().segment < 3:
            journal.append(request(next(later)))

    disk.after_create = roll
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.run)
        await journal.sync(journal.append(request(next(later))))
        await trio.sleep(1000)
        assert 10 < disk.tries < 30
        disk.stuck.clear()
        await trio.sleep(100)
        assert HOME / "000000000002.journal" not in disk.segments(HOME)
        nursery.cancel_scope.cancel()
    assert len(warnings(caplog)) == 1
    disk.kill()
    assert len(recover(files=disk)[1].events) == next(later) - 1


async def test_a_spare_that_its_owner_could_not_remove_keeps_nobody_from_starting(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    disk = StickyDisk()
    disk.stuck = {"000000000002.journal"}
    journal, _ = recover(files=disk, blocking=at_once)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.run)
        await journal.sync(journal.append(request(1)))
        nursery.cancel_scope.cancel()
    journal.close()
    assert HOME / "000000000002.journal" in disk.segments(HOME)
    again, state = recover(files=disk, blocking=at_once)
    assert state == sum_of(request(1))
    assert len(warnings(caplog)) == 1
    disk.stuck.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.run)
        await again.sync(again.append(request(2)))
        nursery.cancel_scope.cancel()
    assert HOME / "000000000002.journal" not in disk.segments(HOME)
    disk.kill()
    assert recover(files=disk)[1] == sum_of([*request(1), *request(2)])


# -- one process --------------------------------------------------------------------------------


def test_nothing_is_written_once_it_is_closed() -> None:
    disk = MemoryDisk()
    journal, _ = recover(files=disk)
    journal.append(request(1))
    journal.close()
    with pytest.raises(JournalFailed, match="closed"):
        journal.append(request(2))
    assert not journal.headroom(0)
    assert recover(files=disk)[1] == sum_of(request(1))


def test_directory_belongs_to_one_process(tmp_path: Path) -> None:
    journal, _ = Journal.recover(tmp_path, boot_id=BOOT, segment_bytes=SMALL)
    with pytest.raises(JournalLocked, match="another process holds the journal"):
        Journal.recover(tmp_path, boot_id=BOOT, segment_bytes=SMALL)
    journal.close()
    again, _ = Journal.recover(tmp_path, boot_id=BOOT, segment_bytes=SMALL)
    again.close()


async def test_real_disk_syncs_rolls_and_recovers(tmp_path: Path) -> None:
    journal, _ = Journal.recover(tmp_path, boot_id=BOOT, segment_bytes=SMALL, fsync_interval=0.0)
    async with running(journal):
        for number in range(1, 41):
            await journal.sync(journal.append(request(number)))
    assert journal.statistics().segment > 2
    journal.close()
    again, state = Journal.recover(tmp_path, boot_id=BOOT, segment_bytes=SMALL)
    assert state.events == [event(number) for number in range(1, 41)]
    again.close()
    assert verify(tmp_path).ok

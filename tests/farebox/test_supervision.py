"""What supervision is made of: totals over processes, the control channel, sockets, restarts."""

from __future__ import annotations

import os
import select
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from farebox.books import HolderTerms, leftover_directories, shard_directories
from farebox.catalogue import sandbox_provider
from farebox.child import Child, Part
from farebox.children import Backoff, told
from farebox.config import load
from farebox.control import (
    Ask,
    BeLeftover,
    BeWorker,
    ChannelClosed,
    Drain,
    Ready,
    Refused,
    Report,
    Served,
    Start,
    childs_end,
    supervisors_end,
)
from farebox.served import Settings, packed, unpacked
from farebox.sockets import unix_sockets
from farebox.supervise import SupervisorSettings
from farebox.totals import Family, Sample, Totals, merged, report_of, text_of, value_of
from farebox.worker import write_lines
from proxy.metrics import Metrics
from tests.fakes import example

# -- totals ---------------------------------------------------------------------------------------

numbers = st.integers(0, 1000).map(float)
label_sets = st.fixed_dictionaries({"model": st.sampled_from("abc")})


def family(name: str, kind: str, sample: str) -> st.SearchStrategy[Family]:
    samples = st.lists(
        st.builds(Sample, st.just(sample), label_sets, numbers),
        unique_by=lambda each: each.labels["model"],
    )
    return st.builds(
        Family, st.just(name), st.just(kind), st.just("what it is"), samples.map(tuple)
    )


reports = st.tuples(
    family("farebox_requests", "counter", "farebox_requests_total"),
    family("farebox_open_streams", "gauge", "farebox_open_streams"),
    family("farebox_circuit_state", "gauge", "farebox_circuit_state"),
    family("farebox_flush_seconds", "histogram", "farebox_flush_seconds_count"),
).map(list)


def values(report: Sequence[Family]) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels["model"]): sample.value
        for each in report
        for sample in each.samples
    }


@given(st.lists(reports, max_size=4))
def test_figures_are_summed_but_for_those_of_which_there_is_one(
    several: list[list[Family]],
) -> None:
    alone = [values(report) for report in several]
    for (name, model), value in values(merged(several)).items():
        of_each = [report[name, model] for report in alone if (name, model) in report]
        assert value == (max if name == "farebox_circuit_state" else sum)(of_each)


@given(reports, reports, reports)
def test_the_order_of_merging_does_not_matter(
    one: list[Family], two: list[Family], three: list[Family]
) -> None:
    at_once = values(merged([one, two, three]))
    assert values(merged([merged([one, two]), three])) == at_once
    assert values(merged([one, merged([two, three])])) == at_once
    assert values(merged([three, two, one])) == at_once


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 9)), max_size=30))
def test_no_counter_goes_back_whoever_dies(steps: list[tuple[int, bool, int]]) -> None:
    """Processes count, report, die and come back with nothing; the total is all that was told."""
    totals = Totals()
    living: dict[int, int] = {}
    told_of = 0
    before = 0.0
    for process, dies, more in steps:
        if dies:
            totals.retire(process)
            living.pop(process, None)
        else:
            living[process] = living.get(process, 0) + more
            told_of += more
            totals.update(process, report_with(living[process], streams=1))
        total = totals.report()
        assert value_of(total, "farebox_requests_total") == told_of >= before
        assert value_of(total, "farebox_open_streams") == len(living)
        before = told_of


def report_with(requests: int, streams: int) -> list[Family]:
    return [
        Family(
            "farebox_requests", "counter", "", (Sample("farebox_requests_total", {}, requests),)
        ),
        Family("farebox_open_streams", "gauge", "", (Sample("farebox_open_streams", {}, streams),)),
    ]


def test_two_registries_are_shown_as_one() -> None:
    def registry(requests: int, seconds: float, streams: int) -> CollectorRegistry:
        made = CollectorRegistry()
        Counter("farebox_requests_total", "Requests", ["model"], registry=made).labels("a").inc(
            requests
        )
        Histogram("farebox_overhead_seconds", "Time", buckets=(1, 2), registry=made).observe(
            seconds
        )
        Gauge("farebox_open_streams", "Streams", registry=made).set(streams)
        Gauge("farebox_build_info", "Version", ["version"], registry=made).labels("1").set(1)
        Gauge("farebox_nonsense", "Not a number", registry=made).set(float("nan"))
        return made

    both = [report_of(registry(3, 0.5, 1)), report_of(registry(4, 1.5, 2))]
    lines = text_of(merged(both)).decode().splitlines()
    assert 'farebox_requests_total{model="a"} 7.0' in lines
    assert 'farebox_overhead_seconds_bucket{le="1.0"} 1.0' in lines
    assert 'farebox_overhead_seconds_bucket{le="2.0"} 2.0' in lines
    assert 'farebox_overhead_seconds_bucket{le="+Inf"} 2.0' in lines
    assert "farebox_overhead_seconds_sum 2.0" in lines
    assert "farebox_open_streams 3.0" in lines
    assert 'farebox_build_info{version="1"} 1.0' in lines
    assert "# TYPE farebox_requests_total counter" in lines
    created = [line for line in lines if line.startswith("farebox_requests_created{")]
    first = min(value_of(report, "farebox_requests_created") for report in both)
    assert [float(line.rpartition(" ")[2]) for line in created] == [first]


# -- the control channel --------------------------------------------------------------------------


class Environment(dict[str, str]):
    """Every variable that the example names has a value."""

    def get(self, key: str, default: object = None) -> str:
        scheme = "postgresql" if key.startswith("DATABASE") else "valkey"
        return f"{scheme}://value-of-{key}-that-is-long-enough"


async def test_a_child_is_told_everything_that_it_has_to_know(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    supervisor, child = supervisors_end(ours), childs_end(theirs)
    settings = Settings(
        config=load(example.file(tmp_path), Environment()),
        built_in=sandbox_provider("http://127.0.0.1:1/v1"),
    )
    start = BeWorker(
        served=Served(version=7, settings=packed(settings)),
        conninfo="host=/run user=farebox",
        secret=bytes(range(32)),
        listening=5,
        ledgers=("/run/ledger-0.sock",),
        lifeline=6,
        rows=7,
        place=1,
        console="/run/console.sock",
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.send, start)
        told_to_be = await child.receive()
    assert told_to_be == start
    assert isinstance(told_to_be, BeWorker)
    assert unpacked(told_to_be.served.settings) == settings
    answers = [
        Ready(),
        Report(
            number=1,
            problems=("draining",),
            families=(Family("a", "gauge", "", (Sample("a", {"x": "ü\n"}, 0.1),)),),
        ),
        Refused(problems=("It is in use.",)),
    ]
    for answer in answers:
        await child.send(answer)
    assert [await supervisor.receive() for _ in answers] == answers
    supervisor.close()
    assert await child.receive() is None
    with pytest.raises(ChannelClosed):
        await child.send(Ready())
    child.close()


@given(st.lists(st.one_of(st.builds(Ask, number=st.integers(0, 10**9)), st.just(Drain()))))
def test_messages_survive_being_cut_anywhere(messages: list[Ask | Drain]) -> None:
    async def both_ends() -> None:
        ours, theirs = socket.socketpair()
        child = childs_end(theirs)
        recorder, recorded = socket.socketpair()
        sender = supervisors_end(recorder)
        for message in messages:
            await sender.send(message)
        sender.close()
        raw = b""
        while piece := recorded.recv(4096):
            raw += piece
        recorded.close()
        received = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle, ours, raw)
            while (message_received := await child.receive()) is not None:
                received.append(message_received)
        assert received == messages
        child.close()

    async def trickle(end: socket.socket, raw: bytes) -> None:
        for byte in raw:
            end.send(bytes([byte]))
            await trio.lowlevel.checkpoint()
        end.close()

    trio.run(both_ends)


class IdlePart:
    """A child that has nothing to do but to end when it is told to."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self._end = trio.Event()

    def problems(self) -> list[str]:
        return []

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await self._end.wait()

    def drain(self) -> None:
        self._end.set()

    cut = drain

    async def reload(self, served: Served) -> None: ...

    async def outlive(self) -> None: ...


async def test_a_child_answers_though_every_thread_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def build(_start: Start) -> Part:
        return IdlePart()

    monkeypatch.setattr("farebox.child.build", build)
    ours, theirs = socket.socketpair()
    supervisor, child = supervisors_end(ours), childs_end(theirs)
    threads = trio.to_thread.current_default_thread_limiter()
    free = int(threads.total_tokens - threads.borrowed_tokens)
    takers = [object() for _ in range(free)]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Child(child).run)
            terms = HolderTerms(conninfo="", max_request_seconds=1)
            await supervisor.send(BeLeftover(terms=terms, directory=""))
            assert await supervisor.receive() == Ready()
            for taker in takers:
                threads.acquire_on_behalf_of_nowait(taker)
            await supervisor.send(Ask(number=7))
            report = await supervisor.receive()
            assert isinstance(report, Report)
            assert report.number == 7
            for taker in takers:
                threads.release_on_behalf_of(taker)
            await supervisor.send(Drain())
    supervisor.close()
    child.close()


# -- sockets, shards, restarts --------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 30], ids=["short", "too long for the kernel"])
def test_ledger_sockets_are_for_their_owner_alone_and_go_away(tmp_path: Path, depth: int) -> None:
    directory = tmp_path / "/".join(["directory"] * depth)
    for _ in range(2):  # what a killed supervisor left behind is no obstacle
        with unix_sockets(directory, ["ledger-0", "ledger-1"]) as made:
            for path, listening in made:
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(path))  # waits in the backlog, though nobody accepts
                assert listening.getsockname() == str(path)
        assert not any(path.exists() for path, _ in made)
        if depth == 1:
            (directory / "ledger-0.sock").touch()


def test_one_ledger_serves_up_to_8_workers() -> None:
    shards = SupervisorSettings().shards
    assert [shards(workers) for workers in (1, 8, 9, 16, 17)] == [1, 1, 2, 2, 3]


def test_a_ledgers_process_loads_nothing_that_only_workers_need() -> None:
    """It is the one everybody waits for, and there are two of them."""
    script = "import sys, farebox.child; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", script], text=True).split()
    needless = ("adapters", "console", "evals", "farebox.config", "farebox.worker", "h11")
    assert [name for name in loaded if name.startswith(needless)] == []


def test_the_first_shard_is_where_a_single_worker_has_its_journal(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    assert shard_directories(tmp_path, 1) == [ledger]
    assert shard_directories(tmp_path, 3) == [ledger, ledger / "shard-1", ledger / "shard-2"]
    assert list(leftover_directories(tmp_path, 1)) == []
    for directory in shard_directories(tmp_path, 3):
        directory.mkdir()
    assert list(leftover_directories(tmp_path, 2)) == [ledger / "shard-2"]
    assert list(leftover_directories(tmp_path, 3)) == []


def test_who_dies_again_and_again_starts_less_and_less_often() -> None:
    backoff = Backoff()
    assert [backoff.pause(0) for _ in range(9)] == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    assert [backoff.pause(3), backoff.pause(6)] == [2, 0], "only as far apart as that"
    assert [backoff.pause(60), backoff.pause(0)] == [0, 0.1]


def test_an_end_is_told_in_words() -> None:
    assert told(1) == "ended with exit code 1"
    assert told(-9) == "was ended by SIGKILL"
    assert told(-250) == "was ended by signal 250"


# -- what workers share ---------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3 * select.PIPE_BUF), max_size=40))
def test_no_line_is_written_in_two_pieces(sizes: list[int]) -> None:
    lines = [b"x" * size + b"\n" for size in sizes]
    reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    written: list[bytes] = []

    def read() -> None:
        while piece := reading.recv(1 << 20):
            written.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    saved = os.dup(1)
    try:
        os.dup2(writing.fileno(), 1)
        writing.close()
        write_lines(b"".join(lines))
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    reader.join()
    reading.close()
    assert b"".join(written) == b"".join(lines)
    for piece in written:
        assert piece.endswith(b"\n")
        assert len(piece) <= select.PIPE_BUF or piece.count(b"\n") == 1

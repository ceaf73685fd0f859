"""Rows that several processes share: nothing is lost, nobody waits, the dead leave nothing.

The other processes are real ones, told by lines on their standard input what to do.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.shared_rows import ROWS, Rows, make_memory
from tests.fakes.sharers import Sharer, sharers

WORDS = 3
NUMBER = 2  # the first word after the name

# Counts in a word that all change, claims and releases, as told; answers each line with another.
OTHER = """
import sys
from proxy.shared_rows import Rows

rows = Rows.shared(int(sys.argv[1]), 3, place=int(sys.argv[2]))
row = rows.row("a")
print("here", flush=True)
for line in sys.stdin:
    order, _, number = line.strip().partition(" ")
    if order == "count":
        made = 0
        while made < int(number):
            with row.changing() as mine:
                if mine:
                    row.words[2] += 1
                    made += 1
        print("counted", flush=True)
    elif order == "claim":
        print(row.claim(), flush=True)
    elif order == "release":
        row.release()
        print("released", flush=True)
    elif order == "enter":
        row.words[row.place] += 1
        print(sum(row.places), flush=True)
    elif order == "hold":
        with row.changing() as mine:
            print(mine, flush=True)
            sys.stdin.readline()
    elif order == "take":
        found = [rows.row(f"name {each}").words[2] for each in range(int(number))]
        print(found, flush=True)
"""


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = make_memory(WORDS, 9)
    yield descriptor
    os.close(descriptor)


def others(memory: int, count: int) -> AbstractContextManager[list[Sharer]]:
    """So many processes that have the same rows."""
    return sharers(OTHER, memory, count)


def test_no_change_of_eight_processes_is_lost(memory: int) -> None:
    with others(memory, 8) as eight:
        for each in eight:
            each.tell("count 3000")
        assert [each.says() for each in eight] == ["counted"] * 8
        assert Rows.shared(memory, WORDS).row("a").words[NUMBER] == 24_000


def test_a_claim_is_one_process_s_and_comes_back_when_it_is_killed(memory: int) -> None:
    row = Rows.shared(memory, WORDS, place=8).row("a")
    with others(memory, 2) as (one, two):
        assert one.ask("claim") == "True"
        assert one.ask("claim") == "False"
        assert two.ask("claim") == "False"
        assert not row.claim()
        one.kill()
        assert row.claim()
        assert not row.claim()
        assert two.ask("claim") == "False"
        row.release()
        assert two.ask("claim") == "True"
        assert two.ask("release") == "released"
        assert row.claim()


def test_nobody_waits_for_a_process_that_was_stopped_inside(memory: int) -> None:
    row = Rows.shared(memory, WORDS, place=8).row("a")
    with others(memory, 1) as (one,):
        assert one.ask("hold") == "True"
        os.kill(one.process.pid, signal.SIGSTOP)
        began = time.perf_counter()
        with row.changing() as mine:
            assert not mine
        assert time.perf_counter() - began < 5  # it is microseconds on a machine with time
        assert row.claim(), "that is another lock"
        one.kill()
        with row.changing() as mine:
            assert mine


def test_places_are_counted_together_and_cleared_when_filled_anew(memory: int) -> None:
    rows = Rows.shared(memory, WORDS, place=8)
    row = rows.row("a")
    row.words[row.place] += 1
    with others(memory, 2) as (one, two):
        assert one.ask("enter") == "2"
        assert one.ask("enter") == "3"
        assert two.ask("enter") == "4"
        one.kill()
        assert sum(row.places) == 4
        with closing(Sharer(OTHER, memory, 0)) as successor:
            assert successor.says() == "here"
            assert sum(row.places) == 2


def test_processes_that_begin_together_find_the_same_rows(memory: int) -> None:
    with others(memory, 4) as four:
        for each in four:
            each.tell("take 300")
        assert [each.says() for each in four] == [str([0] * 300)] * 4
        rows = Rows.shared(memory, WORDS, place=8)
        for number in range(300):
            rows.row(f"name {number}").words[NUMBER] = number
        expected = str(list(range(300)))
        assert [each.ask("take 300") for each in four] == [expected] * 4
    whole = memoryview(os.pread(memory, os.fstat(memory).st_size, 0)).cast("q")
    assert sum(1 for word in whole[:: 2 + WORDS + 9] if word) == 301


def test_who_only_looks_changes_nothing(memory: int) -> None:
    row = Rows.shared(memory, WORDS, place=0).row("a")
    row.words[row.place] = 5
    assert sum(Rows.shared(memory, WORDS).row("a").places) == 5


@given(st.lists(st.text(max_size=5), unique=True, max_size=20))
def test_every_name_has_words_of_its_own(names: list[str]) -> None:
    """Also where there are more names than rows."""
    rows = Rows.private(WORDS, rows=8)
    for number, name in enumerate(names, 1):
        assert list(rows.row(name).words[NUMBER:]) == [0] * (WORDS + 1)
        rows.row(name).words[NUMBER] = number
    assert [rows.row(name).words[NUMBER] for name in names] == list(range(1, len(names) + 1))


def test_memory_takes_room_only_where_it_is_used(memory: int) -> None:
    assert os.fstat(memory).st_size == ROWS * (2 + WORDS + 9) * 8
    before = os.fstat(memory).st_blocks
    Rows.shared(memory, WORDS).row("a")
    assert os.fstat(memory).st_blocks - before <= 16

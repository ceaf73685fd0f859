"""What one worker learns of an upstream, the other workers of its node know at once.

The others are real processes, told by lines on their standard input what happens to them, and when:
the clock is the test's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from adapters.catalogue import Provider, Upstream
from proxy.health import Health, State, shared_memory, shared_rows
from tests.fakes.sharers import Sharer, sharers

P = Upstream(Provider("p", "openai", "http://p"), "gpt", None)

WORKER = """
import sys
from adapters.catalogue import Provider, Upstream
from proxy.health import Health, shared_rows

p = Upstream(Provider("p", "openai", "http://p"), "gpt", None)
told = []
health = Health(shared_rows(int(sys.argv[1]), int(sys.argv[2])), dice=lambda: 1.0, told=told.append)
places = []
print("here", flush=True)
for line in sys.stdin:
    order, *words = line.split()
    now, answer = float(words[0]), None
    if order == "enter":
        place = health.enter(p, now)
        answer = place and place.probe
        places += [place] if place else []
    elif order == "close":
        places.pop().close()
    elif order == "fail":
        health.failed(p, words[1], now, hint=float(words[2]) if words[2:] else None)
    elif order == "spoke":
        health.spoke(p)
    elif order == "served":
        health.served(p, now)
    elif order == "look":
        state, until = health.look(p, now)
        answer = f"{state.value} {until}"
    elif order == "told":
        answer = [getattr(each, "what", "alarm") for each in told]
    print(answer, flush=True)
"""


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = shared_memory(3)
    yield descriptor
    os.close(descriptor)


def workers(memory: int, count: int = 2, first: int = 0) -> AbstractContextManager[list[Sharer]]:
    """So many workers that serve the same upstream."""
    return sharers(WORKER, memory, count, first)


def test_failures_in_a_row_are_counted_over_all_workers(memory: int) -> None:
    watching = Health(shared_rows(memory))
    watching.serve([P])
    with workers(memory) as (one, two):
        for _ in range(2):
            one.ask("fail 1.0 server_error")
            two.ask("fail 1.0 server_error")
        assert one.ask("look 1.0") == "ready 1.0"
        two.ask("fail 2.0 server_error")
        assert one.ask("look 2.0") == two.ask("look 2.0") == "open 7.0"
        assert (one.ask("told 0"), two.ask("told 0")) == ("[]", "['opened']"), "one says it, once"
        (state,) = watching.states(2.0)
        assert (state.state, state.until, state.failures) == (State.OPEN, 7.0, 5)


def test_a_whole_answer_in_one_worker_ends_the_run_of_all(memory: int) -> None:
    with workers(memory) as (one, two):
        for _ in range(4):
            one.ask("fail 1.0 server_error")
        two.ask("served 1.0")
        one.ask("fail 1.0 server_error")
        assert one.ask("look 1.0") == "ready 1.0"


def test_one_worker_probes_and_all_hear_what_came_of_it(memory: int) -> None:
    with workers(memory) as (one, two):
        for _ in range(5):
            one.ask("fail 0.0 server_error")
        assert one.ask("enter 5.0") == "True"
        assert two.ask("look 5.0") == "probe 5.0"
        assert two.ask("enter 5.0") == "None"
        assert two.ask("look 5.0") == "open 6.0", "somebody probes it: no need to ask the kernel"
        one.ask("fail 5.5 server_error")
        assert two.ask("look 5.5") == "open 15.5"
        assert two.ask("enter 15.5") == "True"
        assert one.ask("enter 15.5") == "None"
        two.ask("spoke 16.0")
        assert one.ask("look 16.0") == "ready 16.0"
        assert one.ask("enter 16.0") == "False"


def test_a_probe_comes_back_when_its_worker_is_killed(memory: int) -> None:
    with workers(memory) as (one, two):
        for _ in range(5):
            one.ask("fail 0.0 server_error")
        assert one.ask("enter 5.0") == "True"
        assert two.ask("enter 5.0") == "None"
        one.kill()
        assert two.ask("enter 5.2") == "True"


def test_a_probe_that_was_cancelled_is_another_worker_s(memory: int) -> None:
    with workers(memory) as (one, two):
        for _ in range(5):
            one.ask("fail 0.0 server_error")
        assert one.ask("enter 5.0") == "True"
        one.ask("close 5.1")
        assert two.ask("enter 5.1") == "True"
        assert one.ask("enter 5.1") == "None"


def test_a_worker_that_comes_later_knows_what_all_know(memory: int) -> None:
    with workers(memory, 1) as (one,):
        one.ask("fail 1.0 rate_limited 30")
    with workers(memory, 1) as (two,):
        assert two.ask("look 2.0") == "resting 31.0"


def test_a_limit_is_the_node_s_and_the_dead_have_no_places(memory: int) -> None:
    watching = Health(shared_rows(memory))
    watching.serve([P])
    with workers(memory) as (one, two):
        for _ in range(3):
            assert one.ask("enter 1.0") == "False"
        assert two.ask("enter 1.0") == "False"
        one.ask("fail 1.0 rate_limited")
        assert two.ask("enter 1.0") == "None"
        assert two.ask("look 1.0").startswith("full")
        assert watching.in_flight(P) == 4
        one.kill()
        with workers(memory, 1) as (successor,):
            assert watching.in_flight(P) == 1
            assert successor.ask("enter 1.0") == "False"
            assert two.ask("enter 1.0") == "False"


def test_an_alarm_is_loud_in_one_worker(memory: int) -> None:
    with workers(memory) as (one, two):
        one.ask("fail 1.0 auth")
        two.ask("fail 1.0 auth")
        assert one.ask("told 0") == "['alarm', 'opened']"
        assert two.ask("told 0") == "['alarm']"

"""What the regression guard concludes from counts, and the clock on which it counts."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import instructions
from benchmarks.instructions import (
    BAND_PERCENT,
    SCENARIOS,
    CannotCompare,
    Comparison,
    Figure,
    figures,
    least,
)
from benchmarks.still_clock import STEP_SECONDS, StillClock

COUNTS = {
    "plain": 1_500.0,
    "keyed": 4_000.0,
    "translated": 2_000.0,
    "short stream": 2_300.0,
    "long stream": 5_900.0,
    "short translated stream": 3_000.0,
    "long translated stream": 12_000.0,
}


def test_an_event_is_what_a_long_stream_takes_more_than_a_short_one() -> None:
    found = figures(COUNTS)
    assert found["an event of a stream"] == 20
    assert found["an event of a translated stream"] == 50
    assert found["a stream of 20 events"] == 2_300


def test_every_scenario_is_compared() -> None:
    assert COUNTS.keys() == {scenario.name for scenario in SCENARIOS}
    for name in COUNTS:
        more = figures(COUNTS | {name: COUNTS[name] * 2})
        assert any(more[figure] > before for figure, before in figures(COUNTS).items())


def test_the_least_of_the_rounds_counts_and_the_rest_is_noise() -> None:
    rounds = [{name: count * part for name, count in COUNTS.items()} for part in (1.02, 1, 1.01)]
    plain = least(rounds)[0]
    assert (plain.name, plain.instructions) == ("a plain request", 1_500)
    assert plain.spread_percent == pytest.approx(2)


@given(st.floats(1, 1e9), st.floats(-99, 200))
def test_only_growth_beyond_the_band_fails(there: float, percent: float) -> None:
    here = Figure("a plain request", there * (1 + percent / 100), 0.1)
    comparison = Comparison(here, Figure("a plain request", there, 0.1))
    assert comparison.percent == pytest.approx(percent, abs=1e-6)
    if abs(percent - BAND_PERCENT) > 1e-3:
        assert comparison.exceeded == (percent > BAND_PERCENT)
        assert ("!" in str(comparison)) == comparison.exceeded


@pytest.mark.parametrize(("again", "exceeded"), [(1.0, False), (1.2, True)])
def test_what_seems_to_have_grown_is_counted_once_more(again: float, *, exceeded: bool) -> None:
    def counts(part: float) -> list[dict[str, float]]:
        return [{name: count * part for name, count in COUNTS.items()}]

    runs = [(counts(1.2), counts(1)), (counts(again), counts(1.1))]
    compared = instructions.compare(lambda: runs.pop(0))
    assert {comparison.exceeded for comparison in compared} == {exceeded}
    assert compared[0].percent == pytest.approx((again - 1) * 100)
    assert not runs


def test_what_has_not_grown_is_counted_once() -> None:
    runs = [([COUNTS], [COUNTS])]
    compared = instructions.compare(lambda: runs.pop(0))
    assert not any(comparison.exceeded for comparison in compared)


def test_a_request_with_a_key_is_another_one_each_time() -> None:
    keyed = next(scenario for scenario in SCENARIOS if scenario.keyed)
    first, second = keyed.request("sk", 1), keyed.request("sk", 2)
    assert b"idempotency-key: benchmark-1\r\n" in first
    assert first != second
    plain = SCENARIOS[0]
    assert plain.request("sk", 1) == plain.request("sk", 2)


def test_what_is_accepted_is_compared_with_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = tmp_path / "instructions.json"
    monkeypatch.setattr(instructions, "_BASELINE", baseline)
    told = {"describe": "", "rev-parse": "0123abc"}

    def git(*arguments: str) -> str:
        if not told[arguments[0]]:
            raise CannotCompare("no tag")
        return told[arguments[0]]

    monkeypatch.setattr(instructions, "_git", git)
    instructions.accept([Figure("a plain request", 1_500_000.4, 0.1)])
    assert json.loads(baseline.read_text())["instructions"] == {"a plain request": 1_500_000}
    assert instructions.last_accepted() == "0123abc"
    told["describe"] = "v1.0.0"
    assert instructions.last_accepted() == "v1.0.0"


def test_an_answer_that_waits_for_the_clock_has_it_moved() -> None:
    client, gateway = socket.socketpair()
    steps: list[bytes] = []

    def move_on() -> None:
        steps.append(b"step")
        if len(steps) == 3:
            gateway.send(b"answer")

    with client, gateway:
        instructions.await_answer(client, move_on, stuck_seconds=0)
        assert len(steps) == 3
        instructions.await_answer(client, move_on, stuck_seconds=0)
        assert len(steps) == 3  # what is answered at once needs no step


def test_a_machine_without_valgrind_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["instructions", "--against", "HEAD"])
    assert instructions.main() == 3
    assert "valgrind is not installed" in capsys.readouterr().err


def test_a_clock_that_stands_still_moves_in_steps() -> None:
    """A timer of a moment passes, one of a while waits for the step that reaches it."""
    clock = StillClock()
    heard: list[str] = []

    async def wait(seconds: float, name: str) -> None:
        await trio.sleep(seconds)
        heard.append(name)

    async def main() -> None:
        def moved(_number: int, _frame: object) -> None:
            clock.step()

        before = signal.signal(signal.SIGUSR1, moved)
        try:
            clock.step()  # it stands
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, 0.002, "moment")
                nursery.start_soon(wait, STEP_SECONDS / 2, "half a step")
                nursery.start_soon(wait, STEP_SECONDS * 1.5, "two steps")
                for expected in (["moment"], ["half a step"], ["two steps"]):
                    await trio.testing.wait_all_tasks_blocked()
                    while not heard:
                        await trio.lowlevel.checkpoint()
                    await trio.testing.wait_all_tasks_blocked()
                    assert heard == expected
                    heard.clear()
                    signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, before)

    trio.run(main, clock=clock)


def test_a_clock_that_runs_again_goes_on_where_it_stood() -> None:
    clock = StillClock()
    clock.step()
    stood = clock.current_time()
    assert clock.current_time() == stood
    clock.step()
    clock.deadline_to_sleep_time(stood + STEP_SECONDS)
    assert clock.current_time() == stood + STEP_SECONDS
    clock.run()
    assert stood + STEP_SECONDS <= clock.current_time() < stood + STEP_SECONDS + 60

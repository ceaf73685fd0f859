"""Money as counters, from which ratios can be made; what ledger and journal say of themselves."""

from __future__ import annotations

import dataclasses
import re
import threading
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from ledger.journal import Journal
from ledger.server import LedgerStatistics
from ledger.store import EventStatus
from proxy.memory import HELD_BYTES_MIN, Memory
from proxy.metrics import ENDINGS, Metrics
from tests.fakes import provider
from tests.fakes.gateway import running
from tests.fakes.provider import Script, ScriptedProvider

CHAT = "/v1/chat/completions"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
ASK = {"model": "gpt", "messages": [{"role": "user", "content": "Hi"}]}
LABELS = {"model": "gpt", "provider": "p"}
AMOUNTS = st.integers(0, 10**12)


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """A sample, 0 where it was never counted."""
    return metrics.registry.get_sample_value(name, labels) or 0.0


def amount(metrics: Metrics, name: str, **labels: str) -> int:
    """A sum of dollars in nano-dollars."""
    return round(value(metrics, name, **labels) * 10**9)


@given(st.lists(st.tuples(AMOUNTS, AMOUNTS, AMOUNTS), max_size=5))
def test_what_was_settled_adds_up(settled: list[tuple[int, int, int]]) -> None:
    metrics = Metrics()
    seen = metrics.exchanges["openai", "gpt", "p", 200]
    for reserved, charge, cost in settled:
        seen.settle(reserved, charge, cost)
    sums = {
        "farebox_settled_reserved_usd_total": sum(reserved for reserved, _, _ in settled),
        "farebox_charged_usd_total": sum(charge for _, charge, _ in settled),
        "farebox_provider_cost_usd_total": sum(cost for _, _, cost in settled),
        "farebox_overrun_usd_total": sum(max(0, c - r) for r, c, _ in settled),
    }
    for name, expected in sums.items():
        assert amount(metrics, name, **LABELS) == pytest.approx(expected, abs=5)
    unbilled = sum(max(0, cost - charge) for _, charge, cost in settled)
    found = amount(metrics, "farebox_unbilled_provider_cost_usd_total", provider="p")
    assert found == pytest.approx(unbilled, abs=5)


async def test_drift_is_a_quotient_of_counters(autojump_clock: MockClock) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        assert (await world.connect().call(CHAT, ASK)).status == 200
        (event,) = await world.flushed()
        metrics = world.gateway.metrics
        assert amount(metrics, "farebox_settled_reserved_usd_total", **LABELS) == event.reserved
        assert amount(metrics, "farebox_charged_usd_total", **LABELS) == event.charge
        assert event.reserved > event.charge
        assert amount(metrics, "farebox_overrun_usd_total", **LABELS) == 0


async def test_more_than_was_reserved_is_an_overrun(autojump_clock: MockClock) -> None:
    """A provider that bills half as much again as it was asked for at most."""
    answer = provider.completion(output_tokens=150)
    async with running({"p": ScriptedProvider(answer)}) as world:
        assert (await world.connect().call(CHAT, ASK)).status == 200
        (event,) = await world.flushed()
        assert event.charge > event.reserved
        over = amount(world.gateway.metrics, "farebox_overrun_usd_total", **LABELS)
        assert over == event.charge - event.reserved


async def test_what_is_implausible_is_cut_and_left_unbilled(autojump_clock: MockClock) -> None:
    answer = provider.completion(output_tokens=100_000)
    async with running({"p": ScriptedProvider(answer)}) as world:
        assert (await world.connect().call(CHAT, ASK)).status == 200
        (event,) = await world.flushed()
        metrics = world.gateway.metrics
        assert event.charge == event.reserved
        assert amount(metrics, "farebox_overrun_usd_total", **LABELS) == 0
        unbilled = amount(metrics, "farebox_unbilled_provider_cost_usd_total", provider="p")
        assert unbilled == event.cost - event.charge > 0


# -- snapshots ------------------------------------------------------------------------------------


def ledger_state(**facts: object) -> LedgerStatistics:
    names = {field.name for field in dataclasses.fields(LedgerStatistics)} - {"halted"}
    state = LedgerStatistics(**dict.fromkeys(names, False), halted=None)
    return dataclasses.replace(state, **{"connected": True, **facts})  # type: ignore[arg-type] # its fields


@pytest.mark.parametrize(
    ("facts", "name", "shown"),
    [
        ({"open_reservations": 3}, "farebox_ledger_open_reservations", 3),
        ({"oldest_reservation_seconds": 2.5}, "farebox_ledger_oldest_reservation_seconds", 2.5),
        ({"leased_nusd": 5 * 10**8}, "farebox_ledger_leased_usd", 0.5),
        ({"reserved_nusd": 10**8}, "farebox_ledger_reserved_usd", 0.1),
        ({"pending_events": 4}, "farebox_ledger_pending_events", 4),
        ({"oldest_event_seconds": 7.5}, "farebox_ledger_oldest_event_seconds", 7.5),
        ({"waiting": 2}, "farebox_ledger_waiting_reservations", 2),
        ({"sessions": 2}, "farebox_ledger_sessions_total", 2),
        ({"refused_settlements": 1}, "farebox_ledger_refused_settlements_total", 1),
        ({"quarantined": 1}, "farebox_ledger_quarantined_events_total", 1),
        ({"workers": 4}, "farebox_ledger_workers", 4),
        ({"orphaned": 2}, "farebox_ledger_orphaned_reservations_total", 2),
        ({"orphaned_nusd": 3 * 10**9}, "farebox_ledger_orphaned_usd_total", 3),
        ({"fleet_connected": None}, "farebox_ledger_fleet_disconnected", 0),
        ({"fleet_connected": True}, "farebox_ledger_fleet_disconnected", 0),
        ({"fleet_connected": False}, "farebox_ledger_fleet_disconnected", 1),
        ({}, "farebox_ledger_halted", 0),
        ({"halted": "the books disagree"}, "farebox_ledger_halted", 1),
        ({}, "farebox_ledger_disconnected", 0),
        ({"connected": False}, "farebox_ledger_disconnected", 1),
    ],
)
def test_the_ledger_says_how_it_is(facts: dict[str, object], name: str, shown: float) -> None:
    metrics = Metrics()
    metrics.watch_ledger(lambda: ledger_state(**facts))
    assert metrics.registry.get_sample_value(name) == shown


def test_the_journal_says_how_it_is(tmp_path: Path) -> None:
    journal, _ = Journal.recover(tmp_path, boot_id="")
    metrics = Metrics()
    metrics.watch_journal(journal.statistics)
    figures = {
        sample.name: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name.startswith("farebox_journal_")
    }
    journal.close()
    assert figures.keys() == {
        "farebox_journal_syncs_total",
        "farebox_journal_sync_seconds_total",
        "farebox_journal_unsynced_bytes",
        "farebox_journal_room_bytes",
        "farebox_journal_retained_segments",
        "farebox_journal_rescues_total",
        "farebox_journal_failed",
    }
    assert figures["farebox_journal_room_bytes"] > 0
    assert figures["farebox_journal_failed"] == 0


async def test_a_state_is_asked_for_in_the_thread_that_it_belongs_to() -> None:
    """A scrape is rendered in another thread, while this one changes what is looked at."""
    asked: list[int] = []

    def statistics() -> LedgerStatistics:
        asked.append(threading.get_ident())
        return ledger_state()

    metrics = Metrics()
    metrics.watch_ledger(statistics)
    await trio.to_thread.run_sync(lambda: list(metrics.registry.collect()))
    assert set(asked) == {threading.get_ident()}


def test_what_only_grows_is_a_counter_and_the_rest_are_gauges(tmp_path: Path) -> None:
    """Sums over processes depend on it."""
    journal, _ = Journal.recover(tmp_path, boot_id="")
    metrics = Metrics()
    metrics.watch_ledger(ledger_state)
    metrics.watch_journal(journal.statistics)
    families = list(metrics.registry.collect())
    journal.close()
    for family in families:
        if family.name.startswith(("farebox_ledger_", "farebox_journal_")):
            grows = any(sample.name.endswith("_total") for sample in family.samples)
            assert family.type in ({"counter"} if grows else {"gauge", "histogram"}), family


def test_every_metric_is_documented_and_nothing_else(tmp_path: Path) -> None:
    journal, _ = Journal.recover(tmp_path, boot_id="")
    metrics = Metrics()
    metrics.watch_ledger(ledger_state)
    metrics.watch_journal(journal.statistics)
    metrics.watch_memory(Memory(HELD_BYTES_MIN))
    metrics.watch_upstreams(list)
    shown = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in metrics.registry.collect()
    }
    journal.close()
    assert set(re.findall(r"`(farebox_[a-z_]+)`", PAGE.read_text())) == shown


# -- how reservations end -------------------------------------------------------------------------


def endings(metrics: Metrics) -> dict[str, int]:
    """How many there are of each ending that there is."""
    counted = {
        status: sum(
            int(sample.value)
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name == "farebox_settlements_total" and sample.labels["status"] == status
        )
        for status in ENDINGS
    }
    return {status: number for status, number in counted.items() if number}


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (provider.completion(), "settled"),
        (provider.completion(output_tokens=150), "settled"),
        (provider.completion(output_tokens=100_000), "review"),
        (provider.error(400, "no"), "voided"),
    ],
    ids=["settled", "overrun", "review", "voided"],
)
async def test_each_reservation_is_counted_by_how_it_ended(
    autojump_clock: MockClock, script: Script, status: str
) -> None:
    async with running({"p": ScriptedProvider(script)}) as world:
        await world.connect().call(CHAT, ASK)
        (event,) = await world.flushed()
        await wait_all_tasks_blocked()  # it is counted just after its answer has left
        assert (event.status == EventStatus.REVIEW) == (status == "review")
        assert endings(world.gateway.metrics) == {status: 1}


async def test_what_is_not_reserved_has_no_ending(autojump_clock: MockClock) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        await world.connect().call(CHAT, ASK | {"model": "unknown"})
        await world.connect().call(CHAT, b"{")
        await wait_all_tasks_blocked()
        assert endings(world.gateway.metrics) == {}


async def test_a_stream_that_breaks_is_counted_as_cancelled(autojump_clock: MockClock) -> None:
    script = [provider.STREAM_HEAD, provider.delta("Hello"), None]
    async with running({"p": ScriptedProvider(script)}) as world:
        await world.connect().call(CHAT, ASK | {"stream": True})
        await wait_all_tasks_blocked()
        assert endings(world.gateway.metrics) == {"cancelled": 1}

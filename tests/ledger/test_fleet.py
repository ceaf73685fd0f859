"""A fleet's limits without a server: nodes against the model of what Valkey does, virtual time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.draws import EXPIRY_SECONDS, LIMIT_MAX, RENEW_SECONDS, UNITS, Draw, DrawReply
from ledger.fleet import DRAWS_MAX, NODES, POLL_SECONDS, FleetLimiter
from ledger.limits import (
    WINDOW_SECONDS,
    Denied,
    Limiter,
    LimiterPort,
    LimitRef,
    LimitState,
    NotYet,
)
from ledger.rights import CHUNK_PARTS, CHUNK_SECONDS
from tests.fakes.valkey import ModelValkey, Node, Request

RPM = LimitRef("account:1", "rpm", 60)
TPM = LimitRef("account:1", "tpm", 6000)
SLOTS = LimitRef("account:1", "concurrent", 4)
ALL = (RPM, TPM, SLOTS)


class Fleet:
    """Some nodes, one model, one virtual clock."""

    def __init__(self, nodes: int = 2, *, processes: int = 1) -> None:
        self.valkey = ModelValkey()
        self.now = 1_000.0
        self.up = True
        self.draws: list[Draw] = []
        self.nodes = [Node(f"node {number}", processes) for number in range(nodes)]
        for _ in range(2):  # the second time each hears of all the others
            self.pass_time(RENEW_SECONDS)

    def draw(self, draw: Draw) -> DrawReply:
        self.draws.append(draw)
        return self.valkey.draw(int(self.now * 1e6), draw)

    def lanes(self) -> None:
        for node in self.nodes:
            node.lane(self.now, self.draw if self.up else None)

    def pass_time(self, seconds: float) -> None:
        """In steps of what the lane's poll takes."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + POLL_SECONDS, end)
            self.lanes()

    def request(self, node: int, refs: Sequence[LimitRef], tokens: int = 0) -> Request:
        request = self.nodes[node].request(self.now, tuple(refs), tokens)
        self.nodes[node].lane(self.now, self.draw if self.up else None)
        return request

    def admitted(
        self, node: int, refs: Sequence[LimitRef], tokens: int = 0
    ) -> tuple[LimitState, ...]:
        outcome = self.request(node, refs, tokens).outcome
        assert outcome is not None
        assert not isinstance(outcome, Denied)
        return outcome

    def denied(self, node: int, refs: Sequence[LimitRef], tokens: int = 0) -> Denied:
        outcome = self.request(node, refs, tokens).outcome
        assert isinstance(outcome, Denied)
        return outcome

    def end(self, node: int, used: int | None = None) -> None:
        self.nodes[node].end(self.nodes[node].open[0], used)

    def level(self, ref: LimitRef) -> int:
        """Rights that the whole fleet has used or holds, rounded up."""
        level, at = self.valkey.levels.get((ref.scope, ref.kind), (0, 0))
        return -(-max(level - int((self.now * 1e6 - at) * ref.limit), 0) // UNITS)


@pytest.mark.parametrize(("port", "connected"), [(Limiter(), None), (FleetLimiter("n"), False)])
def test_both_limiters_are_what_the_engine_needs(port: LimiterPort, connected: bool | None) -> None:
    assert port.fleet_connected is connected
    assert not port.wants_draw
    assert port.admit(0, [], 0) == ()


def test_one_node_asks_nobody() -> None:
    limiter = Limiter()
    states = limiter.admit(0, ALL, 10)
    assert isinstance(states, tuple)
    assert limiter.next_draws(0) == []


# -- rights ---------------------------------------------------------------------------------------


def test_a_request_waits_until_rights_were_drawn_and_consumes_nothing_before() -> None:
    limiter = FleetLimiter("node")
    assert isinstance(limiter.admit(0, ALL, 100), NotYet)
    wanted = [limiter.wants_draw]
    draws = limiter.next_draws(0)
    wanted.append(limiter.wants_draw)
    assert wanted == [True, False]
    assert [draw.tag for draw in draws] == [NODES, "account:1"]
    assert [(ask.kind, ask.least, ask.most) for ask in draws[1].rights] == [
        ("rpm", 1, 1),
        ("tpm", 100, 100),
    ]
    assert [(ask.least, ask.most) for ask in draws[1].slots] == [(1, 1)]
    valkey = ModelValkey()
    limiter.drawn(0, draws, [valkey.draw(10**15, draw) for draw in draws])
    states = limiter.admit(0, ALL, 100)
    assert states == (
        LimitState("rpm", 60, 59, 1.0),
        LimitState("tpm", 6000, 5900, 1.0),
        LimitState("concurrent", 4, 3, 0.0),
    )


def test_two_nodes_share_one_limit() -> None:
    fleet = Fleet()
    outcomes = [fleet.request(number % 2, [RPM]).outcome for number in range(100)]
    assert sum(not isinstance(outcome, Denied) for outcome in outcomes) == 60
    refusal = fleet.denied(0, [RPM])
    assert (refusal.limit, refusal.retry_after, refusal.never_fits) == (RPM, 1.0, False)
    fleet.pass_time(1)
    assert fleet.admitted(1, [RPM])[0].remaining == 0


def test_headers_say_what_valkey_last_said_minus_what_was_used_here() -> None:
    fleet = Fleet()
    for left in (59, 58):
        assert fleet.admitted(0, [RPM])[0].remaining == left
    assert fleet.admitted(1, [RPM])[0].remaining == 57
    big = LimitRef("account:2", "rpm", 6000)
    for _ in range(100):  # chunks of ten and more by now
        remaining = fleet.admitted(0, [big])[0].remaining
    assert remaining == 5900


def test_the_limit_that_refuses_keeps_the_others_untouched() -> None:
    fleet = Fleet()
    for _ in range(4):
        fleet.admitted(0, ALL, 100)
    level = fleet.level(RPM), fleet.level(TPM)
    assert fleet.denied(1, ALL, 100).limit == SLOTS
    assert (fleet.level(RPM), fleet.level(TPM)) == level


def test_what_cannot_fit_is_not_asked_for() -> None:
    fleet = Fleet()
    before = len(fleet.draws)
    refusal = fleet.denied(0, ALL, 6001)
    assert refusal.never_fits
    assert refusal.limit == TPM
    assert len(fleet.draws) == before


def test_a_full_scope_is_asked_about_once_a_second() -> None:
    fleet = Fleet()
    slow = LimitRef("account:1", "rpm", 1)
    fleet.admitted(0, [slow])
    before = len(fleet.draws)
    for _ in range(1000):
        fleet.denied(0, [slow])
        fleet.now += 0.01
    assert len(fleet.draws) - before <= 11


def test_chunks_grow_with_the_rate_up_to_a_hundredth_of_the_limit() -> None:
    fleet = Fleet(nodes=1)
    big = LimitRef("account:1", "rpm", 60_000)
    largest = 0
    for _ in range(5000):
        fleet.admitted(0, [big])
        largest = max(largest, fleet.nodes[0].limiter.statistics().rights_held)
        fleet.now += 0.001
    assert 500 <= largest < 60_000 // CHUNK_PARTS
    assert len(fleet.draws) < 60


def test_small_limits_have_chunks_of_one() -> None:
    fleet = Fleet(nodes=1)
    for _ in range(50):
        fleet.admitted(0, [RPM])
        assert fleet.nodes[0].limiter.statistics().rights_held == 0


def test_an_unused_chunk_goes_back_after_a_second() -> None:
    fleet = Fleet(nodes=1)
    big = LimitRef("account:1", "rpm", 6000)
    for _ in range(20):
        fleet.admitted(0, [big])
    held = fleet.nodes[0].limiter.statistics().rights_held
    assert held > 0
    assert fleet.level(big) == 20 + held
    fleet.pass_time(CHUNK_SECONDS + POLL_SECONDS)
    assert fleet.nodes[0].limiter.statistics().rights_held == 0
    assert fleet.level(big) == 0


def test_an_expired_chunk_is_not_used_even_if_the_lane_is_late() -> None:
    fleet = Fleet(nodes=1)
    big = LimitRef("account:1", "rpm", 6000)
    for _ in range(20):
        fleet.admitted(0, [big])
    assert fleet.nodes[0].limiter.statistics().rights_held > 0
    fleet.now += CHUNK_SECONDS
    assert isinstance(fleet.nodes[0].limiter.admit(fleet.now, [big], 0), NotYet)


def test_tokens_not_used_serve_this_node_and_then_the_others() -> None:
    fleet = Fleet()
    fleet.admitted(0, [TPM], 6000)
    fleet.denied(1, [TPM], 3000)
    fleet.end(0, used=1000)
    assert fleet.admitted(0, [TPM], 2000)[0].remaining == 3000
    fleet.pass_time(CHUNK_SECONDS + POLL_SECONDS)
    fleet.admitted(1, [TPM], 3000)


def test_tokens_used_beyond_the_estimate_are_owed_by_the_fleet() -> None:
    fleet = Fleet()
    fleet.admitted(0, [TPM], 1000)
    fleet.end(0, used=8000)
    fleet.lanes()
    assert fleet.level(TPM) == 8000
    refusal = fleet.denied(1, [TPM], 500)
    assert refusal.retry_after == pytest.approx(25.0)
    assert refusal.states[0].remaining == 0


def test_undo_leaves_no_trace() -> None:
    fleet = Fleet()
    fleet.admitted(0, ALL, 100)
    request = fleet.nodes[0].open.pop()
    fleet.nodes[0].limiter.undo(request.refs, request.tokens)
    fleet.pass_time(CHUNK_SECONDS + POLL_SECONDS)
    assert (fleet.level(RPM), fleet.level(TPM)) == (0, 0)
    assert fleet.valkey.slots_held("account:1", int(fleet.now * 1e6)) == 0


def test_nobody_overtakes_who_waits() -> None:
    fleet = Fleet(nodes=1)
    fleet.admitted(0, [TPM], 1000)
    fleet.end(0, used=500)  # so small ones would find enough here
    node = fleet.nodes[0]
    large = node.request(fleet.now, (TPM,), 2000)
    before = node.request(fleet.now, (TPM,), 10)
    draws = node.limiter.next_draws(fleet.now)
    during = node.request(fleet.now, (TPM,), 10)
    assert node.waiting == [large, before, during]
    node.limiter.drawn(fleet.now, draws, [fleet.draw(draw) for draw in draws])
    node.retry(fleet.now)
    assert node.open[:2] == [large, before]


def test_who_waits_is_tried_again_even_if_what_it_lacked_has_come_back_meanwhile() -> None:
    fleet = Fleet(nodes=1)
    fleet.admitted(0, [TPM], 1000)
    node = fleet.nodes[0]
    waiting = node.request(fleet.now, (TPM,), 500)
    fleet.end(0, used=0)
    node.lane(fleet.now, fleet.draw)
    assert node.open == [waiting]
    fleet.admitted(0, [TPM], 500)


def test_those_who_wait_are_drawn_for_together() -> None:
    node = Node("node")
    for _ in range(20):
        node.request(0, (RPM,))
    (draw,) = [draw for draw in node.limiter.next_draws(0) if draw.tag != NODES]
    assert [(ask.least, ask.most) for ask in draw.rights] == [(1, 20)]


def test_a_large_one_that_must_wait_does_not_hold_up_small_ones() -> None:
    fleet = Fleet(nodes=1)
    fleet.admitted(0, [TPM], 5000)
    node = fleet.nodes[0]
    large = node.request(fleet.now, (TPM,), 2000)
    small = node.request(fleet.now, (TPM,), 500)
    node.lane(fleet.now, fleet.draw)
    assert isinstance(large.outcome, Denied)
    assert not isinstance(small.outcome, Denied)


def test_scopes_of_one_account_are_asked_about_in_one_step() -> None:
    limiter = FleetLimiter("node")
    model = LimitRef("account:1/model:3", "rpm", 10)
    limiter.admit(0, [RPM, model, SLOTS], 0)
    (draw,) = [draw for draw in limiter.next_draws(0) if draw.tag != NODES]
    assert [ask.scope for ask in draw.rights] == ["account:1", "account:1/model:3"]


def test_a_batch_is_bounded_and_the_rest_follows() -> None:
    limiter = FleetLimiter("node")
    refs = [LimitRef(f"account:{number}", "rpm", 10) for number in range(DRAWS_MAX + 10)]
    for ref in refs:
        limiter.admit(0, [ref], 0)
    valkey = ModelValkey()
    for size in (DRAWS_MAX + 1, 10):
        draws = limiter.next_draws(0)
        assert len(draws) == size
        limiter.drawn(0, draws, [valkey.draw(10**15, draw) for draw in draws])
        for ref in refs:
            limiter.admit(0, [ref], 0)


def test_idle_scopes_are_forgotten() -> None:
    fleet = Fleet(nodes=1)
    for number in range(200):
        refs = [LimitRef(f"account:{number}", ref.kind, ref.limit) for ref in ALL]
        fleet.admitted(0, refs, 10)
        fleet.end(0, used=20)
    fleet.pass_time(WINDOW_SECONDS + 2)
    assert fleet.nodes[0].limiter.statistics().tags == 0
    fleet.admitted(0, [SLOTS])
    fleet.end(0)
    fleet.pass_time(2)
    assert fleet.nodes[0].limiter.statistics().tags == 0


def test_limits_beyond_what_valkey_counts_exactly_are_capped() -> None:
    fleet = Fleet(nodes=1)
    huge = LimitRef("account:1", "tpm", 10**12)
    assert fleet.admitted(0, [huge], LIMIT_MAX)[0].remaining == 0
    assert fleet.denied(0, [huge], LIMIT_MAX).retry_after == pytest.approx(WINDOW_SECONDS)


# -- slots ----------------------------------------------------------------------------------------


def test_slots_are_drawn_in_blocks_and_given_back_after_a_second_of_rest() -> None:
    fleet = Fleet()
    wide = LimitRef("account:1", "concurrent", 64)
    fleet.admitted(0, [wide])
    assert fleet.nodes[0].limiter.statistics().slots_held == 4
    fleet.pass_time(3)
    assert fleet.nodes[0].limiter.statistics().slots_held == 1
    fleet.end(0)
    fleet.pass_time(3)
    assert fleet.valkey.slots_held("account:1", int(fleet.now * 1e6)) == 0


def test_a_single_slot_is_free_for_others_at_once() -> None:
    fleet = Fleet()
    one = LimitRef("account:1", "concurrent", 1)
    fleet.admitted(0, [one])
    fleet.denied(1, [one])
    fleet.end(0)
    assert fleet.nodes[0].limiter.wants_draw
    fleet.lanes()
    fleet.now += 0.1
    fleet.admitted(1, [one])


def test_slots_stay_while_their_node_renews_them() -> None:
    fleet = Fleet()
    for _ in range(4):
        fleet.admitted(0, [SLOTS])
    for _ in range(3 * int(EXPIRY_SECONDS)):
        fleet.pass_time(1)
        fleet.denied(1, [SLOTS])


def test_a_dead_nodes_slots_are_free_within_the_stated_time() -> None:
    fleet = Fleet()
    for _ in range(4):
        fleet.admitted(0, [SLOTS])
    dead = fleet.nodes.pop(0)
    died_at = fleet.now
    fleet.pass_time(EXPIRY_SECONDS - 1)
    fleet.denied(0, [SLOTS])
    fleet.pass_time(1)
    fleet.admitted(0, [SLOTS])
    assert fleet.now - died_at <= EXPIRY_SECONDS
    assert dead.limiter.statistics().slots_open == 4


def test_a_node_that_slept_does_not_use_slots_it_has_lost() -> None:
    fleet = Fleet()
    for _ in range(4):
        fleet.admitted(0, [SLOTS])
    sleeper = fleet.nodes.pop(0)
    fleet.pass_time(EXPIRY_SECONDS + 1)
    for _ in range(4):
        fleet.admitted(0, [SLOTS])
    sleeper.end(sleeper.open[0])
    assert isinstance(sleeper.limiter.admit(fleet.now, [SLOTS], 0), NotYet)


# -- without Valkey -------------------------------------------------------------------------------


def test_the_nodes_know_how_many_they_are() -> None:
    fleet = Fleet(nodes=3)
    assert [node.limiter.statistics().nodes for node in fleet.nodes] == [3, 3, 3]
    fleet.nodes.pop()
    fleet.pass_time(EXPIRY_SECONDS + RENEW_SECONDS + 1)
    assert [node.limiter.statistics().nodes for node in fleet.nodes] == [2, 2]


@pytest.mark.parametrize("processes", [1, 2, 3, 16, 17])
def test_the_processes_of_a_node_are_one_node(processes: int) -> None:
    fleet = Fleet(nodes=2 * processes, processes=processes)
    assert {node.limiter.statistics().nodes for node in fleet.nodes} == {2}


def test_alone_each_node_applies_its_share() -> None:
    fleet = Fleet(nodes=3)
    fleet.up = False
    for node in range(3):
        fleet.admitted(node, [RPM, SLOTS])  # waits for Valkey, which does not answer
        assert fleet.nodes[node].limiter.fleet_connected is False
        assert [fleet.admitted(node, [RPM])[0].remaining for _ in range(19)][-1] == 0
        refusal = fleet.denied(node, [RPM])
        assert refusal.retry_after == pytest.approx(3.0)
        assert not refusal.never_fits
        assert fleet.denied(node, [SLOTS]).limit == SLOTS


def test_a_limit_smaller_than_the_fleet_still_lets_each_node_serve_one() -> None:
    fleet = Fleet(nodes=3)
    fleet.up = False
    two, one = LimitRef("account:1", "rpm", 2), LimitRef("account:1", "concurrent", 1)
    fleet.admitted(0, [two, one])
    fleet.end(0)
    assert fleet.denied(0, [two, one]).retry_after == pytest.approx(90.0)
    fleet.pass_time(90)
    fleet.admitted(0, [two, one])


def test_a_request_larger_than_the_share_goes_when_the_share_is_whole() -> None:
    fleet = Fleet()
    fleet.up = False
    fleet.admitted(0, [TPM], 1000)
    refusal = fleet.denied(0, [TPM], 5000)
    assert refusal.retry_after == pytest.approx(20.0)
    fleet.pass_time(refusal.retry_after)
    fleet.admitted(0, [TPM], 5000)
    assert fleet.denied(0, [TPM], 3000).retry_after == pytest.approx(100.0)


def test_going_alone_counts_what_valkey_last_said() -> None:
    fleet = Fleet()
    for _ in range(60):
        fleet.admitted(0, [RPM])
    fleet.up = False
    fleet.now += RENEW_SECONDS
    fleet.lanes()
    assert fleet.nodes[0].limiter.fleet_connected is False
    # 60 used, 10 have flowed off, of the other 50 a half is this node's; its share is 30.
    assert fleet.admitted(0, [RPM])[0].remaining == 4


def test_back_with_valkey_what_was_used_alone_is_told() -> None:
    fleet = Fleet()
    fleet.up = False
    for _ in range(10):
        fleet.admitted(0, [RPM, SLOTS])
        fleet.end(0)
    fleet.admitted(0, [SLOTS])
    fleet.up = True
    fleet.pass_time(2)
    assert fleet.nodes[0].limiter.fleet_connected
    assert fleet.level(RPM) in (8, 9)
    assert fleet.valkey.slots_held("account:1", int(fleet.now * 1e6)) == 1
    assert fleet.admitted(1, [RPM, SLOTS])[1].remaining == 2


def test_valkey_is_tried_once_a_second_and_nobody_waits_for_that() -> None:
    fleet = Fleet(nodes=1)
    fleet.up = False
    limiter = fleet.nodes[0].limiter
    fleet.admitted(0, [RPM])
    assert limiter.next_draws(fleet.now) == []
    (probe,) = limiter.next_draws(fleet.now + 1)
    assert probe.tag == NODES
    assert not isinstance(limiter.admit(fleet.now + 1, [RPM], 0), NotYet)


def test_a_debt_that_may_not_have_arrived_is_told_again() -> None:
    fleet = Fleet(nodes=1)
    fleet.admitted(0, [TPM], 1000)
    fleet.end(0, used=3000)
    limiter = fleet.nodes[0].limiter
    assert limiter.next_draws(fleet.now)
    limiter.lost(fleet.now)
    fleet.pass_time(2)
    assert 2700 <= fleet.level(TPM) <= 3000


def test_what_was_granted_in_a_lost_reply_is_never_used() -> None:
    fleet = Fleet(nodes=1)
    limiter = fleet.nodes[0].limiter
    limiter.admit(fleet.now, [RPM], 0)
    for draw in limiter.next_draws(fleet.now):
        fleet.draw(draw)
    limiter.lost(fleet.now)
    assert limiter.statistics().rights_held == 0
    assert fleet.level(RPM) == 1


# -- properties -----------------------------------------------------------------------------------

NODE = st.integers(0, 2)
PAUSE = st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.1, 7.0])


def play(fleet: Fleet, action: str, index: int, refs: Sequence[LimitRef], tokens: int) -> None:
    """One step of a random schedule."""
    node = fleet.nodes[index]
    if action == "request":
        node.request(fleet.now, tuple(refs), tokens)
    elif action == "leave" and node.waiting:
        node.waiting.pop(tokens % len(node.waiting))
    elif action == "end" and node.open:
        node.end(node.open[tokens % len(node.open)], used=tokens)
    elif action == "lane":
        node.lane(fleet.now, fleet.draw)


ACTIONS = st.sampled_from(["request", "request", "end", "leave", "lane"])


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 500), st.lists(st.tuples(ACTIONS, NODE, st.integers(0, 90)), max_size=80))
def test_rights_are_conserved(limit: int, steps: list[tuple[str, int, int]]) -> None:
    """While time stands still, what Valkey has given is what was used plus what is held."""
    fleet = Fleet(nodes=3)
    ref = LimitRef("account:1", "tpm", limit)
    used = 0
    for action, index, tokens in steps:
        node = fleet.nodes[index]
        before = list(node.open)
        play(fleet, action, index, [ref], tokens)
        gone = [one for one in before if one not in node.open]
        used += sum(tokens - one.tokens for one in gone)
        used += sum(one.tokens for one in node.open if one not in before)
        held = sum(one.limiter.statistics().rights_held for one in fleet.nodes)
        assert fleet.level(ref) == used + held
    fleet.lanes()
    assert not any(node.waiting for node in fleet.nodes)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([1, 7, 60, 200, 3000]),
    st.lists(st.tuples(NODE, PAUSE, st.integers(1, 400)), min_size=1, max_size=60),
)
def test_no_window_sees_more_than_limit_and_burst_and_the_chunks_held_when_it_began(
    limit: int, bursts: list[tuple[int, float, int]]
) -> None:
    fleet = Fleet(nodes=3)
    ref = LimitRef("account:1", "rpm", limit)
    taken: list[float] = []
    for index, pause, count in bursts:
        fleet.pass_time(pause)
        node = fleet.nodes[index]
        before = len(node.open)
        for _ in range(count):
            node.request(fleet.now, (ref,))
            if len(node.waiting) > 3:
                node.lane(fleet.now, fleet.draw)
        node.lane(fleet.now, fleet.draw)
        taken += [fleet.now] * (len(node.open) - before)
    chunks = len(fleet.nodes) * max(1, limit // CHUNK_PARTS)
    for start in set(taken):
        window = sum(start <= at < start + WINDOW_SECONDS for at in taken)
        assert window <= 2 * limit + chunks


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 40),
    st.lists(
        st.tuples(
            st.sampled_from(["request", "request", "end", "leave", "lane", "crash"]),
            NODE,
            PAUSE,
            st.integers(0, 90),
        ),
        max_size=80,
    ),
)
def test_never_more_open_than_slots_whoever_dies(
    limit: int, steps: list[tuple[str, int, float, int]]
) -> None:
    fleet = Fleet(nodes=3)
    ref = LimitRef("account:1", "concurrent", limit)
    for number, (action, index, pause, choice) in enumerate(steps):
        fleet.pass_time(pause)
        if action == "crash":
            fleet.nodes[index] = Node(f"restarted {number}")
        else:
            play(fleet, action, index, [ref], choice)
        held = sum(node.limiter.statistics().slots_held for node in fleet.nodes)
        assert sum(len(node.open) for node in fleet.nodes) <= held
        assert held <= fleet.valkey.slots_held("account:1", int(fleet.now * 1e6)) <= limit
    fleet.lanes()
    assert not any(node.waiting for node in fleet.nodes)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(3, 300),
    st.lists(st.tuples(NODE, PAUSE, st.integers(0, 100)), min_size=1, max_size=60),
)
def test_without_valkey_the_nodes_together_stay_within_the_limit(
    limit: int, arrivals: list[tuple[int, float, int]]
) -> None:
    fleet = Fleet(nodes=3)
    fleet.up = False
    fleet.pass_time(RENEW_SECONDS)
    refs = LimitRef("account:1", "tpm", limit), LimitRef("account:1", "concurrent", limit)
    taken: list[tuple[float, int]] = []
    for index, pause, tokens in arrivals:
        fleet.pass_time(pause)
        weight = min(tokens, limit // 3)
        outcome = fleet.request(index, refs, weight).outcome
        assert outcome is not None
        if not isinstance(outcome, Denied):
            taken.append((fleet.now, weight))
        assert sum(len(node.open) for node in fleet.nodes) <= limit
    for start, _ in taken:
        window = sum(weight for at, weight in taken if start <= at < start + WINDOW_SECONDS)
        assert window <= 2 * limit

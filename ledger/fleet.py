"""Limits that several nodes share: rights drawn from Valkey ahead of use. Pure: no clock, no I/O.

A round trip for every request would put Valkey on the hot path, and no round trip at all would
multiply every limit by the number of nodes. So a node draws *rights* in chunks: they are deducted
for the whole fleet before anybody uses them, and requests are admitted from what the node holds.
Only a request that finds too little waits for an answer (`NotYet`).

Rights (rpm, tpm). Valkey keeps one generic cell rate algorithm per scope and kind, in its form as
a leaky bucket: a *level* that flows off at the limit's pace and may stand one minute high, hence a
burst of a full minute's limit, as on one node. A chunk is what the node used in the last second,
between 1 and 1 % of the limit, and 1 below 100 a minute; never less than those who wait need.
Unused, it goes back after a second. Tokens that a request did not use go into the node's chunk;
tokens used beyond the estimate are a debt that is told with the next draw.

Slots (concurrent). Valkey keeps how many each *holder* has, with an expiry of 30 s that is renewed
every 10 s. A node says how many it wants, in blocks of a 16th of the limit; as that is a total,
saying it twice is harmless. A block that nobody needed for a second goes back; single slots go
back at once. The nodes announce themselves in the same way: each holds the same of `nodes`.

Rules
- All limits of one request admit, or nothing is consumed, here and in Valkey: a draw gives the
  first who waits what it lacks of every limit, or nothing. For the others it brings what there is.
- Nobody overtakes within an account: while one waits, all who come wait behind.
- At most one draw of an account (a *tag*: a scope up to its first slash) is in flight.
- What Valkey refused is remembered for a second (slots: 0.1 s), so a full scope costs little.
- What is given back is deducted here before it is sent, and a lost reply loses what it granted:
  an uncertain outcome can only make the fleet stricter. A lost debt is told again.
- Scopes that hold nothing and whose level has flowed off are forgotten.

Without Valkey each node goes on alone, with the limit divided by the nodes that were last known:
never more than the limit in the long run, perhaps less. It starts with its part of the level last
heard of; a request larger than that part is admitted once everything before it has flowed off. It
tries to come back every second, and then tells Valkey what it used and which slots it holds.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ledger.draws import LIMIT_MAX, RENEW_SECONDS, Draw, DrawReply, SlotsAsk
from ledger.limits import NOT_YET, WINDOW_SECONDS, Denied, LimitRef, LimitState, NotYet
from ledger.rights import Counter, Rights, Slots, Tag

POLL_SECONDS = 0.25  # how often `next_draws` wants to be called where nothing else calls it
PROBE_SECONDS = 1.0
DRAWS_MAX = 256  # in one batch

NODES = "nodes"
NODE_PARTS = 720_720  # slots of NODES that a node holds; divisible by each count up to 16


@dataclass(frozen=True, slots=True)
class FleetStatistics:
    """A snapshot for metrics and tests."""

    fleet_connected: bool
    nodes: int
    tags: int
    rights_held: int
    slots_held: int
    slots_open: int
    draws: int
    losses: int


class FleetLimiter:
    """The limits of a fleet as one node sees them. `holder` names this process, for its lifetime.

    Where several processes of a node have a limiter each, for accounts of their own, `processes`
    is their number: together they are one node. A request must not name the same scope and kind
    twice.
    """

    def __init__(self, holder: str, *, processes: int = 1) -> None:
        self._holder = holder
        self._parts = max(NODE_PARTS // processes, 1)
        self._tags: dict[str, Tag] = {}
        self._due: dict[Tag, None] = {}  # to look at in the next batch
        self._timers: list[tuple[float, int, Tag]] = []
        self._timer_numbers = itertools.count()
        self._in_flight: list[tuple[Tag, Draw]] = []
        self._now = 0.0
        self._alone = False
        self._heard = False
        self._nodes = 1
        self._announce_at = -math.inf
        self._draws = 0
        self._losses = 0

    @property
    def fleet_connected(self) -> bool:
        """Whether Valkey answered the latest batch."""
        return self._heard and not self._alone

    @property
    def wants_draw(self) -> bool:
        """Whether somebody waits, or something should go back."""
        return bool(self._due) and not self._alone

    def statistics(self) -> FleetStatistics:
        """A snapshot."""
        rights = [one for tag in self._tags.values() for one in tag.rights.values()]
        slots = [one for tag in self._tags.values() for one in tag.slots.values()]
        return FleetStatistics(
            fleet_connected=self.fleet_connected,
            nodes=self._nodes,
            tags=len(self._tags),
            rights_held=sum(one.held for one in rights),
            slots_held=sum(one.held for one in slots),
            slots_open=sum(one.open for one in slots),
            draws=self._draws,
            losses=self._losses,
        )

    # -- requests -----------------------------------------------------------------------------

    def admit(
        self, now: float, refs: Sequence[LimitRef], tokens: int
    ) -> tuple[LimitState, ...] | Denied | NotYet:
        """Consume one request, `tokens` tokens and one slot; or deny, or defer, and consume
        nothing."""
        self._now = max(self._now, now)
        sharing = self._sharing
        parts = [(self._counter(ref), tokens if ref.kind == "tpm" else 1) for ref in refs]
        worst: LimitRef | None = None
        longest = 0.0
        undecided = False
        for ref, (counter, weight) in zip(refs, parts, strict=True):
            wait = counter.wait(now, weight, sharing)
            if wait is None:
                undecided = True
            elif wait > longest:
                worst, longest = ref, wait
        if worst is not None:
            never = longest == math.inf
            states = tuple([counter.state(now, sharing) for counter, _ in parts])
            return Denied(worst, WINDOW_SECONDS if never else longest, never, states)
        if undecided or (not sharing and any(counter.tag.awaited for counter, _ in parts)):
            self._await(parts)
            return NOT_YET
        for counter, weight in parts:
            counter.take(now, weight, sharing)
        return tuple([counter.state(now, sharing) for counter, _ in parts])

    def occupy(self, refs: Sequence[LimitRef]) -> None:
        """A request that is under way takes its slots again, after a restart."""
        for ref in refs:
            if ref.kind == "concurrent":
                slots = self._counter(ref)
                assert isinstance(slots, Slots)
                slots.open += 1
                self._due[slots.tag] = None

    def settle(self, refs: Sequence[LimitRef], reserved_tokens: int, used_tokens: int) -> None:
        """The request ended: free its slots, correct its tokens."""
        for ref in refs:
            if ref.kind == "concurrent":
                self._release(ref)
            elif ref.kind == "tpm" and used_tokens != reserved_tokens:
                self._give_back(ref, reserved_tokens - used_tokens)

    def undo(self, refs: Sequence[LimitRef], tokens: int) -> None:
        """The request was refused for another reason: as if it had never been admitted."""
        for ref in refs:
            if ref.kind == "concurrent":
                self._release(ref)
            else:
                self._give_back(ref, 1 if ref.kind == "rpm" else tokens)

    # -- draws --------------------------------------------------------------------------------

    def next_draws(self, now: float) -> list[Draw]:
        """What to ask Valkey for now; to be followed by `drawn` or `lost`."""
        assert not self._in_flight, "one batch at a time"
        self._now = max(self._now, now)
        self._collect_due(now)
        draws = []
        if now >= self._announce_at:
            draws.append(self._announcement())
        if self._alone:
            for tag in list(self._due):
                self._forget_or_schedule(now, tag)
            self._due.clear()
            return draws
        for tag in list(itertools.islice(self._due, DRAWS_MAX)):
            del self._due[tag]
            rights, slots = tag.asks(now)
            # Who waits is tried again after a batch only, even if all it lacked has come back.
            if rights or slots or tag.asked_for:
                draw = Draw(tag.name, self._holder, self._next_number(), rights, slots)
                self._in_flight.append((tag, draw))
                draws.append(draw)
            else:
                self._forget_or_schedule(now, tag)
        return draws

    def drawn(self, now: float, draws: Sequence[Draw], replies: Sequence[DrawReply]) -> None:
        """Valkey's replies, one for each draw of the batch."""
        self._now = max(self._now, now)
        for draw, reply in zip(draws, replies, strict=True):
            if draw.tag == NODES:
                self._nodes = -(-(self._parts + reply.slots[0].others) // NODE_PARTS)
                self._announce_at = now + RENEW_SECONDS
            else:
                self._tags[draw.tag].replied(now, draw, reply)
        self._heard = True
        if self._alone:
            self._rejoin(now)
        self._end_batch()

    def lost(self, now: float) -> None:
        """Valkey did not answer; whether it did anything is unknown."""
        self._now = max(self._now, now)
        self._losses += 1
        self._announce_at = now + PROBE_SECONDS
        for tag, draw in self._in_flight:
            tag.owe_again(draw)
        if not self._alone:
            self._alone = True
            for tag in self._tags.values():
                for rights in tag.rights.values():
                    rights.isolate(now, self._nodes)
        self._end_batch()

    # -- inside -------------------------------------------------------------------------------

    @property
    def _sharing(self) -> int:
        """Among how many nodes a limit is divided, because Valkey is away; 0: it is not."""
        return self._nodes if self._alone else 0

    def _counter(self, ref: LimitRef) -> Counter:
        name = ref.scope.partition("/")[0]
        tag = self._tags.get(name)
        if tag is None:
            tag = self._tags[name] = Tag(name)
            self._due[tag] = None
        return tag.counter(ref, self._now)

    def _await(self, parts: Sequence[tuple[Counter, int]]) -> None:
        """Note what a request needs, with each of its tags."""
        wants: dict[Tag, dict[Counter, int]] = {}
        for counter, weight in parts:
            wants.setdefault(counter.tag, {})[counter] = weight
        for tag, want in wants.items():
            tag.wants.append(want)
            self._due[tag] = None

    def _release(self, ref: LimitRef) -> None:
        slots = self._counter(ref)
        assert isinstance(slots, Slots)
        slots.open = max(slots.open - 1, 0)
        if slots.block == 1 and slots.held > slots.open:
            self._due[slots.tag] = None
        else:
            self._schedule(slots.tag)

    def _give_back(self, ref: LimitRef, amount: int) -> None:
        rights = self._counter(ref)
        assert isinstance(rights, Rights)
        rights.give_back(self._now, amount, self._sharing)
        if rights.held < 0:
            self._due[rights.tag] = None
        else:
            self._schedule(rights.tag)

    def _announcement(self) -> Draw:
        ask = SlotsAsk(NODES, LIMIT_MAX * NODE_PARTS, self._parts, self._parts, self._parts)
        return Draw(NODES, self._holder, self._next_number(), (), (ask,))

    def _next_number(self) -> int:
        self._draws += 1
        return self._draws

    def _rejoin(self, now: float) -> None:
        self._alone = False
        for tag in self._tags.values():
            for rights in tag.rights.values():
                rights.rejoin(now, self._nodes)
            for slots in tag.slots.values():
                slots.rejoin(now)
            self._due[tag] = None

    def _end_batch(self) -> None:
        """Forget who waits, they will say it again; see that what is held is looked at in time."""
        for tag, _ in self._in_flight:
            tag.wants.clear()
            tag.asked_for = False
            if tag.owes:
                self._due[tag] = None
            else:
                self._schedule(tag)
        for tag in self._due:
            tag.wants.clear()
        self._in_flight.clear()

    def _collect_due(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            at, _, tag = heapq.heappop(self._timers)
            if at == tag.timer:  # else a later or an earlier one has replaced it
                tag.timer = math.inf
                self._due[tag] = None

    def _schedule(self, tag: Tag) -> None:
        at = tag.next_due(self._sharing)
        if at < tag.timer:
            tag.timer = at
            heapq.heappush(self._timers, (at, next(self._timer_numbers), tag))

    def _forget_or_schedule(self, now: float, tag: Tag) -> None:
        if tag.idle(now, self._sharing):
            tag.timer = math.inf
            del self._tags[tag.name]
        else:
            self._schedule(tag)

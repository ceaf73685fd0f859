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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from ledger.limits import (
    CONCURRENT_RETRY_SECONDS,
    NOT_YET,
    WINDOW_SECONDS,
    Denied,
    LimitRef,
    LimitState,
    NotYet,
)

POLL_SECONDS = 0.25  # how often `next_draws` wants to be called where nothing else calls it
CHUNK_SECONDS = 1.0
CHUNK_LIMIT_MIN = 100  # per minute; below, every chunk is 1
CHUNK_PARTS = 100
SLOT_PARTS = 16
SLOT_IDLE_SECONDS = 1.0
EXPIRY_SECONDS = 30.0
RENEW_SECONDS = 10.0
PROBE_SECONDS = 1.0
KNOWN_SECONDS = 1.0
SLOTS_KNOWN_SECONDS = 0.1
DRAWS_MAX = 256  # in one batch

LIMIT_MAX = 100_000_000  # levels are exact integers up to 2⁵³ in Valkey's scripts
UNITS = 60_000_000  # of a level, per right: then `limit` units flow off in a microsecond

NODES = "nodes"
NODE_PARTS = 720_720  # slots of NODES that a node holds; divisible by each count up to 16
_MICROSECONDS = 1_000_000


class RightsAsk(msgspec.Struct, frozen=True):
    """`least` rights or nothing, up to `most`; `returned` were drawn and not used (or: a debt)."""

    scope: str
    kind: Literal["rpm", "tpm"]
    limit: int
    least: int
    most: int
    returned: int


class SlotsAsk(msgspec.Struct, frozen=True):
    """At least `least` slots in total or as many as before, up to `most`; `running` are in use."""

    scope: str
    limit: int
    running: int
    least: int
    most: int


class Draw(msgspec.Struct, frozen=True):
    """One step in Valkey, for scopes with one tag. A holder's draws have rising numbers."""

    tag: str
    holder: str
    number: int
    rights: tuple[RightsAsk, ...]
    slots: tuple[SlotsAsk, ...]


class RightsReply(msgspec.Struct, frozen=True):
    """What was granted, and the level afterwards."""

    granted: int
    level: int


class SlotsReply(msgspec.Struct, frozen=True):
    """The slots that this holder has now, and those of all others."""

    held: int
    others: int


class DrawReply(msgspec.Struct, frozen=True):
    """Replies in the order of the asks."""

    rights: tuple[RightsReply, ...]
    slots: tuple[SlotsReply, ...]


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
        self._tags: dict[str, _Tag] = {}
        self._due: dict[_Tag, None] = {}  # to look at in the next batch
        self._timers: list[tuple[float, int, _Tag]] = []
        self._timer_numbers = itertools.count()
        self._in_flight: list[tuple[_Tag, Draw]] = []
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
        alone = self._sharing
        parts = [(self._counter(ref), tokens if ref.kind == "tpm" else 1) for ref in refs]
        worst: LimitRef | None = None
        longest = 0.0
        undecided = False
        for ref, (counter, weight) in zip(refs, parts, strict=True):
            wait = counter.wait(now, weight, alone)
            if wait is None:
                undecided = True
            elif wait > longest:
                worst, longest = ref, wait
        if worst is not None:
            never = longest == math.inf
            states = tuple([counter.state(now, alone) for counter, _ in parts])
            return Denied(worst, WINDOW_SECONDS if never else longest, never, states)
        if undecided or (not alone and any(counter.tag.awaited for counter, _ in parts)):
            self._await(parts)
            return NOT_YET
        for counter, weight in parts:
            counter.take(now, weight, alone)
        return tuple([counter.state(now, alone) for counter, _ in parts])

    def occupy(self, refs: Sequence[LimitRef]) -> None:
        """A request that is under way takes its slots again, after a restart."""
        for ref in refs:
            if ref.kind == "concurrent":
                slots = self._counter(ref)
                assert isinstance(slots, _Slots)
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

    def _counter(self, ref: LimitRef) -> _Rights | _Slots:
        name = ref.scope.partition("/")[0]
        tag = self._tags.get(name)
        if tag is None:
            tag = self._tags[name] = _Tag(name)
            self._due[tag] = None
        counter: _Rights | _Slots
        if ref.kind == "concurrent":
            slots = tag.slots.get(ref.scope)
            if slots is None:
                slots = tag.slots[ref.scope] = _Slots(ref.scope, tag)
            counter = slots
        else:
            rights = tag.rights.get((ref.scope, ref.kind))
            if rights is None:
                rights = _Rights(ref.scope, ref.kind, tag, self._now)
                tag.rights[ref.scope, ref.kind] = rights
            counter = rights
        counter.limit = min(ref.limit, LIMIT_MAX)
        return counter

    def _await(self, parts: Sequence[tuple[_Rights | _Slots, int]]) -> None:
        """Note what a request needs, with each of its tags."""
        wants: dict[_Tag, dict[_Rights | _Slots, int]] = {}
        for counter, weight in parts:
            wants.setdefault(counter.tag, {})[counter] = weight
        for tag, want in wants.items():
            tag.wants.append(want)
            self._due[tag] = None

    def _release(self, ref: LimitRef) -> None:
        slots = self._counter(ref)
        assert isinstance(slots, _Slots)
        slots.open = max(slots.open - 1, 0)
        if slots.block == 1 and slots.held > slots.open:
            self._due[slots.tag] = None
        else:
            self._schedule(slots.tag)

    def _give_back(self, ref: LimitRef, amount: int) -> None:
        rights = self._counter(ref)
        assert isinstance(rights, _Rights)
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

    def _schedule(self, tag: _Tag) -> None:
        at = tag.next_due(self._sharing)
        if at < tag.timer:
            tag.timer = at
            heapq.heappush(self._timers, (at, next(self._timer_numbers), tag))

    def _forget_or_schedule(self, now: float, tag: _Tag) -> None:
        if tag.idle(now, self._sharing):
            tag.timer = math.inf
            del self._tags[tag.name]
        else:
            self._schedule(tag)


class _Tag:
    """The scopes that one draw covers, and who waits for some of them."""

    __slots__ = ("asked_for", "name", "rights", "slots", "timer", "wants")

    def __init__(self, name: str) -> None:
        self.name = name
        self.rights: dict[tuple[str, str], _Rights] = {}
        self.slots: dict[str, _Slots] = {}
        self.wants: list[Mapping[_Rights | _Slots, int]] = []  # in order of arrival
        self.asked_for = False  # whether a draw for some who wait is in flight
        self.timer = math.inf

    @property
    def awaited(self) -> bool:
        """Whether somebody waits already: nobody overtakes, or large requests would starve."""
        return self.asked_for or bool(self.wants)

    @property
    def owes(self) -> bool:
        """Whether something should be told at once."""
        return any(rights.held < 0 for rights in self.rights.values()) or any(
            slots.block == 1 and slots.held > slots.open for slots in self.slots.values()
        )

    def asks(self, now: float) -> tuple[tuple[RightsAsk, ...], tuple[SlotsAsk, ...]]:
        """What to ask for, give back, renew."""
        rights = [one.ask(now, self.wants) for one in self.rights.values()]
        slots = [one.ask(now, self.wants) for one in self.slots.values()]
        self.asked_for = bool(self.wants)
        self.wants.clear()
        return (
            tuple([ask for ask in rights if ask is not None]),
            tuple([ask for ask in slots if ask is not None]),
        )

    def replied(self, now: float, draw: Draw, reply: DrawReply) -> None:
        """Enter what was granted."""
        for rights_ask, rights_reply in zip(draw.rights, reply.rights, strict=True):
            self.rights[rights_ask.scope, rights_ask.kind].replied(now, rights_reply)
        for slots_ask, slots_reply in zip(draw.slots, reply.slots, strict=True):
            self.slots[slots_ask.scope].replied(now, slots_reply)

    def owe_again(self, draw: Draw) -> None:
        """The draw was lost: its debts may not have arrived. What it gave back is gone."""
        for ask in draw.rights:
            self.rights[ask.scope, ask.kind].held += min(ask.returned, 0)

    def next_due(self, alone: int) -> float:
        """When to look at this next, if nothing happens."""
        if not alone:
            times = [one.expires_at for one in self.rights.values() if one.held > 0]
            times += [one.due_at() for one in self.slots.values() if one.held > 0]
            if times:
                return min(times)
        if any(one.open for one in self.slots.values()):
            return math.inf
        times = [one.flowed_off_at(alone) for one in self.rights.values()]
        return max(times, default=-math.inf)

    def idle(self, now: float, alone: int) -> bool:
        """Whether forgetting this changes nothing."""
        return (
            not self.wants
            and all(one.idle(now, alone) for one in self.rights.values())
            and all(one.idle(alone) for one in self.slots.values())
        )


class _Rights:
    """Requests or tokens per minute of one scope.

    `held` was drawn and not used yet; below 0 it is a debt. `level` is what Valkey last said.
    `own` is this node's level while it is alone, of which `inherited` came from before.
    """

    __slots__ = (
        "expires_at",
        "held",
        "inherited",
        "kind",
        "known_until",
        "level",
        "level_at",
        "limit",
        "own",
        "own_at",
        "recent",
        "recent_at",
        "scope",
        "tag",
    )

    def __init__(self, scope: str, kind: Literal["rpm", "tpm"], tag: _Tag, now: float) -> None:
        self.scope = scope
        self.kind = kind
        self.tag = tag
        self.limit = 0
        self.held = 0
        self.expires_at = now
        self.level = 0
        self.level_at = now
        self.known_until = now
        self.recent = 0.0  # rights used in the last second, those longer ago for less
        self.recent_at = now
        self.own = 0
        self.own_at = now
        self.inherited = 0

    def wait(self, now: float, weight: int, alone: int) -> float | None:
        """Seconds until this could admit: 0 now, infinity never; None: only Valkey knows."""
        if weight > self.limit or self.limit <= 0:
            return math.inf
        if alone:
            return self._wait_alone(now, weight, alone)
        usable = self._usable(now)
        if usable >= weight:
            return 0.0
        lacking = (weight - max(usable, 0)) * UNITS - self._room(now)
        if lacking > 0 and now < self.known_until:
            return lacking / self.limit / _MICROSECONDS
        return None

    def take(self, now: float, weight: int, alone: int) -> None:
        """Use up rights that `wait` has found."""
        if alone:
            self._flow_off(now, alone)
            self.own += weight * UNITS
            return
        self.held -= weight
        age = max(now - self.recent_at, 0.0)
        self.recent = self.recent * math.exp(-age / CHUNK_SECONDS) + weight
        self.recent_at = now

    def give_back(self, now: float, amount: int, alone: int) -> None:
        """Rights were not used after all; below 0: more were used."""
        if alone:
            self._flow_off(now, alone)
            self.own = max(self.own - amount * UNITS, 0)
            self.inherited = min(self.inherited, self.own)
            return
        if self.held <= 0:
            self.expires_at = now + CHUNK_SECONDS
        self.held += amount

    def state(self, now: float, alone: int) -> LimitState:
        """What this node could still admit, as far as it knows."""
        if self.limit <= 0:
            return LimitState(self.kind, self.limit, 0, 0.0)
        if alone:
            self._flow_off(now, alone)
            left = self.limit * UNITS // alone - self.own
            reset = self.own * alone / self.limit / _MICROSECONDS
        else:
            held = self._usable(now) * UNITS
            left = self._room(now) + held
            reset = (self._level(now) - held) / self.limit / _MICROSECONDS
        remaining = min(max(left // UNITS, 0), self.limit)
        return LimitState(self.kind, self.limit, remaining, max(reset, 0.0))

    def ask(self, now: float, wants: Sequence[Mapping[_Rights | _Slots, int]]) -> RightsAsk | None:
        """What to give back or draw; None: nothing."""
        returned = 0
        if self.held != self._usable(now) or self.held < 0:
            returned, self.held = self.held, 0
        total = sum(want.get(self, 0) for want in wants)
        least = most = 0
        if total > self.held:
            least = max(wants[0].get(self, 0) - self.held, 0)
            most = max(total - self.held, self._chunk())
        if not (most or returned):
            return None
        return RightsAsk(self.scope, self.kind, max(self.limit, 1), least, most, returned)

    def replied(self, now: float, reply: RightsReply) -> None:
        """Enter what Valkey granted and said."""
        if reply.granted and self.held <= 0:
            self.expires_at = now + CHUNK_SECONDS
        self.held += reply.granted
        self.level = reply.level
        self.level_at = now
        self.known_until = now + KNOWN_SECONDS

    def isolate(self, now: float, alone: int) -> None:
        """Valkey is away: go on with this node's part of what it last said."""
        self.inherited = self._level(now) // alone
        self.own = self.inherited + max(-self.held, 0) * UNITS
        self.own_at = now
        self.held = 0

    def rejoin(self, now: float, alone: int) -> None:
        """Valkey is back: what was used without it is owed."""
        self._flow_off(now, alone)
        self.held = -math.ceil((self.own - self.inherited) / UNITS)
        self.own = self.inherited = 0
        self.known_until = now

    def idle(self, now: float, alone: int) -> bool:
        """Whether a new one would know as much."""
        return self.held == 0 and now >= self.flowed_off_at(alone)

    def flowed_off_at(self, alone: int) -> float:
        """When nothing will be left of the level."""
        pace = max(self.limit, 1) * _MICROSECONDS
        if alone:
            return self.own_at + self.own * alone / pace
        return max(self.level_at + self.level / pace, self.known_until)

    def _usable(self, now: float) -> int:
        return 0 if self.held > 0 and now >= self.expires_at else self.held

    def _level(self, now: float) -> int:
        passed = int(max(now - self.level_at, 0.0) * _MICROSECONDS)
        return max(self.level - passed * self.limit, 0)

    def _room(self, now: float) -> int:
        return self.limit * UNITS - self._level(now)

    def _chunk(self) -> int:
        if self.limit < CHUNK_LIMIT_MIN:
            return 1
        return max(1, min(int(self.recent), self.limit // CHUNK_PARTS))

    def _wait_alone(self, now: float, weight: int, alone: int) -> float:
        self._flow_off(now, alone)
        late = self.own + weight * UNITS - self.limit * UNITS // alone
        # One that is larger than this node's part goes when nothing is left of those before it.
        return max(min(late, self.own), 0) * alone / self.limit / _MICROSECONDS

    def _flow_off(self, now: float, alone: int) -> None:
        passed = int(max(now - self.own_at, 0.0) * _MICROSECONDS)
        gone = passed * self.limit // alone
        self.own = max(self.own - gone, 0)
        self.inherited = max(self.inherited - gone, 0)
        self.own_at = max(now, self.own_at)


class _Slots:
    """Open requests of one scope: `open` run here, `held` may, `others` belong to other nodes."""

    __slots__ = (
        "check_at",
        "held",
        "known_until",
        "limit",
        "open",
        "others",
        "peak",
        "renew_at",
        "scope",
        "tag",
        "valid_until",
    )

    def __init__(self, scope: str, tag: _Tag) -> None:
        self.scope = scope
        self.tag = tag
        self.limit = 0
        self.open = 0
        self.held = 0
        self.others = 0
        self.peak = 0  # most open since the last look
        self.check_at = -math.inf
        self.renew_at = -math.inf
        self.valid_until = -math.inf
        self.known_until = -math.inf

    @property
    def block(self) -> int:
        """How many slots are drawn at a time."""
        return max(1, self.limit // SLOT_PARTS)

    def wait(self, now: float, weight: int, alone: int) -> float | None:
        """Seconds until this could admit: 0 now, infinity never; None: only Valkey knows."""
        if self.limit <= 0:
            return math.inf
        if alone:
            free = self.open < max(1, self.limit // alone)
            return 0.0 if free else CONCURRENT_RETRY_SECONDS
        if self.open < min(self._usable(now), self.limit):
            return 0.0
        others = self.others if now < self.known_until else 0
        return CONCURRENT_RETRY_SECONDS if self.open + 1 > self.limit - others else None

    def take(self, now: float, weight: int, alone: int) -> None:
        """Use a slot that `wait` has found."""
        self.open += 1
        self.peak = max(self.peak, self.open)

    def state(self, now: float, alone: int) -> LimitState:
        """What this node could still admit, as far as it knows."""
        limit = max(1, self.limit // alone) if alone else self.limit - self.others
        return LimitState("concurrent", self.limit, max(limit - self.open, 0), 0.0)

    def ask(self, now: float, wants: Sequence[Mapping[_Rights | _Slots, int]]) -> SlotsAsk | None:
        """Slots for who waits, or to give back or renew; None: nothing."""
        waiting = sum(self in want for want in wants)
        limit = max(self.limit, 0)
        if waiting and self.open + waiting > self._usable(now):
            self.valid_until = now + EXPIRY_SECONDS
            least = self.open + (self in wants[0])
            blocks = -(-(self.open + waiting) // self.block)
            most = max(min(blocks * self.block, limit), least, self.held)
            return SlotsAsk(self.scope, limit, self.open, least, most)
        kept = self._needed(now)
        if kept == self.held and not (self.held and now >= self.renew_at):
            return None
        self.held = kept
        self.valid_until = now + EXPIRY_SECONDS
        return SlotsAsk(self.scope, limit, self.open, kept, kept)

    def replied(self, now: float, reply: SlotsReply) -> None:
        """Enter what Valkey granted and said."""
        if reply.held > self.held:
            self.check_at = now + SLOT_IDLE_SECONDS
            self.peak = self.open
        self.held = reply.held
        self.others = reply.others
        self.renew_at = now + RENEW_SECONDS
        self.known_until = now + SLOTS_KNOWN_SECONDS

    def rejoin(self, now: float) -> None:
        """Valkey is back: claim what runs here."""
        self.held = self.open
        self.renew_at = now
        self.known_until = now

    def due_at(self) -> float:
        """When to renew or give back."""
        return min(self.renew_at, self.check_at if self.held > self.open else math.inf)

    def idle(self, alone: int) -> bool:
        """Whether a new one would know as much."""
        return self.open == 0 and (alone > 0 or self.held == 0)

    def _usable(self, now: float) -> int:
        """A node that slept too long has lost its slots."""
        return self.held if now < self.valid_until else 0

    def _needed(self, now: float) -> int:
        """How many to keep: as many as were open at once in the last second."""
        if self.block == 1:
            return min(self.held, self.open)
        if now < self.check_at:
            return self.held
        needed = min(self.held, max(self.peak, self.open))
        self.peak = self.open
        self.check_at = now + SLOT_IDLE_SECONDS
        return needed

"""What one node holds of the limits that a fleet shares: the counters behind `FleetLimiter`. Pure.

A counter is for one limit: requests or tokens a minute (`Rights`), or requests at a time (`Slots`).
It says whether it could admit (`wait`), what to ask Valkey for (`ask`), and enters the answer
(`replied`). Those that one draw covers make a `Tag`. The rules are those of `fleet`.

`sharing` is among how many nodes a limit is divided, because Valkey is away; 0: it is not, and what
Valkey says counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from ledger.draws import (
    EXPIRY_SECONDS,
    LIMIT_MAX,
    RENEW_SECONDS,
    UNITS,
    Draw,
    DrawReply,
    RightsAsk,
    RightsReply,
    SlotsAsk,
    SlotsReply,
)
from ledger.limits import CONCURRENT_RETRY_SECONDS, LimitRef, LimitState

CHUNK_SECONDS = 1.0
CHUNK_LIMIT_MIN = 100  # per minute; below, every chunk is 1
CHUNK_PARTS = 100
SLOT_PARTS = 16
SLOT_IDLE_SECONDS = 1.0
KNOWN_SECONDS = 1.0
SLOTS_KNOWN_SECONDS = 0.1
_MICROSECONDS = 1_000_000

Want = Mapping["Counter", int]
"""What a request that waits needs of each counter."""


class Tag:
    """The scopes that one draw covers, and who waits for some of them."""

    __slots__ = ("asked_for", "name", "rights", "slots", "timer", "wants")

    def __init__(self, name: str) -> None:
        self.name = name
        self.rights: dict[tuple[str, str], Rights] = {}
        self.slots: dict[str, Slots] = {}
        self.wants: list[Want] = []  # in order of arrival
        self.asked_for = False  # whether a draw for some who wait is in flight
        self.timer = math.inf

    def counter(self, ref: LimitRef, now: float) -> Counter:
        """What counts for a limit, new where nothing was counted yet."""
        counter: Counter | None
        if ref.kind == "concurrent":
            counter = self.slots.get(ref.scope)
            if counter is None:
                counter = self.slots[ref.scope] = Slots(ref.scope, self)
        else:
            counter = self.rights.get((ref.scope, ref.kind))
            if counter is None:
                counter = Rights(ref.scope, ref.kind, self, now)
                self.rights[ref.scope, ref.kind] = counter
        counter.limit = min(ref.limit, LIMIT_MAX)
        return counter

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

    def next_due(self, sharing: int) -> float:
        """When to look at this next, if nothing happens."""
        if not sharing:
            times = [one.expires_at for one in self.rights.values() if one.held > 0]
            times += [one.due_at() for one in self.slots.values() if one.held > 0]
            if times:
                return min(times)
        if any(one.open for one in self.slots.values()):
            return math.inf
        times = [one.flowed_off_at(sharing) for one in self.rights.values()]
        return max(times, default=-math.inf)

    def idle(self, now: float, sharing: int) -> bool:
        """Whether forgetting this changes nothing."""
        return (
            not self.wants
            and all(one.idle(now, sharing) for one in self.rights.values())
            and all(one.idle(sharing) for one in self.slots.values())
        )


class Rights:
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

    def __init__(self, scope: str, kind: Literal["rpm", "tpm"], tag: Tag, now: float) -> None:
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

    def wait(self, now: float, weight: int, sharing: int) -> float | None:
        """Seconds until this could admit: 0 now, infinity never; None: only Valkey knows."""
        if weight > self.limit or self.limit <= 0:
            return math.inf
        if sharing:
            return self._wait_alone(now, weight, sharing)
        usable = self._usable(now)
        if usable >= weight:
            return 0.0
        lacking = (weight - max(usable, 0)) * UNITS - self._room(now)
        if lacking > 0 and now < self.known_until:
            return lacking / self.limit / _MICROSECONDS
        return None

    def take(self, now: float, weight: int, sharing: int) -> None:
        """Use up rights that `wait` has found."""
        if sharing:
            self._flow_off(now, sharing)
            self.own += weight * UNITS
            return
        self.held -= weight
        age = max(now - self.recent_at, 0.0)
        self.recent = self.recent * math.exp(-age / CHUNK_SECONDS) + weight
        self.recent_at = now

    def give_back(self, now: float, amount: int, sharing: int) -> None:
        """Rights were not used after all; below 0: more were used."""
        if sharing:
            self._flow_off(now, sharing)
            self.own = max(self.own - amount * UNITS, 0)
            self.inherited = min(self.inherited, self.own)
            return
        if self.held <= 0:
            self.expires_at = now + CHUNK_SECONDS
        self.held += amount

    def state(self, now: float, sharing: int) -> LimitState:
        """What this node could still admit, as far as it knows."""
        if self.limit <= 0:
            return LimitState(self.kind, self.limit, 0, 0.0)
        if sharing:
            self._flow_off(now, sharing)
            left = self.limit * UNITS // sharing - self.own
            reset = self.own * sharing / self.limit / _MICROSECONDS
        else:
            held = self._usable(now) * UNITS
            left = self._room(now) + held
            reset = (self._level(now) - held) / self.limit / _MICROSECONDS
        remaining = min(max(left // UNITS, 0), self.limit)
        return LimitState(self.kind, self.limit, remaining, max(reset, 0.0))

    def ask(self, now: float, wants: Sequence[Want]) -> RightsAsk | None:
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

    def isolate(self, now: float, nodes: int) -> None:
        """Valkey is away: go on with this node's part of what it last said."""
        self.inherited = self._level(now) // nodes
        self.own = self.inherited + max(-self.held, 0) * UNITS
        self.own_at = now
        self.held = 0

    def rejoin(self, now: float, nodes: int) -> None:
        """Valkey is back: what was used without it is owed."""
        self._flow_off(now, nodes)
        self.held = -math.ceil((self.own - self.inherited) / UNITS)
        self.own = self.inherited = 0
        self.known_until = now

    def idle(self, now: float, sharing: int) -> bool:
        """Whether a new one would know as much."""
        return self.held == 0 and now >= self.flowed_off_at(sharing)

    def flowed_off_at(self, sharing: int) -> float:
        """When nothing will be left of the level."""
        pace = max(self.limit, 1) * _MICROSECONDS
        if sharing:
            return self.own_at + self.own * sharing / pace
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

    def _wait_alone(self, now: float, weight: int, nodes: int) -> float:
        self._flow_off(now, nodes)
        late = self.own + weight * UNITS - self.limit * UNITS // nodes
        # One that is larger than this node's part goes when nothing is left of those before it.
        return max(min(late, self.own), 0) * nodes / self.limit / _MICROSECONDS

    def _flow_off(self, now: float, nodes: int) -> None:
        passed = int(max(now - self.own_at, 0.0) * _MICROSECONDS)
        gone = passed * self.limit // nodes
        self.own = max(self.own - gone, 0)
        self.inherited = max(self.inherited - gone, 0)
        self.own_at = max(now, self.own_at)


class Slots:
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

    def __init__(self, scope: str, tag: Tag) -> None:
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

    def wait(self, now: float, weight: int, sharing: int) -> float | None:
        """Seconds until this could admit: 0 now, infinity never; None: only Valkey knows."""
        if self.limit <= 0:
            return math.inf
        if sharing:
            free = self.open < max(1, self.limit // sharing)
            return 0.0 if free else CONCURRENT_RETRY_SECONDS
        if self.open < min(self._usable(now), self.limit):
            return 0.0
        others = self.others if now < self.known_until else 0
        return CONCURRENT_RETRY_SECONDS if self.open + 1 > self.limit - others else None

    def take(self, now: float, weight: int, sharing: int) -> None:
        """Use a slot that `wait` has found."""
        self.open += 1
        self.peak = max(self.peak, self.open)

    def state(self, now: float, sharing: int) -> LimitState:
        """What this node could still admit, as far as it knows."""
        limit = max(1, self.limit // sharing) if sharing else self.limit - self.others
        return LimitState("concurrent", self.limit, max(limit - self.open, 0), 0.0)

    def ask(self, now: float, wants: Sequence[Want]) -> SlotsAsk | None:
        """Slots for who waits, or to give back or renew; None: nothing."""
        waiting = sum(self in want for want in wants)
        limit = max(self.limit, 0)
        if waiting and self.open + waiting > self._usable(now):
            self.valid_until = now + EXPIRY_SECONDS
            least = self.open + (self in wants[0])
            blocks = -(-(self.open + waiting) // self.block)
            most = max(min(blocks * self.block, limit), least, self.held)
            return SlotsAsk(self.scope, limit, self.open, least, most)
        kept = self._look(now)
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

    def idle(self, sharing: int) -> bool:
        """Whether a new one would know as much."""
        return self.open == 0 and (sharing > 0 or self.held == 0)

    def _usable(self, now: float) -> int:
        """A node that slept too long has lost its slots."""
        return self.held if now < self.valid_until else 0

    def _look(self, now: float) -> int:
        """How many to keep from now on: as many as were open at once in the last second."""
        if self.block == 1:
            return min(self.held, self.open)
        if now < self.check_at:
            return self.held
        needed = min(self.held, max(self.peak, self.open))
        self.peak = self.open
        self.check_at = now + SLOT_IDLE_SECONDS
        return needed


Counter = Rights | Slots

"""The reaper: finds lease holders that fell silent, and gives their credit back to its owners.

Of all gateways on the same books one reaps, whoever has the store's lock. It compares no clocks: a
holder's heartbeat is a counter in the books, and silence is how long *the reaper's own* clock ran
while that counter stood still. That clock has to count suspension (boot time), as the holder's.

1. An active holder whose heartbeat stood still for its validity is *fenced*: by then it admits no
   request any more. The fence is a compare-and-set on the heartbeat seen, so it fails if anything
   arrived in between.
2. A fenced holder is *reclaimed* after the longest that one of its requests may last: by then none
   runs any more. It is undone by the holder's return, which opens a session in another epoch.
3. Both waits are longer by 5 % and 5 seconds, for clocks that drift and messages under way. They
   begin when the reaper has *read* what then stood still, which is never too early. What it saw
   is forgotten when it loses the lock or the connection: a database that was away has heard
   nobody, and one that was set back counts again.

Deciding is `Watch`, without I/O; `run` asks and acts. `declare_dead` is the operator's short cut
for a machine that is known to be off.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from ledger.money import format_usd
from ledger.store import HolderId, HolderRow, HolderState, LedgerStore, StoreError

POLL_SECONDS = 5.0
HEARTBEAT_SECONDS_MAX = 5.0  # between two exchanges of a holder that has nothing to post

_LISTENING_SECONDS = 2 * HEARTBEAT_SECONDS_MAX + 2  # before a holder is taken for silent

log = logging.getLogger(__name__)


# -- deciding -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fence:
    """End the holder's session, if this is still its heartbeat."""

    holder: HolderRow


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Give the fenced holder's credit back, if this is still its epoch."""

    holder: HolderRow


Verdict = Fence | Reclaim


class Watch:
    """What one reaper has seen of all holders since it got the lock."""

    def __init__(self) -> None:
        self._seen: dict[HolderId, tuple[HolderRow, float]] = {}

    def look(self, now: float, holders: Sequence[HolderRow]) -> list[Verdict]:
        """Take note of what was read before `now`, and say who is due.

        A row is compared whole: whatever changes in it, its wait begins anew.
        """
        seen, self._seen = self._seen, {}
        verdicts: list[Verdict] = []
        for holder in holders:
            before, since = seen.get(holder.holder_id, (holder, now))
            if before != holder:
                since = now
            self._seen[holder.holder_id] = (holder, since)
            if now - since >= patience(holder):
                active = holder.state is HolderState.ACTIVE
                verdicts.append(Fence(holder) if active else Reclaim(holder))
        return verdicts


def patience(holder: HolderRow) -> float:
    """How many seconds a holder may stand still in its state."""
    fenced = holder.state is HolderState.FENCED
    return (holder.max_request_seconds if fenced else holder.validity_seconds) * 1.05 + 5


# -- acting ---------------------------------------------------------------------------------------


async def run(store: LedgerStore, clock: Callable[[], float]) -> None:
    """Reap whenever nobody else does, for ever. `clock` counts seconds, suspended ones too."""
    while True:
        try:
            async with store.reaper_lock() as acquired:
                if acquired:
                    await _reap(store, clock)
        except StoreError as error:
            log.info("the reaper begins anew: %s", error)
        await trio.sleep(POLL_SECONDS)


async def _reap(store: LedgerStore, clock: Callable[[], float]) -> None:
    watch = Watch()
    while True:
        holders = await store.holders()
        for verdict in watch.look(clock(), holders):
            await _execute(store, verdict)
        if await store.end_learning():
            log.warning("every active gateway has attested its leases: credit is granted again")
        await trio.sleep(POLL_SECONDS)


async def _execute(store: LedgerStore, verdict: Verdict) -> None:
    holder = verdict.holder
    match verdict:
        case Fence():
            if await store.fence_holder(holder.holder_id, holder.heartbeat):
                log.info("holder %d on %s is silent: fenced", holder.holder_id, holder.node)
        case Reclaim():
            amount = await store.reclaim_holder(holder.holder_id, holder.epoch)
            if amount is not None:
                log.log(
                    logging.WARNING if amount else logging.INFO,
                    "holder %d on %s stayed silent: %s USD given back",
                    *(holder.holder_id, holder.node, format_usd(amount)),
                )


# -- the operator's short cut ---------------------------------------------------------------------


class NotDead(Exception):
    """A holder cannot be declared dead; the message is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """A holder that was declared dead, and the nano-dollars that went back."""

    holder_id: HolderId
    node: str
    amount: int


async def declare_dead(store: LedgerStore, node: str) -> list[Reclaimed]:
    """Fence and reclaim every holder of a node at once.

    Listens for its heartbeats first, for `_LISTENING_SECONDS`: a node that is heard is not dead.
    Raises NotDead where it is heard, then or while it is fenced, and where nothing is held under
    that name. A node that is cut off from the database is not heard either, and would go on to
    spend what is given to others here; only the operator can know that it is off.
    """
    holders = _of_node(await store.holders(), node)
    active = {h.holder_id: h.heartbeat for h in holders if h.state is HolderState.ACTIVE}
    if active:
        await trio.sleep(_LISTENING_SECONDS)
    for holder_id, heartbeat in active.items():
        if not await store.fence_holder(holder_id, heartbeat):
            raise NotDead(
                f"{node} is alive: holder {holder_id} was heard just now. Nothing was taken from"
                " it, since it would go on to spend it: stop its gateway, which gives all back."
            )
    return [
        Reclaimed(holder.holder_id, node, await store.reclaim_holder(*_claim(holder)) or 0)
        for holder in _of_node(await store.holders(), node)
        if holder.state is HolderState.FENCED
    ]


def _claim(holder: HolderRow) -> tuple[HolderId, int]:
    return holder.holder_id, holder.epoch


def _of_node(holders: Sequence[HolderRow], node: str) -> list[HolderRow]:
    """Those of the node. Raises NotDead where there are none."""
    found = [holder for holder in holders if holder.node == node]
    if found:
        return found
    close = difflib.get_close_matches(node, {holder.node for holder in holders}, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ": see 'ledger holders'."
    raise NotDead(f"No gateway called {node!r} holds credit{hint}")

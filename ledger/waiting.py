"""Who waits for credit, in order of arrival."""

from __future__ import annotations

from collections.abc import Iterator

from ledger.pool import HolderPool
from ledger.reservation import Waiter


class WaitingRoom:
    """Every waiter of an engine, and at which pools each of them waits."""

    __slots__ = ("_at", "_reservations", "_waiting")

    def __init__(self) -> None:
        self._waiting: dict[Waiter, None] = {}
        self._at: dict[HolderPool, dict[Waiter, None]] = {}
        self._reservations: dict[int, Waiter] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(list(self._waiting))

    @property
    def pools(self) -> list[HolderPool]:
        """Pools that somebody waits for."""
        return list(self._at)

    def at(self, pool: HolderPool) -> list[Waiter]:
        """Who waits for this pool."""
        return list(self._at.get(pool, ()))

    def find(self, reservation_id: int) -> Waiter | None:
        """The reservation that waits to be made; extensions are found at what they extend."""
        return self._reservations.get(reservation_id)

    def enter(self, waiter: Waiter) -> None:
        """Queue at each of the waiter's pools."""
        self._waiting[waiter] = None
        if waiter.hold is None:
            self._reservations[waiter.id] = waiter
        for pool in waiter.pools:
            self._at.setdefault(pool, {})[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """It is decided."""
        del self._waiting[waiter]
        if waiter.hold is None:
            del self._reservations[waiter.id]
        for pool in waiter.pools:
            waiting = self._at[pool]
            del waiting[waiter]
            if not waiting:
                del self._at[pool]

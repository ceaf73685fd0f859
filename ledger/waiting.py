"""Who waits, in order of arrival: for the fleet's word on limits first, then for credit."""

from __future__ import annotations

from collections.abc import Iterator

from ledger.pool import HolderPool
from ledger.reservation import Waiter


class WaitingRoom:
    """Every waiter of an engine, and at which pools those wait whom the limits have admitted."""

    __slots__ = ("_at", "_deferred", "_thirsty", "reservations")

    def __init__(self) -> None:
        self._deferred: dict[Waiter, None] = {}
        self._thirsty: dict[Waiter, None] = {}
        self._at: dict[HolderPool, dict[Waiter, None]] = {}
        self.reservations: dict[int, Waiter] = {}
        """The reservations that wait to be made; extensions are found at what they extend."""

    def __len__(self) -> int:
        return len(self._deferred) + len(self._thirsty)

    def __iter__(self) -> Iterator[Waiter]:
        return iter([*self._deferred, *self._thirsty])

    @property
    def deferred(self) -> list[Waiter]:
        """Those whom the limits have not admitted yet."""
        return list(self._deferred)

    @property
    def thirsty(self) -> list[Waiter]:
        """Those who wait for credit."""
        return list(self._thirsty)

    @property
    def pools(self) -> list[HolderPool]:
        """Pools that somebody waits for."""
        return list(self._at)

    def at(self, pool: HolderPool) -> list[Waiter]:
        """Who waits for this pool."""
        return list(self._at.get(pool, ()))

    def is_awaited(self, pool: HolderPool) -> bool:
        """Whether anybody waits for this pool."""
        return pool in self._at

    def defer(self, waiter: Waiter) -> None:
        """Wait for the limits."""
        self._deferred[waiter] = None
        self.reservations[waiter.id] = waiter

    def is_deferred(self, waiter: Waiter) -> bool:
        """Whether the limits have not admitted it yet."""
        return waiter in self._deferred

    def admit(self, waiter: Waiter) -> None:
        """The limits have admitted it: it waits no longer, or for credit from now on."""
        del self._deferred[waiter]
        del self.reservations[waiter.id]

    def enter(self, waiter: Waiter) -> None:
        """Queue at each of the waiter's pools."""
        self._thirsty[waiter] = None
        if waiter.hold is None:
            self.reservations[waiter.id] = waiter
        for pool in waiter.pools:
            self._at.setdefault(pool, {})[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """It is decided."""
        if waiter.hold is None:
            del self.reservations[waiter.id]
        if waiter in self._deferred:
            del self._deferred[waiter]
            return
        del self._thirsty[waiter]
        for pool in waiter.pools:
            waiting = self._at[pool]
            del waiting[waiter]
            if not waiting:
                del self._at[pool]

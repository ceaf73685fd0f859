"""The API keys of one provider: which one is to be used, and which ones rest.

A provider's limits, and its prompt caches, belong to the organisation of a key. Keys are therefore
taken in turn, so that all limits count, but requests that share a prefix go to the same one: the
key with the highest hash of both (rendezvous hashing), which every worker and node computes alike,
and by which only the requests of a key that rests go elsewhere.

A key that was refused rests for a while. Where all of them rest, the one that has the least of it
left is used all the same: not to try would be worse.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b


class ApiKeys:
    """Several keys, and until when each of them rests; `now` is on the caller's clock."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._salts = {key: blake2b(key.encode(), digest_size=16).digest() for key in keys}
        self._rests_until = dict.fromkeys(keys, 0.0)
        self._order = list(self._salts)

    def first(self, now: float, affinity: int | None = None) -> str:
        """The key to begin with."""
        key = self.next(now, affinity)
        return key or min(self._rests_until, key=self._rests_until.__getitem__)

    def next(
        self, now: float, affinity: int | None = None, asked: Collection[str] = ()
    ) -> str | None:
        """The best key that does not rest and was not asked; None where there is none."""
        ready = [key for key in self._order if self._rests_until[key] <= now and key not in asked]
        if not ready:
            return None
        if affinity is not None:
            return max(ready, key=lambda key: self._rank(key, affinity))
        self._order.remove(ready[0])
        self._order.append(ready[0])
        return ready[0]

    def rest(self, key: str, until: float) -> None:
        """The provider has refused it."""
        self._rests_until[key] = max(self._rests_until[key], until)

    def rests(self, now: float) -> int:
        """How many of them rest."""
        return sum(until > now for until in self._rests_until.values())

    def _rank(self, key: str, affinity: int) -> bytes:
        return blake2b(b"%d" % affinity, digest_size=8, key=self._salts[key]).digest()

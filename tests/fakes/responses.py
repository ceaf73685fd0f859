"""Kept responses in memory: the same rules as the real store, and nothing behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from adapters.errors import Overloaded
from proxy.state import Link, Stored, is_id, item_id


class MemoryResponses:
    """`ResponseStore` without a database. While `away`, nothing can be read."""

    def __init__(self, wall: Callable[[], float] = lambda: 0.0) -> None:
        self.away = False
        self.full = False
        self._wall = wall
        self._kept: dict[tuple[int, str], Stored] = {}

    def put(self, project_id: int, stored: Stored) -> bool:
        if self.full or not is_id(stored.link.id):
            return False
        self._kept.pop((project_id, stored.link.id), None)
        self._kept[project_id, stored.link.id] = stored
        return True

    async def body(self, project_id: int, response_id: str) -> bytes | None:
        kept = self._find(project_id, response_id)
        return None if kept is None else kept.body

    async def links(self, project_id: int, response_id: str) -> list[Link]:
        found = []
        while (kept := self._find(project_id, response_id)) is not None:
            found.append(kept.link)
            response_id = kept.link.previous
        return found

    async def items(self, project_id: int, item_ids: Sequence[str]) -> Mapping[str, msgspec.Raw]:
        return {
            name: item
            for owner, response_id in self._kept
            if owner == project_id and (kept := self._find(owner, response_id)) is not None
            for item in (*kept.link.input, *kept.link.output)
            if (name := item_id(item)) in item_ids
        }

    async def delete(self, project_id: int, response_id: str) -> bool:
        kept = self._find(project_id, response_id)
        self._kept.pop((project_id, response_id), None)
        return kept is not None

    async def purge(self, now: float) -> int:
        before = len(self._kept)
        self._kept = {key: kept for key, kept in self._kept.items() if kept.expires > now}
        return before - len(self._kept)

    def _find(self, project_id: int, response_id: str) -> Stored | None:
        if self.away:
            raise Overloaded("Stored responses cannot be read now.")
        kept = self._kept.get((project_id, response_id))
        return kept if kept is not None and kept.expires > self._wall() else None

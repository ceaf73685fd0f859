"""Kept responses and answers in memory: the same rules as the real stores, and nothing behind
them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import trio

from adapters.errors import Overloaded
from proxy.answers import Answer, Asked, Earlier, State
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


@dataclass
class _Row:
    asked: Asked
    state: State = State.RUNNING
    answer: Answer | None = None
    response_id: str = ""


class MemoryAnswers:
    """`AnswerStore` without a database. While `away`, nothing is heard of it.

    Calls take `seconds`. `charged` says whether the books know of a charge for a request. `died`
    are requests whose makers are taken for dead.
    """

    def __init__(self, charged: Callable[[bytes], bool] = lambda request_id: False) -> None:
        self.away = False
        self.seconds = 0.0
        self.charged = charged
        self.died: set[bytes] = set()
        self._rows: dict[tuple[int, str], _Row] = {}

    def __len__(self) -> int:
        return len(self._rows)

    async def claim(self, asked: Asked, now: float) -> Earlier | None:
        await self._reached()
        row = self._rows.get((asked.account_id, asked.key))
        if row is None or row.asked.expires <= now or self._may_take_over(row, asked, now):
            row = self._rows[asked.account_id, asked.key] = _Row(asked)
        holder = row.asked
        if holder.request_id == asked.request_id:
            return None
        answer = row.answer if _what(holder) == _what(asked) else None
        return Earlier(holder.request_id, holder.project_id, holder.fingerprint, row.state, answer)

    async def keep(self, asked: Asked, answer: Answer | None, response_id: str) -> bool:
        await self._reached()
        row = self._own(asked)
        if row is None:
            return False
        row.state = State.LOST if answer is None else State.ANSWERED
        row.answer = answer
        row.response_id = response_id
        return True

    def response_of(self, account_id: int, key: str) -> str:
        """The kept response that an answer is; "" where it is none."""
        return self._rows[account_id, key].response_id

    async def forget(self, asked: Asked) -> None:
        await self._reached()
        row = self._own(asked)
        if row is not None and row.state is State.RUNNING:
            del self._rows[asked.account_id, asked.key]

    async def purge(self, now: float) -> int:
        await self._reached()
        before = len(self._rows)
        self._rows = {at: row for at, row in self._rows.items() if row.asked.expires > now}
        return before - len(self._rows)

    def _may_take_over(self, row: _Row, asked: Asked, now: float) -> bool:
        holder = row.asked
        over = holder.stale <= now or holder.request_id in self.died
        if row.state is not State.RUNNING or not over or _what(holder) != _what(asked):
            return False
        if self.charged(holder.request_id):
            row.state = State.LOST
            return False
        return True

    def _own(self, asked: Asked) -> _Row | None:
        row = self._rows.get((asked.account_id, asked.key))
        return row if row is not None and row.asked.request_id == asked.request_id else None

    async def _reached(self) -> None:
        await trio.sleep(self.seconds)
        if self.away:
            raise Overloaded("Kept answers cannot be read now.", retry_after=1)


def _what(asked: Asked) -> tuple[int, bytes]:
    return asked.project_id, asked.fingerprint

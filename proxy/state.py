"""Responses that are kept: to be continued, fetched and deleted by their id.

What is kept are the exact items, since they are replayed, sealed with the project's key
(`sealing`). A response holds its own items and the id of the one before it. So a conversation takes
room once, not once per turn, and a deleted or expired response is really gone: what builds on it
can still be fetched, but no longer be continued.

An answer never waits for the database: `put` hands a response over, a service writes it behind.
Until it is written it is found in memory, by this process alone. While the database is away
responses wait there, up to a limit; beyond it they are lost, which is counted (`dropped`), and
clients later hear that they are unknown. Reading without a database is a 503.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import LiteralString, NamedTuple, Protocol, TypeVar

import msgspec
import psycopg
import trio
from psycopg.rows import TupleRow

from adapters.errors import Overloaded, RequestTooLarge
from ledger.connection import Connections, Work, is_away
from ledger.errors import brief
from proxy.database import project_key
from proxy.sealing import ProjectKey, Unreadable, Wrapping

T = TypeVar("T")
Items = tuple[msgspec.Raw, ...]

LINKS_MAX = 2000
HISTORY_BYTES_MAX = 64 * 1024 * 1024

_ID_CHARACTERS_MAX = 256
_PENDING_MAX = 10_000
_PENDING_BYTES_MAX = 64 * 1024 * 1024
_BATCH_MAX = 100
_BATCH_BYTES_MAX = 8 * 1024 * 1024
_PURGE_ROWS = 500
_RETRY_SECONDS = 1.0
_LAST_SECONDS = 10.0
_READERS_MAX = 4

_PUT = """
WITH response AS (
  INSERT INTO stored.response (project_id, response_id, previous_id, key_id, created_at,
                               expires_at, items_bytes, items, body)
  SELECT k.project_id, %(id)s, %(previous)s, k.key_id, to_timestamp(%(created)s),
         to_timestamp(%(expires)s), %(items_bytes)s, %(items)b, %(body)b
    FROM stored.project_key k WHERE k.key_id = %(key)s
  ON CONFLICT (project_id, response_id) DO UPDATE
    SET (previous_id, key_id, created_at, expires_at, items_bytes, items, body) =
        (excluded.previous_id, excluded.key_id, excluded.created_at, excluded.expires_at,
         excluded.items_bytes, excluded.items, excluded.body)
  RETURNING project_id, response_id
)
INSERT INTO stored.item (project_id, item_id, response_id)
SELECT r.project_id, i.item_id, r.response_id
  FROM response r CROSS JOIN unnest(%(item_ids)s::text[]) AS i(item_id)
ON CONFLICT DO NOTHING
"""
_BODY = """
SELECT r.response_id, k.wrapped, r.body
  FROM stored.response r JOIN stored.project_key k USING (key_id)
 WHERE r.project_id = %(project)s AND r.response_id = %(id)s
   AND r.expires_at > to_timestamp(%(now)s) AND k.secret_id = %(secret)b
"""
# Sizes first, so that no more is read than may be used.
_LINKS = """
WITH RECURSIVE link AS (
  SELECT r.response_id, r.previous_id, 1 AS n, r.items_bytes
    FROM stored.response r
   WHERE r.project_id = %(project)s AND r.response_id = %(id)s
     AND r.expires_at > to_timestamp(%(now)s)
  UNION ALL
  SELECT r.response_id, r.previous_id, l.n + 1, l.items_bytes + r.items_bytes
    FROM link l JOIN stored.response r
      ON r.project_id = %(project)s AND r.response_id = l.previous_id
   WHERE r.expires_at > to_timestamp(%(now)s)
     AND l.n <= %(links_max)s AND l.items_bytes <= %(bytes_max)s
)
SELECT r.response_id, k.wrapped, r.items, r.previous_id
  FROM link l
  JOIN stored.response r ON r.project_id = %(project)s AND r.response_id = l.response_id
  LEFT JOIN stored.project_key k ON k.key_id = r.key_id AND k.secret_id = %(secret)b
 ORDER BY l.n
"""
_ITEMS = """
WITH found AS (
  SELECT DISTINCT ON (i.item_id) i.response_id
    FROM stored.item i JOIN stored.response r USING (project_id, response_id)
    JOIN stored.project_key k USING (key_id)
   WHERE i.project_id = %(project)s AND i.item_id = ANY (%(ids)s)
     AND r.expires_at > to_timestamp(%(now)s) AND k.secret_id = %(secret)b
   ORDER BY i.item_id, r.created_at DESC
)
SELECT r.response_id, k.wrapped, r.items, r.previous_id
  FROM stored.response r JOIN stored.project_key k USING (key_id)
 WHERE r.project_id = %(project)s AND r.response_id IN (SELECT response_id FROM found)
   AND k.secret_id = %(secret)b
 ORDER BY r.created_at DESC
"""
# A retry of the request that made it must not bring it back.
_DELETE = """
WITH answer AS (
  UPDATE stored.answer SET state = 3, content = NULL
   WHERE project_id = %(project)s AND response_id = %(id)s AND state = 2
)
DELETE FROM stored.response
 WHERE project_id = %(project)s AND response_id = %(id)s AND expires_at > to_timestamp(%(now)s)
"""
_PURGE = "SELECT stored.purge(to_timestamp(%s), %s)"


class Link(NamedTuple):
    """One turn of a conversation: what was put in, what came out, each as valid JSON, and which
    response it goes on from ("": none)."""

    id: str
    previous: str
    input: Items
    output: Items


@dataclass(frozen=True, slots=True)
class Stored:
    """A response to keep. `body` is the response object; times are seconds since the epoch."""

    link: Link
    body: bytes
    created: float
    expires: float

    @property
    def size(self) -> int:
        """How many bytes it holds."""
        return len(self.body) + _size(self.link)


class ResponseStore(Protocol):
    """Where responses are kept. To each project only its own exist, and no expired ones.

    Everything but `put` raises Overloaded where the store does not answer.
    """

    def put(self, project_id: int, stored: Stored) -> bool:
        """Keep a response from now on. False where there is no room for it."""
        ...

    async def body(self, project_id: int, response_id: str) -> bytes | None:
        """The response object; None where there is no such response."""
        ...

    async def links(self, project_id: int, response_id: str) -> list[Link]:
        """The response and what it goes on from, newest first, as far as it is there.

        The conversation is whole where the last one has no `previous`. Raises RequestTooLarge for
        one that is longer than any request may be.
        """
        ...

    async def items(self, project_id: int, item_ids: Sequence[str]) -> Mapping[str, msgspec.Raw]:
        """Those of the items that are in a response, each from the newest that has it."""
        ...

    async def delete(self, project_id: int, response_id: str) -> bool:
        """Forget a response. False where there is no such response."""
        ...

    async def purge(self, now: float) -> int:
        """Delete what has expired by `now` or whose project is gone. Returns how many were."""
        ...


class PostgresResponses:
    """`ResponseStore` on a migrated database. `run` writes; `aclose` lets the connections go.

    What was sealed under another deployment secret does not exist.
    """

    def __init__(
        self,
        conninfo: str,
        secret: bytes,
        wall: Callable[[], float],
        *,
        log: Callable[[str], object] = lambda line: sys.stderr.write(line),
    ) -> None:
        self.dropped = 0
        self._wrapping = Wrapping(secret)
        self._wall = wall
        self._log = log
        self._connections = Connections(conninfo)
        self._readers = trio.CapacityLimiter(_READERS_MAX)
        self._pending: dict[tuple[int, str], Stored] = {}
        self._pending_bytes = 0
        self._some = trio.Event()
        self._writing = trio.Lock()
        self._away = False

    @property
    def pending(self) -> int:
        """How many responses wait to be written."""
        return len(self._pending)

    async def aclose(self) -> None:
        """Close every connection; running calls end as they end."""
        self._connections.close()

    # -- writing --------------------------------------------------------------------------------

    def put(self, project_id: int, stored: Stored) -> bool:
        """As of ResponseStore; it is written soon."""
        if not is_id(stored.link.id) or not self._has_room(stored.size):
            self.dropped += 1
            return False
        self._forget(project_id, stored.link.id)
        self._pending[project_id, stored.link.id] = stored
        self._pending_bytes += stored.size
        self._some.set()
        return True

    async def run(self) -> None:
        """Write what waits until cancelled, and then what is left, for a few seconds."""
        try:
            while True:
                await self._some.wait()
                self._some = trio.Event()
                while self._pending:
                    if not await self._write():
                        await trio.sleep(_RETRY_SECONDS)
        finally:
            with trio.move_on_after(_LAST_SECONDS, shield=True):
                while self._pending and await self._write():
                    pass
            if self._pending:
                self.dropped += len(self._pending)
                self._log(f"stored responses: {len(self._pending)} could not be written\n")

    async def _write(self) -> bool:
        """Write the oldest that wait. False where the database does not take them now."""
        async with self._writing:
            batch = self._batch()
            try:
                refused = await trio.to_thread.run_sync(self._store, batch)
            except psycopg.Error as error:
                if not self._away:
                    self._log(f"stored responses wait in memory: {brief(error)}\n")
                self._away = True
                return False
            for (project_id, response_id), stored in batch:
                if self._pending.get((project_id, response_id)) is stored:
                    self._forget(project_id, response_id)
        if self._away:
            self._log(f"stored responses are written again, {self.dropped} were lost so far\n")
        self._away = False
        for reason in refused:
            self.dropped += 1
            self._log(f"a response could not be stored: {reason}\n")
        return True

    def _has_room(self, size: int) -> bool:
        return not self._pending or (
            len(self._pending) < _PENDING_MAX and self._pending_bytes + size <= _PENDING_BYTES_MAX
        )

    def _forget(self, project_id: int, response_id: str) -> None:
        stored = self._pending.pop((project_id, response_id), None)
        if stored is not None:
            self._pending_bytes -= stored.size

    def _batch(self) -> list[tuple[tuple[int, str], Stored]]:
        batch: list[tuple[tuple[int, str], Stored]] = []
        size = 0
        for entry in self._pending.items():
            size += entry[1].size
            if batch and (size > _BATCH_BYTES_MAX or len(batch) == _BATCH_MAX):
                break
            batch.append(entry)
        return batch

    def _store(self, batch: Sequence[tuple[tuple[int, str], Stored]]) -> list[str]:
        """Write a batch; why some of it were refused. Raises psycopg.Error where the database is
        away, and then nothing, or only its beginning, was written."""
        try:
            self._connections.run(partial(self._insert, batch))
        except (psycopg.Error, Unreadable) as error:
            if is_away(error):
                raise
            if len(batch) == 1:
                return [brief(error)]
            return [reason for entry in batch for reason in self._store([entry])]
        return []

    def _insert(
        self, batch: Sequence[tuple[tuple[int, str], Stored]], connection: psycopg.Connection
    ) -> None:
        projects = {project_id for (project_id, _), _ in batch}
        # Before the transaction: a lock on one project is not held while waiting for the next.
        keys = {
            project_id: project_key(connection, self._wrapping, project_id)
            for project_id in projects
        }
        with connection.transaction():
            for (project_id, _), stored in batch:
                if (key := keys[project_id]) is not None:
                    connection.execute(_PUT, _row(project_id, stored, *key))

    # -- reading --------------------------------------------------------------------------------

    async def body(self, project_id: int, response_id: str) -> bytes | None:
        """As of ResponseStore."""
        if (pending := self._waiting(project_id, response_id)) is not None:
            return pending.body
        if not is_id(response_id):
            return None

        def read(rows: Sequence[TupleRow]) -> bytes | None:
            return self._open("body", project_id, rows[0]) if rows else None

        return await self._read(_BODY, project_id, {"id": response_id}, read)

    async def links(self, project_id: int, response_id: str) -> list[Link]:
        """As of ResponseStore."""
        found: list[Link] = []
        size = 0
        while response_id:
            page = await self._some_links(project_id, response_id)
            if not page:
                break
            found += page
            size += sum(map(_size, page))
            if size > HISTORY_BYTES_MAX or len(found) > LINKS_MAX:
                raise RequestTooLarge("The conversation is too long to be continued.")
            response_id = page[-1].previous
        return found

    async def items(self, project_id: int, item_ids: Sequence[str]) -> Mapping[str, msgspec.Raw]:
        """As of ResponseStore."""
        found: dict[str, msgspec.Raw] = {}
        for owner, response_id in reversed(self._pending):
            if owner == project_id and (kept := self._waiting(owner, response_id)) is not None:
                _pick(kept.link, item_ids, found)
        missing = [item_id for item_id in item_ids if item_id not in found and is_id(item_id)]

        def read(rows: Sequence[TupleRow]) -> dict[str, msgspec.Raw]:
            for row in rows:
                if (link := self._link(project_id, row)) is not None:
                    _pick(link, missing, found)
            return found

        return await self._read(_ITEMS, project_id, {"ids": missing}, read) if missing else found

    async def delete(self, project_id: int, response_id: str) -> bool:
        """As of ResponseStore."""
        waited = self._waiting(project_id, response_id) is not None
        self._forget(project_id, response_id)
        if not is_id(response_id):
            return False
        async with self._writing:  # it may be on its way right now
            deleted = await self._call(
                lambda connection: (
                    connection.execute(
                        _DELETE, {"project": project_id, "id": response_id, "now": self._wall()}
                    ).rowcount
                )
            )
        return waited or deleted > 0

    async def purge(self, now: float) -> int:
        """As of ResponseStore."""
        total, rows = 0, _PURGE_ROWS
        while rows >= _PURGE_ROWS:
            ((rows,),) = await self._call(
                lambda connection: connection.execute(_PURGE, [now, _PURGE_ROWS]).fetchall()
            )
            total += rows
        return total

    def _waiting(self, project_id: int, response_id: str) -> Stored | None:
        stored = self._pending.get((project_id, response_id))
        return stored if stored is not None and stored.expires > self._wall() else None

    async def _some_links(self, project_id: int, response_id: str) -> list[Link]:
        if (pending := self._waiting(project_id, response_id)) is not None:
            return [pending.link]
        if not is_id(response_id):
            return []

        def read(rows: Sequence[TupleRow]) -> list[Link]:
            links: list[Link] = []
            for row in rows:
                if (link := self._link(project_id, row)) is None:
                    break  # nobody goes on over a gap
                links.append(link)
            return links

        parameters = {
            "id": response_id,
            "links_max": LINKS_MAX,
            "bytes_max": HISTORY_BYTES_MAX,
        }
        return await self._read(_LINKS, project_id, parameters, read)

    def _link(self, project_id: int, row: TupleRow) -> Link | None:
        content = self._open("items", project_id, row)
        return None if content is None else Link(row[0], row[3], *_decode_items(content))

    def _open(self, what: str, project_id: int, row: TupleRow) -> bytes | None:
        """The content of a row that begins with response id, wrapped key and sealed content."""
        response_id, wrapped, sealed = row[:3]
        if wrapped is None:  # of another secret, or of a project that was deleted meanwhile
            return None
        try:
            key = self._wrapping.unwrap(wrapped, project_id)
            return key.open(sealed, _context(what, project_id, response_id))
        except Unreadable as error:
            self._log(f"a stored response cannot be read: {error}\n")
            return None

    # -- threads --------------------------------------------------------------------------------

    async def _read(
        self,
        statement: LiteralString,
        project_id: int,
        parameters: Mapping[str, object],
        read: Callable[[Sequence[TupleRow]], T],
    ) -> T:
        """What `read`, which runs in the thread as well, makes of the rows."""
        known = {"project": project_id, "now": self._wall(), "secret": self._wrapping.secret_id}
        return await self._call(
            lambda connection: read(
                connection.execute(statement, {**known, **parameters}, binary=True).fetchall()
            )
        )

    async def _call(self, work: Work[T]) -> T:
        try:
            return await trio.to_thread.run_sync(
                self._connections.run, work, abandon_on_cancel=True, limiter=self._readers
            )
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise Overloaded("Stored responses cannot be read now.", retry_after=1) from error


def is_id(text: str) -> bool:
    """Whether something can be kept under this id: nothing is, under any other."""
    return 0 < len(text) <= _ID_CHARACTERS_MAX and text.isascii() and text.isprintable()


# -- items ----------------------------------------------------------------------------------------


class _Identified(msgspec.Struct, gc=False):
    id: object = None


_encode_items = msgspec.json.Encoder().encode
_decode_items = msgspec.json.Decoder(tuple[Items, Items]).decode
_decode_identified = msgspec.json.Decoder(_Identified).decode


def item_id(item: msgspec.Raw) -> str:
    """The id of an item; "" where it has none that it could be found by."""
    try:
        found = _decode_identified(item).id
    except (msgspec.MsgspecError, RecursionError):
        return ""
    return found if isinstance(found, str) and is_id(found) else ""


def _pick(link: Link, wanted: Iterable[str], found: dict[str, msgspec.Raw]) -> None:
    """Add to `found` what is wanted of a turn and not there yet."""
    missing = set(wanted) - found.keys()
    for item in (*link.input, *link.output):
        if (name := item_id(item)) in missing:
            found[name] = item


def _size(link: Link) -> int:
    return sum(len(item) for item in (*link.input, *link.output))


def _row(project_id: int, stored: Stored, key_id: int, key: ProjectKey) -> dict[str, object]:
    """A response as `_PUT` wants it, sealed."""
    link = stored.link
    items = _encode_items((link.input, link.output))
    names = {item_id(item) for item in (*link.input, *link.output)} - {""}
    return {
        "key": key_id,
        "id": link.id,
        "previous": link.previous,
        "created": stored.created,
        "expires": stored.expires,
        "items_bytes": len(items),
        "items": key.seal(items, _context("items", project_id, link.id)),
        "body": key.seal(stored.body, _context("body", project_id, link.id)),
        "item_ids": sorted(names),
    }


def _context(what: str, project_id: int, response_id: str) -> bytes:
    """What sealed bytes are bound to, so that none can be put in another's place."""
    return f"{what} {project_id} {response_id}".encode()

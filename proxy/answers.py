"""Where answers are kept for their `Idempotency-Key`; what they are for is in `idempotency`.

One row for each (account, key), claimed before a request does anything, answered before it is
charged, gone after a day. A row that says `running` can be taken over once its maker has died
(`presence`), or by its times. Those are wall clocks of gateways, which may differ: a row that one
of them thinks stale although its request runs is lost to that request, which is then not charged.
So a wrong clock, or a process that only seems dead, costs an answer, never a customer.

Whoever calls waits for the database, and bounds that wait: a call that is cancelled goes on in its
thread, and what it does then harms nobody.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeVar

import msgspec
import psycopg
import trio

from adapters.errors import InvalidAPIKey, Overloaded
from ledger.connection import Connections, Work
from ledger.errors import brief
from proxy.database import project_key
from proxy.presence import Presence
from proxy.sealing import ProjectKey, Unreadable, Wrapping

T = TypeVar("T")

_CLAIMS_MAX = 4  # threads at once; those that keep have others, so that what is done can end
_KEEPS_MAX = 4
_PURGE_ROWS = 500

_CLAIM = """
SELECT a.request_id, a.project_id, a.fingerprint, a.state,
       CASE WHEN a.project_id = %(project)s AND a.fingerprint = %(fingerprint)b THEN a.content END,
       k.wrapped
  FROM stored.claim_answer(%(account)s, %(key)s, %(project)s, %(key_id)s, %(request)s::uuid,
                           %(fingerprint)b, to_timestamp(%(now)s), to_timestamp(%(stale)s),
                           to_timestamp(%(expires)s), %(maker)s) AS a
  LEFT JOIN stored.project_key k ON k.key_id = a.key_id AND k.secret_id = %(secret)b
"""
# Said again it finds its own word: a reply that was lost changes nothing.
_KEEP = """
UPDATE stored.answer SET state = %(state)s, content = %(content)b, response_id = %(response)s
 WHERE account_id = %(account)s AND key = %(key)s AND request_id = %(request)s::uuid
   AND state IN (1, %(state)s)
"""
_FORGET = """
DELETE FROM stored.answer
 WHERE account_id = %(account)s AND key = %(key)s AND request_id = %(request)s::uuid AND state = 1
"""
_PURGE = "SELECT stored.purge_answers(to_timestamp(%s), %s)"


class State(IntEnum):
    """What became of a request with a key. LOST: it was answered, but the answer is not here."""

    RUNNING = 1
    ANSWERED = 2
    LOST = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with a key. `fingerprint` tells other requests from a retry of this one, `expires`
    and `stale` (when it must have ended) are in seconds since the epoch."""

    account_id: int
    key: str
    project_id: int
    request_id: bytes
    fingerprint: bytes
    stale: float
    expires: float


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What a client got: a status, headers and a body without its framing."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, slots=True)
class Earlier:
    """The request that has a key already. `answer` is there where `state` says so and the asker
    may have it: the project and the fingerprint are the same."""

    request_id: bytes
    project_id: int
    fingerprint: bytes
    state: State
    answer: Answer | None = None


class AnswerStore(Protocol):
    """Where answers are kept. Each call raises Overloaded where the store does not answer, and
    then nothing is known of what it did."""

    async def claim(self, asked: Asked, now: float) -> Earlier | None:
        """None: the key belongs to this request from now on. Else, to the one returned."""
        ...

    async def keep(self, asked: Asked, answer: Answer | None, response_id: str) -> bool:
        """The request is answered, and may be charged: from now on nobody else will be.

        `answer` is None where it is not to be kept; `response_id` names the kept response that it
        is, "" where it is none. False where the key is no longer this request's.
        """
        ...

    async def forget(self, asked: Asked) -> None:
        """The request has ended without being charged: another may have its key."""
        ...

    async def purge(self, now: float) -> int:
        """Delete what has expired by `now` or whose project is gone. Returns how many were."""
        ...


class PostgresAnswers:
    """`AnswerStore` on a migrated database. `aclose` lets the connections go.

    `run` it, so that a retry need not wait once this process has died. What was sealed under
    another deployment secret is lost.
    """

    def __init__(
        self,
        conninfo: str,
        secret: bytes,
        *,
        log: Callable[[str], object] = lambda line: sys.stderr.write(line),
    ) -> None:
        self._wrapping = Wrapping(secret)
        self._log = log
        self._connections = Connections(conninfo)
        self._presence = Presence(conninfo, log)
        self._claims = trio.CapacityLimiter(_CLAIMS_MAX)
        self._keeps = trio.CapacityLimiter(_KEEPS_MAX)

    async def run(self) -> None:
        """Be seen to live, until cancelled. What is claimed before that, or while the database is
        away, can only become stale."""
        await self._presence.run()

    async def aclose(self) -> None:
        """Close every connection; running calls end as they end."""
        self._connections.close()

    async def claim(self, asked: Asked, now: float) -> Earlier | None:
        """As of AnswerStore. Cancelled, it gives back what it may still claim."""
        abandoned = threading.Event()

        def work(connection: psycopg.Connection) -> Earlier | None:
            earlier = self._claim(connection, asked, now)
            if earlier is None and abandoned.is_set():
                connection.execute(_FORGET, _names(asked))
            return earlier

        try:
            return await self._call(work, self._claims)
        except BaseException:
            abandoned.set()
            raise

    async def keep(self, asked: Asked, answer: Answer | None, response_id: str) -> bool:
        """As of AnswerStore."""

        def work(connection: psycopg.Connection) -> bool:
            content = None
            if answer is not None:
                key = project_key(connection, self._wrapping, asked.project_id)
                # Of a project that was deleted meanwhile nothing is kept, but that it was answered.
                if key is not None:
                    content = key[1].seal(_encode(answer), _context(asked))
            state = State.LOST if content is None else State.ANSWERED
            parameters = {"state": state.value, "content": content, "response": response_id or None}
            return connection.execute(_KEEP, _names(asked) | parameters).rowcount > 0

        return await self._call(work, self._keeps)

    async def forget(self, asked: Asked) -> None:
        """As of AnswerStore."""
        await self._call(
            lambda connection: connection.execute(_FORGET, _names(asked)).rowcount, self._keeps
        )

    async def purge(self, now: float) -> int:
        """As of AnswerStore."""
        total, rows = 0, _PURGE_ROWS
        while rows >= _PURGE_ROWS:
            ((rows,),) = await self._call(
                lambda connection: connection.execute(_PURGE, [now, _PURGE_ROWS]).fetchall(),
                self._claims,
            )
            total += rows
        return total

    def _claim(self, connection: psycopg.Connection, asked: Asked, now: float) -> Earlier | None:
        key = project_key(connection, self._wrapping, asked.project_id)
        if key is None:
            raise InvalidAPIKey("The project of this API key was deleted.")
        parameters = _names(asked) | {
            "project": asked.project_id,
            "key_id": key[0],
            "fingerprint": asked.fingerprint,
            "now": now,
            "stale": asked.stale,
            "expires": asked.expires,
            "maker": self._presence.number,
            "secret": self._wrapping.secret_id,
        }
        ((request_id, project_id, fingerprint, state, content, wrapped),) = connection.execute(
            _CLAIM, parameters, binary=True
        ).fetchall()
        if request_id.bytes == asked.request_id:
            return None
        if wrapped is None and project_id == asked.project_id:
            return Earlier(request_id.bytes, project_id, asked.fingerprint, State.LOST)
        earlier = Earlier(request_id.bytes, project_id, fingerprint, State(state))
        return earlier if content is None else self._opened(earlier, asked, content, key[1])

    def _opened(self, earlier: Earlier, asked: Asked, content: bytes, key: ProjectKey) -> Earlier:
        state, answer = State.LOST, None
        try:
            context = _context(asked, earlier.request_id)
            state, answer = State.ANSWERED, _decode(key.open(content, context))
        except Unreadable as error:
            self._log(f"a kept answer cannot be read: {error}\n")
        return Earlier(earlier.request_id, earlier.project_id, earlier.fingerprint, state, answer)

    async def _call(self, work: Work[T], limiter: trio.CapacityLimiter) -> T:
        try:
            return await trio.to_thread.run_sync(
                self._connections.run, work, abandon_on_cancel=True, limiter=limiter
            )
        except (psycopg.Error, Unreadable) as error:
            self._log(f"answers for idempotency keys: {brief(error)}\n")
            raise Overloaded("Kept answers cannot be read now.", retry_after=1) from error


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Answer).decode


def _names(asked: Asked) -> dict[str, object]:
    """What a request's row is found by."""
    return {"account": asked.account_id, "key": asked.key, "request": asked.request_id.hex()}


def _context(asked: Asked, request_id: bytes | None = None) -> bytes:
    """What sealed bytes are bound to, so that none can be put in another's place."""
    made_by = (request_id or asked.request_id).hex()
    return f"answer {asked.account_id} {asked.project_id} {made_by} {asked.key}".encode()

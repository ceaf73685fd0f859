"""`Idempotency-Key`: a request sent twice is answered twice, and charged once.

Clients cannot tell a lost request from a lost answer, and send the request again. With a key they
may: the first request claims (account, key) before it does anything, its answer is kept for a day,
and whoever comes later with the same key and the same request is given that. Only requests with
the header touch the database.

What "charged once" rests on:

1. A request with a key is charged only after its row says `answered`, and the row does so only for
   the request that holds the key. So a row that says `running` was charged to nobody, however long
   ago its gateway died, and whatever is still in a journal somewhere.
2. A `running` row whose process has died, or that is stale, may therefore be taken over. A request
   that lost its row although it lived (the database was started again, a gateway slept, a wrong
   clock) finds out when it wants to keep its answer, and is not charged.
3. Where the database does not take the answer in time, nothing is charged: the client gets an
   error in place of the end of its answer, and the provider's cost is booked as nobody's.
4. The answer is complete in the database before its last byte leaves. A crash between keeping and
   charging gives an answer away; no crash charges twice.

A client that leaves does not stop a request with a key, since getting the answer later is what the
key is for. It runs to its end or its deadline, unheard. An answer that was cut short (the upstream
broke off, the deadline passed) is charged for what was produced, so it is kept as it was, and a
retry gets the same. A request that fails before anything is charged gives its key back.

Memory: what is relayed is recorded on the way, at most `ANSWER_BYTES_MAX` of one answer and
`RECORDED_BYTES_MAX` of all in a worker. Beyond either the client is served as ever, the row says
that the answer is not there, and a retry is told the request id of the receipt. Replays take room
from the same store.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import uuid
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import parse_qsl

import msgspec
import trio

from adapters.codec import Ask, Headers, Operation
from adapters.errors import (
    APIError,
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    IdempotentAnswerLost,
    InvalidRequest,
    Overloaded,
)
from proxy.answers import Answer, AnswerStore, Asked, Earlier, State
from proxy.authenticate import Principal
from proxy.connection import Connection
from proxy.record import Record
from proxy.request_head import Head
from proxy.watch import Watch

T = TypeVar("T")

ANSWER_BYTES_MAX = 8 * 1024 * 1024
RECORDED_BYTES_MAX = 128 * 1024 * 1024
KEPT_SECONDS = 86_400
STALE_MARGIN_SECONDS = 60.0  # after its deadline a request unwinds, keeps and settles

_HEADER = b"idempotency-key"
_KEY = re.compile(r"[ -~]{1,255}")
_ACTIONS = ("generate", "embed")
_CLAIM_SECONDS = 5.0
_KEEP_SECONDS = 5.0
_FORGET_SECONDS = 2.0
_RETRY_AFTER_SECONDS = 5
_PERSON = b"fb idempotency"
_LONG_BYTES = 1024 * 1024  # hashed in a thread: a millisecond
# What is true of the moment, not of the answer.
_PASSING = ("x-ratelimit-", "anthropic-ratelimit-", "x-farebox-balance-usd")


class Answers:
    """Where a worker keeps answers, and how many bytes of them it holds in memory right now."""

    def __init__(self, store: AnswerStore, wall: Callable[[], float]) -> None:
        self.store = store
        self.wall = wall
        self.recorded_bytes = 0

    def claim(
        self,
        key: str,
        printed: bytes,
        principal: Principal,
        record: Record,
        connection: Connection,
        watch: Watch,
    ) -> Claim:
        """The claim of a request, `printed` being its fingerprint, to a key of its account."""
        now = self.wall()
        asked = Asked(
            account_id=principal.account_id,
            key=key,
            project_id=principal.project_id,
            request_id=record.request_id,
            fingerprint=printed,
            stale=now + connection.settings.max_request_seconds + STALE_MARGIN_SECONDS,
            expires=now + KEPT_SECONDS,
        )
        return Claim(self, watch, connection, asked)

    def take(self, size: int) -> bool:
        """Room for so many bytes; False where there is none."""
        if self.recorded_bytes + size > RECORDED_BYTES_MAX:
            return False
        self.recorded_bytes += size
        return True

    def give_back(self, size: int) -> None:
        """Those bytes are held no more."""
        self.recorded_bytes -= size


def key_of(head: Head, operation: Operation) -> str | None:
    """The key that a request came with; None where there is none, or nothing to be repeated.

    Raises InvalidRequest for one that cannot be a key.
    """
    value = head.headers.get(_HEADER)
    if value is None or operation.action not in _ACTIONS:
        return None
    key = value.decode("latin-1")
    if not _KEY.fullmatch(key):
        raise InvalidRequest("An Idempotency-Key is 1 to 255 printable ASCII characters.")
    return key


async def fingerprint(secret: bytes, operation: Operation, ask: Ask, body: bytes) -> bytes:
    """What tells a retry from another request: the operation, the model in the path, the query
    but for the API key, and every byte of the body.

    It is keyed, so that nobody who reads the database can try out what was asked.
    """
    query = [pair for pair in parse_qsl(ask.query, keep_blank_values=True) if pair[0] != "key"]
    target = msgspec.json.encode((operation.number, ask.id, sorted(query)))

    def digest() -> bytes:
        hashed = hashlib.blake2b(key=secret, person=_PERSON, digest_size=32)
        hashed.update(b"%d " % len(target) + target)
        hashed.update(body)
        return hashed.digest()

    return digest() if len(body) <= _LONG_BYTES else await trio.to_thread.run_sync(digest)


class Claim:
    """A key for the time of one request: enter it before anything is reserved.

    Entering raises IdempotencyKeyInUse, IdempotencyKeyReused, IdempotentAnswerLost, and Overloaded
    where the database does not answer. `replay` is the answer where there is one already. Else the
    request runs, unwatched, and records with `begin` and `add` what it sends; `keep` has to succeed
    before it is charged, which is what `kept` says. Leaving without that gives the key back.
    """

    __slots__ = (
        "_answers",
        "_asked",
        "_connection",
        "_ended",
        "_headers",
        "_parts",
        "_size",
        "_status",
        "_watch",
        "kept",
        "replay",
    )

    def __init__(
        self, answers: Answers, watch: Watch, connection: Connection, asked: Asked
    ) -> None:
        self.kept = False
        self.replay: Answer | None = None
        self._answers = answers
        self._watch = watch
        self._connection = connection
        self._asked = asked
        self._ended = False
        self._status = 0
        self._headers: Headers = []
        self._parts: list[bytes] | None = []  # None: there was no room for all of them
        self._size = 0

    async def __aenter__(self) -> Self:
        self._unwatch()
        try:
            store, now = self._answers.store, self._answers.wall()
            earlier = await _in_time(_CLAIM_SECONDS, lambda: store.claim(self._asked, now))
            if earlier is not None:
                self.replay = self._found(earlier)
        except BaseException:
            self._watch_again()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if not self.kept and self.replay is None:
                store = self._answers.store
                with contextlib.suppress(APIError):  # until it is stale, or this process has ended
                    await _in_time(_FORGET_SECONDS, lambda: store.forget(self._asked))
        finally:
            self._answers.give_back(self._size)
            self._watch_again()

    def begin(self, status: int, headers: Headers) -> None:
        """The answer's head, before it is sent."""
        self._status = status
        self._headers = [(name, value) for name, value in headers if not name.startswith(_PASSING)]

    def add(self, data: bytes) -> None:
        """The next bytes of its body, before they are sent."""
        if self._parts is None or not data:
            return
        if self._size + len(data) <= ANSWER_BYTES_MAX and self._answers.take(len(data)):
            self._size += len(data)
            self._parts.append(data)
        else:
            self._parts = None

    async def keep(self, final: bytes, response_id: str = "") -> None:
        """The answer ends with these bytes, which leave only after this: keep it.

        `response_id` is of the kept response that it is. Raises Overloaded where the answer may not
        be charged, since it is not certain that nobody else will be.
        """
        self._ended = True
        self.add(final)
        answer = self._recorded()
        store = self._answers.store
        self.kept = await _in_time(
            _KEEP_SECONDS, lambda: store.keep(self._asked, answer, response_id)
        )
        if not self.kept:
            raise Overloaded("Another request took over the key.", retry_after=1)

    async def keep_cut(self, final: bytes) -> None:
        """The answer is cut short, and was not kept yet. Never raises: `kept` says what became of
        it."""
        if not self._ended:
            with contextlib.suppress(APIError):
                await self.keep(final)

    def _recorded(self) -> Answer | None:
        if self._parts is None or not self._status:
            return None
        return Answer(self._status, self._headers, b"".join(self._parts))

    def _found(self, earlier: Earlier) -> Answer:
        """What is there for a retry. Raises APIError where that is nothing."""
        if earlier.project_id != self._asked.project_id:
            raise IdempotencyKeyReused(
                "Another project of this account has used this Idempotency-Key: send another.",
                should_retry=False,
            )
        if earlier.fingerprint != self._asked.fingerprint:
            raise IdempotencyKeyReused(
                "This Idempotency-Key came with another request before: send a new key with a new "
                "request.",
                should_retry=False,
            )
        if earlier.state is State.RUNNING:
            raise IdempotencyKeyInUse(
                "The request with this Idempotency-Key is still running: its answer can be had "
                "with the same key later.",
                should_retry=True,
                headers=[("retry-after", str(_RETRY_AFTER_SECONDS))],
            )
        if earlier.answer is None:
            raise _lost(earlier.request_id)
        if not self._answers.take(len(earlier.answer.body)):
            raise Overloaded("Too many answers are being sent again.", retry_after=1)
        self._size = len(earlier.answer.body)
        return earlier.answer

    def _unwatch(self) -> None:
        self._watch.remove(self._connection.transport)
        self._connection.outlives_client = True

    def _watch_again(self) -> None:
        self._connection.outlives_client = False
        self._watch.add(self._connection.transport, self._connection.deadline.scope)


async def replay(connection: Connection, record: Record, answer: Answer) -> None:
    """Send an answer once more: its status, its body and what its headers said of it, the id of
    the request that it was made for among them."""
    record.status = answer.status
    headers: Sequence[tuple[str, str]] = [*answer.headers, ("idempotent-replayed", "true")]
    await connection.respond(answer.status, headers, answer.body)


def _lost(request_id: bytes) -> IdempotentAnswerLost:
    receipt = str(uuid.UUID(bytes=request_id))
    return IdempotentAnswerLost(
        f"This request was answered before: its charge is at /v1/usage/{receipt}. The answer is "
        f"not here: it was too large to be kept (over {ANSWER_BYTES_MAX} bytes, or too many at "
        "once), or has been deleted. Send a new Idempotency-Key to have it made, and charged, "
        "again.",
        should_retry=False,
        details={"request_id": receipt},
    )


async def _in_time(seconds: float, call: Callable[[], Awaitable[T]]) -> T:
    """What the store says, whatever is being cancelled around it. Raises Overloaded."""
    with trio.move_on_after(seconds, shield=True):
        return await call()
    raise Overloaded("Kept answers cannot be reached now.", retry_after=1)

"""The life of one request, from its first byte to settled. Start reading here.

The steps, in order, and what may be relied on after each:

 1  parse head        connection      READING     nothing is held
 2  operation         adapters.registry
 3  principal         authenticate
 4  permit            admit           ADMITTED    holds a permit, in which its body is counted
 5  body              connection                  with an Idempotency-Key: `idempotency` claims it
                                                  here, and may have the answer already
 6  candidates        route, calls
 7  reservation       need, reserve   RESERVED    holds permit and reservation; *nothing was sent
                                                  upstream before this*
 8  attempts          fallback        ATTEMPTING  no content was sent, at most a head and signs of
                                                  life; *another candidate may be tried*
 9  stream            relay           STREAMING   content was sent; *no other candidate, errors
                                                  become stream events or a broken connection*;
                                                  what was asked is not held any more
10  settled           settle, record  SETTLED     posted or voided, exactly once, on every path
                                                  including cancellation

What is the console's leaves before step 2 (`control`). What needs no model is looked up after step
3, and a count of tokens leaves after step 6 (`count`).

A connection's exchanges run in one cancel scope. Its deadline follows the stage, and the watch
cancels it when the client leaves, unless a retry is to get the answer; what was acquired is a
context manager, so both unwind through step 10. Every step may raise APIError; it is rendered in
the caller's own envelope.
"""

from __future__ import annotations

import sys
import traceback

import trio

from adapters import registry
from adapters.codec import Ask
from adapters.envelope import Envelopes
from adapters.errors import (
    APIError,
    InsufficientBalance,
    InternalError,
    InvalidRequest,
    RateLimited,
    RequestTimeout,
    UpstreamTimeout,
)
from proxy import (
    authenticate,
    control,
    count,
    fallback,
    idempotency,
    models,
    receipts,
    relay,
    reserve,
    route,
    stored,
)
from proxy.admit import Permit
from proxy.authenticate import Principal
from proxy.calls import Calls
from proxy.connection import ClientGone, Connection
from proxy.gateway import Gateway
from proxy.idempotency import Claim
from proxy.need import Need
from proxy.record import CLIENT_CLOSED, Record
from proxy.request_head import Head, Purpose
from proxy.transport import Transport

_ERROR_SECONDS = 10.0


async def serve_connection(gateway: Gateway, transport: Transport) -> None:
    """Exchange after exchange, until the connection cannot carry another.

    They share one cancel scope: a scope of its own for each costs more than parsing its head, and
    whatever cancels an exchange (a deadline, the client leaving) ends its connection as well.
    """
    with gateway.deadlines.new() as deadline:
        connection = Connection(transport, gateway.settings, deadline)
        record = Record(gateway.means.monotonic)
        gateway.watch.add(transport, deadline.scope)
        gateway.connections.add(connection)
        try:
            while await run(gateway, connection, record):
                record = Record(gateway.means.monotonic)
        finally:
            gateway.connections.discard(connection)
            gateway.watch.remove(transport)
    if not deadline.scope.cancelled_caught or connection.stage == "waiting":
        return
    if deadline.expired:
        await _refuse(gateway, connection, record, _too_late(connection))
    else:
        record.status = CLIENT_CLOSED  # the watch saw the client leave
    _finish(gateway, connection, record)


async def run(gateway: Gateway, connection: Connection, record: Record) -> bool:
    """One exchange. False where the connection has to be closed after it."""
    error: APIError | None = None
    try:
        try:
            head = await connection.read_head()
        finally:
            record.start(gateway.wall())  # also for a head that is refused, or never complete
        if head is None:
            return False
        if gateway.draining:
            connection.reusable = False  # the answer says so
        await serve_exchange(gateway, connection, head, record)
    except APIError as refused:
        error = refused.with_traceback(None)  # its frames hold it: only the collector would free it
    except ClientGone:
        record.status = CLIENT_CLOSED
        connection.reusable = False
    except Exception:  # the one place that turns a bug into a 500
        sys.stderr.write(f"{record.id}: {traceback.format_exc()}")
        error = InternalError("The gateway failed to handle this request.")
    if error is not None:
        await _refuse(gateway, connection, record, error)
    _finish(gateway, connection, record)
    return connection.reusable and not gateway.draining


async def serve_exchange(
    gateway: Gateway, connection: Connection, head: Head, record: Record
) -> None:
    """Steps 2 to 10. Raises APIError and ClientGone, and leaves nothing held."""
    purpose = head.purpose
    if purpose is None:
        if control.takes(head.path):
            await control.serve(gateway, connection, head, record)
            return
        purpose = head.purpose = _purpose(gateway, head, record)
    operation = record.operation = purpose.operation
    record.refusals = operation.refusals
    principal = gateway.keyring.find(purpose.key_hash, record.came_at)
    if principal is None:
        principal = await _newcomer(gateway, head, record)
    record.principal = principal
    if operation.codec is None:
        await _look_up(gateway, connection, purpose.ask, principal, record)
        return
    with gateway.load.admit(gateway.memory, connection.body_bytes) as permit:
        calls, claim = await _read(gateway, connection, permit, head, purpose, principal, record)
        if claim is None:
            await _serve(gateway, connection, permit, head, calls, principal, record)
            return
        async with claim:
            if claim.replay is None:
                await _serve(gateway, connection, permit, head, calls, principal, record, claim)
            else:
                record.model, record.stream = calls.request.model, calls.request.stream
                await idempotency.replay(connection, record, claim.replay)
        if connection.client_gone:
            record.status = CLIENT_CLOSED


def _purpose(gateway: Gateway, head: Head, record: Record) -> Purpose:
    """What a head asks for, and with which key."""
    try:
        operation, name = registry.find(head.method, head.path, head.query, head.headers)
    except APIError:  # what is no operation has no words of its own
        record.refusals = registry.refusals(head.path, head.query, head.headers)
        raise
    record.operation, record.refusals = operation, operation.refusals  # a key may be refused now
    key_hash = authenticate.hash_of_key(gateway.keyring, head)
    return Purpose(operation, Ask(name, head.query, head.headers), key_hash)


async def _newcomer(gateway: Gateway, head: Head, record: Record) -> Principal:
    """The caller, whose key is waited for. That is nobody's work."""
    began = record.clock()
    try:
        return await authenticate.newcomer(gateway.keyring, head, record.came_at)
    finally:
        record.client_seconds += record.clock() - began


async def _read(
    gateway: Gateway,
    connection: Connection,
    permit: Permit,
    head: Head,
    purpose: Purpose,
    principal: Principal,
    record: Record,
) -> tuple[Calls, Claim | None]:
    """Step 5: the request, and the claim of its idempotency key, which is still to be made."""
    if connection.body_bytes == 0:
        raise InvalidRequest(
            "The request has no body: send JSON with Content-Length or chunked encoding."
        )
    body = await connection.read_body(connection.settings.max_body_bytes, permit.chunk)
    operation, ask, codec = purpose.operation, purpose.ask, purpose.operation.codec
    assert codec is not None, "a model is asked"
    envelopes = Envelopes(gateway.secret, principal.account_id)
    calls = Calls(codec, codec.decode(body, ask), envelopes, int(record.came_at))
    if (key := idempotency.key_of(head, operation)) is None:
        return calls, None
    printed = await idempotency.fingerprint(gateway.secret, operation, ask, body)
    watch = gateway.watch
    return calls, gateway.answers.claim(key, printed, principal, record, connection, watch)


async def _serve(
    gateway: Gateway,
    connection: Connection,
    permit: Permit,
    head: Head,
    calls: Calls,
    principal: Principal,
    record: Record,
    claim: Claim | None = None,
) -> None:
    """Steps 6 to 10, for a request that is decoded; `claim` is of its idempotency key."""
    keeper: stored.Keeper | None = None
    if calls.request.protocol == "openai-responses":
        calls.request, said = await stored.resolve(gateway.responses, principal, calls.request)
        keeper = stored.Keeper(gateway.responses, principal, said, keyed=claim is not None)
    found = route.find(gateway.snapshot, principal, calls.request.model, calls.request.kind)
    record.model, record.stream = found.model.id, calls.request.stream
    if record.operation.action == "count":
        await count.serve(gateway, connection, found, calls, record)
        return
    need = Need.of(calls.request, found)
    async with await reserve.hold(gateway, found, need, record, claim) as hold:
        conversation = head.header(b"x-farebox-conversation-id") or calls.request.conversation_id
        told = hold.headers(conversation)
        delivery = relay.Delivery(connection, record, calls, told, keeper, claim)
        attempts = gateway, calls, found, hold, record, conversation
        if not need.stream:
            hold.answer = await fallback.first_event(*attempts)
            await relay.plain(delivery, hold)
            return
        with gateway.keep_alives.pulse(delivery.beat) as pulse:
            hold.answer = await fallback.first_event(*attempts)
            need.input.read()  # what streams may take minutes
            calls.let_go()
            if keeper is None or not keeper.keeps:
                permit.close()
            await relay.stream(gateway, delivery, hold, pulse)


async def _look_up(
    gateway: Gateway,
    connection: Connection,
    ask: Ask,
    principal: Principal,
    record: Record,
) -> None:
    """Answer what needs no model: the list of models, what was used, and responses that were
    kept."""
    operation = record.operation
    if operation.action == "models":
        body = models.answer(gateway.snapshot, principal, operation, ask)
    elif operation.action == "usage":
        body = await receipts.answer(gateway.usage, gateway.ledger, principal, ask.id, ask.query)
    else:
        body = await stored.answer(gateway.responses, principal, operation.name, ask.id, ask.query)
    await connection.skip_body()
    record.status = 200
    headers = [("content-type", "application/json"), *record.id_headers()]
    await connection.respond(200, headers, body)


def _too_late(connection: Connection) -> APIError:
    settings = connection.settings
    if connection.stage == "head":
        return RequestTimeout(f"The request's head took over {settings.head_seconds:g} s.")
    if connection.stage == "body":
        return RequestTimeout(
            f"The body paused for over {settings.body_seconds:g} s, or was not complete after "
            f"{settings.max_request_seconds:g} s."
        )
    return UpstreamTimeout(f"The request took over {settings.max_request_seconds:g} s.")


async def _refuse(
    gateway: Gateway, connection: Connection, record: Record, error: APIError
) -> None:
    """Tell the client, in its envelope and in a form that fits what was already sent."""
    if isinstance(error, RateLimited):
        gateway.metrics.limited(str(error.details["limit"])).inc()
    elif isinstance(error, InsufficientBalance):
        gateway.metrics.insufficient_balance.inc()
    record.code = error.code
    record.status = record.status or error.status
    refusals = record.refusals
    with trio.move_on_after(_ERROR_SECONDS) as scope:
        try:
            if connection.response_started:
                connection.reusable = False
                if record.stream:
                    await connection.end_stream(refusals.error_event(error, record.id))
                return
            await connection.skip_body()
            await connection.respond(
                error.status,
                [
                    ("content-type", "application/json"),
                    *record.id_headers(),
                    *refusals.error_headers(error),
                    *error.headers,
                ],
                refusals.error_body(error, record.id),
            )
            if not connection.reusable:
                await connection.linger()
        except ClientGone:
            record.status = CLIENT_CLOSED
    if scope.cancelled_caught:
        connection.reusable = False


def _finish(gateway: Gateway, connection: Connection, record: Record) -> None:
    """Write down what happened."""
    record.client_seconds += connection.waited_seconds
    record.ended = record.ended or record.clock()
    if record.operation is control.OPERATION:
        gateway.metrics.console(str(record.status)).inc()
    else:
        record.count(gateway.metrics)
    gateway.log.add(record.line())

"""One connection over memory: what is read, refused and written, at exact virtual times."""

from __future__ import annotations

import tracemalloc

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from adapters.errors import (
    HeadTooLarge,
    InvalidRequest,
    RequestTooLarge,
    UnsupportedEncoding,
)
from proxy.connection import STALL_SECONDS, ClientGone, Connection, Stage
from proxy.deadlines import Deadline, Deadlines
from proxy.request_head import Head
from proxy.settings import ServerSettings
from tests.fakes.network import BUFFER_BYTES, MemoryTransport, connected_pair

POST = b"POST /v1/chat/completions?key=k HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"


def opened(**settings: int) -> tuple[MemoryTransport, Connection]:
    """A client's end of a connection, and the connection; nobody watches its deadline yet."""
    client, server = connected_pair()
    deadline = Deadlines().new()
    return client, Connection(server, ServerSettings(**settings), deadline)  # type: ignore[arg-type] # ints


async def read(connection: Connection) -> Head | None:
    return await connection.read_head()


async def expiring(connection: Connection) -> Deadline:
    """Read a head and a body under the connection's deadline, which passes."""
    deadlines = Deadlines()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        with deadlines.new() as connection.deadline:
            await connection.read_head()
            await connection.read_body(100)
        nursery.cancel_scope.cancel()
    return connection.deadline


async def test_a_request_is_split_into_its_parts() -> None:
    client, connection = opened()
    await client.send(POST)
    head = await read(connection)
    assert head is not None
    assert (head.method, head.path, head.query) == ("POST", "/v1/chat/completions", "key=k")
    assert connection.body_bytes == 4
    assert await connection.read_body(100) == b"body"
    assert connection.reusable


async def test_a_client_that_waits_to_be_heard_before_it_sends_the_body_is_told_at_once() -> None:
    client, connection = opened()
    await client.send(POST)
    await read(connection)
    await connection.read_body(100)
    assert isinstance(connection.transport, MemoryTransport)
    assert connection.transport.acknowledged == 0
    await client.send(POST.removesuffix(b"body"))
    async with trio.open_nursery() as nursery:
        await read(connection)
        nursery.start_soon(connection.read_body, 100)
        await wait_all_tasks_blocked()
        assert connection.transport.acknowledged == 1
        await client.send(b"body")


async def test_bytes_may_come_one_at_a_time(autojump_clock: MockClock) -> None:
    client, connection = opened()
    async with trio.open_nursery() as nursery:

        async def trickle() -> None:
            for byte in POST:
                await client.send(bytes([byte]))

        nursery.start_soon(trickle)
        head = await read(connection)
        assert head is not None
        assert await connection.read_body(100) == b"body"


async def test_two_requests_in_one_packet_are_two_requests() -> None:
    client, connection = opened()
    await client.send(POST + POST.replace(b"body", b"more"))
    bodies = []
    for _ in range(2):
        head = await read(connection)
        assert head is not None
        bodies.append(await connection.read_body(100))
        await connection.respond(200, [], b"{}")
    assert bodies == [b"body", b"more"]


async def test_a_head_and_its_body_leave_in_one_send() -> None:
    client, connection = opened()
    await client.send(POST)
    await read(connection)
    await connection.read_body(100)
    await connection.respond(200, [("x-request-id", "7")], b"{}")
    answer = await client.receive()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\ndate: ")
    assert answer.endswith(b"x-request-id: 7\r\ncontent-length: 2\r\n\r\n{}")


async def test_a_stream_is_chunked_and_ends() -> None:
    client, connection = opened()
    await client.send(POST)
    await read(connection)
    await connection.read_body(100)
    await connection.start_stream(200, [], b"first")
    await connection.send_chunk(b"second")
    await connection.end_stream(b"last")
    answer = await client.receive()
    assert answer.endswith(b"\r\n\r\n5\r\nfirst\r\n6\r\nsecond\r\n4\r\nlast\r\n0\r\n\r\n")
    assert connection.reusable


async def test_http_1_0_gets_a_plain_body_and_the_connection_ends() -> None:
    client, connection = opened()
    await client.send(POST.replace(b"HTTP/1.1", b"HTTP/1.0"))
    await read(connection)
    await connection.read_body(100)
    await connection.start_stream(200, [], b"first")
    await connection.end_stream(b"last")
    answer = await client.receive()
    assert b"transfer-encoding" not in answer
    assert b"connection: close" in answer
    assert answer.endswith(b"\r\n\r\nfirstlast")
    assert not connection.reusable


async def test_a_compressed_body_is_refused_once_it_is_wanted() -> None:
    client, connection = opened()
    await client.send(POST.replace(b"Host", b"Content-Encoding: gzip\r\nHost"))
    assert await read(connection) is not None
    with pytest.raises(UnsupportedEncoding, match="gzip"):
        await connection.read_body(100)


async def test_expect_continue_is_answered_before_the_body() -> None:
    client, connection = opened()
    head, body = POST[:-4], POST[-4:]
    await client.send(head.replace(b"Host", b"Expect: 100-continue\r\nHost"))
    await read(connection)
    async with trio.open_nursery() as nursery:

        async def wait_for_permission() -> None:
            assert await client.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(body)

        nursery.start_soon(wait_for_permission)
        assert await connection.read_body(100) == b"body"


BAD_HEADS = {
    "no HTTP at all": (b"hello\r\n\r\n", InvalidRequest),
    "two lengths": (POST.replace(b"Host", b"Content-Length: 5\r\nHost"), InvalidRequest),
    "length and chunked": (
        POST.replace(b"Host", b"Transfer-Encoding: chunked\r\nHost"),
        InvalidRequest,
    ),
    "no number": (POST.replace(b"Length: 4", b"Length: four"), InvalidRequest),
    "unknown transfer coding": (
        POST.replace(b"Content-Length: 4", b"Transfer-Encoding: gzip"),
        InvalidRequest,
    ),
    "a header twice": (
        POST.replace(b"Host: x", b"Host: x\r\nAuthorization: a\r\nAuthorization: b"),
        InvalidRequest,
    ),
    "too large, whole": (POST.replace(b"Host", b"X: " + b"x" * 2000 + b"\r\nHost"), HeadTooLarge),
    "too large, unfinished": (b"GET / HTTP/1.1\r\nX: " + b"x" * 3000, HeadTooLarge),
}


@pytest.mark.parametrize("name", BAD_HEADS)
async def test_bad_heads_are_refused(name: str) -> None:
    data, error = BAD_HEADS[name]
    client, connection = opened(max_head_bytes=1024)
    await client.send(data)
    with pytest.raises(error):
        await read(connection)


AMBIGUOUS = {
    "a header twice": b"Host: x\r\nAuthorization: a\r\nAuthorization: b\r\nContent-Length: 4",
    "length and chunked": b"Host: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked",
    "chunked in HTTP/1.0": b"Connection: keep-alive\r\nTransfer-Encoding: chunked",
}


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_what_follows_an_ambiguous_head_is_never_taken_for_a_request(name: str) -> None:
    client, connection = opened()
    version = b"1.0" if "1.0" in name else b"1.1"
    await client.send(b"POST /x HTTP/" + version + b"\r\n" + AMBIGUOUS[name] + b"\r\n\r\n" + POST)
    with pytest.raises(InvalidRequest):
        await read(connection)
    await connection.skip_body()
    assert not connection.reusable


CHUNKY = (
    b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"1\r\nx\r\n" * 5000
    + b"0\r\n\r\n"
)


@pytest.mark.parametrize("name", ["requests sent ahead", "tiny chunks"])
async def test_nobody_waits_while_a_full_buffer_is_worked_off(name: str) -> None:
    client, connection = opened()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    await client.send(CHUNKY if name == "tiny chunks" else POST * 50)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        if name == "tiny chunks":
            await read(connection)
            assert await connection.read_body(5000) == b"x" * 5000
        else:
            for _ in range(50):
                await read(connection)
                assert await connection.read_body(100) == b"body"
        nursery.cancel_scope.cancel()
    assert turns > 40


async def test_a_body_over_its_limit_is_refused() -> None:
    client, connection = opened()
    chunked = POST.replace(b"Content-Length: 4", b"Transfer-Encoding: chunked").replace(
        b"body", b"4\r\nbody\r\n" * 10
    )
    await client.send(chunked)
    head = await read(connection)
    assert head is not None
    assert connection.body_bytes is None
    with pytest.raises(RequestTooLarge):
        await connection.read_body(30)


async def test_a_body_that_ends_early_is_refused() -> None:
    client, connection = opened()
    await client.send(POST[:-1])
    client.send_eof()
    await read(connection)
    with pytest.raises(InvalidRequest):
        await connection.read_body(100)
    assert not connection.reusable


async def test_a_large_body_is_held_once_and_ends_where_it_said() -> None:
    client, connection = opened()
    body = b"0123456789" * 500_000
    pieces = [POST.replace(b"4", b"%d" % len(body), 1).replace(b"body", body[:9]), body[9:] + POST]

    async def pour() -> None:
        for piece in pieces:
            await client.send(piece)

    tracemalloc.start()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            assert await read(connection) is not None
            assert connection.body_bytes == len(body)
            received = await connection.read_body(len(body))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert received == body
    assert peak_bytes < 1.5 * len(body)
    await read(connection)
    assert await connection.read_body(100) == b"body"


async def test_a_closed_connection_is_no_request() -> None:
    client, connection = opened()
    client.close()
    head = await read(connection)
    assert head is None


async def test_a_connection_reset_between_requests_is_no_request_either() -> None:
    """A client that does not read an answer to its end and closes has the kernel do that."""
    client, connection = opened()
    await client.send(POST)
    await read(connection)
    await connection.read_body(100)
    client.reset()
    assert await read(connection) is None


async def test_a_head_that_is_cut_is_a_client_that_left() -> None:
    client, connection = opened()
    await client.send(POST[:20])
    client.close()
    with pytest.raises(ClientGone):
        await read(connection)


@pytest.mark.parametrize(
    ("sent", "stage", "seconds"),
    [(b"", "waiting", 75), (POST[:20], "head", 10)],
)
async def test_heads_have_a_deadline(
    sent: bytes, stage: Stage, seconds: float, autojump_clock: MockClock
) -> None:
    client, connection = opened()
    await client.send(sent)
    started = trio.current_time()
    assert (await expiring(connection)).expired
    assert connection.stage is stage
    assert trio.current_time() - started == pytest.approx(seconds)


async def test_bodies_have_a_deadline_between_bytes(autojump_clock: MockClock) -> None:
    client, connection = opened()
    started = trio.current_time()
    await client.send(POST[:-4])
    async with trio.open_nursery() as nursery:

        async def drip() -> None:
            for byte in b"bod":
                await trio.sleep(29)
                await client.send(bytes([byte]))

        nursery.start_soon(drip)
        assert (await expiring(connection)).expired
    assert connection.stage == "body"
    assert trio.current_time() - started == pytest.approx(3 * 29 + 30)


async def test_an_unread_body_is_read_away_to_keep_the_connection() -> None:
    client, connection = opened()
    await client.send(POST + POST.replace(b"body", b"more"))
    await read(connection)
    await connection.skip_body()
    assert connection.reusable
    await connection.respond(401, [], b"{}")
    await read(connection)
    assert await connection.read_body(100) == b"more"


async def test_a_large_unread_body_costs_the_connection() -> None:
    client, connection = opened()
    huge = POST.replace(b"Length: 4", b"Length: 9999999").replace(b"body", b"x" * 200_000)
    async with trio.open_nursery() as nursery:

        async def pour() -> None:
            while True:
                await client.send(huge)

        nursery.start_soon(pour)
        await read(connection)
        await connection.skip_body()
        assert not connection.reusable
        nursery.cancel_scope.cancel()


# -- clients that do not read ---------------------------------------------------------------------

LONG = b"x" * (4 * BUFFER_BYTES)


async def answering(client: MemoryTransport, connection: Connection) -> None:
    """A request is complete, and its answer has begun."""
    await client.send(POST)
    await read(connection)
    await connection.read_body(100)
    await connection.start_stream(200, [], b"first")


async def test_a_client_that_takes_nothing_has_left(autojump_clock: MockClock) -> None:
    client, connection = opened()
    await answering(client, connection)
    started = trio.current_time()
    with pytest.raises(ClientGone):
        await connection.send_chunk(LONG)
    assert trio.current_time() - started == pytest.approx(STALL_SECONDS)
    assert connection.client_gone
    assert not connection.reusable


async def test_a_client_that_takes_little_is_waited_for(autojump_clock: MockClock) -> None:
    client, connection = opened()
    await answering(client, connection)
    received = bytearray()

    async def sip() -> None:
        while True:
            await trio.sleep(STALL_SECONDS - 1)
            received.extend(await client.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sip)
        started = trio.current_time()
        await connection.send_chunk(LONG)
        assert trio.current_time() - started > 10 * STALL_SECONDS
        nursery.cancel_scope.cancel()
    while not received.endswith(LONG + b"\r\n"):
        received += await client.receive()


async def test_an_answer_that_outlives_its_client_waits_for_it_once(
    autojump_clock: MockClock,
) -> None:
    client, connection = opened()
    await answering(client, connection)
    connection.outlives_client = True
    started = trio.current_time()
    for _ in range(10):
        await connection.send_chunk(LONG)
    await connection.end_stream(b"last")
    assert trio.current_time() - started == pytest.approx(STALL_SECONDS)
    assert connection.client_gone
    connection.outlives_client = False
    with pytest.raises(ClientGone):
        await connection.send(b"more")


async def test_waiting_for_the_client_is_told_apart_for_each_request(
    autojump_clock: MockClock,
) -> None:
    client, connection = opened()
    await client.send(POST[:-2])
    await read(connection)
    assert connection.waited_seconds == 0
    async with trio.open_nursery() as nursery:

        async def later() -> None:
            await trio.sleep(3.0)
            await client.send(POST[-2:])
            await trio.sleep(5.0)
            while True:
                await client.receive()

        nursery.start_soon(later)
        await connection.read_body(100)
        assert connection.waited_seconds == pytest.approx(3.0)
        await trio.sleep(1.0)  # for somebody else
        await connection.respond(200, [], LONG)
        assert connection.waited_seconds == pytest.approx(7.0)
        await client.send(POST)
        await read(connection)
        assert connection.waited_seconds == 0
        nursery.cancel_scope.cancel()


async def test_a_wait_that_was_cut_counts_as_well(autojump_clock: MockClock) -> None:
    client, connection = opened()
    await client.send(POST[:-2])
    await read(connection)
    with trio.move_on_after(2.0):
        await connection.read_body(100)
    assert connection.waited_seconds == pytest.approx(2.0)
    with trio.move_on_after(3.0):
        await connection.respond(200, [], LONG)
    assert connection.waited_seconds == pytest.approx(5.0)


async def test_nothing_follows_a_frame_that_was_torn(autojump_clock: MockClock) -> None:
    """Whatever follows would be taken for the rest of the frame."""
    client, connection = opened()
    await answering(client, connection)
    with trio.move_on_after(1):
        await connection.send_chunk(LONG)
    with pytest.raises(ClientGone):
        await connection.end_stream(b"an error")
    received = b""
    with trio.move_on_after(1):
        while True:
            received += await client.receive()
    assert not received.endswith(b"an error\r\n0\r\n\r\n")

"""One attempt over a scripted network: what is reused, retried, timed out and reported."""

from __future__ import annotations

import dataclasses
import socket
import ssl
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from adapters.catalogue import Provider
from proxy.pool import PoolStatistics
from proxy.transport import Transport
from proxy.upstream import AttemptFailed, Sent, Upstreams
from tests.fakes.network import MemoryDialer

PROVIDER = Provider("p", "openai", "http://upstream:9/v1", api_keys=("k1",))
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"

Handler = Callable[[Transport], Awaitable[None]]


class Host:
    """An upstream that answers each request on a connection with the next of its answers."""

    def __init__(self, *answers: bytes | float | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0

    async def __call__(self, transport: Transport) -> None:
        self.connections += 1
        while request := await transport.receive():
            while b"\r\n\r\n" not in request:
                request += await transport.receive()
            self.requests.append(request)
            if not self.answers:
                return
            while self.answers:
                answer = self.answers.pop(0)
                if isinstance(answer, bytes):
                    await transport.send(answer)
                    break
                if answer is None:
                    return
                await trio.sleep(answer)


def reach(nursery: trio.Nursery, host: Handler | OSError) -> tuple[Upstreams, MemoryDialer]:
    dialer = MemoryDialer(nursery)
    dialer.hosts["upstream"] = host
    return Upstreams(dialer), dialer


async def call(upstreams: Upstreams, provider: Provider = PROVIDER) -> bytes:
    sent = Sent("/chat/completions", b"{}")
    response = await upstreams.post(provider, sent, queue_seconds=provider.connect_seconds)
    try:
        return await response.read(1000, provider.idle_seconds)
    finally:
        response.close()


async def test_a_request_is_written_from_configuration(nursery: trio.Nursery) -> None:
    host = Host(PLAIN)
    upstreams, _ = reach(nursery, host)
    custom = Provider(
        "p",
        "openai",
        "http://upstream:9/v1",
        api_keys=("k1",),
        auth="api-key",
        headers=(("x-org", "o"),),
        query=(("api-version", "2026 a"),),
    )
    assert await call(upstreams, custom) == b"ok"
    head, _, body = host.requests[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v1/chat/completions?api-version=2026%20a HTTP/1.1"
    assert "api-key: k1" in lines
    assert "x-org: o" in lines
    assert "host: upstream:9" in lines
    assert "content-length: 2" in lines
    assert body == b"{}"


async def test_a_connection_is_used_again(nursery: trio.Nursery) -> None:
    host = Host(PLAIN, CHUNKED + b"0\r\n\r\n", PLAIN)
    upstreams, dialer = reach(nursery, host)
    assert [await call(upstreams) for _ in range(3)] == [b"ok", b"ab", b"ok"]
    assert dialer.dialled == ["upstream"]


async def test_a_connection_that_said_close_is_not(nursery: trio.Nursery) -> None:
    host = Host(PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), PLAIN)
    upstreams, dialer = reach(nursery, host)
    assert [await call(upstreams) for _ in range(2)] == [b"ok", b"ok"]
    assert len(dialer.dialled) == 2


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED + b"0\r\n\r\n"])
async def test_a_connection_that_said_too_much_is_not(answer: bytes, nursery: trio.Nursery) -> None:
    upstreams, dialer = reach(nursery, Host(answer + PLAIN[:20], PLAIN))
    await call(upstreams)
    assert await call(upstreams) == b"ok"
    assert len(dialer.dialled) == 2


async def test_an_idle_connection_that_was_closed_is_replaced(nursery: trio.Nursery) -> None:
    host = Host(PLAIN, None)
    upstreams, dialer = reach(nursery, host)
    await call(upstreams)
    with pytest.raises(AttemptFailed) as failed:
        await call(upstreams)
    assert failed.value.reason == "reset"
    # The reused connection was closed unanswered, so a new one was tried, which failed for good.
    assert len(dialer.dialled) == 2


@pytest.mark.parametrize("limit", [3, 512])
async def test_a_request_that_fells_its_server_is_sent_twice_at_most(
    limit: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    host = Host(0.1, PLAIN, 0.1, PLAIN, 0.1, PLAIN, None, None, PLAIN)
    upstreams, dialer = reach(nursery, host)
    provider = dataclasses.replace(PROVIDER, max_connections=limit)
    async with trio.open_nursery() as three:
        for _ in range(3):
            three.start_soon(call, upstreams, provider)
    assert len(dialer.dialled) == 3
    with pytest.raises(AttemptFailed):
        await call(upstreams, provider)
    assert len(host.requests) == 3 + 2
    assert await call(upstreams, provider) == b"ok"


async def test_an_answer_that_is_given_up_costs_its_connection(nursery: trio.Nursery) -> None:
    host = Host(CHUNKED, PLAIN)
    upstreams, dialer = reach(nursery, host)
    response = await upstreams.post(PROVIDER, Sent("/x", b"{}", stream=True), queue_seconds=0)
    assert await response.receive() == b"ab"
    response.close()
    response.close()
    await call(upstreams)
    assert len(dialer.dialled) == 2


FAILURES: dict[str, tuple[tuple[bytes | float | None, ...], str, float]] = {
    "no answer": ((1000.0,), "first_byte_timeout", 300),
    "stall in the body": ((CHUNKED, 1000.0), "idle_timeout", 120),
    "closed without an answer": ((None,), "reset", 0),
    "cut in the body": ((CHUNKED, None), "truncated", 0),
    "cut in a sized body": ((PLAIN[:-1], None), "truncated", 0),
    "not HTTP": ((b"SSH-2.0-OpenSSH\r\n\r\n",), "protocol", 0),
    "broken chunks": ((CHUNKED + b"zz\r\n",), "protocol", 0),
    "too large": ((PLAIN.replace(b"2", b"5000", 1) + b"x" * 5000,), "protocol", 0),
}


class Scripted(Host):
    """Says everything it has after the first request."""

    async def __call__(self, transport: Transport) -> None:
        await transport.receive()
        for answer in self.answers:
            if isinstance(answer, bytes):
                await transport.send(answer)
            elif answer is None:
                return
            else:
                await trio.sleep(answer)
        await trio.sleep_forever()


@pytest.mark.parametrize("name", FAILURES)
async def test_failures_are_facts(
    name: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    answers, reason, seconds = FAILURES[name]
    upstreams, _ = reach(nursery, Scripted(*answers))
    started = trio.current_time()
    with pytest.raises(AttemptFailed) as failed:
        await call(upstreams)
    assert failed.value.reason == reason
    assert failed.value.contacted
    assert trio.current_time() - started == pytest.approx(seconds)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError("refused"), "connect"),
        (ssl.SSLCertVerificationError("bad certificate"), "tls"),
        (socket.gaierror("unknown host"), "dns"),
    ],
)
async def test_a_provider_that_was_not_reached_was_not_contacted(
    error: OSError, reason: str, nursery: trio.Nursery
) -> None:
    upstreams, _ = reach(nursery, error)
    with pytest.raises(AttemptFailed) as failed:
        await call(upstreams)
    assert failed.value.reason == reason
    assert not failed.value.contacted


async def test_connecting_has_a_deadline(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    upstreams, dialer = reach(nursery, Host(PLAIN))
    dialer.delays["upstream"] = 60
    started = trio.current_time()
    with pytest.raises(AttemptFailed) as failed:
        await call(upstreams)
    assert failed.value.reason == "connect_timeout"
    assert trio.current_time() - started == pytest.approx(5)


async def test_connections_are_bounded_and_waited_for(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    host = Host(*[PLAIN] * 10)
    upstreams, dialer = reach(nursery, host)
    narrow = dataclasses.replace(PROVIDER, max_connections=5)
    async with trio.open_nursery() as callers:
        for _ in range(10):
            callers.start_soon(call, upstreams, narrow)
    assert len(dialer.dialled) == 5
    assert len(host.requests) == 10


async def test_a_place_is_waited_for_apart_from_connecting(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    upstreams, dialer = reach(nursery, Host(7.0, PLAIN, PLAIN))
    single = dataclasses.replace(PROVIDER, max_connections=1, connect_seconds=1)
    began = trio.current_time()
    async with trio.open_nursery() as callers:
        callers.start_soon(call, upstreams, single)
        await wait_all_tasks_blocked()
        for seconds in (0, 3):
            with pytest.raises(AttemptFailed, match="all 1 connections are in use") as failed:
                await upstreams.post(single, Sent("/x", b"{}"), queue_seconds=seconds)
            assert (failed.value.reason, failed.value.contacted) == ("busy", False)
            assert trio.current_time() - began == pytest.approx(seconds)
        response = await upstreams.post(single, Sent("/x", b"{}"), queue_seconds=10)
        assert trio.current_time() - began == pytest.approx(7)
        assert await response.read(10, 1) == b"ok"
    assert len(dialer.dialled) == 1


async def test_no_more_wait_than_there_are_places(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    upstreams, _ = reach(nursery, Scripted(1000.0))
    pair = dataclasses.replace(PROVIDER, max_connections=2)
    async with trio.open_nursery() as callers:
        for _ in range(4):
            callers.start_soon(call, upstreams, pair)
        await wait_all_tasks_blocked()
        assert upstreams.statistics() == [
            ("p", PoolStatistics(limit=2, taken=2, idle=0, waiting=2))
        ]
        with pytest.raises(AttemptFailed, match="busy"):
            await call(upstreams, pair)
        callers.cancel_scope.cancel()
    assert upstreams.statistics() == [("p", PoolStatistics(limit=2, taken=0, idle=0, waiting=0))]
    nursery.cancel_scope.cancel()


async def test_cancelling_a_call_frees_its_place(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    silent = Scripted(1000.0)
    upstreams, _ = reach(nursery, silent)
    single = Provider("p", "openai", "http://upstream", max_connections=1)
    for _ in range(3):
        with trio.move_on_after(1) as scope:
            await call(upstreams, single)
        assert scope.cancelled_caught
    nursery.cancel_scope.cancel()


async def test_a_key_changed_by_a_reload_is_used_at_once(nursery: trio.Nursery) -> None:
    host = Host(PLAIN, PLAIN)
    upstreams, _ = reach(nursery, host)
    await call(upstreams)
    await call(upstreams, dataclasses.replace(PROVIDER, api_keys=("k2",)))
    before, after = host.requests
    assert b"authorization: Bearer k1\r\n" in before
    assert b"authorization: Bearer k2\r\n" in after


async def test_a_refused_key_rests(nursery: trio.Nursery) -> None:
    refusal = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
    host = Host(refusal, PLAIN, PLAIN, PLAIN)
    upstreams, _ = reach(nursery, host)
    provider = Provider("p", "openai", "http://upstream", api_keys=("bad", "good"))
    assert [await call(upstreams, provider) for _ in range(3)] == [b"ok"] * 3
    used = [b"good" in request for request in host.requests]
    assert used == [False, True, True, True]


async def test_an_interim_answer_is_passed_over(nursery: trio.Nursery) -> None:
    upstreams, _ = reach(nursery, Host(b"HTTP/1.1 103 Early Hints\r\n\r\n" + PLAIN))
    assert await call(upstreams) == b"ok"

"""One attempt over a scripted network: what is reused, retried, timed out and reported."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from adapters.catalogue import Provider
from adapters.codec import FailureKind
from adapters.openai.failure import read_failure
from proxy.pool import PoolStatistics
from proxy.transport import Transport
from proxy.upstream import AttemptFailed, Sent, UpstreamResponse, Upstreams
from proxy.upstream_request import Origin, RequestHeads
from tests.fakes.network import (
    BUFFER_BYTES,
    MemoryDialer,
    MemoryTransport,
    bad_certificate,
    refused,
    tls_broken,
    unknown_host,
)
from tests.fakes.provider import RESET, Reset, Script, Step

PROVIDER = Provider("p", "openai", "http://upstream:9/v1", api_keys=("k1",))
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"

Handler = Callable[[Transport], Awaitable[None]]


def reset(transport: Transport) -> None:
    """Break a connection off."""
    assert isinstance(transport, MemoryTransport)
    transport.reset()


class Host:
    """An upstream that answers each request on a connection with the next of its answers."""

    def __init__(self, *answers: Step) -> None:
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
                if isinstance(answer, Reset):
                    reset(transport)
                    return
                await trio.sleep(answer)


def reach(nursery: trio.Nursery, host: Handler | OSError) -> tuple[Upstreams, MemoryDialer]:
    dialer = MemoryDialer(nursery)
    dialer.hosts["upstream"] = host
    upstreams = Upstreams(dialer)
    nursery.start_soon(upstreams.run)
    return upstreams, dialer


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


async def test_what_a_provider_says_unasked_is_no_answer(nursery: trio.Nursery) -> None:
    """It says it at once, but in a packet of its own; the next request goes elsewhere."""

    async def talkative(transport: Transport) -> None:
        while await transport.receive():
            await transport.send(PLAIN)
            await trio.lowlevel.checkpoint()
            await transport.send(PLAIN.replace(b"ok", b"no"))

    upstreams, dialer = reach(nursery, talkative)
    for _ in range(2):
        assert await call(upstreams) == b"ok"
        await wait_all_tasks_blocked()
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


class Second:
    """A host that serves one request of its first connection, and does something else with the
    second one; on all later connections it serves."""

    def __init__(self, *script: Step) -> None:
        self.script = script
        self.requests = 0

    async def __call__(self, transport: Transport) -> None:
        while await transport.receive():
            self.requests += 1
            if self.requests == 2:
                break
            await transport.send(PLAIN)
        else:
            return
        for step in self.script:
            if isinstance(step, bytes):
                await transport.send(step)
            elif isinstance(step, float):
                await trio.sleep(step)
            elif isinstance(step, Reset):
                reset(transport)


@pytest.mark.parametrize("ending", [None, RESET])
@pytest.mark.parametrize("seconds", [0.0, 0.9, 1.1, 30.0])
async def test_a_reused_connection_that_ends_at_once_was_closed_before(
    ending: Step, seconds: float, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    host = Second(seconds, ending)
    upstreams, dialer = reach(nursery, host)
    await call(upstreams)
    if seconds < 1:
        assert await call(upstreams) == b"ok"
        assert len(dialer.dialled) == 2
    else:  # it may have been at work on it
        with pytest.raises(AttemptFailed, match="reset: closed without an answer") as failed:
            await call(upstreams)
        assert failed.value.contacted
        assert len(dialer.dialled) == 1


async def test_a_request_that_may_have_been_seen_is_told_of(nursery: trio.Nursery) -> None:
    upstreams, dialer = reach(nursery, Second(None))
    await call(upstreams)
    dialer.hosts["upstream"] = refused()
    with pytest.raises(AttemptFailed, match="connect: ") as failed:
        await call(upstreams)
    assert failed.value.contacted


async def send_much(upstreams: Upstreams) -> UpstreamResponse:
    """A body that does not fit into what the network holds."""
    return await upstreams.post(PROVIDER, Sent("/x", b"x" * 4 * BUFFER_BYTES), queue_seconds=0)


async def test_half_a_request_is_not_acted_upon(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    upstreams, dialer = reach(nursery, Second(30.0, RESET))
    await call(upstreams)
    response = await send_much(upstreams)
    assert await response.read(10, 1) == b"ok"
    assert len(dialer.dialled) == 2


async def test_half_a_request_on_a_new_connection_is_a_failure(nursery: trio.Nursery) -> None:
    upstreams, dialer = reach(nursery, Scripted(RESET))
    with pytest.raises(AttemptFailed, match="reset: closed while being sent to") as failed:
        await send_much(upstreams)
    assert failed.value.contacted
    assert len(dialer.dialled) == 1


@pytest.mark.parametrize("used", [False, True])
async def test_a_refusal_before_the_body_is_there_is_heard(
    used: bool, nursery: trio.Nursery
) -> None:
    refusal = PLAIN.replace(b"200 OK", b"413 Content Too Large")
    upstreams, dialer = reach(nursery, Second(refusal, None))
    await call(upstreams)
    if not used:
        upstreams.close()
    response = await send_much(upstreams)
    assert (response.status, await response.read(10, 1)) == (413, b"ok")
    await call(upstreams)
    assert len(dialer.dialled) == (2 if used else 3)  # whose body is missing is not used again


async def test_an_answer_that_is_given_up_costs_its_connection(nursery: trio.Nursery) -> None:
    host = Host(CHUNKED, PLAIN)
    upstreams, dialer = reach(nursery, host)
    response = await upstreams.post(PROVIDER, Sent("/x", b"{}", stream=True), queue_seconds=0)
    assert await response.receive() == b"ab"
    response.close()
    response.close()
    await call(upstreams)
    assert len(dialer.dialled) == 2


INTERIM = b"HTTP/1.1 103 Early Hints\r\n\r\n"
FAILURES: dict[str, tuple[Script, str, float]] = {
    "no answer": ((1000.0,), "first_byte_timeout", 300),
    "stall in the body": ((CHUNKED, 1000.0), "idle_timeout", 120),
    "closed without an answer": ((None,), "reset", 0),
    "reset without an answer": ((RESET,), "reset", 0),
    "reset in the head": ((PLAIN[:10], RESET), "reset", 0),
    "closed in the head": ((PLAIN[:10], None), "reset", 0),
    "only interim answers": ((INTERIM, INTERIM, None), "reset", 0),
    "interim answers for ever": ((INTERIM, 200.0, INTERIM, 200.0), "first_byte_timeout", 300),
    "reset in the body": ((CHUNKED, RESET), "truncated", 0),
    "reset in a sized body": ((PLAIN[:-1], RESET), "truncated", 0),
    "stall in a sized body": ((PLAIN[:-1], 1000.0), "idle_timeout", 120),
    "another protocol": (
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",),
        "protocol",
        0,
    ),
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
            elif isinstance(answer, Reset):
                reset(transport)
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
        (refused(), "connect"),
        (bad_certificate(), "tls"),
        (tls_broken(), "tls"),
        (unknown_host(), "dns"),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), "connect_timeout"),
        (OSError(errno.EMFILE, "Too many open files"), "busy"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), "busy"),
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


async def test_a_caller_may_have_less_patience(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    upstreams, _ = reach(nursery, Scripted(1000.0))
    with pytest.raises(AttemptFailed, match="first_byte_timeout: no answer within 3 s"):
        await upstreams.post(PROVIDER, Sent("/x", b""), queue_seconds=0, first_byte_seconds=3)
    assert trio.current_time() == pytest.approx(3)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_content_is_not_waited_for(
    status: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    empty = b"HTTP/1.1 %d Whatever\r\nContent-Length: 5\r\n\r\n" % status
    upstreams, dialer = reach(nursery, Host(empty, PLAIN))
    began = trio.current_time()
    assert await call(upstreams) == b""
    assert await call(upstreams) == b"ok"
    assert trio.current_time() == began
    assert len(dialer.dialled) == 1


async def test_a_reload_leaves_no_connections_behind(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    upstreams, _ = reach(nursery, Host(PLAIN, PLAIN))
    await call(upstreams)
    await call(upstreams, dataclasses.replace(PROVIDER, api_keys=("k2",)))
    assert [each.idle for _, each in upstreams.statistics()] == [1, 1]
    await trio.sleep(120)
    assert upstreams.statistics() == []
    nursery.cancel_scope.cancel()


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


def test_heads_are_kept_while_they_are_small() -> None:
    """Clients choose what is forwarded, and may send 64 KiB of it each time."""
    heads = RequestHeads(Origin.of(PROVIDER), PROVIDER)
    kept = []
    for size in (10, 30_000):
        for number in range(20):
            value = f"{number:02}" * size
            head = heads.of(Sent("/x", b"{}", headers=(("anthropic-beta", value),)), "k1")
            assert f"anthropic-beta: {value}\r\n".encode() in head
            assert head.endswith(b"content-length: 2\r\n\r\n")
        kept.append(len(heads._heads))
    assert kept == [20, 20]


OK = (200, b"", b"ok")


class Keys:
    """A provider that answers by API key; a key without an answer is served."""

    def __init__(self, **answers: tuple[int, bytes, bytes]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.heard: list[str] = []

    async def __call__(self, transport: Transport) -> None:
        while request := await transport.receive():
            key = request.partition(b"Bearer ")[2].partition(b"\r\n")[0].decode()
            self.asked.append(key)
            status, headers, body = self.answers.get(key, OK)
            head = b"HTTP/1.1 %d Status\r\n%sContent-Length: %d\r\n\r\n"
            await transport.send(head % (status, headers, len(body)) + body)

    async def ask(
        self, upstreams: Upstreams, *keys: str, affinity: int | None = None
    ) -> tuple[int, bytes]:
        """One request; the answer's status and body."""
        provider = dataclasses.replace(PROVIDER, api_keys=keys)
        response = await upstreams.post(
            provider,
            Sent("/chat/completions", b"{}"),
            queue_seconds=0,
            affinity=affinity,
            read_error=read_failure,
            on_refused=lambda failure: self.heard.append(failure.kind),
        )
        try:
            return response.status, await response.read(1000, 1)
        finally:
            response.close()


BROKE = b'{"error": {"code": "insufficient_quota", "message": "You exceeded your quota"}}'
REFUSALS: dict[str, tuple[int, bytes, bytes, FailureKind, float]] = {
    "wrong": (401, b"", b"", "auth", 60),
    "unpaid": (402, b"", b"", "quota", 60),
    "no quota": (429, b"Retry-After: 2\r\n", BROKE, "quota", 60),
    "limited": (429, b"", b"", "rate_limited", 1),
    "limited for a while": (429, b"Retry-After: 7\r\n", b"", "rate_limited", 7),
    "limited for long": (429, b"Retry-After: 900\r\n", b"", "rate_limited", 60),
    "limited for a moment": (429, b"Retry-After-Ms: 250\r\n", b"", "rate_limited", 0.25),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_refused_key_rests_and_the_next_is_asked(
    name: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    status, headers, body, kind, seconds = REFUSALS[name]
    host = Keys(bad=(status, headers, body))
    upstreams, dialer = reach(nursery, host)
    for _ in range(2):
        assert await host.ask(upstreams, "bad", "good") == (200, b"ok")
    assert host.asked == ["bad", "good", "good"]
    assert host.heard == [kind]
    assert len(dialer.dialled) == 1  # a refusal is read to its end
    await trio.sleep(seconds - 0.01)
    await host.ask(upstreams, "bad", "good")
    assert "bad" not in host.asked[3:]
    await trio.sleep(0.02)
    for _ in range(2):
        await host.ask(upstreams, "bad", "good")
    assert "bad" in host.asked[4:]


@pytest.mark.parametrize("status", [400, 403, 404, 413, 500, 503])
async def test_what_is_not_the_keys_fault_is_told_and_no_other_is_asked(
    status: int, nursery: trio.Nursery
) -> None:
    host = Keys(one=(status, b"", b"why"))
    upstreams, _ = reach(nursery, host)
    assert await host.ask(upstreams, "one", "two") == (status, b"why")
    assert await host.ask(upstreams, "one", "two") == (200, b"ok")
    assert await host.ask(upstreams, "one", "two") == (status, b"why")
    assert host.heard == []


async def test_the_last_refusal_is_told(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    limited = (429, b"Retry-After: 9\r\n", b"slower")
    host = Keys(a=(401, b"", b"no"), b=limited, c=limited)
    upstreams, _ = reach(nursery, host)
    assert await host.ask(upstreams, "a", "b", "c") == (429, b"slower")
    assert host.asked == ["a", "b", "c"]
    assert host.heard == ["auth", "rate_limited"]
    # All rest: one is asked all the same, the one that rests for the shortest time.
    assert await host.ask(upstreams, "a", "b", "c") == (429, b"slower")
    assert host.asked[3:] == ["b"]


async def test_a_key_rests_longer_than_its_last_connection(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    host = Keys(bad=(401, b"Connection: close\r\n", b""), good=(200, b"Connection: close\r\n", b""))
    upstreams, _ = reach(nursery, host)
    await host.ask(upstreams, "bad", "good")
    await trio.sleep(45)  # nothing was connected when idle connections were looked at
    for _ in range(2):
        await host.ask(upstreams, "bad", "good")
    assert host.asked == ["bad", "good", "good", "good"]
    nursery.cancel_scope.cancel()


async def test_one_key_alone_does_not_rest(nursery: trio.Nursery) -> None:
    host = Keys(only=(401, b"", b"no"))
    upstreams, _ = reach(nursery, host)
    for _ in range(2):
        assert await host.ask(upstreams, "only") == (401, b"no")
    assert host.heard == []


@pytest.mark.parametrize("rest_of_it", [1000.0, None, RESET])
async def test_a_refusal_without_its_body_is_a_refusal(
    rest_of_it: Step, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    refusal = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 9\r\n\r\nhalf"
    whole = Host(PLAIN)
    began = trio.current_time()

    async def host(transport: Transport) -> None:
        await (whole if dialer.dialled[1:] else Scripted(refusal, rest_of_it))(transport)

    upstreams, dialer = reach(nursery, host)
    provider = dataclasses.replace(PROVIDER, api_keys=("bad", "good"))
    assert await call(upstreams, provider) == b"ok"
    assert trio.current_time() - began == pytest.approx(5 if rest_of_it == 1000 else 0)
    nursery.cancel_scope.cancel()


async def test_whoever_has_an_affinity_keeps_to_a_key(nursery: trio.Nursery) -> None:
    host = Keys()
    upstreams, _ = reach(nursery, host)
    for affinity in range(20):
        for _ in range(3):
            await host.ask(upstreams, "a", "b", "c", affinity=affinity)
    by_affinity = [set(host.asked[at : at + 3]) for at in range(0, 60, 3)]
    assert all(len(keys) == 1 for keys in by_affinity)
    assert set.union(*by_affinity) == {"a", "b", "c"}


async def test_an_interim_answer_is_passed_over(nursery: trio.Nursery) -> None:
    upstreams, _ = reach(nursery, Host(b"HTTP/1.1 103 Early Hints\r\n\r\n" + PLAIN))
    assert await call(upstreams) == b"ok"

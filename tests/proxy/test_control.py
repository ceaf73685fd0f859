"""Requests to the console: handed over once, passed on as they come, never in anybody's way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import h11
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from console import security, sign_in
from proxy import control
from proxy.control import ALIVE_PATH, CLIENT_HEADER, Control
from proxy.request_head import Head
from proxy.settings import ServerSettings
from proxy.transport import Transport
from tests.fakes.gateway import World, running
from tests.fakes.network import ADDRESS, refused
from tests.fakes.provider import ScriptedProvider, completion
from tests.fakes.scenes import logged

HOST = "console"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: text/plain\r\n\r\nok"


@dataclass
class Asked:
    """A request that arrived at the console."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for each, value in self.headers if each == name]


Answer = Callable[[Transport, Asked], Awaitable[None]]


@dataclass
class ConsoleEnd:
    """The console's process: says that it lives, and answers with `answer`."""

    answer: Answer
    lives: bool = True
    connections: int = 0
    asked: list[Asked] = field(default_factory=list)
    gone: trio.Event = field(default_factory=trio.Event)

    async def __call__(self, transport: Transport) -> None:
        self.connections += 1
        parser = h11.Connection(h11.SERVER)
        try:
            while (asked := await self._next(parser, transport)) is not None:
                if asked.target == ALIVE_PATH:
                    if not self.lives:
                        await trio.sleep_forever()
                    await transport.send(b"HTTP/1.1 204 No Content\r\n\r\n")
                else:
                    self.asked.append(asked)
                    await self.answer(transport, asked)
                ahead, _ = parser.trailing_data
                parser = h11.Connection(h11.SERVER)
                if ahead:
                    parser.receive_data(ahead)
        finally:
            self.gone.set()

    async def _next(self, parser: h11.Connection, transport: Transport) -> Asked | None:
        head: h11.Request | None = None
        body = b""
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                try:
                    data = await transport.receive()
                except OSError:
                    return None  # closed by its own answer
                if not data:
                    return None
                parser.receive_data(data)
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                pairs = [(name.decode(), value.decode()) for name, value in head.headers]
                return Asked(head.method.decode(), head.target.decode(), pairs, body)
            else:
                return None


def saying(*pieces: bytes) -> Answer:
    """Answers with these bytes, whatever is asked."""

    async def answer(transport: Transport, _: Asked) -> None:
        for piece in pieces:
            await transport.send(piece)

    return answer


@asynccontextmanager
async def world_with(console: ConsoleEnd) -> AsyncIterator[World]:
    async with running({"upstream": ScriptedProvider(completion())}) as world:
        world.network.hosts[HOST] = console
        dial = partial(world.network.connect, HOST, 80, tls=False)
        world.gateway.control = Control(dial, world.gateway.deadlines, 900.0)
        world.nursery.start_soon(world.gateway.control.run)
        yield world


def test_both_sides_mean_the_same_header() -> None:
    assert CLIENT_HEADER == security.CLIENT_HEADER
    assert set(sign_in.PASSED_ON) == control._PASSED_ON


@pytest.mark.parametrize("path", ["/console", "/console/", "/console/api/accounts", "/mcp"])
async def test_a_request_arrives_and_its_answer_comes_back(
    path: str, autojump_clock: trio.abc.Clock
) -> None:
    console = ConsoleEnd(saying(OK))
    async with world_with(console) as world:
        client = world.connect()
        answer = await client.call(f"{path}?a=1&b=%20", {"some": "thing"})
        assert (answer.status, answer.body) == (200, b"ok")
        assert answer.headers["content-type"] == "text/plain"
        assert answer.headers["x-request-id"]
        again = await client.call(path, method="GET")
        assert (again.status, again.body) == (200, b"ok")
    first, second = console.asked
    assert (first.method, first.target) == ("POST", f"{path}?a=1&b=%20")
    assert first.body == b'{"some": "thing"}'
    assert first.values("content-length") == ["17"]
    assert first.values("host") == ["gateway"]
    assert (second.method, second.target, second.body) == ("GET", path, b"")
    assert console.connections == 1


@pytest.mark.parametrize("path", ["/consolex", "/mcpx", "/v1/console", "/"])
async def test_other_paths_are_not_the_consoles(path: str, autojump_clock: trio.abc.Clock) -> None:
    console = ConsoleEnd(saying(OK))
    async with world_with(console) as world:
        answer = await world.connect().call(path, method="GET")
        assert answer.status == 404
    assert not console.asked


async def test_what_only_we_may_say_is_not_taken_from_clients(
    autojump_clock: trio.abc.Clock,
) -> None:
    console = ConsoleEnd(saying(OK))
    async with world_with(console) as world:
        await world.connect().call(
            "/console",
            method="GET",
            headers={
                CLIENT_HEADER: "127.0.0.1",
                "X-Forwarded-Host": "127.0.0.1",
                "Connection": "keep-alive, X-Mine",
                "X-Mine": "about this connection",
                "X-Other": "about the request",
                "TE": "trailers",
                "Cookie": "farebox_session=abc; theme=dark",
            },
        )
    (asked,) = console.asked
    assert asked.values(CLIENT_HEADER) == [ADDRESS]
    assert asked.values("cookie") == ["farebox_session=abc; theme=dark"]
    assert asked.values("x-other") == ["about the request"]
    for name in ("x-forwarded-host", "connection", "x-mine", "te"):
        assert asked.values(name) == []


@pytest.mark.parametrize("name", sorted(sign_in.PASSED_ON))
async def test_the_console_hears_that_another_proxy_has_passed_it_on(
    name: str, autojump_clock: trio.abc.Clock
) -> None:
    """Otherwise everybody whom a proxy on this machine lets in would be on this machine."""
    console = ConsoleEnd(saying(OK))
    async with world_with(console) as world:
        await world.connect().call("/console", method="GET", headers={name: "192.0.2.7"})
    (asked,) = console.asked
    assert asked.values(name) == ["192.0.2.7"]


@pytest.mark.parametrize("name", sorted(sign_in.PASSED_ON))
async def test_a_client_cannot_have_that_left_away(
    name: str, autojump_clock: trio.abc.Clock
) -> None:
    """A proxy may pass on which headers a client calls those of its connection."""
    console = ConsoleEnd(saying(OK))
    async with world_with(console) as world:
        headers = {name: "192.0.2.7", "Connection": f"x-other, {name}"}
        await world.connect().call("/console", method="GET", headers=headers)
    (asked,) = console.asked
    assert asked.values(name) == ["192.0.2.7"]


@pytest.mark.parametrize(
    ("trusted", "headers", "client"),
    [
        ((ADDRESS,), {"X-Forwarded-For": "198.51.100.7"}, "198.51.100.7"),
        (("192.0.2.0/24",), {"X-Forwarded-For": "127.0.0.1, 198.51.100.7"}, "198.51.100.7"),
        (
            (ADDRESS,),
            {"X-Forwarded-For": "127.0.0.1", "x-forwarded-for": "2001:db8::7"},
            "2001:db8::7",
        ),
        (
            (ADDRESS,),
            {"X-Forwarded-For": "198.51.100.7", "Connection": "x-forwarded-for"},
            "198.51.100.7",
        ),
        ((ADDRESS,), {"X-Forwarded-For": "127.0.0.1", CLIENT_HEADER: "::1"}, "127.0.0.1"),
        ((ADDRESS,), {"Forwarded": "for=198.51.100.7", "X-Real-IP": "198.51.100.7"}, ADDRESS),
        ((ADDRESS,), {}, ADDRESS),
        (("127.0.0.1",), {"X-Forwarded-For": "198.51.100.7"}, ADDRESS),
        ((), {"X-Forwarded-For": "198.51.100.7"}, ADDRESS),
    ],
)
async def test_a_trusted_proxy_is_believed_who_asks(
    trusted: tuple[str, ...],
    headers: dict[str, str],
    client: str,
    autojump_clock: trio.abc.Clock,
) -> None:
    console = ConsoleEnd(saying(OK))
    async with world_with(console) as world:
        world.gateway.settings = ServerSettings(trusted_proxies=trusted)
        await world.connect().call("/console", method="GET", headers=headers)
    (asked,) = console.asked
    assert asked.values(CLIENT_HEADER) == [client]


_tokens = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12)
_values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=20)


@given(
    st.dictionaries(_tokens, _values, max_size=6),
    st.sampled_from(["GET", "POST", "DELETE"]),
    st.integers(0, 9),
)
def test_a_head_that_is_handed_over_says_one_thing(
    fields: dict[str, str], method: str, body_bytes: int
) -> None:
    """Whatever a client's header fields are, h11 reads one request with one length and address."""
    values = {name: value.strip() for name, value in fields.items()}
    pairs = {name.encode(): value.encode("latin-1") for name, value in values.items()}
    head = Head(method, "/console/x", "q=1", {b"host": b"a", **pairs})
    parser = h11.Connection(h11.SERVER)
    try:
        parser.receive_data(control._request_head(head, body_bytes, ADDRESS) + b"." * body_bytes)
        event = parser.next_event()
    except h11.RemoteProtocolError:  # what our own parsers would not have let in
        return
    assert isinstance(event, h11.Request)
    got = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
    assert [value for name, value in got if name == CLIENT_HEADER] == [ADDRESS]
    assert [value for name, value in got if name == "content-length"] in ([], [str(body_bytes)])
    assert len(got) == len({name for name, _ in got})


async def test_several_cookies_stay_several(autojump_clock: trio.abc.Clock) -> None:
    console = ConsoleEnd(
        saying(
            b"HTTP/1.1 303 See Other\r\nSet-Cookie: a=1; Path=/\r\nset-cookie: b=2\r\n"
            b"location: /console\r\ncontent-length: 0\r\n\r\n"
        )
    )
    async with world_with(console) as world:
        client = world.connect()
        await client.send("/console/sign-in", {"token": "abc"})
        head = await client.event()
        assert isinstance(head, h11.Response)
        cookies = [value for name, value in head.headers if name == b"set-cookie"]
        assert cookies == [b"a=1; Path=/", b"b=2"]
        assert head.status_code == 303


@pytest.mark.parametrize(
    ("method", "answer", "status", "length"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n", 200, "1234"),
        ("HEAD", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", 200, None),
        ("GET", b'HTTP/1.1 304 Not Modified\r\netag: "a"\r\n\r\n', 304, None),
        ("POST", b"HTTP/1.1 204 No Content\r\n\r\n", 204, None),
    ],
)
async def test_answers_without_a_body_keep_the_connection(
    method: str, answer: bytes, status: int, length: str | None, autojump_clock: trio.abc.Clock
) -> None:
    async def answer_each(transport: Transport, asked: Asked) -> None:
        await transport.send(answer if asked.method == method else OK)

    console = ConsoleEnd(answer_each)
    async with world_with(console) as world:
        client = world.connect()
        for _ in range(2):
            got = await client.call("/console/static/console.css", method=method)
            assert (got.status, got.body) == (status, b"")
            assert got.headers.get("content-length") == length
        other = "GET" if method != "GET" else "POST"
        assert (await client.call("/console", {}, method=other)).body == b"ok"
    assert console.connections == 1


async def test_events_come_through_one_by_one(autojump_clock: trio.abc.Clock) -> None:
    events = [b"data: %d\n\n" % number for number in range(3)]

    async def stream(transport: Transport, _: Asked) -> None:
        await transport.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for event in events:
            await trio.sleep(60)
            await transport.send(b"%x\r\n%b\r\n" % (len(event), event))
        await transport.send(b"0\r\n\r\n")

    console = ConsoleEnd(stream)
    async with world_with(console) as world:
        client = world.connect()
        began = trio.current_time()
        await client.send("/mcp", {"method": "tools/call"})
        assert isinstance(await client.event(), h11.Response)
        assert trio.current_time() - began < 1  # the head waits for no event
        for number, event in enumerate(events, start=1):
            data = await client.event()
            assert isinstance(data, h11.Data)
            assert bytes(data.data) == event
            assert trio.current_time() - began == pytest.approx(60 * number, abs=1)
        assert isinstance(await client.event(), h11.EndOfMessage)


async def test_large_answers_are_not_held(autojump_clock: trio.abc.Clock) -> None:
    size = 5 << 20
    console = ConsoleEnd(
        saying(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size, b"x" * size)
    )
    async with world_with(console) as world:
        answer = await world.connect().call("/console/api/usage.csv", method="GET")
        assert len(answer.body) == size
        assert "content-length" not in answer.headers  # in pieces


async def test_a_client_that_leaves_is_gone_for_the_console_too(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def never(transport: Transport, _: Asked) -> None:
        assert await transport.receive() == b""
        raise EOFError

    console = ConsoleEnd(never)

    async def until_it_ends(transport: Transport) -> None:
        with pytest.raises(EOFError):
            await console(transport)

    async with running({"upstream": ScriptedProvider(completion())}) as world:
        world.network.hosts[HOST] = until_it_ends
        dial = partial(world.network.connect, HOST, 80, tls=False)
        world.gateway.control = Control(dial, world.gateway.deadlines, 900.0)
        client = world.connect()
        await client.send("/console", method="GET")
        await trio.sleep(1)
        client.transport.close()
        with trio.fail_after(1):
            await console.gone.wait()


async def test_no_console_is_a_503_at_once(autojump_clock: trio.abc.Clock) -> None:
    async with world_with(ConsoleEnd(saying(OK))) as world:
        world.network.hosts[HOST] = refused()
        client = world.connect()
        for _ in range(2):
            answer = await client.call("/console/api/accounts", method="GET")
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.error["code"] == "console_unavailable"
            assert "not there" in str(answer.error["message"])


async def test_a_console_that_does_not_live_is_waited_for_some_seconds(
    autojump_clock: trio.abc.Clock,
) -> None:
    console = ConsoleEnd(saying(OK), lives=False)
    async with world_with(console) as world:
        began = trio.current_time()
        answer = await world.connect().call("/console/api/keys", {"name": "x"})
        assert answer.status == 503
        assert trio.current_time() - began == pytest.approx(8, abs=0.2)
        assert not console.asked
        console.lives = True
        assert (await world.connect().call("/console")).status == 200


async def test_a_console_that_starts_meanwhile_is_waited_for(
    autojump_clock: trio.abc.Clock,
) -> None:
    """Its predecessor has accepted the call, and dies; the next call waits in the queue."""
    console = ConsoleEnd(saying(OK))

    async def dying(transport: Transport) -> None:
        await trio.sleep(1)
        world.network.hosts[HOST] = starting

    async def starting(transport: Transport) -> None:
        await trio.sleep(2)
        await console(transport)

    async with world_with(console) as world:
        world.network.hosts[HOST] = dying
        answer = await world.connect().call("/console/api/keys", {"name": "x"})
        assert answer.status == 200
    assert len(console.asked) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("seconds", [0.1, 30.0])
async def test_a_request_is_handed_over_twice_only_where_that_does_no_harm(
    method: str, seconds: float, autojump_clock: trio.abc.Clock
) -> None:
    async def dies(transport: Transport, asked: Asked) -> None:
        if len(console.asked) == 1:
            await trio.sleep(seconds)
            transport.close()
            raise trio.BrokenResourceError
        await transport.send(OK)

    console = ConsoleEnd(dies)

    async def until_it_dies(transport: Transport) -> None:
        try:
            await console(transport)
        except trio.BrokenResourceError:
            return

    async with running({"upstream": ScriptedProvider(completion())}) as world:
        world.network.hosts[HOST] = until_it_dies
        dial = partial(world.network.connect, HOST, 80, tls=False)
        world.gateway.control = Control(dial, world.gateway.deadlines, 900.0)
        answer = await world.connect().call("/console/api/keys", {"name": "x"}, method=method)
        if method == "GET" and seconds < 1:
            assert answer.status == 200
            assert len(console.asked) == 2
        else:
            assert answer.status == 502
            assert answer.error["code"] == "console_failed"
            assert "may have been done" in str(answer.error["message"])
            assert len(console.asked) == 1


async def test_an_answer_that_breaks_off_has_no_clean_end(autojump_clock: trio.abc.Clock) -> None:
    async def breaks(transport: Transport, _: Asked) -> None:
        await transport.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        transport.close()

    async with world_with(ConsoleEnd(breaks)) as world:
        with pytest.raises(h11.RemoteProtocolError):
            await world.connect().call("/console", method="GET")


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({}, b"x" * ((16 << 20) + 1), 413, "request_too_large"),
        ({"content-encoding": "gzip"}, b"x", 415, "invalid_request"),
    ],
)
async def test_refusals_have_the_consoles_form(
    headers: dict[str, str], body: bytes, status: int, code: str, autojump_clock: trio.abc.Clock
) -> None:
    console = ConsoleEnd(saying(OK))
    async with world_with(console) as world:
        answer = await world.connect().call("/console/api/keys", body, headers=headers)
        assert answer.status == status
        assert answer.error.keys() == {"code", "message"}
        assert answer.error["code"] == code
    assert not console.asked


async def test_it_is_no_request_to_a_model(autojump_clock: trio.abc.Clock) -> None:
    async with world_with(ConsoleEnd(saying(OK))) as world:
        for path in ("/console", "/mcp"):
            await world.connect().call(path, method="GET")
        lines = await logged(world, 2)
        assert [line["surface"] for line in lines] == ["console", "console"]
        registry = world.gateway.metrics.registry
        assert registry.get_sample_value("farebox_console_requests_total", {"status": "200"}) == 2
        families = {each.name: each for each in registry.collect()}
        assert families["farebox_requests"].samples == []
        assert world.gateway.load.exchanges == 0
        assert world.gateway.memory.held_bytes == 0
        assert await world.flushed() == []


async def test_a_console_that_hangs_does_not_hold_up_models(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def hang(_transport: Transport, _: Asked) -> None:
        await trio.sleep_forever()

    async with world_with(ConsoleEnd(hang)) as world:
        clients = [world.connect() for _ in range(300)]
        for client in clients:
            await client.send("/console/api/usage", method="GET")
        await trio.lowlevel.checkpoint()
        began = trio.current_time()
        answer = await world.connect().call(
            "/v1/chat/completions",
            {"model": "gpt", "messages": [{"role": "user", "content": "hi"}]},
        )
        assert answer.status == 200
        assert trio.current_time() - began < 0.1
        busy = await clients[-1].receive()  # beyond the places there are
        assert busy.status == 503
        assert busy.error["code"] == "console_unavailable"


async def test_bodies_that_never_end_do_not_hold_up_models(
    autojump_clock: trio.abc.Clock,
) -> None:
    """Nobody knows who sends them, so they take neither the places nor the bytes of models."""
    async with world_with(ConsoleEnd(saying(OK))) as world:
        for length in (10, 1 << 20, 16 << 20):
            for _ in range(400):
                head = f"POST /mcp HTTP/1.1\r\nhost: gateway\r\ncontent-length: {length}\r\n\r\n"
                await world.connect().transport.send(head.encode())
        await trio.lowlevel.checkpoint()
        assert world.gateway.load.exchanges <= 512
        assert world.gateway.memory.held_bytes <= 65 << 20
        answer = await world.connect().call(
            "/v1/chat/completions",
            {"model": "gpt", "messages": [{"role": "user", "content": "hi"}]},
        )
        assert answer.status == 200


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [
        ("/console/api/session", 1 << 20, 200),
        ("/console/api/session", (1 << 20) + 1, 413),
        ("/mcp", (1 << 20) + 1, 200),
        ("/mcp", (16 << 20) + 1, 413),
    ],
)
async def test_a_body_is_as_large_as_anything_there_may_be(
    path: str, length: int, status: int, autojump_clock: trio.abc.Clock
) -> None:
    console = ConsoleEnd(saying(OK))
    async with world_with(console) as world:
        answer = await world.connect().call(path, "x" * (length - 2))
        assert answer.status == status
    assert [len(asked.body) for asked in console.asked] == [length] * (status == 200)


async def test_none_is_asked_while_the_gateway_drains(autojump_clock: trio.abc.Clock) -> None:
    console = ConsoleEnd(saying(OK))
    async with world_with(console) as world:
        client = world.connect()
        await client.transport.send(b"GET /console HTTP/1.1\r\nhost: gateway\r\n")
        world.gateway.draining = True
        await client.transport.send(b"\r\n")
        answer = await client.receive()
        assert answer.status == 503
        assert answer.headers["connection"] == "close"
    assert not console.asked

"""Upstreams over real sockets: names, several addresses, TLS, and how each of them goes wrong.

Time is virtual: it passes where nothing has moved on any socket for a moment.
"""

from __future__ import annotations

import errno
import fcntl
import math
import socket
import ssl
import struct
import termios
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
import trustme
from trio.testing import MockClock

from adapters.catalogue import Provider
from adapters.pieces import Body
from proxy.resolve import Address, LookUp, Resolver
from proxy.transport import SocketDialer, first_connected
from proxy.upstream import AttemptFailed, Sent, Upstreams

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
AUTHORITY = trustme.CA()
HOSTS = [Address(socket.AF_INET, f"127.0.0.{number}") for number in range(1, 4)]

Serve = Callable[[trio.SocketStream], Awaitable[None]]


@pytest.fixture
def clock(mock_clock: MockClock) -> MockClock:
    """Time that passes where nothing moves, in the threads that look names up neither: a busy
    machine may leave them alone for a while."""
    mock_clock.autojump_threshold = 0.25
    return mock_clock


def dialling(look_up: LookUp) -> SocketDialer:
    """The network as a worker sees it, with an authority and a name server of ours."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return SocketDialer(context, Resolver(look_up))


@pytest.fixture
def dialer() -> SocketDialer:
    """The same, where names are those of this machine."""
    return dialling(local)


def local(host: str) -> tuple[Address, ...]:
    """Every name that ends in .test is this machine."""
    if host.endswith(".test"):
        return (HOSTS[0],)
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


async def answer(stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
    """Serve every request of a connection."""
    while await stream.receive_some():
        await stream.send_all(PLAIN)


async def hang_up(stream: trio.SocketStream) -> None:
    """End a connection after what is said first."""
    await stream.receive_some()


async def break_off(stream: trio.SocketStream) -> None:
    """The same, with a reset."""
    await stream.receive_some(10)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


async def say_nothing(stream: trio.SocketStream) -> None:
    """Take everything, and never answer."""
    while await stream.receive_some():
        pass


async def refuse_early(stream: trio.SocketStream) -> None:
    """Refuse a request by its head, and leave its body unread, as web servers do."""
    await stream.receive_some(1000)
    await stream.send_all(PLAIN.replace(b"200 OK", b"413 Content Too Large"))


async def read_nothing(stream: trio.SocketStream) -> None:
    """Leave everything where the kernel keeps it."""
    await trio.sleep_forever()


async def speak_plainly(stream: trio.SocketStream) -> None:
    """Not TLS."""
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\nYou speak TLS to a plain port.")


def certified(name: str, authority: trustme.CA) -> ssl.SSLContext:
    """What a server needs that is to be called so."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


def secured(name: str, authority: trustme.CA = AUTHORITY) -> Serve:
    """The same behind TLS, with a certificate for `name`."""
    return behind(certified(name, authority))


def behind(context: ssl.SSLContext) -> Serve:
    """Every request of a connection is served, behind TLS."""

    async def serve(stream: trio.SocketStream) -> None:
        inner = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await answer(inner)
        except trio.BrokenResourceError:
            return  # the client does not trust us

    return serve


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[int]:
    """A port of this machine at which every connection is served so."""

    async def one(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await serve(stream)
            except trio.BrokenResourceError:
                return  # the client has gone

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, one, listeners)
        try:
            yield listeners[0].socket.getsockname()[1]
        finally:
            nursery.cancel_scope.cancel()


@contextmanager
def deaf() -> Iterator[int]:
    """A port that answers nobody's first packet: its queue is full."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for client in (first, second):
            client.setblocking(False)
            client.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


@contextmanager
def closed() -> Iterator[int]:
    """A port that is taken, and at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def provider(url: str) -> Provider:
    """A provider at an address."""
    return Provider("p", "openai", url, connect_seconds=5, first_byte_seconds=60)


async def call(dialer: SocketDialer, url: str, body: Body = b"{}") -> tuple[int, bytes]:
    """One request over a new connection; nothing is left of it afterwards."""
    upstreams = Upstreams(dialer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upstreams.run)
        outcome = await _outcome(upstreams, url, body)
        nursery.cancel_scope.cancel()
    upstreams.close()
    assert [each.taken for _, each in upstreams.statistics()] == [0]
    if isinstance(outcome, AttemptFailed):
        raise outcome
    return outcome


async def _outcome(upstreams: Upstreams, url: str, body: Body) -> tuple[int, bytes] | AttemptFailed:
    try:
        response = await upstreams.post(provider(url), Sent("/x", body), queue_seconds=0)
        try:
            return response.status, await response.read(1000, 10)
        finally:
            response.close()
    except AttemptFailed as failed:
        return failed


async def failure(dialer: SocketDialer, url: str) -> AttemptFailed:
    """How it fails."""
    with pytest.raises(AttemptFailed) as failed:
        await call(dialer, url)
    return failed.value


@pytest.mark.parametrize("name", ["right.test", "127.0.0.1"])
async def test_a_certificate_of_a_trusted_authority_is_enough(
    name: str, dialer: SocketDialer
) -> None:
    async with serving(secured(name)) as port:
        assert await call(dialer, f"https://{name}:{port}") == (200, b"ok")


async def test_a_connection_of_tls_is_used_again(dialer: SocketDialer) -> None:
    async with serving(secured("right.test")) as port:
        upstreams = Upstreams(dialer)
        for _ in range(3):
            response = await upstreams.post(
                provider(f"https://right.test:{port}"), Sent("/x", b"{}"), queue_seconds=0
            )
            assert await response.read(10, 10) == b"ok"
            assert [each.taken for _, each in upstreams.statistics()] == [1]
        upstreams.close()


async def test_a_second_connection_of_tls_goes_on_where_the_first_one_was(
    dialer: SocketDialer,
) -> None:
    context = certified("right.test", AUTHORITY)
    async with serving(behind(context)) as port:
        for resumed in (0, 1, 2):
            assert await call(dialer, f"https://right.test:{port}") == (200, b"ok")
            assert context.session_stats()["hits"] == resumed


async def test_what_did_not_help_to_shake_hands_is_not_tried_again(dialer: SocketDialer) -> None:
    context = certified("right.test", AUTHORITY)
    ways = [behind(context), hang_up, behind(context)]

    async def serve(stream: trio.SocketStream) -> None:
        await ways.pop(0)(stream)

    async with serving(serve) as port:
        url = f"https://right.test:{port}"
        assert await call(dialer, url) == (200, b"ok")
        assert (await failure(dialer, url)).reason == "connect"
        assert await call(dialer, url) == (200, b"ok")
    assert context.session_stats()["hits"] == 0


def test_a_server_may_not_begin_to_shake_hands_again() -> None:
    """In the middle of a connection, where nobody would hold out ours."""
    context = ssl.create_default_context()
    SocketDialer(context)
    assert context.options & ssl.OP_NO_RENEGOTIATION


async def test_what_goes_through_tls_is_whole(dialer: SocketDialer) -> None:
    sent = [bytes(range(256)) * size for size in (1, 100, 5000)]

    async def echo(stream: trio.SocketStream) -> None:
        inner = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        while data := await inner.receive_some():
            await inner.send_all(data)

    context = certified("right.test", AUTHORITY)
    async with serving(echo) as port:
        transport = await dialer.connect("right.test", port, tls=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.send, *sent)
            heard = b""
            while len(heard) < sum(map(len, sent)):
                heard += await transport.receive()
        transport.close()
    assert heard == b"".join(sent)


@pytest.mark.parametrize(
    ("serve", "scheme", "reason", "words"),
    [
        (secured("right.test", trustme.CA()), "https", "tls", "CERTIFICATE_VERIFY_FAILED"),
        (secured("wrong.test"), "https", "tls", "Hostname mismatch"),
        (speak_plainly, "https", "tls", "WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE"),
        (hang_up, "https", "connect", "closed in the TLS handshake"),
        (break_off, "https", "connect", "reset"),
        (say_nothing, "https", "connect_timeout", "within 5 s"),
        (secured("right.test"), "http", "reset", "closed without an answer"),
        (hang_up, "http", "reset", "closed without an answer"),
        (break_off, "http", "reset", "closed without an answer"),
        (say_nothing, "http", "first_byte_timeout", "within 60 s"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", None),
)
async def test_what_went_wrong_is_told(
    serve: Serve, scheme: str, reason: str, words: str, dialer: SocketDialer, clock: MockClock
) -> None:
    began = trio.current_time()
    async with serving(serve) as port:
        failed = await failure(dialer, f"{scheme}://right.test:{port}")
    assert failed.reason == reason
    assert failed.contacted == (scheme == "http")
    seconds = {"connect_timeout": 5, "first_byte_timeout": 60}.get(reason, 0)
    assert trio.current_time() - began == pytest.approx(seconds)
    with pytest.raises(AttemptFailed, match=words):
        raise failed


async def test_a_port_without_a_listener(dialer: SocketDialer) -> None:
    with closed() as port:
        failed = await failure(dialer, f"http://127.0.0.1:{port}")
    assert (failed.reason, failed.contacted) == ("connect", False)
    assert "refused" in str(failed)


async def test_a_host_that_does_not_answer(dialer: SocketDialer, clock: MockClock) -> None:
    began = trio.current_time()
    with deaf() as port:
        failed = await failure(dialer, f"http://127.0.0.1:{port}")
    assert (failed.reason, failed.contacted) == ("connect_timeout", False)
    assert trio.current_time() - began == pytest.approx(5)


async def test_a_name_that_does_not_exist(dialer: SocketDialer) -> None:
    failed = await failure(dialer, "http://nowhere.invalid")
    assert (failed.reason, failed.contacted) == ("dns", False)


async def test_a_name_server_that_does_not_answer(clock: MockClock) -> None:
    gate = threading.Event()

    def hang(host: str) -> tuple[Address, ...]:
        gate.wait()
        return (HOSTS[0],)

    try:
        failed = await failure(dialling(hang), "http://slow.test")
    finally:
        gate.set()
    assert (failed.reason, failed.contacted) == ("connect_timeout", False)


async def test_a_refusal_before_the_body_is_there_is_heard(dialer: SocketDialer) -> None:
    async with serving(refuse_early) as port:
        status, body = await call(dialer, f"http://right.test:{port}", b"x" * 20_000_000)
    assert (status, body) == (413, b"ok")


@pytest.mark.parametrize("large", [b"x" * 20_000_000, (b"x" * 20_000_000, b"}")])
async def test_who_never_reads_a_request_has_not_answered_in_time(
    large: Body, dialer: SocketDialer, clock: MockClock
) -> None:
    async with serving(read_nothing) as port:
        for _ in range(2):
            with pytest.raises(AttemptFailed, match="no answer within 60 s") as failed:
                await call(dialer, f"http://right.test:{port}", large)
            assert failed.value.reason == "first_byte_timeout"


# -- several addresses ----------------------------------------------------------------------------


FAILS = True


class ScriptedSocket(trio.socket.SocketType):
    """Connects after so many seconds, or fails then."""

    def __init__(self, network: ScriptedNetwork) -> None:
        self._network = network
        network.open.add(self)

    def setsockopt(self, *_: object) -> None:
        """Nothing to set."""

    async def connect(self, address: object) -> None:
        """As the script of the address says."""
        assert isinstance(address, tuple)
        self.number = int(address[0].rpartition(".")[2])
        seconds, fails = self._network.script[self.number]
        if seconds == math.inf:
            await self._network.gate.wait()
        else:
            await trio.sleep(seconds)
        if fails:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"{address[0]} refused")

    def close(self) -> None:
        """Let go of it."""
        self._network.open.discard(self)


class ScriptedNetwork(trio.abc.SocketFactory):
    """Addresses by their last number: (after how many seconds, whether it fails). Those that would
    take for ever are there at once when the gate opens."""

    def __init__(self, *script: tuple[float, bool]) -> None:
        self.script = script
        self.gate = trio.Event()
        self.open: set[ScriptedSocket] = set()

    def socket(self, *_: object) -> trio.socket.SocketType:
        """A socket of any kind."""
        return ScriptedSocket(self)

    async def race(self) -> tuple[int, float]:
        """Who won, and when. Raises OSError."""
        began = trio.current_time()
        trio.socket.set_custom_socket_factory(self)
        try:
            addresses = [
                Address(socket.AF_INET, f"192.0.2.{number}") for number in range(len(self.script))
            ]
            winner = await first_connected(addresses, 443)
        finally:
            trio.socket.set_custom_socket_factory(None)
        assert self.open == {winner}  # every other one is closed
        assert isinstance(winner, ScriptedSocket)
        return winner.number, trio.current_time() - began


RACES: dict[str, tuple[tuple[tuple[float, bool], ...], int, float]] = {
    "one": (((0.1, not FAILS),), 0, 0.1),
    "the first in time": (((0.2, not FAILS), (0, not FAILS)), 0, 0.2),
    "the first refuses": (((0, FAILS), (0.1, not FAILS)), 1, 0.1),
    "the first hangs": (((9, FAILS), (0.1, not FAILS)), 1, 0.35),
    "the first is slow, and still faster": (((0.3, not FAILS), (0.1, not FAILS)), 0, 0.3),
    "two hang": (((9, FAILS), (9, FAILS), (0, not FAILS)), 2, 0.5),
    "one hangs, one refuses": (((9, FAILS), (0.1, FAILS), (0, not FAILS)), 2, 0.35),
    "the last is alone": (((0, FAILS), (0, FAILS), (4, not FAILS)), 2, 4),
    "a slow one after all": (((4, not FAILS), (0, FAILS), (0, FAILS)), 0, 4),
}


@pytest.mark.parametrize("name", RACES)
async def test_the_first_address_that_connects_is_taken(
    name: str, autojump_clock: MockClock
) -> None:
    script, winner, seconds = RACES[name]
    won, after = await ScriptedNetwork(*script).race()
    assert won == winner
    assert after == pytest.approx(seconds)


async def test_of_two_that_connect_at_once_one_is_closed(autojump_clock: MockClock) -> None:
    network = ScriptedNetwork((math.inf, not FAILS), (math.inf, not FAILS))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.race)
        await trio.sleep(1)
        assert len(network.open) == 2
        network.gate.set()
    assert len(network.open) == 1


async def test_where_all_fail_there_is_one_error(autojump_clock: MockClock) -> None:
    network = ScriptedNetwork((0.1, FAILS), (0.2, FAILS))
    with pytest.raises(ConnectionRefusedError, match=r"192.0.2.0 refused; 192.0.2.1 refused"):
        await network.race()
    assert not network.open


async def test_a_race_that_is_given_up_closes_everything(autojump_clock: MockClock) -> None:
    for seconds in (0.1, 0.25, 0.4, *[0.5] * 20):  # the last are the moment of the winner
        network = ScriptedNetwork((0.5, not FAILS), (9, FAILS))
        with trio.move_on_after(seconds) as scope:
            await network.race()
        assert len(network.open) == (0 if scope.cancelled_caught else 1)
        assert scope.cancelled_caught or seconds == 0.5


async def test_a_name_with_a_dead_address_is_reached(clock: MockClock) -> None:
    async with serving(answer) as port:
        dialer = dialling(lambda _: (HOSTS[1], HOSTS[0]))
        for _ in range(2):  # in either order
            assert await call(dialer, f"http://two.test:{port}") == (200, b"ok")


# -- what a connection may hold -------------------------------------------------------------------


async def test_what_is_not_read_stays_with_the_provider() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = await first_connected(HOSTS[:1], server.getsockname()[1])
        peer, _ = server.accept()
        with sock, peer:
            peer.setblocking(False)
            for _ in range(3):  # what is read in between widens nothing
                for _ in range(200):
                    try:
                        peer.send(bytes(65_536))
                    except BlockingIOError:
                        break
                unread = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"1234"))
                assert 100_000 < unread[0] <= 2 * 256 * 1024
                for _ in range(100):
                    if sock.is_readable():
                        await sock.recv(65_536)


async def test_a_silent_connection_is_asked_after() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = await first_connected(HOSTS[:1], server.getsockname()[1])
        with sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000

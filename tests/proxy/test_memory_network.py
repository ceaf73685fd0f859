"""The network that virtual time runs on fails as the real one does."""

from __future__ import annotations

import socket
import ssl

import pytest
import trio
from trio.testing import MockClock

from tests.fakes import network, provider
from tests.fakes.network import MemoryDialer, MemoryTransport

REQUEST = b'POST / HTTP/1.1\r\ncontent-length: 14\r\n\r\n{"model": "m"}'


async def connected(dialer: MemoryDialer) -> MemoryTransport:
    transport = await dialer.connect("p", 80, tls=False)
    assert isinstance(transport, MemoryTransport)
    return transport


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (network.refused(), ConnectionRefusedError),
        (network.unknown_host(), socket.gaierror),
        (network.bad_certificate(), ssl.SSLCertVerificationError),
        (network.tls_broken(), ssl.SSLError),
    ],
)
async def test_connections_meet_their_troubles_in_order(
    autojump_clock: MockClock, trouble: OSError, kind: type[OSError]
) -> None:
    async with trio.open_nursery() as nursery:
        dialer = MemoryDialer(nursery)
        dialer.hosts["p"] = provider.ScriptedProvider(provider.SILENCE)
        dialer.trouble("p", [trouble, 3.0, network.NEVER])
        with pytest.raises(kind):
            await connected(dialer)
        await connected(dialer)
        assert trio.current_time() == 3
        with trio.move_on_after(7):
            await connected(dialer)
        await connected(dialer)
        assert dialer.dialled_at == [0, 0, 3, 10]
        nursery.cancel_scope.cancel()


async def test_a_reset_comes_behind_what_was_sent(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        dialer = MemoryDialer(nursery)
        dialer.hosts["p"] = provider.ScriptedProvider([b"one", 1.0, b"two", provider.RESET])
        transport = await connected(dialer)
        await transport.send(REQUEST)
        assert await transport.receive() == b"one"
        assert await transport.receive() == b"two"
        with pytest.raises(ConnectionResetError):
            await transport.receive()


async def test_a_provider_notices_at_once_that_nobody_listens(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        dialer = MemoryDialer(nursery)
        asked = provider.ScriptedProvider([b"one", provider.HANG])
        dialer.hosts["p"] = asked
        transport = await connected(dialer)
        await transport.send(REQUEST)
        await trio.sleep(4)
        transport.close()
    assert asked.asked_at == [0]
    assert asked.left_at == [4]
    assert asked.cancelled == 1


async def test_a_provider_can_go_by_the_moment(autojump_clock: MockClock) -> None:
    up, down = provider.completion("Up."), provider.error(500, "Down.")
    async with trio.open_nursery() as nursery:
        dialer = MemoryDialer(nursery)
        dialer.hosts["p"] = provider.ChoosingProvider(lambda now, asked: down if now % 2 else up)
        transport = await connected(dialer)
        answers = []
        for _ in range(3):
            await transport.send(REQUEST)
            answers.append((await transport.receive())[:12])
            await trio.sleep(1)
        transport.close()
    assert answers == [b"HTTP/1.1 200", b"HTTP/1.1 500", b"HTTP/1.1 200"]

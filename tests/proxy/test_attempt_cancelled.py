"""An attempt cancelled at every step that it takes: nothing is held, and nobody waits in vain.

Each scenario runs once for every step of the caller's task, and is cancelled in that step. Then no
place of the pool is taken by what is not idle, no socket is open that nobody has, whoever waited
for a place has got it, and the next request is served.
"""

from __future__ import annotations

import dataclasses
import gc
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import pytest
import trio
from trio.testing import MockClock

from adapters.catalogue import Provider
from proxy.resolve import Address
from proxy.transport import Transport, first_connected
from proxy.upstream import AttemptFailed, Sent, Upstreams
from tests.fakes.network import MemoryDialer

PROVIDER = Provider("p", "openai", "http://upstream.test:9", api_keys=("k1",), max_connections=2)
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REFUSED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n"  # its body comes later
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"
STEPS_MAX = 200


class CancelAt(trio.abc.Instrument):
    """Cancels a scope in the n-th step of a task, or of all tasks together."""

    def __init__(
        self, scope: trio.CancelScope, step: int, task: trio.lowlevel.Task | None = None
    ) -> None:
        self._task = task
        self._scope = scope
        self._left = step
        self.happened = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """trio is about to run a task."""
        if self._task is not None and task is not self._task:
            return
        self._left -= 1
        if self._left == 0:
            self.happened = True
            self._scope.cancel()


class Host:
    """Says its parts to each request, taking its time in between."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts
        self.requests = 0

    async def __call__(self, transport: Transport) -> None:
        try:
            while await transport.receive():
                self.requests += 1
                for part in self.parts if self.requests == 1 else (PLAIN,):
                    await transport.send(part)
                    await trio.sleep(0.1)
        except OSError:
            return  # the client has gone


async def close_at_the_second(transport: Transport) -> None:
    """Serve one request, and hang up at the next."""
    await transport.receive()
    await transport.send(PLAIN)
    await transport.receive()


@dataclass(frozen=True)
class Scenario:
    """What was there before a request, and what the host says to it.

    "idle": a connection was used before; "stale": the same, and it is closed when it is used again;
    "full": all places are taken, and become free one by one; "full, idle": with what was on them.
    """

    before: Literal["nothing", "idle", "stale", "full", "full, idle"] = "nothing"
    parts: tuple[bytes, ...] = (PLAIN[:20], PLAIN[20:])
    keys: tuple[str, ...] = ("k1",)
    body: bytes = b"{}"


SCENARIOS = {
    "new connection": Scenario(),
    "used connection": Scenario("idle"),
    "stale connection": Scenario("stale"),
    "queue": Scenario("full"),
    "queue for a used connection": Scenario("full, idle"),
    "second key": Scenario(parts=(REFUSED, b"no"), keys=("k1", "k2")),
    "stream": Scenario(parts=(STREAM, b"2\r\ncd\r\n", b"0\r\n\r\n")),
    "large body": Scenario(body=b"x" * 1_000_000),
}


async def request(upstreams: Upstreams, provider: Provider, body: bytes = b"{}") -> None:
    """One attempt from its beginning to its end."""
    response = await upstreams.post(provider, Sent("/x", body), queue_seconds=10)
    try:
        while await response.receive():
            pass
        await response.finish()
    finally:
        response.close()


class World:
    """A network, its upstreams, and one scenario in it."""

    def __init__(self, nursery: trio.Nursery, scenario: Scenario) -> None:
        self.scenario = scenario
        self.nursery = nursery
        self.provider = dataclasses.replace(PROVIDER, api_keys=scenario.keys)
        self.dialer = MemoryDialer(nursery)
        self.dialer.delays["upstream.test"] = 0.1
        self.dialer.hosts["upstream.test"] = Host(PLAIN)
        self.upstreams = Upstreams(self.dialer)

    async def prepare(self) -> None:
        """What was there before."""
        match self.scenario.before:
            case "nothing":
                self.dialer.hosts["upstream.test"] = Host(*self.scenario.parts)
            case "idle":
                await request(self.upstreams, self.provider)
            case "stale":
                self.dialer.hosts["upstream.test"] = close_at_the_second
                await request(self.upstreams, self.provider)
                self.dialer.hosts["upstream.test"] = Host(PLAIN)
            case "full" | "full, idle":
                for seconds in (1.0, 2.0):
                    self.nursery.start_soon(self._hold, seconds)
                await trio.sleep(0.5)

    async def _hold(self, seconds: float) -> None:
        """Take a place for a while; its connection is idle then, or closed."""
        response = await self.upstreams.post(self.provider, Sent("/x", b"{}"), queue_seconds=0)
        await trio.sleep(seconds)
        if self.scenario.before == "full, idle":
            await response.read(10, 10)
        response.close()

    async def run(self) -> None:
        """The request that is cancelled."""
        await request(self.upstreams, self.provider, self.scenario.body)

    async def check(self) -> None:
        """Nothing is held, and the next are served."""
        await trio.sleep(5)  # whoever holds a place has let go of it
        for _, pool in self.upstreams.statistics():
            assert pool.taken == pool.idle
            assert pool.waiting == 0
        self.dialer.hosts["upstream.test"] = Host(PLAIN)
        for _ in range(PROVIDER.max_connections):
            await request(self.upstreams, self.provider)
        self.upstreams.close()
        assert all(pool.taken == 0 for _, pool in self.upstreams.statistics())


async def cancelled_at(
    step: int, run: Callable[[], Awaitable[None]], *, whose: trio.lowlevel.Task | None
) -> bool:
    """Run something and cancel it at a step; False where it had ended before."""
    with trio.CancelScope() as scope:
        cancel = CancelAt(scope, step, whose)
        trio.lowlevel.add_instrument(cancel)
        try:
            await run()
        finally:
            trio.lowlevel.remove_instrument(cancel)
    return cancel.happened


@pytest.mark.parametrize("name", SCENARIOS)
def test_cancelled_at_any_step_an_attempt_holds_nothing(name: str) -> None:
    async def once(step: int) -> bool:
        async with trio.open_nursery() as nursery:
            world = World(nursery, SCENARIOS[name])
            await world.prepare()
            happened = await cancelled_at(step, world.run, whose=trio.lowlevel.current_task())
            await world.check()
            nursery.cancel_scope.cancel()
        return happened

    steps = 0
    while trio.run(once, steps + 1, clock=MockClock(autojump_threshold=0)):
        steps += 1
        assert steps < STEPS_MAX
    assert steps >= 2, "it has steps to be cancelled at"


@pytest.mark.parametrize("name", ["queue", "queue for a used connection"])
def test_whoever_waits_behind_a_cancelled_one_is_served(name: str) -> None:
    async def once(step: int) -> bool:
        served = 0
        async with trio.open_nursery() as nursery:
            world = World(nursery, SCENARIOS[name])
            await world.prepare()

            async def behind() -> None:
                nonlocal served
                await trio.sleep(0.05)
                await world.run()
                served += 1

            nursery.start_soon(behind)
            happened = await cancelled_at(step, world.run, whose=trio.lowlevel.current_task())
            await world.check()
            nursery.cancel_scope.cancel()
        assert served == 1
        return happened

    step = 1
    while trio.run(once, step, clock=MockClock(autojump_threshold=0)):
        step += 1
    assert step > 2


HERE = Address(socket.AF_INET, "127.0.0.1")
NOBODY = Address(socket.AF_INET, "127.0.0.2")


@pytest.mark.parametrize(
    "addresses", [(HERE,), (NOBODY, HERE), (HERE, HERE)], ids=["one", "second", "either"]
)
async def test_cancelled_at_any_step_connecting_leaves_no_socket(
    addresses: tuple[Address, ...], recwarn: pytest.WarningsRecorder
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        port = server.getsockname()[1]

        async def dial() -> None:
            (await first_connected(addresses, port)).close()

        steps = 0
        while await cancelled_at(steps + 1, dial, whose=None):
            steps += 1
    assert steps >= len(addresses)
    gc.collect()
    assert not [warning for warning in recwarn if warning.category is ResourceWarning]


async def test_a_failure_beside_a_cancellation_frees_its_place_once(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    dialer = MemoryDialer(nursery)
    dialer.delays["upstream.test"] = 1
    upstreams = Upstreams(dialer)
    for seconds in (0.5, 1, 1.5):
        with trio.move_on_after(seconds):
            with pytest.raises(AttemptFailed, match="connect"):
                await request(upstreams, PROVIDER)
    assert all(pool.taken == 0 for _, pool in upstreams.statistics())

"""An exchange that is cancelled holds nothing afterwards, whatever it was doing.

`STATES` has a row for each thing that an exchange can be waiting for. In each of them the client
leaves, the request's deadline passes, or the worker cuts what still runs; and a few whole exchanges
are ended at every single step that they take. Afterwards nothing is held (`held`), the books are
clean, no task is left, and the provider has seen the end within a second.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from adapters.catalogue import Model, Provider
from adapters.codec import Call
from ledger.client import Reservation
from proxy.calls import Calls
from proxy.exchange import serve_connection
from proxy.health import State as Health
from proxy.outputs import Outputs
from proxy.route import Candidate
from tests.fakes import provider
from tests.fakes.gateway import ACCOUNT, KEY, Client, World, model_of, providers_of, running
from tests.fakes.network import NEVER, connected_pair
from tests.fakes.provider import (
    HANG,
    SILENCE,
    STREAM_END,
    STREAM_HEAD,
    Script,
    ScriptedProvider,
    delta,
)
from tests.fakes.responses import MemoryAnswers

CHAT = "/v1/chat/completions"
ASK = {"model": "gpt", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100}
STREAM = ASK | {"stream": True}
KEYED = {"idempotency-key": "k"}
HEAD = f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\n".encode()
ROLE = delta("", role="assistant")
LONG_WORD = delta("x" * 9000)
FAILED = provider.error(500, "boom")
COMPLETION = provider.completion()[0]
assert isinstance(COMPLETION, bytes)

SECONDS = 1.0
"""So long an exchange may take to let go of everything."""

STORY_SECONDS = 30.0
STEPS_MAX = 500


class Scene:
    """A worker with one client connection, and every means to end what happens there."""

    def __init__(
        self, world: World, hosts: list[ScriptedProvider], patch: pytest.MonkeyPatch
    ) -> None:
        self.world = world
        self.hosts = hosts
        self.patch = patch
        ours, self.transport = connected_pair()
        self.client = Client(ours)
        self.ended = trio.Event()
        self.task: trio.lowlevel.Task | None = None
        self.stubborn: threading.Event | None = None  # lets a thread end
        self.clean_up: list[Callable[[], None]] = []
        self.held_by_others: Counter[str] = Counter()
        self._tasks: Counter[str] = Counter()
        self._connections = trio.CancelScope()

    async def begin(self) -> None:
        """Serve the connection from now on; what is there by now is not its doing."""
        await trio.testing.wait_all_tasks_blocked()  # every service has begun
        self.held_by_others, self._tasks = self.held(), tasks()
        deadlines = self.world.gateway.deadlines
        others = set(deadlines.active)
        self.world.nursery.start_soon(self._serve)
        await trio.testing.wait_all_tasks_blocked()
        (self._deadline,) = deadlines.active - others

    async def _serve(self) -> None:
        self.task = trio.lowlevel.current_task()
        with self._connections:
            await serve_connection(self.world.gateway, self.transport)
        self.transport.close()
        self.ended.set()

    async def read(self) -> None:
        """What clients do: take what comes, and hang up at its end."""
        try:
            while await self.client.transport.receive():
                pass
        except OSError:
            return
        self.client.transport.close()

    # -- how it ends

    def leave(self) -> None:
        """The client hangs up."""
        self.client.transport.close()

    def expire(self) -> None:
        """The request has taken too long."""
        self._deadline.at = trio.current_time()

    def cut(self) -> None:
        """The worker has drained for long enough."""
        self.world.gateway.drain()
        self._connections.cancel()

    # -- what is there

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The upstreams of the model."""
        return self.world.gateway.snapshot.routes["gpt"].candidates

    def held(self) -> Counter[str]:
        """Whatever the exchange could hold, as far as it does."""
        world, gateway = self.world, self.world.gateway
        pools = [pool for _, pool in gateway.upstreams.statistics()]
        ledger = world.server.statistics()
        health = gateway.means.health
        counts = {
            "exchanges": gateway.load.exchanges,
            "bytes": gateway.memory.held_bytes,
            "recorded bytes": gateway.answers.recorded_bytes,
            "reservations": ledger.open_reservations,
            "reservations that wait": ledger.waiting,
            "connections": sum(pool.taken - pool.idle for pool in pools),
            "places in a queue": sum(pool.waiting for pool in pools),
            "attempts": sum(health.in_flight(each.upstream) for each in self.candidates),
            "deadlines": len(gateway.deadlines.active),
            "pulses": len(gateway.keep_alives.active),
            "clients": len(gateway.connections),
            "idle clients": sum(client.is_idle for client in gateway.connections),
            "watched connections": int(self.transport.on_peer_close is not None),
            "streams": sum(
                int(sample.value)
                for family in gateway.metrics.open_streams.collect()
                for sample in family.samples
            ),
        }
        return Counter({what: count for what, count in counts.items() if count})

    async def assert_nothing_is_held(self) -> None:
        """Everything is as it was before."""
        await trio.testing.wait_all_tasks_blocked()
        assert self.held() == self.held_by_others
        assert tasks() == self._tasks


def tasks() -> Counter[str]:
    """The names of all tasks, but for those of the providers' ends of connections."""
    found: Counter[str] = Counter()
    root = trio.lowlevel.current_root_task()
    assert root is not None
    left = [root]
    for task in left:
        found[task.name] += 1
        left += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return Counter({name: count for name, count in found.items() if "Dialer" not in name})


# -- the states -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What an exchange is doing `at` seconds after it was asked for, and how it got there.

    `hosts` are the scripts of its upstreams, `holds` what it then holds. `raw` is sent instead of
    the request, `prepare` happens before. Where the client `reads` nothing, it does so never.
    `runs_on_seconds`: the exchange does not end because its client leaves.
    """

    hosts: tuple[Script, ...]
    holds: frozenset[str]
    at: float = 1.0
    body: object = field(default_factory=lambda: STREAM)
    headers: tuple[tuple[str, str], ...] = ()
    raw: bytes | None = None
    prepare: Callable[[Scene], None] | None = None
    models: Callable[[list[Provider]], list[Model]] | None = None
    max_connections: int = 512
    reads: bool = True
    left_after: float | None = None  # the client, before anything else happens
    runs_on_seconds: float = 0
    asked: tuple[int, ...] = ()  # how often, by host
    cancelled: int = 0  # answers that were cut while a provider gave them
    after: Callable[[Scene], None] | None = None


CONNECTED = frozenset({"clients", "deadlines", "watched connections"})
ADMITTED = CONNECTED | {"exchanges", "bytes"}
RESERVED = ADMITTED | {"reservations", "pulses"}
WAITING = RESERVED  # between attempts nothing else is held
ATTEMPTING = RESERVED | {"attempts"}
ASKING = ATTEMPTING | {"connections"}
STREAMING = (ASKING - {"bytes"}) | {"streams"}


def slow_credit(scene: Scene) -> None:
    """The database takes its time to grant any."""
    grant = scene.world.store.grant_lease

    async def later(*arguments: object) -> object:
        await trio.sleep(3)
        return await grant(*arguments)  # type: ignore[arg-type] # as they came

    scene.patch.setattr(scene.world.store, "grant_lease", later)


def slow_translation(scene: Scene) -> None:
    """It is long, so that it is done in a thread, which cannot be stopped."""
    at = Calls.at
    go_on = scene.stubborn = threading.Event()

    def slowly(calls: Calls, candidate: Candidate, output_cap: int | None) -> Call:
        assert go_on.wait(10)
        return at(calls, candidate, output_cap)

    scene.patch.setattr(Calls, "is_long", lambda _calls, _candidate: True)
    scene.patch.setattr(Calls, "at", slowly)


def nobody_connects(scene: Scene) -> None:
    scene.world.network.delays["p"] = NEVER


def no_place_is_free(scene: Scene) -> None:
    """Another request has the only connection; it ends when the scene does."""
    other = scene.world.connect()
    scene.world.nursery.start_soon(partial(other.send, CHAT, STREAM))
    scene.clean_up.append(other.transport.close)


def its_limit_is_reached(scene: Scene) -> None:
    """The upstream takes no more than the four that it has."""
    health = scene.world.gateway.means.health
    (candidate,) = scene.candidates
    places = [health.enter(candidate.upstream, 0.0) for _ in range(4)]
    health.failed(candidate.upstream, "overloaded", trio.current_time())
    scene.clean_up += [place.close for place in places if place is not None]


def its_circuit_is_half_open(scene: Scene) -> None:
    health, now = scene.world.gateway.means.health, trio.current_time()
    (candidate,) = scene.candidates
    for _ in range(5):
        health.failed(candidate.upstream, "server_error", now - 30, account=ACCOUNT + 1)
    assert health.look(candidate.upstream, now)[0] is Health.PROBE


def somebody_else_may_probe(scene: Scene) -> None:
    (candidate,) = scene.candidates
    place = scene.world.gateway.means.health.enter(candidate.upstream, trio.current_time())
    assert place is not None
    assert place.probe
    place.close()


def its_answers_are_timed(scene: Scene) -> None:
    """Enough of them for hedging after half a second."""
    gateway = scene.world.gateway
    for _ in range(100):
        for candidate in scene.candidates:
            latency = gateway.latencies.of(candidate.upstream.name, streamed=True)
            latency.add(0.5, trio.current_time())


def hedged(hosts: list[Provider]) -> list[Model]:
    return [model_of("gpt", *hosts, hedge_after_percentile=50)]


def growth_takes_long(scene: Scene) -> None:
    """More is produced than is held, and nobody says whether more may be."""
    scene.world.gateway.outputs = Outputs()

    async def never(_reservation: Reservation, _extra: int) -> bool:
        await trio.sleep_forever()
        raise AssertionError

    scene.patch.setattr(Reservation, "ask_for", lambda _reservation, _amount: None)
    scene.patch.setattr(Reservation, "extend", never)


def roomy(hosts: list[Provider]) -> list[Model]:
    return [model_of("gpt", *hosts, default_max_output_tokens=100_000, context_window=1_000_000)]


def slow_journal(scene: Scene) -> None:
    """What was charged takes its time to be written down."""
    journalled = Reservation.journalled

    async def later(reservation: Reservation) -> int | None:
        await trio.sleep(0.4)
        return await journalled(reservation)

    scene.patch.setattr(Reservation, "journalled", later)


def slow_answers(scene: Scene) -> None:
    """The database takes its time to say whose a key is, and then to keep the answer."""
    store = scene.world.gateway.answers.store
    assert isinstance(store, MemoryAnswers)
    store.seconds = 0.4


AT_ONCE: Script = [b"".join(step for step in provider.stream("Hello") if isinstance(step, bytes))]
ENDLESS: Script = [STREAM_HEAD, delta("x"), HANG]
UNCAPPED = {name: value for name, value in STREAM.items() if name != "max_tokens"}
STATES = {
    "idle": State((), CONNECTED | {"idle clients"}, raw=b""),
    "head": State((), CONNECTED | {"idle clients"}, raw=HEAD),
    "body": State((), ADMITTED, raw=HEAD + b'content-length: 9999\r\n\r\n{"'),
    "body in chunks": State(
        (), ADMITTED, raw=HEAD + b'transfer-encoding: chunked\r\n\r\n2\r\n{"\r\n'
    ),
    "credit": State(
        ((COMPLETION,),),
        ADMITTED | {"reservations that wait"},
        at=0.1,
        prepare=slow_credit,
    ),
    "translation": State(
        ((COMPLETION,),),
        ATTEMPTING,
        prepare=slow_translation,
    ),
    "connecting": State((ENDLESS,), ASKING, prepare=nobody_connects),
    "queue for a connection": State(
        (ENDLESS,),
        ATTEMPTING | {"places in a queue"},
        prepare=no_place_is_free,
        max_connections=1,
        asked=(1,),
    ),
    "queue for an upstream": State((ENDLESS,), WAITING, prepare=its_limit_is_reached),
    "no head": State((SILENCE,), ASKING, asked=(1,), cancelled=1),
    "plain, no head": State((SILENCE,), ASKING - {"pulses"}, body=ASK, asked=(1,), cancelled=1),
    "plain, half a body": State(
        ((COMPLETION[:-20], HANG),), ASKING - {"pulses"}, body=ASK, asked=(1,), cancelled=1
    ),
    "no content": State(((STREAM_HEAD, ROLE, HANG),), ASKING, asked=(1,), cancelled=1),
    "retry-after": State((provider.error(429, "slow", retry_after="5"),), WAITING, asked=(1,)),
    "backoff": State((FAILED,), WAITING, at=0.25, asked=(1,)),
    "the next upstream": State((FAILED, SILENCE), ASKING, asked=(1, 1), cancelled=1),
    "race": State(
        (SILENCE, SILENCE),
        ASKING,
        prepare=its_answers_are_timed,
        models=hedged,
        asked=(1, 1),
        cancelled=2,
    ),
    "probe": State(
        (SILENCE,),
        ASKING,
        prepare=its_circuit_is_half_open,
        asked=(1,),
        cancelled=1,
        after=somebody_else_may_probe,
    ),
    "streaming": State((ENDLESS,), STREAMING, asked=(1,), cancelled=1),
    "blocked": State(
        ((STREAM_HEAD, *[LONG_WORD] * 100, HANG),),
        STREAMING,
        reads=False,
        asked=(1,),
        cancelled=1,
    ),
    "growth": State(
        ((STREAM_HEAD, LONG_WORD, LONG_WORD, HANG),),
        STREAMING,
        body=UNCAPPED,
        prepare=growth_takes_long,
        models=roomy,
        asked=(1,),
        cancelled=1,
    ),
    "journal": State(
        ((*provider.stream("Hello")[:-1], HANG),),
        STREAMING - {"reservations"},
        at=0.2,
        prepare=slow_journal,
        asked=(1,),
        cancelled=1,
    ),
    "plain, journal": State(
        ((COMPLETION,),),
        ATTEMPTING - {"attempts", "reservations", "pulses"},
        at=0.2,
        body=ASK,
        prepare=slow_journal,
        asked=(1,),
    ),
    "last figures": State((ENDLESS,), STREAMING, left_after=0.8, asked=(1,), cancelled=1),
    "end of the framing": State(
        ((*provider.stream("Hello")[:-1], 0.4, STREAM_END),),
        STREAMING - {"reservations"},
        at=0.2,
        asked=(1,),
    ),
    "keyed, claiming": State(
        (AT_ONCE,),
        ADMITTED - {"watched connections"},
        at=0.2,
        headers=tuple(KEYED.items()),
        prepare=slow_answers,
        runs_on_seconds=0.5,
    ),
    "keyed, keeping": State(
        (AT_ONCE,),
        STREAMING - {"connections", "watched connections"} | {"recorded bytes"},
        at=0.6,
        headers=tuple(KEYED.items()),
        prepare=slow_answers,
        runs_on_seconds=0.5,
        asked=(1,),
    ),
    "keyed, no head": State(
        ((3.0, *provider.stream("Hello")),),
        ASKING - {"watched connections"},
        headers=tuple(KEYED.items()),
        runs_on_seconds=3.0,
        asked=(1,),
        cancelled=1,
    ),
    "keyed, streaming": State(
        ((STREAM_HEAD, delta("x"), 3.0, *provider.stream("Hello")[1:]),),
        (STREAMING | {"recorded bytes"}) - {"watched connections"},
        headers=tuple(KEYED.items()),
        runs_on_seconds=3.0,
        asked=(1,),
        cancelled=1,
    ),
}
ENDS = {"the client leaves": Scene.leave, "its time is up": Scene.expire, "drained": Scene.cut}


@asynccontextmanager
async def staged(
    what: State | Story, scripts: Sequence[Sequence[Script]], patch: pytest.MonkeyPatch
) -> AsyncIterator[Scene]:
    """A scene in which `what` may happen. Its books have to be clean at the end."""
    hosts = {name: ScriptedProvider(*each) for name, each in zip("pq", scripts, strict=False)}
    made = providers_of(*(hosts or "p"), max_connections=what.max_connections)
    models = [model_of("gpt", *made)] if what.models is None else what.models(made)
    async with running(hosts, models=models) as world:
        scene = Scene(world, list(hosts.values()), patch)
        if what.prepare is not None:
            what.prepare(scene)
            await trio.sleep(0.1)
        await scene.begin()
        yield scene
        await world.assert_books_are_clean()


async def reach(state: State, scene: Scene) -> None:
    """Bring the exchange into a state, and see that it is there."""
    if state.raw is None:
        await scene.client.send(CHAT, state.body, headers=dict(state.headers))
    else:
        await scene.client.transport.send(state.raw)
    if state.reads:
        scene.world.nursery.start_soon(scene.read)
    at = trio.current_time() + state.at
    if state.left_after is not None:
        await trio.sleep(state.left_after)
        scene.leave()
    await trio.sleep_until(at)
    assert set(scene.held() - scene.held_by_others) == state.holds
    assert tuple(host.calls for host in scene.hosts if host.calls) == state.asked


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", STATES)
async def test_whatever_it_was_doing_it_holds_nothing_then(
    name: str, end: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    state = STATES[name]
    runs_on = bool(state.runs_on_seconds) and end == "the client leaves"
    async with staged(state, [[script] for script in state.hosts], monkeypatch) as scene:
        await reach(state, scene)
        ended = trio.current_time()
        ENDS[end](scene)
        if scene.stubborn is not None:
            await trio.sleep(0.1)
            scene.stubborn.set()
            while not scene.ended.is_set():  # time would leap while the thread ends
                await trio.lowlevel.checkpoint()
        with trio.fail_after(state.runs_on_seconds + SECONDS if runs_on else SECONDS):
            await scene.ended.wait()
        await scene.assert_nothing_is_held()
        left_at = [moment for host in scene.hosts for moment in host.left_at]
        assert len(left_at) == (0 if runs_on else state.cancelled)
        assert all(moment <= ended + SECONDS for moment in left_at)
        if state.after is not None:
            state.after(scene)
        for each in scene.clean_up:
            each()
        await trio.sleep(SECONDS)


# -- every step -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """A whole exchange. `hosts` are what its upstreams say, one script after the other."""

    hosts: tuple[tuple[Script, ...], ...]
    body: object
    headers: tuple[tuple[str, str], ...] = ()
    prepare: Callable[[Scene], None] | None = None
    models: Callable[[list[Provider]], list[Model]] | None = None
    max_connections: int = 512
    after: Callable[[Scene], None] | None = None


def somebody_may_probe_or_ask(scene: Scene) -> None:
    (candidate,) = scene.candidates
    assert scene.world.gateway.means.health.enter(candidate.upstream, trio.current_time())


def adaptive(scene: Scene) -> None:
    scene.world.gateway.outputs = Outputs()


IN_PIECES = (*provider.stream("one", "two", "three", gap=0.1)[:-1], 0.1, STREAM_END)
LONG: Script = [STREAM_HEAD, *(step for _ in range(5) for step in (LONG_WORD, 0.1)), *IN_PIECES[1:]]
STORIES = {
    "plain": Story(((provider.completion(),),), ASK),
    "stream": Story(((IN_PIECES,),), STREAM),
    "fallback": Story(((FAILED,), (IN_PIECES,)), STREAM),
    "repeat": Story(((FAILED, FAILED, provider.completion()),), ASK),
    "race": Story(
        ((provider.stream("a", gap=2.0),), (provider.stream("b", gap=1.5),)),
        STREAM,
        prepare=its_answers_are_timed,
        models=hedged,
    ),
    "probe": Story(
        ((IN_PIECES,),), STREAM, prepare=its_circuit_is_half_open, after=somebody_may_probe_or_ask
    ),
    "adaptive": Story(
        ((LONG,),),
        UNCAPPED,
        prepare=adaptive,
        models=roomy,
    ),
    "keyed": Story(((IN_PIECES,),), STREAM, headers=tuple(KEYED.items())),
    "keyed, plain": Story(((provider.completion(),),), ASK, headers=tuple(KEYED.items())),
}


class EndAt(trio.abc.Instrument):
    """Ends an exchange before the n-th step of its task, or of those that it has begun."""

    def __init__(self, scene: Scene, end: Callable[[Scene], None], step: int) -> None:
        self._scene = scene
        self._end = end
        self._left = step
        self.happened = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """trio is about to run a task."""
        own, above = self._scene.task, task.parent_nursery
        if own is None or (task is not own and (above is None or above.parent_task is not own)):
            return
        self._left -= 1
        if self._left == 0:
            self.happened = True
            self._end(self._scene)


async def tell(
    story: Story, end: Callable[[Scene], None], step: int, patch: pytest.MonkeyPatch
) -> bool:
    """The exchange, ended before a step; False where it had ended by itself."""
    async with staged(story, story.hosts, patch) as scene:
        ending = EndAt(scene, end, step)
        trio.lowlevel.add_instrument(ending)
        scene.world.nursery.start_soon(scene.read)
        headers = {"connection": "close", **dict(story.headers)}
        try:
            await scene.client.send(CHAT, story.body, headers=headers)
        except OSError:
            assert ending.happened
        with trio.fail_after(STORY_SECONDS):
            await scene.ended.wait()
        trio.lowlevel.remove_instrument(ending)
        scene.leave()
        await scene.assert_nothing_is_held()
        if story.after is not None:
            story.after(scene)
        events = await scene.world.flushed()
        assert len([event for event in events if event.charge]) <= 1
    return ending.happened


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", STORIES)
def test_whenever_it_ends_it_holds_nothing_then(
    name: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    while trio.run(
        tell,
        STORIES[name],
        ENDS[end],
        steps + 1,
        monkeypatch,
        clock=MockClock(autojump_threshold=0),
    ):
        steps += 1
        assert steps < STEPS_MAX, "it never ends by itself"
    assert steps >= 5, "it has steps to be ended at"

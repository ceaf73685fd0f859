"""A whole worker in memory: the real data plane and ledger between fake edges.

Providers are handlers for the server's end of a connection, clients write HTTP to memory, the
books are a `MemoryStore`. Everything runs under `trio.testing.MockClock`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h11
import trio

from adapters.catalogue import Catalogue, Model, Provider, Upstream
from adapters.pricing import build_schedule
from ledger.client import Ledger
from ledger.keys import keyed_hash
from ledger.limits import LimitRef
from ledger.link import LocalLink
from ledger.memory import MemoryStore
from ledger.money import Price
from ledger.server import LedgerServer
from ledger.store import UsageEvent
from proxy.admit import Load
from proxy.authenticate import Keyring, Principal
from proxy.budget import Budget
from proxy.exchange import serve_connection
from proxy.gateway import Gateway
from proxy.health import Health
from proxy.idempotency import Answers
from proxy.memory import HELD_BYTES_MIN, Memory
from proxy.metrics import Metrics
from proxy.record import Log
from proxy.route import BookIds, Snapshot
from proxy.settings import ServerSettings
from proxy.stored import Responses
from proxy.transport import Transport
from proxy.turn import Means
from proxy.upstream import Upstreams
from tests.fakes.journal import MemoryJournal
from tests.fakes.network import MemoryDialer, MemoryTransport, MemoryWatch, connected_pair
from tests.fakes.responses import MemoryAnswers, MemoryResponses
from tests.fakes.usage import MemoryUsage

SECRET = b"s" * 32
KEY = "sk_farebox_test"
ACCOUNT = 7
PRICE: Mapping[str, object] = {"input": "1.00", "cached_input": "0.50", "output": "2.00"}
MARGIN_BPS = 1000
RETENTION_SECONDS = 86_400


def _wall() -> float:
    return 1_800_000_000.0


Handler = Callable[[Transport], Awaitable[None]]


@dataclass
class Answer:
    """What a client received."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        decoded = json.loads(self.body)
        assert isinstance(decoded, dict)
        return decoded

    @property
    def error(self) -> dict[str, object]:
        error = self.json["error"]
        assert isinstance(error, dict)
        return error


class Client:
    """One client connection that speaks HTTP/1.1."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport
        self._h11 = h11.Connection(h11.CLIENT)

    async def send(
        self,
        path: str,
        body: object = None,
        *,
        key: str | None = KEY,
        headers: Mapping[str, str] | None = None,
        method: str = "POST",
    ) -> None:
        """Send one request; `body` is JSON unless it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body else b""
        fields = {"host": "gateway", **(headers or {})}
        if key is not None:
            fields["authorization"] = f"Bearer {key}"
        if data:
            fields["content-length"] = str(len(data))
        request = h11.Request(method=method, target=path, headers=list(fields.items()))
        head = self._h11.send(request)
        payload = self._h11.send(h11.Data(data=data)) if data else b""
        end = self._h11.send(h11.EndOfMessage())
        await self.transport.send((head or b"") + (payload or b"") + (end or b""))

    async def event(self) -> h11.Event | type[h11.PAUSED]:
        """The next event of the answer."""
        while True:
            event = self._h11.next_event()
            if event is not h11.NEED_DATA:
                assert not isinstance(event, type) or event is h11.PAUSED
                return event
            self._h11.receive_data(await self.transport.receive())

    async def receive(self) -> Answer:
        """The whole answer. Raises h11.RemoteProtocolError where it is cut."""
        head = await self.event()
        assert isinstance(head, h11.Response), head
        parts = []
        while isinstance(event := await self.event(), h11.Data):
            parts.append(bytes(event.data))
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        headers = {name.decode(): value.decode() for name, value in head.headers}
        return Answer(head.status_code, headers, b"".join(parts))

    async def call(
        self,
        path: str,
        body: object = None,
        *,
        key: str | None = KEY,
        headers: Mapping[str, str] | None = None,
        method: str = "POST",
    ) -> Answer:
        """Send and receive."""
        await self.send(path, body, key=key, headers=headers, method=method)
        return await self.receive()


@dataclass
class World:
    """A running worker and everything around it."""

    gateway: Gateway
    store: MemoryStore
    server: LedgerServer
    network: MemoryDialer
    nursery: trio.Nursery
    log: list[bytes] = field(default_factory=list)

    def connect(self) -> Client:
        """A new client connection."""
        ours, theirs = connected_pair()
        self.nursery.start_soon(self._serve, theirs)
        return Client(ours)

    async def _serve(self, transport: MemoryTransport) -> None:
        try:
            await serve_connection(self.gateway, transport)
        finally:
            transport.close()

    async def flushed(self) -> list[UsageEvent]:
        """Every event, once all of them are in the books."""
        await self.server.drain()
        return [event for _, event in self.store.events]

    def balance(self) -> int:
        """Credited − charged, in nano-dollars, as posted."""
        pool = self.store.pools[ACCOUNT]
        return pool.funded - pool.spent

    async def assert_books_are_clean(self) -> None:
        """Nothing is held, and every invariant of the books holds."""
        await self.server.drain()
        assert await self.store.check() == []
        assert self.server.statistics().open_reservations == 0
        assert self.store.pools[ACCOUNT].leased == 0


def providers_of(*names: str, **options: object) -> list[Provider]:
    """Providers on hosts of their own name."""
    return [
        Provider(name, "openai", f"http://{name}/v1", api_keys=("provider-key",), **options)  # type: ignore[arg-type] # keyword options
        for name in names
    ]


def model_of(model_id: str, *providers: Provider, **options: object) -> Model:
    """A priced chat model that its providers call `upstream-model`."""
    schedule = build_schedule(PRICE)
    groups = tuple((Upstream(provider, "upstream-model", schedule),) for provider in providers)
    defaults: dict[str, object] = {
        "default_max_output_tokens": 100,
        "context_window": 10_000,
        "prices": schedule,
    }
    return Model(model_id, groups, **(defaults | options))  # type: ignore[arg-type] # keyword options


def snapshot_of(models: list[Model], providers: list[Provider]) -> Snapshot:
    """What `farebox.snapshot.snapshot` builds, with ids that are counted here."""
    catalogue = Catalogue.build(models, providers)
    rows = {
        (upstream.name, rates)
        for model in models
        for upstream in model.upstreams
        if upstream.prices is not None
        for rates in upstream.prices.variants.values()
    }
    prices = {
        (name, rates): Price(number, dict(rates.components), MARGIN_BPS)
        for number, (name, rates) in enumerate(sorted(rows, key=repr), start=1)
    }
    ids = BookIds(
        {model.id: number for number, model in enumerate(models, start=1)},
        {provider.name: number for number, provider in enumerate(providers, start=1)},
        prices,
    )
    return Snapshot.build(catalogue, ids, brand="farebox", reference="")


def principal_of(**options: object) -> Principal:
    """The caller behind `KEY`."""
    facts: dict[str, object] = {
        "key_id": 1,
        "key_name": "",
        "account_id": ACCOUNT,
        "account": "acme",
        "project_id": 1,
        "project": "default",
        "tier": "",
        "suspended": False,
        "expires_at": 0,
        "models": frozenset(),
        "pools": (ACCOUNT,),
        "limits": (),
    }
    return Principal(**(facts | options))  # type: ignore[arg-type] # keyword options


async def _books(providers: int, credit: int) -> MemoryStore:
    store = MemoryStore()
    store.add_account(ACCOUNT)
    for number in range(1, providers + 1):
        store.add_provider(number)
    if credit:
        await store.credit_pool(ACCOUNT, credit, 5, 7, "opening")  # type: ignore[arg-type] # a pool id
    return store


@asynccontextmanager
async def running(
    hosts: Mapping[str, Handler | OSError],
    *,
    models: list[Model] | None = None,
    credit: int = 10**10,
    limits: tuple[LimitRef, ...] = (),
    settings: ServerSettings | None = None,
    principal: Principal | None = None,
    answers: MemoryAnswers | None = None,
    books: MemoryStore | None = None,
    journal: MemoryJournal | None = None,
    dice: Callable[[], float] = lambda: 1.0,
) -> AsyncIterator[World]:
    """A worker that serves `models` (default: `gpt` at every host, in that order).

    With `books` and `journal` it goes on where another worker stopped. At the end every invariant
    of the books has to hold.
    """
    providers = providers_of(*hosts)
    served = models if models is not None else [model_of("gpt", *providers)]
    used = {u.provider.name: u.provider for model in served for u in model.upstreams}
    store = await _books(len(used), credit) if books is None else books
    journal = MemoryJournal() if journal is None else journal
    server = LedgerServer(store, journal, journal.state.copy())
    keyring = Keyring(SECRET)
    keyring.update([(keyed_hash(SECRET, KEY), principal or principal_of(limits=limits))])
    lines: list[bytes] = []
    async with trio.open_nursery() as nursery:
        network = MemoryDialer(nursery)
        network.hosts.update(hosts)
        gateway = Gateway(
            settings=settings or ServerSettings(),
            snapshot=snapshot_of(served, list(used.values())),
            keyring=keyring,
            ledger=Ledger([LocalLink(server)]),
            upstreams=Upstreams(network),
            watch=MemoryWatch(),
            metrics=Metrics(),
            log=Log(lines.append),
            load=Load(exchanges_max=1000),
            memory=Memory(HELD_BYTES_MIN),
            secret=SECRET,
            responses=Responses(MemoryResponses(_wall), RETENTION_SECONDS, _wall),
            answers=Answers(MemoryAnswers() if answers is None else answers, _wall),
            usage=MemoryUsage(store),
            means=Means(Health(dice=dice), Budget(0.2), dice, trio.current_time),
            wall=_wall,
        )
        await nursery.start(server.run)
        nursery.start_soon(gateway.log.run)
        nursery.start_soon(gateway.deadlines.run)
        nursery.start_soon(gateway.keep_alives.run)
        nursery.start_soon(gateway.upstreams.run)
        yield World(gateway, store, server, network, nursery, lines)
        nursery.cancel_scope.cancel()
    assert await store.check() == []

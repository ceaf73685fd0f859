"""Names → addresses: one lookup a name, answers that outlive their name server, few threads."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.resolve import THREADS_MAX, Address, Resolver, interleaved, look_up

FIRST = Address(socket.AF_INET, "192.0.2.1")
SECOND = Address(socket.AF_INET, "192.0.2.2")
SIXTH = Address(socket.AF_INET6, "2001:db8::6")
AWAY = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
UNKNOWN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class NameServer:
    """Answers each lookup with what it holds for the name, once its gate is open."""

    def __init__(self, *addresses: Address) -> None:
        self.says: tuple[Address, ...] | OSError = addresses
        self.asked: list[str] = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, host: str) -> tuple[Address, ...]:
        self.asked.append(host)
        self.open.wait()
        if isinstance(self.says, OSError):
            raise self.says
        return self.says

    @contextmanager
    def hanging(self) -> Iterator[None]:
        self.open.clear()
        try:
            yield
        finally:
            self.open.set()


async def test_an_address_is_not_looked_up() -> None:
    server = NameServer(FIRST)
    resolver = Resolver(server)
    assert await resolver.addresses("127.0.0.1") == (Address(socket.AF_INET, "127.0.0.1"),)
    assert await resolver.addresses("::1") == (Address(socket.AF_INET6, "::1"),)
    assert not server.asked


async def test_the_system_is_asked() -> None:
    hosts = {address.host for address in await Resolver().addresses("localhost")}
    assert hosts & {"127.0.0.1", "::1"}


@pytest.mark.parametrize(
    "name", ["nowhere.invalid", "a..b", "x" * 64 + ".example", "nul\0.example"]
)
async def test_what_is_no_name_has_no_address(name: str) -> None:
    with pytest.raises(socket.gaierror):
        await Resolver().addresses(name)


async def test_many_ask_and_the_name_server_is_asked_once(mock_clock: MockClock) -> None:
    server = NameServer(FIRST)
    resolver = Resolver(server)
    answers: list[tuple[Address, ...]] = []

    async def ask() -> None:
        answers.append(await resolver.addresses("host"))

    async with trio.open_nursery() as nursery:
        with server.hanging():
            for _ in range(10):
                nursery.start_soon(ask)
            await wait_all_tasks_blocked()
    assert answers == [(FIRST,)] * 10
    assert server.asked == ["host"]


async def test_an_answer_is_good_for_thirty_seconds(mock_clock: MockClock) -> None:
    server = NameServer(FIRST)
    resolver = Resolver(server)
    await resolver.addresses("host")
    mock_clock.jump(29.9)
    server.says = (SECOND,)
    assert await resolver.addresses("host") == (FIRST,)
    mock_clock.jump(0.1)
    assert await resolver.addresses("host") == (SECOND,)
    assert len(server.asked) == 2


async def test_the_last_answer_is_kept_while_the_name_server_fails(mock_clock: MockClock) -> None:
    server = NameServer(FIRST)
    resolver = Resolver(server)
    await resolver.addresses("host")
    server.says = AWAY
    for _ in range(119):
        mock_clock.jump(30)
        assert await resolver.addresses("host") == (FIRST,)
        assert await resolver.addresses("host") == (FIRST,)
    assert len(server.asked) == 120  # not once more than every thirty seconds
    mock_clock.jump(30)
    with pytest.raises(socket.gaierror, match="Temporary failure"):
        await resolver.addresses("host")
    server.says = (SECOND,)
    assert await resolver.addresses("host") == (SECOND,)


async def test_a_name_that_is_gone_is_given_up(mock_clock: MockClock) -> None:
    server = NameServer(FIRST)
    resolver = Resolver(server)
    await resolver.addresses("host")
    server.says = UNKNOWN
    mock_clock.jump(30)
    for _ in range(2):
        with pytest.raises(socket.gaierror, match="not known"):
            await resolver.addresses("host")


async def test_a_name_server_that_hangs_delays_a_known_name_but_once(mock_clock: MockClock) -> None:
    server = NameServer(FIRST)
    resolver = Resolver(server)
    await resolver.addresses("host")
    mock_clock.jump(30)
    with server.hanging():
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                assert await resolver.addresses("host") == (FIRST,)

            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            mock_clock.jump(1.8)
        await ask()  # the same lookup still runs: there is nothing to wait for
    mock_clock.jump(30)
    await resolver.addresses("host")  # the one that hung has come back meanwhile, or comes now
    assert len(server.asked) <= 3


async def test_whoever_stops_waiting_leaves_its_answer_to_others(mock_clock: MockClock) -> None:
    server = NameServer(FIRST)
    resolver = Resolver(server)
    with server.hanging():
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(resolver.addresses, "host")
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
    assert await resolver.addresses("host") == (FIRST,)
    assert server.asked == ["host"]


async def test_lookups_have_few_threads_and_nobody_elses(mock_clock: MockClock) -> None:
    server = NameServer(FIRST)
    resolver = Resolver(server)
    names = [f"host-{number}" for number in range(THREADS_MAX + 4)]
    everyone_else = trio.to_thread.current_default_thread_limiter()
    async with trio.open_nursery() as nursery:
        with server.hanging():
            for name in names:
                nursery.start_soon(resolver.addresses, name)
            await wait_all_tasks_blocked()
            while len(server.asked) < THREADS_MAX:  # the threads start by themselves
                await trio.lowlevel.checkpoint()
            assert len(set(server.asked)) == THREADS_MAX
            assert everyone_else.borrowed_tokens == 0
    assert sorted(server.asked) == sorted(names)


def test_a_worker_may_end_before_its_lookups_do() -> None:
    server = NameServer(FIRST)

    async def leave() -> None:
        with trio.move_on_after(0):
            await Resolver(server).addresses("host")

    with server.hanging():
        trio.run(leave)
    # The thread finds nobody to tell, and says nothing of it: pytest would hear.
    while any(thread.name == "name lookup" for thread in threading.enumerate()):
        pass


async def test_the_addresses_of_a_name_take_turns() -> None:
    resolver = Resolver(NameServer(SIXTH, FIRST, SECOND))
    assert [await resolver.addresses("host") for _ in range(3)] == [
        (SIXTH, FIRST, SECOND),
        (SIXTH, SECOND, FIRST),
        (SIXTH, FIRST, SECOND),
    ]


ADDRESSES = st.lists(
    st.builds(
        Address, st.sampled_from([socket.AF_INET, socket.AF_INET6]), st.sampled_from("abcdefgh")
    ),
    unique=True,
    max_size=8,
)


@given(addresses=ADDRESSES, turn=st.integers(0, 20))
def test_families_take_turns_and_nothing_is_lost(addresses: list[Address], turn: int) -> None:
    order = interleaved(addresses, turn)
    assert sorted(order, key=repr) == sorted(addresses, key=repr)
    if addresses:
        assert order[0].family == addresses[0].family
    fewer = min(
        sum(address.family == family for address in addresses)
        for family in (socket.AF_INET, socket.AF_INET6)
    )
    begins = [address.family for address in order[: 2 * fewer]]
    assert all(one != other for one, other in itertools.pairwise(begins))


def test_an_address_takes_a_port() -> None:
    assert FIRST.at(443) == ("192.0.2.1", 443)
    assert Address(socket.AF_INET6, "fe80::1", 3).at(443) == ("fe80::1", 443, 0, 3)
    assert look_up("127.0.0.1") == (Address(socket.AF_INET, "127.0.0.1"),)

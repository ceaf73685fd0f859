"""Who is calling: a key is found in each of its places, and nobody gets in with two of them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from urllib.parse import quote

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from adapters.errors import AccountSuspended, InvalidAPIKey, LedgerUnavailable
from ledger.keys import keyed_hash, mint
from proxy import authenticate
from proxy.authenticate import Keyring, Principal
from proxy.request_head import Head
from tests.fakes.gateway import SECRET, principal_of

NOW = 1_700_000_000.0
KNOWN, OTHER, UNKNOWN = "sk_known", "sk_other", "sk_unknown"
NAMES = {KNOWN: 1, OTHER: 2}

Place = Callable[[dict[bytes, bytes], str], str]
"""Puts a key into a request: into its headers, or into the query that is returned."""


def header(name: bytes, form: str = "{}") -> Place:
    def put(headers: dict[bytes, bytes], key: str) -> str:
        headers[name] = form.format(key).encode("latin-1")
        return ""

    return put


def in_query(headers: dict[bytes, bytes], key: str) -> str:
    return f"alt=sse&key={quote(key)}"


PLACES: dict[str, Place] = {
    "bearer": header(b"authorization", "Bearer {}"),
    "x-api-key": header(b"x-api-key"),
    "x-goog-api-key": header(b"x-goog-api-key"),
    "query": in_query,
    "websocket": header(b"sec-websocket-protocol", "realtime, openai-insecure-api-key.{}"),
}


def ring(**facts: object) -> Keyring:
    """A ring with two keys; `facts` are of the first one."""
    keyring = Keyring(SECRET)
    keyring.update(
        (keyed_hash(SECRET, key), principal_of(key_id=key_id, **(facts if key_id == 1 else {})))
        for key, key_id in NAMES.items()
    )
    return keyring


def asked(keys: dict[str, str]) -> Head:
    """A request with keys in some places."""
    headers, query = {b"host": b"x"}, ""
    for place, key in keys.items():
        query += PLACES[place](headers, key)
    return Head("POST", "/", query, headers)


def id_of(head: Head) -> int:
    """Of the key that is meant, which is known."""
    caller = found(ring(), head)
    assert caller is not None
    return caller.key_id


def found(keyring: Keyring, head: Head) -> Principal | None:
    return keyring.find(authenticate.hash_of_key(keyring, head), NOW)


@given(st.dictionaries(st.sampled_from(sorted(PLACES)), st.sampled_from((KNOWN, OTHER, UNKNOWN))))
def test_a_caller_is_who_all_its_keys_name(keys: dict[str, str]) -> None:
    named = {NAMES.get(key) for key in keys.values()}
    if len(named) == 1 and None not in named:
        assert {id_of(asked(keys))} == named
    elif set(keys.values()) == {UNKNOWN}:
        assert found(ring(), asked(keys)) is None
    else:
        with pytest.raises(InvalidAPIKey):
            found(ring(), asked(keys))


@pytest.mark.parametrize("scheme", ["bearer {}", "BEARER   {} "])
def test_a_scheme_is_read_in_any_case(scheme: str) -> None:
    head = Head("POST", "/", "", {b"authorization": scheme.format(KNOWN).encode()})
    assert id_of(head) == 1


@pytest.mark.parametrize("value", [b"Bearer", b"Bearer ", b"Basic sk_known", b"sk_known", b""])
def test_what_is_no_bearer_is_no_key(value: bytes) -> None:
    headers = {b"authorization": value}
    with pytest.raises(InvalidAPIKey, match="No API key was sent"):
        found(ring(), Head("POST", "/", "monkey=sk_known", headers))
    headers[b"x-api-key"] = KNOWN.encode()
    assert id_of(Head("POST", "/", "", headers)) == 1


def test_two_keys_are_refused_even_where_one_is_good() -> None:
    with pytest.raises(InvalidAPIKey, match="Two different API keys"):
        found(ring(), asked({"bearer": KNOWN, "x-api-key": UNKNOWN}))


@pytest.mark.parametrize(
    ("expires_at", "served"), [(0, True), (NOW + 1, True), (NOW, False), (NOW - 1, False)]
)
def test_a_key_ends_at_its_moment(expires_at: float, served: bool) -> None:
    keyring = ring(expires_at=expires_at)
    assert (keyring.find(keyring.hash_of(KNOWN), NOW) is not None) is served


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 20)), max_size=30), st.integers(1, 20))
def test_what_has_expired_is_forgotten_whatever_its_end_was_before(
    updates: list[tuple[int, int]], now: int
) -> None:
    keyring = Keyring(SECRET)
    ends: dict[int, int] = {}
    for key_id, expires_at in updates:
        ends[key_id] = expires_at
        facts = principal_of(key_id=key_id, expires_at=float(expires_at))
        keyring.update([(keyed_hash(SECRET, f"key {key_id}"), facts)])
    keyring.forget_expired(now)
    live = {key_id for key_id, end in ends.items() if end == 0 or end > now}
    assert len(keyring) == len(live)
    hashes = {key_id: keyring.hash_of(f"key {key_id}") for key_id in ends}
    assert {key_id for key_id in ends if keyring.find(hashes[key_id], 0.0)} == live


def test_moving_the_end_of_a_key_again_and_again_holds_no_memory() -> None:
    keyring = Keyring(SECRET)
    tracemalloc.start()
    try:
        for end in range(1, 20_000):
            facts = principal_of(key_id=1, expires_at=NOW + end)
            keyring.update([(keyed_hash(SECRET, KNOWN), facts)])
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()


def test_a_suspended_account_is_told_so() -> None:
    with pytest.raises(AccountSuspended, match="acme"):
        found(ring(suspended=True), asked({"bearer": KNOWN}))


NEW = mint("farebox")


async def test_a_key_that_is_in_the_books_works_at_once(autojump_clock: MockClock) -> None:
    keyring = ring()

    async def refresh() -> None:
        await trio.sleep(0.1)  # this one had begun when the key was made
        with keyring.refreshing():
            await trio.sleep(0.1)
            keyring.update([(keyed_hash(SECRET, NEW), principal_of(key_id=3))])

    async with trio.open_nursery() as nursery:
        with keyring.refreshing():
            nursery.start_soon(refresh)
            nursery.start_soon(let_in, keyring, asked({"bearer": NEW}), 3)
            await wait_all_tasks_blocked()
    assert trio.current_time() == pytest.approx(0.2)


async def let_in(keyring: Keyring, head: Head, key_id: int) -> None:
    assert (await authenticate.newcomer(keyring, head, NOW)).key_id == key_id


async def test_what_cannot_be_a_key_is_not_waited_for(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    with pytest.raises(InvalidAPIKey, match="unknown"):
        await authenticate.newcomer(ring(), asked({"bearer": UNKNOWN}), NOW)
    assert trio.current_time() == began


async def test_a_key_that_is_in_no_books_is_refused(autojump_clock: MockClock) -> None:
    keyring = ring()

    async def refresh() -> None:
        await wait_all_tasks_blocked()
        with keyring.refreshing():
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refresh)
        with pytest.raises(InvalidAPIKey, match="unknown"):
            await authenticate.newcomer(keyring, asked({"bearer": NEW}), NOW)
    assert trio.current_time() == pytest.approx(0.1)


async def test_who_cannot_look_says_so_and_does_not_refuse_a_key(autojump_clock: MockClock) -> None:
    """401 would be for good: no client tries that again."""
    began = trio.current_time()
    with pytest.raises(LedgerUnavailable) as refusal:
        await authenticate.newcomer(ring(), asked({"bearer": NEW}), NOW)
    assert trio.current_time() - began == pytest.approx(5.0)
    assert (refusal.value.status, refusal.value.retry_after) == (503, 1.0)


async def test_a_refresh_that_fails_is_waited_out(autojump_clock: MockClock) -> None:
    keyring = ring()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(let_in, keyring, asked({"bearer": NEW}), 3)
        await trio.sleep(0.1)
        with pytest.raises(OSError, match="away"), keyring.refreshing():
            raise OSError("away")
        await trio.sleep(0.1)
        with keyring.refreshing():
            keyring.update([(keyed_hash(SECRET, NEW), principal_of(key_id=3))])
    assert trio.current_time() == pytest.approx(0.2)


def test_keys_are_replaced_and_forgotten_by_id() -> None:
    keyring = ring()
    keyring.update([(keyed_hash(SECRET, UNKNOWN), principal_of(key_id=1))], removed=[2, 9])
    known = {key: found(keyring, asked({"bearer": key})) for key in (KNOWN, OTHER, UNKNOWN)}
    assert {key: caller is not None for key, caller in known.items()} == {
        KNOWN: False,
        OTHER: False,
        UNKNOWN: True,
    }
    assert len(keyring) == 1

"""Who is calling: a key is found in each of its places, and nobody gets in with two of them."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import AccountSuspended, InvalidAPIKey
from ledger.keys import keyed_hash
from proxy import authenticate
from proxy.authenticate import Keyring
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


@given(st.dictionaries(st.sampled_from(sorted(PLACES)), st.sampled_from((KNOWN, OTHER, UNKNOWN))))
def test_a_caller_is_who_all_its_keys_name(keys: dict[str, str]) -> None:
    named = {NAMES.get(key) for key in keys.values()}
    if len(named) == 1 and None not in named:
        assert {authenticate.principal(ring(), asked(keys), NOW).key_id} == named
    else:
        with pytest.raises(InvalidAPIKey):
            authenticate.principal(ring(), asked(keys), NOW)


@pytest.mark.parametrize("scheme", ["bearer {}", "BEARER   {} "])
def test_a_scheme_is_read_in_any_case(scheme: str) -> None:
    head = Head("POST", "/", "", {b"authorization": scheme.format(KNOWN).encode()})
    assert authenticate.principal(ring(), head, NOW).key_id == 1


@pytest.mark.parametrize("value", [b"Bearer", b"Bearer ", b"Basic sk_known", b"sk_known", b""])
def test_what_is_no_bearer_is_no_key(value: bytes) -> None:
    headers = {b"authorization": value}
    with pytest.raises(InvalidAPIKey, match="No API key was sent"):
        authenticate.principal(ring(), Head("POST", "/", "monkey=sk_known", headers), NOW)
    headers[b"x-api-key"] = KNOWN.encode()
    assert authenticate.principal(ring(), Head("POST", "/", "", headers), NOW).key_id == 1


def test_two_keys_are_refused_even_where_one_is_good() -> None:
    with pytest.raises(InvalidAPIKey, match="Two different API keys"):
        authenticate.principal(ring(), asked({"bearer": KNOWN, "x-api-key": UNKNOWN}), NOW)


@pytest.mark.parametrize(
    ("expires_at", "served"), [(0, True), (NOW + 1, True), (NOW, False), (NOW - 1, False)]
)
def test_a_key_ends_at_its_moment(expires_at: float, served: bool) -> None:
    assert (ring(expires_at=expires_at).find(KNOWN, NOW) is not None) is served


def test_a_suspended_account_is_told_so() -> None:
    with pytest.raises(AccountSuspended, match="acme"):
        authenticate.principal(ring(suspended=True), asked({"bearer": KNOWN}), NOW)


def test_keys_are_replaced_and_forgotten_by_id() -> None:
    keyring = ring()
    keyring.update([(keyed_hash(SECRET, UNKNOWN), principal_of(key_id=1))], removed=[2, 9])
    found = {key: keyring.find(key, NOW) is not None for key in (KNOWN, OTHER, UNKNOWN)}
    assert found == {KNOWN: False, OTHER: False, UNKNOWN: True}
    assert len(keyring) == 1

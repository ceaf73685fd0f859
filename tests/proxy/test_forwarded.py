"""Whose word counts about where a request comes from."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.forwarded import client_address, parse_network

PROXIES = ("127.0.0.1", "10.0.0.0/8", "2001:db8:a::/48")


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        ("127.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("10.1.2.3", "192.0.2.7", "192.0.2.7"),
        ("2001:db8:a::1", "2001:db8:b::7", "2001:db8:b::7"),
        ("127.0.0.1", "2001:DB8:B:0::7", "2001:db8:b::7"),
        ("127.0.0.1", " 192.0.2.7 ", "192.0.2.7"),
        # through several of ours, from the last to the first
        ("127.0.0.1", "192.0.2.7, 10.0.0.2,10.0.0.1", "192.0.2.7"),
        ("127.0.0.1", "192.0.2.7, 2001:db8:a::2", "192.0.2.7"),
        ("127.0.0.1", "10.0.0.2, 10.0.0.1", "10.0.0.2"),
        # what the client itself wrote stands before what our proxy did
        ("127.0.0.1", "198.51.100.1, 192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", "127.0.0.1, 192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", "198.51.100.1, 10.0.0.9, 192.0.2.7, 10.0.0.1", "192.0.2.7"),
        # as some proxies write it
        ("127.0.0.1", "192.0.2.7:51234", "192.0.2.7"),
        ("127.0.0.1", "[2001:db8:b::7]:51234", "2001:db8:b::7"),
        ("127.0.0.1", "[2001:db8:b::7]", "2001:db8:b::7"),
        ("127.0.0.1", "::ffff:192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", "192.0.2.7, ::ffff:10.0.0.1", "192.0.2.7"),
        ("127.0.0.1", "fe80::7%eth0", "fe80::7"),
    ],
)
def test_a_trusted_proxy_says_who_asks(peer: str, header: str, client: str) -> None:
    assert client_address(peer, header, PROXIES) == client


@pytest.mark.parametrize("peer", ["192.0.2.9", "11.0.0.1", "2001:db8:b::1", "127.0.0.2", ""])
@pytest.mark.parametrize("header", ["198.51.100.1", "127.0.0.1", "198.51.100.1, 10.0.0.1"])
def test_nobody_else_does(peer: str, header: str) -> None:
    assert client_address(peer, header, PROXIES) == peer


def test_without_trusted_proxies_the_peer_is_who_asks() -> None:
    assert client_address("127.0.0.1", "192.0.2.7", ()) == "127.0.0.1"


def test_a_trusted_proxy_that_says_nothing_asks_itself() -> None:
    assert client_address("127.0.0.1", "", PROXIES) == "127.0.0.1"


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "unknown",
        "_hidden",
        "localhost",
        "192.0.2",
        "192.0.2.7.1",
        "192.0.2.07",
        "3221225991",
        "192.0.2.7:",
        "192.0.2.7:http",
        "192.0.2.7:80:80",
        "192.0.2.7/32",
        "[2001:db8::7",
        "[2001:db8::7]80",
        "[2001:db8::7]:",
        "2001:db8::7]",
        '"192.0.2.7"',
        "for=192.0.2.7",
        "192.0.2.7 192.0.2.8",
        "<script>",
        "\xb2.0.0.1",
    ],
)
def test_what_is_no_address_ends_the_walk(entry: str) -> None:
    assert client_address("127.0.0.1", entry, PROXIES) == "127.0.0.1"
    assert client_address("127.0.0.1", f"192.0.2.7, {entry}", PROXIES) == "127.0.0.1"
    assert client_address("127.0.0.1", f"192.0.2.7, {entry}, 10.0.0.1", PROXIES) == "10.0.0.1"
    assert client_address("127.0.0.1", f"{entry}, 192.0.2.7", PROXIES) == "192.0.2.7"


def test_a_header_of_many_entries_is_not_read_to_its_beginning() -> None:
    chain = ", ".join(["192.0.2.7", *["10.0.0.1"] * 5000])
    assert client_address("127.0.0.1", chain, PROXIES) == "10.0.0.1"
    assert client_address("127.0.0.1", ", ".join(["192.0.2.7"] + ["10.0.0.1"] * 15), PROXIES) == (
        "192.0.2.7"
    )


@given(st.text(st.characters(max_codepoint=0xFF), max_size=60))
def test_whatever_a_client_writes_only_what_our_proxy_adds_counts(said: str) -> None:
    assert client_address("127.0.0.1", f"{said}, 192.0.2.7", PROXIES) == "192.0.2.7"
    alone = client_address("127.0.0.1", said, PROXIES)
    assert str(ipaddress.ip_address(alone)) == alone  # fit for a log, whatever was said


@pytest.mark.parametrize("text", ["127.0.0.1", "10.0.0.0/8", "::1", "2001:db8::/32"])
def test_a_proxy_is_named_by_address_or_network(text: str) -> None:
    network = parse_network(text)
    assert str(network) == text or network.num_addresses == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nginx", "is no address"),
        ("10.0.0.0/33", "is no address"),
        ("", "is no address"),
        ("10.0.0.1:80", "is no address"),
        ("0.0.0.0/0", "trusts everybody"),
        ("::/0", "trusts everybody"),
        ("10.1.0.0/8", 'write "10.0.0.0/8"'),
        ("2001:db8::1/32", 'write "2001:db8::/32"'),
    ],
)
def test_what_names_no_proxy_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_network(text)

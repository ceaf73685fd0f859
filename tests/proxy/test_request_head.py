"""What the short way takes, h11 takes in the same sense; and nobody can tell which way was gone."""

from __future__ import annotations

from itertools import pairwise
from unittest.mock import patch

import h11
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from adapters.errors import APIError, InvalidRequest
from proxy.connection import ClientGone, Connection
from proxy.deadlines import Deadlines
from proxy.request_head import Head, PlainHeads, head_of, plain_head
from proxy.settings import ServerSettings
from tests.fakes.network import connected_pair

OPENAI = (
    b"POST /v1/chat/completions HTTP/1.1\r\n"
    b"Host: 127.0.0.1:8080\r\n"
    b"Accept-Encoding: gzip, deflate\r\n"
    b"Connection: keep-alive\r\n"
    b"Accept: application/json\r\n"
    b"Content-Type: application/json\r\n"
    b"User-Agent: OpenAI/Python 1.99.1\r\n"
    b"X-Stainless-Runtime-Version: 3.11.7\r\n"
    b"Authorization: Bearer sk_farebox_0123456789\r\n"
    b"x-stainless-retry-count: 0\r\n"
    b"Content-Length: 4\r\n\r\n"
)
GEMINI = (
    b"POST /v1beta/models/g:streamGenerateContent?alt=sse HTTP/1.1\r\n"
    b"host: localhost\r\nx-goog-api-key: sk\r\ncontent-length: 4\r\n\r\n"
)
CURL = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n"
ORDINARY = [OPENAI, GEMINI, CURL]


def with_line(line: bytes) -> bytes:
    """A request with one more line in its head."""
    return CURL.replace(b"Accept:", line + b"\r\nAccept:")


# Most of these have let one request pass for two somewhere, or two readers see different ones.
SUSPECTS = {
    "bare line feeds": CURL.replace(b"\r\n", b"\n"),
    "one bare line feed": CURL.replace(b"x\r\n", b"x\n"),
    "a blank line without its return": with_line(b"A: b\n\nGET /x HTTP/1.1"),
    "a blank line of a line feed first": with_line(b"A: b\n\r\nGET /x HTTP/1.1"),
    "a bare return in a value": with_line(b"A: b\rContent-Length: 4"),
    "a bare return before the end": CURL.replace(b"\r\n\r\n", b"\r\r\n\r\n"),
    "a folded line": with_line(b"A: b\r\n c"),
    "a folded line with a colon": with_line(b"A: b\r\n Content-Length: 4"),
    "a fold in the first line": CURL.replace(b"Host", b" Host"),
    "space before the colon": with_line(b"Content-Length : 4"),
    "tab before the colon": with_line(b"Content-Length\t: 4"),
    "no space behind the colon": with_line(b"Content-Length:4"),
    "no name": with_line(b": 4"),
    "no colon": with_line(b"Content-Length 4"),
    "a name alone": with_line(b"Cookie"),
    "no value": with_line(b"Content-Length: "),
    "only spaces": with_line(b"A:    "),
    "spaces around": with_line(b"Content-Length:   4  "),
    "a tab before the value": with_line(b"Content-Length:\t4"),
    "a vertical tab": with_line(b"Content-Length: \x0b4"),
    "a null": with_line(b"A: \x00"),
    "a null in a name": with_line(b"Content-Length\x00: 4"),
    "a character above ASCII": with_line(b"A: \xe4"),
    "a name above ASCII": with_line("Content\u2011Length: 4".encode()),
    "a signed length": with_line(b"Content-Length: +4"),
    "a negative length": with_line(b"Content-Length: -4"),
    "a hexadecimal length": with_line(b"Content-Length: 0x4"),
    "a length with an underscore": with_line(b"Content-Length: 1_0"),
    "a length with zeros": with_line(b"Content-Length: 004"),
    "a long length": with_line(b"Content-Length: " + b"0" * 20 + b"4"),
    "a length of 20 digits": with_line(b"Content-Length: " + b"9" * 20),
    "a list of lengths": with_line(b"Content-Length: 4, 4"),
    "a list of different lengths": with_line(b"Content-Length: 4, 5"),
    "a length twice": with_line(b"Content-Length: 4\r\nContent-Length: 4"),
    "different lengths": with_line(b"Content-Length: 4\r\ncontent-length: 5"),
    "chunked": with_line(b"Transfer-Encoding: chunked"),
    "chunked and a length": with_line(b"Transfer-Encoding: chunked\r\nContent-Length: 4"),
    "chunked, disguised": with_line(b"Transfer-Encoding: xchunked"),
    "chunked twice": with_line(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
    "an underscore for a hyphen": with_line(b"Transfer_Encoding: chunked"),
    "an empty coding": with_line(b"Transfer-Encoding:"),
    "no host": CURL.replace(b"Host: x\r\n", b""),
    "two hosts": with_line(b"host: y"),
    "HTTP/1.0": CURL.replace(b"1.1", b"1.0"),
    "HTTP/1.0 without a host": CURL.replace(b"1.1\r\nHost: x", b"1.0"),
    "HTTP/2.0": CURL.replace(b"1.1", b"2.0"),
    "HTTP/1.10": CURL.replace(b"1.1", b"1.10"),
    "no version": CURL.replace(b" HTTP/1.1", b""),
    "a small version": CURL.replace(b"HTTP", b"http"),
    "two spaces": CURL.replace(b" HTTP", b"  HTTP"),
    "a space in the target": CURL.replace(b"models", b"mo dels"),
    "a space behind the version": CURL.replace(b"1.1\r\n", b"1.1 \r\n"),
    "a small method": CURL.replace(b"GET", b"get"),
    "another method": CURL.replace(b"GET", b"CONNECT"),
    "a head only": CURL.replace(b"GET", b"HEAD"),
    "a whole URL": CURL.replace(b"/v1", b"http://y/v1"),
    "a star": CURL.replace(b"/v1/models", b"*"),
    "two questions": CURL.replace(b"models", b"models?a=b?c=d"),
    "an empty query": CURL.replace(b"models", b"models?"),
    "an empty line first": b"\r\n" + CURL,
    "an empty head": b"\r\n\r\n",
    "nothing but a request line": b"GET / HTTP/1.1\r\n\r\n",
    "something expected": with_line(b"Expect: 100-continue"),
    "an upgrade": with_line(b"Connection: Upgrade\r\nUpgrade: h2c"),
    "a header of two lines": with_line(b"Cookie: a\r\nCookie: b"),
    "a key twice": with_line(b"Authorization: a\r\nAuthorization: b"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}
CORPUS = [*ORDINARY, *SUSPECTS.values()]


def read_by_h11(data: bytes) -> tuple[Head, int | None, bytes, h11.Connection]:
    """The head of a request, its length, what comes behind it, and who has read it."""
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(data)
    event = parser.next_event()
    assert isinstance(event, h11.Request)
    assert event.http_version == b"1.1"
    return *head_of(event), parser.trailing_data[0], parser


def assert_h11_agrees(data: bytes) -> None:
    """What is read in the short way, h11 reads in the same way."""
    plain = plain_head(data)
    if plain is None:
        return
    head, length, behind = plain
    *expected, parser = read_by_h11(data)
    assert [head, length, behind] == expected
    assert not parser.they_are_waiting_for_100_continue
    # By its framing a body of that length follows, and then h11 knows of its end.
    if length < 100_000:
        parser = h11.Connection(h11.SERVER)
        parser.receive_data(data[: len(data) - len(behind)] + b"x" * length)
        while not isinstance(event := parser.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Request | h11.Data)
        assert parser.trailing_data[0] == b""


@pytest.mark.parametrize("data", ORDINARY)
def test_what_clients_send_goes_the_short_way(data: bytes) -> None:
    assert plain_head(data + b"body") is not None
    assert_h11_agrees(data + b"body")


@pytest.mark.parametrize("name", SUSPECTS)
def test_whatever_is_suspect_means_what_h11_says(name: str) -> None:
    assert_h11_agrees(SUSPECTS[name] + CURL)


@pytest.mark.parametrize("data", ORDINARY)
def test_a_part_of_a_head_is_none(data: bytes) -> None:
    assert not any(plain_head(data[:length]) for length in range(len(data)))


def test_every_byte_in_every_place_means_what_h11_says() -> None:
    data = GEMINI + b"body"
    for place in range(len(data)):
        for byte in range(256):
            assert_h11_agrees(data[:place] + bytes([byte]) + data[place + 1 :])


PIECES = st.binary(max_size=3) | st.sampled_from(
    [
        *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b": ", b",", b"?", b"\x00", b"\x7f", b"\xff"),
        *(b"\r\n\r\n", b"\n\n", b"Content-Length: 4", b"Transfer-Encoding: chunked", b"Host: x"),
        *(b"GET / HTTP/1.1", b"POST", b"HTTP/1.0", b"0", b"-", b"_", b"connection: close"),
    ]
)
# (where, how many bytes are taken out, what is put in)
EDITS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), PIECES), max_size=4)


def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, taken, put in edits:
        data = data[:place] + put + data[place + taken :]
    return data


@settings(deadline=None)
@given(st.sampled_from(CORPUS), EDITS)
def test_whatever_is_taken_means_what_h11_says(
    data: bytes, edits: list[tuple[int, int, bytes]]
) -> None:
    assert_h11_agrees(edited(data, edits) + b"body")


NAMES = st.text("abcXYZ019-_!~", min_size=1, max_size=12).map(str.encode)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)


@settings(deadline=None)
@given(st.lists(st.tuples(NAMES, VALUES), max_size=8), st.binary(max_size=20))
def test_any_fields_mean_what_h11_says(fields: list[tuple[bytes, str]], behind: bytes) -> None:
    lines = [b"%b: %b\r\n" % (name, value.encode()) for name, value in fields]
    assert_h11_agrees(CURL[:-2] + b"".join(lines) + b"\r\n" + behind)


# -- heads like the last one ----------------------------------------------------------------------


def with_length(data: bytes, length: bytes) -> bytes:
    """The same request with another length."""
    for said in (b"ontent-Length: 4", b"ontent-length: 4"):
        data = data.replace(said, said[:-1] + length)
    return data


def read_like_the_last(last: bytes, data: bytes) -> tuple[Head, int, bytes] | None:
    heads = PlainHeads()
    heads.read(last)
    return heads.read(data)


@pytest.mark.parametrize("data", [OPENAI, GEMINI])
@pytest.mark.parametrize("length", [b"0", b"7", b"004", b"12345", b"9" * 20])
def test_a_head_with_another_length_is_known_without_being_read(data: bytes, length: bytes) -> None:
    heads = PlainHeads()
    first = heads.read(data)
    assert first is not None
    said = with_length(data, length)
    expected = plain_head(said + b"body")
    assert expected is not None
    with patch("proxy.request_head.plain_head", side_effect=AssertionError("it is read")):
        assert heads.read(said + b"body") == expected
        assert heads.read(data + b"body") == (first[0], 4, b"body")
    assert expected[1] == int(length)


@pytest.mark.parametrize(
    "length",
    [
        *(
            b"",
            b" ",
            b"+4",
            b"-4",
            b"4 ",
            b" 4",
            b"4\t",
            b"4\n",
            b"4\r",
            b"4_0",
            b"0x4",
            b"4,4",
            b"a",
        ),
        *(
            b"4\r\nA: b",
            b"4\r\n",
            b"4\r\n\r\n",
            b"4\r\ncontent-length: 5",
            b"4\x00",
            b"\xb2",
            b"4" * 21,
        ),
        *(b"4\r\nTransfer-Encoding: chunked", b"4\r\nExpect: 100-continue"),
    ],
)
@pytest.mark.parametrize("data", [OPENAI, GEMINI])
def test_a_length_that_is_none_is_not_known(data: bytes, length: bytes) -> None:
    said = with_length(data, length) + b"body"
    assert read_like_the_last(data, said) == plain_head(said)


def test_every_byte_in_every_place_means_the_same_as_in_a_first_head() -> None:
    said = GEMINI + b"body"
    for place in range(len(said)):
        for byte in range(256):
            damaged = said[:place] + bytes([byte]) + said[place + 1 :]
            assert read_like_the_last(GEMINI, damaged) == plain_head(damaged)


@pytest.mark.parametrize("data", [OPENAI, GEMINI])
def test_a_part_of_a_head_that_is_known_is_none(data: bytes) -> None:
    assert not any(read_like_the_last(data, data[:length]) for length in range(len(data)))


LENGTHS = st.binary(max_size=3) | st.integers(0, 10**6).map(b"%d".__mod__)
SAID = st.tuples(st.sampled_from([OPENAI, GEMINI]) | st.sampled_from(CORPUS), LENGTHS)


@settings(deadline=None)
@given(st.lists(st.tuples(SAID, st.just([]) | EDITS), min_size=2, max_size=6))
def test_what_was_said_before_changes_nothing(
    heads: list[tuple[tuple[bytes, bytes], list[tuple[int, int, bytes]]]],
) -> None:
    read = PlainHeads()
    for (data, length), edits in heads:
        said = edited(with_length(data, length), edits) + b"body"
        assert read.read(said) == plain_head(said)


def test_what_was_found_out_about_a_head_is_known_of_the_same_head_only() -> None:
    heads = PlainHeads()
    first, second = heads.read(OPENAI), heads.read(with_length(OPENAI, b"12"))
    other = heads.read(OPENAI.replace(b"0123456789", b"9876543210"))
    assert first is not None
    assert second is not None
    assert other is not None
    assert first[0] is second[0]
    assert (first[1], second[1]) == (4, 12)
    assert other[0] is not first[0]


def test_a_large_head_is_not_remembered() -> None:
    said = OPENAI.replace(b"Connection", b"Cookie: " + b"a" * 4096 + b"\r\nConnection")
    heads = PlainHeads()
    assert heads.read(said) == plain_head(said)
    assert heads._last is None


# -- whole connections ----------------------------------------------------------------------------


async def exchanges(pieces: list[bytes]) -> list[object]:
    """What a connection makes of bytes that come in these pieces, and then end."""
    client, server = connected_pair()
    connection = Connection(server, ServerSettings(max_head_bytes=1024), Deadlines().new())
    seen: list[object] = []

    async def speak() -> None:
        for piece in pieces:
            await client.send(piece)
            await wait_all_tasks_blocked()
        client.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        try:
            while await serve(connection, seen):
                pass
        except ClientGone:
            seen.append("gone")
        nursery.cancel_scope.cancel()
    return seen


async def serve(connection: Connection, seen: list[object]) -> bool:
    """Read a request and answer it, as an exchange does; whether another may follow."""
    try:
        head = await connection.read_head()
        if head is None:
            return False
        seen.append((head, connection.body_bytes))
        seen.append(await connection.read_body(5))
    except APIError as error:
        seen.append((type(error), str(error)))
        await connection.skip_body()
    await connection.respond(200, [], b"")
    seen.append(connection.reusable)
    return connection.reusable


@pytest.mark.parametrize("name", SUSPECTS)
@pytest.mark.parametrize("data", ORDINARY)
async def test_suspects_among_others_are_no_other_requests(name: str, data: bytes) -> None:
    pieces = [data + b"body"[: 4 * (data is not CURL)] + SUSPECTS[name] + CURL]
    taken = await exchanges(pieces)
    with patch("proxy.request_head.PlainHeads.read", return_value=None):
        assert await exchanges(pieces) == taken


def cut(data: bytes, places: set[int]) -> list[bytes]:
    """`data` in pieces that begin at these places."""
    begins = [0, *sorted(place for place in places if 0 < place < len(data)), len(data)]
    return [data[a:b] for a, b in pairwise(begins)]


REQUESTS = st.lists(
    st.sampled_from([OPENAI + b"body", GEMINI + b"more", CURL]) | st.sampled_from(CORPUS),
    min_size=1,
    max_size=4,
)


@settings(deadline=None)
@given(REQUESTS, EDITS, st.sets(st.integers(1, 1200), max_size=6))
@example([OPENAI + b"body", CURL, GEMINI + b"more"], [], {len(OPENAI) + 2, len(OPENAI) + 40})
def test_nobody_can_tell_which_way_was_gone(
    requests: list[bytes], edits: list[tuple[int, int, bytes]], places: set[int]
) -> None:
    pieces = cut(edited(b"".join(requests), edits), places)
    taken = trio.run(exchanges, pieces)
    with patch("proxy.request_head.PlainHeads.read", return_value=None):
        assert trio.run(exchanges, pieces) == taken


# -- contradictions -------------------------------------------------------------------------------


def test_a_header_that_says_two_things_is_refused() -> None:
    data = with_line(b"Authorization: a\r\nAuthorization: b")
    with pytest.raises(InvalidRequest, match="authorization"):
        read_by_h11(data)
    assert read_by_h11(with_line(b"Cookie: a\r\nCookie: b"))[0].headers[b"cookie"] == b"b"


def test_what_several_proxies_add_is_one_list() -> None:
    data = with_line(b"X-Forwarded-For: a, b\r\nAccept-Language: en\r\nx-forwarded-for: c")
    assert read_by_h11(data)[0].headers[b"x-forwarded-for"] == b"a, b, c"

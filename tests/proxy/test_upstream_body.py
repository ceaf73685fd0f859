"""Bodies, however they are cut: what is read here is what h11 reads."""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream_body import Body, BodyToTheEnd, ChunkedBody, SizedBody
from proxy.upstream_errors import AttemptFailed

_REQUEST = h11.Request(method=b"POST", target=b"/", headers=[(b"host", b"upstream")])
Told = tuple[list[bytes], str, bytes | None]
"""The payload of each part, how it came out, and whether anything was left behind the end."""


def by_us(body: Body, parts: list[bytes]) -> Told:
    """What our reader tells of a body that comes in these parts and ends with the connection."""
    payloads: list[bytes] = []
    try:
        for part in parts:
            payloads.append(body.feed(part))
            if body.ended:
                return payloads, "ended", b"" if body.exact else b"more"
        body.close()
    except AttemptFailed as failed:
        return payloads, failed.reason, None
    return payloads, "ended" if body.ended else "open", None


def by_h11(framing: bytes, parts: list[bytes]) -> Told:
    """What h11 tells of the same."""
    reader = h11.Connection(h11.CLIENT)
    reader.send(_REQUEST)
    reader.send(h11.EndOfMessage())
    reader.receive_data(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n")
    assert isinstance(reader.next_event(), h11.Response)
    payloads: list[bytes] = []
    for part in [*parts, b""]:
        reader.receive_data(part)
        payload = b""
        try:
            while (event := reader.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Data):
                    payload += event.data
                    continue
                if part:
                    payloads.append(payload)
                left = b"more" if reader.trailing_data[0] else b""
                return payloads, "ended", left if part else None
        except h11.RemoteProtocolError:
            return payloads, "protocol" if part else "truncated", None
        payloads.append(payload)
    raise AssertionError("h11 has an opinion of every end")


def in_parts(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data`, cut at these places, as far as it has them."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


CUTS = st.lists(st.integers(0, 2000), max_size=12)
PAYLOAD = st.one_of(st.binary(max_size=40), st.binary(min_size=200, max_size=300))
SIZE = st.sampled_from(["{:x}", "{:X}", "{:03x}", "{:012x}", "0x{:x}", "+{:x}", "{:x}_0", " {:x}"])
ODD_SIZE = st.one_of(st.just("{:x}"), st.just("{:x}"), st.just("{:x}"), SIZE)
EXTENSION = st.sampled_from([b"", b"", b"", b" ", b"\t", b";a=b", b"; x", b"\x00", b"\r"])
ENDING = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"", b"xx"])
TRAILER = st.sampled_from(
    [b"", b"", b"", b"a: b\r\n", b"a: b\r\nc: d\r\n", b" folded\r\n", b"no colon\r\n", b"\n"]
)


@st.composite
def chunk(draw: st.DrawFn) -> bytes:
    """A chunk, ordinary or not."""
    payload = draw(PAYLOAD)
    size = draw(ODD_SIZE).format(len(payload)).encode()
    return size + draw(EXTENSION) + draw(ENDING) + payload + draw(ENDING)


@st.composite
def stream(draw: st.DrawFn) -> bytes:
    """A chunked body, perhaps broken, perhaps with something behind it."""
    whole = b"".join(draw(st.lists(chunk(), max_size=6)))
    last = draw(st.sampled_from([b"0", b"0", b"0", b"000", b"0;x", b""])) + draw(ENDING)
    behind = draw(st.sampled_from([b"", b"", b"", b"HTTP/1.1 200 OK\r\n\r\n", b"\r\n"]))
    whole += last + draw(TRAILER) + draw(ENDING) + behind
    if draw(st.booleans()):
        at = draw(st.integers(0, len(whole)))
        whole = whole[:at] + draw(st.binary(max_size=3)) + whole[at + draw(st.integers(0, 3)) :]
    return whole


@given(stream(), CUTS)
def test_chunks_are_read_as_h11_reads_them(data: bytes, cuts: list[int]) -> None:
    parts = in_parts(data, cuts)
    assert by_us(ChunkedBody(), parts) == by_h11(b"transfer-encoding: chunked\r\n", parts)


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=20), CUTS)
def test_ordinary_chunks_never_need_h11(payloads: list[bytes], cuts: list[int]) -> None:
    data = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in payloads) + b"0\r\n\r\n"
    body = ChunkedBody()
    read = [body.feed(part) for part in in_parts(data, cuts)]
    assert b"".join(read) == b"".join(payloads)
    assert body.ended
    assert body.exact
    assert body._by_h11 is None


@pytest.mark.parametrize(
    "data",
    [
        b"4\r\nabcd\r\n0\r\n\r\n",
        b"4;ext=1\r\nabcd\r\n0\r\n\r\n",
        b"4\r\nabcd\r\n0\r\ntrailer: 1\r\n\r\n",
        b"00000000000004\r\nabcd\r\n0000000000\r\n\r\nmore",
        b"4\r\nabcdX\r\n0\r\n\r\n",
        b"4\r\nabcd\rX0\r\n\r\n",
        b"g\r\n",
        b"\r\n4\r\nabcd\r\n",
        b"4\r\nabcd\r\n0\r\n\rX",
        b"4" * 20_000,
        b"4\r\nabcd\r\n0\r\na: " + b"b" * 20_000,
    ],
)
def test_wherever_a_body_is_cut_it_reads_alike(data: bytes) -> None:
    framing = b"transfer-encoding: chunked\r\n"
    for cut in range(min(len(data), 60)):
        parts = [part for part in (data[:cut], data[cut:]) if part]
        assert by_us(ChunkedBody(), parts) == by_h11(framing, parts), cut
    bytewise = [data[at : at + 1] for at in range(len(data))]
    assert by_us(ChunkedBody(), bytewise) == by_h11(framing, bytewise)


@given(st.integers(1, 400), st.binary(max_size=420), CUTS)
def test_sized_bodies_are_read_as_h11_reads_them(length: int, data: bytes, cuts: list[int]) -> None:
    parts = in_parts(data, cuts)
    told, heard = by_us(SizedBody(length), parts), by_h11(b"content-length: %d\r\n" % length, parts)
    assert (b"".join(told[0]), told[1]) == (b"".join(heard[0]), heard[1])


@given(st.lists(st.binary(min_size=1, max_size=30)))
def test_what_has_no_length_ends_with_its_connection(parts: list[bytes]) -> None:
    assert by_us(BodyToTheEnd(), parts) == (parts, "ended", None)
    assert by_h11(b"", parts) == (parts, "ended", None)

"""adapters.media: data URLs as clients write them, and what media may cost at most."""

from __future__ import annotations

from base64 import b64decode, b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidRequest
from adapters.image_size import SIZE_BYTES, size_of
from adapters.media import (
    IMAGE_TOKENS,
    PAGE_TOKENS,
    audio_tokens,
    data_url,
    document_tokens,
    image_size,
    image_tokens,
    parse_data_url,
    sniffed,
)


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big")


def jpeg(width: int, height: int, metadata: int = 100) -> bytes:
    return (
        b"\xff\xd8"
        + b"\xff\xe1" + (metadata + 2).to_bytes(2, "big") + bytes(metadata)
        + b"\xff\xff\xc2\0\x11\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\3"
    )  # fmt: skip


def webp(chunk: bytes, rest: bytes) -> bytes:
    return b"RIFF\0\0\0\0WEBP" + chunk + b"\0\0\0\0" + rest


def encoded(data: bytes) -> str:
    return b64encode(data).decode()


PNG = encoded(png(8, 6))


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{PNG}",
        f"data:image/jpeg;base64,{PNG}",  # wrong, and corrected
        f"data:image/png,{PNG}",  # the mark forgotten
        f"data:;base64,{PNG}",
        f"DATA:image/png;charset=utf-8;BASE64 , {PNG[:10]}\n{PNG[10:]}",
        f"data:image/png;base64,{PNG.rstrip('=')}",
    ],
)
def test_data_urls_as_clients_write_them(url: str) -> None:
    assert parse_data_url(url, "image_url") == ("image/png", PNG)


def test_the_other_alphabet_is_understood() -> None:
    assert parse_data_url("data:a/b;base64,-_-_", "x") == ("a/b", "+/+/")


def test_text_that_is_not_base64_is_encoded() -> None:
    assert parse_data_url("data:text/plain,a%20b!", "x") == ("text/plain", encoded(b"a b!"))


@pytest.mark.parametrize(
    "url", ["", "data:", "data:image/png;base64,", "data:image/png;base64, \n", "data:a;base64,a*b"]
)
def test_no_data_is_refused_by_the_fields_name(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_data_url(url, "messages[0].image_url")
    assert refused.value.param == "messages[0].image_url"


@given(st.text(max_size=30) | st.text("dat:;base64,AB=-_ \n%"))
def test_any_url_is_read_or_refused(url: str) -> None:
    try:
        _, data = parse_data_url(url, "x")
    except InvalidRequest:
        return
    assert b64decode(data, validate=True)


@given(st.binary(min_size=1, max_size=60))
def test_what_is_written_can_be_read(data: bytes) -> None:
    text = encoded(data)
    assert parse_data_url(data_url("a/b", text), "x")[1] == text


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (png(1, 1), "image/png"),
        (jpeg(1, 1), "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (webp(b"VP8X", b""), "image/webp"),
        (b"%PDF-1.7", "application/pdf"),
        (b"RIFF\0\0\0\0WAVE", "audio/wav"),
        (b"nothing known", "x/y"),
        (b"", "x/y"),
    ],
)
def test_the_first_bytes_decide(head: bytes, found: str) -> None:
    assert sniffed(encoded(head), "x/y") == found


def test_another_name_of_the_same_type_stays() -> None:
    assert sniffed(encoded(b"ID3"), "audio/mpeg") == "audio/mpeg"
    assert sniffed("*", "x/y") == "x/y"


@pytest.mark.parametrize(
    "image",
    [
        png(640, 480),
        jpeg(640, 480),
        b"GIF87a" + (640).to_bytes(2, "little") + (480).to_bytes(2, "little"),
        webp(b"VP8 ", bytes(6) + (640).to_bytes(2, "little") + (480).to_bytes(2, "little")),
        webp(b"VP8L", b"\x2f" + (639 | 479 << 14).to_bytes(4, "little") + bytes(8)),
        webp(b"VP8X", bytes(4) + (639).to_bytes(3, "little") + (479).to_bytes(3, "little")),
    ],
)
def test_the_size_of_an_image(image: bytes) -> None:
    assert image_size(encoded(image)) == (640, 480)
    for end in range(len(image) - 1):
        assert size_of(image[:end]) in (None, (640, 480))


@given(st.binary(max_size=80), st.sampled_from([b"", b"\xff\xd8\xff", b"RIFF", b"GIF8", png(1, 1)]))
def test_the_size_of_anything(data: bytes, magic: bytes) -> None:
    size = size_of(magic + data)
    assert size is None or min(size) > 0


def test_a_size_too_far_inside_is_not_looked_for() -> None:
    assert image_size(encoded(jpeg(5, 5, 60_000))) == (5, 5)
    twice = jpeg(5, 5, 60_000)[:-13] + jpeg(5, 5, 60_000)[2:]
    assert len(twice) > SIZE_BYTES
    assert image_size(encoded(twice)) is None


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [
        (1, 1, 4_784),  # Claude's cap, the dearest of those that do not go by size alone
        (4032, 3024, 14_364),
        (10_000, 10_000, 117_563),
    ],
)
def test_an_image_is_bounded_by_its_size(width: int, height: int, tokens: int) -> None:
    assert image_tokens(encoded(png(width, height))) == tokens


def test_what_is_not_known_is_bounded_by_the_dearest() -> None:
    assert image_tokens() == image_tokens("nothing") == IMAGE_TOKENS
    assert audio_tokens(0) == 32
    assert audio_tokens(4 * 500) == 4 * 32
    assert document_tokens(0) == PAGE_TOKENS
    assert document_tokens(10**9) == 600 * PAGE_TOKENS

"""Expected input: fair where media tells what it is, low where not, never above the bound."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from functools import partial
from types import MappingProxyType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.canonical import Usage
from adapters.catalogue import Protocol, Provider
from adapters.codec import Ask, Call, Counted, DownstreamCodec, Request, Target
from adapters.envelope import Envelopes
from adapters.estimate import Bound, bound, counted_tokens
from adapters.expected import expected_input
from adapters.media_parts import Media, media_of
from adapters.registry import find, upstream_codec
from adapters.stream import nothing_expected
from adapters.translate import Translation
from tests.fakes.bodies import whole
from tests.fakes.sandbox import post

Json = dict[str, object]

PROTOCOLS: list[Protocol] = ["openai", "openai-responses", "anthropic", "gemini"]
PATHS = MappingProxyType(
    {
        "openai": "/v1/chat/completions",
        "openai-responses": "/v1/responses",
        "anthropic": "/v1/messages",
        "gemini": "/v1beta/models/m:generateContent",
    }
)
LARGE = Bound(input_tokens=10**9, text_bytes=0, audio=True)
ENVELOPES = Envelopes(b"s" * 32, "account")


def encoded(data: bytes) -> str:
    return b64encode(data).decode()


def png(width: int, height: int, size: int = 0) -> bytes:
    """The head of one, and bytes up to a size."""
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return head + bytes(max(size - len(head), 0))


def jpeg(width: int, height: int, metadata: int) -> bytes:
    """With so many bytes before it tells its size."""
    segment = b"\xff\xe1" + (metadata + 2).to_bytes(2, "big") + bytes(metadata)
    frame = b"\xff\xc0\0\x11\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\3"
    return b"\xff\xd8" + segment + frame + bytes(100)


def wav(seconds: int, bytes_per_second: int = 32_000) -> bytes:
    rate = bytes_per_second.to_bytes(4, "little")
    head = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0" + bytes(4) + rate + bytes(12)
    return head + bytes(seconds * bytes_per_second - len(head))


def pdf(pages: int, size: int = 0) -> bytes:
    root = b"%PDF-1.7\n1 0 obj << /Type /Pages >> endobj\n"
    data = root + b"".join(b"%d 0 obj << /Type /Page >> endobj\n" % at for at in range(pages))
    return data + bytes(max(size - len(data), 0))


# -- parts as each protocol has them --------------------------------------------------------------


def image_part(protocol: Protocol, data: bytes, *, low: bool = False) -> Json:
    address = "data:image/png;base64," + encoded(data)
    detail = {"detail": "low"} if low else {}
    match protocol:
        case "openai":
            return {"type": "image_url", "image_url": {"url": address, **detail}}
        case "openai-responses":
            return {"type": "input_image", "image_url": address, **detail}
        case "anthropic":
            source = {"type": "base64", "media_type": "image/png", "data": encoded(data)}
            return {"type": "image", "source": source}
        case _:
            return {"inlineData": {"mimeType": "image/png", "data": encoded(data)}}


def pdf_part(protocol: Protocol, data: bytes) -> Json:
    address = "data:application/pdf;base64," + encoded(data)
    match protocol:
        case "openai":
            return {"type": "file", "file": {"filename": "a.pdf", "file_data": address}}
        case "openai-responses":
            return {"type": "input_file", "filename": "a.pdf", "file_data": address}
        case "anthropic":
            source = {"type": "base64", "media_type": "application/pdf", "data": encoded(data)}
            return {"type": "document", "source": source}
        case _:
            return {"inline_data": {"mime_type": "application/pdf", "data": encoded(data)}}


def text_part(protocol: Protocol, text: str) -> Json:
    match protocol:
        case "openai-responses":
            return {"type": "input_text", "text": text}
        case "gemini":
            return {"text": text}
        case _:
            return {"type": "text", "text": text}


def sound_part(protocol: Protocol, data: bytes) -> Json:
    if protocol == "gemini":
        return {"inlineData": {"mimeType": "audio/wav", "data": encoded(data)}}
    return {"type": "input_audio", "input_audio": {"data": encoded(data), "format": "wav"}}


def linked_part(protocol: Protocol) -> Json:
    address = "https://example.org/a,b.png"
    match protocol:
        case "openai":
            return {"type": "image_url", "image_url": {"url": address}}
        case "openai-responses":
            return {"type": "input_image", "image_url": address}
        case "anthropic":
            return {"type": "image", "source": {"type": "url", "url": address}}
        case _:
            return {"fileData": {"mimeType": "image/png", "fileUri": address}}


def codec_of(protocol: Protocol) -> DownstreamCodec:
    codec = find("POST", PATHS[protocol]).operation.codec
    assert codec is not None
    return codec


def body_of(protocol: Protocol, parts: list[Json]) -> Json:
    match protocol:
        case "openai":
            return {"model": "m", "messages": [{"role": "user", "content": parts}]}
        case "openai-responses":
            return {"model": "m", "input": [{"role": "user", "content": parts}]}
        case "anthropic":
            messages = [{"role": "user", "content": parts}]
            return {"model": "m", "max_tokens": 100, "messages": messages}
        case _:
            return {"contents": [{"role": "user", "parts": parts}]}


def request_of(protocol: Protocol, *parts: Json) -> Request:
    body = json.dumps(body_of(protocol, list(parts))).encode()
    return codec_of(protocol).decode(body, Ask("m"))


def media_tokens(protocol: Protocol, part: Json, upstream: Protocol | None = None) -> int:
    """What is expected of a part beyond the text around it."""
    request = request_of(protocol, part)
    usage = expected_input(request, upstream or protocol, LARGE)
    return usage.input_tokens - counted_tokens(request.scan.text_bytes)


# -- formulas -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "openai", "anthropic", "gemini"),
    [
        (1, 1, 1, 1, 258),
        (200, 200, 49, 64, 258),
        (512, 512, 210, 361, 258),
        (768, 768, 576, 784, 258),
        (1024, 1024, 630, 1369, 1032),
        (2048, 4096, 910, 784 * 2, 1065),  # 768 × 1536 in six tiles; 784 × 1568 in squares
        (4032, 3024, 630, 1568, 1065),
        (100, 4000, 500, 112, 1065),  # 4 × 125 patches; 39 × 1568 pixels
        (2**32 - 1, 2**32 - 1, 630, 1568, 1065),
        (2**32 - 1, 1, 630, 56, 1065),
    ],
)
def test_an_image_counts_by_its_size(
    width: int, height: int, openai: int, anthropic: int, gemini: int
) -> None:
    expected = {"openai": openai, "openai-responses": openai}
    expected |= {"anthropic": anthropic, "gemini": gemini}
    for protocol in PROTOCOLS:
        part = image_part(protocol, png(width, height))
        assert media_tokens(protocol, part) == expected[protocol]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_formula_is_the_upstreams_and_not_the_clients(protocol: Protocol) -> None:
    part = image_part(protocol, png(1024, 1024))
    assert media_tokens(protocol, part, "openai") == 630
    assert media_tokens(protocol, part, "anthropic") == 1369
    assert media_tokens(protocol, part, "gemini") == 1032


@pytest.mark.parametrize("protocol", ["openai", "openai-responses"])
def test_little_detail_counts_little(protocol: Protocol) -> None:
    part = image_part(protocol, png(1024, 1024), low=True)
    assert media_tokens(protocol, part) == 70
    assert media_tokens(protocol, part, "gemini") == 64


@pytest.mark.parametrize("metadata", [10, 3000, 60_000])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_jpeg_tells_its_size_behind_its_metadata(protocol: Protocol, metadata: int) -> None:
    part = image_part(protocol, jpeg(1024, 1024, metadata))
    assert media_tokens(protocol, part, "openai") == 630


@pytest.mark.parametrize("protocol", ["openai", "openai-responses", "anthropic"])
def test_an_image_that_is_only_linked_counts_as_a_small_one(protocol: Protocol) -> None:
    assert media_tokens(protocol, linked_part(protocol), "openai") == 576
    assert media_tokens(protocol, linked_part(protocol), "anthropic") == 784


def test_files_of_the_providers_own_are_nothing() -> None:
    assert media_tokens("gemini", linked_part("gemini")) == 0
    assert media_tokens("openai", {"type": "file", "file": {"file_id": "file-1"}}) == 0
    assert media_tokens("openai-responses", {"type": "input_file", "file_id": "file-1"}) == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_document_counts_by_its_pages(protocol: Protocol) -> None:
    for upstream, page in {"openai": 1000, "anthropic": 1500, "gemini": 258}.items():
        named: Protocol = upstream  # type: ignore[assignment] # a key of the table
        assert media_tokens(protocol, pdf_part(protocol, pdf(3)), named) == 3 * page
        assert media_tokens(protocol, pdf_part(protocol, pdf(0)), named) == page
        unseen = pdf_part(protocol, pdf(0, size=450_000))  # pages inside compressed streams
        assert media_tokens(protocol, unseen, named) == 4 * page


def test_pages_are_told_at_both_ends_of_a_document() -> None:
    middle = pdf(2, size=300_000) + b"/Type /Page " * 50 + bytes(300_000)
    assert media_tokens("openai", pdf_part("openai", middle)) == 2 * 1000
    last = pdf(0, size=300_000) + b"/Type /Page " * 5
    assert media_tokens("openai", pdf_part("openai", last)) == 5 * 1000


@pytest.mark.parametrize(
    "tree",
    [
        b"<< /Type /Pages /Kids [3 0 R] /Count 12 >>",
        b"<</Count 12/Kids[3 0 R]/Type/Pages>>",
        b"<</Count 12/Type/Pages>> <</Type/Outlines /Count 99>>",
    ],
)
@pytest.mark.parametrize("size", [0, 500_000])
def test_a_page_tree_tells_the_pages(tree: bytes, size: int) -> None:
    data = pdf(0, size) + tree
    assert media_tokens("openai", pdf_part("openai", data)) == 12 * 1000


def test_a_text_as_a_file_counts_as_text() -> None:
    address = "data:text/plain;base64," + encoded(b"x" * 4000)
    part: Json = {"type": "file", "file": {"file_data": address}}
    assert 1000 <= media_tokens("openai", part) <= 1002
    source = {"type": "text", "media_type": "text/plain", "data": "x" * 4000}
    found = expected_input(
        request_of("anthropic", {"type": "document", "source": source}), "anthropic", LARGE
    )
    assert 1000 <= found.input_tokens <= 1050


@pytest.mark.parametrize(("protocol", "second"), [("openai", 10), ("gemini", 32)])
def test_sound_counts_by_its_seconds_as_sound(protocol: Protocol, second: int) -> None:
    request = request_of(protocol, sound_part(protocol, wav(7)))
    usage = expected_input(request, protocol, LARGE)
    assert usage.audio_input_tokens == 7 * second
    assert usage.input_tokens == 7 * second + counted_tokens(request.scan.text_bytes)
    unknown = request_of(protocol, sound_part(protocol, b"ID3" + bytes(48_000 - 3)))
    assert expected_input(unknown, protocol, LARGE).audio_input_tokens == 3 * second


def test_sound_has_its_price_only_where_that_was_reserved() -> None:
    request = request_of("openai", sound_part("openai", wav(7)))
    usage = expected_input(request, "openai", Bound(10**6, 0, audio=False))
    assert usage.audio_input_tokens == 0
    assert usage.input_tokens > 70


def test_film_counts_as_one_second() -> None:
    part: Json = {"inlineData": {"mimeType": "video/mp4", "data": encoded(bytes(1_000_000))}}
    assert media_tokens("gemini", part) == 258


def test_media_inside_of_results_counts() -> None:
    inner = image_part("anthropic", png(1024, 1024))
    result: Json = {"type": "tool_result", "tool_use_id": "a", "content": [inner]}
    assert media_tokens("anthropic", result) == 1369
    document: Json = {"type": "document", "source": {"type": "content", "content": [inner]}}
    assert media_tokens("anthropic", document) == 1369
    response = {"name": "f", "response": {}, "parts": [image_part("gemini", png(9, 9))]}
    assert media_tokens("gemini", {"functionResponse": response}) == 258


def test_an_embedding_is_text() -> None:
    codec = find("POST", "/v1/embeddings").operation.codec
    assert codec is not None
    request = codec.decode(json.dumps({"model": "m", "input": "x" * 98}).encode(), Ask())
    assert expected_input(request, "openai", bound(request)) == Usage(input_tokens=25)


# -- properties -----------------------------------------------------------------------------------

images = st.builds(png, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
anything = st.one_of(
    images,
    st.builds(jpeg, st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 5000)),
    st.builds(pdf, st.integers(0, 2000)),
    st.binary(max_size=300),
    st.builds(lambda magic, rest: magic + rest, st.sampled_from(
        [b"RIFF\0\0\0\0WAVEfmt ", b"RIFF\0\0\0\0WEBPVP8X", b"GIF89a", b"\xff\xd8\xff\xff", b"%PDF-"]
    ), st.binary(max_size=200)),
)  # fmt: skip
makers = st.sampled_from([image_part, pdf_part, sound_part])


@st.composite
def parts_of(draw: st.DrawFn, protocol: Protocol) -> list[Json]:
    made = draw(st.lists(st.tuples(makers, anything), max_size=4))
    texts = [text_part(protocol, text) for text in draw(st.lists(st.text(max_size=40), max_size=2))]
    return [make(protocol, data) for make, data in made] + texts


@given(st.data(), st.sampled_from(PROTOCOLS), st.sampled_from(PROTOCOLS), st.integers(0, 20_000))
def test_it_is_never_above_the_bound_whatever_heads_claim(
    data: st.DataObject, protocol: Protocol, upstream: Protocol, window: int
) -> None:
    request = request_of(protocol, *data.draw(parts_of(protocol)))
    reserved = bound(request, window)
    usage = expected_input(request, upstream, reserved)
    assert 0 <= usage.audio_input_tokens <= usage.input_tokens <= reserved.input_tokens


@given(st.data(), st.sampled_from(PROTOCOLS), st.sampled_from(PROTOCOLS))
def test_more_parts_never_come_to_less(
    data: st.DataObject, protocol: Protocol, upstream: Protocol
) -> None:
    parts = data.draw(parts_of(protocol))
    costs = []
    for count in range(len(parts) + 1):
        request = request_of(protocol, *parts[:count])
        costs.append(expected_input(request, upstream, bound(request)).input_tokens)
    assert costs == sorted(costs)


NAMES = ["type", "content", "source", "data", "image_url", "url", "file", "file_data", "parts"]
NAMES += ["inlineData", "mimeType", "input_audio", "functionResponse", "output", "detail"]
TYPES = ["image", "image_url", "document", "input_file", "low", "file"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES), inner | st.sampled_from(TYPES), max_size=4)
    ),
    max_leaves=20,
)


@given(st.sampled_from(["messages", "input", "contents", "system"]), json_values)
def test_nothing_in_a_body_makes_it_fail(name: str, value: object) -> None:
    for media in media_of({name: msgspec.Raw(json.dumps(value).encode())}):
        assert isinstance(media, Media)


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail(value: bytes) -> None:
    list(media_of({"messages": msgspec.Raw(value)}))


def test_deep_parts_are_left_alone() -> None:
    deep = "[" + '{"content":[' * 5000 + "]}" * 5000 + "]"
    assert list(media_of({"messages": msgspec.Raw(deep.encode())})) == []


HOSTILE = {
    "fill": b"\xff\xd8\xff" + b"\xff" * 100_000,
    "empty segments": b"\xff\xd8" + b"\xff\xe1\0\0" * 25_000,
    "pages": b"%PDF-" + b"/Type/Page" * 100_000,
    "a page that never comes": b"%PDF-" + b"/Type " * 150_000,
    "trees without end": b"%PDF-" + b"<</Type/Pages" * 80_000,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_body_that_wants_to_be_read_for_long_is_not(data: bytes) -> None:
    """As many as a body has room for. Generous, and only what this process takes: this machine may
    be busy."""
    make = pdf_part if data.startswith(b"%PDF") else image_part
    request = request_of("openai", *[make("openai", data)] * 40)
    started = time.process_time()
    expected_input(request, "openai", LARGE)
    assert time.process_time() - started < 5.0


# -- at the sandbox -------------------------------------------------------------------------------


def streamed(protocol: Protocol, upstream: Protocol, part: Json) -> tuple[list[bytes], Call]:
    """The bytes of an answer about a part, and the call that asked for it."""
    body = body_of(protocol, [text_part(protocol, "What is this?"), part])
    body |= {"model": "sandbox-long", "stream": True}
    codec = codec_of(protocol)
    request = codec.decode(json.dumps(body).encode(), Ask("sandbox-long"))
    target = Target(Provider("sandbox", upstream, "http://sandbox"), "sandbox-long", 4000, True)
    upstreams = upstream_codec(upstream)
    call: Call
    if protocol == upstream:
        call = upstreams.passing(request, target, ENVELOPES)
    else:
        prompt = codec.prompt(request, ENVELOPES)
        call = Translation(codec, upstreams, request, prompt, target, ENVELOPES)
    played = post(f"/v1{call.path}", whole(call.body))
    assert played.status == 200, played.body
    return played.parts, call


def read(call: Call, parts: list[bytes], request: Request, upstream: Protocol) -> Counted:
    relay = call.stream()
    for part in parts:
        relay.feed(part)
    return relay.counted(partial(expected_input, request, upstream, bound(request)))


@pytest.mark.parametrize("size", [(512, 512), (800, 600), (1024, 1024), (1920, 1080), (4032, 3024)])
@pytest.mark.parametrize("protocol", ["openai", "openai-responses", "anthropic"])
@pytest.mark.parametrize("upstream", ["openai", "openai-responses"])
def test_a_cut_answer_costs_nearly_the_input_of_the_complete_one(
    protocol: Protocol, upstream: Protocol, size: tuple[int, int]
) -> None:
    part = image_part(protocol, png(*size))
    request = request_of(protocol, text_part(protocol, "What is this?"), part)
    parts, call = streamed(protocol, upstream, part)
    whole = read(call, parts, request, upstream)
    cut = read(call, parts[: len(parts) // 2], request, upstream)
    assert not whole.estimated
    assert cut.estimated
    assert 0 < cut.usage.output_tokens < whole.usage.output_tokens
    told = whole.usage.input_tokens
    assert 0.6 * told <= cut.usage.input_tokens <= 1.4 * told


@pytest.mark.parametrize("upstream", ["openai", "openai-responses"])
def test_a_complete_answer_asks_for_no_estimate(upstream: Protocol) -> None:
    parts, call = streamed(upstream, upstream, image_part(upstream, png(1024, 1024)))
    relay = call.stream()
    for part in parts:
        relay.feed(part)

    def never() -> Usage:
        raise AssertionError("the provider has told")

    assert relay.counted(never) == relay.counted(nothing_expected)
    assert relay.counted(never).usage.output_tokens == relay.output_tokens


def test_the_sandbox_counts_pictures_by_tiles() -> None:
    def prompt_tokens(*parts: Json) -> object:
        body = body_of("openai", list(parts)) | {"model": "sandbox"}
        usage = post("/v1/chat/completions", json.dumps(body).encode()).json["usage"]
        assert isinstance(usage, dict)
        return usage["prompt_tokens"]

    plain = prompt_tokens(text_part("openai", "abcd"))
    assert plain == 5
    text = text_part("openai", "abcd")
    assert prompt_tokens(text, image_part("openai", png(1024, 1024))) == 5 + 765
    assert prompt_tokens(text, image_part("openai", png(2048, 4096))) == 5 + 1105
    assert prompt_tokens(text, image_part("openai", png(2048, 4096), low=True)) == 5 + 85
    assert prompt_tokens(text, linked_part("openai")) == 5 + 765
    picture = image_part("openai-responses", png(512, 512))
    body = body_of("openai-responses", [picture]) | {"model": "sandbox"}
    answer = post("/v1/responses", json.dumps(body).encode()).json
    assert isinstance(answer["usage"], dict)
    assert answer["usage"]["input_tokens"] == 4 + 255

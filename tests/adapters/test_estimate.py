"""Bounds: never fewer tokens than the bytes of the text, and media by what it may cost."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.codec import Ask, Request, Scan
from adapters.estimate import Bound, bound, counted_tokens
from adapters.openai.chat_downstream import ChatDownstream
from adapters.openai.embeddings import EmbeddingsDownstream

Json = dict[str, object]

DATA = "A" * 400_000  # what a picture of 300 kB is in base64


def request(content: object, **fields: object) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": content}], **fields}
    return ChatDownstream().decode(json.dumps(body).encode(), Ask())


def bounded(content: object, window: int = 0, **fields: object) -> Bound:
    return bound(request(content, **fields), window)


@pytest.mark.parametrize(("text_bytes", "tokens"), [(0, 0), (1, 1), (4, 1), (5, 2), (4000, 1000)])
def test_four_bytes_are_a_token(text_bytes: int, tokens: int) -> None:
    assert counted_tokens(text_bytes) == tokens


@given(st.lists(st.text(max_size=50), min_size=1, max_size=5), st.booleans())
def test_no_tokenizer_makes_more_tokens_than_the_bound(texts: list[str], ascii_only: bool) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    body = json.dumps({"model": "m", "messages": messages}, ensure_ascii=ascii_only)
    found = bound(ChatDownstream().decode(body.encode("utf-8", "replace"), Ask()))
    per_message = 8  # more than any template adds
    assert found.input_tokens >= sum(len(text.encode("utf-8", "replace")) for text in texts) + (
        per_message * len(texts)
    )
    assert not found.audio
    assert found.predicted_tokens == 0


def test_the_window_caps_the_bound() -> None:
    assert bounded("x" * 9000, 8000).input_tokens == 8000
    assert 9000 < bounded("x" * 9000, 80_000).input_tokens < 9200


def test_tools_may_be_rendered_at_length() -> None:
    tools: list[Json] = [{"type": "function", "function": {"name": "f"}}] * 3
    plain, armed = bounded("x"), bounded("x", tools=tools)
    assert armed.input_tokens - plain.input_tokens >= 3 * 64 + len(json.dumps(tools))
    assert armed.text_bytes > plain.text_bytes


@pytest.mark.parametrize(
    ("part", "at_least", "at_most", "audio"),
    [
        ({"type": "image_url", "image_url": {"url": DATA}}, 20_000, 20_300, False),
        ({"type": "image_url", "image_url": {"url": "https://x/y.png"}}, 20_000, 20_300, False),
        # 300 kB of the thinnest audio in use are ten minutes.
        ({"type": "input_audio", "input_audio": {"data": DATA}}, 19_200, 19_600, True),
        # What only the provider can see may fill the window.
        ({"type": "file", "file": {"file_data": DATA}}, 100_000, 100_000, False),
        ({"type": "video_url", "video_url": {"url": "https://x/y"}}, 100_000, 100_000, False),
        ({"no": "type"}, 100_000, 100_000, False),
        # A member that another type would have makes nothing cheaper.
        ({"type": "file", "image_url": {"url": "x"}, "file": {}}, 100_000, 100_000, False),
        (
            {"type": "input_audio", "image_url": "", "input_audio": {"data": DATA}},
            19_200,
            19_600,
            True,
        ),
    ],
)
def test_media_is_what_it_may_cost_and_not_its_bytes(
    part: Json, at_least: int, at_most: int, audio: bool
) -> None:
    found = bounded([{"type": "text", "text": "What is this?"}, part], 100_000)
    assert at_least <= found.input_tokens <= at_most
    assert found.audio is audio
    assert found.text_bytes < 300


def test_without_a_window_what_is_hidden_is_a_million_tokens() -> None:
    assert bounded([{"type": "file", "file": {"file_id": "f"}}]).input_tokens > 1_000_000


@pytest.mark.parametrize("content", [[5], ["x"], [{"type": ["text"]}], [[]]])
def test_what_cannot_be_read_is_bounded_all_the_same(content: object) -> None:
    assert bounded(content, 5000).input_tokens == 5000


def test_earlier_audio_counts_as_audio() -> None:
    body = {"model": "m", "messages": [{"role": "assistant", "audio": {"id": "a"}}]}
    assert bound(ChatDownstream().decode(json.dumps(body).encode(), Ask())).audio


@pytest.mark.parametrize("fields", [{"audio": {"voice": "v"}}, {"modalities": ["text", "audio"]}])
def test_audio_that_is_asked_for_counts_as_audio(fields: Json) -> None:
    assert bound(request("Sing", **fields)).audio


def test_a_prediction_is_billed_beyond_the_cap() -> None:
    prediction = {"type": "content", "content": "x" * 500}
    assert bounded("x", prediction=prediction).predicted_tokens >= 500


def test_pieces_are_what_the_request_buys() -> None:
    assert bounded("x", web_search_options={}).pieces == {"web_search": 1}


def test_embeddings_have_a_window_for_each_input() -> None:
    body = json.dumps({"model": "m", "input": ["x" * 9000, "y" * 9000]}).encode()
    found = bound(EmbeddingsDownstream().decode(body, Ask()), 8192)
    assert found.input_tokens >= 18_000


@pytest.mark.parametrize(
    "fields",
    [
        {"content": [{"type": "text", "text": "x", "prompt_cache_breakpoint": {"ttl": "12h"}}]},
        {"content": [{"type": "text", "text": "x", "cache_control": {"ttl": "1h"}}]},
        {"content": "x", "prompt_cache_options": {"ttl": "12h"}},
        {"content": "x", "prompt_cache_retention": "24h"},
        {"content": "x", "tools": [{"cache_control": {"ttl": "1h"}}]},
    ],
)
def test_what_is_kept_for_long_has_its_own_price(fields: Json) -> None:
    assert bound(request(**fields)).long_cache


def test_what_is_kept_for_minutes_is_not_kept_for_long() -> None:
    mark: Json = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "5m"}}
    assert not bounded([mark], prompt_cache_options={"ttl": "30m"}).long_cache


def test_each_pass_may_fill_the_window_anew() -> None:
    facts = msgspec.structs.replace(request("x"), scan=Scan(passes=3, pieces={"web_search": 10}))
    once = msgspec.structs.replace(facts, scan=Scan())
    assert bound(facts, 8000).input_tokens == bound(once, 8000).input_tokens + 2 * 8000
    assert bound(facts).input_tokens > 2_000_000
    assert bound(facts).pieces == {"web_search": 10}


def test_media_inside_a_tools_result_is_found() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": DATA}}
    found = bounded([{"type": "tool_result", "tool_use_id": "t", "content": [image]}], 100_000)
    assert 20_000 <= found.input_tokens <= 20_300


def test_a_file_that_is_all_there_costs_its_pages() -> None:
    page = {"type": "file", "file": {"file_data": "A" * 600}}
    assert 23_000 <= bounded([page], 100_000).input_tokens < 24_000
    named = {"type": "file", "file": {"file_data": "A" * 600, "file_id": "f"}}
    assert bounded([named], 100_000).input_tokens == 100_000


def test_a_responses_body_is_bounded_as_one() -> None:
    body = {"model": "m", "input": "x" * 500, "tools": [{"type": "function", "name": "f"}]}
    found = bound(ChatDownstream().decode(json.dumps(body).encode(), Ask()), 100_000)
    assert 564 <= found.input_tokens < 1000
    body["previous_response_id"] = "resp_1"
    found = bound(ChatDownstream().decode(json.dumps(body).encode(), Ask()), 100_000)
    assert found.input_tokens == 100_000


@pytest.mark.parametrize(
    "fields",
    [
        {"plugins": [{"id": "web"}]},
        {"search_parameters": {"mode": "on"}},
        {"extra_body": {"google": {"cached_content": "cachedContents/x"}}},
    ],
)
def test_what_a_compatible_provider_adds_is_bounded_by_the_window(fields: Json) -> None:
    assert bounded("hi", 100_000, **fields).input_tokens == 100_000


@pytest.mark.parametrize(
    ("address", "hidden"),
    [
        ("data:image/png;base64,AAAA", False),
        ("DATA:IMAGE/PNG;base64,AAAA", False),
        ("https://a.b/c.png", False),
        ("/9j/4AAQSkZJRg==", False),
        ("data:video/mp4;base64,AAAA", True),
        ("data:application/pdf;base64,AAAA", True),
        ("data:audio/wav;base64,AAAA", True),
        ("gs://films/1.mp4", True),
    ],
)
@pytest.mark.parametrize("as_object", [False, True])
def test_a_film_in_an_images_place_is_bounded_by_the_window(
    address: str, hidden: bool, as_object: bool
) -> None:
    """Compatible providers take films and documents there."""
    part = {"type": "image_url", "image_url": {"url": address} if as_object else address}
    found = bounded([part], 1_000_000)
    assert (found.input_tokens == 1_000_000) is hidden
    assert found.audio is hidden


def test_escapes_do_not_make_an_image_of_a_film() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:video/mp4;base64,AAAA"}}
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": [part]}]})
    for written in (body.replace("data:", "d\\u0061ta:"), body.replace('"url"', '"u\\u0072l"')):
        found = bound(ChatDownstream().decode(written.encode(), Ask()), 1_000_000)
        assert found.input_tokens == 1_000_000
    php = body.replace("video/mp4", "image\\/png")
    assert bound(ChatDownstream().decode(php.encode(), Ask()), 1_000_000).input_tokens < 30_000


def test_escapes_hide_nothing_that_a_compatible_provider_adds() -> None:
    body = json.dumps(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "extra_body": {"google": {"cached_content": "cachedContents/x"}},
        }
    )
    hidden = body.replace("cached_content", "cached\\u005fcontent").replace("Contents", "s")
    assert bound(ChatDownstream().decode(hidden.encode(), Ask()), 100_000).input_tokens == 100_000


def test_a_compatible_providers_own_tools_make_it_read_again() -> None:
    own = bounded("hi", 1000, tools=[{"type": "web_search"}, {"type": "function", "function": {}}])
    assert own.input_tokens > 10_000
    ours = bounded("hi", 1000, tools=[{"type": "custom", "custom": {}}, {"function": {}}, {}])
    assert ours.input_tokens < 1000


def test_another_protocol_gets_none_of_what_makes_a_model_read_again() -> None:
    facts = Request(
        fields={},
        body_bytes=100,
        model="m",
        pieces={"web_search": 1},
        scan=Scan(passes=11, pieces={"image": 10}, predicted_tokens=50),
    )
    found = bound(facts, 1000, native=False)
    assert (found.input_tokens, found.predicted_tokens) == (132, 0)
    assert found.pieces == {"web_search": 1}


def test_what_stands_before_a_part_that_is_none_counts() -> None:
    heard: Json = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    found = bounded([{"type": "text", "text": "hi"}, heard, 5], 1_000_000)
    assert found.audio
    assert found.input_tokens == 1_000_000
    assert not bounded([5, heard]).audio  # what is behind it was never read

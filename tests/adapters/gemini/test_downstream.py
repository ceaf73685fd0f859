"""What a Gemini client asks, as far as route, limits and price go by it."""

from __future__ import annotations

import json

import pytest

from adapters.codec import Ask, Request
from adapters.errors import InvalidRequest
from adapters.gemini.downstream import (
    CountDownstream,
    GenerateDownstream,
    StreamGenerateDownstream,
    model_in,
)

HI = [{"role": "user", "parts": [{"text": "hi"}]}]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJg"


def decode(body: object) -> Request:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return GenerateDownstream().decode(data, Ask(id="gemini-x"))


def test_the_facts() -> None:
    request = decode(
        {
            "contents": HI,
            "generationConfig": {"maxOutputTokens": 7, "candidateCount": 2},
            "serviceTier": "FLEX",
        }
    )
    assert (request.model, request.protocol) == ("gemini-x", "gemini")
    assert (request.output_cap, request.choices, request.service_tier) == (7, 2, "flex")
    assert not request.stream


def test_either_spelling_is_read() -> None:
    request = decode({"contents": HI, "generation_config": {"max_output_tokens": 7}})
    assert request.output_cap == 7
    assert list(request.fields) == ["contents", "generation_config"]


def test_an_empty_configuration_is_none() -> None:
    request = decode({"contents": HI, "generationConfig": {}, "systemInstruction": None})
    assert (request.output_cap, request.choices) == (None, 1)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "contents"),
        ({"contents": []}, "contents"),
        ({"contents": "hi"}, "contents"),
        ({"contents": HI, "generationConfig": 5}, "generationConfig"),
        ({"contents": HI, "generationConfig": {"maxOutputTokens": 0}}, None),
        ({"contents": HI, "generationConfig": {"maxOutputTokens": "x"}}, None),
        ({"contents": HI, "generationConfig": {"candidateCount": 9}}, None),
        ({"contents": HI, "generationConfig": {}, "generation_config": {}}, "generationConfig"),
        ({"contents": HI, "GenerationConfig": {}}, "GenerationConfig"),
        (
            b'{"contents":[{}],"generationConfig":{"maxOutputTokens":1,"maxOutputTokens":9}}',
            "generationConfig.maxOutputTokens",
        ),
        (
            b'{"contents":[{}],"generationConfig":{"maxOutputTokens":1,"max_output_tokens":9}}',
            "generationConfig.maxOutputTokens",
        ),
        (b'{"contents":[{}],"contents":[{}]}', "contents"),
        (b"[]", None),
    ],
)
def test_refusals_name_the_field(body: object, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(body)
    assert param is None or refused.value.param == param


@pytest.mark.parametrize(
    ("id_", "model"),
    [
        ("gemini-2.5-pro", "gemini-2.5-pro"),
        ("models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("publishers/google/models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("openai/gpt-4o", "openai/gpt-4o"),
        ("tunedModels/mine", "tunedModels/mine"),
    ],
)
def test_the_path_names_the_model(id_: str, model: str) -> None:
    assert model_in(id_) == model


@pytest.mark.parametrize(
    ("query", "array", "content_type"),
    [
        ("alt=sse", False, "text/event-stream; charset=utf-8"),
        ("key=K&alt=sse", False, "text/event-stream; charset=utf-8"),
        ("", True, "application/json; charset=utf-8"),
        ("alt=json", True, "application/json; charset=utf-8"),
    ],
)
def test_the_query_says_how_chunks_follow_one_another(
    query: str, array: bool, content_type: str
) -> None:
    codec = StreamGenerateDownstream()
    request = codec.decode(json.dumps({"contents": HI}).encode(), Ask(id="m", query=query))
    assert (request.stream, request.array) == (True, array)
    assert codec.stream_type(request) == content_type


def test_edge_87_no_keep_alive_is_ever_sent() -> None:
    """Google's SDKs know nothing that means nothing."""
    body = json.dumps({"contents": HI}).encode()
    for query in ("alt=sse", ""):
        request = StreamGenerateDownstream().decode(body, Ask(id="m", query=query))
        assert request.keep_alive == b""


# -- what it may cost -----------------------------------------------------------------------------


def user(*parts: object) -> list[object]:
    return [{"role": "user", "parts": list(parts)}]


def test_media_is_bounded_apart_from_text() -> None:
    image = {"inline_data": {"mime_type": "image/png", "data": PNG}}
    scan = decode({"contents": user({"text": "hi"}, image)}).scan
    assert scan.media_bytes == len(PNG) + 2
    assert scan.media_tokens == 20_000
    assert scan.text_bytes < 200
    assert not scan.hidden


def test_audio_has_a_price_of_its_own() -> None:
    audio = {"inlineData": {"mimeType": "audio/wav", "data": "A" * 4000}}
    scan = decode({"contents": user(audio)}).scan
    assert scan.audio
    assert 0 < scan.media_tokens < 1000


@pytest.mark.parametrize(
    ("modalities", "audio"),
    [
        ('["AUDIO"]', True),
        ('["TEXT","audio"]', True),
        ('["\\u0041UDIO"]', True),
        ("[3]", True),
        ('"AUDIO"', True),
        ('["TEXT","IMAGE"]', False),
    ],
)
def test_an_answer_that_is_spoken_is_found_however_that_is_written(
    modalities: str, audio: bool
) -> None:
    """Google takes the number of a modality for its name."""
    body = json.dumps({"contents": HI, "generationConfig": {"response_modalities": "MODALITIES"}})
    assert decode(body.replace('"MODALITIES"', modalities).encode()).scan.audio is audio


@pytest.mark.parametrize(
    "body",
    [
        {"contents": user({"fileData": {"fileUri": "https://x/files/1"}})},
        {"contents": user({"inlineData": {"mimeType": "video/mp4", "data": "AAAA"}})},
        {"contents": HI, "cachedContent": "cachedContents/1"},
        {"contents": HI, "cached_content": "cachedContents/1"},
        {"contents": [{"role": "user", "parts": [5, {"data": 1}]}]},
        b'{"contents":[{"parts":[{"fil\\u0065D\\u0061ta":{"fileUri":"https://x"}}]}]}',
        {
            "contents": user(
                {"functionResponse": {"name": "f", "parts": [{"fileData": {"fileUri": "gs://x"}}]}}
            )
        },
    ],
)
def test_what_only_google_sees_is_bounded_by_the_window(body: object) -> None:
    assert decode(body).scan.hidden


def test_media_in_results_is_found() -> None:
    image = {"inlineData": {"mimeType": "image/png", "data": PNG}}
    result = {"functionResponse": {"name": "f", "response": {}, "parts": [image]}}
    assert decode({"contents": user(result)}).scan.media_tokens == 20_000


def test_text_in_base64_is_bounded_by_its_bytes() -> None:
    text = {"inlineData": {"mimeType": "text/plain", "data": "A" * 4000}}
    scan = decode({"contents": user(text)}).scan
    assert scan.media_bytes == 0
    assert scan.text_bytes > 4000


def test_tools_of_google_read_everything_again() -> None:
    tools = [{"functionDeclarations": [{"name": "f"}, {"name": "g"}]}, {"google_search": {}}]
    scan = decode({"contents": HI, "tools": tools}).scan
    assert (scan.tools, scan.passes, scan.pieces) == (2, 10, {"web_search": 10})
    plain = decode({"contents": HI, "tools": tools[:1]}).scan
    assert (plain.passes, plain.pieces) == (1, {})


# -- countTokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"contents": HI},
        {"generateContentRequest": {"model": "models/x", "contents": HI}},
        {"generate_content_request": {"contents": HI, "tools": []}},
    ],
)
def test_a_conversation_or_a_whole_request_can_be_counted(body: object) -> None:
    codec = CountDownstream()
    request = codec.decode(json.dumps(body).encode(), Ask(id="m"))
    assert request.model == "m"
    assert request.scan.text_bytes > 0
    assert codec.counted(5) == b'{"totalTokens":5}'


def test_but_not_both() -> None:
    body = {"contents": HI, "generateContentRequest": {"contents": HI}}
    with pytest.raises(InvalidRequest):
        CountDownstream().decode(json.dumps(body).encode(), Ask(id="m"))

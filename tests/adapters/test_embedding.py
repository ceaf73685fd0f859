"""Embeddings between protocols: each client at each provider, in the form it asked for."""

from __future__ import annotations

import json
import struct
from base64 import b64decode, b64encode

import pytest

from adapters.canonical import Usage
from adapters.catalogue import Protocol, Provider
from adapters.codec import Ask, Call, FailureKind, Request, Target
from adapters.embedders import embedding_call
from adapters.embedding import EmbeddingDownstream
from adapters.errors import InvalidRequest, RequestNotExpressible
from adapters.gemini.embeddings import BATCH_MAX, GeminiBatchEmbed, GeminiEmbed
from adapters.openai.embeddings import EmbeddingsDownstream
from adapters.stream import nothing_expected
from tests.fakes.bodies import whole

Json = dict[str, object]

OPENAI, EMBED, BATCH = EmbeddingsDownstream(), GeminiEmbed(), GeminiBatchEmbed()
TWO = b'{"embeddings":[{"values":[0.5,-1e-3]},{"values":[2.0,3.25]}]}'


def request_of(codec: EmbeddingDownstream, body: Json) -> Request:
    return codec.decode(json.dumps(body).encode(), Ask(id="models/m"))


def call(codec: EmbeddingDownstream, protocol: Protocol, body: Json) -> Call:
    target = Target(Provider("p", protocol, "http://x"), "theirs", None, stream=False)
    return embedding_call(codec, request_of(codec, body), target)


def text(value: str) -> Json:
    return {"content": {"parts": [{"text": value}]}}


# -- an OpenAI client -----------------------------------------------------------------------------


def test_an_openai_client_asks_gemini_in_a_batch() -> None:
    made = call(OPENAI, "gemini", {"model": "m", "input": ["a", "b"], "dimensions": 2, "x": 1})
    assert made.path == "/v1beta/models/theirs:batchEmbedContents"
    assert made.dropped == ("x",)
    common = {"model": "models/theirs", "outputDimensionality": 2}
    assert json.loads(whole(made.body)) == {"requests": [common | text("a"), common | text("b")]}


def test_floats_come_back_as_they_were_written() -> None:
    relay = call(OPENAI, "gemini", {"model": "m", "input": ["a", "bcdef"]}).plain(TWO)
    assert relay.failure is None
    assert b"[0.5,-1e-3]" in relay.body
    assert json.loads(relay.body) == {
        "object": "list",
        "model": "m",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -1e-3]},
            {"object": "embedding", "index": 1, "embedding": [2.0, 3.25]},
        ],
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }
    assert relay.counted(nothing_expected).estimated


def test_base64_is_what_the_python_sdk_asks_for() -> None:
    body: Json = {"model": "m", "input": "a", "encoding_format": "base64"}
    answer = b'{"embeddings":[{"values":[0.5,2]}],"usageMetadata":{"promptTokenCount":9}}'
    relay = call(OPENAI, "gemini", body).plain(answer)
    (entry,) = json.loads(relay.body)["data"]
    assert struct.unpack("<2f", b64decode(entry["embedding"])) == (0.5, 2.0)
    assert relay.counted(nothing_expected).usage == Usage(input_tokens=9)
    assert not relay.counted(nothing_expected).estimated


@pytest.mark.parametrize("given", [[1, 2], [[1], [2]]])
def test_tokens_are_of_a_tokenizer_that_only_openai_has(given: list[object]) -> None:
    with pytest.raises(RequestNotExpressible) as refused:
        call(OPENAI, "gemini", {"model": "m", "input": given})
    assert refused.value.param == "input"


def test_a_batch_has_its_limit() -> None:
    call(OPENAI, "gemini", {"model": "m", "input": ["a"] * BATCH_MAX})
    with pytest.raises(RequestNotExpressible, match="at most 100"):
        call(OPENAI, "gemini", {"model": "m", "input": ["a"] * (BATCH_MAX + 1)})


def test_the_form_has_to_be_one_that_is_known() -> None:
    with pytest.raises(InvalidRequest) as refused:
        call(OPENAI, "gemini", {"model": "m", "input": "a", "encoding_format": "hex"})
    assert refused.value.param == "encoding_format"


# -- a Gemini client ------------------------------------------------------------------------------


def test_a_batch_asks_openai_for_a_list() -> None:
    made = call(BATCH, "openai", {"requests": [text("a"), text("b")]})
    assert made.path == "/embeddings"
    assert json.loads(whole(made.body)) == {
        "model": "theirs",
        "input": ["a", "b"],
        "encoding_format": "float",
    }


def test_a_batch_gets_its_vectors_in_order_whatever_their_form() -> None:
    packed = b64encode(struct.pack("<2f", 1.5, -2)).decode()
    answer = {
        "data": [{"index": 1, "embedding": packed}, {"index": 0, "embedding": [0.25]}],
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    made = call(BATCH, "openai", {"requests": [text("a"), text("b")]})
    relay = made.plain(json.dumps(answer).encode())
    assert json.loads(relay.body) == {
        "embeddings": [{"values": [0.25]}, {"values": [1.5, -2.0]}],
        "usageMetadata": {"promptTokenCount": 3, "totalTokenCount": 3},
    }
    assert relay.counted(nothing_expected).usage == Usage(input_tokens=3)


def test_one_content_gets_one_vector_and_both_spellings_are_read() -> None:
    asked = {**text("a"), "output_dimensionality": 1, "task_type": "RETRIEVAL_QUERY", "title": "t"}
    made = call(EMBED, "openai", {**asked, "autoTruncate": True})
    assert made.dropped == ("autoTruncate", "taskType", "title")
    assert json.loads(whole(made.body))["dimensions"] == 1
    relay = made.plain(b'{"data":[{"index":0,"embedding":[1]}]}')
    assert json.loads(relay.body)["embedding"] == {"values": [1]}


def test_parts_of_one_content_are_one_text() -> None:
    parts: Json = {"content": {"parts": [{"text": "a"}, {"text": "b"}]}}
    assert json.loads(whole(call(EMBED, "openai", parts).body))["input"] == ["a\nb"]


@pytest.mark.parametrize(
    ("codec", "body", "param"),
    [
        (EMBED, {}, "content"),
        (EMBED, {"content": 5}, "content"),
        (EMBED, {"content": {"parts": [{"inlineData": {}}]}}, "content.parts[0]"),
        (BATCH, {}, "requests"),
        (BATCH, {"requests": []}, "requests"),
        (BATCH, {"requests": [{}]}, "requests[0].content"),
        (
            BATCH,
            {"requests": [text("a"), {**text("b"), "outputDimensionality": 5}]},
            "requests[0].outputDimensionality",
        ),
    ],
)
def test_refusals_name_the_member(codec: EmbeddingDownstream, body: Json, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        call(codec, "openai", body)
    assert refused.value.param == param


# -- the same protocol, none, and answers that are none -------------------------------------------


def test_gemini_to_gemini_passes_under_the_providers_name() -> None:
    made = call(BATCH, "gemini", {"requests": [{"model": "models/m", **text("a"), "x": 1.50}]})
    assert made.path == "/v1beta/models/theirs:batchEmbedContents"
    sent = json.loads(whole(made.body))["requests"]
    assert sent == [{"model": "models/theirs", **text("a"), "x": 1.5}]
    assert made.plain(TWO).body == TWO
    single = call(EMBED, "gemini", text("a"))
    assert single.path == "/v1beta/models/theirs:embedContent"
    assert json.loads(whole(single.body)) == {**text("a"), "model": "models/theirs"}


def test_openai_to_openai_passes() -> None:
    made = call(OPENAI, "openai", {"model": "m", "input": [1, 2], "x": 1})
    assert json.loads(whole(made.body)) == {"model": "theirs", "input": [1, 2], "x": 1}


@pytest.mark.parametrize("protocol", ["anthropic", "openai-responses"])
def test_some_protocols_cannot_embed(protocol: Protocol) -> None:
    with pytest.raises(RequestNotExpressible, match="without embeddings"):
        call(OPENAI, protocol, {"model": "m", "input": "a"})


@pytest.mark.parametrize("packed", ["float", "base64"])
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", "protocol"),
        (b"[]", "protocol"),
        (b'{"embeddings":[]}', "empty"),
        (TWO, "protocol"),
        (b'{"error":{"code":429,"message":"slow","status":"UNAVAILABLE"}}', "overloaded"),
    ],
)
def test_answers_that_are_none(answer: bytes, kind: FailureKind, packed: str) -> None:
    body: Json = {"model": "m", "input": "a", "encoding_format": packed}
    relay = call(OPENAI, "gemini", body).plain(answer)
    assert relay.failure is not None
    assert relay.failure.kind == kind
    assert relay.body == b""


def test_a_vector_of_something_else_is_none() -> None:
    body: Json = {"model": "m", "input": "a", "encoding_format": "base64"}
    relay = call(OPENAI, "gemini", body).plain(b'{"embeddings":[{"values":["x"]}]}')
    assert relay.failure is not None
    assert relay.failure.kind == "protocol"

"""Embeddings: inputs of every kind pass as they are, refusals name the field."""

from __future__ import annotations

import json

import pytest

from adapters.canonical import Usage
from adapters.catalogue import Provider
from adapters.codec import Ask, FailureKind, PlainRelay, Request, Target
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest
from adapters.openai.embeddings import EmbeddingsDownstream, EmbeddingsUpstream
from tests.fakes.expected import text_of

PROVIDER = Provider("p", "openai", "http://127.0.0.1")
ENVELOPES = Envelopes(b"s" * 32, "account")


def decode(**fields: object) -> Request:
    return EmbeddingsDownstream().decode(json.dumps({"model": "m", **fields}).encode(), Ask())


def plain(body: bytes) -> PlainRelay:
    target = Target(PROVIDER, "theirs", None, stream=False)
    return EmbeddingsUpstream().passing_embedding(decode(input="x"), target).plain(body)


@pytest.mark.parametrize("given", ["x", ["x", ""], [1, 2], [[1], [2, 3]]])
def test_inputs_of_each_kind(given: object) -> None:
    request = decode(input=given, user="u", dimensions=8)
    assert (request.kind, request.stream, request.user_id) == ("embedding", False, "u")
    target = Target(PROVIDER, "theirs", None, stream=False)
    sent = EmbeddingsUpstream().passing_embedding(request, target).body
    assert json.loads(sent) == {"model": "theirs", "input": given, "user": "u", "dimensions": 8}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "x", "model": None}, "model"),
        ({"input": "x", "model": 1}, "model"),
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": {}}, "input"),
        ({"input": ["x", 1]}, "input"),
        ({"input": [1, [2]]}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": [None]}, "input"),
        ({"input": "x", "user": 5}, "user"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(**fields)
    assert refused.value.param == param


def test_the_answer_is_renamed_and_its_usage_read() -> None:
    body = (
        b'{"object":"list","data":[{"embedding":[0.10,1e-3],"index":0}],"model":"theirs",'
        b'"usage":{"prompt_tokens":7,"total_tokens":7}}'
    )
    relay = plain(body)
    assert relay.failure is None
    assert relay.body == body.replace(b"theirs", b"m")
    counted = relay.counted(text_of(999))
    assert not counted.estimated
    assert counted.usage == Usage(input_tokens=7)


def test_without_usage_the_input_is_counted() -> None:
    relay = plain(b'{"data":[{}]}')
    counted = relay.counted(text_of(10))
    assert counted.estimated
    assert counted.usage == Usage(input_tokens=3)


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (b"", "protocol"),
        (b"[]", "protocol"),
        (b'{"data":"x"}', "protocol"),
        (b"{}", "empty"),
        (b'{"data":[]}', "empty"),
        (b'{"error":{"message":"boom","code":"rate_limit_exceeded"}}', "rate_limited"),
    ],
)
def test_answers_that_are_none(body: bytes, failure: FailureKind) -> None:
    relay = plain(body)
    assert relay.failure is not None
    assert relay.failure.kind == failure
    assert relay.body == b""

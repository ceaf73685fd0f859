"""The sandbox's embeddings, as OpenAI is asked for them."""

from __future__ import annotations

import base64
import json
import math
import struct

import msgspec
import pytest

from tests.fakes.sandbox import Json, objects, post


def embed(**fields: object) -> Json:
    body = json.dumps({"model": "sandbox-embedding", **fields}).encode()
    played = post("/v1/embeddings", body)
    assert played.status == 200, played.body
    return played.json


def vectors(answer: Json) -> list[list[float]]:
    return [msgspec.convert(entry["embedding"], list[float]) for entry in objects(answer["data"])]


def test_embeddings_are_unit_vectors_that_depend_on_the_input() -> None:
    one, two, again = vectors(embed(input=["one", "two", "one"]))
    assert len(one) == 256
    assert math.isclose(math.hypot(*one), 1)
    assert one == again != two
    assert vectors(embed(input="one")) == [one]
    assert len(vectors(embed(input="one", dimensions=8))[0]) == 8


def test_base64_holds_the_same_vectors() -> None:
    (numbers,) = vectors(embed(input="one", dimensions=8))
    (entry,) = objects(embed(input="one", dimensions=8, encoding_format="base64")["data"])
    packed = base64.b64decode(str(entry["embedding"]))
    assert struct.unpack("<8f", packed) == pytest.approx(numbers, abs=1e-6)


@pytest.mark.parametrize(
    ("given_input", "count", "tokens"),
    [("one", 1, 1), (["one", "three"], 2, 3), ([1, 2, 3], 1, 3), ([[1, 2], [3]], 2, 3)],
)
def test_inputs(given_input: object, count: int, tokens: int) -> None:
    answer = embed(input=given_input)
    assert len(vectors(answer)) == count
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


@pytest.mark.parametrize(
    "fields",
    [
        {"input": None},
        {"input": ""},
        {"input": []},
        {"input": [""]},
        {"input": [[]]},
        {"input": [1.5]},
        {"input": [-1]},
        {"input": ["x"] * 2049},
        {"input": "x", "dimensions": 0},
        {"input": "x", "encoding_format": "hex"},
        {"input": "x", "stream": True},
    ],
)
def test_embeddings_refuse(fields: Json) -> None:
    body = json.dumps({"model": "sandbox-embedding", **fields}).encode()
    assert post("/v1/embeddings", body).status == 400

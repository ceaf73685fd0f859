"""Embeddings as OpenAI is asked for them, and the vectors that Gemini gives, too."""

from __future__ import annotations

import hashlib
import math
import struct
from base64 import b64encode
from collections.abc import Iterable, Sequence

import msgspec

from adapters.sandbox.asked import text_tokens
from adapters.sandbox.models import Circumstances
from adapters.sandbox.openai_words import (
    WORDING,
    check_model,
    found_model,
    read_object,
    refused,
    trouble,
)
from adapters.sandbox.script import Action, Refused, json_answer
from adapters.sandbox.shapes import Shapes, a_string, an_integer, an_object

DIMENSIONS = 256
DIMENSIONS_MAX = 2048

_INPUTS_MAX = 2048


def embed(body: bytes, circumstances: Circumstances) -> Iterable[Action]:
    """Serve `POST /v1/embeddings`. Raises Refused."""
    given = read_object(body)
    check_model(given)
    fields = an_object(_REQUEST((), given))
    inputs, tokens = _inputs_of(fields.get("input"))
    name = a_string(fields["model"])
    model = found_model(name).under(circumstances)
    if model.refuses is not None:
        raise trouble(model, name)
    if model.kind != "embedding":
        raise refused(403, "You are not allowed to generate embeddings from this model")
    dimensions = an_integer(fields.get("dimensions")) or DIMENSIONS
    packed = fields.get("encoding_format") == "base64"
    vectors = [unit_vector(text, dimensions) for text in inputs]
    return json_answer(
        {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": _packed(vector) if packed else vector,
                }
                for index, vector in enumerate(vectors)
            ],
            "model": name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def unit_vector(text: bytes, dimensions: int) -> list[float]:
    """A direction drawn from the hash of `text`; equal texts, and only they, have equal ones."""
    drawn = hashlib.shake_256(text).digest(4 * dimensions)
    direction = struct.unpack(f"<{dimensions}i", drawn)
    length = math.sqrt(sum(part * part for part in direction))
    return [part / length for part in direction]


def _packed(vector: Sequence[float]) -> str:
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _inputs_of(given: object) -> tuple[Sequence[bytes], int]:
    """What to embed, and how many tokens that is: a list of numbers is one text in tokens."""
    if given is None:
        raise WORDING.missing(("input",))
    several = given if isinstance(given, list) and not _is_tokens(given) else [given]
    if not several or len(several) > _INPUTS_MAX:
        raise _bad_input()
    tokens = sum(_input_tokens(each) for each in several)
    return [msgspec.json.encode(each) for each in several], tokens


def _input_tokens(given: object) -> int:
    if isinstance(given, str) and given:
        return text_tokens([given])
    if isinstance(given, list) and _is_tokens(given):
        return len(given)
    raise _bad_input()


def _is_tokens(given: Sequence[object]) -> bool:
    return bool(given) and all(type(token) is int and token >= 0 for token in given)


def _bad_input() -> Refused:
    return refused(400, "'$.input' is invalid.", param="input")


_are = Shapes(WORDING)
_REQUEST = _are.members(
    {
        "dimensions": _are.integer(1, DIMENSIONS_MAX),
        "encoding_format": _are.one_of("float", "base64"),
        "input": _are.anything,
        "model": _are.string,
        "user": _are.string,
    }
)

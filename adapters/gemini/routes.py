"""Which path is which operation on the Gemini surface. Numbers are kept in the books: append.

What is done stands behind the last colon of a path, `…/models/{model}:generateContent`, and a
model's id may hold slashes and colons itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import unquote

from adapters.codec import Operation
from adapters.errors import MethodNotAllowed
from adapters.gemini.downstream import (
    CountDownstream,
    GenerateDownstream,
    StreamGenerateDownstream,
)
from adapters.gemini.embeddings import GeminiBatchEmbed, GeminiEmbed
from adapters.gemini.models import ModelList
from adapters.gemini.refusal import GeminiRefusals

REFUSALS = GeminiRefusals()
_GENERATE = GenerateDownstream()
_STREAM = StreamGenerateDownstream()
_COUNT = CountDownstream()
_EMBED = GeminiEmbed()
_BATCH_EMBED = GeminiBatchEmbed()
_LIST = ModelList()

GENERATE = Operation("gemini", "generateContent", 30, _GENERATE, _GENERATE)
STREAM = Operation("gemini", "streamGenerateContent", 31, _STREAM, _STREAM)
COUNT = Operation("gemini", "countTokens", 32, _COUNT, _COUNT, "count")
EMBED = Operation("gemini", "embedContent", 33, _EMBED, _EMBED, "embed")
BATCH_EMBED = Operation("gemini", "batchEmbedContents", 34, _BATCH_EMBED, _BATCH_EMBED, "embed")
MODELS = Operation("gemini", "models", 35, REFUSALS, action="models", listing=_LIST)
MODEL = Operation("gemini", "model", 36, REFUSALS, action="models", listing=_LIST)

# What is done to a model, by its verb.
VERBS: Mapping[str, Operation] = MappingProxyType(
    {
        "generateContent": GENERATE,
        "streamGenerateContent": STREAM,
        "countTokens": COUNT,
        "embedContent": EMBED,
        "batchEmbedContents": BATCH_EMBED,
    }
)
OPERATIONS = (*VERBS.values(), MODELS, MODEL)

_PATH = re.compile(r"/v1(?:beta|alpha)?/models(?:/(.+))?")


def find(method: str, path: str) -> tuple[Operation, str] | None:
    """The operation at `path`, still percent-encoded, and the model it names; None for none.

    Raises MethodNotAllowed where another method is served.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    rest = unquote(match[1] or "")
    model, colon, verb = rest.rpartition(":")
    operation = VERBS.get(verb) if colon else None
    if operation is not None:
        return (operation, model) if _served(method, "POST", path) and model else None
    if colon and method == "POST":
        return None  # a verb that is not offered here
    return (MODEL if rest else MODELS, rest) if _served(method, "GET", path) else None


def _served(method: str, only: str, path: str) -> bool:
    if method != only:
        raise MethodNotAllowed(
            f"{path} is served for {only}, not {method}.", headers=[("allow", only)]
        )
    return True

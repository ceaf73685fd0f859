"""Which path is which operation on the Anthropic surface. Numbers are kept in the books: append.

The AI SDK leaves `/v1` out where its base URL has none, hence the shorter paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from adapters.anthropic.downstream import MessagesCount, MessagesDownstream
from adapters.anthropic.models import ModelList
from adapters.anthropic.refusal import AnthropicRefusals
from adapters.codec import Operation

REFUSALS = AnthropicRefusals()
_MESSAGES = MessagesDownstream()
_COUNT = MessagesCount()
_LISTING = ModelList()

MESSAGES = Operation("anthropic", "messages", 20, _MESSAGES, _MESSAGES)
COUNT = Operation("anthropic", "messages.count_tokens", 21, _COUNT, _COUNT, "count")
MODELS = Operation("anthropic", "models", 22, REFUSALS, None, "models", _LISTING)
MODEL = Operation("anthropic", "model", 23, REFUSALS, None, "models", _LISTING)
OPERATIONS = (MESSAGES, COUNT, MODELS, MODEL)

ROUTES: Mapping[tuple[str, str], Operation] = MappingProxyType(
    {
        ("POST", "/v1/messages"): MESSAGES,
        ("POST", "/v1/messages/count_tokens"): COUNT,
        ("POST", "/messages"): MESSAGES,
        ("POST", "/messages/count_tokens"): COUNT,
    }
)

# `{id}` is everything up to the end, slashes included. Other dialects share these paths.
MODEL_ROUTES: Mapping[tuple[str, str], Operation] = MappingProxyType(
    {
        ("GET", "/v1/models"): MODELS,
        ("GET", "/v1/models/{id}"): MODEL,
    }
)

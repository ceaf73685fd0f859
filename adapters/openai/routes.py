"""Which path is which operation on the OpenAI surface. Numbers are kept in the books: append."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from adapters.codec import Operation
from adapters.openai.chat_downstream import ChatDownstream
from adapters.openai.embeddings import EmbeddingsDownstream
from adapters.openai.models import ModelList
from adapters.openai.refusal import OpenAIRefusals
from adapters.openai.responses_downstream import ResponsesCount, ResponsesDownstream

REFUSALS = OpenAIRefusals()
_CHAT = ChatDownstream()
_EMBEDDINGS = EmbeddingsDownstream()
_RESPONSES = ResponsesDownstream()
_RESPONSES_COUNT = ResponsesCount()
_LIST = ModelList()

CHAT = Operation("openai", "chat.completions", 1, _CHAT, _CHAT)
EMBEDDINGS = Operation("openai", "embeddings", 2, _EMBEDDINGS, _EMBEDDINGS, "embed")
MODELS = Operation("openai", "models", 3, REFUSALS, action="models", listing=_LIST)
MODEL = Operation("openai", "model", 4, REFUSALS, action="models", listing=_LIST)
RESPONSES = Operation("openai", "responses", 5, _RESPONSES, _RESPONSES)
RESPONSES_COUNT = Operation(
    "openai", "responses.input_tokens", 6, _RESPONSES_COUNT, _RESPONSES_COUNT, "count"
)
RESPONSE = Operation("openai", "response", 7, REFUSALS, action="stored")
RESPONSE_DELETE = Operation("openai", "response.delete", 8, REFUSALS, action="stored")
RESPONSE_CANCEL = Operation("openai", "response.cancel", 9, REFUSALS, action="stored")
RESPONSE_ITEMS = Operation("openai", "response.input_items", 10, REFUSALS, action="stored")
USAGE = Operation("openai", "usage", 11, REFUSALS, action="usage")
USAGE_RECEIPT = Operation("openai", "usage.receipt", 12, REFUSALS, action="usage")

# (method, path) → operation; `{id}` is everything up to what follows it, slashes included.
ROUTES: Mapping[tuple[str, str], Operation] = MappingProxyType(
    {
        ("POST", "/v1/chat/completions"): CHAT,
        ("POST", "/v1/embeddings"): EMBEDDINGS,
        ("GET", "/v1/models"): MODELS,
        ("GET", "/v1/models/{id}"): MODEL,
        ("POST", "/v1/responses"): RESPONSES,
        ("POST", "/v1/responses/input_tokens"): RESPONSES_COUNT,
        ("GET", "/v1/responses/{id}"): RESPONSE,
        ("DELETE", "/v1/responses/{id}"): RESPONSE_DELETE,
        ("POST", "/v1/responses/{id}/cancel"): RESPONSE_CANCEL,
        ("GET", "/v1/responses/{id}/input_items"): RESPONSE_ITEMS,
        ("GET", "/v1/usage"): USAGE,
        ("GET", "/v1/usage/{id}"): USAGE_RECEIPT,
    }
)
OPERATIONS = tuple(ROUTES.values())

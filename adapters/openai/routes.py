"""Which path is which operation on the OpenAI surface. Numbers are kept in the books: append."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from adapters.codec import Operation
from adapters.openai.chat_downstream import ChatDownstream
from adapters.openai.embeddings import EmbeddingsDownstream
from adapters.openai.refusal import OpenAIRefusals

REFUSALS = OpenAIRefusals()
_CHAT = ChatDownstream()
_EMBEDDINGS = EmbeddingsDownstream()

CHAT = Operation("openai", "chat.completions", 1, _CHAT, _CHAT)
EMBEDDINGS = Operation("openai", "embeddings", 2, _EMBEDDINGS, _EMBEDDINGS)
MODELS = Operation("openai", "models", 3, REFUSALS)
MODEL = Operation("openai", "model", 4, REFUSALS)

# (method, path) → operation; `{id}` is everything up to the end, slashes included.
ROUTES: Mapping[tuple[str, str], Operation] = MappingProxyType(
    {
        ("POST", "/v1/chat/completions"): CHAT,
        ("POST", "/v1/embeddings"): EMBEDDINGS,
        ("GET", "/v1/models"): MODELS,
        ("GET", "/v1/models/{id}"): MODEL,
    }
)

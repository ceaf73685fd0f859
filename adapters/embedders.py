"""Which provider's protocol can embed, and a request as a candidate gets it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from adapters.catalogue import Protocol
from adapters.codec import Call, Request, Target
from adapters.embedding import EmbeddingDownstream, EmbeddingTranslation, EmbeddingUpstream
from adapters.errors import RequestNotExpressible
from adapters.gemini.embeddings import GeminiEmbeddings
from adapters.openai.embeddings import EmbeddingsUpstream

_UPSTREAMS: Mapping[Protocol, EmbeddingUpstream] = MappingProxyType(
    {"openai": EmbeddingsUpstream(), "gemini": GeminiEmbeddings()}
)


def embeds(protocol: Protocol) -> bool:
    """Whether the protocol has embeddings."""
    return protocol in _UPSTREAMS


def embedding_call(codec: EmbeddingDownstream, request: Request, target: Target) -> Call:
    """The call of one candidate, passed on or translated.

    Raises RequestNotExpressible where the provider's protocol cannot embed, or has no place for
    something that was asked, and InvalidRequest where the body is malformed.
    """
    provider = target.provider
    upstream = _UPSTREAMS.get(provider.protocol)
    if upstream is None:
        raise RequestNotExpressible(
            f"The provider {provider.name} speaks a protocol without embeddings.", param="model"
        )
    if provider.protocol == request.protocol:
        return upstream.passing_embedding(request, target)
    return EmbeddingTranslation(codec, upstream, request, target)

"""Embeddings between protocols: what is asked in the middle, and the call of one candidate.

Vectors stay the JSON they came as, unless the client wants them packed. Which codec speaks which
protocol is a table in `embedders`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from adapters.canonical import Prompt, Usage
from adapters.codec import (
    Call,
    Counted,
    DownstreamCodec,
    Expected,
    Made,
    PlainRelay,
    Request,
    StreamRelay,
    Target,
    UpstreamFailure,
    Writer,
)
from adapters.envelope import Envelopes
from adapters.estimate import counted_tokens


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be embedded: one vector for each of `texts`.

    `task` and `title` are what the vectors are for and what document the text is from, in Gemini's
    words. `dropped` are members that no other protocol has a place for.
    """

    texts: tuple[str, ...]
    dimensions: int | None = None
    task: str = ""
    title: str = ""
    end_user: str = ""
    dropped: tuple[str, ...] = ()


class Vectors(msgspec.Struct, frozen=True):
    """The vectors in the order of the texts, each a JSON list of numbers; `usage` as reported."""

    vectors: tuple[msgspec.Raw, ...]
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class EncodedEmbedding:
    """What a provider gets, what it lost on the way, and how to read the answer."""

    path: str
    body: bytes
    read: Callable[[bytes], Vectors | UpstreamFailure]
    dropped: tuple[str, ...] = ()


class EmbeddingDownstream(DownstreamCodec, Protocol):
    """A client's side of embeddings."""

    def embedding(self, request: Request) -> Embedding:
        """All of what is asked. Raises InvalidRequest, RequestNotExpressible."""
        ...

    def embedded(self, request: Request, vectors: Vectors, usage: Usage) -> bytes:
        """The body of the answer; `usage` is our own count where the provider gave none."""
        ...


class EmbeddingUpstream(Protocol):
    """A provider's side of embeddings."""

    def passing_embedding(self, request: Request, target: Target) -> Call:
        """A request of this very protocol, as it came."""
        ...

    def encode_embedding(self, embedding: Embedding, target: Target) -> EncodedEmbedding:
        """Raises RequestNotExpressible."""
        ...

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        """As of an UpstreamCodec."""
        ...


class NoPrompt:
    """What a downstream codec has for answers that are written, and embeddings are not."""

    def stream_type(self, request: Request) -> str:
        raise AssertionError("embeddings are never streamed")

    def prompt(self, request: Request, envelopes: Envelopes) -> Prompt:
        raise AssertionError("embeddings are no prompt")

    def writer(self, request: Request, prompt: Prompt, envelopes: Envelopes, made: Made) -> Writer:
        raise AssertionError("embeddings are no prompt")


@dataclass(frozen=True, slots=True)
class PassingEmbedding:
    """A request as it came, at a provider of its own protocol. Implements `codec.Call`.

    `relay` reads an answer, `failure` what is none.
    """

    path: str
    body: bytes
    relay: Callable[[bytes], PlainRelay]
    failure: Callable[[int, Mapping[bytes, bytes], bytes], UpstreamFailure]
    headers: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        return self.failure(status, headers, body)

    def stream(self, *, limited: bool = False) -> StreamRelay:
        raise AssertionError("embeddings are never streamed")

    def plain(self, body: bytes) -> PlainRelay:
        return self.relay(body)


def counted(usage: Usage | None, expected: Expected) -> Counted:
    """What to settle with: the provider's usage, else our own count."""
    if usage is not None:
        return Counted(usage, estimated=False)
    return Counted(expected(), estimated=True)


class EmbeddingTranslation:
    """A request at a provider of another protocol. Implements `codec.Call`."""

    __slots__ = (
        "_codec",
        "_embedding",
        "_read",
        "_request",
        "_upstream",
        "body",
        "dropped",
        "path",
    )

    headers: tuple[tuple[str, str], ...] = ()

    def __init__(
        self,
        codec: EmbeddingDownstream,
        upstream: EmbeddingUpstream,
        request: Request,
        target: Target,
    ) -> None:
        """Raises InvalidRequest, RequestNotExpressible."""
        self._embedding = codec.embedding(request)
        encoded = upstream.encode_embedding(self._embedding, target)
        self.path = encoded.path
        self.body = encoded.body
        self.dropped = tuple(dict.fromkeys((*self._embedding.dropped, *encoded.dropped)))
        self._read = encoded.read
        self._codec = codec
        self._upstream = upstream
        self._request = request

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        return self._upstream.read_error(status, headers, body)

    def stream(self, *, limited: bool = False) -> StreamRelay:
        raise AssertionError("embeddings are never streamed")

    def plain(self, body: bytes) -> EmbeddingRelay:
        return EmbeddingRelay(self._codec, self._request, self._embedding, self._read(body))


class EmbeddingRelay:
    """One answer on its way to another protocol. Implements `codec.PlainRelay`."""

    __slots__ = ("_estimated", "_usage", "body", "failure")

    def __init__(
        self,
        codec: EmbeddingDownstream,
        request: Request,
        embedding: Embedding,
        read: Vectors | UpstreamFailure,
    ) -> None:
        self.body = b""
        self.failure: UpstreamFailure | None = None
        text_bytes = sum(len(text.encode(errors="replace")) for text in embedding.texts)
        self._usage = Usage(input_tokens=counted_tokens(text_bytes))
        self._estimated = True
        if isinstance(read, UpstreamFailure):
            self.failure = read
        elif len(read.vectors) != len(embedding.texts):
            self.failure = UpstreamFailure(
                "protocol", "The answer has another number of vectors than there were texts."
            )
        else:
            if read.usage is not None:
                self._usage, self._estimated = read.usage, False
            self.body = self._written(codec, request, read)

    def _written(self, codec: EmbeddingDownstream, request: Request, read: Vectors) -> bytes:
        try:
            return codec.embedded(request, read, self._usage)
        except (msgspec.MsgspecError, OverflowError):
            self.failure = UpstreamFailure("protocol", "A vector is no list of numbers.")
            return b""

    def counted(self, expected: Expected) -> Counted:
        return Counted(self._usage, self._estimated)

"""Gemini's embeddings, on both sides: one content, or up to a hundred in a batch.

Google's SDKs ask for a batch even where there is one text; raw clients use either. To Google goes
what the client asked where it is a Gemini client, and always a batch where it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from adapters.canonical import Usage
from adapters.codec import (
    EMPTY_ANSWER,
    Ask,
    Counted,
    Expected,
    Request,
    Scan,
    Target,
    UpstreamFailure,
)
from adapters.embedding import (
    Embedding,
    EncodedEmbedding,
    NoPrompt,
    PassingEmbedding,
    Vectors,
    counted,
)
from adapters.errors import InvalidRequest, RequestNotExpressible
from adapters.gemini import fields
from adapters.gemini.downstream import model_in
from adapters.gemini.failure import find_failure, read_failure
from adapters.gemini.refusal import GeminiRefusals
from adapters.gemini.upstream import path_of, resource_of
from adapters.gemini.wire import UsageMetadata, usage_of
from adapters.losses import Losses
from adapters.openai.body import Fields, read_fields, require_items
from adapters.raw import UNREADABLE

BATCH_MAX = 100

_REQUESTS = "requests"
_READ = frozenset({"model", "content", "taskType", "title", "outputDimensionality"})
_encode = msgspec.json.encode


class _Values(msgspec.Struct):
    values: msgspec.Raw


class _Answer(msgspec.Struct, rename="camel"):
    """`embedding` of one content, `embeddings` of a batch."""

    embedding: _Values | None = None
    embeddings: list[_Values] | None = None
    usage_metadata: UsageMetadata | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


# -- as a server ----------------------------------------------------------------------------------


class GeminiEmbed(NoPrompt, GeminiRefusals):
    """The client's side of `POST …/models/{model}:embedContent`."""

    def decode(self, body: bytes, ask: Ask) -> Request:
        raw = read_fields(body)
        self._require(fields.named(raw))
        return Request(
            fields=raw,
            body_bytes=len(body),
            model=model_in(ask.id),
            protocol="gemini",
            kind="embedding",
            scan=Scan(text_bytes=len(body)),
        )

    def embedding(self, request: Request) -> Embedding:
        return _embedding([fields.named(request.fields)], [""])

    def embedded(self, request: Request, vectors: Vectors, usage: Usage) -> bytes:
        return _encode(
            {"embedding": {"values": vectors.vectors[0]}, "usageMetadata": _written(usage)}
        )

    def _require(self, members: Fields) -> None:
        if "content" not in members:
            raise InvalidRequest("content is required.", param="content")


class GeminiBatchEmbed(GeminiEmbed):
    """The client's side of `POST …/models/{model}:batchEmbedContents`."""

    def embedding(self, request: Request) -> Embedding:
        raw = fields.items(fields.named(request.fields)[_REQUESTS], _REQUESTS)
        places = [f"{_REQUESTS}[{at}]" for at in range(len(raw))]
        return _embedding(
            [fields.members(each, place) for each, place in zip(raw, places, strict=True)], places
        )

    def embedded(self, request: Request, vectors: Vectors, usage: Usage) -> bytes:
        return _encode(
            {
                "embeddings": [{"values": values} for values in vectors.vectors],
                "usageMetadata": _written(usage),
            }
        )

    def _require(self, members: Fields) -> None:
        require_items(members, _REQUESTS, b"{", "a list of request objects")


def _embedding(requests: Sequence[Fields], places: Sequence[str]) -> Embedding:
    """Several requests as one; what other protocols have only once must be the same in all."""
    for name in ("outputDimensionality", "taskType"):
        if len({bytes(each.get(name, b"")) for each in requests}) > 1:
            field = fields.path(places[0], name)
            raise RequestNotExpressible(
                f"{name} must be the same in all requests at this model's provider.", param=field
            )
    first, place = requests[0], places[0]
    unknown = {name: None for each in requests for name in each if name not in _READ}
    return Embedding(
        texts=tuple(_text(each, place) for each, place in zip(requests, places, strict=True)),
        dimensions=fields.count(first, "outputDimensionality", place, 2**31 - 1),
        task=fields.text(first, "taskType", place),
        title=fields.text(first, "title", place),
        dropped=tuple(name for name in unknown if name.isascii() and name.isidentifier()),
    )


def _text(request: Fields, place: str) -> str:
    """The text of one request; its parts belong together, and get one vector."""
    where = fields.path(place, "content")
    if "content" not in request:
        raise InvalidRequest(f"{where} is required.", param=where)
    content = fields.members(request["content"], where)
    texts = []
    for at, raw in enumerate(fields.items(content.get("parts"), f"{where}.parts")):
        part = f"{where}.parts[{at}]"
        members = fields.members(raw, part)
        if "text" not in members:
            raise RequestNotExpressible(
                f"{part}: this model's provider embeds only text.", param=part
            )
        texts.append(fields.text(members, "text", part))
    return "\n".join(texts)


def _written(usage: Usage) -> dict[str, int]:
    return {"promptTokenCount": usage.input_tokens, "totalTokenCount": usage.input_tokens}


# -- as a client ----------------------------------------------------------------------------------


class GeminiEmbeddings:
    """The provider's side. Implements `embedding.EmbeddingUpstream`."""

    def passing_embedding(self, request: Request, target: Target) -> PassingEmbedding:
        resource = msgspec.Raw(_encode(resource_of(target)))
        members = dict(request.fields)
        key = fields.spelled(members, _REQUESTS)
        if key not in members:
            verb = ":embedContent"
            members["model"] = resource
        else:
            verb = ":batchEmbedContents"
            members[key] = msgspec.Raw(
                _encode(
                    [
                        {**fields.raw_members(each, key), "model": resource}
                        for each in fields.items(members[key], key)
                    ]
                )
            )
        return PassingEmbedding(
            path_of(target, verb), _encode(members), relay=GeminiEmbedRelay, failure=read_failure
        )

    def encode_embedding(self, embedding: Embedding, target: Target) -> EncodedEmbedding:
        losses = Losses(target.provider.name)
        if len(embedding.texts) > BATCH_MAX:
            losses.refuse("input", f"embeds at most {BATCH_MAX} texts at once")
        common: dict[str, object] = {"model": resource_of(target)}
        if embedding.dimensions is not None:
            common["outputDimensionality"] = embedding.dimensions
        if embedding.task:
            common["taskType"] = embedding.task
        if embedding.title:
            common["title"] = embedding.title
        requests = [{**common, "content": {"parts": [{"text": text}]}} for text in embedding.texts]
        return EncodedEmbedding(
            path=path_of(target, ":batchEmbedContents"),
            body=_encode({_REQUESTS: requests}),
            read=_read_vectors,
            dropped=losses.names,
        )

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        return read_failure(status, headers, body)


class GeminiEmbedRelay:
    """An answer that passes. Implements `codec.PlainRelay`."""

    __slots__ = ("_usage", "body", "failure")

    def __init__(self, body: bytes) -> None:
        read = _read_vectors(body)
        self.failure = read if isinstance(read, UpstreamFailure) else None
        self.body = b"" if self.failure is not None else body
        self._usage = read.usage if isinstance(read, Vectors) else None

    def counted(self, expected: Expected) -> Counted:
        return counted(self._usage, expected)


def _read_vectors(body: bytes) -> Vectors | UpstreamFailure:
    if (failure := find_failure(body)) is not None:
        return failure
    try:
        answer = _decode_answer(body)
    except UNREADABLE:
        return UpstreamFailure("protocol", "The answer is not a list of embeddings.")
    vectors = answer.embeddings or ([answer.embedding] if answer.embedding is not None else [])
    if not vectors:
        return EMPTY_ANSWER
    return Vectors(tuple(each.values for each in vectors), _usage(answer.usage_metadata))


def _usage(given: UsageMetadata | None) -> Usage | None:
    usage = usage_of(given) if given is not None else Usage()
    return Usage(input_tokens=usage.input_tokens) if usage.input_tokens else None

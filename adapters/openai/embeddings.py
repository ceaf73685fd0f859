"""OpenAI's embeddings, on both sides: what is asked, what a provider gets, what its answer cost.

The Python SDK asks for `base64` whenever its caller did not choose, and decodes that itself: the
numbers as 32-bit floats, little-endian.
"""

from __future__ import annotations

import struct
from base64 import b64decode, b64encode
from collections.abc import Mapping
from functools import partial

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
from adapters.errors import InvalidRequest, RequestNotExpressible, UpstreamProtocolViolation
from adapters.losses import Losses
from adapters.openai import wire
from adapters.openai.body import count_of, model_of, read_fields, refuse_other_spellings, text_of
from adapters.openai.chat_relay import with_model
from adapters.openai.failure import read_error_object, read_failure
from adapters.openai.refusal import OpenAIRefusals

PATH = "/embeddings"

_decode_input = msgspec.json.Decoder(str | list[str | int | list[int]]).decode
_decode_floats = msgspec.json.Decoder(list[float]).decode
_decode_str = msgspec.json.Decoder(str).decode
_encode = msgspec.json.encode
_DIMENSIONS_MAX = 2**20
_KNOWN = frozenset({"model", "input", "dimensions", "encoding_format", "user"})
_PRICED = frozenset({"model", "input"})


class _Entry(msgspec.Struct, gc=False):
    embedding: msgspec.Raw
    index: int = 0


_decode_entry = msgspec.json.Decoder(_Entry).decode


class EmbeddingsDownstream(NoPrompt, OpenAIRefusals):
    """The client's side of `POST /v1/embeddings`."""

    def decode(self, body: bytes, ask: Ask) -> Request:
        fields = read_fields(body)
        refuse_other_spellings(fields, _PRICED)
        model = model_of(fields)
        if "input" not in fields:
            raise InvalidRequest("input is required.", param="input")
        _check_input(fields["input"])
        return Request(
            fields=fields,
            body_bytes=len(body),
            model=model,
            kind="embedding",
            scan=Scan(text_bytes=len(memoryview(fields["input"]))),
            user_id=text_of(fields, "user") or "",
        )

    def embedding(self, request: Request) -> Embedding:
        if text_of(request.fields, "encoding_format") not in (None, "float", "base64"):
            field = "encoding_format"
            raise InvalidRequest(f"{field} must be float or base64.", param=field)
        return Embedding(
            texts=_texts(request.fields["input"]),
            dimensions=count_of(request.fields, "dimensions", _DIMENSIONS_MAX),
            end_user=request.user_id,
            dropped=tuple(
                name
                for name in request.fields
                if name not in _KNOWN and name.isascii() and name.isidentifier()
            ),
        )

    def embedded(self, request: Request, vectors: Vectors, usage: Usage) -> bytes:
        packed = text_of(request.fields, "encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": at, "embedding": _packed(each) if packed else each}
            for at, each in enumerate(vectors.vectors)
        ]
        tokens = {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}
        return _encode({"object": "list", "data": data, "model": request.model, "usage": tokens})


def _texts(raw: msgspec.Raw) -> tuple[str, ...]:
    """The texts of `input`, which may also be tokens: those are of a tokenizer of OpenAI's."""
    given = _decode_input(raw)
    texts = [given] if isinstance(given, str) else [each for each in given if isinstance(each, str)]
    if not texts:
        raise RequestNotExpressible(
            "input: this model's provider takes texts, not tokens.", param="input"
        )
    return tuple(texts)


def _packed(vector: msgspec.Raw) -> str:
    values = _decode_floats(vector)
    return b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _unpacked(vector: str) -> msgspec.Raw:
    data = b64decode(vector)
    return msgspec.Raw(_encode(struct.unpack(f"<{len(data) // 4}f", data)))


def _check_input(raw: msgspec.Raw) -> None:
    """Text, several texts, tokens, or several lists of tokens; not a mixture."""
    try:
        given = _decode_input(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        kinds = set[type]()
    else:
        if not given:
            raise InvalidRequest("input must not be empty.", param="input")
        kinds = {str} if isinstance(given, str) else set(map(type, given))
    if len(kinds) != 1:
        raise InvalidRequest(
            "input must be a string, a list of strings, a list of tokens or a list of those.",
            param="input",
        )


class EmbeddingsUpstream:
    """The provider's side of `POST …/embeddings`. Implements `embedding.EmbeddingUpstream`."""

    def passing_embedding(self, request: Request, target: Target) -> PassingEmbedding:
        model = msgspec.Raw(_encode(target.model))
        return PassingEmbedding(
            PATH,
            _encode({**request.fields, "model": model}),
            relay=partial(EmbeddingsRelay, request.model),
            failure=read_failure,
        )

    def encode_embedding(self, embedding: Embedding, target: Target) -> EncodedEmbedding:
        losses = Losses(target.provider.name)
        body: dict[str, object] = {
            "model": target.model,
            "input": embedding.texts,
            "encoding_format": "float",
        }
        if embedding.dimensions is not None:
            body["dimensions"] = embedding.dimensions
        for name, value in (("taskType", embedding.task), ("title", embedding.title)):
            if value:
                losses.drop(name)
        return EncodedEmbedding(
            path=PATH, body=_encode(body), read=_read_vectors, dropped=losses.names
        )

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        return read_failure(status, headers, body)


class EmbeddingsRelay:
    """One list of embeddings, read and with the client's name of the model."""

    __slots__ = ("_usage", "body", "failure")

    def __init__(self, shown_model: str, body: bytes) -> None:
        self.body = b""
        self.failure: UpstreamFailure | None = None
        self._usage: Usage | None = None
        try:
            answer = wire.read_embeddings(body)
        except UpstreamProtocolViolation as violation:
            self.failure = UpstreamFailure("protocol", str(violation))
            return
        if answer.error and (failure := read_error_object(answer.error)) is not None:
            self.failure = failure
            return
        if not answer.data:
            self.failure = EMPTY_ANSWER
            return
        self._usage = wire.read_usage(answer.usage)
        self.body = with_model(body, shown_model)

    def counted(self, expected: Expected) -> Counted:
        return counted(self._usage, expected)


def _read_vectors(body: bytes) -> Vectors | UpstreamFailure:
    """The vectors of an answer in the order of what was asked."""
    try:
        answer = wire.read_embeddings(body)
        if answer.error and (failure := read_error_object(answer.error)) is not None:
            return failure
        entries = sorted(map(_decode_entry, answer.data or ()), key=lambda each: each.index)
        vectors = tuple(
            _unpacked(_decode_str(each.embedding))
            if bytes(memoryview(each.embedding)[:1]) == b'"'
            else each.embedding
            for each in entries
        )
    except (UpstreamProtocolViolation, msgspec.MsgspecError, ValueError, struct.error):
        return UpstreamFailure("protocol", "The answer is not a list of embeddings.")
    if not vectors:
        return EMPTY_ANSWER
    return Vectors(vectors, wire.read_usage(answer.usage))

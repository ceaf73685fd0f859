"""Embeddings, both sides: what is asked, what a provider gets, what its answer cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from adapters.canonical import Prompt, Usage
from adapters.codec import (
    Ask,
    CountCall,
    Counted,
    Encoded,
    Made,
    Request,
    Scan,
    StreamRelay,
    Target,
    UpstreamFailure,
    Writer,
)
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest, UpstreamProtocolViolation
from adapters.estimate import counted_tokens
from adapters.openai import wire
from adapters.openai.body import read_fields, refuse_other_spellings, text_of
from adapters.openai.chat_relay import with_model
from adapters.openai.failure import read_error_object, read_failure
from adapters.openai.refusal import OpenAIRefusals

PATH = "/embeddings"

_decode_input = msgspec.json.Decoder(str | list[str | int | list[int]]).decode
_encode = msgspec.json.encode
_PRICED = frozenset({"model", "input"})


class EmbeddingsDownstream(OpenAIRefusals):
    """The client's side of `POST /v1/embeddings`."""

    keep_alive = b""

    def stream_type(self, request: Request) -> str:
        raise AssertionError("embeddings are never streamed")

    def decode(self, body: bytes, ask: Ask) -> Request:
        fields = read_fields(body)
        refuse_other_spellings(fields, _PRICED)
        model = text_of(fields, "model")
        if not model:
            raise InvalidRequest("model is required.", param="model")
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

    def prompt(self, request: Request, envelopes: Envelopes) -> Prompt:
        raise AssertionError("embeddings are no prompt")

    def writer(self, request: Request, prompt: Prompt, envelopes: Envelopes, made: Made) -> Writer:
        raise AssertionError("embeddings are no prompt")


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
    """The provider's side of `POST …/embeddings`."""

    def encode(self, prompt: Prompt, target: Target) -> Encoded:
        raise AssertionError("embeddings are no prompt")

    def passing(self, request: Request, target: Target, envelopes: Envelopes) -> EmbeddingsCall:
        model = msgspec.Raw(_encode(target.model))
        return EmbeddingsCall(_encode({**request.fields, "model": model}), request.model)

    def counting(self, prompt: Prompt, target: Target) -> CountCall | None:
        return None

    def counting_passing(self, request: Request, target: Target) -> CountCall | None:
        return None

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        return read_failure(status, headers, body)


@dataclass(frozen=True, slots=True)
class EmbeddingsCall:
    """A request as it came. Implements `codec.Call`; `shown_model` is what the client asked for."""

    body: bytes
    shown_model: str
    path: str = PATH
    headers: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        return read_failure(status, headers, body)

    def stream(self) -> StreamRelay:
        raise AssertionError("embeddings are never streamed")

    def plain(self, body: bytes) -> EmbeddingsRelay:
        return EmbeddingsRelay(self.shown_model, body)


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
            self.failure = UpstreamFailure("empty", "The answer is empty.")
            return
        self._usage = wire.read_usage(answer.usage)
        self.body = with_model(body, shown_model)

    def counted(self, input_text_bytes: int) -> Counted:
        if self._usage is not None:
            return Counted(self._usage, estimated=False)
        return Counted(Usage(input_tokens=counted_tokens(input_text_bytes)), estimated=True)

"""The interfaces between the data plane and what a protocol looks like.

A *downstream codec* is our side as a server: it reads what a client asks and words our refusals.
An *upstream codec* is our side as a client: it writes the request a provider gets and reads its
answers. Both are free of I/O and of state; what lasts for one answer lives in its *relay*. The
data plane knows these interfaces and `registry`, never a protocol.

Failures of an upstream are facts (`UpstreamFailure`), not exceptions: whether another upstream is
tried, and what the client hears, is decided where all attempts are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from adapters.canonical import Usage
from adapters.catalogue import Kind, Provider
from adapters.errors import (
    APIError,
    ContextLengthExceeded,
    InvalidRequest,
    ModelNotAvailable,
    RequestError,
    RequestTooLarge,
)

Headers = list[tuple[str, str]]

FailureKind = Literal[
    "bad_request",
    "context_length",
    "content_filter",
    "too_large",
    "auth",
    "quota",
    "not_found",
    "rate_limited",
    "overloaded",
    "timeout",
    "server_error",
    "empty",  # an answer with nothing in it
    "protocol",  # bytes that its protocol does not allow
    "truncated",  # the stream ended in the middle
]

_CLIENT_ERRORS: Mapping[FailureKind, type[RequestError]] = {
    "bad_request": InvalidRequest,
    "context_length": ContextLengthExceeded,
    "content_filter": InvalidRequest,
    "too_large": RequestTooLarge,
}


@dataclass(frozen=True, slots=True)
class UpstreamFailure:
    """Why an upstream did not serve.

    `message` is scrubbed, and only what `client_error` returns may carry it to a client.
    `status` is the HTTP status, 200 for what went wrong inside an answer. `retry_after` is in
    seconds, None without a hint.
    """

    kind: FailureKind
    message: str
    status: int = 200
    param: str | None = None
    retry_after: float | None = None

    @property
    def retryable(self) -> bool:
        """Whether another upstream of the model may serve the same request."""
        return self.kind not in _CLIENT_ERRORS

    def client_error(self) -> RequestError | None:
        """What the client is told where the request itself was at fault, else None."""
        if self.kind == "not_found":
            return ModelNotAvailable("No upstream of this model knows it.", param="model")
        refusal = _CLIENT_ERRORS.get(self.kind)
        return None if refusal is None else refusal(self.message, param=self.param)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded request: the facts that routing, limits and prices need, and the body itself.

    `fields` is the body, member by member and in order, so that whatever we do not know reaches
    the provider as it was sent. `output_cap` is the client's own limit of output tokens for each
    of `choices` answers, None where it set none. `pieces` are priced units that the request buys
    whatever the answer, such as one web search.
    """

    fields: dict[str, msgspec.Raw]
    body_bytes: int
    model: str
    kind: Kind = "chat"
    stream: bool = False
    include_usage: bool = False
    output_cap: int | None = None
    choices: int = 1
    service_tier: str = ""
    pieces: Mapping[str, int] = {}
    user_id: str = ""
    conversation_id: str = ""


@dataclass(frozen=True, slots=True)
class Counted:
    """Usage to settle with; `estimated` where it is (partly) our own count."""

    usage: Usage
    estimated: bool


class Relay(Protocol):
    """One upstream answer on its way to the client, read while it passes. Never raises."""

    @property
    def failure(self) -> UpstreamFailure | None:
        """What broke, as soon as it is known; nothing more comes out after that."""
        ...

    def counted(self, input_text_bytes: int) -> Counted:
        """What was consumed up to now: the provider's usage if it came, else our own count."""
        ...


class StreamRelay(Relay, Protocol):
    """A streamed answer.

    Feed it until `ended`, or `close` it at the end of the body. What `feed` returns may go out at
    once. Where `failure` is then None, the answer is complete: settle, and only then send
    `terminal`, so that a completely received answer is always charged.
    """

    @property
    def has_content(self) -> bool:
        """Whether something the caller would miss has come out: no other upstream after this."""
        ...

    @property
    def ended(self) -> bool:
        """The upstream has said its last word, or failed: read no further."""
        ...

    @property
    def terminal(self) -> bytes:
        """The bytes that tell the client that the answer is complete."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Upstream bytes in, bytes for the client out; events that are not complete wait."""
        ...

    def close(self) -> bytes:
        """The upstream's body ended. Without its last word that is a `truncated` failure."""
        ...


class PlainRelay(Relay, Protocol):
    """An answer in one piece; `body` is what the client gets where `failure` is None."""

    @property
    def body(self) -> bytes: ...


class Refusals(Protocol):
    """How a surface words our errors: the envelope that its SDK turns into an exception."""

    def error_body(self, error: APIError, request_id: str) -> bytes:
        """The answer to a call that failed before anything was sent."""
        ...

    def error_headers(self, error: APIError) -> Headers:
        """What the SDK's retries go by."""
        ...

    def error_event(self, error: APIError, request_id: str) -> bytes:
        """The error inside a stream that has begun. Nothing may follow it."""
        ...


class DownstreamCodec(Refusals, Protocol):
    """We are the server."""

    def decode(self, body: bytes) -> Request:
        """Read a request body. Raises InvalidRequest naming the field."""
        ...


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that can be asked on a surface.

    `number` stands for it in the books and is never used again for another. `codec` is None where
    no model is asked, as for the list of models.
    """

    surface: str
    name: str
    number: int
    refusals: Refusals
    codec: DownstreamCodec | None = None


class UpstreamCodec(Protocol):
    """We are the client."""

    @property
    def path(self) -> str:
        """Where to POST, relative to the provider's base URL."""
        ...

    def encode(
        self, request: Request, provider: Provider, model: str, output_cap: int | None
    ) -> bytes:
        """The body for `provider`, where the model is called `model`.

        `output_cap` is written where the client set none: the same tokens that are reserved.
        """
        ...

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        """Why the upstream answered with something else than 200."""
        ...

    def stream(self, request: Request) -> StreamRelay:
        """A relay for the streamed answer to `request`."""
        ...

    def plain(self, request: Request, body: bytes) -> PlainRelay:
        """A relay for the answer to `request` in one piece."""
        ...

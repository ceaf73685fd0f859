"""The interfaces between the data plane and what a protocol looks like.

A *downstream codec* is our side as a server: it reads what a client asks and words our refusals.
An *upstream codec* is our side as a client: it writes the request a provider gets and reads its
answers. Both are free of I/O and of state; what lasts for one request lives in its `Call`, what
lasts for one answer in its *relay*. The data plane knows these interfaces, `translate` and
`registry`, never a protocol.

Where both speak the same protocol the upstream codec's `passing` sends the body on as it came.
Otherwise the client's codec makes a `Prompt` of it, the provider's codec encodes that, a `Reader`
turns the answer into canonical events and a `Writer` those into the client's bytes.

Failures of an upstream are facts (`UpstreamFailure`), not exceptions: whether another upstream is
tried, and what the client hears, is decided where all attempts are known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import msgspec

from adapters.canonical import Blob, Event, Prompt, Usage
from adapters.catalogue import Kind, Model, Provider
from adapters.catalogue import Protocol as WireProtocol
from adapters.errors import (
    APIError,
    ContextLengthExceeded,
    InvalidRequest,
    ModelNotAvailable,
    NotFound,
    RequestError,
    RequestTooLarge,
)
from adapters.pieces import Body

if TYPE_CHECKING:
    from adapters.envelope import Envelopes
    from adapters.limits import Left
    from adapters.names import ToolNames
    from adapters.stream import Composer

Headers = list[tuple[str, str]]

FailureKind = Literal[
    "bad_request",
    "context_length",
    "content_filter",
    "too_large",
    "not_found",  # something that the request names
    "model_not_found",  # the model, or the path: what our catalogue names
    "auth",
    "forbidden",  # which may be the account's fault, or the request's
    "quota",
    "rate_limited",
    "over_limit",  # more than the account there may ever ask for at once
    "conflict",  # with something inside the provider; the same request may be said again
    "overloaded",
    "timeout",
    "server_error",
    "empty",  # an answer with nothing in it
    "protocol",  # bytes that its protocol does not allow
    "truncated",  # the stream ended in the middle
]

_CLIENT_ERRORS: Mapping[FailureKind, tuple[type[RequestError], str]] = {
    "bad_request": (InvalidRequest, "The provider refused the request as malformed."),
    "context_length": (ContextLengthExceeded, "The request exceeds the model's context length."),
    "content_filter": (InvalidRequest, "The provider's content filter refused the request."),
    "too_large": (RequestTooLarge, "The request is larger than the provider takes."),
    "not_found": (NotFound, "The provider does not know something that the request names."),
}
"""The error of each kind that is the request's own fault, and what is said where the provider says
nothing."""


@dataclass(frozen=True, slots=True)
class UpstreamFailure:
    """Why an upstream did not serve.

    `message` is scrubbed, and only what `client_error` returns may carry it to a client.
    `status` is the HTTP status, 200 for what went wrong inside an answer. `retry_after` is in
    seconds, None without a hint. `details` are words that the provider's own SDK acts on, such as
    that a conversation it is to remember is not there.
    """

    kind: FailureKind
    message: str
    status: int = 200
    param: str | None = None
    retry_after: float | None = None
    details: Mapping[str, object] = field(default_factory=dict)

    def client_error(self) -> RequestError | None:
        """What the client is told where that says what to mend, else None."""
        if self.kind == "model_not_found":
            return ModelNotAvailable("No upstream of this model knows it.", param="model")
        if self.kind not in _CLIENT_ERRORS:
            return None
        refusal, unsaid = _CLIENT_ERRORS[self.kind]
        return refusal(self.message or unsaid, param=self.param, details=self.details)


EMPTY_ANSWER = UpstreamFailure("empty", "The answer is empty.")


class Scan(msgspec.Struct, frozen=True, kw_only=True):
    """What a request's body holds, as far as its price depends on it.

    `text_bytes` are those of the members that are rendered into the prompt, as JSON and without
    media; `media_bytes` the bytes of the body that are media, `media_tokens` what those may cost.
    `audio`: audio may be billed, at its own price. `hidden`: input that only the provider can see.
    `tools` are declared. `predicted_tokens` are output that is billed beyond the cap. `passes` is
    how often tools of the provider may make the model read everything again, `pieces` what they
    may cost by the piece. `long_cache`: cached for an hour, at a price of its own. `window` is the
    one that the request asks for where its model has several, 0 where it does not.

    And one thing that is no matter of the price. `signed`: there is reasoning in it, or its place,
    that not every provider can read, so who gets it is chosen by that, and what passes is looked
    through.
    """

    text_bytes: int = 0
    media_bytes: int = 0
    media_tokens: int = 0
    audio: bool = False
    hidden: bool = False
    tools: int = 0
    predicted_tokens: int = 0
    passes: int = 1
    pieces: Mapping[str, int] = {}
    long_cache: bool = False
    window: int = 0
    signed: bool = False


class Ask(msgspec.Struct, frozen=True):
    """What a request's head tells its codec: the id in its path, its query, and its headers by
    lower-case name."""

    id: str = ""
    query: str = ""
    headers: Mapping[bytes, bytes] = {}


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded request: the facts that routing, limits and prices need, and the body itself.

    `fields` is the body, member by member and in order, so that whatever we do not know reaches
    a provider of the same `protocol` as it was sent, with the headers of `forward`. `output_cap`
    is the client's own limit of output tokens for each of `choices` answers, None where it set
    none. `pieces` are priced units that the request buys whatever the answer, such as one web
    search. `array`: the stream is one JSON array instead of events (Gemini). `foreign`: the body is
    not quite of this protocol, and has to be translated whatever the provider speaks. `echo` are
    members that the answer repeats as the client sent them, although the body no longer has them.
    `keep_alive` tells the client that its stream lives, in the form that it counts, before the
    first event as well as between events; empty where its readers know no such thing.
    """

    fields: dict[str, msgspec.Raw]
    body_bytes: int
    model: str
    protocol: WireProtocol = "openai"
    kind: Kind = "chat"
    stream: bool = False
    include_usage: bool = False
    array: bool = False
    output_cap: int | None = None
    choices: int = 1
    service_tier: str = ""
    pieces: Mapping[str, int] = {}
    scan: Scan = Scan()
    user_id: str = ""
    conversation_id: str = ""
    forward: tuple[tuple[str, str], ...] = ()
    foreign: bool = False
    echo: Mapping[str, msgspec.Raw] = {}
    keep_alive: bytes = b""


class Counted(msgspec.Struct, frozen=True, gc=False):
    """Usage to settle with; `estimated` where it is (partly) our own count."""

    usage: Usage
    estimated: bool


Expected = Callable[[], Usage]
"""The input that a request most probably has; asked for only where its provider tells none."""


class Relay(Protocol):
    """One upstream answer on its way to the client, read while it passes. Never raises."""

    @property
    def failure(self) -> UpstreamFailure | None:
        """What broke, as soon as it is known; nothing more comes out after that."""
        ...

    def counted(self, expected: Expected) -> Counted:
        """What was consumed up to now: the provider's usage if it came, else our own count."""
        ...


class StreamRelay(Relay, Protocol):
    """A streamed answer.

    Feed it until `ended`, or `close` it at the end of the body. What `feed` returns may go out at
    once. Where `failure` is then None, the answer is complete: settle, and only then send
    `terminal`, so that a completely received answer is always charged.

    A limited one (see `Call.stream`) may be given a `limit` while it runs. It is then `full` before
    the first event that would bring its output above that: this event and all behind it wait for a
    higher limit, or to be `cut_short`. The answer then ends as one does that has reached its output
    cap, and no more than the limit is counted, whatever its provider tells of what came behind the
    cut. An event that ends the answer always has room.
    """

    @property
    def waiting_bytes(self) -> int:
        """How much was fed and is not read yet: the event that is not complete."""
        ...

    @property
    def output_tokens(self) -> int:
        """The output of `counted`, for those who look often."""
        ...

    @property
    def full(self) -> bool:
        """Whether an event waits for which the limit has no room."""
        ...

    @property
    def cut(self) -> bool:
        """Whether the answer was ended at its limit."""
        ...

    def limit(self, output_tokens: int | None) -> bytes:
        """Count no more than so much output (None: any) from here on; what waited comes out."""
        ...

    def cut_short(self, expected: Expected) -> None:
        """End a full one here; `expected` as for `counted`."""
        ...

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

    def read_on(self, data: bytes) -> bool:
        """Upstream bytes that no client gets any more, for what they say of the costs.

        True where all is known that there is to know.
        """
        ...

    def feed(self, data: bytes) -> bytes:
        """Upstream bytes in, bytes for the client out; events that are not complete wait."""
        ...

    def close(self) -> bytes:
        """The upstream's body ended. Without its last word that is a `truncated` failure."""
        ...

    def error_event(self, error: APIError, request_id: str) -> bytes:
        """The error at this point of the stream. Nothing may follow it."""
        ...


class PlainRelay(Relay, Protocol):
    """An answer in one piece; `body` is what the client gets where `failure` is None."""

    @property
    def body(self) -> bytes: ...


class Call(Protocol):
    """One request as a certain provider gets it, and how to read what comes back.

    `path` is relative to the provider's base URL and may have a query, `headers` are added to the
    provider's own. `dropped` names what of the client's request did not fit, as it is reported.
    """

    @property
    def path(self) -> str: ...

    @property
    def headers(self) -> tuple[tuple[str, str], ...]: ...

    @property
    def body(self) -> Body: ...

    @property
    def dropped(self) -> tuple[str, ...]: ...

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        """Why the upstream answered with something else than 200."""
        ...

    def stream(self, *, limited: bool = False) -> StreamRelay:
        """A relay for the streamed answer. `limited`: it may be given a limit while it runs."""
        ...

    def plain(self, body: bytes) -> PlainRelay:
        """A relay for the answer in one piece."""
        ...


class Refusals(Protocol):
    """How a surface words our errors: the envelope that its SDK turns into an exception. And
    the limits behind some of them, which successful answers tell of as well."""

    def error_body(self, error: APIError, request_id: str) -> bytes:
        """The answer to a call that failed before anything was sent."""
        ...

    def error_headers(self, error: APIError) -> Headers:
        """What the SDK's retries go by."""
        ...

    def limit_headers(self, limits: Sequence[Left], now: float) -> Headers:
        """What is left of the caller's limits; `now` is wall time in seconds."""
        ...

    def error_event(self, error: APIError, request_id: str) -> bytes:
        """The error in a stream of which the client has only seen keep-alives. Nothing may follow
        it."""
        ...


class Writer(Protocol):
    """The canonical events of one answer as a client's protocol has them.

    Every answer is written as a stream; `whole` is the same answer in one piece.
    """

    def write(self, event: Event) -> bytes:
        """The client's bytes of one event; of a `Finish` all that ends the stream."""
        ...

    def whole(self) -> bytes:
        """The body of a plain answer, after its `Finish` was written."""
        ...

    def error_event(self, error: APIError, request_id: str) -> bytes:
        """As of a StreamRelay."""
        ...


class DownstreamCodec(Refusals, Protocol):
    """We are the server."""

    def stream_type(self, request: Request) -> str:
        """The content type of a streamed answer."""
        ...

    def decode(self, body: bytes, ask: Ask) -> Request:
        """Read a request. Raises InvalidRequest naming the field."""
        ...

    def prompt(self, request: Request, envelopes: Envelopes) -> Prompt:
        """The whole of a request that goes to another protocol.

        Raises InvalidRequest where it is malformed, RequestNotExpressible for what no other
        protocol knows.
        """
        ...

    def writer(self, request: Request, prompt: Prompt, envelopes: Envelopes, made: Made) -> Writer:
        """Writes the answer to `request`."""
        ...


class Made(msgspec.Struct, frozen=True):
    """Where an answer comes from: what signatures in it are bound to. `input_tokens` is our own
    estimate, for protocols that want a figure before the provider has said one; `created` is in
    seconds since the epoch."""

    provider: str
    family: str
    input_tokens: int = 0
    created: int = 0


class CountingCodec(DownstreamCodec, Protocol):
    """For operations that ask how many input tokens a request has."""

    def counted(self, tokens: int) -> bytes:
        """The body of the answer."""
        ...


class Listing(Protocol):
    """The models, in one dialect."""

    def page(self, models: Sequence[Listed], query: str) -> bytes:
        """The body of the list; `query` is the request's, with the dialect's paging in it.

        Raises InvalidRequest for a cursor or limit that is none.
        """
        ...

    def entry(self, model: Listed) -> bytes:
        """The body of one model."""
        ...


class Listed(NamedTuple):
    """A model under the id that callers use: its own, or a virtual one."""

    id: str
    model: Model


Action = Literal["generate", "embed", "count", "models", "stored", "usage"]


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
    action: Action = "generate"
    listing: Listing | None = None


class Reader(Protocol):
    """One provider's answer, read into canonical events. Never raises.

    `read` gets the payload of one server-sent event, `plain` a whole answer that was not streamed
    (and then nothing else is called), `close` says that the stream ended. The events are in the
    composer, as is what failed.
    """

    @property
    def composer(self) -> Composer: ...

    def read(self, data: bytes) -> None: ...

    def plain(self, body: bytes) -> None: ...

    def close(self) -> None: ...


class Target(msgspec.Struct, frozen=True, gc=False):
    """Where a prompt goes: the provider, what it calls the model, and the cap that was reserved."""

    provider: Provider
    model: str
    output_cap: int | None
    stream: bool

    def accepts(self, blob: Blob) -> bool:
        """Whether a signature was made by this very model of this provider."""
        return blob.provider == self.provider.name and blob.family == family(self.model)


class Encoded(msgspec.Struct, frozen=True):
    """A prompt as a provider gets it, the fields it lost on the way, and the reader of what
    comes back. `stops_itself`: the provider ends the answer at the prompt's stop sequences. `names`
    are those under which it knows the tools. `pieces` are bought whatever the answer, and not told
    in its usage."""

    path: str
    body: bytes
    reader: Callable[[], Reader]
    headers: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()
    stops_itself: bool = True
    names: ToolNames | None = None
    pieces: Mapping[str, int] = {}


class UpstreamCodec(Protocol):
    """We are the client."""

    def encode(self, prompt: Prompt, target: Target) -> Encoded:
        """The request for a provider of this protocol.

        Raises RequestNotExpressible naming the field that would change what is asked.
        """
        ...

    def passing(self, request: Request, target: Target, envelopes: Envelopes) -> Call:
        """A request of this same protocol, as it came."""
        ...

    def counting(self, prompt: Prompt, target: Target) -> CountCall | None:
        """Asks the provider's own token counter; None where it has none.

        Raises RequestNotExpressible.
        """
        ...

    def counting_passing(self, request: Request, target: Target) -> CountCall | None:
        """The same for a request of this very protocol."""
        ...

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        """Why the upstream answered with something else than 200."""
        ...


@dataclass(frozen=True, slots=True)
class CountCall:
    """A question for a provider's token counter; `read` finds the count in a 200's body."""

    path: str
    body: bytes
    read: Callable[[bytes], int | None]
    headers: tuple[tuple[str, str], ...] = ()


_VERSION_SUFFIX = re.compile(r"(?:[-@](?:\d{8}|\d{4}-\d{2}-\d{2}|latest))$")


def family(model: str) -> str:
    """A model's name without the date of its version: what signatures are bound to."""
    return _VERSION_SUFFIX.sub("", model)

"""The sandbox provider: every shape and every failure of an answer, by the name of its model.

Not a model, and its answers say so. It speaks OpenAI's Chat Completions, Embeddings and model
list, and refuses what OpenAI refuses. `respond` turns a request into a script, which a server
plays: bytes, pauses, and the ways in which providers fail. The same request gets the same script,
down to the byte; there is no clock and no chance in it.

Usage follows a rule that tests can count by. Prompt: the bytes of the messages' text divided by
four and rounded up, and four for each message. Completion: one token for each delta, which is a
word or a piece of JSON, and whatever the model claims to have reasoned.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Literal
from urllib.parse import unquote

import msgspec

from adapters import sse
from adapters.catalogue import Kind
from adapters.sandbox_request import (
    ChatRequest,
    Json,
    Refused,
    check_authorization,
    read_chat,
    read_embeddings,
)
from adapters.schema_example import example

CREATED = 1_767_225_600  # 2026-01-01: a constant, since there is no clock
FINGERPRINT = "fp_sandbox"

_SHOWN_CHARACTERS = 40  # of the prompt, in the answer
_FRAGMENT = re.compile(r".{1,8}", re.DOTALL)
_WORD = re.compile(r"\s*\S+|\s+")
_encode = msgspec.json.encode


# -- scripts --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Head:
    """Every script begins with it. The server adds the framing of the body."""

    status: int
    headers: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of the body, to be sent at once."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait before going on."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Cut:
    """Close the connection where it is, without an end of the body."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Send nothing more, but keep the connection open."""


Action = Head | Data | Pause | Cut | Hang


# -- what an answer is made of --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model writes: text, or the arguments of `function`, in pieces of a token each."""

    pieces: Sequence[str]
    finish_reason: str = "stop"
    function: str = ""

    def within(self, cap: int) -> Answer:
        """As much of it as `cap` tokens allow."""
        if len(self.pieces) <= cap:
            return self
        return Answer(self.pieces[:cap], "length", self.function)

    def until(self, stops: Sequence[str]) -> Answer:
        """What comes before the first of `stops`; arguments of functions have no stops."""
        text = "".join(self.pieces)
        found = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
        if self.function or not found:
            return self
        return _words(text[: min(found)])


@dataclass(frozen=True, slots=True)
class Break:
    """Where an answer goes wrong, and what comes instead of the rest.

    After `percent` of the deltas (0: before anything) a stream goes on with `rest`. A plain
    answer is `body`, or where that is None its first `percent`, and then `rest`.
    """

    percent: int
    rest: tuple[Action, ...]
    body: bytes | None = None


def _words(text: str) -> Answer:
    return Answer(_WORD.findall(text))


def _summary(request: ChatRequest) -> Answer:
    """About thirty words on what was asked."""
    size = len(request.last_text.encode())
    shown = " ".join(request.last_text.split())
    if len(shown) > _SHOWN_CHARACTERS:
        shown = shown[:_SHOWN_CHARACTERS] + "…"
    return _words(
        "This is the sandbox of Farebox, not a model: nobody has thought about your words. "
        f"Messages received: {len(request.messages)}. The last one has {size} bytes of text and "
        f"begins: {shown}"
    )


def _count_to(last: int, request: ChatRequest) -> Answer:
    """1 2 3 …, so that a reader sees what is missing."""
    return _words(" ".join(map(str, range(1, last + 1))))


def _nothing(request: ChatRequest) -> Answer:
    return Answer(())


def _call(request: ChatRequest) -> Answer:
    """A call of the function that was chosen, or of the first; a summary where none is wanted.

    The result of a function is not answered by calling it again, so that agents come to an end.
    """
    choice = request.fields.get("tool_choice")
    if choice == "none" or request.messages[-1].get("role") == "tool":
        return _summary(request)
    functions = list(_functions(request.fields.get("tools")))
    if isinstance(choice, dict) and isinstance(chosen := choice.get("function"), dict):
        functions = [each for each in functions if each["name"] == chosen.get("name")]
    if not functions:
        return _summary(request)
    name, parameters = str(functions[0]["name"]), functions[0].get("parameters")
    arguments = _shaped(parameters, f"function '{name}'") if parameters else {}
    return Answer(_fragments(arguments), "tool_calls", name)


def _functions(tools: object) -> Iterator[Json]:
    for tool in tools if isinstance(tools, list) else ():
        if tool["type"] == "function":
            yield tool["function"]


def _json(request: ChatRequest) -> Answer:
    """JSON of the shape that was asked for."""
    wanted = request.fields.get("response_format")
    described = wanted.get("json_schema") if isinstance(wanted, dict) else None
    schema = described.get("schema") if isinstance(described, dict) else None
    if schema is not None:
        return Answer(_fragments(_shaped(schema, "response_format")))
    return Answer(_fragments({"sandbox": True, "messages": len(request.messages)}))


def _shaped(schema: object, where: str) -> object:
    assert isinstance(schema, dict), "it was checked"
    try:
        return example(schema)
    except ValueError as error:
        raise Refused(
            400, f"Invalid schema for {where}: {error}.", code="invalid_json_schema"
        ) from None


def _fragments(value: object) -> list[str]:
    return _FRAGMENT.findall(_encode(value).decode())


# -- the models -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One behaviour. `description` is a sentence for documents and lists.

    `usage` says where a stream has it: in a chunk of its own where it was asked for, always
    beside the finish reason, or nowhere, in plain answers neither.
    """

    description: str
    kind: Kind = "chat"
    refuses: Callable[[], Refused] | None = None
    write: Callable[[ChatRequest], Answer] = _summary
    usage: Literal["asked", "on_finish", "never"] = "asked"
    first_seconds: float = 0
    delta_seconds: float = 0
    reasoning_tokens: int = 0
    caches: bool = False
    breaks: Break | None = None


_SERVER_ERROR = partial(
    Refused,
    500,
    "The server had an error while processing your request. Sorry about that!",
    type="server_error",
)
_ERRORS: Mapping[int, Callable[[], Refused]] = {
    400: partial(
        Refused,
        400,
        "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default "
        "(1) value is supported.",
        param="temperature",
        code="unsupported_value",
    ),
    401: partial(
        Refused,
        401,
        "Incorrect API key provided: sk-sandb****************0000. You can find your API key at "
        "https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
    ),
    403: partial(
        Refused,
        403,
        "Country, region, or territory not supported",
        type="request_forbidden",
        code="unsupported_country_region_territory",
    ),
    404: partial(
        Refused,
        404,
        "The model `sandbox-error-404` does not exist or you do not have access to it.",
        code="model_not_found",
    ),
    408: partial(Refused, 408, "Request timed out.", type="timeout"),
    409: partial(Refused, 409, "Another request is changing this resource.", type="conflict"),
    413: partial(Refused, 413, "Request Entity Too Large", page=True),
    422: partial(Refused, 422, "Unprocessable entity: none of the messages is the user's."),
    429: partial(
        Refused,
        429,
        "Rate limit reached for sandbox-error-429 in organization org-sandbox0000 on requests per "
        "min (RPM): Limit 3, Used 3, Requested 1. Please try again in 1s. Visit "
        "https://platform.openai.com/account/rate-limits to learn more.",
        type="requests",
        code="rate_limit_exceeded",
        headers=[("retry-after", "1")],
    ),
    500: _SERVER_ERROR,
    502: partial(Refused, 502, "Bad Gateway", page=True),
    503: partial(
        Refused,
        503,
        "The server is currently overloaded with other requests. Sorry about that! You can retry "
        "your request.",
        type="server_error",
        headers=[("retry-after", "1")],
    ),
    529: partial(Refused, 529, "Overloaded", type="overloaded_error"),
}
_ERROR_EVENT = Data(sse.event(_SERVER_ERROR().body))
_BROKEN_EVENT = Data(sse.event(b'{"id":"chatcmpl-sandbox","choices":[{"index":0,"del'))

MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "sandbox": Model(description="Sums up the prompt in about thirty words."),
        "sandbox-long": Model(
            description="Counts to 500 without a pause.", write=partial(_count_to, 500)
        ),
        "sandbox-slow": Model(
            description="Counts to 20: 0.3 seconds to the first word, 0.05 between words.",
            write=partial(_count_to, 20),
            first_seconds=0.3,
            delta_seconds=0.05,
        ),
        "sandbox-no-usage": Model(description="Never says what it used.", usage="never"),
        "sandbox-usage-on-finish": Model(
            description="Streams its usage beside the finish reason, asked or not.",
            usage="on_finish",
        ),
        "sandbox-cached": Model(
            description="Says that half of the prompt was cached.", caches=True
        ),
        "sandbox-reasoning": Model(
            description="Says that it reasoned for 64 tokens before it answered.",
            reasoning_tokens=64,
        ),
        "sandbox-tools": Model(
            description="Calls the first function it is given, with arguments of the right shape.",
            write=_call,
        ),
        "sandbox-json": Model(
            description="Answers with JSON of the shape that `response_format` describes.",
            write=_json,
        ),
        "sandbox-empty": Model(description="Answers well, but with nothing.", write=_nothing),
        "sandbox-cut-40": Model(
            description="Cuts the connection after 40 % of the answer.", breaks=Break(40, (Cut(),))
        ),
        "sandbox-cut-60": Model(
            description="Cuts the connection after 60 % of the answer.", breaks=Break(60, (Cut(),))
        ),
        "sandbox-stall": Model(
            description="Falls silent after two words of twenty.",
            write=partial(_count_to, 20),
            breaks=Break(10, (Hang(),)),
        ),
        "sandbox-malformed": Model(
            description="Breaks its JSON in the middle of the answer.",
            breaks=Break(50, (_BROKEN_EVENT,), b"Service temporarily unavailable"),
        ),
        "sandbox-error-in-stream": Model(
            description="Sends an error object in the middle of the answer.",
            breaks=Break(50, (_ERROR_EVENT,), _SERVER_ERROR().body),
        ),
        "sandbox-error-first": Model(
            description="Sends an error object as the first event of a 200.",
            breaks=Break(0, (_ERROR_EVENT,), _SERVER_ERROR().body),
        ),
        **{
            f"sandbox-error-{status}": Model(
                description=f"Answers with status {status}.", refuses=error
            )
            for status, error in _ERRORS.items()
        },
        "sandbox-context-overflow": Model(
            description="Finds every prompt too long.",
            refuses=partial(
                Refused,
                400,
                "This model's maximum context length is 8192 tokens. However, your messages "
                "resulted in 9000 tokens. Please reduce the length of the messages.",
                param="messages",
                code="context_length_exceeded",
            ),
        ),
        "sandbox-content-filter": Model(
            description="Finds every prompt improper.",
            refuses=partial(
                Refused,
                400,
                "The response was filtered due to the prompt triggering our content management "
                "policy. Please modify your prompt and retry.",
                param="prompt",
                code="content_filter",
            ),
        ),
        "sandbox-embedding": Model(
            description="Gives unit vectors that depend on nothing but the input.",
            kind="embedding",
        ),
    }
)


# -- answering ------------------------------------------------------------------------------------


def respond(
    method: str, path: str, headers: Mapping[bytes, bytes], body: bytes
) -> Iterable[Action]:
    """The script of the answer to one request. Header names are in lower case. Never raises."""
    try:
        check_authorization(headers)
        return _route(method, path, body)
    except Refused as refused:
        return (Head(refused.status, refused.headers), Data(refused.body))


def _route(method: str, path: str, body: bytes) -> Iterable[Action]:
    name = unquote(path.removeprefix("/v1/models/"))
    methods: Mapping[str, Callable[[], Iterable[Action]]]
    if path == "/v1/chat/completions":
        methods = {"POST": lambda: _chat(body)}
    elif path == "/v1/embeddings":
        methods = {"POST": lambda: _embed(body)}
    elif path == "/v1/models":
        methods = {"GET": _list}
    elif path.startswith("/v1/models/"):
        methods = {"GET": lambda: _json_answer(_listed(name, _find(name)))}
    else:
        raise Refused(404, f"Invalid URL ({method} {path})")
    serve = methods.get(method)
    if serve is None:
        raise Refused(405, f"Not allowed to {method} on {path}.", code="method_not_supported")
    return serve()


def _find(name: str) -> Model:
    model = MODELS.get(name)
    if model is None:
        raise Refused(
            404,
            f"The model `{name}` does not exist or you do not have access to it.",
            code="model_not_found",
        )
    return model


def _list() -> Iterable[Action]:
    entries = [_listed(name, model) for name, model in MODELS.items()]
    return _json_answer({"object": "list", "data": entries})


def _listed(name: str, model: Model) -> Json:
    return {
        "id": name,
        "object": "model",
        "created": CREATED,
        "owned_by": "farebox",
        "description": model.description,
    }


def _json_answer(value: object) -> Iterable[Action]:
    return (Head(200, [("content-type", "application/json")]), Data(_encode(value)))


# -- chat -----------------------------------------------------------------------------------------


def _chat(body: bytes) -> Iterable[Action]:
    request = read_chat(body)
    model = _find(request.model)
    if model.kind != "chat":
        raise Refused(
            404,
            "This is not a chat model and thus not supported in the v1/chat/completions endpoint.",
            param="model",
        )
    if model.refuses is not None:
        raise model.refuses()
    completion = _Completion(request, model, hashlib.sha256(body).hexdigest()[:24])
    return completion.streamed() if request.stream else completion.plain()


class _Completion:
    """One answer; its choices are equal. `name` is the part of ids that tells answers apart."""

    def __init__(self, request: ChatRequest, model: Model, name: str) -> None:
        self._request = request
        self._model = model
        self._name = name
        self._reasoned = model.reasoning_tokens
        self._answer = model.write(request).until(request.stop)
        if request.cap is not None:
            self._reasoned = min(self._reasoned, request.cap)
            self._answer = self._answer.within(request.cap - self._reasoned)

    def plain(self) -> Iterator[Action]:
        yield Head(200, [("content-type", "application/json")])
        if seconds := self._seconds():
            yield Pause(seconds)
        breaks = self._model.breaks
        body = _encode(self._whole())
        if breaks is None:
            yield Data(body)
        elif breaks.body is not None:
            yield Data(breaks.body)
        else:
            yield Data(body[: len(body) * breaks.percent // 100])
            yield from breaks.rest

    def streamed(self) -> Iterator[Action]:
        yield Head(200, [("content-type", "text/event-stream; charset=utf-8")])
        breaks = self._model.breaks
        if breaks is None:
            yield from self._opening()
            yield from self._deltas(len(self._answer.pieces))
            yield from self._closing()
            return
        if breaks.percent:
            yield from self._opening()
            yield from self._deltas(len(self._answer.pieces) * breaks.percent // 100)
        yield from breaks.rest

    def _seconds(self) -> float:
        """How long the stream takes, and so the plain answer too."""
        gaps = max(0, len(self._answer.pieces) - 1)
        return self._model.first_seconds + gaps * self._model.delta_seconds

    def _opening(self) -> Iterator[Action]:
        """The role, and what function is called."""
        for index in range(self._request.n):
            yield self._delta(index, {"role": "assistant", "content": "", "refusal": None})
            if self._answer.function:
                yield self._delta(index, {"tool_calls": [{"index": 0, **self._call(index, "")}]})

    def _deltas(self, count: int) -> Iterator[Action]:
        """The first `count` pieces, each for every choice in turn."""
        pause = self._model.first_seconds
        for piece in islice(self._answer.pieces, count):
            if pause:
                yield Pause(pause)
            pause = self._model.delta_seconds
            for index in range(self._request.n):
                yield self._delta(index, self._piece(piece))

    def _piece(self, piece: str) -> Json:
        if self._answer.function:
            return {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        return {"content": piece}

    def _closing(self) -> Iterator[Action]:
        for index in range(self._request.n):
            yield self._delta(index, {}, self._answer.finish_reason)
        if self._counts_in_chunks:
            yield self._chunk({"choices": [], "usage": self._usage()})
        yield Data(sse.event(b"[DONE]"))

    @property
    def _counts_in_chunks(self) -> bool:
        return self._request.include_usage and self._model.usage == "asked"

    def _delta(self, index: int, delta: Json, finish_reason: str | None = None) -> Data:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        members: Json = {"choices": [choice]}
        if self._counts_in_chunks:
            members["usage"] = None
        elif finish_reason and index == self._request.n - 1 and self._model.usage == "on_finish":
            members["usage"] = self._usage()
        return self._chunk(members)

    def _chunk(self, members: Json) -> Data:
        return Data(sse.event(_encode({**self._envelope("chat.completion.chunk"), **members})))

    def _whole(self) -> Json:
        usage = {} if self._model.usage == "never" else {"usage": self._usage()}
        choices = [self._choice(index) for index in range(self._request.n)]
        return {**self._envelope("chat.completion"), "choices": choices, **usage}

    def _choice(self, index: int) -> Json:
        text = "".join(self._answer.pieces)
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if self._answer.function:
            message |= {"content": None, "tool_calls": [self._call(index, text)]}
        return {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": self._answer.finish_reason,
        }

    def _call(self, index: int, arguments: str) -> Json:
        return {
            "id": f"call_{self._name}_{index}",
            "type": "function",
            "function": {"name": self._answer.function, "arguments": arguments},
        }

    def _envelope(self, kind: str) -> Json:
        asked = self._request.service_tier
        tier = {"service_tier": "default" if asked == "auto" else asked} if asked else {}
        return {
            "id": f"chatcmpl-{self._name}",
            "object": kind,
            "created": CREATED,
            "model": self._request.model,
            "system_fingerprint": FINGERPRINT,
            **tier,
        }

    def _usage(self) -> Json:
        prompt = self._request.prompt_tokens
        reasoned = self._reasoned * self._request.n
        completion = len(self._answer.pieces) * self._request.n + reasoned
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {
                "cached_tokens": prompt // 2 if self._model.caches else 0,
                "audio_tokens": 0,
            },
            "completion_tokens_details": {
                "reasoning_tokens": reasoned,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


# -- embeddings -----------------------------------------------------------------------------------


def _embed(body: bytes) -> Iterable[Action]:
    request = read_embeddings(body)
    if _find(request.model).kind != "embedding":
        raise Refused(403, "You are not allowed to generate embeddings from this model")
    data = []
    for index, text in enumerate(request.inputs):
        vector = _unit_vector(text, request.dimensions)
        packed = struct.pack(f"<{len(vector)}f", *vector)
        embedding = b64encode(packed).decode() if request.base64 else vector
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    tokens = request.prompt_tokens
    return _json_answer(
        {
            "object": "list",
            "data": data,
            "model": request.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _unit_vector(text: bytes, dimensions: int) -> list[float]:
    """A direction drawn from the hash of `text`; equal texts, and only they, have equal ones."""
    drawn = hashlib.shake_256(text).digest(4 * dimensions)
    direction = struct.unpack(f"<{dimensions}i", drawn)
    length = math.sqrt(sum(part * part for part in direction))
    return [part / length for part in direction]

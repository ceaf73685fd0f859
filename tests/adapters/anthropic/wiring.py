"""Requests, streams and readers that the tests of this protocol share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

import anthropic
import httpx2
from anthropic.types import Message

from adapters.anthropic.downstream import MessagesDownstream
from adapters.anthropic.upstream import MessagesUpstream
from adapters.anthropic.writer import MessagesWriter
from adapters.canonical import Event, Prompt, Text, Turn
from adapters.catalogue import Provider
from adapters.codec import Ask, Made, Request, StreamRelay, Target
from adapters.envelope import Envelopes

ENVELOPES = Envelopes(b"s" * 32, "account")
PROVIDER = Provider("anthropic", "anthropic", "https://api.anthropic.com")
MADE = Made("other", "other-model", input_tokens=11)
MODEL = "claude-opus-4-8"
OLD_MODEL = "claude-sonnet-4-5"
ASK: dict[str, object] = {
    "model": "m",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hi"}],
}


class Sent(TypedDict, total=False):
    """A Messages request as it goes out: what tests look at."""

    model: str
    max_tokens: int
    system: object
    messages: list[dict[str, object]]
    tools: list[dict[str, object]]
    tool_choice: dict[str, object]
    thinking: dict[str, object]
    output_config: dict[str, object]
    temperature: float
    top_p: float
    stop_sequences: list[str]
    metadata: dict[str, str]
    service_tier: str
    stream: bool


def decoded(headers: Mapping[bytes, bytes] | None = None, /, **members: object) -> Request:
    """A request of a client; `members` replace those of a small one."""
    body = json.dumps({**ASK, **members}).encode()
    return MessagesDownstream().decode(body, Ask(headers=headers or {}))


def prompt_of(**members: object) -> Prompt:
    """The same as a prompt."""
    return MessagesDownstream().prompt(decoded(**members), ENVELOPES)


def target(model: str = MODEL, cap: int = 1000, *, stream: bool = True) -> Target:
    return Target(PROVIDER, model, cap, stream)


def said(*texts: str) -> tuple[Turn, ...]:
    """Turns of a user and an assistant, in turn."""
    return tuple(
        Turn(role="assistant" if at % 2 else "user", parts=(Text(text=text),))
        for at, text in enumerate(texts)
    )


def encoded(prompt: Prompt, model: str = MODEL, cap: int = 1000) -> tuple[Sent, tuple[str, ...]]:
    """A prompt as the provider gets it, and what was lost."""
    found = MessagesUpstream().encode(prompt, target(model, cap))
    body: Sent = json.loads(found.body)
    return body, found.dropped


# -- streams --------------------------------------------------------------------------------------


def stream_of(*events: Mapping[str, object]) -> bytes:
    """What a provider sends."""
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), json.dumps(event).encode())
        for event in events
    )


def message_start(**usage: object) -> dict[str, object]:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x"}
    counts = {"input_tokens": 10, "output_tokens": 1, **usage}
    ends: dict[str, object] = {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": counts,
    }
    return {"type": "message_start", "message": message | ends}


def block(
    index: int, kind: Mapping[str, object], *deltas: Mapping[str, object]
) -> list[dict[str, object]]:
    """A content block from its start to its stop."""
    return [
        {"type": "content_block_start", "index": index, "content_block": kind},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def text_block(index: int, *texts: str) -> list[dict[str, object]]:
    deltas = [{"type": "text_delta", "text": text} for text in texts]
    return block(index, {"type": "text", "text": ""}, *deltas)


def message_end(reason: str = "end_turn", **usage: object) -> list[dict[str, object]]:
    delta = {"stop_reason": reason, "stop_sequence": None}
    counts = {"output_tokens": 7, **usage}
    return [
        {"type": "message_delta", "delta": delta, "usage": counts},
        {"type": "message_stop"},
    ]


def relayed(relay: StreamRelay, pieces: Iterable[bytes]) -> bytes:
    """All that the client gets of a stream that arrives in `pieces`."""
    out = b"".join([relay.feed(piece) for piece in pieces])
    if not relay.ended:
        out += relay.close()
    return out if relay.failure is not None else out + relay.terminal


# -- answers --------------------------------------------------------------------------------------


def writer(*, stream: bool = True) -> MessagesWriter:
    return MessagesWriter(decoded(stream=stream), ENVELOPES, MADE)


def written(events: Sequence[Event]) -> bytes:
    """Canonical events as a client's stream."""
    out = writer()
    return b"".join([out.write(event) for event in events])


def whole(events: Sequence[Event]) -> dict[str, object]:
    """Canonical events as a client's plain answer."""
    out = writer(stream=False)
    for event in events:
        out.write(event)
    found: dict[str, object] = json.loads(out.whole())
    return found


def events_in(stream: bytes) -> list[dict[str, object]]:
    """The events of a stream; each must carry its name."""
    found = []
    for raw in stream.decode().split("\n\n")[:-1]:
        name, data = raw.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def understood(stream: bytes) -> Message:
    """What the official SDK accumulates from a stream."""
    head = {"content-type": "text/event-stream"}

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers=head, content=stream)

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    with anthropic.Anthropic(api_key="k", http_client=http, max_retries=0) as client:
        messages = client.messages
        with messages.stream(
            model="m", max_tokens=1, messages=[{"role": "user", "content": "Hi"}]
        ) as found:
            return found.get_final_message()

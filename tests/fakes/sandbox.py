"""Plays the scripts of `adapters.sandbox` without a server, and keeps what came out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from adapters import sandbox, sse

AUTHORIZED = {b"authorization": b"Bearer sandbox"}
ANTHROPIC = {b"x-api-key": b"sandbox", b"anthropic-version": b"2023-06-01"}
GEMINI = {b"x-goog-api-key": b"sandbox"}
HELLO: list[dict[str, object]] = [{"role": "user", "content": "Hello, gateway!"}]

Json = dict[str, object]


def an_object(value: object) -> Json:
    """A value that has to be a JSON object."""
    assert isinstance(value, dict)
    return value


def objects(value: object) -> list[Json]:
    """A value that has to be a list of JSON objects."""
    assert isinstance(value, list)
    return [an_object(each) for each in value]


@dataclass
class Played:
    """One answer as its client saw it.

    `end` is how it ended: `whole`, `spoilt`, `cut`, `reset` or `hang`.
    """

    status: int
    headers: dict[str, str]
    parts: list[bytes] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    end: str = "whole"

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def json(self) -> Json:
        return an_object(json.loads(self.body))

    @property
    def events(self) -> list[bytes]:
        """The payloads of a stream's events."""
        return [sse.data_of(event) for event in sse.Splitter().feed(self.body)]

    @property
    def chunks(self) -> list[Json]:
        """The events of a Chat stream that ended well, without its `[DONE]`."""
        *chunks, done = self.events
        assert done == b"[DONE]"
        return [json.loads(chunk) for chunk in chunks]

    @property
    def named(self) -> list[Json]:
        """The events of a stream that names them, by the names in their JSON."""
        found = [an_object(json.loads(data)) for data in self.events]
        names = re.findall(rb"^event: (.+)$", self.body, re.MULTILINE)
        assert [name.decode() for name in names] == [event["type"] for event in found]
        return found


def play(script: Iterable[sandbox.Action]) -> Played:
    """Run a script to its end."""
    actions = iter(script)
    head = next(actions)
    assert isinstance(head, sandbox.Head)
    played = Played(head.status, dict(head.headers))
    for action in actions:
        match action:
            case sandbox.Data(data):
                played.parts.append(data)
            case sandbox.Pause(seconds):
                played.pauses.append(seconds)
            case sandbox.Cut():
                played.end = "cut"
            case sandbox.Reset():
                played.end = "reset"
            case sandbox.Spoilt():
                played.end = "spoilt"
            case sandbox.Hang():
                played.end = "hang"
            case sandbox.Head():
                raise AssertionError("a second head")
    return played


def post(path: str, body: bytes) -> Played:
    """POST something to OpenAI, with a key."""
    return ask(path, AUTHORIZED, body)


def ask(path: str, headers: dict[bytes, bytes], body: bytes, method: str = "POST") -> Played:
    """Ask with headers of one's own."""
    return play(sandbox.respond(method, path, headers, body))


def chat(model: str, **fields: object) -> Played:
    """POST a chat completion; without `messages` it says hello."""
    body = {"model": model, "messages": HELLO, **fields}
    return post("/v1/chat/completions", json.dumps(body).encode())


def responses(model: str, **fields: object) -> Played:
    """POST a response; without `input` it says hello."""
    body = {"model": model, "input": "Hello, gateway!", **fields}
    return post("/v1/responses", json.dumps(body).encode())


def messages(model: str, **fields: object) -> Played:
    """POST a message to Anthropic; without `messages` it says hello."""
    body = {"model": model, "max_tokens": 4096, "messages": HELLO, **fields}
    return ask("/v1/messages", ANTHROPIC, json.dumps(body).encode())


def generate(model: str, *, stream: object = False, **fields: object) -> Played:
    """Have Gemini generate content; without `contents` it says hello."""
    body = {"contents": [{"role": "user", "parts": [{"text": "Hello, gateway!"}]}], **fields}
    action = "streamGenerateContent?alt=sse" if stream else "generateContent"
    return ask(f"/v1beta/models/{model}:{action}", GEMINI, json.dumps(body).encode())

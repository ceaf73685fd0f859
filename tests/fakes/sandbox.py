"""Plays the scripts of `adapters.sandbox` without a server, and keeps what came out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from adapters import sandbox, sse

AUTHORIZED = {b"authorization": b"Bearer sandbox"}
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
    """One answer as its client saw it. `end` is how it ended: `whole`, `cut` or `hang`."""

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
        """The events of a stream that ended well, without its `[DONE]`."""
        *chunks, done = self.events
        assert done == b"[DONE]"
        return [json.loads(chunk) for chunk in chunks]


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
            case sandbox.Hang():
                played.end = "hang"
            case sandbox.Head():
                raise AssertionError("a second head")
    return played


def post(path: str, body: bytes) -> Played:
    """POST something, with a key."""
    return play(sandbox.respond("POST", path, AUTHORIZED, body))


def chat(model: str, **fields: object) -> Played:
    """POST a chat completion; without `messages` it says hello."""
    body = {"model": model, "messages": HELLO, **fields}
    return post("/v1/chat/completions", json.dumps(body).encode())

"""How an answer is played: its parts in order, with the model's pauses and accidents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from adapters.sandbox.answer import Answer, Part
from adapters.sandbox.models import Accident, Break, Model
from adapters.sandbox.script import Action, Cut, Data, Hang, Head, Pause, Reset, Spoilt

_BROKEN_BODY = b"Service temporarily unavailable"
_STOPPING: frozenset[Accident] = frozenset(("cut", "reset", "hang", "unended"))


class Rendering(Protocol):
    """One answer in one protocol: whole, and event by event. Each event is bytes of its own."""

    stream_type: str
    headers: Sequence[tuple[str, str]]

    def whole(self) -> bytes:
        """The body of the plain answer."""
        ...

    def failed(self) -> bytes:
        """The body of a plain answer that is an error after all."""
        ...

    def opening(self) -> Iterable[bytes]:
        """What comes before the first part."""
        ...

    def begun(self, part: Part) -> Iterable[bytes]:
        """A part begins."""
        ...

    def piece(self, part: Part, piece: str) -> Iterable[bytes]:
        """The next piece of that part."""
        ...

    def ended(self, part: Part) -> Iterable[bytes]:
        """That part is whole."""
        ...

    def closing(self) -> Iterable[bytes]:
        """The answer is whole."""
        ...

    def error(self, *, overloaded: bool) -> Iterable[bytes]:
        """The answer ends with an error."""
        ...

    def broken(self) -> bytes:
        """An event that cannot be read."""
        ...


def perform(
    rendering: Rendering, model: Model, answer: Answer, *, stream: bool
) -> Iterator[Action]:
    """The script of an answer."""
    kind = rendering.stream_type if stream else "application/json"
    yield Head(200, [("content-type", kind), *rendering.headers])
    if model.head_seconds:
        yield Pause(model.head_seconds)  # servers send a head with the first bytes of the body
    play = _streamed if stream else _plain
    yield from play(rendering, model, answer)


def _plain(rendering: Rendering, model: Model, answer: Answer) -> Iterator[Action]:
    if seconds := model.first_seconds + max(0, answer.tokens - 1) * model.delta_seconds:
        yield Pause(seconds)
    breaks = model.breaks
    if breaks is None:
        yield Data(rendering.whole())
    elif breaks.how in _STOPPING:
        body = rendering.whole()
        if not breaks.at_once:
            yield Data(body[: min(len(body) * breaks.percent // 100, len(body) - 1)])
        yield _stop(breaks.how)
    else:
        yield Data(_BROKEN_BODY if breaks.how == "malformed" else rendering.failed())
        yield Spoilt()


def _streamed(rendering: Rendering, model: Model, answer: Answer) -> Iterator[Action]:
    breaks = model.breaks
    if breaks is None:
        yield from map(Data, rendering.opening())
        yield from _parts(rendering, model, answer, answer.tokens)
        yield from map(Data, rendering.closing())
        return
    if not breaks.at_once:
        yield from map(Data, rendering.opening())
    yield from _parts(rendering, model, answer, answer.tokens * breaks.percent // 100)
    yield from _accident(rendering, breaks)


def _parts(rendering: Rendering, model: Model, answer: Answer, count: int) -> Iterator[Action]:
    """The first `count` pieces; a part that they do not finish stays open."""
    pause = model.first_seconds
    for part in answer.parts:
        if count <= 0:
            return
        yield from map(Data, rendering.begun(part))
        for piece in part.pieces[:count]:
            if pause:
                yield Pause(pause)
            pause = model.delta_seconds
            yield from map(Data, rendering.piece(part, piece))
        if count < len(part.pieces):
            return
        count -= len(part.pieces)
        yield from map(Data, rendering.ended(part))


def _accident(rendering: Rendering, breaks: Break) -> Iterator[Action]:
    if breaks.how in _STOPPING:
        yield _stop(breaks.how)
        return
    if breaks.how == "malformed":
        yield Data(rendering.broken())
    else:
        yield from map(Data, rendering.error(overloaded=breaks.how == "overloaded"))
    yield Spoilt()


def _stop(how: Accident) -> Action:
    match how:
        case "cut":
            return Cut()
        case "reset":
            return Reset()
        case "hang":
            return Hang()
        case _:
            return Spoilt()

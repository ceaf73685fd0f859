"""What may follow what in an answer, and the one builder of such sequences.

`GRAMMAR` is the whole of it. Providers are less orderly: blocks interleave, calls have no end,
reasons to stop contradict what was sent, streams break off. A reader tells a `Composer` what it
saw, in the provider's own order and under the provider's own keys; what comes out of `take` obeys
these rules by construction, whichever protocol it was:

1. Blocks follow one another: one is closed before the next is opened. What arrives for a later
   block waits (bounded) until the one before it is complete; then it comes out in one go.
2. Indexes count from 0 without gaps; each block is closed exactly once.
3. An answer ends with exactly one `Finish`, or with a failure and nothing after it.
4. An upstream that ends without its own last word has failed (`truncated`).
5. Every call has an id, unique in the answer and safe in every protocol.
6. No text has half a character in it: where an upstream cuts between the two halves of a
   surrogate pair, the first one waits for the second.
7. A call in the answer makes `tool_calls` of a plain end, and no call makes a plain end of
   `tool_calls`: agents act on the reason.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from secrets import token_hex
from types import MappingProxyType

import msgspec

from adapters.canonical import (
    BlobKind,
    BlockKind,
    Citation,
    Close,
    Delta,
    Event,
    Finish,
    FinishReason,
    Logprob,
    Meta,
    Open,
    Start,
    Usage,
    Used,
)
from adapters.characters import REPLACEMENT, joined, whole
from adapters.codec import Counted, Expected, FailureKind, UpstreamFailure
from adapters.estimate import counted_tokens
from adapters.names import safe_id
from adapters.nesting import Nesting

WAITING_BYTES_MAX = 16 * 1024 * 1024

_WAITING_BYTES = 128  # what anything that waits takes beside its text
_CALLS = ("call", "free_call")


class State(enum.Enum):
    """Where an answer stands."""

    IDLE = "idle"
    BETWEEN = "between"  # begun, and no block is open
    INSIDE = "inside"  # a block
    ENDED = "ended"


GRAMMAR: Mapping[tuple[State, type], State] = MappingProxyType(
    {
        (State.IDLE, Start): State.BETWEEN,
        (State.BETWEEN, Open): State.INSIDE,
        (State.BETWEEN, Used): State.BETWEEN,
        (State.BETWEEN, Finish): State.ENDED,
        (State.INSIDE, Delta): State.INSIDE,
        (State.INSIDE, Meta): State.INSIDE,
        (State.INSIDE, Used): State.INSIDE,
        (State.INSIDE, Close): State.BETWEEN,
    }
)


class _Block:
    """One block: open, or waiting with all that arrived for it."""

    __slots__ = ("closed", "half", "implicit", "key", "nesting", "opening", "waiting")

    def __init__(self, key: Hashable, opening: Open, *, implicit: bool) -> None:
        self.key = key
        self.opening = opening
        self.implicit = implicit  # it ends without being closed
        self.closed = False
        self.half = ""  # of a character, at the end of its text
        self.nesting = Nesting() if implicit and opening.kind == "call" else None
        self.waiting: list[str | Meta] = []

    @property
    def complete(self) -> bool:
        """Whether another block may follow."""
        if self.nesting is None:
            return self.closed or self.implicit
        return self.closed or self.nesting.complete


class Composer:
    """Builds the events of one answer. A block is named by any `key` of the reader's.

    In most protocols a block ends when the upstream says so. In Chat Completions nothing does:

    - Text is told with `run`, and ends where anything else begins.
    - A call is opened as `implicit`. It ends when something else has begun *and* its arguments are
      complete JSON; until then the other thing waits, for fragments of several calls may
      interleave. A call without arguments yet is not complete: two calls may be named before the
      arguments of either come. What waits longest waits for the end of the answer, never in vain.
    """

    __slots__ = (
        "_block",
        "_by_key",
        "_calls",
        "_events",
        "_id",
        "_ids",
        "_index",
        "_reason",
        "_settled",
        "_waiting",
        "_waiting_bytes",
        "failure",
        "state",
    )

    def __init__(self) -> None:
        self.state = State.IDLE
        self.failure: UpstreamFailure | None = None
        self._events: list[Event] = []
        self._index = -1  # of the block that was opened last
        self._block: _Block | None = None  # the open one
        self._waiting: deque[_Block] = deque()  # in their order
        self._by_key: dict[Hashable, _Block] = {}  # those waiting that are not closed
        self._waiting_bytes = 0
        self._settled: set[Hashable] = set()  # implicit blocks that were ended by what followed
        self._calls = 0
        self._reason: Finish | None = None
        self._id = ""  # of the answer
        self._ids: set[str] = set()  # of its calls

    # -- what the reader tells --------------------------------------------------------------------

    def start(self, id: str = "", model: str = "", usage: Usage | None = None) -> None:  # noqa: A002
        """The answer begins. Said again, it is ignored: some servers repeat their first chunk."""
        if self.state is State.IDLE:
            self._id = whole(id)
            self._emit(Start(self._id, whole(model), usage))

    def open(
        self,
        key: Hashable,
        kind: BlockKind,
        id: str = "",  # noqa: A002
        name: str = "",
        *,
        implicit: bool = False,
    ) -> None:
        """Block `key` begins; it waits while another is open. A block of the same key ends."""
        if self.ended:
            return
        self.start()
        if kind in _CALLS:
            id = self._id_of_call(id)  # noqa: A001
        if self.knows(key):
            self.close(key)
        self._queue(_Block(key, Open(-1, kind, id, whole(name)), implicit=implicit))

    def delta(self, key: Hashable, text: str) -> None:
        """More of block `key`."""
        if not text:
            return
        block = self._block
        if block is not None and block.key == key:
            self._say(block, text)
            if self._waiting:
                self._advance()
        elif (later := self._by_key.get(key)) is not None:
            self._hold(later, text)
        elif not (key in self._settled and text.isspace()):
            self._stray()

    def more(self, key: Hashable, text: str) -> bool:
        """More of block `key`, if that is the open one; False where it is not."""
        block = self._block
        if block is None or self._waiting or block.key != key:
            return False
        self._say(block, text)
        return True

    def meta(
        self,
        key: Hashable,
        *,
        signature: str = "",
        kind: BlobKind = "thinking",
        citation: Citation | None = None,
        logprobs: tuple[Logprob, ...] = (),
    ) -> None:
        """A fact about block `key`."""
        block = self._block
        if citation is not None:
            citation = Citation(whole(citation.url), whole(citation.title))
        event = Meta(self._index, whole(signature), kind, citation, tuple(map(_whole, logprobs)))
        if block is not None and block.key == key:
            self._emit(event)
        elif (later := self._by_key.get(key)) is not None:
            self._hold(later, event)
        elif key not in self._settled:  # a call that was taken for complete has no place for it
            self._stray()

    def close(self, key: Hashable) -> None:
        """Block `key` is complete. Closing what is not open is nothing."""
        block = self._block
        if block is not None and block.key == key:
            block.closed = True
            self._advance()
        elif (later := self._by_key.pop(key, None)) is not None:
            later.closed = True

    def run(self, kind: BlockKind, text: str) -> Hashable:
        """Text of `kind` in a protocol without blocks: it continues the last run of its kind, or
        ends whatever was open and begins a new one. Returns the key of the run.

        An implicit call that is not complete is not ended: the run waits.
        """
        if not text or self.ended:
            return None
        last = self._block
        if self._waiting:
            last = self._waiting[-1]
        elif last is not None and last.opening.kind == kind:  # the open one, as it mostly is
            self._say(last, text)
            return last.key
        if last is None or last.opening.kind != kind or last.closed:
            self.start()
            self._close_explicit()
            last = _Block(object(), Open(-1, kind), implicit=True)
            self._queue(last)
        self.delta(last.key, text)
        return last.key

    def close_all(self) -> None:
        """Whatever is open or waits is complete."""
        for block in self._waiting:
            block.closed = True
        self._by_key.clear()
        if self._block is not None:
            self._block.closed = True
            self._advance()

    def used(self, usage: Usage) -> None:
        """The usage up to now."""
        if not self.ended:
            self.start()
            self._emit(Used(usage))

    def reason(self, reason: FinishReason, stop_sequence: str = "", detail: str = "") -> None:
        """Why the answer ends; `finish` says when. The first reason stays."""
        if self._reason is None:
            self._reason = Finish(reason, whole(stop_sequence), whole(detail))

    def finish(self) -> None:
        """The upstream said its last word. Without a reason before it, that is a failure."""
        if self.ended:
            return
        if self._reason is None:
            self.fail("truncated", "The stream ended before the answer did.")
            return
        self.start()
        self.close_all()
        self._emit(msgspec.structs.replace(self._reason, reason=self._corrected(self._reason)))

    def fail(self, kind: FailureKind, message: str, failure: UpstreamFailure | None = None) -> None:
        """The answer is broken; what was taken down before stays."""
        if not self.ended:
            self.failure = failure or UpstreamFailure(kind, message)
            self.state = State.ENDED
            self._block = None
            self._waiting.clear()
            self._by_key.clear()

    # -- what the reader is asked -----------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether nothing more can come: a finish, or a failure."""
        return self.state is State.ENDED

    @property
    def has_reason(self) -> bool:
        """Whether the answer has said why it ends."""
        return self._reason is not None

    @property
    def open_key(self) -> Hashable:
        """The key of the open block, None where none is."""
        return None if self._block is None else self._block.key

    @property
    def open_kind(self) -> BlockKind | None:
        """The kind of the open block, None where none is."""
        return None if self._block is None else self._block.opening.kind

    def knows(self, key: Hashable) -> bool:
        """Whether block `key` is open or waits, and was not closed."""
        return (self._block is not None and self._block.key == key) or key in self._by_key

    def take(self) -> list[Event]:
        """The events since the last time."""
        events, self._events = self._events, []
        return events

    # -- inside -----------------------------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        state = GRAMMAR.get((self.state, type(event)))
        assert state is not None, f"{type(event).__name__} in state {self.state}"
        self.state = state
        self._events.append(event)

    def _say(self, block: _Block, text: str) -> None:
        """Text of the open block. Past the grammar's table, as most events come through here."""
        if block.half or not text.isascii():
            text, block.half = joined(block.half, text)
            if not text:
                return
        self._events.append(Delta(self._index, text))
        if block.nesting is not None:
            block.nesting.feed(text)

    def _queue(self, block: _Block) -> None:
        """A new block: it is opened at once if it can be."""
        self._waiting.append(block)
        self._by_key[block.key] = block
        self._count_waiting(_WAITING_BYTES)
        self._advance()

    def _hold(self, block: _Block, what: str | Meta) -> None:
        """Keep what arrived for a block that waits."""
        block.waiting.append(what)
        self._count_waiting(_size(what))

    def _count_waiting(self, size: int) -> None:
        self._waiting_bytes += size
        if self._waiting_bytes > WAITING_BYTES_MAX:
            self.fail("protocol", "Blocks of the answer overlap for too long.")

    def _stray(self) -> None:
        self.fail("protocol", "The answer goes on with a block that is not open.")

    def _close_explicit(self) -> None:
        """Whatever would not end by itself is complete."""
        for block in self._waiting:
            if not block.implicit:
                block.closed = True
                self._by_key.pop(block.key, None)
        if self._block is not None and not self._block.implicit:
            self._block.closed = True
        self._advance()

    def _advance(self) -> None:
        """End the open block if it is over, and open those that waited, as far as possible."""
        while True:
            block = self._block
            if block is not None and (block.closed or (self._waiting and block.complete)):
                self._end(block)
            elif block is None and self._waiting:
                self._begin(self._waiting.popleft())
            else:
                return

    def _begin(self, block: _Block) -> None:
        self._index += 1
        self._block = block
        if not block.closed:
            del self._by_key[block.key]
        self._waiting_bytes -= _WAITING_BYTES
        opening = block.opening
        if opening.kind in _CALLS:
            self._calls += 1
        self._emit(msgspec.structs.replace(opening, index=self._index))
        for what in block.waiting:
            self._waiting_bytes -= _size(what)
            if isinstance(what, str):
                self._say(block, what)
            else:
                self._emit(msgspec.structs.replace(what, index=self._index))
        block.waiting.clear()

    def _end(self, block: _Block) -> None:
        self._block = None
        if block.half:
            self._emit(Delta(self._index, REPLACEMENT))
        if not block.closed:
            self._settled.add(block.key)
        self._emit(Close(self._index))

    def _id_of_call(self, given: str) -> str:
        """An id that every client accepts, and no other call of this answer has."""
        number = len(self._ids)
        chosen = safe_id(given) if given else safe_id(f"{self._id or token_hex(8)}:{number}")
        if chosen in self._ids:
            chosen = safe_id(f"{chosen}:{number}")
        self._ids.add(chosen)
        return chosen

    def _corrected(self, finish: Finish) -> FinishReason:
        if self._calls and finish.reason in ("end", "stop_sequence", "pause"):
            return "tool_calls"
        if not self._calls and finish.reason == "tool_calls":
            return "end"
        return finish.reason


def _whole(logprob: Logprob) -> Logprob:
    if logprob.token.isascii() and all(token.isascii() for token, _ in logprob.top):
        return logprob
    top = tuple((whole(token), value) for token, value in logprob.top)
    return Logprob(whole(logprob.token), logprob.logprob, top)


def _size(waiting: str | Meta) -> int:
    """What something that waits is counted as."""
    if isinstance(waiting, str):
        return len(waiting) + _WAITING_BYTES
    return len(waiting.signature) + _WAITING_BYTES * (1 + len(waiting.logprobs))


class Meter:
    """What an answer has consumed so far, from its events.

    Our own count, for answers without the provider's: a token for every four bytes of text, and at
    least one for every delta. Text is content, refusal, reasoning, and names and arguments of
    calls, as UTF-8. `silent`: the request wanted no output at all. `open_index` is that of the open
    block, -1 where none is.
    """

    __slots__ = (
        "_deltas",
        "_done",
        "_opened",
        "_pieces",
        "_silent",
        "_text_bytes",
        "_usage",
        "_withheld",
        "open_index",
    )

    def __init__(self, pieces: Mapping[str, int], *, silent: bool = False) -> None:
        self._deltas = 0
        self._opened = 0  # calls: content even without arguments
        self._text_bytes = 0
        self._pieces = pieces
        self._silent = silent
        self._usage: Usage | None = None
        self._done = False
        self._withheld = False
        self.open_index = -1

    @property
    def has_content(self) -> bool:
        """Whether something came that the caller would miss."""
        return bool(self._deltas or self._opened)

    @property
    def empty(self) -> bool:
        """Whether a complete answer is none: no output, and no tokens spent without any."""
        spent = self._usage is not None and self._usage.output_tokens > 0
        return not (self.has_content or spent or self._withheld or self._silent)

    def read(self, event: Event) -> None:
        """Count one event."""
        kind = type(event)
        if kind is Delta:
            self._deltas += 1
            self._text_bytes += _utf8_bytes(event.text)  # type: ignore[union-attr] # it is a Delta
        elif kind is Used:
            self._usage = event.usage  # type: ignore[union-attr] # it is a Used
        elif isinstance(event, Open):
            self.open_index = event.index
            if event.name:
                self._opened += 1
                self._text_bytes += _utf8_bytes(event.name)
        elif isinstance(event, Close):
            self.open_index = -1
        elif isinstance(event, Start):
            self._usage = event.usage or self._usage
        elif isinstance(event, Finish):
            self._done = True
            self._withheld = event.reason in ("content_filter", "refusal")

    def has_room(self, events: Iterable[Event], output_tokens: int) -> bool:
        """Whether `events` would keep the output at `output_tokens` or less.

        What says nothing has room at any time, so that figures alone never cut an answer.
        """
        said = [event for event in events if isinstance(event, Delta | Open)]
        if not said:
            return True
        texts = [event.text if isinstance(event, Delta) else event.name for event in said]
        deltas = self._deltas + sum(isinstance(event, Delta) for event in said)
        told = 0 if self._usage is None else self._usage.output_tokens
        counted = counted_tokens(self._text_bytes + sum(map(_utf8_bytes, texts)))
        return max(told, deltas, counted) <= output_tokens

    def read_on(self, events: Iterable[Event]) -> None:
        """Events that no client gets, of which nothing but the figures count."""
        for event in events:
            if isinstance(event, Used | Finish):
                self.read(event)

    @property
    def output_tokens(self) -> int:
        """The output to settle with."""
        told = 0 if self._usage is None else self._usage.output_tokens
        said = max(self._deltas, counted_tokens(self._text_bytes))
        return completed_output(told, said, whole=self._done)

    def counted(self, expected: Expected) -> Counted:
        """What to settle with."""
        told = self._usage or Usage()
        usage, estimated = completed(told, self.output_tokens, expected)
        pieces = {**self._pieces, **usage.pieces}
        return Counted(msgspec.structs.replace(usage, pieces=pieces), estimated)


def nothing_expected() -> Usage:
    """The `codec.Expected` of those who ask for the output alone."""
    return Usage()


def cut_at(counted: Counted, output_tokens: int) -> Counted:
    """What is owed for an answer that was cut at `output_tokens`.

    What its provider has produced behind the cut before it noticed is told in its figures, but
    nobody got it.
    """
    usage = counted.usage
    output = min(usage.output_tokens, output_tokens)
    reasoning = min(usage.reasoning_tokens, output)
    audio = min(usage.audio_output_tokens, output - reasoning)
    usage = msgspec.structs.replace(
        usage, output_tokens=output, reasoning_tokens=reasoning, audio_output_tokens=audio
    )
    return Counted(usage, counted.estimated)


def completed_output(told: int, counted: int, *, whole: bool) -> int:
    """The output that an answer is settled with, from the provider's figure and our own count.

    A figure that came before the end of an answer that was cut may be a placeholder or a part:
    output is then at least what we counted. A zero is no figure, at no time: nothing is written
    out of nothing. `whole`: the figure is of the whole answer, so that one below ours is right.
    """
    return told if told and whole else max(told, counted)


def completed(told: Usage, output_tokens: int, expected: Expected) -> tuple[Usage, bool]:
    """Usage with its `completed_output`, and with the input that was to be expected where the
    provider told none; and whether any of that was needed."""
    if told.input_tokens:
        if output_tokens == told.output_tokens:
            return told, False
        return msgspec.structs.replace(told, output_tokens=output_tokens), True
    probable = expected()
    usage = msgspec.structs.replace(
        told,
        input_tokens=probable.input_tokens,
        audio_input_tokens=probable.audio_input_tokens,
        output_tokens=output_tokens,
    )
    return usage, usage != told


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))

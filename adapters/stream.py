"""What may follow what in an answer, and the one builder of such sequences.

`GRAMMAR` is the whole of it. Providers are less orderly: blocks interleave, calls have no end,
reasons to stop contradict what was sent, streams break off. A reader tells a `Composer` what it
saw, in the provider's own order and under the provider's own keys; what comes out of `take` obeys
these rules by construction, whichever protocol it was:

1. Blocks follow one another: one is closed before the next is opened. What arrives for a later
   block waits (bounded) until the one before it is complete.
2. Indexes count from 0 without gaps; each block is closed exactly once.
3. An answer ends with exactly one `Finish`, or with a failure and nothing after it.
4. An upstream that ends without its own last word has failed (`truncated`).
5. Every call has an id, unique in the answer and safe in every protocol.
6. A call in the answer makes `tool_calls` of a plain end, and no call makes a plain end of
   `tool_calls`: agents act on the reason.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Mapping
from secrets import token_hex
from types import MappingProxyType
from typing import NamedTuple

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
from adapters.codec import Counted, FailureKind, UpstreamFailure
from adapters.estimate import counted_tokens
from adapters.names import safe_id

WAITING_BYTES_MAX = 16 * 1024 * 1024


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


class _Waiting(NamedTuple):
    """A block that has to wait, and all that arrived for it."""

    open: Open
    events: list[Delta | Meta]


class Composer:
    """Builds the events of one answer. A block is named by any `key` of the reader's."""

    __slots__ = (
        "_calls",
        "_closed",
        "_events",
        "_finished",
        "_id",
        "_ids",
        "_index",
        "_key",
        "_kind",
        "_reason",
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
        self._key: Hashable = None  # of the open block
        self._kind: BlockKind | None = None
        self._calls = 0
        self._reason: Finish | None = None
        self._waiting: dict[Hashable, _Waiting] = {}
        self._waiting_bytes = 0
        self._closed: set[Hashable] = set()  # blocks that were closed while they waited
        self._finished = False
        self._id = ""  # of the answer
        self._ids: set[str] = set()  # of its calls

    # -- what the reader tells --------------------------------------------------------------------

    def start(self, id: str = "", model: str = "", usage: Usage | None = None) -> None:  # noqa: A002
        """The answer begins. Said again, it is ignored: some servers repeat their first chunk."""
        if self.state is State.IDLE:
            self._id = id
            self._emit(Start(id, model, usage))

    def open(self, key: Hashable, kind: BlockKind, id: str = "", name: str = "") -> None:  # noqa: A002
        """Block `key` begins; it waits while another is open."""
        if self._ended():
            return
        self.start()
        if kind in ("call", "free_call"):
            id = self._id_of_call(id)  # noqa: A001
        block = Open(-1, kind, id, name)
        if self.state is State.INSIDE or self._waiting:
            self._waiting[key] = _Waiting(block, [])
        else:
            self._begin(key, block)

    def delta(self, key: Hashable, text: str) -> None:
        """More of block `key`."""
        if text:
            self._inside(key, Delta(-1, text), len(text))

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
        self._inside(key, Meta(-1, signature, kind, citation, logprobs), len(signature))

    def close(self, key: Hashable) -> None:
        """Block `key` is complete. Closing what is not open is nothing."""
        if self.state is State.INSIDE and key == self._key:
            self._emit(Close(self._index))
            self._next()
        elif key in self._waiting:
            self._closed.add(key)

    def run(self, kind: BlockKind, text: str) -> None:
        """Text of `kind` in a protocol without blocks: it continues the last run of its kind, or
        ends whatever was open and begins a new one."""
        if not text or self._ended():
            return
        if self.state is not State.INSIDE or self._kind is not kind:
            self.close_all()
            self.open((kind, self._index + 1), kind)
        self.delta(self._key, text)

    def close_all(self) -> None:
        """Whatever is open or waits is complete."""
        self._closed.update(self._waiting)
        while self.state is State.INSIDE:
            self.close(self._key)

    def used(self, usage: Usage) -> None:
        """The usage up to now."""
        if not self._ended():
            self.start()
            self._emit(Used(usage))

    def reason(self, reason: FinishReason, stop_sequence: str = "", detail: str = "") -> None:
        """Why the answer ends; `finish` says when. The first reason stays."""
        if self._reason is None:
            self._reason = Finish(reason, stop_sequence, detail)

    def finish(self) -> None:
        """The upstream said its last word. Without a reason before it, that is a failure."""
        if self._ended():
            return
        if self._reason is None:
            self.fail("truncated", "The stream ended before the answer did.")
            return
        self.start()
        self.close_all()
        self._emit(msgspec.structs.replace(self._reason, reason=self._corrected()))

    def fail(self, kind: FailureKind, message: str, failure: UpstreamFailure | None = None) -> None:
        """The answer is broken; what was taken down before stays."""
        if not self._ended():
            self.failure = failure or UpstreamFailure(kind, message)
            self._finished = True

    # -- what the reader is asked -----------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether nothing more can come: a finish, or a failure."""
        return self._ended()

    @property
    def has_reason(self) -> bool:
        """Whether the answer has said why it ends."""
        return self._reason is not None

    @property
    def open_key(self) -> Hashable:
        """The key of the open block, None where none is."""
        return self._key if self.state is State.INSIDE else None

    @property
    def open_kind(self) -> BlockKind | None:
        """The kind of the open block, None where none is."""
        return self._kind if self.state is State.INSIDE else None

    def knows(self, key: Hashable) -> bool:
        """Whether block `key` is open or waits."""
        return (self.state is State.INSIDE and key == self._key) or key in self._waiting

    def take(self) -> list[Event]:
        """The events since the last time."""
        events, self._events = self._events, []
        return events

    # -- inside -----------------------------------------------------------------------------------

    def _ended(self) -> bool:
        return self._finished or self.state is State.ENDED

    def _emit(self, event: Event) -> None:
        state = GRAMMAR.get((self.state, type(event)))
        assert state is not None, f"{type(event).__name__} in state {self.state}"
        self.state = state
        self._events.append(event)

    def _begin(self, key: Hashable, block: Open) -> None:
        self._index += 1
        self._key, self._kind = key, block.kind
        if block.kind in ("call", "free_call"):
            self._calls += 1
        self._emit(Open(self._index, block.kind, block.id, block.name))

    def _id_of_call(self, given: str) -> str:
        """An id that every client accepts, and no other call of this answer has."""
        number = len(self._ids)
        chosen = safe_id(given) if given else safe_id(f"{self._id or token_hex(8)}:{number}")
        if chosen in self._ids:
            chosen = safe_id(f"{chosen}:{number}")
        self._ids.add(chosen)
        return chosen

    def _inside(self, key: Hashable, event: Delta | Meta, size: int) -> None:
        if self._ended():
            return
        if self.state is State.INSIDE and key == self._key:
            self._emit(self._numbered(event))
        elif (waiting := self._waiting.get(key)) is not None:
            self._waiting_bytes += size
            if self._waiting_bytes > WAITING_BYTES_MAX:
                self.fail("protocol", "Blocks of the answer overlap for too long.")
            else:
                waiting.events.append(event)
        else:
            self.fail("protocol", "The answer goes on with a block that is not open.")

    def _next(self) -> None:
        """A block was closed: the one that has waited longest follows, whole if it is complete."""
        self._key, self._kind = None, None
        if not self._waiting:
            return
        key = next(iter(self._waiting))
        block, events = self._waiting.pop(key)
        self._begin(key, block)
        for event in events:
            self._emit(self._numbered(event))
            self._waiting_bytes -= len(event.text if isinstance(event, Delta) else event.signature)
        if key in self._closed:
            self._closed.discard(key)
            self.close(key)

    def _numbered(self, event: Delta | Meta) -> Event:
        if isinstance(event, Delta):
            return Delta(self._index, event.text)
        return msgspec.structs.replace(event, index=self._index)

    def _corrected(self) -> FinishReason:
        assert self._reason is not None, "finish asked"
        reason = self._reason.reason
        if self._calls and reason in ("end", "stop_sequence", "pause"):
            return "tool_calls"
        if not self._calls and reason == "tool_calls":
            return "end"
        return reason


class Meter:
    """What an answer has consumed so far, from its events.

    Our own count, for answers without the provider's: a token for every four bytes of text, and at
    least one for every delta. Text is content, refusal, reasoning, and names and arguments of
    calls, as UTF-8.
    """

    __slots__ = ("_deltas", "_done", "_opened", "_pieces", "_text_bytes", "_usage", "_withheld")

    def __init__(self, pieces: Mapping[str, int]) -> None:
        self._deltas = 0
        self._opened = 0  # calls: content even without arguments
        self._text_bytes = 0
        self._pieces = pieces
        self._usage: Usage | None = None
        self._done = False
        self._withheld = False

    @property
    def has_content(self) -> bool:
        """Whether something came that the caller would miss."""
        return bool(self._deltas or self._opened)

    @property
    def empty(self) -> bool:
        """Whether a complete answer is none: no output, and no tokens spent without any."""
        spent = self._usage is not None and self._usage.output_tokens > 0
        return not (self.has_content or spent or self._withheld)

    def read(self, event: Event) -> None:
        """Count one event."""
        kind = type(event)
        if kind is Delta:
            self._deltas += 1
            text = event.text  # type: ignore[union-attr] # it is a Delta
            self._text_bytes += len(text) if text.isascii() else len(text.encode(errors="replace"))
        elif kind is Used:
            self._usage = event.usage  # type: ignore[union-attr] # it is a Used
        elif isinstance(event, Open):
            if event.name:
                self._opened += 1
                self._text_bytes += len(event.name.encode())
        elif isinstance(event, Start):
            self._usage = event.usage or self._usage
        elif isinstance(event, Finish):
            self._done = True
            self._withheld = event.reason in ("content_filter", "refusal")

    def counted(self, input_text_bytes: int) -> Counted:
        """What to settle with.

        Usage that came before the end of an answer that was cut may be a placeholder or a part:
        output is then at least what we counted.
        """
        tokens = max(self._deltas, counted_tokens(self._text_bytes))
        usage = self._usage
        if usage is None:
            usage = Usage(input_tokens=counted_tokens(input_text_bytes), output_tokens=tokens)
            estimated = True
        else:
            estimated = not self._done and usage.output_tokens < tokens
            if estimated:
                usage = msgspec.structs.replace(usage, output_tokens=tokens)
        pieces = {**self._pieces, **usage.pieces}
        return Counted(msgspec.structs.replace(usage, pieces=pieces), estimated)

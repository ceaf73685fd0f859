"""A Responses provider's answer, streamed or whole, as canonical events.

Servers of this protocol differ in how much of the life cycle they send: some only what is done,
some only deltas, some an empty output at the end. So everything is believed once, wherever it comes
first: deltas, then what a `done` event has beyond them, then an item beyond its events, and at last
the items of the final response that were never seen. A whole answer is just that last step.

Items may overlap; their blocks are named by output index and place, and the composer puts them in
order. What only a tool of the provider's did (web searches, code, images) is no block; for a client
that gets it unread, on an answer that passes, it is content all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from adapters import sse
from adapters.canonical import BlockKind, Citation, FinishReason
from adapters.codec import FailureKind, UpstreamFailure
from adapters.errors import UpstreamProtocolViolation
from adapters.openai.failure import read_error_object
from adapters.openai.responses_answer import (
    UNREADABLE,
    Answer,
    AnswerEvent,
    AnswerItem,
    AnswerPart,
    arguments_of,
    code_of,
    is_search,
    logprobs_of,
    number,
    part_of,
    read_answer,
    read_event,
    read_item,
    searches_in,
    string,
)
from adapters.openai.responses_tools import SEARCH_NAME
from adapters.openai.responses_wire import read_usage
from adapters.stream import Composer, State

_INCOMPLETE: Mapping[object, FinishReason] = {
    "max_output_tokens": "length",
    "content_filter": "content_filter",
}
# What a response's error code says, where the general table of codes says nothing.
_KIND_BY_CODE: Mapping[object, FailureKind] = {
    "bio_policy": "content_filter",
    "image_content_policy_violation": "content_filter",
    "invalid_prompt": "bad_request",
    "misalignment_policy_violation": "content_filter",
}
_BAD_IMAGE = "image"
_SEARCH_ITEM = "web_search_call"
_IMAGE_ITEM = "image_generation_call"
_READ_ITEMS = frozenset({"message", "reasoning", "function_call", "custom_tool_call"})

Key = tuple[int, str, int]


class ResponsesReader:
    """Reads one answer, that passes or is translated. Implements `codec.Reader`."""

    __slots__ = (
        "_images",
        "_passing",
        "_refused",
        "_searches",
        "_seen",
        "_sent",
        "_thought",
        "composer",
    )

    def __init__(self, *, passing: bool = False) -> None:
        self.composer = Composer()
        self._passing = passing
        self._sent: dict[Key, int] = {}  # characters of each text that have gone on
        self._thought: dict[int, tuple[str, int]] = {}  # the reasoning text of an item that is read
        self._seen: dict[int, str] = {}  # items by output index: their types
        self._refused = False
        self._searches = 0
        self._images = 0

    def read(self, data: bytes) -> None:
        if self.composer.state is State.ENDED or data.startswith(b"[DONE]"):
            return
        try:
            event = read_event(data)
            type_ = event.type
            read = _READERS.get(type_) if isinstance(type_, str) else None
            if read is not None:
                read(self, event, number(event.output_index))
            elif type_ == "error":
                self._failed(event.error or msgspec.Raw(data))
        except UNREADABLE:
            self.composer.fail("protocol", "The answer is not a stream of response events.")

    def plain(self, body: bytes) -> None:
        if body.startswith((b"event:", b"data:")):
            self._plain_stream(body)  # some servers stream whatever was asked
            return
        try:
            response = read_answer(body)
        except UNREADABLE:
            response = Answer()
        if response.output is None and response.status is None and not response.error:
            self.composer.fail("protocol", "The answer is not a response object.")
            return
        try:
            self._terminal(response)
        except UNREADABLE:
            self.composer.fail("protocol", "The answer has items that are none.")

    def close(self) -> None:
        self.composer.finish()

    def _plain_stream(self, body: bytes) -> None:
        splitter = sse.Splitter()
        try:
            events = [*splitter.feed(body), splitter.close()]
        except UpstreamProtocolViolation as violation:
            self.composer.fail("protocol", str(violation))
            return
        for event in events:
            if payload := sse.data_of(event):
                self.read(payload)
        self.close()

    # -- texts ------------------------------------------------------------------------------------

    def _output_text(self, event: AnswerEvent, index: int) -> None:
        key = (index, "text", number(event.content_index))
        self._add(key, "text", event.delta)
        if len(event.logprobs) > len(b"[]"):
            self._logprobs(key, event.logprobs)

    def _output_text_done(self, event: AnswerEvent, index: int) -> None:
        self._rest((index, "text", number(event.content_index)), "text", event.text)

    def _refusal(self, event: AnswerEvent, index: int) -> None:
        self._refused = True
        self._add((index, "refusal", number(event.content_index)), "refusal", event.delta)

    def _refusal_done(self, event: AnswerEvent, index: int) -> None:
        self._refused = True
        self._rest((index, "refusal", number(event.content_index)), "refusal", event.refusal)

    def _annotation(self, event: AnswerEvent, index: int) -> None:
        self._cite((index, "text", number(event.content_index)), event.annotation)

    def _part_done(self, event: AnswerEvent, index: int) -> None:
        part = part_of(event.part)
        if part is not None:
            self._part(index, number(event.content_index), part)

    def _part(self, index: int, place: int, part: AnswerPart) -> None:
        """A part of a message that is complete."""
        if part.type == "output_text":
            key = (index, "text", place)
            new = key not in self._sent
            self._rest(key, "text", part.text)
            if new:  # what was streamed has had its annotations
                for annotation in part.annotations or ():
                    self._cite(key, annotation)
                self._logprobs(key, part.logprobs)
            self.composer.close(key)
        elif part.type == "refusal":
            self._refused = True
            key = (index, "refusal", place)
            self._rest(key, "refusal", part.refusal)
            self.composer.close(key)

    # -- reasoning --------------------------------------------------------------------------------

    def _summary(self, event: AnswerEvent, index: int) -> None:
        self._think(index, "summary", number(event.summary_index), event.delta, whole=False)

    def _summary_done(self, event: AnswerEvent, index: int) -> None:
        self._think(index, "summary", number(event.summary_index), event.text, whole=True)

    def _reasoning_text(self, event: AnswerEvent, index: int) -> None:
        self._think(index, "text", number(event.content_index), event.delta, whole=False)

    def _reasoning_text_done(self, event: AnswerEvent, index: int) -> None:
        self._think(index, "text", number(event.content_index), event.text, whole=True)

    def _think(self, index: int, form: str, place: int, text: object, *, whole: bool) -> None:
        """Summaries of one item are one block. An item that has both summary and full text is
        read in the form that comes first."""
        if not isinstance(text, str) or not text:
            return
        known, last = self._thought.setdefault(index, (form, place))
        if known != form:
            return
        counter = (index, f"reasoning {form}", place)
        sent = self._sent.get(counter, 0)
        piece = text[sent:] if whole else text
        if not piece:
            return
        self._sent[counter] = sent + len(piece)
        if place != last:
            self._thought[index] = (form, place)
            piece = f"\n\n{piece}"
        key = (index, "reasoning", 0)
        if self._ensure(key, "thinking"):
            self.composer.delta(key, piece)

    # -- calls ------------------------------------------------------------------------------------

    def _arguments(self, event: AnswerEvent, index: int) -> None:
        self._grow((index, "call", 0), event.delta)

    def _arguments_done(self, event: AnswerEvent, index: int) -> None:
        self._grow_to((index, "call", 0), event.arguments)

    def _input_done(self, event: AnswerEvent, index: int) -> None:
        self._grow_to((index, "call", 0), event.input)

    def _grow(self, key: Key, piece: object) -> None:
        if not isinstance(piece, str) or not piece:
            return
        if self.composer.more(key, piece):
            self._sent[key] += len(piece)
        elif self.composer.knows(key):
            self._sent[key] += len(piece)
            self.composer.delta(key, piece)

    def _grow_to(self, key: Key, whole: object) -> None:
        """What the whole has beyond the pieces that came."""
        if isinstance(whole, str) and key in self._sent:
            self._grow(key, whole[self._sent[key] :])

    # -- items ------------------------------------------------------------------------------------

    def _item_added(self, event: AnswerEvent, index: int) -> None:
        if not event.item:
            return
        item = read_item(event.item)
        self._see(index, item)
        self._open_call(index, item)

    def _item_done(self, event: AnswerEvent, index: int) -> None:
        if event.item:
            self._item(index, read_item(event.item))

    def _item(self, index: int, item: AnswerItem) -> None:
        """An item that is complete, whatever was seen of it before."""
        self._see(index, item)
        if item.type == "message":
            for place, part in enumerate(item.content or ()):
                self._part(index, place, part)
        elif item.type == "reasoning":
            self._reasoning_item(index, item)
        elif self._open_call(index, item):
            key = (index, "call", 0)
            self._grow_to(key, arguments_of(item))
            self.composer.close(key)
        elif item.type == _SEARCH_ITEM:
            self._searches += is_search(item)
        elif item.type == _IMAGE_ITEM:
            self._images += 1

    def _reasoning_item(self, index: int, item: AnswerItem) -> None:
        for form, parts in (("summary", item.summary), ("text", item.content)):
            for place, part in enumerate(parts or ()):
                self._think(index, form, place, part.text, whole=True)
        key = (index, "reasoning", 0)
        if string(item.encrypted_content) and self._ensure(key, "thinking"):
            self.composer.meta(key, signature=string(item.encrypted_content), kind="reasoning")
        self.composer.close(key)

    def _open_call(self, index: int, item: AnswerItem) -> bool:
        """Begin the block of a call, once; False for other items."""
        key = (index, "call", 0)
        if item.type == "function_call":
            kind: BlockKind = "call"
            name = item.name
        elif item.type == "custom_tool_call":
            kind, name = "free_call", item.name
        elif item.type == "tool_search_call" and item.execution == "client":
            kind, name = "call", SEARCH_NAME
        else:
            return False
        if key not in self._sent:
            self._sent[key] = 0
            self.composer.open(key, kind, string(item.call_id or item.id), string(name))
        return True

    def _see(self, index: int, item: AnswerItem) -> None:
        new = index not in self._seen
        kind = self._seen[index] = string(item.type)
        if new and self._passing and kind not in _READ_ITEMS:
            self._add((index, "opaque", 0), "text", " ")  # content that only the provider can count
            self.composer.close((index, "opaque", 0))

    # -- the response -----------------------------------------------------------------------------

    def _begun(self, event: AnswerEvent, _: int) -> None:
        if event.response:
            response = read_answer(event.response)
            self.composer.start(string(response.id), string(response.model))

    def _ended(self, event: AnswerEvent, _: int) -> None:
        response = read_answer(event.response) if event.response else Answer()
        # The event's name is the truth; some servers leave the status as it was.
        response.status = string(event.type).removeprefix("response.")
        self._terminal(response)

    def _terminal(self, response: Answer) -> None:
        """The last word: what the response has beyond all that was seen, and its end."""
        composer = self.composer
        if response.error and self._failed(response.error):
            return
        if response.status in ("failed", "cancelled", "queued", "in_progress"):
            composer.fail("server_error", f"The response is {response.status}.")
            return
        composer.start(string(response.id), string(response.model))
        self._recover(response.output or [])
        tier = string(response.service_tier)
        usage = read_usage(response.usage, self._pieces(response.tool_usage), tier)
        if usage is not None:
            composer.used(usage)
        composer.reason(self._reason(response))
        composer.finish()

    def _recover(self, output: list[msgspec.Raw]) -> None:
        """Items that came only with the response. Ids may differ there, and indexes have gaps; so
        the first ones of each type are those that were seen."""
        counts: dict[str, int] = {}
        for type_ in self._seen.values():
            counts[type_] = counts.get(type_, 0) + 1
        index = max(self._seen, default=-1)
        for raw in output:
            item = read_item(raw)
            type_ = string(item.type)
            if counts.get(type_, 0) > 0:
                counts[type_] -= 1
            else:
                index += 1
                self._item(index, item)

    def _reason(self, response: Answer) -> FinishReason:
        if response.status == "incomplete":
            details = response.incomplete_details
            return _INCOMPLETE.get(details.reason if details is not None else None, "end")
        calls = any(key[1] == "call" for key in self._sent)
        return "refusal" if self._refused and not calls else "end"

    def _pieces(self, tool_usage: msgspec.Raw) -> dict[str, int]:
        """What tools of the provider did, as it says or as was seen."""
        counts = {
            "web_search": searches_in(tool_usage) or self._searches,
            "image": self._images,
        }
        return {piece: count for piece, count in counts.items() if count > 0}

    def _failed(self, raw: msgspec.Raw) -> bool:
        """Take down an error object; False where it is null."""
        failure = read_error_object(raw)
        if failure is None:
            return False
        failure = _with_kind(failure, code_of(raw))
        self.composer.fail(failure.kind, failure.message, failure)
        return True

    # -- inside -----------------------------------------------------------------------------------

    def _ensure(self, key: Key, kind: BlockKind) -> bool:
        """Begin a block with its first content: one without any is none. False where it is closed
        already."""
        if key not in self._sent:
            self._sent[key] = 0
            self.composer.open(key, kind)
            return True
        return self.composer.knows(key)

    def _add(self, key: Key, kind: BlockKind, piece: object) -> None:
        if not isinstance(piece, str) or not piece:
            return
        if self.composer.more(key, piece):
            self._sent[key] += len(piece)
        elif self._ensure(key, kind):
            self._sent[key] += len(piece)
            self.composer.delta(key, piece)

    def _rest(self, key: Key, kind: BlockKind, whole: object) -> None:
        """What the whole has beyond the pieces that came."""
        if isinstance(whole, str):
            self._add(key, kind, whole[self._sent.get(key, 0) :])

    def _cite(self, key: Key, raw: msgspec.Raw) -> None:
        annotation = part_of(raw)
        url = string(annotation.url) if annotation is not None else ""
        if annotation is not None and url and self.composer.knows(key):
            self.composer.meta(key, citation=Citation(url, string(annotation.title)))

    def _logprobs(self, key: Key, raw: msgspec.Raw) -> None:
        found = logprobs_of(raw)
        if found and self.composer.knows(key):
            self.composer.meta(key, logprobs=found)


_READERS: Mapping[str, Callable[[ResponsesReader, AnswerEvent, int], None]] = {
    "response.created": ResponsesReader._begun,
    "response.queued": ResponsesReader._begun,
    "response.in_progress": ResponsesReader._begun,
    "response.output_item.added": ResponsesReader._item_added,
    "response.output_item.done": ResponsesReader._item_done,
    "response.output_text.delta": ResponsesReader._output_text,
    "response.output_text.done": ResponsesReader._output_text_done,
    "response.output_text.annotation.added": ResponsesReader._annotation,
    "response.refusal.delta": ResponsesReader._refusal,
    "response.refusal.done": ResponsesReader._refusal_done,
    "response.content_part.done": ResponsesReader._part_done,
    "response.reasoning_summary_text.delta": ResponsesReader._summary,
    "response.reasoning_summary_text.done": ResponsesReader._summary_done,
    "response.reasoning_text.delta": ResponsesReader._reasoning_text,
    "response.reasoning_text.done": ResponsesReader._reasoning_text_done,
    "response.function_call_arguments.delta": ResponsesReader._arguments,
    "response.function_call_arguments.done": ResponsesReader._arguments_done,
    "response.custom_tool_call_input.delta": ResponsesReader._arguments,
    "response.custom_tool_call_input.done": ResponsesReader._input_done,
    "response.completed": ResponsesReader._ended,
    "response.incomplete": ResponsesReader._ended,
    "response.failed": ResponsesReader._ended,
}


def _with_kind(failure: UpstreamFailure, code: str) -> UpstreamFailure:
    if failure.kind != "server_error":
        return failure
    kind = _KIND_BY_CODE.get(code) or ("bad_request" if _BAD_IMAGE in code else failure.kind)
    return UpstreamFailure(kind, failure.message, failure.status, failure.param)

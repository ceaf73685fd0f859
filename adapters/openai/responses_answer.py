"""What is read of a Responses answer: its events, its items, and the response itself.

Members that are not named here are skipped. Leaves whose type differs between servers are `object`
and looked at where they are used. What is only nice to have (citations, probabilities) is absent
where it has another form; what an answer cannot do without raises one of `UNREADABLE`.
"""

from __future__ import annotations

import json
from typing import TypeVar

import msgspec

from adapters.canonical import Logprob
from adapters.openai.responses_wire import without_halves

UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)

T = TypeVar("T")

_ABSENT = msgspec.Raw()


class AnswerEvent(msgspec.Struct, gc=False):
    """One event of a stream. Leaves whose type differs between servers are looked at where they
    are used."""

    type: object = None
    output_index: object = 0
    content_index: object = 0
    summary_index: object = 0
    delta: object = None
    text: object = None
    refusal: object = None
    arguments: object = None
    input: object = None
    item: msgspec.Raw = _ABSENT
    part: msgspec.Raw = _ABSENT
    annotation: msgspec.Raw = _ABSENT
    logprobs: msgspec.Raw = _ABSENT
    response: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT


class AnswerPart(msgspec.Struct, gc=False):
    """A part of a message, of a summary or of reasoning; or an annotation of one."""

    type: object = None
    text: object = None
    refusal: object = None
    annotations: list[msgspec.Raw] | None = None
    logprobs: msgspec.Raw = _ABSENT
    url: object = None
    title: object = None


class _Action(msgspec.Struct, gc=False):
    type: object = None


class AnswerItem(msgspec.Struct, gc=False):
    type: object = None
    id: object = None
    call_id: object = None
    name: object = None
    arguments: msgspec.Raw = _ABSENT
    input: object = None
    execution: object = None
    content: list[AnswerPart] | None = None
    summary: list[AnswerPart] | None = None
    encrypted_content: object = None
    action: msgspec.Raw = _ABSENT


class _Reason(msgspec.Struct, gc=False):
    reason: object = None


class _WebSearch(msgspec.Struct, gc=False):
    num_requests: int | None = None


class _ToolUsage(msgspec.Struct, gc=False):
    web_search: _WebSearch | None = None


class Answer(msgspec.Struct, gc=False):
    id: object = None
    model: object = None
    status: object = None
    error: msgspec.Raw = _ABSENT
    incomplete_details: _Reason | None = None
    output: list[msgspec.Raw] | None = None
    usage: msgspec.Raw = _ABSENT
    tool_usage: msgspec.Raw = _ABSENT
    service_tier: object = None


class _Code(msgspec.Struct, gc=False):
    code: object = None


class _TopLogprob(msgspec.Struct, gc=False):
    token: str = ""
    logprob: float = 0.0


class _Logprob(_TopLogprob, gc=False):
    top_logprobs: list[_TopLogprob] | None = None


read_item = msgspec.json.Decoder(AnswerItem).decode
read_answer = msgspec.json.Decoder(Answer).decode
_decode_event = msgspec.json.Decoder(AnswerEvent).decode
_decode_string = msgspec.json.Decoder(str).decode
_PART = msgspec.json.Decoder(AnswerPart | None)
_ACTION = msgspec.json.Decoder(_Action | None)
_TOOL_USAGE = msgspec.json.Decoder(_ToolUsage | None)
_CODE = msgspec.json.Decoder(_Code | None)
_LOGPROBS = msgspec.json.Decoder(list[_Logprob] | None)


def read_event(data: bytes) -> AnswerEvent:
    """An event. Halves of characters, which only Python's own parser reads, can be put together
    again in deltas; elsewhere they get a stand-in."""
    try:
        return _decode_event(data)
    except UNREADABLE:
        event = _decode_event(without_halves(data))
        event.delta = json.loads(data).get("delta")
        return event


def part_of(raw: msgspec.Raw) -> AnswerPart | None:
    """A part, or an annotation."""
    return _leniently(_PART, raw)


def is_search(item: AnswerItem) -> bool:
    """Whether a call of the provider's web search searched, rather than opened a page."""
    action = _leniently(_ACTION, item.action)
    return action is None or action.type == "search"


def searches_in(tool_usage: msgspec.Raw) -> int:
    """How many web searches the provider says to have made; 0 where it does not say."""
    reported = _leniently(_TOOL_USAGE, tool_usage)
    searches = reported.web_search if reported is not None else None
    return (searches.num_requests or 0) if searches is not None else 0


def code_of(error: msgspec.Raw) -> str:
    """The code of an error object."""
    found = _leniently(_CODE, error)
    return string(found.code) if found is not None else ""


def logprobs_of(raw: msgspec.Raw) -> tuple[Logprob, ...]:
    """Probabilities of tokens."""
    return tuple(_logprob(each) for each in _leniently(_LOGPROBS, raw) or ())


def arguments_of(item: AnswerItem) -> str:
    """A call's arguments: text, or (for a search of tools) the object itself as text."""
    if item.type == "custom_tool_call":
        return string(item.input)
    if not item.arguments:
        return ""
    try:
        return _decode_string(item.arguments)
    except UNREADABLE:
        return bytes(item.arguments).decode(errors="replace")


def number(value: object) -> int:
    """An index; 0 for anything else."""
    return value if isinstance(value, int) else 0


def string(value: object) -> str:
    """A text; empty for anything else."""
    return value if isinstance(value, str) else ""


def _logprob(found: _Logprob) -> Logprob:
    top = tuple((each.token, each.logprob) for each in found.top_logprobs or ())
    return Logprob(found.token, found.logprob, top)


def _leniently(decoder: msgspec.json.Decoder[T], raw: msgspec.Raw) -> T | None:
    try:
        return decoder.decode(raw) if raw else None
    except UNREADABLE:
        return None

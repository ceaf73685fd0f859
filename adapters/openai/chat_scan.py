"""What a Chat Completions body may cost, and whether it is one: read once, when it arrives.

Media is found by the type of its part alone, as the provider does: other members may be there to
deceive. What cannot be read is bounded by its bytes and by the window, and refused later on.

Some clients (Cursor) send bodies of other protocols to this path: Responses items as `input`, or
Anthropic's blocks and tools inside messages. Those are `foreign`: understood, never passed on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from adapters.codec import Scan
from adapters.envelope import MARKS
from adapters.media import audio_tokens, document_tokens, image_tokens, may_be_no_image
from adapters.openai import responses_scan
from adapters.openai.body import Fields
from adapters.raw import UNREADABLE, begins, count_items, hides_words

_TEXT_TYPES = frozenset(
    {"text", "refusal", "input_text", "output_text", "tool_use", "thinking", "redacted_thinking"}
)
_LONG_TTLS = ("1h", "12h", "24h")
# By these, compatible providers search or plug in something else on their own.
_HOSTED = frozenset({"plugins", "search_parameters", "enable_search", "web_search"})
_HOSTED_PASSES = 10
_CACHED_CONTENT = (b"cached_content", b"cachedContent")  # Google's, by its id
_RENDERED = ("messages", "tools", "functions")
_CLIENT_TOOLS = (None, "function", "custom")
_NULL = msgspec.Raw(b"null")
_ABSENT = msgspec.Raw()


class Scanned(NamedTuple):
    """What a body may cost; `foreign`: it is not quite of this protocol."""

    scan: Scan
    foreign: bool


class _Message(msgspec.Struct, gc=False):
    content: msgspec.Raw = _NULL
    reasoning_details: msgspec.Raw = _ABSENT
    tool_calls: msgspec.Raw = _ABSENT
    audio: msgspec.Raw = _ABSENT
    cache_control: msgspec.Raw = _ABSENT


class _Part(msgspec.Struct, gc=False):
    type: object = None
    image_url: msgspec.Raw = _ABSENT
    input_audio: msgspec.Raw = _ABSENT
    file: msgspec.Raw = _ABSENT
    source: msgspec.Raw = _ABSENT
    content: msgspec.Raw = _ABSENT
    signature: msgspec.Raw = _ABSENT
    cache_control: msgspec.Raw = _ABSENT
    prompt_cache_breakpoint: msgspec.Raw = _ABSENT


class _File(msgspec.Struct, gc=False):
    file_data: object = None
    file_id: object = None


class _Tool(msgspec.Struct, gc=False):
    type: object = None
    name: object = None
    function: msgspec.Raw = _ABSENT
    custom: msgspec.Raw = _ABSENT
    cache_control: msgspec.Raw = _ABSENT


class _CacheMark(msgspec.Struct, gc=False):
    ttl: object = None


_decode_messages = msgspec.json.Decoder(list[_Message]).decode
_decode_parts = msgspec.json.Decoder(list[_Part]).decode
_decode_raw_parts = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_part = msgspec.json.Decoder(_Part).decode
_decode_file = msgspec.json.Decoder(_File).decode
_decode_tools = msgspec.json.Decoder(list[_Tool]).decode
_decode_cache_mark = msgspec.json.Decoder(_CacheMark).decode
_decode_text = msgspec.json.Decoder(str).decode


def scanned(fields: Fields) -> Scanned:
    """What `fields` may cost. Never raises."""
    if "messages" not in fields:
        return Scanned(responses_scan.scanned(fields, None), foreign=True)
    found = _Found()
    _scan_messages(found, fields["messages"])
    tools = _scan_tools(found, fields.get("tools")) + count_items(fields.get("functions"))
    text_bytes = sum([len(fields[name]) for name in _RENDERED if name in fields])
    scan = Scan(
        text_bytes=text_bytes - found.media_bytes,
        media_bytes=found.media_bytes,
        media_tokens=found.media_tokens,
        audio=found.audio or "audio" in fields or "modalities" in fields,
        hidden=found.hidden or _brings_more(fields),
        tools=tools,
        passes=1 + _HOSTED_PASSES * found.hosted,
        predicted_tokens=len(fields["prediction"]) if "prediction" in fields else 0,
        long_cache=found.long_cache or _keeps_long(fields),
        signed=found.signed,
    )
    return Scanned(scan, found.foreign)


class _Found:
    """What is in a body beside text. `media_bytes` is its share of the body."""

    __slots__ = (
        "audio",
        "foreign",
        "hidden",
        "hosted",
        "long_cache",
        "media_bytes",
        "media_tokens",
        "signed",
    )

    def __init__(self) -> None:
        self.media_bytes = 0
        self.media_tokens = 0
        self.audio = False
        self.foreign = False
        self.hidden = False  # something that only the provider can see
        self.hosted = False  # tools that the provider runs
        self.long_cache = False
        self.signed = False

    def add_media(self, size: int, tokens: int) -> None:
        self.media_bytes += size
        self.media_tokens += tokens


def _scan_messages(found: _Found, messages: msgspec.Raw) -> None:
    try:
        for message in _decode_messages(messages):
            if message.audio and _is_given(message.audio):  # an earlier answer, by its id
                found.audio = found.hidden = True
            if message.cache_control:
                _note_cache_mark(found, message.cache_control)
            for raw in (message.reasoning_details, message.tool_calls):
                if raw and MARKS[0] in bytes(raw):
                    found.signed = True
            if begins(message.content, b"["):
                _scan_parts(found, message.content)
    except UNREADABLE:
        found.hidden = found.signed = True


def _scan_parts(found: _Found, parts: msgspec.Raw, *, inside_result: bool = False) -> None:
    for part in _parts_of(parts):
        _note_cache_mark(found, part.cache_control)
        _note_cache_mark(found, part.prompt_cache_breakpoint)
        if isinstance(part.type, str) and part.type in _TEXT_TYPES:
            # Mistral has parts of type `thinking`, too, but does not sign them.
            if part.type in ("tool_use", "redacted_thinking") or part.signature:
                found.foreign = found.signed = True
        elif part.type == "tool_result" and not inside_result:
            found.foreign = True
            if begins(part.content, b"["):
                _scan_parts(found, part.content, inside_result=True)
        else:
            _add_media(found, part)


def _parts_of(parts: msgspec.Raw) -> Iterable[_Part]:
    """All parts in one reading; else those before the one that cannot be read, which raises."""
    try:
        return _decode_parts(parts)
    except UNREADABLE:
        return map(_decode_part, _decode_raw_parts(parts))


def _add_media(found: _Found, part: _Part) -> None:
    if part.type in ("image_url", "input_image"):
        found.add_media(len(part.image_url), image_tokens())
        if may_be_no_image(part.image_url):
            found.hidden = found.audio = True
    elif part.type == "image":
        found.add_media(len(part.source), image_tokens())
        found.foreign = True
    elif part.type == "input_audio":
        size = len(part.input_audio)
        found.add_media(size, audio_tokens(size))
        found.audio = True
    elif part.type == "file" and _is_inline(part.file):
        found.add_media(len(part.file), document_tokens(len(part.file)))
    else:
        found.add_media(len(part.file) + len(part.source), 0)
        found.hidden = True
        found.foreign = found.foreign or part.type == "document"


def _is_inline(file: msgspec.Raw) -> bool:
    """Whether all of a file is here; an id of one may stand beside that, and win."""
    try:
        given = _decode_file(file)
    except UNREADABLE:
        return False
    return isinstance(given.file_data, str) and given.file_id is None


def _scan_tools(found: _Found, tools: msgspec.Raw | None) -> int:
    """How many tools there are."""
    if tools is None:
        return 0
    try:
        declared = _decode_tools(tools)
    except UNREADABLE:
        return count_items(tools)
    for tool in declared:
        _note_cache_mark(found, tool.cache_control)
        # Ours are wrapped in their type; a name of its own is how the others begin.
        if tool.name is not None and not tool.function and not tool.custom:
            found.foreign = True
        elif not (tool.function or tool.custom or tool.type in _CLIENT_TOOLS):
            found.hosted = True
    return len(declared)


def _brings_more(fields: Fields) -> bool:
    """Whether the provider is asked to add input of its own."""
    hosted = _HOSTED.intersection(fields)
    if any(_is_given(fields[name]) for name in hosted):
        return True
    if "extra_body" not in fields:
        return False
    extra = bytes(fields["extra_body"])
    return any(mark in extra for mark in _CACHED_CONTENT) or hides_words(extra)


def _note_cache_mark(found: _Found, mark: msgspec.Raw) -> None:
    if mark and _is_given(mark):
        found.long_cache = found.long_cache or _is_long(mark)


def _is_long(mark: msgspec.Raw) -> bool:
    try:
        return _decode_cache_mark(mark).ttl in _LONG_TTLS
    except UNREADABLE:
        return False


def _keeps_long(fields: Fields) -> bool:
    """Whether the request as a whole asks to be cached for long."""
    options, retention = fields.get("prompt_cache_options"), fields.get("prompt_cache_retention")
    if options is not None and _is_long(options):
        return True
    try:
        return retention is not None and _decode_text(retention) in _LONG_TTLS
    except UNREADABLE:
        return False


def _is_given(raw: msgspec.Raw) -> bool:
    return bytes(memoryview(raw)[:5]) != b"null"

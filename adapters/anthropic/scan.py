"""What a Messages body may cost: read once, when it arrives.

Media is found by the type of its block alone, as the provider does: other members may be there to
deceive. What cannot be read is bounded by its bytes and by the window, and refused later on.
"""

from __future__ import annotations

import re

import msgspec

from adapters.codec import Scan
from adapters.envelope import MARKS
from adapters.media import document_tokens, image_tokens
from adapters.openai.body import Fields
from adapters.raw import UNREADABLE, begins, count_items, hides_words

PASSES_DEFAULT = 10  # how often a tool of the provider may run where no limit is given
PASSES_MAX = 100  # no request is served with more, whatever it says

_BUILT_IN_TOKENS = 2_000  # what the provider renders for a tool that it describes itself
_TEXT_TYPES = frozenset({"text", "tool_use", "tool_reference", "browser_state"})
_HOSTED = re.compile(
    r"(web_search|web_fetch|code_execution|tool_search_tool\w*|advisor|mcp_toolset)(?:_\d{8})?"
)
_RENDERED = ("system", "messages", "tools", "mcp_servers")
# Members of a body in which only the provider can see what is meant.
_BY_REFERENCE = ("container", "thread", "mcp_servers")
# A beta that widens the window of models with a smaller one.
_LONG_CONTEXT, _LONG_CONTEXT_TOKENS = b"context-1m", 1_000_000
_LONG_TTL = re.compile(rb'"ttl"\s*:\s*"1h"')
_SCANNED = ("messages", "system")  # whose blocks are looked at one by one
_UNSIGNED = b'""'
_ABSENT = msgspec.Raw()
_NULL = msgspec.Raw(b"null")


class _Message(msgspec.Struct, gc=False):
    content: msgspec.Raw = _NULL


class _Block(msgspec.Struct, gc=False):
    type: object = None
    source: msgspec.Raw = _ABSENT
    content: msgspec.Raw = _NULL
    cache_control: msgspec.Raw = _ABSENT
    signature: msgspec.Raw = _ABSENT
    data: msgspec.Raw = _ABSENT


class _Source(msgspec.Struct, gc=False):
    type: object = None
    data: msgspec.Raw = _ABSENT
    content: msgspec.Raw = _NULL


class _Tool(msgspec.Struct, gc=False):
    type: object = None
    max_uses: object = None


_decode_messages = msgspec.json.Decoder(list[_Message]).decode
_decode_blocks = msgspec.json.Decoder(list[_Block]).decode
_decode_source = msgspec.json.Decoder(_Source).decode
_decode_tools = msgspec.json.Decoder(list[_Tool]).decode


class _Found:
    """What is in a body beside text. `media_bytes` is its share of the body."""

    __slots__ = (
        "hidden",
        "long_cache",
        "media_bytes",
        "media_tokens",
        "passes",
        "searches",
        "signed",
    )

    def __init__(self) -> None:
        self.media_bytes = 0
        self.media_tokens = 0
        self.hidden = False  # something that only the provider can see
        self.long_cache = False
        self.passes = 1
        self.searches = 0
        self.signed = False


def scanned(fields: Fields, betas: bytes = b"") -> Scan:
    """What `fields` may cost, with the betas that the client asks for. Never raises."""
    found = _Found()
    _scan_messages(found, fields.get("messages", _NULL))
    _scan_system(found, fields.get("system", _NULL))
    tools = _scan_tools(found, fields.get("tools"))
    found.hidden = found.hidden or any(_is_given(fields, name) for name in _BY_REFERENCE)
    if _is_given(fields, "mcp_servers"):
        found.passes += PASSES_DEFAULT
    # The summary of a conversation that was too long is billed.
    management = _bytes(fields, "context_management")
    found.passes += _is_given(fields, "compaction") + (
        b'"compact_' in management or hides_words(management)
    )
    rendered = sum([len(fields.get(name, _ABSENT)) for name in _RENDERED])
    return Scan(
        text_bytes=rendered - found.media_bytes,
        media_bytes=found.media_bytes,
        media_tokens=found.media_tokens,
        hidden=found.hidden,
        tools=tools,
        passes=min(found.passes, PASSES_MAX),
        pieces={"web_search": found.searches} if found.searches else {},
        long_cache=found.long_cache
        or any(_may_keep_long(raw) for name, raw in fields.items() if name not in _SCANNED),
        window=_LONG_CONTEXT_TOKENS if _LONG_CONTEXT in betas.lower() else 0,
        signed=found.signed,
    )


def _scan_messages(found: _Found, messages: msgspec.Raw) -> None:
    try:
        for message in _decode_messages(messages):
            _scan_blocks(found, message.content)
    except UNREADABLE:
        found.hidden = found.signed = found.long_cache = True


def _scan_system(found: _Found, system: msgspec.Raw) -> None:
    """Its blocks are text; whatever else is in it has its bytes for a bound."""
    try:
        for block in _decode_blocks(system) if begins(system, b"[") else ():
            _note_cache_mark(found, block.cache_control)
    except UNREADABLE:
        found.long_cache = True


def _scan_blocks(found: _Found, content: msgspec.Raw) -> None:
    if not begins(content, b"["):
        return
    for block in _decode_blocks(content):
        _note_cache_mark(found, block.cache_control)
        if isinstance(block.type, str) and block.type in _TEXT_TYPES:
            continue
        if block.type == "thinking":
            _note_signature(found, block.signature)
        elif block.type == "redacted_thinking":
            _note_signature(found, block.data)
        elif block.type == "image":
            _scan_image(found, block.source)
        elif block.type == "document":
            _scan_document(found, block.source)
        elif block.type in ("tool_result", "search_result"):
            _scan_blocks(found, block.content)
        else:
            found.hidden = True
            found.long_cache = found.long_cache or _may_keep_long(block.content)


def _note_cache_mark(found: _Found, mark: msgspec.Raw) -> None:
    if mark:
        found.long_cache = found.long_cache or _may_keep_long(mark)


def _note_signature(found: _Found, value: msgspec.Raw) -> None:
    """Whether it is somebody else's signature, or the place of one."""
    signature = bytes(value)
    if signature == _UNSIGNED or any(mark in signature for mark in MARKS):
        found.signed = True


def _scan_image(found: _Found, raw: msgspec.Raw) -> None:
    source = _decode_source(raw)
    found.media_bytes += len(source.data)
    found.media_tokens += image_tokens()


def _scan_document(found: _Found, raw: msgspec.Raw) -> None:
    source = _decode_source(raw)
    if source.type == "base64":
        size = len(source.data)
        found.media_bytes += size
        found.media_tokens += document_tokens(size)
    elif source.type == "content":
        _scan_blocks(found, source.content)
    elif source.type != "text":
        found.hidden = True


def _scan_tools(found: _Found, tools: msgspec.Raw | None) -> int:
    """How many tools there are."""
    if tools is None:
        return 0
    try:
        declared = _decode_tools(tools)
    except UNREADABLE:
        return count_items(tools)
    for tool in declared:
        if not isinstance(tool.type, str) or tool.type == "custom":
            continue
        found.media_tokens += _BUILT_IN_TOKENS
        hosted = _HOSTED.fullmatch(tool.type)
        if hosted is not None:
            uses = tool.max_uses if isinstance(tool.max_uses, int) else PASSES_DEFAULT
            uses = min(max(uses, 1), PASSES_MAX)
            found.passes += uses
            found.searches += uses if hosted[1] == "web_search" else 0
    return len(declared)


def _may_keep_long(raw: msgspec.Raw) -> bool:
    return _LONG_TTL.search(memoryview(raw)) is not None or hides_words(raw)


def _is_given(fields: Fields, name: str) -> bool:
    return _bytes(fields, name) not in (b"", b"null", b"[]")


def _bytes(fields: Fields, name: str) -> bytes:
    return bytes(fields.get(name, _ABSENT))

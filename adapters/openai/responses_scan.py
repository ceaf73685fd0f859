"""What a Responses body may cost: read once, when it arrives.

Media is found by the type of its part alone, as the provider does: other members may be there to
deceive. What cannot be read, or is only named by an id, is bounded by the model's window.

Tools that the provider runs itself make the model read everything again after each call, so the
number of their calls is bounded, too: by the client's `max_tool_calls`, else by
`TOOL_CALLS_DEFAULT`, which is then sent.
"""

from __future__ import annotations

import msgspec

from adapters.codec import Scan
from adapters.media import audio_tokens, document_tokens, image_tokens, may_be_no_image
from adapters.openai.body import Fields
from adapters.raw import UNREADABLE, begins

TOOL_CALLS_DEFAULT = 10

_RENDERED = ("input", "instructions", "tools", "text")
# Members of a body in which only the provider can see what is meant.
_BY_REFERENCE = ("previous_response_id", "conversation", "prompt")
# Members that make the provider take further passes over the prompt, whatever the tools.
_MORE_PASSES = ("context_management", "prompt")
_REFERENCE_ITEMS = frozenset({"item_reference", "compaction", "code_interpreter_call"})
_TEXT_PARTS = frozenset(
    {"input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text"}
)
_IMAGE_PARTS = frozenset({"input_image", "computer_screenshot"})
# What the client runs. Any other tool is the provider's.
_CLIENT_TOOLS = frozenset(
    {
        "function",
        "custom",
        "namespace",
        "apply_patch",
        "computer",
        "computer_use_preview",
        "local_shell",
    }
)
_PIECES = {
    "web_search": "web_search",
    "web_search_preview": "web_search",
    "image_generation": "image",
}
_LONG_TTLS = ("12h", "24h")
_ABSENT = msgspec.Raw()


class _Item(msgspec.Struct, gc=False):
    type: object = None
    role: object = None
    content: msgspec.Raw = _ABSENT
    output: msgspec.Raw = _ABSENT
    tools: msgspec.Raw = _ABSENT
    result: msgspec.Raw = _ABSENT


class _Part(msgspec.Struct, gc=False):
    type: object = None
    image_url: msgspec.Raw = _ABSENT
    input_audio: msgspec.Raw = _ABSENT
    data: msgspec.Raw = _ABSENT
    file_data: msgspec.Raw = _ABSENT
    file_id: object = None
    file_url: object = None
    prompt_cache_breakpoint: msgspec.Raw = _ABSENT


class _Tool(msgspec.Struct, gc=False):
    type: object = None
    execution: object = None
    tools: list[msgspec.Raw] | None = None


class _CacheMark(msgspec.Struct, gc=False):
    ttl: object = None


_decode_items = msgspec.json.Decoder(list[_Item]).decode
_decode_parts = msgspec.json.Decoder(list[_Part]).decode
_decode_part = msgspec.json.Decoder(_Part).decode
_decode_tools = msgspec.json.Decoder(list[_Tool] | None).decode
_decode_cache_mark = msgspec.json.Decoder(_CacheMark | None).decode
_decode_value = msgspec.json.Decoder().decode


def scanned(fields: Fields, tool_calls: int | None) -> Scan:
    """What `fields` may cost; `tool_calls` is the client's limit for tools of the provider."""
    found = _Found()
    found.scan_tools(fields.get("tools", _ABSENT))
    found.scan_input(fields.get("input", _ABSENT))
    found.scan_input(fields.get("instructions", _ABSENT))
    more = sum(is_given(fields, name) for name in _MORE_PASSES)
    calls = tool_calls or TOOL_CALLS_DEFAULT
    rendered = sum(len(fields.get(name, _ABSENT)) for name in _RENDERED)
    return Scan(
        text_bytes=rendered - found.media_bytes,
        media_bytes=found.media_bytes,
        media_tokens=found.media_tokens,
        audio=found.audio,
        hidden=found.hidden or any(is_given(fields, name) for name in _BY_REFERENCE),
        tools=found.tools,
        passes=1 + more + (calls if found.hosted or is_given(fields, "prompt") else 0),
        pieces=dict.fromkeys(sorted(found.pieces), calls),
        long_cache=found.long_cache or _keeps_long(fields),
        signed=found.signed,
    )


def is_given(fields: Fields, name: str) -> bool:
    """Whether a member is there and says something."""
    return bytes(memoryview(fields.get(name, _ABSENT))[:5]) not in (b"", b"null", b"[]", b"{}")


class _Found:
    """What is in a body beside text. `media_bytes` is its share of the body."""

    __slots__ = (
        "audio",
        "hidden",
        "hosted",
        "long_cache",
        "media_bytes",
        "media_tokens",
        "pieces",
        "signed",
        "tools",
    )

    def __init__(self) -> None:
        self.media_bytes = 0
        self.media_tokens = 0
        self.audio = False
        self.hidden = False  # something that only the provider can see
        self.hosted = False  # tools that the provider runs
        self.long_cache = False
        self.signed = False
        self.pieces: set[str] = set()
        self.tools = 0

    def scan_input(self, items: msgspec.Raw) -> None:
        if not begins(items, b"["):
            return  # absent, or one text
        try:
            for item in _decode_items(items):
                self._scan_item(item)
        except UNREADABLE:
            self.hidden = self.signed = True

    def scan_tools(self, raw: msgspec.Raw) -> None:
        if not raw:
            return
        try:
            tools = _decode_tools(raw) or []
        except UNREADABLE:
            self.hidden = self.hosted = True
            return
        for tool in tools:
            self.tools += 1 + len(tool.tools or ())
            if not isinstance(tool.type, str):
                self.hosted = True
            elif tool.type == "tool_search":
                self.hosted = self.hosted or tool.execution != "client"
            elif tool.type not in _CLIENT_TOOLS:
                self.hosted = True
                self.pieces.update(
                    piece for type_, piece in _PIECES.items() if tool.type.startswith(type_)
                )

    def _scan_item(self, item: _Item) -> None:
        if item.type is None and item.role is None:
            self.hidden = True  # a reference whose type was left out
        if isinstance(item.type, str):
            self.hidden = self.hidden or item.type in _REFERENCE_ITEMS
            self.signed = self.signed or item.type == "reasoning"
            if item.type == "image_generation_call":
                self._add_media(len(item.result), image_tokens())
        self.scan_tools(item.tools)
        for parts in (item.content, item.output):
            if begins(parts, b"["):
                for part in _decode_parts(parts):
                    self._scan_part(part)
            elif begins(parts, b"{"):  # a screenshot
                self._scan_part(_decode_part(parts))

    def _scan_part(self, part: _Part) -> None:
        if part.prompt_cache_breakpoint:
            self.long_cache = self.long_cache or _is_long(part.prompt_cache_breakpoint)
        if not isinstance(part.type, str):
            self.hidden = True
        elif part.type in _IMAGE_PARTS:
            self._add_media(len(part.image_url), image_tokens())
            self.hidden = self.hidden or not part.image_url
            if may_be_no_image(part.image_url):
                self.hidden = self.audio = True
        elif part.type == "input_audio":
            size = len(part.input_audio) + len(part.data)
            self._add_media(size, audio_tokens(size))
            self.audio = True
        elif part.type == "input_file":
            size = len(part.file_data)
            self._add_media(size, document_tokens(size))
            self.hidden = self.hidden or part.file_id is not None or part.file_url is not None
        elif part.type not in _TEXT_PARTS:
            self.hidden = True

    def _add_media(self, size: int, tokens: int) -> None:
        self.media_bytes += size
        self.media_tokens += tokens


def _keeps_long(fields: Fields) -> bool:
    """Whether the request as a whole asks to be cached for long."""
    options = fields.get("prompt_cache_options", _ABSENT)
    if options and _is_long(options):
        return True
    try:
        return _decode_value(fields.get("prompt_cache_retention", b"null")) in _LONG_TTLS
    except UNREADABLE:
        return False


def _is_long(mark: msgspec.Raw) -> bool:
    try:
        found = _decode_cache_mark(mark)
    except UNREADABLE:
        return False
    return found is not None and found.ttl in _LONG_TTLS

"""What a Gemini body may cost: read once, when it arrives.

Media is found by the member that holds it, as Google does; a part with anything that only Google
can see (a file of its own, a video) is bounded by the model's window, and so is whatever a tool of
Google's may bring in. What cannot be read is bounded likewise, and refused later on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from adapters import media
from adapters.codec import Scan
from adapters.envelope import MARKS
from adapters.errors import InvalidRequest
from adapters.gemini import fields
from adapters.openai.body import Fields
from adapters.raw import UNREADABLE

_RENDERED = ("contents", "systemInstruction", "tools", "toolConfig", "generationConfig")
# Members by which a body means something that is not in it.
_BY_REFERENCE = ("cachedContent", "continuationToken")
_PASSES = 10  # of a model that may use Google's own tools
_SEARCHES = {"web_search": _PASSES}
_SEARCH_TOOLS = frozenset({"googleSearch", "googleSearchRetrieval", "enterpriseWebSearch"})
_MEDIA = frozenset({"inlineData", "fileData"})
_DECLARATIONS = "functionDeclarations"
_EMPTY = msgspec.Raw(b"[]")
_decode_objects = msgspec.json.Decoder(list[Fields]).decode
_decode_object = msgspec.json.Decoder(Fields).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_value = msgspec.json.Decoder().decode


def scan(members: Fields) -> Scan:
    """What a request with `members` (as of `fields.named`) may cost. Never raises."""
    found = _Found()
    for name in ("contents", "systemInstruction"):
        if name in members and found.may_hold_media(members[name]):
            found.guarded(_scan_contents, members[name])
    if "tools" in members:
        found.guarded(_scan_tools, members["tools"])
    if "generationConfig" in members:
        found.guarded(_scan_config, members["generationConfig"])
    text_bytes = sum([len(members[name]) for name in _RENDERED if name in members])
    hosted = found.hosted
    return Scan(
        text_bytes=text_bytes - found.media_bytes,
        media_bytes=found.media_bytes,
        media_tokens=found.media_tokens,
        audio=found.audio,
        hidden=found.hidden or any(name in members for name in _BY_REFERENCE),
        tools=found.tools,
        passes=_PASSES if hosted else 1,
        pieces=_SEARCHES if hosted & _SEARCH_TOOLS else {},
        signed=found.signed,
    )


class _Found:
    """What is in a body beside text. `media_bytes` is its share of the body."""

    __slots__ = ("audio", "hidden", "hosted", "media_bytes", "media_tokens", "signed", "tools")

    def __init__(self) -> None:
        self.media_bytes = 0
        self.media_tokens = 0
        self.audio = False
        self.hidden = False  # something that only Google can see
        self.hosted: set[str] = set()  # tools that Google runs
        self.signed = False
        self.tools = 0

    def may_hold_media(self, contents: msgspec.Raw) -> bool:
        """Whether contents are worth a close look; signatures in them are noted on the way."""
        media = False
        try:
            for part in _parts_in(contents):
                for key, value in part.items():
                    name = fields.camel(key)
                    if name in _MEDIA:
                        media = True
                    elif name == "functionResponse":
                        media = media or _may_name_data(value)
                    elif name == "thoughtSignature":
                        signature = bytes(value)
                        self.signed = self.signed or any(mark in signature for mark in MARKS)
        except UNREADABLE:
            self.signed = media = True
        return media

    def guarded(self, read: Callable[[_Found, msgspec.Raw], None], raw: msgspec.Raw) -> None:
        """What cannot be read may be anything."""
        try:
            read(self, raw)
        except (*UNREADABLE, InvalidRequest):
            self.hidden = True

    def add_inline(self, raw: msgspec.Raw) -> None:
        """Inline media, or text in base64, which its own bytes are enough for."""
        blob = _members(raw)
        media_type = _decode_text(blob.get("mimeType", b'""')).lower()
        size = len(blob.get("data", b""))
        if media_type.startswith("text/"):
            return
        self.media_bytes += size
        if media_type.startswith("image/"):
            self.media_tokens += media.image_tokens()
        elif media_type.startswith("audio/"):
            self.media_tokens += media.audio_tokens(size)
            self.audio = True
        else:
            self.media_tokens += media.document_tokens(size)
            self.hidden = self.hidden or media_type != "application/pdf"
            self.audio = self.audio or media_type.startswith("video/")


def _parts_in(contents: msgspec.Raw) -> Iterator[Fields]:
    for content in _objects(contents):
        for key, value in content.items():
            if fields.camel(key) == "parts":
                yield from _objects(value)


def _objects(raw: msgspec.Raw) -> list[Fields]:
    """The objects of a list; of what is no list, itself. Google takes a single one for a list."""
    if _begins(raw, b"["):
        return _decode_objects(raw)
    return [_decode_object(raw)] if _begins(raw, b"{") else []


def _may_name_data(value: msgspec.Raw) -> bool:
    """Whether a member may be in it whose name is `…Data` or `…_data`, as that of all media; also
    where escapes hide the letters."""
    raw = bytes(value)
    return b'Data"' in raw or b'data"' in raw or b"\\u00" in raw


def _scan_contents(found: _Found, raw: msgspec.Raw) -> None:
    for content in _listed(raw):
        if _begins(content, b"{"):
            for part in _listed(_members(content).get("parts", _EMPTY)):
                _scan_part(found, _members(part))


def _scan_part(found: _Found, part: Fields) -> None:
    if "inlineData" in part:
        found.add_inline(part["inlineData"])
    if "fileData" in part:
        found.hidden = True
        found.audio = True  # it may be
    if "functionResponse" in part:
        for inner in _listed(_members(part["functionResponse"]).get("parts", _EMPTY)):
            _scan_part(found, _members(inner))


def _scan_tools(found: _Found, raw: msgspec.Raw) -> None:
    for each in _listed(raw):
        tool = _members(each)
        found.tools += len(_listed(tool.get(_DECLARATIONS, _EMPTY)))
        found.hosted |= tool.keys() - {_DECLARATIONS}


def _scan_config(found: _Found, raw: msgspec.Raw) -> None:
    """Whether the answer may be spoken. Google takes a number for the name that it stands for."""
    for each in _listed(_members(raw).get("responseModalities", _EMPTY)):
        modality = _decode_value(each)
        found.audio = found.audio or not isinstance(modality, str) or modality.upper() == "AUDIO"


def _listed(raw: msgspec.Raw) -> list[msgspec.Raw]:
    """The items of a list; Google takes a single one for a list of it."""
    return _decode_items(raw) if _begins(raw, b"[") else [raw]


def _members(raw: msgspec.Raw) -> Fields:
    return fields.members(raw, "contents")


def _begins(raw: msgspec.Raw, opening: bytes) -> bool:
    return bytes(memoryview(raw)[:1]) == opening

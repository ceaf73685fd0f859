"""Where media stands in a request's body, and how much of it there is.

The scans that run when a body arrives only bound it. Here a body is looked at once more, where
somebody wants to know what its media most probably costs. One reader does for every protocol: they
name their parts so differently that none is mistaken for another's, and some clients mix them.

Nothing of this is checked, and nothing is trusted: what cannot be read is left out, never refused.
And nothing is decoded as a whole. An image tells its size in its head, sound its rate, a document
its pages at one of its ends; all media of a request share the bytes that are looked at.
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Literal, NamedTuple

import msgspec

from adapters.image_size import SIZE_BYTES, size_of
from adapters.raw import UNREADABLE, begins

Kind = Literal["image", "audio", "video", "pdf", "text", "file"]

_LOOKED_AT_BYTES = 256 * 1024  # of all media together: about 2 ms
_END_BYTES = 64 * 1024  # of a document
_HEAD_BYTES = 96  # tells what it is; the size of an image that is no JPEG, the rate of a WAV
_JPEG_HEADS_BYTES = (4096, SIZE_BYTES)  # most tell their size at once, some behind a thumbnail
_DEPTH_MAX = 6  # a message's part in a tool's result in a message

# The members of a request with the conversation in it.
_SPOKEN = ("messages", "input", "contents", "system", "instructions", "systemInstruction")
_ADDRESS_BYTES_MAX = 256  # what stands before the data, in a URL that has its data in it
_PAGE = re.compile(rb"/Type\s{0,3}/Page\b")
_PAGE_TREE = re.compile(rb"/Type\s{0,3}/Pages\b")
_PAGE_COUNT = re.compile(rb"/Count\s{1,3}([0-9]{1,4})\b")
_PAGE_TREES_MAX = 16
_PAGE_TREE_BYTES_MAX = 4096
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_ABSENT = msgspec.Raw()
_EMPTY = b""


class Media(NamedTuple):
    """One part that is no text. `data_bytes` is its size, 0 where it is only linked.

    `size` is an image's width and height, `pages` those of a document and `bytes_per_second` the
    rate of a sound; None and 0 where they are not told. `low`: less detail
    was asked for.
    """

    kind: Kind
    data_bytes: int = 0
    size: tuple[int, int] | None = None
    pages: int = 0
    bytes_per_second: int = 0
    low: bool = False


class _Part(
    msgspec.Struct, gc=False, rename={"inline": "inlineData", "response": "functionResponse"}
):
    """Any part, and whatever has parts in it, in any protocol."""

    type: object = None
    content: msgspec.Raw = _ABSENT
    output: msgspec.Raw = _ABSENT
    parts: msgspec.Raw = _ABSENT
    image_url: msgspec.Raw = _ABSENT
    input_audio: msgspec.Raw = _ABSENT
    file: msgspec.Raw = _ABSENT
    file_data: msgspec.Raw = _ABSENT
    file_url: msgspec.Raw = _ABSENT
    source: msgspec.Raw = _ABSENT
    result: msgspec.Raw = _ABSENT
    data: msgspec.Raw = _ABSENT
    detail: object = None
    inline: msgspec.Raw = _ABSENT
    inline_data: msgspec.Raw = _ABSENT
    response: msgspec.Raw = _ABSENT
    function_response: msgspec.Raw = _ABSENT


class _Held(msgspec.Struct, gc=False, rename={"mime": "mimeType"}):
    """What a part holds its data in."""

    type: object = None
    url: msgspec.Raw = _ABSENT
    data: msgspec.Raw = _ABSENT
    file_data: msgspec.Raw = _ABSENT
    file_id: object = None
    content: msgspec.Raw = _ABSENT
    detail: object = None
    media_type: object = None
    mime: object = None
    mime_type: object = None


_decode_parts = msgspec.json.Decoder(list[_Part]).decode
_decode_part = msgspec.json.Decoder(_Part).decode
_decode_held = msgspec.json.Decoder(_Held).decode


def media_of(fields: Mapping[str, msgspec.Raw]) -> Iterator[Media]:
    """The media of a body, in its order. Never raises."""
    reader = _Reader()
    for name in _SPOKEN:
        if name in fields:
            yield from reader.read(fields[name], 0)


class _Reader:
    """Reads one body. `_left` is how much of its media may still be looked at."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = _LOOKED_AT_BYTES

    def read(self, raw: msgspec.Raw, depth: int) -> Iterator[Media]:
        """The media in a part, a message, or a list of them."""
        if depth > _DEPTH_MAX:
            return
        try:
            if begins(raw, b"["):
                parts = _decode_parts(raw)
            elif begins(raw, b"{"):
                parts = [_decode_part(raw)]
            else:
                return
        except UNREADABLE:
            return
        for part in parts:
            yield from self._of(part, depth)

    def _of(self, part: _Part, depth: int) -> Iterator[Media]:
        try:
            media = self._media(part)
        except UNREADABLE:
            return
        if media is not None:
            yield media
            return
        inner = [part.content, part.output, part.parts, part.response, part.function_response]
        if part.type == "document":
            inner.append(_held(part.source).content)
        for raw in inner:
            if raw:
                yield from self.read(raw, depth + 1)

    def _media(self, part: _Part) -> Media | None:
        """What a part is by its type, or by the member that holds it (Gemini)."""
        match part.type:
            case "image_url" | "input_image" | "computer_screenshot":
                held = _held(part.image_url)
                low = "low" in (part.detail, held.detail)
                return self._image(held.url or part.image_url, low=low)
            case "image":
                held = _held(part.source)
                return self._image(held.data or held.url)
            case "image_generation_call":
                return self._image(part.result)
            case "input_audio":
                return self._audio(_held(part.input_audio).data or part.data)
            case "file":
                held = _held(part.file)
                return None if held.file_id is not None else self._document(held.file_data, "")
            case "input_file":
                return self._document(part.file_data, "")
            case "document":
                held = _held(part.source)
                return self._document(held.data, "") if held.type == "base64" else None
            case _:
                inline = part.inline or part.inline_data
                return self._inline(_held(inline)) if inline else None

    def _inline(self, held: _Held) -> Media | None:
        """Gemini's: of the type that it is said to have. Text in it is counted as such."""
        named = str(held.mime or held.mime_type or "").lower()
        if named.startswith("text/"):
            return None
        if named.startswith("image/"):
            return self._image(held.data)
        if named.startswith("audio/"):
            return self._audio(held.data)
        if named.startswith("video/"):
            return Media("video", _data(held.data)[1])
        return self._document(held.data, named)

    def _image(self, raw: msgspec.Raw, *, low: bool = False) -> Media | None:
        if not raw:
            return None
        at, data_bytes = _data(raw)
        if not data_bytes:
            return Media("image", low=low)
        head = self._looked_at(raw, at, _HEAD_BYTES)
        size = size_of(head)
        if size is None and head.startswith(b"\xff\xd8\xff"):
            for head_bytes in _JPEG_HEADS_BYTES:
                size = size or size_of(self._looked_at(raw, at, head_bytes))
        return Media("image", data_bytes, size=size, low=low)

    def _audio(self, raw: msgspec.Raw) -> Media | None:
        at, data_bytes = _data(raw)
        if not data_bytes:
            return None
        head = self._looked_at(raw, at, _HEAD_BYTES)
        rate = 0
        if head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt ":
            rate = int.from_bytes(head[28:32], "little")
        return Media("audio", data_bytes, bytes_per_second=rate)

    def _document(self, raw: msgspec.Raw, named: str) -> Media | None:
        if not begins(raw, b'"'):
            return None
        at, data_bytes = _data(raw, bare=True)
        named = named or _type_in(raw, at)
        if named.startswith("text/"):
            return Media("text", data_bytes)
        if not self._looked_at(raw, at, _HEAD_BYTES).startswith(b"%PDF"):
            return Media("file", data_bytes)
        if data_bytes <= 2 * _END_BYTES:
            return Media("pdf", data_bytes, pages=_pages_in(self._looked_at(raw, at, data_bytes)))
        last = at + (len(memoryview(raw)) - 1 - at - _END_BYTES // 3 * 4) // 4 * 4
        ends = self._looked_at(raw, at, _END_BYTES) + self._looked_at(raw, last, _END_BYTES)
        return Media("pdf", data_bytes, pages=_pages_in(ends))

    def _looked_at(self, raw: msgspec.Raw, at: int, size: int) -> bytes:
        """The first `size` bytes of data that begins at `at`, or as many as may be looked at."""
        size = min(size, self._left)
        self._left -= size
        encoded = bytes(memoryview(raw)[at : at + -(-size // 3) * 4]).rstrip(b'="')
        if b"\\" in encoded:
            encoded = encoded.replace(b"\\/", b"/")
        if b"-" in encoded or b"_" in encoded:
            encoded = encoded.translate(_URL_SAFE)
        try:
            return a2b_base64(encoded + b"=" * (-len(encoded) % 4))
        except (Base64Error, ValueError):
            return _EMPTY


def _held(raw: msgspec.Raw) -> _Held:
    """An object with data in it; an empty one where there is none."""
    return _decode_held(raw) if begins(raw, b"{") else _Held()


def _data(raw: msgspec.Raw, *, bare: bool = False) -> tuple[int, int]:
    """Where the data of a JSON string begins, and how many bytes it is; 0 bytes for a link.

    `bare`: base64 without a URL around it is data, too, as it is wherever no URL is expected.
    """
    text = memoryview(raw)
    start = bytes(text[:_ADDRESS_BYTES_MAX])
    if not start.startswith(b'"'):
        return 0, 0
    if start[1:5].lower() == b"http" and not bare:
        return 0, 0
    at = start.find(b",") + 1 or 1
    encoded_bytes = len(text) - at - 1 - bytes(text[-3:]).count(b"=")
    return at, max(encoded_bytes, 0) * 3 // 4


def _pages_in(data: bytes) -> int:
    """The pages that a document has by its page trees, or by those that are seen."""
    pages = len(_PAGE.findall(data))
    for tree in islice(_PAGE_TREE.finditer(data), _PAGE_TREES_MAX):
        begin, end = tree.span()
        begin = max(data.rfind(b"<<", max(begin - _PAGE_TREE_BYTES_MAX, 0), begin), 0)
        end = max(data.find(b">>", end, end + _PAGE_TREE_BYTES_MAX), end)
        told = _PAGE_COUNT.search(data, begin, end)
        pages = max(pages, int(told[1]) if told is not None else 0)
    return pages


def _type_in(raw: msgspec.Raw, at: int) -> str:
    """The media type that a data URL names before its data."""
    start = bytes(memoryview(raw)[1:at]).replace(b"\\/", b"/").lower()
    return start.removeprefix(b"data:").partition(b";")[0].decode(errors="replace")

"""Content blocks of a Messages request, as parts of a prompt.

Signatures that were sealed here are opened; a provider's own are left out, since the prompt goes
to somebody else. What only Anthropic can run or look up (its server tools, containers) is left out
by name.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Sequence

import msgspec

from adapters.canonical import (
    Blob,
    Cache,
    Document,
    Image,
    Part,
    ResultPart,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
)
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest
from adapters.media import checked, sniffed
from adapters.raw import UNREADABLE

_ABSENT = msgspec.Raw()


class CacheControl(msgspec.Struct):
    ttl: str | None = None


class _Source(msgspec.Struct):
    """Of an image or a document; `content` is text, or blocks."""

    type: str = ""
    media_type: str = ""
    data: str = ""
    url: str = ""
    file_id: str = ""
    content: msgspec.Raw = _ABSENT


class _Citation(msgspec.Struct):
    url: object = None
    title: object = None


class _Tab(msgspec.Struct):
    """An open page of a browser."""

    tab_id: str = ""
    title: str = ""
    url: str = ""
    active: bool = False


class _Block(msgspec.Struct):
    """Any block. `source` is an object in media, and text in a search result."""

    type: str
    text: str = ""
    source: msgspec.Raw = _ABSENT
    title: str | None = None
    context: str | None = None
    citations: msgspec.Raw = _ABSENT
    content: msgspec.Raw = _ABSENT
    thinking: str = ""
    signature: str = ""
    data: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = _ABSENT
    tool_use_id: str = ""
    is_error: bool | None = None
    tool_name: str = ""
    tabs: list[_Tab] = []
    cache_control: CacheControl | None = None


_decode_blocks = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_block = msgspec.json.Decoder(_Block).decode
_decode_source = msgspec.json.Decoder(_Source).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_citations = msgspec.json.Decoder(list[_Citation]).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class BlockReader:
    """Reads the blocks of one request; `dropped` gathers what had to be left out."""

    __slots__ = ("_envelopes", "dropped")

    def __init__(self, envelopes: Envelopes, dropped: dict[str, None]) -> None:
        self._envelopes = envelopes
        self.dropped = dropped

    def parts(self, raw: msgspec.Raw, where: str) -> tuple[Part, ...]:
        """The content of a message: text, or blocks. Raises InvalidRequest naming `where`."""
        out: list[Part] = []
        blob: Blob | None = None  # a signature that belongs to the call behind it
        for at, block in _blocks(raw, where):
            if block.type in ("thinking", "redacted_thinking"):
                thinking = self._thinking(block)
                if thinking is not None and thinking.blob and thinking.blob.kind == "call":
                    blob = thinking.blob
                elif thinking is not None:
                    out.append(thinking)
            elif block.type == "tool_use":
                out.append(_tool_call(block, blob, at))
                blob = None
            elif block.type == "tool_result":
                out.append(self._tool_result(block, at))
            else:
                out += self._content(block, at)
        return tuple(out)

    def texts(self, raw: msgspec.Raw, where: str) -> list[Text]:
        """Content that can only be text. Raises InvalidRequest."""
        texts = []
        for at, block in _blocks(raw, where):
            if block.type == "text":
                texts.append(_text(block))
            else:
                self.dropped[block.type or at] = None
        return texts

    def _thinking(self, block: _Block) -> Thinking | None:
        """Reasoning with the signature that was sealed for it, or with none."""
        redacted = block.type == "redacted_thinking"
        blob = self._envelopes.open(block.data if redacted else block.signature)
        if blob is None and (redacted or not block.thinking):
            return None
        return Thinking(text=block.thinking, blob=blob)

    def _tool_result(self, block: _Block, at: str) -> ToolResult:
        if not block.tool_use_id:
            raise InvalidRequest(f"{at}.tool_use_id is required.", param="messages")
        content: list[ResultPart] = []
        if block.content and bytes(block.content) != b"null":
            for inner_at, inner in _blocks(block.content, f"{at}.content"):
                content += self._content(inner, inner_at)
        return ToolResult(
            call_id=block.tool_use_id,
            content=tuple(content),
            error=block.is_error or False,
            cache=cache_of(block.cache_control),
        )

    def _content(self, block: _Block, at: str) -> Sequence[ResultPart]:
        """A block that may stand in a message as in a tool's result."""
        if block.type == "text":
            return (_text(block),)
        if block.type == "image":
            return (_image(block, at),)
        if block.type == "document":
            return self._document(block, at)
        if block.type == "search_result":
            return (self._search_result(block, at),)
        if block.type == "tool_reference":
            return (Text(text=f"Tool found: {block.tool_name}"),)
        if block.type == "browser_state":
            return (_browser_state(block),)
        if block.type == "compaction" and block.content:  # stands for all that was before it
            return tuple(self.texts(block.content, f"{at}.content"))
        self.dropped[block.type or at] = None
        return ()

    def _document(self, block: _Block, at: str) -> Sequence[ResultPart]:
        source = _source(block, at)
        name = block.title or ""
        before = (Text(text=block.context),) if block.context else ()
        if block.citations and b"true" in bytes(block.citations):
            self.dropped["citations"] = None
        cache = cache_of(block.cache_control)
        if source.type == "content":
            title = (Text(text=name),) if name else ()
            return (*title, *before, *self._inner(source.content, f"{at}.source.content"))
        if source.type == "text":
            return *before, Document(
                media_type="text/plain", text=source.data, name=name, cache=cache
            )
        if source.type == "url":
            return *before, Document(url=source.url, name=name, cache=cache)
        if source.type == "file":
            return *before, Document(file_id=source.file_id, name=name, cache=cache)
        _check_data(source, at)
        media_type = sniffed(source.data, source.media_type or "application/pdf")
        return *before, Document(media_type=media_type, data=source.data, name=name, cache=cache)

    def _inner(self, raw: msgspec.Raw, where: str) -> Iterable[ResultPart]:
        """The blocks of a document: text and images, never documents again."""
        for at, block in _blocks(raw, where):
            if block.type in ("text", "image"):
                yield from self._content(block, at)
            else:
                self.dropped[block.type or at] = None

    def _search_result(self, block: _Block, at: str) -> Text:
        """A search result as text, with where it was found."""
        source = _plain_text(block.source, f"{at}.source")
        texts = self.texts(block.content, f"{at}.content") if block.content else []
        lines = [f"[{block.title or source}]({source})", *(text.text for text in texts)]
        return Text(text="\n".join(lines), cache=cache_of(block.cache_control))


def _browser_state(block: _Block) -> Text:
    """The open tabs, one a line."""
    lines = [
        f"Tab {tab.tab_id}: [{tab.title}]({tab.url}){' (active)' if tab.active else ''}"
        for tab in block.tabs
    ]
    return Text(text="\n".join(lines) or "No tab is open.")


def cache_of(control: CacheControl | None) -> Cache:
    """How long a marked prompt should stay cached."""
    if control is None:
        return ""
    return "1h" if control.ttl == "1h" else "5m"


def _blocks(raw: msgspec.Raw, where: str) -> Iterable[tuple[str, _Block]]:
    """The blocks of a content with where each stands. Raises InvalidRequest.

    What is only text is one block of text.
    """
    opening = bytes(memoryview(raw)[:1])
    if opening == b'"':
        return ((where, _Block(type="text", text=_plain_text(raw, where))),)
    if opening != b"[":
        raise InvalidRequest(f"{where} must be text or a list of blocks.", param=_param(where))
    return [
        (f"{where}.{number}", _block(item, f"{where}.{number}"))
        for number, item in enumerate(_decode_blocks(raw))
    ]


def _block(raw: msgspec.Raw, at: str) -> _Block:
    try:
        return _decode_block(raw)
    except UNREADABLE as error:
        raise InvalidRequest(f"{at} is no proper block: {error}.", param=_param(at)) from None


def _plain_text(raw: msgspec.Raw, at: str) -> str:
    try:
        return _decode_text(raw)
    except UNREADABLE:
        raise InvalidRequest(f"{at} must be text.", param=_param(at)) from None


def _text(block: _Block) -> Text:
    """Text, with the addresses that it cites."""
    text = block.text
    if block.citations and text:
        text += "".join(_links(block.citations))
    return Text(text=text, cache=cache_of(block.cache_control))


def _links(raw: msgspec.Raw) -> Iterable[str]:
    try:
        citations = _decode_citations(raw)
    except UNREADABLE:
        return ()
    urls = {one.url: one.title for one in citations if isinstance(one.url, str)}
    return (f" [{title or url}]({url})" for url, title in urls.items())


def _tool_call(block: _Block, blob: Blob | None, at: str) -> ToolCall:
    if not (block.id and block.name):
        raise InvalidRequest(f"{at} needs an id and a name.", param="messages")
    try:
        arguments = bytes(block.input).decode() if block.input else "{}"
        _decode_object(arguments)
    except UNREADABLE:
        raise InvalidRequest(f"{at}.input must be an object.", param="messages") from None
    return ToolCall(id=block.id, name=block.name, arguments=arguments, blob=blob)


def _image(block: _Block, at: str) -> Image:
    source = _source(block, at)
    cache = cache_of(block.cache_control)
    if source.type == "url":
        return Image(url=source.url, cache=cache)
    if source.type == "file":
        return Image(file_id=source.file_id, cache=cache)
    _check_data(source, at)
    media_type = checked(sniffed(source.data, source.media_type), "image", f"{at}.source")
    return Image(media_type=media_type, data=source.data, cache=cache)


def _source(block: _Block, at: str) -> _Source:
    try:
        return _decode_source(block.source)
    except UNREADABLE as error:
        raise InvalidRequest(
            f"{at}.source is no proper source: {error}.", param="messages"
        ) from None


def _check_data(source: _Source, at: str) -> None:
    try:
        empty = not b64decode(source.data[:64] + "=" * (-len(source.data[:64]) % 4))
    except ValueError:
        empty = True
    if empty:
        raise InvalidRequest(f"{at}.source.data must be base64.", param="messages")


def _param(where: str) -> str:
    return where.partition(".")[0]

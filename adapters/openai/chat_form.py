"""What the chunks of a stream have in common: all but a little text.

Hundreds of chunks in a row differ in a few characters. Once one of them has been read, the next
is known by the bytes around its text, and needs no parser: what is between them only has to be the
inside of one JSON string. A `Form` is such a chunk with a hole for its text, and another one for
the padding that OpenAI adds against those who listen to the lengths on the wire (`obfuscation`).

A form is only made of a chunk that was read with a stand-in for its text, so whatever fits into it
says the same as that chunk in other words: who reads each for itself comes to the same end.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

_STAND_IN = b"what-it-says"
_NAMES = (b'"content":', b'"arguments":', b'"reasoning_content":', b'"reasoning":')
_PADDING = b',"obfuscation":"'
# The inside of a JSON string (RFC 8259 §7).
_TEXT = re.compile(rb'[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*')
_PLAIN = bytes(set(range(0x20, 0x7F)) - set(b'"\\'))  # stands for itself in one

_decode_text = msgspec.json.Decoder(str).decode


class Form:
    """The chunks that are like one that was read, and what the client sees of them."""

    __slots__ = (
        "_begin",
        "_begin_bytes",
        "_closing",
        "_padded_at",
        "_rest",
        "_rest_bytes",
        "_shown",
        "_shown_rest",
        "_unchanged",
    )

    def __init__(self, begin: bytes, rest: bytes, shown: bytes, shown_rest: bytes) -> None:
        self._begin, self._begin_bytes = begin, len(begin)
        self._rest, self._rest_bytes = rest, len(rest)
        self._shown = shown
        self._shown_rest = shown_rest
        self._unchanged = (begin, rest) == (shown, shown_rest)
        at = rest.find(_PADDING)
        self._padded_at = at + len(_PADDING) if at >= 0 else 0
        self._closing = rest[rest.find(b'"', self._padded_at) :] if at >= 0 else b""
        if not shown_rest.endswith(rest[self._padded_at :]):
            self._padded_at = 0

    def fill(self, raw: bytes) -> tuple[bytes, int] | None:
        """A raw event as the client sees it, and the bytes of its text; None: another form."""
        if not raw.startswith(self._begin):
            return None
        begin = self._begin_bytes
        if raw.endswith(self._rest):
            text = raw[begin : -self._rest_bytes]
            if text and not text.translate(None, _PLAIN):  # as nearly always
                shown = raw if self._unchanged else self._shown + text + self._shown_rest
                return shown, len(text)
        end = raw.find(b'"', begin)
        text, rest = raw[begin:end], raw[end:]
        size = len(text)
        if not text or text.translate(None, _PLAIN):
            end, size = _text_at(raw, begin)
            text, rest = raw[begin:end], raw[end:]
        if size and rest == self._rest:
            return (raw if self._unchanged else self._shown + text + self._shown_rest), size
        if size and (padded := self._padded(rest)):
            return self._shown + text + padded, size
        return None

    def _padded(self, rest: bytes) -> bytes:
        """What the client sees behind the text, where nothing but the padding is another."""
        at = self._padded_at
        if not at or rest[:at] != self._rest[:at]:
            return b""
        end = rest.find(b'"', at)
        if rest[end:] != self._closing or rest[at:end].translate(None, _PLAIN):
            return b""
        return self._shown_rest[: at - len(self._rest)] + rest[at:]


def form_of(
    raw: bytes, produced: Callable[[bytes], int | None], show: Callable[[bytes], bytes]
) -> Form | None:
    """The form of a raw event that has been read; None where it has none.

    `produced` reads such an event: the bytes of text in it, None where it is more than a piece of
    text. `show` is the event as the client sees it.
    """
    for name in _NAMES:
        begin = raw.find(name) + len(name)
        begin += raw.startswith(b" ", begin) + 1
        text = _TEXT.match(raw, begin)
        if text is None or begin <= len(name) + 1 or raw[begin - 1 : begin] != b'"':
            continue
        head, rest = raw[:begin], raw[text.end() :]
        sample = head + _STAND_IN + rest
        if produced(head + rest) != 0 or produced(sample) != len(_STAND_IN):
            return None  # there is other text in it, or this is none
        shown = show(sample).split(_STAND_IN)
        return Form(head, rest, *shown) if len(shown) == 2 else None
    return None


def _text_at(raw: bytes, begin: int) -> tuple[int, int]:
    """Where the text that begins there ends, and what it amounts to as UTF-8; 0: it is none."""
    text = _TEXT.match(raw, begin)
    assert text is not None, "it matches nothing as well"
    try:
        return text.end(), len(_decode_text(b'"%b"' % text[0]).encode())
    except (msgspec.DecodeError, UnicodeError):
        return begin, 0

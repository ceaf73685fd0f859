"""Tokens without a tokenizer: upper bounds to reserve by, and counts to settle by.

The bound rests on one fact: byte-level tokenizers never make more tokens than there are bytes.
JSON text is at least as long as the strings in it, and its braces and keys are longer than what
providers add for each message, so the length of a body bounds its text. Media is what it is not
true of: those parts are found, their bytes taken out and replaced by what they may cost. No
provider bills more input for one answer than the model's window, which caps everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from adapters.codec import Request

_BYTES_PER_TOKEN = 4  # of English text, when counting

_BASE_TOKENS = 32
_TOOL_TOKENS = 64  # what a provider's template may add for each tool
_IMAGE_TOKENS = 20_000  # the dearest known: full detail at 12 megapixels
_HIDDEN_TOKENS = 1_000_000  # input that is not in the body, where no window is known
_AUDIO_BYTES_PER_SECOND = 500  # no container in use has fewer
_AUDIO_TOKENS_PER_SECOND = 32
_TEXT_PARTS = ("text", "refusal")
_NULL = msgspec.Raw(b"null")


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that a request can consume, as far as its body tells.

    `text_bytes` is the text that was seen, for counting. `predicted_tokens` are output that is
    billed beyond the output cap. `audio`: audio may be billed, at its own price. `pieces` are
    priced units other than tokens.
    """

    input_tokens: int
    text_bytes: int
    predicted_tokens: int = 0
    audio: bool = False
    pieces: Mapping[str, int] = field(default_factory=dict)


class _Message(msgspec.Struct, gc=False):
    content: msgspec.Raw = _NULL
    audio: msgspec.Raw = _NULL


class _Part(msgspec.Struct, gc=False):
    type: object = None
    image_url: msgspec.Raw = msgspec.Raw()
    input_audio: msgspec.Raw = msgspec.Raw()
    file: msgspec.Raw = msgspec.Raw()


_decode_messages = msgspec.json.Decoder(list[_Message]).decode
_decode_parts = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_part = msgspec.json.Decoder(_Part).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def counted_tokens(text_bytes: int) -> int:
    """Our count for text whose provider does not say: four bytes a token, rounded up.

    Good enough for English; other languages and code have fewer bytes a token, where it errs in
    the customer's favour.
    """
    return -(-text_bytes // _BYTES_PER_TOKEN)


def bound(request: Request, context_window: int = 0) -> Bound:
    """The most input that `request` can be; `context_window` 0: unknown.

    Never raises: what cannot be read is bounded by its bytes, and the provider will refuse it.
    """
    if request.kind != "chat":
        # Each of several inputs has a window of its own, so the window is no cap here.
        return Bound(request.body_bytes + _BASE_TOKENS, request.body_bytes)
    media = _media(request.fields.get("messages", _NULL))
    tokens = (
        request.body_bytes
        - media.bytes
        + media.tokens
        + _TOOL_TOKENS * _count_items(request.fields.get("tools", _NULL))
        + _BASE_TOKENS
    )
    if media.hidden:
        tokens += context_window or _HIDDEN_TOKENS
    if context_window:
        tokens = min(tokens, context_window)
    return Bound(
        input_tokens=tokens,
        text_bytes=_text_bytes(request) - media.bytes,
        predicted_tokens=len(memoryview(request.fields.get("prediction", b""))),
        audio=media.audio or "audio" in request.fields or "modalities" in request.fields,
        pieces=request.pieces,
    )


@dataclass(slots=True)
class _Media:
    """What is in messages beside text. `bytes` is its share of the body."""

    bytes: int = 0
    tokens: int = 0
    audio: bool = False
    hidden: bool = False  # something that only the provider can see


def _media(messages: msgspec.Raw) -> _Media:
    media = _Media()
    try:
        for message in _decode_messages(messages):
            if bytes(message.audio) != b"null":  # an earlier answer, by its id
                media.audio = media.hidden = True
            if bytes(memoryview(message.content)[:1]) == b"[":
                for part in _decode_parts(message.content):
                    _add_part(media, part)
    except _UNREADABLE:
        media.hidden = True
    return media


def _add_part(media: _Media, raw: msgspec.Raw) -> None:
    part = _decode_part(raw)
    # The type alone decides, as it does at the provider: other members may be there to deceive.
    if part.type == "image_url":
        media.bytes += len(memoryview(part.image_url))
        media.tokens += _IMAGE_TOKENS
    elif part.type == "input_audio":
        size = len(memoryview(part.input_audio))
        media.bytes += size
        media.tokens += _audio_tokens(size)
        media.audio = True
    elif part.type not in _TEXT_PARTS:
        media.bytes += len(memoryview(part.file))
        media.hidden = True


def _audio_tokens(base64_bytes: int) -> int:
    seconds = base64_bytes * 3 // 4 // _AUDIO_BYTES_PER_SECOND + 1
    return seconds * _AUDIO_TOKENS_PER_SECOND


def _text_bytes(request: Request) -> int:
    """The bytes of what is rendered into the prompt, as JSON."""
    return sum(len(memoryview(request.fields.get(name, b""))) for name in ("messages", "tools"))


def _count_items(raw: msgspec.Raw) -> int:
    try:
        return len(_decode_parts(raw))
    except _UNREADABLE:
        return 0

"""The input that a request most probably has, where its provider does not tell, or not yet.

Clients ask for it before they send, or want to see it at the beginning of an answer. And some
providers tell the usage of a stream at its very end. Where the stream is cut before, or an
attempt is lost, its input is counted here: text by its bytes, media by the formulas that providers
publish for what stands in its head. It is a fair count and no bound: `estimate` has those.

1. Of several formulas of a protocol the lowest one counts, as the model's own is not known here: an
   estimate may not favour the one who makes it.
2. It is never above the bound that was reserved by, whatever a head claims.
3. What only the provider can see (its own files, earlier answers, a prompt of its own) is nothing.
4. More parts never come to less.

This is only done where somebody needs it, or where the body is let go of because its answer has
begun to stream: large media takes its time to be found, if only a millisecond for a megabyte.

The formulas are published in OpenAI's guide "Images and vision" (tiles of 512 pixels of a picture
that is at most 2,048 pixels long and 768 wide, 70 + 140 each at the cheapest model; patches of 32
pixels, 1,536 at most), in Anthropic's guides "Vision" (squares of 28 pixels, at most 1,568 pixels
long and as many tokens) and "PDF support" (1,500 to 3,000 a page), and in Gemini's guide
"Understand and count tokens" (258 for a tile of 768 pixels, for a page, and for a second of film;
32 for a second of sound).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from adapters.canonical import Usage
from adapters.catalogue import Protocol
from adapters.codec import Request
from adapters.estimate import Bound, counted_tokens
from adapters.media import DOCUMENT_PAGES_MAX
from adapters.media_parts import Media, media_of

_UNKNOWN_SIZE = (768, 768)  # of an image that is only linked, or tells none
_UNKNOWN_SOUND_BYTES_PER_SECOND = 16_000  # what is usual for speech, and music in few bits
_UNKNOWN_PAGE_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class _Formulas:
    """What the providers of one protocol count media as: `image` by width, height and whether
    little detail was asked for, everything else a page, or a second."""

    image: Callable[[int, int, bool], int]
    page: int
    sound_second: int = 0
    film_second: int = 0


class Input:
    """The input of one request, for whoever asks what it comes to. Never raises.

    `bound` is what was reserved by. Of the body it holds what may have media in it, until that is
    read: when it is asked for the first time, or the body is let go of.
    """

    __slots__ = ("_bound", "_fields", "_media", "_text_bytes")

    def __init__(self, request: Request, bound: Bound) -> None:
        scan = request.scan
        self._bound = bound
        self._text_bytes = scan.text_bytes
        self._fields = request.fields if scan.media_tokens else None
        self._media: Sequence[Media] = ()

    def read(self) -> None:
        """Look at the body, if that was not done yet: it is not held any more."""
        if self._fields is not None:
            self._media = tuple(media_of(self._fields))
            self._fields = None

    def at(self, protocol: Protocol) -> Usage:
        """What it is at a provider that speaks `protocol`: all of it, and the sound in it."""
        self.read()
        formulas = _FORMULAS[protocol]
        tokens, sound = counted_tokens(self._text_bytes), 0
        for media in self._media:
            if media.kind == "audio":
                sound += formulas.sound_second * _seconds(media)
            else:
                tokens += _tokens(media, formulas)
        tokens = min(tokens + sound, self._bound.input_tokens)
        audio = min(sound, tokens) if self._bound.audio else 0
        return Usage(input_tokens=tokens, audio_input_tokens=audio)


def expected_input(request: Request, protocol: Protocol, bound: Bound) -> Usage:
    """The same for a request that only one asks about."""
    return Input(request, bound).at(protocol)


def _tokens(media: Media, formulas: _Formulas) -> int:
    match media.kind:
        case "image":
            return formulas.image(*(media.size or _UNKNOWN_SIZE), media.low)
        case "text":
            return counted_tokens(media.data_bytes)
        case "video":
            return formulas.film_second  # how long it is stands nowhere near its head
        case _:
            return formulas.page * _pages(media)


def _pages(media: Media) -> int:
    pages = media.pages or media.data_bytes // _UNKNOWN_PAGE_BYTES
    return min(max(pages, 1), DOCUMENT_PAGES_MAX)


def _seconds(media: Media) -> int:
    return _steps(media.data_bytes, media.bytes_per_second or _UNKNOWN_SOUND_BYTES_PER_SECOND)


def _openai_image(width: int, height: int, low: bool) -> int:
    patches = min(_steps(width, 32) * _steps(height, 32), 1536)
    width, height = _fitted(width, height, long=2048, short=768)
    tiles = 0 if low else _steps(width, 512) * _steps(height, 512)
    return min(patches, 70 + 140 * tiles)


def _anthropic_image(width: int, height: int, low: bool) -> int:
    width, height = _fitted(width, height, long=1568, short=1568)
    return min(_steps(width, 28) * _steps(height, 28), 1568)


def _gemini_image(width: int, height: int, low: bool) -> int:
    if low:
        return 64
    return min(_steps(width, 768) * _steps(height, 768) * 258, 1065)


def _fitted(width: int, height: int, *, long: int, short: int) -> tuple[int, int]:
    """A size scaled down to a longer and a shorter side, never up."""
    larger, smaller = max(width, height), min(width, height)
    if larger * short > smaller * long:  # the longer side is what is too long for its limit
        limit, side = long, larger
    else:
        limit, side = short, smaller
    if side <= limit:
        return width, height
    return max(width * limit // side, 1), max(height * limit // side, 1)


def _steps(length: int, step: int) -> int:
    return -(-length // step)


_OPENAI = _Formulas(_openai_image, page=1_000, sound_second=10)
_FORMULAS: Mapping[Protocol, _Formulas] = {
    "openai": _OPENAI,
    "openai-responses": _OPENAI,
    "anthropic": _Formulas(_anthropic_image, page=1_500),
    "gemini": _Formulas(_gemini_image, page=258, sound_second=32, film_second=258),
}

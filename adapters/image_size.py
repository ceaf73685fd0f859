"""Width and height of an image from its first bytes: PNG, JPEG, GIF and WebP.

Nothing is decoded; what a head says is what decoders go by.
"""

from __future__ import annotations

from collections.abc import Callable

SIZE_BYTES = 96 * 1024  # a JPEG tells its size behind its metadata

_SEGMENTS_MAX = 256  # of metadata: whoever has more wants to be read for long

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG's markers that begin a picture
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # those without a length
_Size = tuple[int, int]


def size_of(head: bytes) -> _Size | None:
    """The size of an image that begins with `head`, None where that is not there or not known."""
    for magic, read in _READERS:
        if head.startswith(magic):
            size = read(head)
            return size if size is not None and min(size) > 0 else None
    return None


def _png(head: bytes) -> _Size | None:
    if len(head) < 24:
        return None
    return _big(head[16:20]), _big(head[20:24])


def _gif(head: bytes) -> _Size | None:
    if len(head) < 10:
        return None
    return _little(head[6:8]), _little(head[8:10])


def _webp(head: bytes) -> _Size | None:
    if len(head) < 30 or head[8:12] != b"WEBP":
        return None
    match head[12:16]:
        case b"VP8 ":
            width, height = (
                _little(head[26:28]),
                _little(head[28:30]),
            )
            return width & 0x3FFF, height & 0x3FFF
        case b"VP8L":
            packed = _little(head[21:25])
            return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
        case b"VP8X":
            width, height = (
                _little(head[24:27]),
                _little(head[27:30]),
            )
            return width + 1, height + 1
    return None


def _jpeg(head: bytes) -> _Size | None:
    at = 2
    for _ in range(_SEGMENTS_MAX):
        if at + 9 > len(head):
            return None
        marker = head[at + 1]
        if head[at] != 0xFF:
            return None
        if marker == 0xFF:  # fill
            at += 1
        elif marker in _BARE:
            at += 2
        elif marker in _FRAMES:
            height = _big(head[at + 5 : at + 7])
            return _big(head[at + 7 : at + 9]), height
        else:
            at += 2 + _big(head[at + 2 : at + 4])
    return None


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


_READERS: tuple[tuple[bytes, Callable[[bytes], _Size | None]], ...] = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"GIF8", _gif),
    (b"RIFF", _webp),
    (b"\xff\xd8\xff", _jpeg),
)

"""Media inside a request: data URLs, what the bytes really are, and what they may cost at most.

Clients name media types carelessly and some providers check them, so the first bytes decide where
they are known. The bounds are those of the dearest provider: which one serves is not known when
the money is reserved.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from urllib.parse import unquote_to_bytes

import msgspec

from adapters.errors import InvalidRequest
from adapters.image_size import SIZE_BYTES, size_of
from adapters.raw import UNREADABLE, begins

IMAGE_TOKENS = 20_000  # of an image whose size is not known: full detail beyond 12 megapixels
AUDIO_TOKENS_PER_SECOND = 32
AUDIO_BYTES_PER_SECOND = 500  # no container in use has fewer
DOCUMENT_BYTES_PER_PAGE = 500
DOCUMENT_PAGES_MAX = 600
PAGE_TOKENS = IMAGE_TOKENS + 3_000  # a page is billed as an image and as its text

_IMAGE_TOKENS_MIN = 4_784  # where an image's size does not matter: Claude's cap
_SIZE_CHARACTERS = SIZE_BYTES // 3 * 4
_MAGIC_CHARACTERS = 24  # of base64
# A link, data that says so, or base64 without more; slashes may be escaped.
_IMAGE_ADDRESS = re.compile(rb'"(?:data:image|https?:|(?:[a-z0-9+/=_-]|\\/){8})', re.IGNORECASE)
_WHITE_SPACE = re.compile(r"\s+")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")
_URL_SAFE = str.maketrans("-_", "+/")

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mp3"),
)
_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav"}
_SAME_BYTES = (frozenset(("audio/mp3", "audio/mpeg")), frozenset(("audio/wav", "audio/x-wav")))


class _Address(msgspec.Struct, gc=False):
    url: msgspec.Raw = msgspec.Raw()


_decode_address = msgspec.json.Decoder(_Address).decode


def parse_data_url(url: str, field: str) -> tuple[str, str]:
    """The media type, corrected by the data, and the data as base64.

    Raises InvalidRequest naming `field` where there is no data, or none that can be decoded.
    """
    head, comma, data = url.partition(",")
    if not comma or not data.strip():
        raise InvalidRequest(f"{field}: the data URL is empty.", param=field)
    named = head.partition(":")[2].split(";")[0].strip().lower()
    encoded = _WHITE_SPACE.sub("", data)
    if not _is_base64(head, encoded):
        encoded = b64encode(unquote_to_bytes(data)).decode()
    encoded = _normal(encoded, field)
    return sniffed(encoded, named), encoded


def data_url(media_type: str, data: str) -> str:
    """The data URL of base64 `data`."""
    return f"data:{media_type};base64,{data}"


def sniffed(data_base64: str, media_type: str) -> str:
    """What the data is by its first bytes, else `media_type`."""
    found = _by_magic(_decoded(data_base64[:_MAGIC_CHARACTERS]))
    if found is None or any(found in same and media_type in same for same in _SAME_BYTES):
        return media_type
    return found


def checked(media_type: str, kind: str, field: str) -> str:
    """The type of data that came as `kind`: image, audio or text.

    Data of another kind may be billed far above what was reserved for this one: a film or a book
    above a picture. Raises InvalidRequest naming `field`.
    """
    if media_type and not media_type.startswith(f"{kind}/"):
        raise InvalidRequest(
            f"{field}: the data is {media_type}, but it came as {kind}: send it as what it is.",
            param=field,
        )
    return media_type


def may_be_no_image(raw: msgspec.Raw) -> bool:
    """Whether an image's address, or an object with it, has data that is not said to be an image.

    Some providers take anything there, and go by what it is called.
    """
    if begins(raw, b"{"):
        try:
            raw = _decode_address(raw).url
        except UNREADABLE:
            return True
    return bool(raw) and _IMAGE_ADDRESS.match(memoryview(raw)) is None


def image_tokens(data_base64: str = "") -> int:
    """The most input tokens that an image is billed as, whichever provider serves."""
    size = image_size(data_base64)
    if size is None:
        return IMAGE_TOKENS
    return max(_IMAGE_TOKENS_MIN, _patches(*size), _tiles(*size))


def audio_tokens(base64_bytes: int) -> int:
    """The most input tokens that so much audio is billed as."""
    seconds = base64_bytes * 3 // 4 // AUDIO_BYTES_PER_SECOND + 1
    return seconds * AUDIO_TOKENS_PER_SECOND


def document_tokens(base64_bytes: int) -> int:
    """The most input tokens that a document of so many bytes is billed as."""
    pages = base64_bytes * 3 // 4 // DOCUMENT_BYTES_PER_PAGE + 1
    return min(pages, DOCUMENT_PAGES_MAX) * PAGE_TOKENS


def image_size(data_base64: str) -> tuple[int, int] | None:
    """Width and height of an inline image, None where its head does not tell."""
    return size_of(_decoded(data_base64[:_SIZE_CHARACTERS]))


def _patches(width: int, height: int) -> int:
    """The newest OpenAI models: patches of 32 pixels, with a fifth on top."""
    return _steps(_steps(width, 32) * _steps(height, 32) * 6, 5)


def _tiles(width: int, height: int) -> int:
    """Gemini 2: tiles of 768 pixels."""
    return (_steps(width, 768) * _steps(height, 768) + 1) * 258


def _steps(length: int, step: int) -> int:
    return -(-length // step)


def _is_base64(head: str, data: str) -> bool:
    """Whether a data URL says so, or looks like it: the mark is often forgotten."""
    return head.lower().rstrip().endswith(";base64") or _BASE64.fullmatch(data) is not None


def _normal(encoded: str, field: str) -> str:
    """Base64 in the standard alphabet and with its padding."""
    encoded = encoded.translate(_URL_SAFE).rstrip("=")
    encoded += "=" * (-len(encoded) % 4)
    try:
        b64decode(encoded, validate=True)
    except (Base64Error, ValueError):
        raise InvalidRequest(f"{field}: the data is not valid base64.", param=field) from None
    return encoded


def _decoded(data_base64: str) -> bytes:
    try:
        return b64decode(data_base64)
    except (Base64Error, ValueError):
        return b""


def _by_magic(data: bytes) -> str | None:
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12])
    return next((found for magic, found in _MAGIC if data.startswith(magic)), None)

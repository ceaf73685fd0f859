"""What the sandbox's OpenAI counts for pictures: 85 tokens for each, and 170 for each of its tiles.

Tiles are squares of 512 pixels, of a picture made to fit 2,048 by 2,048 pixels and then to be no
more than 768 on its shorter side. A picture that is not a PNG with its data in the URL counts as
one of 1,024 by 1,024.
"""

from __future__ import annotations

import math
from base64 import b64decode
from collections.abc import Iterable

from adapters.sandbox.script import Json

_PNG = "data:image/png;base64,"
_HEAD_CHARACTERS = 32  # of base64: 24 bytes, the last of which are the size
_UNKNOWN = (1024, 1024)


def picture_tokens(parts: Iterable[Json]) -> int:
    """What the pictures among `parts` count, in Chat Completions or in Responses."""
    tokens = 0
    for part in parts:
        if (given := part.get("image_url")) is not None:
            picture = given if isinstance(given, dict) else {**part, "url": given}
            tokens += _tokens(str(picture.get("url")), low=picture.get("detail") == "low")
    return tokens


def _tokens(url: str, *, low: bool) -> int:
    if low:
        return 85
    width, height = _size(url)
    scale = min(1.0, 2048 / max(width, height))
    scale = min(scale, 768 / min(width, height))
    tiles = math.ceil(width * scale / 512) * math.ceil(height * scale / 512)
    return 85 + 170 * max(tiles, 1)


def _size(url: str) -> tuple[int, int]:
    if not url.startswith(_PNG):
        return _UNKNOWN
    try:
        head = b64decode(url[len(_PNG) :][:_HEAD_CHARACTERS])
    except ValueError:
        return _UNKNOWN
    size = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    return size if min(size) else _UNKNOWN

"""(method, path) → which operation is asked for, and the codec that speaks with its caller.

Assembled from the adapters' route tables; a path that no table has is answered in OpenAI's
envelope, the one most clients read.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from adapters import registry
from adapters.codec import DownstreamCodec
from adapters.errors import MethodNotAllowed, NotFound


@dataclass(frozen=True, slots=True)
class Operation:
    """What a caller wants done. `argument` is the part of the path that names something."""

    surface: str
    endpoint: str
    number: int
    codec: DownstreamCodec
    argument: str = ""

"""What is left of a caller's limits, in the headers that the SDKs of its surface know.

OpenAI says when a limit is whole again as a duration, Anthropic as a time of day. Google has no
such headers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Literal, NamedTuple

from adapters.codec import Headers

Unit = Literal["requests", "tokens"]


class Left(NamedTuple):
    """The state of a limit after a request was counted, or refused.

    `reset_seconds` is how long it takes until all of it is there again.
    """

    unit: Unit
    limit: int
    remaining: int
    reset_seconds: float


def openai_headers(limits: Sequence[Left]) -> Headers:
    """The `x-ratelimit-*` family."""
    headers: Headers = []
    for each in limits:
        headers += [
            (f"x-ratelimit-limit-{each.unit}", str(each.limit)),
            (f"x-ratelimit-remaining-{each.unit}", str(each.remaining)),
            (f"x-ratelimit-reset-{each.unit}", f"{each.reset_seconds:.3f}s"),
        ]
    return headers


def anthropic_headers(limits: Sequence[Left], now: float) -> Headers:
    """The `anthropic-ratelimit-*` family; `now` is wall time in seconds.

    Times are whole seconds (RFC 3339), rounded up: nothing is promised too early.
    """
    headers: Headers = []
    for each in limits:
        reset = time.gmtime(math.ceil(now + each.reset_seconds))
        headers += [
            (f"anthropic-ratelimit-{each.unit}-limit", str(each.limit)),
            (f"anthropic-ratelimit-{each.unit}-remaining", str(each.remaining)),
            (f"anthropic-ratelimit-{each.unit}-reset", time.strftime("%Y-%m-%dT%H:%M:%SZ", reset)),
        ]
    return headers

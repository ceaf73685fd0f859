"""What can go wrong between a request to a provider and the end of its answer.

Whatever goes wrong on the way leaves the client side of HTTP as `AttemptFailed`, with facts. What a
provider *says* is no error of this kind: it is an answer.
"""

from __future__ import annotations

from typing import Literal

Reason = Literal[
    "busy",
    "dns",
    "connect",
    "connect_timeout",
    "tls",
    "reset",
    "first_byte_timeout",
    "idle_timeout",
    "protocol",
    "truncated",
]
"""What went wrong on the way, rather than what a provider told of."""


class AttemptFailed(Exception):
    """An attempt did not produce an answer.

    `contacted`: the provider may have seen the request, and may bill for it.
    """

    def __init__(self, reason: Reason, detail: str, *, contacted: bool) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.contacted = contacted


class StaleConnection(Exception):
    """A reused connection was closed before the request can have been acted upon."""

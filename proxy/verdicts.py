"""What an attempt's outcome means: a table, and nothing but a table.

An attempt at an upstream ends with content or with an *outcome*: a kind of failure that the
provider told of (`FailureKind`), or what happened on the way (`Reason`). Everything that follows
from it is decided here, in one place, as data:

- whose `fault` it is. What is the request's own fault is never tried elsewhere: another upstream
  would say the same, and the client can mend it. Everything else may be served by another upstream;
- whether the same upstream may be asked `again` by the same request, after a pause and only where
  no other is left. What is known to last is not repeated, and neither is what took its time to
  fail: the caller has waited long enough;
- what it `says` of the upstream to all requests after this one, and whether of the provider as a
  whole or of its one model (`scope`);
- whether an operator has to do something (`alarm`): nothing mends itself there;
- what the client is `told` where no upstream served.

The statuses are those of RFC 9110 §15, RFC 6585 §4 (429), RFC 8470 §5.2 (425), and 529, which
Anthropic answers with where it is overloaded.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from adapters.codec import FailureKind
from proxy.upstream import Reason

Outcome = FailureKind | Reason


class Fault(enum.Enum):
    """Who is to blame."""

    REQUEST = "request"
    PROVIDER = "provider"
    CREDENTIAL = "credential"  # the operator's account or key there
    MAPPING = "mapping"  # the operator's catalogue
    OURS = "ours"
    NOBODY = "nobody"


class Says(enum.Enum):
    """What an outcome says of the upstream.

    FAILURE counts towards opening its circuit. ALIVE: it is there, which closes a circuit that is
    being tried, but says nothing of how it serves. REST: the same, and it is not to be asked before
    the moment that it named. OUT opens the circuit at once. NOTHING tells nothing.
    """

    FAILURE = "failure"
    ALIVE = "alive"
    REST = "rest"
    OUT = "out"
    NOTHING = "nothing"


Scope = Literal["provider", "upstream"]
Told = Literal["the fault", "unavailable", "overloaded", "timeout"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from one outcome."""

    fault: Fault
    says: Says
    told: Told
    again: bool = False
    scope: Scope = "upstream"
    alarm: bool = False

    @property
    def elsewhere(self) -> bool:
        """Whether another upstream may serve the same request."""
        return self.fault is not Fault.REQUEST


_REQUEST = Verdict(Fault.REQUEST, Says.ALIVE, "the fault")
_CREDENTIAL = Verdict(Fault.CREDENTIAL, Says.OUT, "unavailable", scope="provider", alarm=True)
_AWAY = Verdict(Fault.PROVIDER, Says.FAILURE, "unavailable", again=True, scope="provider")
_BROKEN = Verdict(Fault.PROVIDER, Says.FAILURE, "unavailable", again=True)
_SLOW = Verdict(Fault.PROVIDER, Says.FAILURE, "timeout")

VERDICTS: Mapping[Outcome, Verdict] = {
    # On the way there.
    "busy": Verdict(Fault.OURS, Says.NOTHING, "overloaded"),
    "dns": _AWAY,
    "connect": _AWAY,
    "connect_timeout": Verdict(Fault.PROVIDER, Says.FAILURE, "timeout", scope="provider"),
    "tls": Verdict(Fault.PROVIDER, Says.FAILURE, "unavailable", scope="provider", alarm=True),
    "reset": _BROKEN,
    "first_byte_timeout": _SLOW,
    "idle_timeout": _SLOW,
    # What the provider says of itself.
    "timeout": _SLOW,
    "conflict": Verdict(Fault.NOBODY, Says.ALIVE, "unavailable", again=True),
    "rate_limited": Verdict(Fault.PROVIDER, Says.REST, "overloaded", again=True),
    "over_limit": Verdict(Fault.PROVIDER, Says.ALIVE, "unavailable"),
    "overloaded": Verdict(Fault.PROVIDER, Says.FAILURE, "overloaded", again=True),
    "server_error": _BROKEN,
    "protocol": _BROKEN,
    "truncated": _BROKEN,
    "empty": Verdict(Fault.PROVIDER, Says.NOTHING, "unavailable"),
    # What the operator has to see to.
    "auth": _CREDENTIAL,
    "quota": _CREDENTIAL,
    "forbidden": Verdict(Fault.CREDENTIAL, Says.FAILURE, "unavailable", alarm=True),
    "model_not_found": Verdict(Fault.MAPPING, Says.OUT, "the fault", alarm=True),
    # What the client has to mend.
    "bad_request": _REQUEST,
    "context_length": _REQUEST,
    "content_filter": _REQUEST,
    "too_large": _REQUEST,
    "not_found": _REQUEST,
}

"""What of a request does not fit its provider's protocol, and what becomes of it.

Three reactions, one for each field (docs/protocols.md has the table): a 400 that names the field,
where leaving it out would change what is asked; dropped or approximated, and named in
`x-farebox-dropped`; or left out silently, for pure hints. Losses are known before anything is
sent, so that the answer's head can name them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

from adapters.errors import RequestNotExpressible

_NAMES_MAX = 24  # a head has room for more, and no reader
_NAME = re.compile(r"[A-Za-z0-9_.:/\[\]-]{1,80}")
_MORE = "more"


def told(names: Iterable[str]) -> tuple[str, ...]:
    """Names as they can stand in a header: a client may call its fields anything, and have any
    number of them. What is left out is told as `more`."""
    given = list(names)
    if not given:
        return ()
    safe = [name for name in given if _NAME.fullmatch(name)][:_NAMES_MAX]
    return (*safe, _MORE) if len(safe) < len(given) else tuple(safe)


class Losses:
    """Gathers what one candidate's provider cannot take."""

    __slots__ = ("_found", "_provider")

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._found: dict[str, None] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """As reported: `seed` was dropped, `clamped:temperature` and `approx:effort` changed."""
        return tuple(self._found)

    def drop(self, field: str) -> None:
        """`field` is left out."""
        self._found[field] = None

    def clamp(self, field: str) -> None:
        """`field` is sent with the nearest value that the provider allows."""
        self._found[f"clamped:{field}"] = None

    def approximate(self, what: str) -> None:
        """`what` is expressed by something similar."""
        self._found[f"approx:{what}"] = None

    def degrade(self, what: str) -> None:
        """Without `what` the answer may be worse."""
        self._found[f"degraded:{what}"] = None

    def refuse(self, field: str, why: str) -> NoReturn:
        """Raises RequestNotExpressible. `why` goes on after "The provider NAME"."""
        raise RequestNotExpressible(f"{field}: the provider {self._provider} {why}.", param=field)

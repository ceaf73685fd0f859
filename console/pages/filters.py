"""Long lists are narrowed down to the names that have in them what was typed.

The form needs no script: what was typed stands in the address (`?name=…`), so that it can be kept
and passed on.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

_CHARACTERS_MAX = 100
_SHORT = 10  # rows, among which one finds what one looks for


@dataclass(frozen=True, slots=True)
class NameFilter:
    """What was typed; "" narrows nothing down."""

    typed: str

    @classmethod
    def of(cls, request: Request) -> NameFilter:
        """As the address has it."""
        return cls(request.query_params.get("name", "").strip()[:_CHARACTERS_MAX])

    def takes(self, *names: str) -> bool:
        """Whether it is in one of the names, in whatever case."""
        return any(self.typed.casefold() in name.casefold() for name in names)

    def is_offered(self, rows: int) -> bool:
        """Whether a list of so many rows has the form."""
        return bool(self.typed) or rows > _SHORT

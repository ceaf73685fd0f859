"""What the console refuses, and how it says so.

Every refusal of the JSON API has one form, `{"error": {"code": …, "message": …}}`: the code is for
programs and never changes, the message is a sentence for a person. What a person may have got
wrong, the directory already says in a sentence (`DirectoryRefused`).
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel


class Refused(Exception):
    """The request is answered with this status, code and message."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})


class DatabaseUnavailable(Refused):
    """The database does not answer. A change may or may not have been made."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "database_unavailable",
            "The database does not answer at the moment. Requests to models go on being served.",
            {"retry-after": "1"},
        )


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str
    message: str


class ErrorBody(BaseModel):
    """The body of every answer that refuses."""

    error: ErrorDetail


def body_of(code: str, message: str) -> dict[str, dict[str, str]]:
    """The body of a refusal."""
    return {"error": {"code": code, "message": message}}

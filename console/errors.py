"""What the console refuses, and how it says so.

Every refusal of the JSON API has one form, `{"error": {"code": …, "message": …}}`: the code is for
programs and never changes, the message is a sentence for a person. What a person may have got
wrong, the directory already says in a sentence (`DirectoryRefused`); pages and tools say the same
in their own forms, so that what became of an error is decided once (`refusal_of`).
"""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from console.wording import problem_of
from ledger.directory import DirectoryRefused, DirectoryUnavailable

_CODES = {
    400: "invalid_request",
    401: "not_signed_in",
    403: "permission_denied",
    404: "not_found",
    405: "method_not_allowed",
}


class Refused(Exception):
    """The request is answered with this status, code and message.

    `where` is the field that is wrong, for the API; a page says the `problem` with its own name of
    the field.
    """

    def __init__(
        self,
        status: int,
        code: str,
        problem: str,
        headers: Mapping[str, str] | None = None,
        *,
        where: str = "",
    ) -> None:
        message = f"{where}: {problem}" if where else problem
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})
        self.where = where
        self.problem = problem


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


def refusal_of(error: Exception) -> Refused:
    """What is said to whoever asked. Every other error is a bug, and not told."""
    match error:
        case Refused():
            return error
        case RequestValidationError() | ValidationError():
            where, problem = problem_of(error)
            return Refused(400, "invalid_request", f"{problem}.", where=where)
        case DirectoryRefused():
            return Refused(400, "refused", str(error))
        case DirectoryUnavailable():
            return DatabaseUnavailable()
        case HTTPException():
            code = _CODES.get(error.status_code, "invalid_request")
            return Refused(error.status_code, code, f"{error.detail}.", error.headers)
        case _:
            raise AssertionError(f"no refusal: {error!r}")


def in_json(refused: Refused) -> JSONResponse:
    """A refusal in the form of the API."""
    error = {"code": refused.code, "message": refused.message}
    return JSONResponse({"error": error}, refused.status, headers=refused.headers)

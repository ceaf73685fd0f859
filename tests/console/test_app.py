"""The app as a whole: every refusal in one form, whoever it comes from."""

from __future__ import annotations

from typing import Annotated

import pytest
from fastapi import APIRouter, Query

from console import app
from console.errors import DatabaseUnavailable, Refused
from ledger.directory import DirectoryRefused, DirectoryUnavailable
from tests.fakes.console import browsing, console


async def test_unknown_path_is_refused_in_the_apis_form(database: str) -> None:
    async with browsing(console(database)) as browser:
        answer = await browser.get("/console/api/no/such/thing")
    assert answer.status_code == 404
    assert answer.json() == {"error": {"code": "not_found", "message": "Not Found."}}


async def test_openapi_document_is_served(database: str) -> None:
    async with browsing(console(database)) as browser:
        document = (await browser.get("/console/api/openapi.json")).json()
    assert document["openapi"].startswith("3.")
    assert document["info"]["title"] == "farebox console"


async def test_a_path_with_a_line_break_is_refused_in_the_apis_form(database: str) -> None:
    async with browsing(console(database)) as browser:
        answer = await browser.get("/console/api/invitations/a%0Ab")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def failing(error: Exception) -> APIRouter:
    """One route, which raises this."""
    router = APIRouter()

    @router.get("/thing")
    async def thing(limit: Annotated[int, Query(ge=1)] = 1) -> None:
        assert limit
        raise error

    return router


@pytest.mark.parametrize(
    ("error", "status", "code", "message"),
    [
        (Refused(409, "taken", "It is taken."), 409, "taken", "It is taken."),
        (DirectoryRefused("There is no such key."), 400, "refused", "There is no such key."),
        (DirectoryUnavailable("gone"), 503, "database_unavailable", "The database does not answer"),
        (DatabaseUnavailable(), 503, "database_unavailable", "The database does not answer"),
        (RuntimeError("s3cret"), 500, "internal_error", "The console failed to handle this."),
    ],
)
async def test_every_failure_has_one_form(
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    code: str,
    message: str,
) -> None:
    monkeypatch.setattr(app, "ROUTERS", (failing(error),))
    async with browsing(console(database)) as browser:
        answer = await browser.get("/console/api/thing")
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["message"].startswith(message)
    assert "s3cret" not in answer.text
    assert ("retry-after" in answer.headers) is (status == 503)


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit="])
async def test_what_is_malformed_is_named(
    database: str, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    monkeypatch.setattr(app, "ROUTERS", (failing(RuntimeError()),))
    async with browsing(console(database)) as browser:
        answer = await browser.get(f"/console/api/thing?{query}")
        other = await browser.post("/console/api/thing")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"
    assert answer.json()["error"]["message"].startswith("limit: ")
    assert (other.status_code, other.json()["error"]["code"]) == (405, "method_not_allowed")


async def test_the_document_knows_no_other_form(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "ROUTERS", (failing(RuntimeError()),))
    async with browsing(console(database)) as browser:
        document = (await browser.get("/console/api/openapi.json")).json()
    assert "422" not in document["paths"]["/thing"]["get"]["responses"]
    assert not {"HTTPValidationError", "ValidationError"} & document["components"]["schemas"].keys()

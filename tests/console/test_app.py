"""The app as a whole: every refusal in one form, whoever it comes from."""

from __future__ import annotations

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

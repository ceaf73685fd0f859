"""What is said of wrong input: a sentence, in the words of who typed it, on pages, to programs and
to agents."""

from __future__ import annotations

import re
from html import unescape

import pytest

from tests.console.test_keys import KEYS, MODEL, acme
from tests.fakes.console import PUBLIC_URL
from tests.fakes.tools import toolbox

PAGES = "/console/acme/keys"
LONG = "x" * 101
BEYOND = "9" * 20
FOREIGN = re.compile(r"pattern|pydantic|Input should|Value error|validation error|_type")
"""What no person and no agent should read."""


@pytest.mark.parametrize(
    ("page", "form", "said"),
    [
        (
            "keys",
            {"budget": "abc"},
            "Budget: 'abc' is not an amount in dollars; write it like 12.50.",
        ),
        (
            "keys",
            {"budget": "€5"},
            "Budget: '€5' is not an amount in dollars; write it like 12.50.",
        ),
        (
            "keys",
            {"budget": "-5"},
            "Budget: it has to be more than 0 and at most 4000000000 dollars.",
        ),
        (
            "keys",
            {"budget": BEYOND},
            "Budget: it has to be more than 0 and at most 4000000000 dollars.",
        ),
        ("keys", {"budget": "9" * 41}, "Budget: at most 40 characters are possible."),
        ("keys", {"name": LONG}, "Name: at most 100 characters are possible."),
        ("keys", {"models": "gtp"}, "Models: there is no model 'gtp'."),
        (
            "members",
            {"email": "bob", "role": "viewer"},
            "E-mail address: expected an e-mail address.",
        ),
        (
            "members",
            {"email": "bob@example.test", "role": "boss"},
            "Role: expected 'owner', 'admin', 'developer' or 'viewer'.",
        ),
        ("plan", {"tier": "pro", "note": "x" * 1001}, "Why: at most 1000 characters are possible."),
    ],
)
async def test_a_page_says_it_with_the_name_of_its_field(
    database: str, page: str, form: dict[str, str], said: str
) -> None:
    do = {"keys": "create", "members": "invite", "plan": "ask"}[page]
    async with acme(database) as (_, browser):
        form = {"do": do, "once": "x", "project": "web"} | form
        answer = await browser.post(f"/console/acme/{page}", data=form)
    assert answer.status_code == 400
    notice = re.search(r"role=\"alert\"><p>(.*?)</p>", answer.text)
    assert notice
    assert unescape(notice[1]) == said


@pytest.mark.parametrize("typed", ["$10", "$ 10", "10", "10.00", "010"])
async def test_ten_dollars_are_ten_dollars(database: str, typed: str) -> None:
    async with acme(database) as (_, browser):
        form = {"do": "create", "once": "x", "project": "web", "budget": typed}
        assert (await browser.post(PAGES, data=form)).status_code == 200
        assert (await browser.get(f"{KEYS}/1")).json()["budget"]["usd"] == "10"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"project": "web", "bugdet": 1}, "bugdet: there is no such field."),
        ({}, "project: this is missing."),
        ({"project": 1}, "project: expected text."),
        ({"project": "web", "budget": 5}, "budget: expected an object with fields."),
        ({"project": "web", "budget": {"usd": 5}}, "budget.usd: expected text."),
        (
            {"project": "web", "budget": {"usd": "1", "period": "week"}},
            "budget.period: expected 'month'.",
        ),
        ({"project": "web", "models": "x"}, "models: expected a list."),
        (
            {"project": "web", "expires_at": "soon"},
            "expires_at: expected a time such as 2027-01-31T00:00:00Z.",
        ),
        ({"project": "web", "models": [MODEL] * 101}, "models: at most 100 are possible."),
    ],
)
async def test_the_api_says_it_with_the_path_of_the_field(
    database: str, body: dict[str, object], said: str
) -> None:
    async with acme(database) as (_, browser):
        answer = await browser.post(KEYS, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"] == {"code": "invalid_request", "message": said}
        no_json = await browser.post(
            KEYS, content=b"{", headers={"content-type": "application/json"}
        )
        assert no_json.json()["error"]["message"] == "body: this is not JSON."


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("chat_completion", {"model": "x", "messages": "hi"}, "messages: expected a list."),
        ("create_api_key", {}, "project: this is missing."),
        ("revoke_api_key", {"key_id": "first"}, "key_id: expected a whole number."),
        ("get_usage", {"days": 0}, "days: expected at least 1."),
        (
            "create_api_key",
            {"project": "web", "budget_usd": "a lot"},
            "budget_usd: 'a lot' is not an amount in dollars; write it like 12.50.",
        ),
    ],
)
async def test_a_tool_says_it_with_the_name_of_its_argument(
    database: str, tool: str, arguments: dict[str, object], said: str
) -> None:
    async with acme(database) as (place, browser):
        made = await browser.post(KEYS, json={"project": "web", "scopes": ["keys"]})
        http = await place.browser()
        http.headers = {"authorization": f"Bearer {made.json()['secret']}"}
        async with toolbox(http, f"{PUBLIC_URL}/mcp", "auto") as box:
            refused = await box.refusal(tool, **arguments)
    assert refused.endswith(said)
    assert not FOREIGN.search(refused)

"""Who may call which tool, and how far a key that manages keys reaches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpcore2
import msgspec
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import APIError, InvalidAPIKey, LedgerUnavailable
from adapters.refusals import message_of, retry_headers
from console import rollup
from console.chat import DataPlane, Question
from console.errors import Refused
from console.keys import BudgetIn, KeyIn, delegated
from ledger.accounts import Budget, Holder, Key, KeyScope
from ledger.directory import Directory
from ledger.keys import is_minted
from ledger.money import format_usd, parse_usd
from tests.fakes import history
from tests.fakes.console import FACTS, PUBLIC_URL, Browser, sandbox_catalogue
from tests.fakes.people import Town, town
from tests.fakes.tools import TOOLS, Toolbox, toolbox

SERVING = replace(FACTS, catalogue=sandbox_catalogue())
MODEL, OTHER_MODEL = sorted(SERVING.catalogue.models)[:2]
URL = f"{PUBLIC_URL}/mcp"
KEYS = "/console/api/accounts/acme/keys"
PROJECTS_OF = "/console/api/accounts/acme/projects"
LISTING = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
ACCEPT = {"accept": "application/json, text/event-stream"}


@asynccontextmanager
async def acme(database: str) -> AsyncIterator[Town]:
    """Two accounts with two projects each."""
    with Directory(database) as directory:
        for account in ("acme", "other"):
            directory.create_account(account, credit=parse_usd("5"))
            directory.create_project(account, "web")
            directory.create_project(account, "batch")
    async with town(database, facts=SERVING) as place:
        yield place


@asynccontextmanager
async def calling(place: Town, token: str, mode: str = "auto") -> AsyncIterator[Toolbox]:
    """A client that sends this token."""
    http = await place.browser()
    http.headers = {"authorization": f"Bearer {token}"}
    async with toolbox(http, URL, mode) as box:
        yield box


async def key_of(browser: Browser, **facts: object) -> tuple[str, int]:
    """A new key of acme/web, and its id."""
    answer = await browser.post(KEYS, json={"project": "web", **facts})
    assert answer.status_code == 201, answer.text
    return answer.json()["secret"], answer.json()["key"]["key_id"]


async def asked(place: Town, token: str | None, **headers: str) -> tuple[int, str, str]:
    """Status, code and `www-authenticate` of what a token gets."""
    http = await place.browser()
    http.headers = {**http.headers, **ACCEPT, **headers}
    if token is not None:
        http.headers.update({b"authorization": f"Bearer {token}".encode()})
    answer = await http.post("/mcp", json=LISTING)
    code = answer.json()["error"]["code"] if answer.is_error and answer.text[:1] == "{" else ""
    return answer.status_code, code, answer.headers.get("www-authenticate", "")


# -- who ------------------------------------------------------------------------------------------


async def test_nobody_is_let_in_who_is_not_known(database: str) -> None:
    async with acme(database) as place:
        operator = await place.operator()
        live, _ = await key_of(operator)
        revoked, key_id = await key_of(operator)
        await operator.delete(f"{KEYS}/{key_id}")
        late, _ = await key_of(operator, expires_at="2026-11-20T00:00:00Z")
        assert (await asked(place, live))[0] == 200
        assert (await asked(place, late))[0] == 200
        place.wall.seconds += 86_400 * 30
        refused = (401, "invalid_api_key", "Bearer")
        for token in (revoked, late, live[:-1] + ("a" if live[-1] != "a" else "b")):
            assert await asked(place, token) == refused
        with Directory(database) as directory:
            directory.suspend("acme")
        assert await asked(place, live) == refused
        for nonsense in (None, "", "x", "sk_farebox_short", "é", "\N{SNOWMAN}" * 50):
            assert await asked(place, nonsense) == (401, "not_signed_in", "Bearer")
        assert (await asked(place, "a.b.c"))[::2] == (401, "Bearer")
        assert (await asked(place, place.token("ann", seconds=-3600)))[::2] == (401, "Bearer")


async def test_a_token_without_end_is_a_token(database: str) -> None:
    """Of an issuer who counts milliseconds, say."""
    async with acme(database) as place:
        for seconds in (1e12, 1e17):
            assert (await asked(place, place.token("ann", seconds=seconds)))[0] == 200


async def test_a_cookie_lets_nobody_in(database: str) -> None:
    async with acme(database) as place:
        operator = await place.operator()
        answer = await operator.post("/mcp", json=LISTING, headers=ACCEPT)
        assert answer.status_code == 401


async def test_a_session_s_token_works_until_it_is_signed_out(database: str) -> None:
    async with acme(database) as place:
        operator = await place.operator()
        token = (await operator.post("/console/api/session/token")).json()["token"]
        async with calling(place, token) as box:
            assert {tool.name for tool in (await box.client.list_tools()).tools} == TOOLS
            assert "Say which account: acme, other" in await box.refusal("get_balance")
            assert (await box.call("get_balance", account="other"))["balance_usd"] == "5"
        await operator.delete("/console/api/session", params={"everywhere": "true"})
        assert await asked(place, token) == (401, "not_signed_in", "Bearer")


async def test_only_post_is_answered(database: str) -> None:
    async with acme(database) as place:
        browser = await place.browser()
        for method in ("GET", "DELETE", "PUT", "HEAD"):
            answer = await browser.request(method, "/mcp")
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:8080"}, 200),
        ({"host": "localhost:8080"}, 200),
        ({"host": "evil.test"}, 421),
        ({"origin": PUBLIC_URL}, 200),
        ({"origin": "https://evil.test"}, 403),
    ],
)
async def test_what_asks_is_expected(database: str, headers: dict[str, str], status: int) -> None:
    async with acme(database) as place:
        key, _ = await key_of(await place.operator())
        assert (await asked(place, key, **headers))[0] == status


# -- what an account's people may -----------------------------------------------------------------


async def test_a_viewer_looks_and_no_more(database: str) -> None:
    async with acme(database) as place:
        operator = await place.operator()
        for name, role in (("vic", "viewer"), ("dev", "developer")):
            person = await place.person(name)
            invited = await operator.post(
                "/console/api/accounts/acme/invitations",
                json={"email": f"{name}@example.test", "role": role},
            )
            link = invited.json()["link"].rpartition("/")[2]
            accepted = await person.post("/console/api/invitations/accept", json={"token": link})
            assert accepted.is_success, accepted.text
        _, key_id = await key_of(operator)
        async with calling(place, place.token("vic")) as box:
            assert (await box.call("get_balance"))["account"] == "acme"
            assert len(await box.rows("keys", "list_api_keys")) == 1
            assert await box.rows("latest", "get_usage") == []
            chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
            for tool, arguments in (
                ("create_api_key", {"project": "web"}),
                ("revoke_api_key", {"key_id": key_id}),
                ("chat_completion", {**chat, "project": "web"}),
            ):
                assert "You are a viewer of this account" in await box.refusal(tool, **arguments)
            assert "no account 'other'" in await box.refusal("get_balance", account="other")
        async with calling(place, place.token("dev")) as box:
            await box.call("create_api_key", project="web", name="made")
            await box.call("revoke_api_key", key_id=key_id)
            refused = await box.refusal("chat_completion", **chat)
            assert "Say which project of acme: batch, web" in refused
        log = (await operator.get("/console/api/accounts/acme/audit")).json()["entries"]
        assert [(each["actor"], each["action"], each["target"]) for each in log[:2]] == [
            ("dev@example.test", "key.revoke", f"key {key_id} of acme/web"),
            ("dev@example.test", "key.create", f"key {key_id + 1} of acme/web (made)"),
        ]


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (InvalidAPIKey("The API key is unknown, expired or revoked."), None),
        (LedgerUnavailable("the database cannot be asked for new keys"), 1.0),
    ],
)
async def test_a_refused_session_is_told_at_once_and_in_the_data_plane_s_words(
    database: str, monkeypatch: pytest.MonkeyPatch, error: APIError, seconds: float | None
) -> None:
    """Whether its key is known there is for the data plane to wait for."""
    error.retry_after = seconds
    said = message_of(error, "req_1")
    keys = []

    async def post(_: DataPlane, key: str, question: Question) -> httpcore2.Response:
        keys.append(key)
        body = {"error": {"message": said, "code": error.code}}
        headers = [(name.encode(), value.encode()) for name, value in retry_headers(error)]
        content = msgspec.json.encode(body)
        response = httpcore2.Response(error.status, headers=headers, content=content)
        await response.aread()
        return response

    monkeypatch.setattr(DataPlane, "_post", post)
    async with acme(database) as place:
        token = (await (await place.operator()).post("/console/api/session/token")).json()["token"]
        async with calling(place, token) as box:
            chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
            refused = await box.refusal("chat_completion", **chat, account="acme", project="web")
    assert f"{said} ({error.status} {error.code})" in refused
    assert ("Try again after 1 seconds." in refused) == (seconds is not None)
    assert len(keys) == 1
    assert is_minted(keys[0]), "or nobody waits for it"


# -- what a key may -------------------------------------------------------------------------------


async def test_a_key_without_the_scope_manages_no_keys(database: str) -> None:
    async with acme(database) as place:
        key, key_id = await key_of(await place.operator(), models=[MODEL])
        async with calling(place, key) as box:
            for tool, arguments in (
                ("create_api_key", {"project": "web"}),
                ("revoke_api_key", {"key_id": key_id}),
            ):
                refused = await box.refusal(tool, **arguments)
                assert "made without the scope 'keys'" in refused
            assert "no account 'other'" in await box.refusal("get_balance", account="other")
            assert [each["id"] for each in await box.rows("models", "list_models")] == [MODEL]
            assert (await box.call("get_balance"))["key_budget_left_usd"] is None
            assert len(await box.rows("keys", "list_api_keys")) == 1


async def test_a_key_makes_none_that_may_do_more_than_itself(database: str) -> None:
    async with acme(database) as place:
        operator = await place.operator()
        budget = {"usd": "2.50", "period": "month"}
        expires_at = "2027-01-01T00:00:00Z"
        maker, maker_id = await key_of(
            operator, models=[MODEL], budget=budget, expires_at=expires_at, scopes=["keys"]
        )
        foreign = await operator.post(KEYS, json={"project": "batch"})
        foreign_id = foreign.json()["key"]["key_id"]
        async with calling(place, maker) as box:
            for arguments, why in (
                ({"project": "batch"}, "it belongs to the project 'web'"),
                ({"models": [MODEL, OTHER_MODEL]}, f"it may not use {OTHER_MODEL} itself"),
                ({"budget_usd": "2.51"}, "2.5 USD are left of its own budget"),
                ({"expires_at": "2027-01-01T00:00:01Z"}, "it expires at 2027-01-01"),
                ({"budget_usd": "-1"}, "budget_usd: "),
                ({"budget_usd": "0"}, "budget_usd: it has to be more than 0"),
            ):
                refused = await box.refusal("create_api_key", **{"project": "web"} | arguments)
                assert why in refused
            assert "There is no key" in await box.refusal("revoke_api_key", key_id=foreign_id)
            made = (await box.call("create_api_key", project="web", name="child"))["key"]
            assert isinstance(made, dict)
            assert made["budget"] == {**budget, "usd": "2.5", "spent_usd": "0"}
            assert (made["models"], made["scopes"]) == ([MODEL], [])
            assert (made["made_by"], made["expires_at"]) == (maker_id, expires_at)
            names = [each["name"] for each in await box.rows("keys", "list_api_keys")]
            assert names == ["child", ""]
            await box.call("revoke_api_key", key_id=made["key_id"])
        log = (await operator.get("/console/api/accounts/acme/audit")).json()["entries"]
        assert [(each["actor"], each["action"]) for each in log[:2]] == [
            (f"key {maker_id} of acme/web", "key.revoke"),
            (f"key {maker_id} of acme/web", "key.create"),
        ]


@pytest.mark.unsound_books("a history without money behind it")
async def test_a_key_sees_nothing_of_a_deleted_project_of_the_same_name(database: str) -> None:
    async with acme(database) as place:
        operator = await place.operator()
        old, old_id = await key_of(operator)
        with psycopg.connect(database, autocommit=True) as connection:
            history.fill(connection, 1, [old_id], [1], 2, days=0)
            place.wall.seconds = datetime.now(UTC).timestamp() + 1
        operator = await place.operator()
        async with calling(place, old) as box:
            assert len(await box.rows("latest", "get_usage")) == 2
        gone = await operator.delete(f"{PROJECTS_OF}/web")
        assert gone.is_success, gone.text
        assert (await operator.post(PROJECTS_OF, json={"name": "web"})).is_success
        new, new_id = await key_of(operator)
        with psycopg.connect(database, autocommit=True) as connection:
            history.fill(connection, 1, [new_id], [1], 1, days=0)
        while await rollup.sum_up(place.console):
            place.wall.seconds = datetime.now(UTC).timestamp() + 1
        async with calling(place, new) as box:
            used = await box.call("get_usage")
            assert [each["key_id"] for each in used["latest"]] == [new_id]  # type: ignore[attr-defined] # rows
            assert used["requests"] == 1


async def test_the_old_protocol_is_spoken_too(database: str) -> None:
    async with acme(database) as place:
        key, _ = await key_of(await place.operator())
        async with calling(place, key, "legacy") as box:
            assert (await box.call("get_balance"))["account"] == "acme"


async def test_what_is_no_argument_is_told(database: str) -> None:
    async with acme(database) as place:
        key, _ = await key_of(await place.operator())
        async with calling(place, key) as box:
            for tool, arguments in (
                ("get_usage", {"days": 0}),
                ("get_usage", {"latest": 10**9}),
                ("revoke_api_key", {"key_id": "x"}),
                ("revoke_api_key", {"key_id": 2**70}),
                ("chat_completion", {"model": MODEL, "messages": []}),
                ("no_such_tool", {}),
            ):
                assert await box.refusal(tool, **arguments)


# -- the rule itself ------------------------------------------------------------------------------

AT = datetime(2026, 11, 1, tzinfo=UTC)
NAMES = st.lists(st.sampled_from(["a", "b", "c"]), unique=True)
AMOUNTS = st.none() | st.integers(1, 1000)
MOMENTS = st.none() | st.integers(1, 1000).map(lambda days: AT + timedelta(days=days))
NO_OR_ONE_SCOPE: list[list[KeyScope]] = [[], ["keys"]]
SCOPES = st.sampled_from(NO_OR_ONE_SCOPE)
PROJECTS = st.sampled_from(["web", "batch"])


def budget_in(amount: int | None) -> BudgetIn | None:
    return None if amount is None else BudgetIn(usd=format_usd(amount))


@given(
    names=NAMES,
    amount=AMOUNTS,
    spent=st.integers(0, 2000),
    until=MOMENTS,
    scopes=SCOPES,
    wanted=st.builds(
        KeyIn,
        project=PROJECTS,
        budget=AMOUNTS.map(budget_in),
        expires_at=MOMENTS,
        models=NAMES,
        scopes=SCOPES,
    ),
)
def test_whatever_is_wanted_is_within_the_key_that_makes_it(
    names: list[str],
    amount: int | None,
    spent: int,
    until: datetime | None,
    scopes: list[KeyScope],
    wanted: KeyIn,
) -> None:
    budget = None if amount is None else Budget(amount)
    key = Key(1, "acme", "web", "", budget, tuple(names), AT, until, None, tuple(scopes))
    left = None if amount is None else amount - spent
    is_less = (
        wanted.project == "web"
        and not wanted.scopes
        and set(wanted.models) <= set(names or wanted.models)
        and (wanted.expires_at is None or until is None or wanted.expires_at <= until)
        and (left is None or left > 0)
        and (left is None or wanted.budget is None or parse_usd(wanted.budget.usd) <= left)
    )
    holder = Holder(key, 1, 1, False, left)
    if not (scopes and is_less):
        with pytest.raises(Refused, match="cannot m") as refused:
            delegated(holder, wanted)
        assert refused.value.status == 403
        return
    made = delegated(holder, wanted)
    assert (made.project, made.scopes) == ("web", [])
    assert not names or (made.models and set(made.models) <= set(names))
    assert until is None or (made.expires_at is not None and made.expires_at <= until)
    assert left is None or (made.budget is not None and parse_usd(made.budget.usd) <= left)


# -- around it ------------------------------------------------------------------------------------


async def test_the_page_makes_a_key_that_manages_keys(database: str) -> None:
    async with acme(database) as place:
        operator = await place.operator()
        form = {"do": "create", "once": "x", "project": "web", "name": "ops", "scopes": "keys"}
        answer = await operator.post("/console/acme/keys", data=form)
        assert answer.status_code == 200, answer.text
        assert "manages keys" in answer.text
        (key,) = (await operator.get(KEYS)).json()["keys"]
        assert (key["name"], key["scopes"], key["made_by"]) == ("ops", ["keys"], None)
        log = (await operator.get("/console/api/accounts/acme/audit")).json()["entries"]
        assert log[0]["detail"] == {"budget": "none", "scopes": "keys"}


async def test_no_other_scope_can_be_asked_for(database: str) -> None:
    async with acme(database) as place:
        operator = await place.operator()
        for scopes in (["all"], ["keys", "keys"], "keys"):
            answer = await operator.post(KEYS, json={"project": "web", "scopes": scopes})
            assert answer.json()["error"]["code"] == "invalid_request"
        assert (await operator.get(KEYS)).json() == {"keys": []}


async def test_of_a_bug_nothing_is_told(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Directory, name: str) -> None:
        raise RuntimeError(f"a detail of {name}")

    async with acme(database) as place:
        key, _ = await key_of(await place.operator())
        monkeypatch.setattr(Directory, "show_account", fail)
        async with calling(place, key) as box:
            assert await box.refusal("get_balance") == "Error executing tool get_balance"

"""The pages in memory: who sees which, what is offered to whom, and what a refused form shows."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click
import psycopg
import pytest
import trio

from console.context import wall_seconds
from console.pages import frame
from console.sessions import Verifier
from console.settings import ConsoleSettings, StripeSettings
from farebox.cli import cli
from ledger.directory import Directory
from ledger.money import parse_usd
from tests.fakes import history, stripe
from tests.fakes.console import FACTS, Browser, sandbox_catalogue
from tests.fakes.people import Town, town

SERVING = replace(FACTS, catalogue=sandbox_catalogue())
MODEL = next(iter(SERVING.catalogue.models))
TEMPLATES = Path(frame.__file__).parents[1] / "templates"
DOCS = Path(frame.__file__).parents[2] / "docs"
MARKUP = "<b>&amp;'\"x"
ESCAPED = "&lt;b&gt;&amp;amp;&#39;&#34;x"

TITLES = {
    "": "Overview",
    "/usage": "Usage",
    "/keys": "Keys",
    "/models": "Models",
    "/billing": "Credit and billing",
    "/plan": "Plan and limits",
    "/members": "Members",
    "/audit": "Audit log",
    "/integrations": "Integrations",
    "/errors": "Error codes",
    "/settings": "Settings",
}
ONLY_FOR_ADMINS = {"/billing", "/audit"}
FORMS = (
    ("/keys", {"do": "create", "project": "web", "name": "mine"}),
    ("/keys", {"do": "revoke", "key_id": "1"}),
    ("/keys", {"do": "create-project", "name": "mine"}),
    ("/keys", {"do": "change-project", "project": "web", "budget": "1"}),
    ("/keys", {"do": "delete-project", "project": "web"}),
    ("/keys/1", {"do": "change", "name": "mine"}),
    ("/keys/1", {"do": "revoke"}),
    ("/billing", {"do": "top-up", "amount": "10"}),
    ("/billing", {"do": "go-on", "payment_id": "00000000-0000-4000-8000-000000000000"}),
    ("/billing", {"do": "save-card"}),
    ("/billing", {"do": "remove-card"}),
    ("/billing", {"do": "recharge"}),
    ("/plan", {"do": "ask", "tier": "pro"}),
    ("/plan", {"do": "withdraw", "request_id": "1"}),
    ("/plan", {"do": "set", "tier": "pro"}),
    ("/billing", {"do": "credit", "usd": "5", "reason": "mine"}),
    ("/plan", {"do": "decide", "decision": "grant", "request_id": "1"}),
    ("/members", {"do": "invite", "email": "bob@example.test", "role": "owner"}),
    ("/members", {"do": "withdraw", "invitation_id": "1"}),
    ("/members", {"do": "change", "user_id": "1", "role": "owner"}),
    ("/members", {"do": "remove", "user_id": "1"}),
)


@dataclass
class Acme:
    """The account `acme` with a key and a request, and who is in front of it."""

    place: Town
    owner: Browser
    viewer: Browser
    stranger: Browser
    nobody: Browser


def furnish(database: str) -> None:
    with Directory(database, secret=b"x" * 32) as directory:
        account = directory.create_account("acme", credit=parse_usd("25"))
        directory.create_account("other")
        directory.create_project("acme", "web")
        key, _ = directory.create_key("acme", "web", "laptop")
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO directory.model (name) VALUES (%s)", [MODEL])
        history.fill(connection, account.account_id, [key.key_id], [1], 1, days=0)


@asynccontextmanager
async def acme(database: str) -> AsyncIterator[Acme]:
    await trio.to_thread.run_sync(furnish, database)
    async with town(database, facts=SERVING) as place:
        place.wall.seconds = wall_seconds()  # the database has made the history, by its clock
        owner = await place.person("owner")
        viewer = await place.person("viewer")
        with psycopg.connect(database) as connection:
            connection.execute(
                "INSERT INTO console.member (account_id, user_id, role, created_at)"
                " SELECT a.account_id, u.user_id, u.subject, now()"
                "   FROM directory.account a, console.user u"
                "  WHERE a.name = 'acme' AND u.subject IN ('owner', 'viewer')"
            )
        stranger = await place.person("stranger")
        yield Acme(place, owner, viewer, stranger, await place.browser())


def title(text: str) -> str:
    found = re.search(r"<title>(.*?) · farebox</title>", text)
    assert found, text[:500]
    return found[1]


unsound = pytest.mark.unsound_books("its one request was never paid for")


@unsound
async def test_every_page_has_its_title_and_its_reader(database: str) -> None:
    async with acme(database) as people:
        for path, name in TITLES.items():
            for_owner = await people.owner.get(f"/console/acme{path}")
            assert (for_owner.status_code, title(for_owner.text)) == (200, name)
            assert for_owner.headers["cache-control"] == "no-store"
            for_viewer = await people.viewer.get(f"/console/acme{path}")
            if path in ONLY_FOR_ADMINS:
                assert for_viewer.status_code == 403
                assert "only an admin can do this" in for_viewer.text
            else:
                assert (for_viewer.status_code, title(for_viewer.text)) == (200, name)
            for_stranger = await people.stranger.get(f"/console/acme{path}")
            assert (for_stranger.status_code, title(for_stranger.text)) == (404, "404")
            assert "laptop" not in for_stranger.text
            for_nobody = await people.nobody.get(f"/console/acme{path}")
            assert for_nobody.status_code == 303
            wanted = f"/console/acme{path}".replace("/", "%2F")
            assert for_nobody.headers["location"] == f"/console/sign-in?next={wanted}"


@unsound
async def test_nothing_stands_inline_in_any_page(database: str) -> None:
    """The content security policy would forbid it, and somebody would miss it."""
    async with acme(database) as people:
        for path in [*TITLES, "/keys/1"]:
            text = (await people.owner.get(f"/console/acme{path}")).text
            assert not re.search(r"<style|style=|<script(?! src=\")|\son\w+=|javascript:", text)
            for address in re.findall(r"(?:src|href)=\"([^\"]*)\"", text):
                assert address.startswith(("/console", "#")), address


@pytest.mark.parametrize(
    "text",
    [*sorted(TEMPLATES.glob("*.html")), *sorted(DOCS.glob("*.md"))],
    ids=lambda path: path.name,
)
def test_commands_that_people_are_told_to_type_exist(text: Path) -> None:
    for line in re.findall(r"[\n`>\"]farebox ([a-z][a-z -]*)", text.read_text()):
        command: click.Command = cli
        for word in line.split():
            if not isinstance(command, click.Group):
                break
            assert word in command.commands, line
            command = command.commands[word]


async def test_keys_look_as_this_gateways_do(database: str) -> None:
    with Directory(database) as directory:
        directory.create_account("acme")
    async with town(database, facts=replace(SERVING, brand="tollbooth")) as place:
        operator = await place.operator()
        text = (await operator.get("/console/acme/integrations")).text
    assert "sk_tollbooth_…" in text
    assert "sk_farebox_" not in text


@unsound
async def test_every_link_in_the_menu_leads_to_a_page(database: str) -> None:
    async with acme(database) as people:
        for browser, least in ((people.owner, 11), (people.viewer, 9)):
            home = (await browser.get("/console/acme")).text
            menu = re.findall(r"<li><a href=\"([^\"]+)\" data-key", home)
            assert len(menu) == least
            for address in menu:
                assert (await browser.get(address)).status_code == 200


@unsound
async def test_a_request_and_a_key_have_pages_of_their_own(database: str) -> None:
    async with acme(database) as people:
        listed = (await people.viewer.get("/console/acme/usage")).text
        found = re.search(r"href=\"(/console/acme/usage/[0-9a-f-]{36})\"", listed)
        assert found
        shown = await people.viewer.get(found[1])
        assert (shown.status_code, title(shown.text)) == (200, "Request")
        assert (await people.stranger.get(found[1])).status_code == 404
        key = await people.viewer.get("/console/acme/keys/1")
        assert (key.status_code, title(key.text)) == (200, "laptop")
        for path in ("/usage/nonsense", "/usage/00000000-0000-7000-8000-000000000000"):
            assert (await people.owner.get(f"/console/acme{path}")).status_code == 404
        for path in ("/keys/2", "/keys/x", "/keys/99999999999999999999", "/no-such-page"):
            assert (await people.owner.get(f"/console/acme{path}")).status_code == 404


@unsound
async def test_a_viewer_is_offered_nothing_to_change(database: str) -> None:
    async with acme(database) as people:
        for path in [*TITLES, "/keys/1"]:
            if path in ONLY_FOR_ADMINS:
                continue
            text = (await people.viewer.get(f"/console/acme{path}")).text
            done = set(re.findall(r"name=\"do\" value=\"([\w-]+)\"", text))
            assert done <= {"token", "everywhere", "remove"}, path
            for hidden in ONLY_FOR_ADMINS:
                assert f'"/console/acme{hidden}"' not in text, path


@unsound
async def test_a_viewer_may_send_no_form(database: str) -> None:
    async with acme(database) as people:
        for path, form in FORMS:
            if form["do"] == "remove":
                continue  # everybody may leave
            refused = await people.viewer.post(f"/console/acme{path}", data=form)
            assert refused.status_code == 403, form
            assert (
                await people.stranger.post(f"/console/acme{path}", data=form)
            ).status_code == 404
            assert (await people.nobody.post(f"/console/acme{path}", data=form)).status_code == 303
        keys = (await people.owner.get("/console/api/accounts/acme/keys")).json()["keys"]
        assert [(key["name"], key["state"]) for key in keys] == [("laptop", "live")]
        other = await people.viewer.post(
            "/console/acme/members", data={"do": "remove", "user_id": 1}
        )
        assert other.status_code == 403


@unsound
async def test_a_form_that_nobody_knows_is_refused(database: str) -> None:
    async with acme(database) as people:
        for form in ({}, {"do": "nonsense"}):
            answer = await people.owner.post("/console/acme/keys", data=form)
            assert answer.status_code == 400
        assert (await people.owner.post("/console/acme/errors", data={})).status_code == 405
        long = await people.owner.post("/console/acme/keys", data={"name": "x" * 70_000})
        assert (long.status_code, title(long.text)) == (413, "413")


@unsound
@pytest.mark.parametrize(
    ("path", "form", "said", "kept"),
    [
        (
            "/keys",
            {"do": "create", "project": "web", "name": "mine", "budget": "much"},
            "Budget: ",
            ('value="mine"', 'value="much"'),
        ),
        (
            "/keys",
            {"do": "create", "project": "web", "name": "mine", "models": "no-such-model"},
            "no-such-model",
            ('value="mine"', 'value="no-such-model"'),
        ),
        (
            "/keys",
            {"do": "create-project", "name": "web", "budget": "7", "period": "month"},
            "web",
            ('value="web"', 'value="7"', 'value="month" selected'),
        ),
        (
            "/keys/1",
            {"do": "change", "name": "mine", "expires": "soon"},
            "is no date",
            ('value="mine"', 'value="soon"'),
        ),
        (
            "/keys/1",
            {"do": "change", "name": "mine", "expires": "9999-12-31"},
            "is no date",
            ('value="mine"', 'value="9999-12-31"'),
        ),
        (
            "/members",
            {"do": "invite", "email": "nonsense", "role": "viewer"},
            "E-mail address",
            ('value="nonsense"', "<option selected>viewer"),
        ),
        ("/plan", {"do": "ask", "tier": "gold", "note": "please"}, "gold", ()),
    ],
    ids=["amount", "model", "project", "date", "last date", "address", "tier"],
)
async def test_a_refused_form_says_why_and_keeps_what_was_typed(
    database: str, path: str, form: dict[str, str], said: str, kept: tuple[str, ...]
) -> None:
    async with acme(database) as people:
        answer = await people.owner.post(f"/console/acme{path}", data={"once": "x"} | form)
    assert 400 <= answer.status_code < 500
    notice = re.search(r"<div class=\"callout bad\" role=\"alert\"><p>(.*?)</p>", answer.text)
    assert notice
    assert said in notice[1]
    for text in kept:
        assert text in answer.text, text


@unsound
async def test_names_are_text_wherever_they_stand(database: str) -> None:
    async with acme(database) as people:
        form = {"do": "create", "once": "x", "project": "web", "name": MARKUP}
        made = await people.owner.post("/console/acme/keys", data=form)
        assert made.status_code == 200
        with psycopg.connect(database) as connection:
            connection.execute("UPDATE directory.model SET name = %s", [MARKUP])
            connection.execute("UPDATE directory.project SET name = %s", [MARKUP])
            connection.execute("SELECT console.sum_up_usage(1000)")
        for path in ("", "/usage", "/keys", "/keys/2", "/audit"):
            text = (await people.owner.get(f"/console/acme{path}")).text
            assert "<b>" not in text, path
            assert ESCAPED in text, path
        for path in (
            "/usage?model=",
            "/usage?project=",
            "/keys?revoked=",
            "?done=",
            "/audit?before=",
        ):
            text = (await people.owner.get(f"/console/acme{path}%3Cb%3E")).text
            assert "<b>" not in text, path
        wrong = await people.owner.post(
            "/console/acme/keys", data=form | {"once": "y", "project": "<b>"}
        )
        assert "<b>" not in wrong.text


@unsound
async def test_a_filter_that_makes_no_sense_is_refused(database: str) -> None:
    async with acme(database) as people:
        for query in ("key_id=x", "outcome=lost", "days=3", "after=nonsense"):
            answer = await people.owner.get(f"/console/acme/usage?{query}")
            assert (answer.status_code, title(answer.text)) == (400, "400"), query


@unsound
async def test_a_filter_finds_what_fits(database: str) -> None:
    async with acme(database) as people:
        for query, rows in (
            (f"model={MODEL}", 1),
            ("model=other", 0),
            ("project=web", 1),
            ("key_id=1", 1),
            ("key_id=2", 0),
            ("outcome=served", 1),
            ("outcome=failed", 0),
            ("days=7", 1),
        ):
            text = (await people.owner.get(f"/console/acme/usage?{query}")).text
            assert text.count('<td class="nowrap"><a href="/console/acme/usage/') == rows, query
            assert ("No request fits" in text) == (not rows)


@unsound
async def test_a_request_is_found_by_its_id(database: str) -> None:
    async with acme(database) as people:
        listed = await people.owner.get("/console/acme/usage")
        assert '<option value="1" >laptop</option>' in listed.text
        assert '<span class="under break">laptop</span>' in listed.text
        found = re.search(r"href=\"(/console/acme/usage/([0-9a-f-]{36}))\"", listed.text)
        assert found
        search = "/console/acme/usage?request_id="
        assert (await people.owner.get(f"{search}%20{found[2]}")).headers["location"] == found[1]
        for unknown in ("nonsense", "%3Cb%3E", "00000000-0000-7000-8000-000000000000"):
            answer = await people.owner.get(search + unknown)
            assert (answer.status_code, title(answer.text)) == (404, "Usage")
            assert "request" in answer.text
            assert "<b>" not in answer.text


async def test_the_operator_sees_every_account(database: str) -> None:
    with Directory(database) as directory:
        directory.create_account("acme")
        directory.create_account("other")
    async with town(database, facts=SERVING) as place:
        operator = await place.operator()
        listed = (await operator.get("/console")).text
        assert 'href="/console/acme"' in listed
        assert 'href="/console/other"' in listed
        assert (await operator.get("/console/acme/audit")).status_code == 200


async def test_nobody_is_invited_where_nobody_can_sign_in(database: str) -> None:
    with Directory(database) as directory:
        directory.create_account("acme")
    async with town(database, facts=SERVING) as place:
        operator = await place.operator()
        assert "[console]" not in (await operator.get("/console/acme/members")).text
        place.console.verifier = Verifier(ConsoleSettings(), place.wall)
        shown = (await operator.get("/console/acme/members")).text
        assert 'value="invite"' not in shown
        assert "jwks_url" in shown
        wanted = {"email": "bob@example.test", "role": "viewer"}
        refused = await operator.post("/console/api/accounts/acme/invitations", json=wanted)
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "no_sign_in"


async def test_the_operator_sets_tiers_and_adds_credit(database: str) -> None:
    with Directory(database) as directory:
        directory.create_account("acme", credit=parse_usd("25"))
        directory.create_account("late")
        directory.suspend("late")
    async with town(database, facts=SERVING) as place:
        operator = await place.operator()
        billing, plan = "/console/acme/billing", "/console/acme/plan"
        credit = {"do": "credit", "once": "x", "usd": "$1,000.50", "reason": "invoice 7"}
        assert (await operator.post(billing, data=credit)).status_code == 303
        assert (await operator.post(billing, data=credit)).status_code == 409
        for wrong in ({"usd": "-5"}, {"reason": ""}, {"usd": ""}):
            again = credit | {"once": "y"} | wrong
            assert (await operator.post(billing, data=again)).status_code == 400
        assert (await operator.post(plan, data={"do": "set", "tier": "gold"})).status_code == 400
        assert (await operator.post(plan, data={"do": "set", "tier": "pro"})).status_code == 303
        ann = await place.person("ann")
        own = (await ann.post("/console")).headers["location"].partition("?")[0]
        asked = await ann.post(f"{own}/plan", data={"do": "ask", "tier": "pro"})
        assert asked.status_code == 303
        assert (await ann.post(f"{own}/plan", data={"do": "set", "tier": "pro"})).status_code == 403
        assert (await ann.post(f"{own}/billing", data=credit)).status_code == 403
        listed = (await operator.get("/console")).text
        entries = (await operator.get("/console/api/accounts/acme/audit")).json()["entries"]
    assert "$1,025.50" in listed
    assert "pro" in listed.partition("$1,025.50")[2]
    assert listed.count("suspended") == 1
    assert 0 < listed.index("1 asked for another plan") < listed.index("Balance")
    assert [each["action"] for each in entries] == ["plan.set", "credit.add"]
    assert entries[1]["detail"] == {"usd": "1000.5", "reason": "invoice 7"}


def rows_of(text: str, path: str) -> list[str]:
    """The names that lead from a list to what is below `path`."""
    return re.findall(rf'<td[^>]*><a href="{path}[^"?/]+">([^<]+)</a>', text)


async def test_a_long_list_of_accounts_is_narrowed_down_by_name(database: str) -> None:
    with Directory(database) as directory:
        for name in ("acme", "Acme-2", *(f"shop-{number}" for number in range(8))):
            directory.create_account(name)
        async with town(database, facts=SERVING) as place:
            operator = await place.operator()
            listed = (await operator.get("/console?accounts=shown")).text
            assert 'aria-label="Filter"' not in listed
            assert len(rows_of(listed, "/console/")) == 10
            directory.create_account("last")
            assert 'aria-label="Filter"' in (await operator.get("/console")).text
            found = {
                typed: rows_of(
                    (await operator.get("/console", params={"name": typed})).text, "/console/"
                )
                for typed in ("ACME", " acme-2 ", "shop", "acme 2", MARKUP)
            }
            nobody = (await operator.get("/console", params={"name": MARKUP})).text
    assert sorted(found["ACME"]) == ["Acme-2", "acme"]
    assert found[" acme-2 "] == ["Acme-2"]
    assert len(found["shop"]) == 8
    assert found["acme 2"] == found[MARKUP] == []
    assert "No account is called like that" in nobody
    assert f'value="{ESCAPED}"' in nobody


async def test_a_long_list_of_keys_is_narrowed_down_by_name_or_project(database: str) -> None:
    with Directory(database, secret=b"x" * 32) as directory:
        directory.create_account("acme")
        for project in ("web", "batch"):
            directory.create_project("acme", project)
        for number in range(8):
            directory.create_key("acme", "web", f"laptop {number}")
        old, _ = directory.create_key("acme", "batch", "old nightly")
        directory.revoke_key(old.key_id)
        directory.create_key("acme", "batch", "Nightly")
        async with town(database, facts=SERVING) as place:
            operator = await place.operator()
            keys = "/console/acme/keys"
            assert 'aria-label="Filter"' not in (await operator.get(keys)).text
            unnamed, _ = directory.create_key("acme", "web")
            assert 'aria-label="Filter"' in (await operator.get(keys)).text
            found = {
                typed: (await operator.get(keys, params={"name": typed})).text
                for typed in ("laptop", "night", "batch", f"key {unnamed.key_id}", "nothing")
            }
            revoked = await operator.get(keys, params={"name": "night", "revoked": "shown"})
    named = {typed: rows_of(text, f"{keys}/") for typed, text in found.items()}
    assert len(named["laptop"]) == 8
    assert named["night"] == named["batch"] == ["Nightly"]
    assert named[f"key {unnamed.key_id}"] == [f"key {unnamed.key_id}"]
    assert named["nothing"] == []
    assert "No key or project is called like that" in found["nothing"]
    assert 'keys?revoked=shown&amp;name=night">Show 1 revoked' in found["night"]
    assert sorted(rows_of(revoked.text, f"{keys}/")) == ["Nightly", "old nightly"]
    assert '<input type="hidden" name="revoked" value="shown">' in revoked.text


async def test_who_is_new_opens_an_account(database: str) -> None:
    async with town(database, facts=SERVING) as place:
        ann = await place.person("ann")
        assert title((await ann.get("/console")).text) == "Accounts"
        opened = await ann.post("/console")
        assert opened.status_code == 303
        home = await ann.get(opened.headers["location"])
        assert "Your account is open." in home.text
        again = await ann.get("/console")
        assert again.headers["location"] == opened.headers["location"].partition("?")[0]


@unsound
async def test_who_belongs_to_one_account_finds_the_way_to_another(database: str) -> None:
    async with acme(database) as people:
        home = await people.viewer.get("/console")
        assert home.headers["location"] == "/console/acme"
        (address,) = re.findall(
            r"href=\"([^\"]+)\">Accounts<", (await people.viewer.get("/console/acme")).text
        )
        listed = (await people.viewer.get(address)).text
        assert title(listed) == "Accounts"
        assert 'href="/console/acme"' in listed
        assert "Open an account of my own" in listed
        opened = await people.viewer.post("/console")
        assert opened.status_code == 303
        assert "viewer" in opened.headers["location"]
        owner = (await people.owner.get(address)).text
        assert "Open an account of my own" not in owner


async def test_amounts_of_top_ups_are_read_as_people_type_them(database: str) -> None:
    with Directory(database) as directory:
        directory.create_account("acme")
    with stripe.serving() as stand_in:
        settings = StripeSettings(
            api_key=stripe.API_KEY,
            webhook_secret=stripe.WEBHOOK_SECRET,
            api_base=stand_in.base_url,
        )
        async with town(database, facts=SERVING, stripe=settings) as place:
            operator = await place.operator()
            form = {"do": "recharge", "threshold": "$10", "monthly_cap": "1,250.00"}
            for amount, status in (("12,50", 400), ("$1,000", 303)):
                answer = await operator.post(
                    "/console/acme/billing", data=form | {"amount": amount}
                )
                assert answer.status_code == status
            found = (await operator.get("/console/api/accounts/acme/recharge")).json()["recharge"]
    assert (found["threshold"], found["amount"], found["monthly_cap"]) == ("10", "1000", "1250")


async def test_payments_say_what_was_wrong(database: str) -> None:
    with Directory(database) as directory:
        directory.create_account("acme")
    with stripe.serving() as stand_in:
        settings = StripeSettings(
            api_key=stripe.API_KEY,
            webhook_secret=stripe.WEBHOOK_SECRET,
            api_base=stand_in.base_url,
        )
        async with town(database, facts=SERVING, stripe=settings) as place:
            operator = await place.operator()
            top_up = {"do": "top-up", "amount": "100", "other": "1", "save": "yes"}
            refused = await operator.post("/console/acme/billing", data=top_up)
            assert refused.status_code == 400
            assert 'value="100" checked' in refused.text
            assert re.search(r"name=\"other\"[^>]* value=\"1\"", refused.text)
            assert 'name="save" value="yes" checked' in refused.text
            started = await operator.post("/console/acme/billing", data=top_up | {"other": ""})
            assert started.status_code == 303
            assert started.headers["location"].startswith(stand_in.base_url)

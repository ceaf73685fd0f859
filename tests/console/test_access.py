"""Roles: who may do what, whoever asks, in whatever order, and at the same moment."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, get_args

import psycopg
import pytest
import trio
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from console import app
from console.access import LEAST, ROLES, Action, Role, caller_of, may, member_of
from console.store import people
from ledger.directory import Directory
from tests.fakes.console import Browser
from tests.fakes.people import Town, town

API = "/console/api"

# Signing in; models and prices; what Stripe signs.
OPEN_TO_ALL = {"/session", "/session/link", "/models", "/stripe/webhook"}

# Written out, so that a change of the product's table is a change here too.
MAY: dict[Role, set[Action]] = {
    "viewer": {"read"},
    "developer": {"read", "keys.write"},
    "admin": {
        "read",
        "keys.write",
        "projects.write",
        "billing.read",
        "billing.write",
        "members.write",
        "settings.write",
        "audit.read",
        "plan.request",
    },
    "owner": {
        "read",
        "keys.write",
        "projects.write",
        "billing.read",
        "billing.write",
        "members.write",
        "settings.write",
        "audit.read",
        "plan.request",
    },
}


@pytest.mark.parametrize("role", get_args(Role))
@pytest.mark.parametrize("action", get_args(Action))
def test_each_role_may_do_what_it_may(role: Role, action: Action) -> None:
    assert may(role, action) == (action in MAY[role])
    assert may(role, action, is_operator=True)


def test_the_tables_are_complete() -> None:
    assert set(ROLES) == set(get_args(Role)) == set(get_args(people.Role))
    assert set(LEAST) == set(get_args(Action))


# -- routes ---------------------------------------------------------------------------------------


def routes() -> Iterator[APIRoute]:
    """Every route of the JSON API."""
    for router in app.ROUTERS:
        for found in iter_route_contexts(router.routes):
            assert isinstance(found.original_route, APIRoute)
            yield found.original_route


def calls(dependant: Dependant) -> Iterator[object]:
    yield dependant.call
    for one in dependant.dependencies:
        yield from calls(one)


def test_no_route_of_an_account_forgets_to_ask_who_it_is() -> None:
    of_accounts = [route for route in routes() if "{account}" in route.path]
    assert "/accounts/{account}/members" in {route.path for route in of_accounts}
    assert not [one.path for one in of_accounts if member_of not in set(calls(one.dependant))]


def test_whoever_has_not_signed_in_is_asked_to_but_where_that_is_meant() -> None:
    open_to_all = {route.path for route in routes() if caller_of not in set(calls(route.dependant))}
    assert open_to_all == OPEN_TO_ALL


# -- who may do what to whom ----------------------------------------------------------------------

Verb = Literal["change", "remove", "invite"]
NAMES = ("ann", "bob", "cat", "dan")
OPERATOR = "operator"
RANK = {"viewer": 0, "developer": 1, "admin": 2, "owner": 3}


numbers = itertools.count(1)


@dataclass(frozen=True)
class Step:
    """Somebody tries something with somebody."""

    actor: str
    verb: Verb
    target: str
    role: Role


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from((*NAMES, OPERATOR)),
        st.sampled_from(get_args(Verb)),
        st.sampled_from(NAMES),
        st.sampled_from(get_args(Role)),
    ),
    max_size=12,
)


@dataclass
class Model:
    """The same rules, said in another way: what each step is answered, and what comes of it."""

    roles: dict[str, Role] = field(default_factory=dict)

    def answer(self, step: Step) -> int:
        if step.actor != OPERATOR and step.actor not in self.roles:
            return 404
        mine = 3 if step.actor == OPERATOR else RANK[self.roles[step.actor]]
        leaves = step.verb == "remove" and step.actor == step.target
        if mine < RANK["admin"] and not leaves:
            return 403
        if step.verb == "invite":
            return 403 if RANK[step.role] > mine else 201
        if step.target not in self.roles:
            return 404
        theirs = RANK[self.roles[step.target]]
        if theirs > mine or (step.verb == "change" and RANK[step.role] > mine):
            return 403
        stays = step.verb == "change" and step.role == "owner"
        if theirs == RANK["owner"] and self.owners == 1 and not stays:
            return 409
        return 204

    @property
    def owners(self) -> int:
        return list(self.roles.values()).count("owner")

    def take(self, step: Step) -> None:
        if step.verb == "change":
            self.roles[step.target] = step.role
        elif step.verb == "remove":
            del self.roles[step.target]
        else:
            self.roles.setdefault(step.target, step.role)


class Society:
    """Everybody in front of an account of their own, as the API knows it."""

    def __init__(self, place: Town, conninfo: str) -> None:
        self._place = place
        self._conninfo = conninfo
        self._people: dict[str, Browser] = {}
        self._ids: dict[str, int] = {}
        self.account = ""

    async def found(self, first: str) -> None:
        """A new account that `first` owns; everybody is signed in."""
        if not self._people:
            for name in NAMES:
                self._people[name] = await self._place.person(name)
                answer = await self._people[name].get(f"{API}/session")
                self._ids[name] = answer.json()["user"]["user_id"]
            self._people[OPERATOR] = await self._place.operator()
        self.account = f"account-{next(numbers)}"
        await trio.to_thread.run_sync(own, self._conninfo, self.account, self._ids[first])

    @property
    def url(self) -> str:
        return f"{API}/accounts/{self.account}"

    async def do(self, step: Step) -> int:
        """Try a step; an invitation is accepted at once."""
        actor = self._people[step.actor]
        member = f"{self.url}/members/{self._ids[step.target]}"
        if step.verb == "change":
            return (await actor.patch(member, json={"role": step.role})).status_code
        if step.verb == "remove":
            return (await actor.delete(member)).status_code
        answer = await actor.post(
            f"{self.url}/invitations",
            json={"email": f"{step.target}@example.test", "role": step.role},
        )
        if answer.status_code == 201:
            token = answer.json()["link"].rpartition("/")[2]
            accept = f"{API}/invitations/accept"
            accepted = await self._people[step.target].post(accept, json={"token": token})
            assert accepted.status_code in {201, 409}
        return answer.status_code

    async def roles(self) -> dict[str, str]:
        """Who belongs to the account, in which role."""
        answer = await self._people[OPERATOR].get(f"{self.url}/members")
        names = {user_id: name for name, user_id in self._ids.items()}
        return {names[one["user_id"]]: one["role"] for one in answer.json()["members"]}


def own(conninfo: str, account: str, user_id: int) -> None:
    """Open an account that somebody owns."""
    with Directory(conninfo) as directory, psycopg.connect(conninfo) as connection:
        account_id = directory.create_account(account).account_id
        people.add_member(connection, account_id, user_id, "owner", datetime.now(UTC))


@given(st.lists(st.tuples(st.sampled_from(NAMES), STEPS), min_size=1, max_size=10))
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_nobody_gets_more_than_somebody_could_give(
    database: str, histories: list[tuple[str, list[Step]]]
) -> None:
    """Every answer and everybody's role are as the model says, and an owner always stays."""
    async with town(database) as place:
        society = Society(place, database)
        for first, steps in histories:
            await society.found(first)
            model = Model({first: "owner"})
            for step in steps:
                expected = model.answer(step)
                assert await society.do(step) == expected, step
                if expected < 400:
                    model.take(step)
                assert await society.roles() == model.roles
                assert model.owners >= 1


async def test_two_owners_who_remove_each_other_leave_one(database: str) -> None:
    async with town(database) as place:
        society = Society(place, database)
        for _ in range(8):
            await society.found("ann")
            await society.do(Step("ann", "invite", "bob", "owner"))
            answers: list[int] = []

            async def remove(actor: str, target: str, answers: list[int] = answers) -> None:
                answers.append(await society.do(Step(actor, "remove", target, "viewer")))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(remove, "ann", "bob")
                nursery.start_soon(remove, "bob", "ann")
            assert sorted(answers) == [204, 404]
            assert list((await society.roles()).values()) == ["owner"]


async def test_two_owners_who_leave_at_once_leave_one(database: str) -> None:
    async with town(database) as place:
        society = Society(place, database)
        await society.found("ann")
        await society.do(Step("ann", "invite", "bob", "owner"))
        answers: list[int] = []

        async def leave(name: str) -> None:
            answers.append(await society.do(Step(name, "remove", name, "viewer")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave, "ann")
            nursery.start_soon(leave, "bob")
        assert sorted(answers) == [204, 409]
        assert list((await society.roles()).values()) == ["owner"]


@pytest.mark.parametrize("role", ["viewer", "developer"])
async def test_who_may_change_nobody_may_still_leave(database: str, role: Role) -> None:
    async with town(database) as place:
        society = Society(place, database)
        await society.found("ann")
        for name in ("bob", "cat"):
            await society.do(Step("ann", "invite", name, role))
        assert await society.do(Step("bob", "remove", "cat", role)) == 403
        assert await society.do(Step("bob", "change", "bob", "viewer")) == 403
        assert await society.do(Step("bob", "remove", "bob", role)) == 204
        assert await society.roles() == {"ann": "owner", "cat": role}


async def test_nobody_makes_or_unmakes_an_owner_but_owners(database: str) -> None:
    async with town(database) as place:
        society = Society(place, database)
        await society.found("ann")
        await society.do(Step("ann", "invite", "bob", "admin"))
        for step in (
            Step("bob", "invite", "cat", "owner"),
            Step("bob", "change", "bob", "owner"),
            Step("bob", "change", "ann", "viewer"),
            Step("bob", "remove", "ann", "viewer"),
        ):
            assert await society.do(step) == 403
        assert await society.do(Step("ann", "change", "ann", "admin")) == 409
        assert await society.do(Step("operator", "remove", "ann", "admin")) == 409
        assert await society.do(Step("operator", "change", "bob", "owner")) == 204
        assert await society.do(Step("bob", "remove", "ann", "admin")) == 204


ROUTES: list[tuple[str, str, dict[str, object] | None, Action]] = [
    ("GET", "members", None, "read"),
    ("PATCH", "members/999", {"role": "viewer"}, "members.write"),
    ("GET", "invitations", None, "members.write"),
    ("POST", "invitations", {"email": "x@y", "role": "viewer"}, "members.write"),
    ("DELETE", "invitations/999", None, "members.write"),
    ("GET", "audit", None, "audit.read"),
]


async def test_every_route_asks_for_its_role(database: str) -> None:
    async with town(database) as place:
        society = Society(place, database)
        await society.found("ann")
        everybody: dict[str, Role] = {"bob": "admin", "cat": "developer", "dan": "viewer"}
        for name, role in everybody.items():
            await society.do(Step("ann", "invite", name, role))
        stranger = await place.person("stranger")
        nobody = await place.browser()
        for method, path, body, action in ROUTES:
            url = f"{society.url}/{path}"
            for name, role in {"ann": "owner", **everybody}.items():
                browser = await place.person(name)
                answer = await browser.request(method, url, json=body)
                refused = answer.status_code == 403
                assert refused != (action in MAY[role]), (method, path, role)
            answer = await stranger.request(method, url, json=body)
            there = (answer.status_code, answer.json()["error"]["message"])
            assert there == (404, f"You belong to no account {society.account!r}.")
            nowhere = url.replace(society.account, "no-such")
            answer = await stranger.request(method, nowhere, json=body)
            assert (answer.status_code, answer.json()["error"]["message"]) == (
                404,
                "You belong to no account 'no-such'.",
            )
            assert (await nobody.request(method, url, json=body)).status_code == 401


@pytest.mark.parametrize("name", ["%00", "%ff", "%ed%a0%80", "x" * 5000, "..%2f", "'", "%0a"])
async def test_what_is_no_account_is_not_found(database: str, name: str) -> None:
    async with town(database) as place:
        operator = await place.operator()
        answer = await operator.get(f"{API}/accounts/{name}/members")
    assert answer.status_code == 404

"""Routes about keys and projects: what applications authenticate with, and what they may spend.

    …  /accounts/{account}/keys        make one (shown once), list, change, revoke
    …  /accounts/{account}/projects    parts of an account, with budgets of their own

A key is made, changed or revoked together with its entry in the audit log. Workers follow within a
second. What a budget had spent in its period stays spent when it is changed.

A key may be made so that it manages keys itself (`scopes`: "keys"), which is for programs: tools of
`/mcp` make and revoke keys with it. What it makes can do no more than it can (`delegated`): keys of
its own project, without that scope, within its models, budget and life, which they share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import AfterValidator, BaseModel, Field

from console import audit
from console.access import Member, Reader, allowed, moment
from console.audit import Actor
from console.bodies import Body, Id
from console.context import Console, ConsoleOf
from console.errors import Refused
from console.store import Connection, usage
from console.wording import dollars
from ledger.accounts import Budget, Holder, Key, KeyScope, Project
from ledger.directory import Directory, DirectoryRefused
from ledger.money import AMOUNT_MAX, format_usd, parse_usd

NAME_CHARACTERS_MAX = 100
MODELS_MAX = 100
LIVE_KEYS_MAX = 1000
"""Of an account: every worker has them in memory, and whoever opens an account may make some."""
UNFUNDED_KEYS_MAX = 10
"""Of an account that never had credit: one person can open many of them."""
PROJECTS_MAX = 1000
"""Of an account, one for each key there may be: every page of keys shows them all."""
MADE_A_DAY_MAX = 1000
"""Keys, and projects, of an account: those that were revoked or deleted stay in the directory."""
ENDED_LISTED_MAX = 300
"""Of an account's keys that were revoked or have expired, the newest."""
USED_WITHIN = timedelta(days=30)

_MODEL_CHARACTERS_MAX = 200

State = Literal["live", "expired", "revoked"]


def _usd(text: str) -> str:
    dollars(text, 1, AMOUNT_MAX)
    return text


def _future(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("expected a time with its zone, such as 2027-01-31T00:00:00Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("expected a time of the years 1 to 9999") from None


Usd = Annotated[
    str,
    Field(
        max_length=40,
        examples=["25.00"],
        json_schema_extra={"pattern": r"^[0-9]+(\.[0-9]{1,9})?$"},  # `_usd` says it in words
    ),
    AfterValidator(_usd),
]
Moment = Annotated[datetime, AfterValidator(_future)]


# -- what is said ---------------------------------------------------------------------------------


class BudgetIn(Body):
    """A limit on what may be spent: in all, or in each calendar month (UTC)."""

    usd: Usd
    period: Literal["month"] | None = None

    def budget(self) -> Budget:
        """As the directory knows it."""
        return Budget(parse_usd(self.usd), self.period)


class BudgetOut(BaseModel):
    """A budget, and what was spent of it in its period."""

    usd: str
    period: Literal["month"] | None
    spent_usd: str


class KeyFactsIn(Body):
    """What a key is called, and what it may do."""

    name: str = Field("", max_length=NAME_CHARACTERS_MAX)
    budget: BudgetIn | None = None
    expires_at: Moment | None = None
    models: list[Annotated[str, Field(max_length=_MODEL_CHARACTERS_MAX)]] = Field(
        default=[], max_length=MODELS_MAX, description="only these; empty: every model"
    )


class KeyIn(KeyFactsIn):
    """A key that is to be made."""

    project: str = Field(max_length=NAME_CHARACTERS_MAX)
    scopes: list[KeyScope] = Field(
        default=[], max_length=1, description='"keys": it may make and revoke keys of its project'
    )


class KeyOut(BaseModel):
    """A key's facts. What it was used for is of the last 30 days, a few seconds late. One that was
    made by another key ends with it, and spends from its budget as well."""

    key_id: int
    project: str
    name: str
    state: State
    budget: BudgetOut | None
    models: list[str]
    scopes: list[KeyScope]
    made_by: int | None = Field(description="the key that made it")
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    charged_usd: str
    requests: int
    last_used_at: datetime | None = Field(description="the day, in UTC")


class KeyMadeOut(BaseModel):
    """A new key: `secret` is what applications send, shown this once and stored nowhere."""

    secret: str
    key: KeyOut


class KeysOut(BaseModel):
    """An account's keys, newest first: those that are live, and of those that were revoked or have
    expired the newest 300."""

    keys: list[KeyOut]


class ProjectIn(Body):
    """A project that is to be made."""

    name: str = Field(max_length=NAME_CHARACTERS_MAX)
    budget: BudgetIn | None = None


class ProjectBudgetIn(Body):
    """A project's new budget; null: none."""

    budget: BudgetIn | None


class ProjectOut(BaseModel):
    """A part of an account."""

    name: str
    budget: BudgetOut | None
    live_keys: int
    created_at: datetime


class ProjectsOut(BaseModel):
    """An account's projects, by name."""

    projects: list[ProjectOut]


# -- keys -----------------------------------------------------------------------------------------

keys = APIRouter(prefix="/accounts/{account}/keys", tags=["keys"])
KeyMaker = Annotated[Member, Depends(allowed("keys.write"))]


@keys.get("", summary="All keys")
async def list_keys(member: Reader, console: ConsoleOf) -> KeysOut:
    """What each key may do, and what it was used for."""
    return await keys_of(console, member.account_id, member.account)


async def keys_of(
    console: Console, account_id: int, account: str, project: str | None = None
) -> KeysOut:
    """The keys of an account, or of one of its projects."""
    now = moment(console)

    def work(connection: Connection) -> KeysOut:
        directory = Directory.within(connection)
        found = directory.list_keys(account, project, ended_max=ENDED_LISTED_MAX)
        key_ids = [each.key_id for each in found]
        used = usage.use_of_keys(connection, account_id, now - USED_WITHIN, key_ids)
        return KeysOut(keys=[_key(each, used.get(each.key_id), now) for each in reversed(found)])

    return await console.database.run(work)


@keys.post("", status_code=201, summary="Make a key")
async def create_key(member: KeyMaker, wanted: KeyIn, console: ConsoleOf) -> KeyMadeOut:
    """A new key of a project. Its secret is in this answer and nowhere else."""
    return await make_key(console, member.account, wanted, member)


async def make_key(
    console: Console, account: str, wanted: KeyIn, who: Member | Actor, made_by: int | None = None
) -> KeyMadeOut:
    """Make a key that somebody may make, and note who."""
    now = moment(console)
    _require_future(wanted.expires_at, now)
    models = known_models(console, wanted.models)

    def work(connection: Connection) -> KeyMadeOut:
        with connection.transaction():
            require_room(connection, account)
            directory = _directory(console, connection)
            key, secret = directory.create_key(
                account,
                wanted.project,
                wanted.name,
                budget=wanted.budget.budget() if wanted.budget else None,
                expires_at=wanted.expires_at,
                models=models,
                scopes=wanted.scopes,
                made_by=made_by,
            )
            audit.note(connection, who, "key.create", called(key), _facts(key))
        return KeyMadeOut(secret=secret, key=_key(key, None, now))

    return await console.database.run(work)


def _require_future(expires_at: datetime | None, now: datetime) -> None:
    if expires_at is not None and expires_at <= now:
        raise Refused(
            400,
            "invalid_request",
            "The time at which the key is to expire has passed already: revoke a key to end it.",
        )


def require_room(connection: Connection, account: str) -> None:
    """Refuse with 409 a key that is yet to be made, and would be one too many.

    Before the directory is changed: whoever changes it keeps all others waiting. So those who ask
    at the same moment may each get theirs, at most as many as there are connections.
    """
    counts = usage.key_counts(connection, account)
    if counts.made_today >= MADE_A_DAY_MAX:
        raise Refused(
            409,
            "too_many_keys",
            f"{MADE_A_DAY_MAX} keys of the account were made within 24 hours: use one of them, "
            "or make this one later.",
        )
    _require_room_for(1, counts)


def _require_room_for(more: int, counts: usage.KeyCounts) -> None:
    """Refuse with 409 that so many keys more are live."""
    if counts.live + more > LIVE_KEYS_MAX:
        raise Refused(
            409,
            "too_many_keys",
            f"{counts.live} keys of the account are live, of at most {LIVE_KEYS_MAX}: "
            "revoke some first.",
        )
    if counts.live + more > UNFUNDED_KEYS_MAX and not counts.had_credit:
        raise Refused(
            409,
            "too_many_keys",
            f"An account that never had credit has at most {UNFUNDED_KEYS_MAX} live keys: "
            "add credit, or revoke some first.",
        )


@keys.get("/{key_id}", summary="One key")
async def show_key(member: Reader, key_id: Id, console: ConsoleOf) -> KeyOut:
    """What a key may do, and what it was used for."""
    now = moment(console)

    def work(connection: Connection) -> KeyOut:
        key = _found(connection, member.account, key_id)
        used = usage.use_of_keys(connection, member.account_id, now - USED_WITHIN, [key_id])
        return _key(key, used.get(key_id), now)

    return await console.database.run(work)


@keys.put("/{key_id}", summary="Change what a key may do")
async def change_key(
    member: KeyMaker, key_id: Id, wanted: KeyFactsIn, console: ConsoleOf
) -> KeyOut:
    """Its name, budget, expiry and models become what is said here."""
    now = moment(console)
    models = known_models(console, wanted.models)

    def work(connection: Connection) -> KeyOut:
        with connection.transaction():
            before = _found(connection, member.account, key_id)
            if before.revoked_at is not None:
                raise Refused(409, "key_revoked", "A revoked key stays as it is.")
            if wanted.expires_at != before.expires_at:
                _require_future(wanted.expires_at, now)
                if state_of(before, now) != "live":
                    counts = usage.key_counts(connection, member.account)
                    _require_room_for(usage.live_with(connection, key_id), counts)
            key = Directory.within(connection).update_key(
                key_id,
                name=wanted.name,
                budget=wanted.budget.budget() if wanted.budget else None,
                expires_at=wanted.expires_at,
                models=models,
            )
            if key != before:
                audit.note(connection, member, "key.change", called(key), _facts(key))
        used = usage.use_of_keys(connection, member.account_id, now - USED_WITHIN, [key_id])
        return _key(key, used.get(key_id), now)

    return await console.database.run(work)


@keys.delete("/{key_id}", status_code=204, summary="Revoke a key")
async def revoke_key(member: KeyMaker, key_id: Id, console: ConsoleOf) -> None:
    """End a key for good: within a second it gets 401. Twice is no error."""
    await end_key(console, member.account, key_id, member)


async def end_key(
    console: Console, account: str, key_id: int, who: Member | Actor, project: str | None = None
) -> None:
    """Revoke a key of an account, or only of one of its projects, and note who."""

    def work(connection: Connection) -> None:
        with connection.transaction():
            key = _found(connection, account, key_id)
            if project is not None and key.project != project:
                raise _no_such_key(key_id)
            if key.revoked_at is None:
                Directory.within(connection).revoke_key(key_id)
                audit.note(connection, who, "key.revoke", called(key))

    await console.database.run(work)


# -- keys that keys make --------------------------------------------------------------------------


def delegated(holder: Holder, wanted: KeyIn) -> KeyIn:
    """What a key may make for what is wanted; what was left open is as far as it reaches itself.
    Refuses with 403 whatever is more than it may do."""
    require_scope(holder)
    key = holder.key
    if wanted.scopes:
        raise _beyond("a key that another key makes cannot manage keys")
    if wanted.project != key.project:
        raise _beyond(f"it belongs to the project {key.project!r}")
    beyond = sorted(set(wanted.models) - set(key.models)) if key.models else []
    if beyond:
        raise _beyond(f"it may not use {', '.join(beyond)} itself")
    if key.expires_at is not None and (wanted.expires_at or key.expires_at) > key.expires_at:
        raise _beyond(f"it expires at {key.expires_at.isoformat()} itself")
    return wanted.model_copy(
        update={
            "models": wanted.models or list(key.models),
            "expires_at": wanted.expires_at or key.expires_at,
            "budget": _budget_within(holder, wanted.budget),
        }
    )


def require_scope(holder: Holder) -> None:
    """Refuse with 403 a key that may not manage keys."""
    if "keys" not in holder.key.scopes:
        raise Refused(
            403,
            "permission_denied",
            "This API key cannot manage keys: it was made without the scope 'keys'.",
        )


def _budget_within(holder: Holder, wanted: BudgetIn | None) -> BudgetIn | None:
    own, left = holder.key.budget, holder.budget_left
    if own is None or left is None:
        return wanted
    if left <= 0:
        raise _beyond("its own budget is spent")
    if wanted is None:
        return BudgetIn(usd=format_usd(left), period=own.period)
    if parse_usd(wanted.usd) > left:
        raise _beyond(f"{format_usd(left)} USD are left of its own budget")
    return wanted


def _beyond(why: str) -> Refused:
    return Refused(403, "permission_denied", f"This API key cannot make such a key: {why}.")


# -- projects -------------------------------------------------------------------------------------

projects = APIRouter(prefix="/accounts/{account}/projects", tags=["projects"])
ProjectMaker = Annotated[Member, Depends(allowed("projects.write"))]


@projects.get("", summary="All projects")
async def list_projects(member: Reader, console: ConsoleOf) -> ProjectsOut:
    """The parts of the account, with what was spent of their budgets."""

    def work(connection: Connection) -> ProjectsOut:
        used = usage.use_of_projects(connection, member.account_id)
        found = Directory.within(connection).list_projects(member.account)
        return ProjectsOut(projects=[_project(each, used.get(each.name)) for each in found])

    return await console.database.run(work)


@projects.post("", status_code=201, summary="Make a project")
async def create_project(member: ProjectMaker, wanted: ProjectIn, console: ConsoleOf) -> ProjectOut:
    """A new part of the account, perhaps with a budget over all its keys."""

    def work(connection: Connection) -> ProjectOut:
        with connection.transaction():
            _require_room_for_project(usage.project_counts(connection, member.account))
            budget = wanted.budget.budget() if wanted.budget else None
            made = Directory.within(connection).create_project(member.account, wanted.name, budget)
            audit.note(connection, member, "project.create", made.path, _budget_facts(budget))
            return _project(made, None)

    return await console.database.run(work)


def _require_room_for_project(counts: usage.ProjectCounts) -> None:
    """Refuse with 409 a project that is yet to be made, as `require_room` does a key."""
    if counts.present >= PROJECTS_MAX:
        raise Refused(
            409,
            "too_many_projects",
            f"The account has {PROJECTS_MAX} projects: delete some first.",
        )
    if counts.made_today >= MADE_A_DAY_MAX:
        raise Refused(
            409,
            "too_many_projects",
            f"{MADE_A_DAY_MAX} projects of the account were made within 24 hours: use one of them, "
            "or make this one later.",
        )


@projects.put("/{project}/budget", status_code=204, summary="Give a project another budget")
async def change_project_budget(
    member: ProjectMaker, project: str, wanted: ProjectBudgetIn, console: ConsoleOf
) -> None:
    """Another budget, or none. What was spent in its period stays spent."""

    def work(connection: Connection) -> None:
        with connection.transaction():
            budget = wanted.budget.budget() if wanted.budget else None
            with _not_found_if_refused():
                Directory.within(connection).set_project_budget(member.account, project, budget)
            audit.note(
                connection,
                member,
                "project.budget",
                f"{member.account}/{project}",
                _budget_facts(budget),
            )

    await console.database.run(work)


@projects.delete("/{project}", status_code=204, summary="Delete a project")
async def delete_project(member: ProjectMaker, project: str, console: ConsoleOf) -> None:
    """Its keys are served no more, and what was kept for it cannot be read any more. Its usage
    stays in the books."""

    def work(connection: Connection) -> None:
        with connection.transaction():
            with _not_found_if_refused():
                Directory.within(connection).delete_project(member.account, project)
            audit.note(connection, member, "project.delete", f"{member.account}/{project}")

    await console.database.run(work)


# -- how it is said -------------------------------------------------------------------------------


def known_models(console: Console, names: Sequence[str]) -> list[str]:
    """The models that a key is to be limited to. Refuses names that the gateway does not serve: a
    key with a slip in it would be of no use."""
    catalogue = console.server.catalogue
    for name in names:
        if catalogue.find(name) is None:
            raise Refused(400, "unknown_model", f"there is no model {name!r}.", where="models")
    return list(names)


def state_of(key: Key, now: datetime) -> State:
    """Whether a key is served."""
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "live"


@contextmanager
def _not_found_if_refused() -> Iterator[None]:
    """What the directory does not know is not found, rather than malformed."""
    try:
        yield
    except DirectoryRefused as refused:
        raise Refused(404, "not_found", str(refused)) from refused


def _directory(console: Console, connection: Connection) -> Directory:
    """One that makes keys, inside of the connection's transaction."""
    return Directory.within(connection, secret=console.secret, brand=console.server.brand)


def _found(connection: Connection, account: str, key_id: int) -> Key:
    try:
        return Directory.within(connection).find_key(account, key_id)
    except DirectoryRefused:
        raise _no_such_key(key_id) from None


def _no_such_key(key_id: int) -> Refused:
    return Refused(404, "not_found", f"There is no key {key_id} in this account.")


def _key(key: Key, used: usage.KeyUse | None, now: datetime) -> KeyOut:
    return KeyOut(
        key_id=key.key_id,
        project=key.project,
        name=key.name,
        state=state_of(key, now),
        budget=_budget(key.budget, used.budget_spent if used else 0),
        models=list(key.models),
        scopes=list(key.scopes),
        made_by=key.made_by,
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        charged_usd=format_usd(used.charge if used else 0),
        requests=used.requests if used else 0,
        last_used_at=used.last_used_at if used else None,
    )


def _project(project: Project, used: usage.ProjectUse | None) -> ProjectOut:
    return ProjectOut(
        name=project.name,
        budget=_budget(project.budget, used.budget_spent if used else 0),
        live_keys=used.live_keys if used else 0,
        created_at=project.created_at,
    )


def _budget(budget: Budget | None, spent: int) -> BudgetOut | None:
    if budget is None:
        return None
    return BudgetOut(
        usd=format_usd(budget.amount), period=budget.period, spent_usd=format_usd(spent)
    )


def called(key: Key) -> str:
    """A key in the audit log: its name says nothing when it is empty or used twice."""
    name = f" ({key.name})" if key.name else ""
    return f"key {key.key_id} of {key.account}/{key.project}{name}"


def _facts(key: Key) -> dict[str, str | int]:
    expiry = {"expires_at": key.expires_at.isoformat()} if key.expires_at else {}
    models = {"models": ", ".join(key.models)} if key.models else {}
    scopes = {"scopes": ", ".join(key.scopes)} if key.scopes else {}
    return {**_budget_facts(key.budget), **expiry, **models, **scopes}


def _budget_facts(budget: Budget | None) -> dict[str, str | int]:
    if budget is None:
        return {"budget": "none"}
    return {"budget": f"{format_usd(budget.amount)} USD {budget.period or 'in all'}"}


router = APIRouter()
router.include_router(keys)
router.include_router(projects)

"""Routes about an account's money and limits: its balance, its tier, and asking for another.

    GET    /accounts/{account}                   balance, tier, state
    GET    /accounts/{account}/plan              the tier, its limits, and what is left of them
    POST   /accounts/{account}/plan/requests     ask for another tier
    DELETE /accounts/{account}/plan/requests/…   take that back
    GET    /plan/requests                        what waits for the operator
    POST   /plan/requests/{request_id}           the operator's answer
    PUT    /accounts/{account}/tier              what the operator sets without being asked
    POST   /accounts/{account}/credit            what the operator adds by hand

A tier that is granted holds for the account's next request, within a second.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import uuid4

from fastapi import APIRouter, Depends, Header, Response
from pydantic import BaseModel, Field

from console import audit
from console.access import Caller, CallerOf, Member, Reader, allowed, moment
from console.bodies import Body, Id
from console.context import Console, ConsoleOf, Tier
from console.errors import ErrorBody, Refused
from console.keys import Usd
from console.store import Connection, plan, usage
from ledger.accounts import AccountStatus, Statement
from ledger.directory import Directory, ReferenceReused
from ledger.money import format_usd, parse_usd

REQUESTS_SHOWN = 20

_NOTE_CHARACTERS_MAX = 1000

Note = Annotated[str, Field(max_length=_NOTE_CHARACTERS_MAX, pattern=r"^[^\x00]*$")]


# -- what is said ---------------------------------------------------------------------------------


class AccountStateOut(BaseModel):
    """An account and its money. `balance_usd` is what was credited without what was charged;
    `reserved_usd` of it is held by gateways for requests that run or come."""

    account: str
    tier: str
    suspended: bool
    balance_usd: str
    reserved_usd: str
    credited_usd: str
    charged_usd: str
    created_at: datetime


class LimitOut(BaseModel):
    """A limit over all keys of an account, and what the last minute took of it. `limit` null:
    there is none; `used` null: it is not known here."""

    kind: Literal["rpm", "tpm", "concurrent"]
    limit: int | None
    used: int | None


class TierOut(BaseModel):
    """A tier that the operator offers; null means no limit."""

    name: str
    rpm: int | None
    tpm: int | None
    concurrent: int | None


class PlanRequestOut(BaseModel):
    """A wish for another tier."""

    request_id: int
    account: str
    present_tier: str
    tier: str
    note: str
    asked_by: str
    asked_at: datetime
    state: plan.State
    decided_at: datetime | None
    reply: str


class PlanOut(BaseModel):
    """The account's tier. "" is one without limits."""

    tier: str
    limits: list[LimitOut]
    tiers: list[TierOut]
    requests: list[PlanRequestOut]


class PlanRequestIn(Body):
    """Which tier, and why."""

    tier: str = Field(max_length=_NOTE_CHARACTERS_MAX)
    note: Note = ""


class DecisionIn(Body):
    """The operator's answer."""

    grant: bool
    reply: Note = ""


class TierIn(Body):
    """An account's new tier."""

    tier: str = Field(max_length=_NOTE_CHARACTERS_MAX)


class CreditIn(Body):
    """How much, and what for: the books keep both."""

    amount: Usd
    reason: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")


IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255, pattern=r"^[ -~]+$")]
"""The header: a new one for each request that is meant, the same one where it is sent again."""


class PlanRequestsOut(BaseModel):
    """What waits for the operator, oldest first."""

    requests: list[PlanRequestOut]


# -- the account ----------------------------------------------------------------------------------

account_router = APIRouter(prefix="/accounts/{account}", tags=["account"])
Asker = Annotated[Member, Depends(allowed("plan.request"))]


@account_router.get("", summary="Balance and state")
async def show_account(member: Reader, console: ConsoleOf) -> AccountStateOut:
    """The account and its money, of one moment."""
    found = await statement(console, member)
    account = found.account
    return AccountStateOut(
        account=account.name,
        tier=account.tier or console.server.default_tier,
        suspended=account.status is AccountStatus.SUSPENDED,
        balance_usd=format_usd(found.balance),
        reserved_usd=format_usd(found.reserved),
        credited_usd=format_usd(found.credited),
        charged_usd=format_usd(found.charged),
        created_at=account.created_at,
    )


async def statement(console: Console, member: Member) -> Statement:
    """The account's money."""
    return await console.database.run(
        lambda connection: Directory.within(connection).show_account(member.account)
    )


async def statements(console: Console) -> list[Statement]:
    """Those of all accounts, for the operator."""
    return await console.database.run(
        lambda connection: Directory.within(connection).list_accounts()
    )


# -- its plan -------------------------------------------------------------------------------------


@account_router.get("/plan", summary="Tier, limits and headroom")
async def show_plan(member: Reader, console: ConsoleOf) -> PlanOut:
    """What the account may do at once, and which tiers there are."""

    def work(connection: Connection) -> PlanOut:
        account = Directory.within(connection).show_account(member.account).account
        name = account.tier or console.server.default_tier
        return PlanOut(
            tier=name,
            limits=_limits(
                console.server.tiers.get(name), usage.last_minute(connection, member.account_id)
            ),
            tiers=[_tier(name, tier) for name, tier in console.server.tiers.items()],
            requests=[
                _request(each)
                for each in plan.of_account(connection, member.account_id, REQUESTS_SHOWN)
            ],
        )

    return await console.database.run(work)


@account_router.post("/plan/requests", status_code=201, summary="Ask for another tier")
async def ask(member: Asker, wanted: PlanRequestIn, console: ConsoleOf) -> PlanRequestOut:
    """The operator sees it, and grants it or says why not. One at a time."""
    _require_tier(console, wanted.tier)
    now = moment(console)

    def work(connection: Connection) -> PlanRequestOut:
        with connection.transaction():
            request_id = plan.ask(
                connection,
                member.account_id,
                wanted.tier,
                wanted.note,
                member.caller.user_id,
                now,
            )
            if request_id is None:
                raise Refused(409, "already_asked", "A request for another tier is open already.")
            audit.note(connection, member, "plan.request", wanted.tier)
            return _request(_known(connection, request_id))

    return await console.database.run(work)


@account_router.delete(
    "/plan/requests/{request_id}", status_code=204, summary="Take a request back"
)
async def withdraw(member: Asker, request_id: Id, console: ConsoleOf) -> None:
    """The operator will not be asked any more."""
    now = moment(console)

    def work(connection: Connection) -> None:
        with connection.transaction():
            known = _known(connection, request_id)
            if known.account_id != member.account_id:
                raise _no_such_request(request_id)
            _end(connection, known, "withdrawn", member.caller, "", now)
            audit.note(connection, member, "plan.withdraw", known.tier)

    await console.database.run(work)


# -- the operator's side --------------------------------------------------------------------------

operator_router = APIRouter(prefix="/plan/requests", tags=["operator"])


async def operator_of(caller: CallerOf) -> Caller:
    """The operator. Refuses everybody else with 403."""
    if not caller.is_operator:
        raise Refused(403, "permission_denied", "Only the operator of this gateway can do this.")
    return caller


OperatorOf = Annotated[Caller, Depends(operator_of)]


operated_router = APIRouter(prefix="/accounts/{account}", tags=["operator"])
OperatorHere = Annotated[Member, Depends(allowed("plan.grant"))]


@operator_router.get("", summary="Who asks for another tier")
async def list_requests(_: OperatorOf, console: ConsoleOf) -> PlanRequestsOut:
    """Open requests of all accounts, oldest first."""
    found = await console.database.run(plan.all_open)
    return PlanRequestsOut(requests=[_request(each) for each in found])


@operator_router.post("/{request_id}", status_code=204, summary="Grant or decline")
async def decide(caller: OperatorOf, request_id: Id, said: DecisionIn, console: ConsoleOf) -> None:
    """Granted, the tier holds at once."""
    now = moment(console)

    def work(connection: Connection) -> None:
        with connection.transaction():
            known = _known(connection, request_id)
            if said.grant:
                _require_tier(console, known.tier)
            state: plan.State = "granted" if said.grant else "declined"
            _end(connection, known, state, caller, said.reply, now)
            if said.grant:
                Directory.within(connection).set_tier(known.account, known.tier)
            member = Member(caller, known.account_id, known.account, "owner")
            audit.note(
                connection, member, "plan.grant" if said.grant else "plan.decline", known.tier
            )

    await console.database.run(work)


@operated_router.put("/tier", status_code=204, summary="Move an account to another tier")
async def set_tier(member: OperatorHere, wanted: TierIn, console: ConsoleOf) -> None:
    """It holds for the account's next request, within a second."""
    _require_tier(console, wanted.tier)

    def work(connection: Connection) -> None:
        with connection.transaction():
            Directory.within(connection).set_tier(member.account, wanted.tier)
            audit.note(connection, member, "plan.set", wanted.tier)

    await console.database.run(work)


@operated_router.post(
    "/credit",
    status_code=204,
    summary="Add credit by hand",
    responses={422: {"model": ErrorBody, "description": "The key belongs to another request"}},
)
async def credit(
    member: OperatorHere,
    wanted: CreditIn,
    console: ConsoleOf,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> None:
    """What was paid in some other way than by card. Sent again with the same `Idempotency-Key` it
    is not added again."""
    if not await add_credit(member, wanted, console, idempotency_key or str(uuid4())):
        response.headers["idempotent-replayed"] = "true"


async def add_credit(member: Member, wanted: CreditIn, console: Console, key: str) -> bool:
    """Add credit, once for each `key`; False where that was done before. Refuses with 422 where the
    key belongs to another amount or reason."""
    amount = parse_usd(wanted.amount)

    def work(connection: Connection) -> bool:
        with connection.transaction():
            directory = Directory.within(connection)
            is_new = directory.credit_once(member.account, amount, wanted.reason, key)
            if is_new:
                detail = {"usd": format_usd(amount), "reason": wanted.reason}
                audit.note(connection, member, "credit.add", member.account, detail)
            return is_new

    try:
        return await console.database.run(work)
    except ReferenceReused as error:
        raise Refused(422, "idempotency_key_reused", str(error)) from None


# -- how it is said -------------------------------------------------------------------------------


def _require_tier(console: Console, name: str) -> None:
    """Refuse a tier that is not configured, perhaps no more: workers hold who is in it to no limit
    at all."""
    if name not in console.server.tiers:
        raise Refused(400, "unknown_tier", f"There is no tier {name!r}.")


def _known(connection: Connection, request_id: int) -> plan.PlanRequest:
    found = plan.find(connection, request_id)
    if found is None:
        raise _no_such_request(request_id)
    return found


def _no_such_request(request_id: int) -> Refused:
    return Refused(404, "not_found", f"There is no request {request_id}.")


def _end(
    connection: Connection,
    known: plan.PlanRequest,
    state: plan.State,
    by: Caller,
    reply: str,
    now: datetime,
) -> None:
    if not plan.decide(connection, known.request_id, state, by.user_id, reply, now):
        raise Refused(409, "already_decided", "This request is not open any more.")


def _limits(tier: Tier | None, minute: usage.Minute) -> list[LimitOut]:
    limits = tier or Tier(0, 0, 0)
    return [
        LimitOut(kind="rpm", limit=limits.rpm or None, used=minute.requests),
        LimitOut(kind="tpm", limit=limits.tpm or None, used=minute.tokens),
        LimitOut(kind="concurrent", limit=limits.concurrent or None, used=None),
    ]


def _tier(name: str, tier: Tier) -> TierOut:
    return TierOut(
        name=name,
        rpm=tier.rpm or None,
        tpm=tier.tpm or None,
        concurrent=tier.concurrent or None,
    )


def _request(request: plan.PlanRequest) -> PlanRequestOut:
    return PlanRequestOut(
        request_id=request.request_id,
        account=request.account,
        present_tier=request.present_tier,
        tier=request.tier,
        note=request.note,
        asked_by=request.asked_by,
        asked_at=request.asked_at,
        state=request.state,
        decided_at=request.decided_at,
        reply=request.reply,
    )


router = APIRouter()
router.include_router(account_router)
router.include_router(operator_router)
router.include_router(operated_router)

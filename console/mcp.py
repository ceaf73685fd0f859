"""MCP: the account and its models as tools, for agents and editors (`/mcp`, streamable HTTP).

    chat_completion   get_balance   get_usage   list_models
    list_api_keys     create_api_key     revoke_api_key

The official SDK speaks the protocol; here are the tools, and who may call them. Each request is
authenticated before the SDK sees it (`console.bearers`), by an API key or a session token, and
nothing is remembered between two of them: any console can answer any request.

Rules
- A tool does what a route of the JSON API does, by the same functions, and is noted likewise.
- What a caller can do something about is told in full (`ToolError`); of a bug they hear only that
  there is one. The SDK writes both to the standard error.
- `chat_completion` is a request to a model like any other (`console.chat`).
- There is nothing to listen to: a GET gets 405, which clients take for that.
- The host that is asked has to be ours, as of `public_url` or this machine, and so the page that
  asks: a browser that was told a wrong address for us sends no key, but is not answered either.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Annotated, Literal, ParamSpec, TypeVar
from urllib.parse import urlsplit

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import CallToolResult, InputRequiredResult, ToolAnnotations
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from console import catalogue, keys
from console.access import Member, moment
from console.bearers import Bearer, KeyBearer, Seat, SessionBearer, bearer, seat
from console.chat import DataPlane, Question, Reply, Turn
from console.context import Console
from console.errors import Refused, in_json, refusal_of
from console.keys import BudgetIn, KeyIn, KeyMadeOut, KeyOut
from console.store import Connection, usage
from console.store.usage import Slice, Span
from console.usage import filters, find
from ledger.accounts import AccountStatus, Project
from ledger.directory import Directory, DirectoryRefused
from ledger.money import format_usd
from ledger.usage import UsageRecord

PATH = "/mcp"

_BEARER = "farebox.bearer"  # where in a request's scope it is kept
_BODY_BYTES_MAX = 16 * 1024 * 1024  # what `proxy.control` takes
_MODELS_MAX = 200
_REQUESTS_MAX = 100
_DAYS_MAX = 400
_MESSAGES_MAX = 1000
_NAME_CHARACTERS_MAX = 200
_INSTRUCTIONS = (
    "A prepaid gateway to language models. Amounts are US dollars as decimal strings; everything "
    "that chat_completion does is charged to the account's balance."
)

Call = Context[object, Request]
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

AccountName = Annotated[
    str,
    Field(
        max_length=_NAME_CHARACTERS_MAX,
        description="only with a session token, and only of somebody with several accounts",
    ),
]


# -- what is said ---------------------------------------------------------------------------------


class ChatOut(BaseModel):
    """The answer, and what it took. `cost_usd` was charged to the balance."""

    text: str
    model: str
    finish_reason: str
    input_tokens: int
    output_tokens: int
    cost_usd: str
    request_id: str


class BalanceOut(BaseModel):
    """An account's money. `reserved_usd` is held for requests that run, and not taken off."""

    account: str
    balance_usd: str
    reserved_usd: str
    charged_usd: str
    tier: str
    suspended: bool
    key_budget_left_usd: str | None = Field(description="of the calling API key, where it has one")


class ModelPriceOut(BaseModel):
    """A model and its ordinary price in USD per million tokens; "" where it has none."""

    id: str
    kind: str
    context_window: int
    max_output_tokens: int
    input_usd_per_million: str
    output_usd_per_million: str


class ModelListOut(BaseModel):
    """Models by name; `left_out` more would have fitted."""

    models: list[ModelPriceOut]
    left_out: int


class KeyListOut(BaseModel):
    """API keys, newest first; never the keys themselves."""

    keys: list[KeyOut]


class RevokedOut(BaseModel):
    """A key that is served no more."""

    key_id: int
    revoked: Literal[True] = True


class ModelUseOut(BaseModel):
    """What one model was used for."""

    model: str
    requests: int
    failed: int
    charge_usd: str
    input_tokens: int
    output_tokens: int


class RequestOut(BaseModel):
    """One request."""

    time: datetime
    request_id: str
    model: str
    project: str
    key_id: int
    status: str
    charge_usd: str
    input_tokens: int
    output_tokens: int


class UsageOut(BaseModel):
    """What was used since a day (UTC). Sums are a few seconds late."""

    since: datetime
    requests: int
    charge_usd: str
    by_model: list[ModelUseOut]
    latest: list[RequestOut]


class MessageIn(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


def _told(
    tool: Callable[Arguments, Awaitable[Answer]],
) -> Callable[Arguments, Awaitable[Answer]]:
    """Let the caller hear why a tool refuses."""

    @wraps(tool)
    async def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        try:
            return await tool(*args, **kwargs)
        except (ValidationError, Refused, DirectoryRefused) as error:
            raise ToolError(_of_argument(refusal_of(error))) from error

    return run


def _of_argument(refused: Refused) -> str:
    """What was wrong, with the name of the argument: that of the API is another one."""
    argument = {"usd": "budget_usd"}.get(refused.where)
    return f"{argument}: {refused.problem}" if argument else refused.message


class _Server(MCPServer[dict[str, object]]):
    """One that says in words which argument is wrong."""

    async def call_tool(
        self,
        name: str,
        arguments: dict[str, object],
        context: Context[dict[str, object], object] | None = None,
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool, as the SDK does."""
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                raise ToolError(refusal_of(error.__cause__).message) from error
            raise


# -- the tools ------------------------------------------------------------------------------------


class Tools:
    """The seven tools of a console."""

    def __init__(self, console: Console, data_plane: DataPlane) -> None:
        self._console = console
        self._data_plane = data_plane

    def add_to(self, server: MCPServer[dict[str, object]]) -> None:
        """Make them known to the protocol."""
        looks = ToolAnnotations(read_only_hint=True, open_world_hint=False)
        makes = ToolAnnotations(destructive_hint=False, open_world_hint=False)
        ends = ToolAnnotations(destructive_hint=True, idempotent_hint=True, open_world_hint=False)
        asks = ToolAnnotations(destructive_hint=False, open_world_hint=True)
        server.add_tool(_told(self.chat_completion), annotations=asks)
        server.add_tool(_told(self.get_balance), annotations=looks)
        server.add_tool(_told(self.list_models), annotations=looks)
        server.add_tool(_told(self.list_api_keys), annotations=looks)
        server.add_tool(_told(self.create_api_key), annotations=makes)
        server.add_tool(_told(self.revoke_api_key), annotations=ends)
        server.add_tool(_told(self.get_usage), annotations=looks)

    async def chat_completion(
        self,
        context: Call,
        model: Annotated[
            str, Field(max_length=_NAME_CHARACTERS_MAX, description="see list_models")
        ],
        messages: Annotated[list[MessageIn], Field(min_length=1, max_length=_MESSAGES_MAX)],
        max_tokens: Annotated[int | None, Field(ge=1, description="of the answer")] = None,
        temperature: Annotated[float | None, Field(ge=0, le=2)] = None,
        project: Annotated[
            str, Field(description="whose budget and usage it is; only with a session token")
        ] = "",
        account: AccountName = "",
    ) -> ChatOut:
        """Ask a model for the next message of a conversation. Charged to the account's balance."""
        who = _bearer(context)
        question = Question(
            model=model,
            messages=[Turn(each.role, each.content) for each in messages],
            max_tokens=max_tokens,
            temperature=temperature,
        )
        reply = await self._ask(who, question, project, account)
        return ChatOut(
            text=reply.text,
            model=reply.model,
            finish_reason=reply.finish_reason,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            cost_usd=reply.cost_usd,
            request_id=reply.request_id,
        )

    async def get_balance(self, context: Call, account: AccountName = "") -> BalanceOut:
        """How much prepaid credit the account has left."""
        who = _bearer(context)
        at = await self._seat(who, account)
        found = await self._console.database.run(
            lambda connection: Directory.within(connection).show_account(at.account)
        )
        left = who.holder.budget_left if isinstance(who, KeyBearer) else None
        return BalanceOut(
            account=at.account,
            balance_usd=format_usd(found.balance),
            reserved_usd=format_usd(found.reserved),
            charged_usd=format_usd(found.charged),
            tier=found.account.tier or self._console.server.default_tier,
            suspended=found.account.status is AccountStatus.SUSPENDED,
            key_budget_left_usd=None if left is None else format_usd(left),
        )

    async def list_models(
        self,
        context: Call,
        contains: Annotated[str, Field(description="only names that contain this")] = "",
    ) -> ModelListOut:
        """The models that can be asked for, with their context windows and prices."""
        who = _bearer(context)
        allowed = who.holder.key.models if isinstance(who, KeyBearer) else ()
        found = [
            _price(each)
            for each in catalogue.models(self._console)
            if contains.lower() in each.id.lower() and (not allowed or each.id in allowed)
        ]
        return ModelListOut(models=found[:_MODELS_MAX], left_out=max(0, len(found) - _MODELS_MAX))

    async def list_api_keys(self, context: Call, account: AccountName = "") -> KeyListOut:
        """The account's API keys with their budgets and use, or with an API key those of its
        project; of those that have ended only the newest."""
        at = await self._seat(_bearer(context), account)
        found = await keys.keys_of(self._console, at.account_id, at.account, at.project)
        return KeyListOut(keys=found.keys)

    async def create_api_key(
        self,
        context: Call,
        project: Annotated[str, Field(max_length=keys.NAME_CHARACTERS_MAX)],
        name: Annotated[str, Field(description="what it is for")] = "",
        budget_usd: Annotated[
            str | None, Field(description="the most it may spend, such as 25.00")
        ] = None,
        budget_period: Annotated[
            Literal["month"] | None, Field(description="the budget is for each calendar month")
        ] = None,
        expires_at: Annotated[
            datetime | None, Field(description="with a time zone, such as 2027-01-31T00:00:00Z")
        ] = None,
        models: Annotated[
            list[str] | None, Field(description="the only models it may use; default: every one")
        ] = None,
        account: AccountName = "",
    ) -> KeyMadeOut:
        """Make an API key. Its secret is in this answer and is never shown again. An API key can
        do this only if it was made with the scope 'keys', and grants no more than it has itself."""
        who = _bearer(context)
        at = await self._seat(who, account, "keys.write")
        budget = None if budget_usd is None else BudgetIn(usd=budget_usd, period=budget_period)
        wanted = KeyIn(
            project=project, name=name, budget=budget, expires_at=expires_at, models=models or []
        )
        if not isinstance(who, KeyBearer):
            return await keys.make_key(self._console, at.account, wanted, at.who)
        made_by = who.holder.key.key_id
        wanted = keys.delegated(who.holder, wanted)
        return await keys.make_key(self._console, at.account, wanted, at.who, made_by)

    async def revoke_api_key(
        self,
        context: Call,
        key_id: Annotated[int, Field(ge=1, le=2**63 - 1, description="see list_api_keys")],
        account: AccountName = "",
    ) -> RevokedOut:
        """End an API key for good: within a second it gets 401. An API key can do this only if it
        was made with the scope 'keys', and only to keys of its project."""
        at = await self._seat(_bearer(context), account, "keys.write")
        await keys.end_key(self._console, at.account, key_id, at.who, at.project)
        return RevokedOut(key_id=key_id)

    async def get_usage(
        self,
        context: Call,
        days: Annotated[int, Field(ge=1, le=_DAYS_MAX, description="today included, UTC")] = 30,
        latest: Annotated[int, Field(ge=0, le=_REQUESTS_MAX, description="single requests")] = 10,
        model: Annotated[str, Field(description="only this model")] = "",
        account: AccountName = "",
    ) -> UsageOut:
        """What was spent on which model, and the latest requests: the account's, or with an API
        key its project's."""
        at = await self._seat(_bearer(context), account)
        now = moment(self._console)
        since = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days - 1)
        wanted = replace(filters(since=since, model=model or None), project_id=at.project_id)

        def work(connection: Connection) -> tuple[Sequence[Slice], Sequence[UsageRecord]]:
            slices = usage.slices(
                connection, at.account_id, Span.DAY, since, now, project_id=at.project_id
            )
            if not latest:
                return slices, ()
            return slices, find(connection, at.account_id, wanted, latest).records

        slices, records = await self._console.database.run(work)
        return _usage(since, [each for each in slices if model in ("", each.model)], records)

    async def _ask(self, who: Bearer, question: Question, project: str, account: str) -> Reply:
        if isinstance(who, KeyBearer):
            at = await self._seat(who, account)
            if project not in ("", at.project):
                raise Refused(
                    400, "invalid_request", f"This API key belongs to the project {at.project!r}."
                )
            return await self._data_plane.ask(who.key, question)
        at = await self._seat(who, account, "keys.write")
        assert isinstance(at.who, Member), "as of `seat`"
        found = await self._project(at, project)
        return await self._data_plane.ask_in_session(who, at.who, found, question)

    async def _project(self, at: Seat, name: str) -> Project:
        found = await self._console.database.run(
            lambda connection: Directory.within(connection).list_projects(at.account)
        )
        wanted = [each for each in found if name in ("", each.name)]
        if len(wanted) == 1:
            return wanted[0]
        listed = ", ".join(each.name for each in found) or "there is none, make one"
        raise Refused(400, "invalid_request", f"Say which project of {at.account}: {listed}.")

    async def _seat(
        self, who: Bearer, account: str, action: Literal["read", "keys.write"] = "read"
    ) -> Seat:
        return await seat(self._console, who, account, action)


def _bearer(context: Call) -> Bearer:
    """Whoever calls a tool, as of `_Authenticated`."""
    request = context.request_context.request
    assert request is not None, "it comes by HTTP"
    found = request.scope[_BEARER]
    assert isinstance(found, KeyBearer | SessionBearer), "nobody else gets here"
    return found


def _price(model: catalogue.ModelOut) -> ModelPriceOut:
    rows = model.price_rows[:1]
    prices = {each.unit: each.usd for row in rows for each in row.prices if each.per == "million"}
    return ModelPriceOut(
        id=model.id,
        kind=model.kind,
        context_window=model.context_window,
        max_output_tokens=model.max_output_tokens,
        input_usd_per_million=prices.get("input", ""),
        output_usd_per_million=prices.get("output", ""),
    )


def _usage(since: datetime, slices: Sequence[Slice], records: Sequence[UsageRecord]) -> UsageOut:
    by_model: dict[str, list[Slice]] = {}
    for each in slices:
        by_model.setdefault(each.model, []).append(each)
    used = [
        (
            sum(each.charge for each in theirs),
            ModelUseOut(
                model=name,
                requests=sum(each.requests for each in theirs),
                failed=sum(each.failed for each in theirs),
                charge_usd=format_usd(sum(each.charge for each in theirs)),
                input_tokens=sum(each.input_tokens for each in theirs),
                output_tokens=sum(each.output_tokens for each in theirs),
            ),
        )
        for name, theirs in by_model.items()
    ]
    used.sort(key=lambda each: (-each[0], each[1].model))
    return UsageOut(
        since=since,
        requests=sum(each.requests for _, each in used),
        charge_usd=format_usd(sum(charge for charge, _ in used)),
        by_model=[each for _, each in used],
        latest=[_request(each) for each in records],
    )


def _request(record: UsageRecord) -> RequestOut:
    return RequestOut(
        time=datetime.fromisoformat(record.time).astimezone(UTC),
        request_id=record.request_id,
        model=record.model,
        project=record.project,
        key_id=record.key_id,
        status=record.status,
        charge_usd=record.charge_usd,
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
    )


# -- the protocol ---------------------------------------------------------------------------------


class Endpoint:
    """`/mcp` of one console: `route` it, and answer while `running`."""

    def __init__(self, console: Console) -> None:
        self._data_plane = DataPlane(console)
        with _logging_as_it_was():
            self._server = _Server(
                console.server.brand,
                title=f"{console.server.brand.capitalize()} account",
                instructions=_INSTRUCTIONS,
                version="1",
                log_level="WARNING",
                subscriptions=False,
            )
        Tools(console, self._data_plane).add_to(self._server)
        app = self._server.streamable_http_app(
            streamable_http_path=PATH,
            stateless_http=True,
            max_request_body_size=_BODY_BYTES_MAX,
            transport_security=_expected_hosts(console),
        )
        self.route: BaseRoute = Route(PATH, _Authenticated(console, app))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer for the time of the block."""
        try:
            async with self._server.session_manager.run():
                yield
        finally:
            await self._data_plane.close()


class _Authenticated:
    """Lets through who may call tools, and keeps who that is in the request's scope."""

    def __init__(self, console: Console, app: ASGIApp) -> None:
        self._console = console
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        if scope["method"] != "POST":
            refused = Refused(405, "method_not_allowed", "Only POST: there are no sessions here.")
            refused.headers["allow"] = "POST"
            await in_json(refused)(scope, receive, send)
            return
        try:
            scope[_BEARER] = await bearer(self._console, Request(scope))
        except Refused as refused:
            if refused.status == 401:
                refused.headers["www-authenticate"] = "Bearer"
            await in_json(refused)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _expected_hosts(console: Console) -> TransportSecuritySettings:
    """The addresses under which clients may know us."""
    urls = {console.server.public_url, console.server.gateway_url}
    port = urlsplit(console.server.gateway_url).port
    urls |= {f"http://{name}:{port}" for name in ("localhost", "127.0.0.1", "[::1]")}
    return TransportSecuritySettings(
        allowed_hosts=sorted(urlsplit(url).netloc for url in urls), allowed_origins=sorted(urls)
    )


@contextmanager
def _logging_as_it_was() -> Iterator[None]:
    """Keep the SDK from taking over the log of the whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)

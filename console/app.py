"""The console's ASGI app, put together: the JSON API, the pages, MCP, and what runs beside them.

    /console/api/…   FastAPI: every module with routes has a `router`, named in `ROUTERS`
    /console/…       pages (Starlette)
    /mcp             tools

Rules
- A module that has to do something by itself (an inbox, a rollup) has `async def run(console)`,
  named in `SERVICES`. `console.serve` runs it until cancelled; where one fails, the process ends
  and is started again. There may be several consoles on one database: it is there that work is
  shared out.
- Every refusal has the form of `console.errors`, whoever it comes from: a route, the framework's
  validation, the directory, the database, a bug. The OpenAPI document says so too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp

from console import (
    catalogue,
    health,
    inbox,
    keys,
    mcp,
    payments,
    people,
    plan,
    recharger,
    rollup,
    usage,
)
from console.context import Console
from console.errors import ErrorBody, Refused, in_json, refusal_of
from console.pages import site
from console.pages.frame import problem
from console.security import Guard
from ledger.directory import DirectoryRefused, DirectoryUnavailable

Service = Callable[[Console], Awaitable[None]]

API_PREFIX = "/console/api"
ROUTERS: Sequence[APIRouter] = (
    people.router,
    keys.router,
    usage.router,
    plan.router,
    catalogue.router,
    health.router,
    payments.router,
    payments.webhook,
)
SERVICES: Sequence[Service] = (rollup.run, inbox.run, recharger.run)


def build(console: Console) -> ASGIApp:
    """The whole app, without the services."""
    tools = mcp.Endpoint(console)
    routes: list[BaseRoute] = [Mount(API_PREFIX, app=_api(console)), tools.route, *site.ROUTES]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with tools.running():
            yield

    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: _no_page, Exception: _no_page},
    )
    app.state.console = console
    return Guard(app, console.server.public_url)


def _api(console: Console) -> FastAPI:
    api = FastAPI(
        title=f"{console.server.brand} console",
        version="1",
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        responses={
            status: {"model": ErrorBody, "description": description}
            for status, description in (
                (400, "The request is malformed, or makes no sense as things are"),
                (401, "Not signed in"),
                (403, "The role does not allow it"),
                (404, "There is no such thing"),
                (409, "As things are, this cannot be done"),
                (429, "Too many tries within a minute"),
                (503, "The database does not answer"),
            )
        },
    )
    api.state.console = console
    for router in ROUTERS:
        api.include_router(router)
    for kind, handler in (
        (Refused, _refused),
        (RequestValidationError, _refused),
        (DirectoryRefused, _refused),
        (DirectoryUnavailable, _refused),
        (HTTPException, _refused),
        (Exception, _failed),
    ):
        api.add_exception_handler(kind, handler)
    generate = api.openapi

    def openapi() -> dict[str, object]:
        document = generate()
        _forget_unprocessable(document)
        return document

    api.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to change it
    return api


def _no_page(request: Request, error: Exception) -> Response:
    """What is refused where people look. Not every path under the API's gets there: a line break in
    a path matches nothing."""
    if request.url.path.startswith(f"{API_PREFIX}/"):
        return (
            _refused(request, error)
            if isinstance(error, HTTPException)
            else _failed(request, error)
        )
    if isinstance(error, HTTPException):
        return problem(request.app.state.console, refusal_of(error))
    message = "The console failed to show this page."
    return problem(request.app.state.console, Refused(500, "internal_error", message))


def _refused(_: Request, error: Exception) -> Response:
    return in_json(refusal_of(error))


def _failed(_: Request, __: Exception) -> Response:
    """A bug. The server writes down what it was, and not its path, which may let somebody in."""
    return in_json(Refused(500, "internal_error", "The console failed to handle this."))


def _forget_unprocessable(document: dict[str, object]) -> None:
    """FastAPI says of every operation that it may answer 422 in a form of its own: ours do not.
    One that says itself what its 422 means keeps it."""
    paths = document["paths"]
    assert isinstance(paths, dict)
    for operations in paths.values():
        for operation in operations.values():
            if operation["responses"].get("422", {}).get("description") == "Validation Error":
                del operation["responses"]["422"]
    components = document.get("components")
    if isinstance(components, dict):
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)

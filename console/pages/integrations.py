"""How SDKs and tools are connected, and what their errors mean."""

from __future__ import annotations

from starlette.responses import Response

from console import sign_in
from console.pages.error_codes import OF_CONSOLE, OF_MODELS
from console.pages.frame import Form, Visit
from console.pages.setups import mcp_setup, setups


async def show(visit: Visit) -> Response:
    """How to connect."""
    return _page(visit, token="")


def _page(visit: Visit, *, token: str) -> Response:
    server = visit.console.server
    base, key = server.public_url, f"sk_{server.brand}_…"
    model = server.catalogue.example or "MODEL"
    facts = {"setups": setups(base, model, key), "mcp": mcp_setup(base, key), "token": token}
    return visit.render("integrations.html", "/integrations", facts)


async def make_token(visit: Visit) -> Response:
    """A session's token for a program, shown once."""
    opened = await sign_in.for_program(visit.console, visit.member.caller)
    return _page(visit, token=opened.token)


FORMS = {
    "token": Form(
        "read", make_token, once="This token was made already, and cannot be shown again."
    )
}


async def show_errors(visit: Visit) -> Response:
    """What errors mean, and what to do."""
    return visit.render("errors.html", "/errors", {"models": OF_MODELS, "console": OF_CONSOLE})

"""Routes about how the providers are: what the gateway has learnt of its upstreams.

    GET /accounts/{account}/upstreams

The gateway shows it on its private listener (`/status`).
"""

from __future__ import annotations

import httpcore2
import msgspec
import trio
from fastapi import APIRouter
from pydantic import BaseModel

from console.access import Reader
from console.context import Console, ConsoleOf
from console.errors import Refused

_ANSWER_SECONDS = 2.0


class UpstreamOut(BaseModel):
    """An upstream: `ready`, `probe` (one request finds out whether it is back), `open` (it is not
    asked), `resting` (it asked for less) or `full`; for so many more seconds, because of that."""

    name: str
    state: str
    seconds: float
    cause: str
    in_flight: int


class UpstreamsOut(BaseModel):
    """All upstreams of this gateway, by name."""

    upstreams: list[UpstreamOut]


class _Upstream(msgspec.Struct):
    name: str
    state: str
    seconds: float
    cause: str
    in_flight: int


class _Status(msgspec.Struct):
    upstreams: list[_Upstream]


_decode = msgspec.json.Decoder(_Status).decode

router = APIRouter(prefix="/accounts/{account}/upstreams", tags=["models"])


@router.get("", summary="How the providers are")
async def list_upstreams(_: Reader, console: ConsoleOf) -> UpstreamsOut:
    """What the gateway has learnt of its upstreams, as it is now."""
    return UpstreamsOut(upstreams=await upstreams(console))


async def upstreams(console: Console) -> list[UpstreamOut]:
    """By name. Refuses with 503 where the gateway does not say."""
    try:
        with trio.fail_after(_ANSWER_SECONDS):
            async with httpcore2.AsyncConnectionPool() as pool:
                answer = await pool.request("GET", f"{console.server.admin_url}/status")
        found = _decode(answer.content)
    except (
        httpcore2.NetworkError,
        httpcore2.ProtocolError,
        httpcore2.TimeoutException,
        msgspec.DecodeError,
        trio.TooSlowError,
    ) as error:
        raise Refused(
            503, "unavailable", "The gateway does not say how its providers are."
        ) from error
    return [
        UpstreamOut(
            name=each.name,
            state=each.state,
            seconds=each.seconds,
            cause=each.cause,
            in_flight=each.in_flight,
        )
        for each in sorted(found.upstreams, key=lambda each: each.name)
    ]

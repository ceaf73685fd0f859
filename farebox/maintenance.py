"""What has to be done to the database now and then, whoever serves: once for all workers.

Rows of the days ahead have a place before they come; what has expired goes.
"""

from __future__ import annotations

import contextlib

import trio

from adapters.errors import APIError
from ledger.postgres import PostgresStore
from ledger.store import StoreError
from proxy.answers import PostgresAnswers
from proxy.gateway import wall_seconds
from proxy.state import PostgresResponses

_PAUSE_SECONDS = 6 * 3600.0


async def prepare(conninfo: str) -> None:
    """What must have been done before anything is served. Raises StoreError."""
    store = PostgresStore(conninfo)
    try:
        await store.maintain()
    finally:
        await store.aclose()


async def keep_tidy(conninfo: str, secret: bytes) -> None:
    """Tidy now and every few hours, until cancelled. What fails is tried again at the next turn."""
    while True:
        with contextlib.suppress(APIError):
            await _purge(conninfo, secret)
        with contextlib.suppress(StoreError):  # a week's worth is there already
            await prepare(conninfo)
        await trio.sleep(_PAUSE_SECONDS)


async def _purge(conninfo: str, secret: bytes) -> None:
    responses = PostgresResponses(conninfo, secret, wall_seconds)
    answers = PostgresAnswers(conninfo, secret)
    try:
        await responses.purge(wall_seconds())
        await answers.purge(wall_seconds())
    finally:
        await responses.aclose()
        await answers.aclose()

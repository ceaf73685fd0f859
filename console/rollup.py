"""Sums of usage, kept up to date while events come, so that no page has to count them.

Every few seconds what was posted since is added to the sums, in the database and in one
transaction, up to a mark for each holder: nothing is counted twice or forgotten, whoever dies. Of
several consoles one does it at a time.
"""

from __future__ import annotations

import logging
from functools import partial

import trio

from console.context import Console
from console.errors import DatabaseUnavailable
from console.store import DatabaseError, usage

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
_BATCHES_MAX = 200  # of a holder at once: some ten thousand events, and a second


async def run(console: Console) -> None:
    """Keep the sums, until cancelled."""
    while True:
        if not await sum_up(console):
            await trio.sleep(EVERY_SECONDS)


async def sum_up(console: Console) -> int:
    """Take a portion of what was posted since; how many events, 0 where the database is away."""
    try:
        return await console.database.run(partial(usage.sum_up, batches_max=_BATCHES_MAX))
    except (DatabaseUnavailable, DatabaseError) as error:
        log.warning("sums of usage wait for the database: %s", error)
        return 0

"""`python -m benchmarks.ledgerd SOCKET JOURNAL CONNINFO`: the ledger's process, and nothing else.

What the supervisor of several workers starts beside them, with its journal on disk and its books in
Postgres. It says `ready` when workers may come, and is killed when it is no longer needed.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import trio

from farebox.interpreter import settle_in
from ledger import link
from ledger.journal import Journal
from ledger.link import is_alive
from ledger.postgres import PostgresStore
from ledger.server import LedgerServer
from ledger.store import LedgerStore

BOOT_ID = "benchmark"


def holder(journal: Path, store: LedgerStore) -> LedgerServer:
    """A lease holder on its journal, empty or not, as it is in the gateway."""
    opened, recovered = Journal.recover(journal, boot_id=BOOT_ID)
    alive = [worker.instance for worker in recovered.workers.values() if is_alive(worker)]
    return LedgerServer(store, opened, recovered, alive=alive)


async def main(path: Path, journal: Path, conninfo: str) -> None:
    parent = os.getppid()
    server = holder(journal, PostgresStore(conninfo))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))
        listening.listen()
        async with trio.open_nursery() as services:
            await services.start(server.run)
            await services.start(link.serve, server, listening)
            print("ready", flush=True)
            while os.getppid() == parent:  # noqa: ASYNC110  # nothing tells of its end
                await trio.sleep(1)
            os._exit(1)


if __name__ == "__main__":
    settle_in()
    trio.run(main, Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

"""A failover as connections see it: one address, and behind it first one server, then another.

Two real servers. The second one began as a copy of the first and is on a timeline of its own, as a
standby that was promoted; the first one goes on, as one that nobody has told. Both know of the
holder, and have given its session the same epoch.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from farebox.embedded import EmbeddedPostgres
from ledger.directory import Directory
from ledger.migrate import migrate
from ledger.postgres import PostgresStore
from ledger.store import Ask, HolderId, PoolId, StoreUncertain
from tests.fakes.model_holder import event, report
from tests.fakes.postgres import FAST

CREDIT = 1_000_000
JOURNAL = b"j" * 16
HOLDER = HolderId(1)
ACCOUNT = PoolId(1)
# A server that is told to recover, and finds nothing more, is promoted; it answers only then.
ENDS_RECOVERY = {"restore_command": "false", "hot_standby": "off"}


@dataclass(frozen=True)
class Pair:
    """Both servers, and the address that leads to one of them."""

    first: str
    second: str
    address: Path

    @property
    def conninfo(self) -> str:
        return _at(self.address)

    def lead_to(self, conninfo: str) -> None:
        """From here on, connections are to that one."""
        self.address.unlink(missing_ok=True)
        self.address.symlink_to(str(conninfo_to_dict(conninfo)["host"]))


def _at(directory: Path) -> str:
    return f"host={directory} port=5432 user=farebox dbname=postgres"


def leased(conninfo: str) -> int:
    with psycopg.connect(conninfo) as connection:
        row = connection.execute("SELECT sum(outstanding)::bigint FROM ledger.lease").fetchone()
        assert row is not None
        return int(row[0] or 0)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    first = EmbeddedPostgres(tmp_path / "1", settings=FAST)
    second = EmbeddedPostgres(tmp_path / "2", settings=FAST | ENDS_RECOVERY)
    try:
        conninfo = first.start()
        migrate(conninfo)
        with Directory(conninfo) as directory:
            directory.create_account("acme", credit=CREDIT)
        with psycopg.connect(conninfo) as connection:
            connection.execute("SELECT ledger.register_holder(%s, 'n', 300, 900)", [JOURNAL.hex()])
        first.stop()
        shutil.copytree(first.cluster, second.cluster)
        (second.cluster / "recovery.signal").touch()
        servers = Pair(first.start(), second.start(), tmp_path / "address")
        with psycopg.connect(servers.second) as connection:
            connection.execute("SELECT ledger.open_session(1, %s)", [JOURNAL.hex()])
        servers.lead_to(servers.first)
        yield servers
    finally:
        second.stop()
        first.stop()


@pytest.fixture
async def store(pair: Pair) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(pair.conninfo)
    yield store
    await store.aclose()


async def test_both_lanes_are_with_the_server_of_their_session(
    pair: Pair, store: PostgresStore
) -> None:
    session = await store.open_session(HOLDER, JOURNAL)
    pair.lead_to(pair.second)
    (grant,) = await store.grant_lease(session, [Ask(ACCOUNT, 1000, 1000)])
    await store.exchange(session, [], [report(ACCOUNT, held=grant.granted)])
    assert (leased(pair.first), leased(pair.second)) == (grant.granted, 0)


async def test_a_session_that_met_both_servers_is_none(pair: Pair, store: PostgresStore) -> None:
    await store.ping()
    pair.lead_to(pair.second)
    with pytest.raises(StoreUncertain, match="timeline"):
        await store.open_session(HOLDER, JOURNAL)
    session = await store.open_session(HOLDER, JOURNAL)  # anew, with connections of its own
    assert (await store.grant_lease(session, [Ask(ACCOUNT, 1000, 1000)]))[0].granted
    assert leased(pair.first) == 0


async def test_what_was_said_for_another_server_is_not_said_to_this_one(
    pair: Pair, store: PostgresStore
) -> None:
    session = await store.open_session(HOLDER, JOURNAL)
    await store.aclose()
    pair.lead_to(pair.second)
    with pytest.raises(StoreUncertain, match="timeline"):
        await store.grant_lease(session, [Ask(ACCOUNT, 1000, 1000)])
    with pytest.raises(StoreUncertain, match="timeline"):
        await store.exchange(session, [], [report(ACCOUNT)])
    with pytest.raises(StoreUncertain, match="timeline"):
        await store.quarantine(session, event(1, 1), "no")
    with pytest.raises(StoreUncertain, match="timeline"):
        await store.reattest(session, {ACCOUNT: 1})
    assert leased(pair.second) == 0

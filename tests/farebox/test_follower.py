"""What a worker makes of the directory's keys: the live ones, with limits, in little memory; and
how its keyring follows what the books say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import psycopg
import pytest

from farebox.config import Config, load
from farebox.follower import Follower, principals
from ledger.accounts import Credential
from ledger.directory import Directory, DirectoryUnavailable
from ledger.limits import LimitRef
from ledger.store import PoolId
from proxy.authenticate import Keyring
from proxy.settings import TierSettings

TIERS = {"small": TierSettings(rpm=10), "large": TierSettings(rpm=1000, concurrent=50)}


def credential(number: int, **options: object) -> Credential:
    """A key of an account that has two digits less."""
    account = number // 100
    facts: dict[str, object] = {
        "key_id": number,
        "key_hash": number.to_bytes(32),
        "key_name": f"key {number}",
        "project_id": account,
        "project": "".join(["def", "ault"]),  # another object each time, as from a database
        "account_id": account,
        "account": f"account {account}",
        "tier": "",
        "suspended": False,
        "revoked": False,
        "expires_at": None,
        "models": frozenset(),
        "pools": (PoolId(account),),
    }
    return Credential(**(facts | options))  # type: ignore[arg-type] # keyword options


def test_keys_have_the_limits_of_their_tier_or_of_the_default_one() -> None:
    found = principals([credential(100), credential(200, tier="large")], TIERS, "small")
    assert {principal.account_id: principal.limits for _, principal in found} == {
        1: (LimitRef("account:1", "rpm", 10),),
        2: (LimitRef("account:2", "rpm", 1000), LimitRef("account:2", "concurrent", 50)),
    }


def test_a_tier_that_is_no_more_is_the_default_one() -> None:
    ((_, principal),) = principals([credential(100, tier="gone")], TIERS, "small")
    assert (principal.tier, principal.limits) == ("small", (LimitRef("account:1", "rpm", 10),))


def test_revoked_keys_are_none_and_all_are_taken_away() -> None:
    credentials = [credential(100), credential(101, revoked=True)]
    assert [key_hash for key_hash, _ in principals(credentials, {}, "")] == [(100).to_bytes(32)]
    assert credentials == []


def test_expiry_is_in_seconds() -> None:
    expires = datetime(2027, 1, 1, tzinfo=UTC)
    ((_, principal),) = principals([credential(100, expires_at=expires)], {}, "")
    assert principal.expires_at == expires.timestamp()


@pytest.mark.parametrize("part", ["account", "project", "tier", "limits", "pools"])
def test_what_is_equal_in_many_keys_is_one_object(part: str) -> None:
    found = principals([credential(100 + number) for number in range(20)], TIERS, "small")
    assert len({id(getattr(principal, part)) for _, principal in found}) == 1


# -- following ------------------------------------------------------------------------------------

SECRET = b"s" * 32


@pytest.fixture
def books(database: str) -> Iterator[Directory]:
    with Directory(database, secret=SECRET) as directory:
        directory.create_account("acme", "small")
        directory.create_project("acme", "web")
        yield directory


def config(tiers: Mapping[str, TierSettings]) -> Config:
    return replace(load(None, {}), tiers=tiers)


class Following:
    """A keyring, and who keeps it."""

    def __init__(self, database: str) -> None:
        self.keyring = Keyring(SECRET)
        self.directory = Directory(database)
        self.follower = Follower(self.directory, self.keyring, config(TIERS), lambda: 0.0)

    def knows(self, key: str) -> bool:
        return self.keyring.find(self.keyring.hash_of(key), 0.0) is not None


@pytest.fixture
def following(database: str) -> Iterator[Following]:
    found = Following(database)
    yield found
    found.directory.close()


async def test_the_ring_is_what_the_books_say(books: Directory, following: Following) -> None:
    await following.follower.refresh()
    key, plain = books.create_key("acme", "web")
    assert not following.knows(plain)
    await following.follower.refresh()
    assert following.knows(plain)
    books.revoke_key(key.key_id)
    await following.follower.refresh()
    assert not following.knows(plain)


async def test_a_reload_gives_known_keys_the_limits_of_their_tiers_now(
    books: Directory, following: Following
) -> None:
    _, plain = books.create_key("acme", "web")
    await following.follower.refresh()
    await following.follower.refresh(config({"small": TierSettings(rpm=7)}))
    found = following.keyring.find(following.keyring.hash_of(plain), 0.0)
    assert found is not None
    assert found.limits == (LimitRef(f"account:{found.account_id}", "rpm", 7),)
    await following.follower.refresh()
    books.set_tier("acme", "large")  # it has gone with the reload
    await following.follower.refresh()
    found = following.keyring.find(following.keyring.hash_of(plain), 0.0)
    assert found is not None
    assert found.limits == ()


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_failover_that_lost_changes_hides_no_revocation(
    database: str, books: Directory, following: Following, lost: int
) -> None:
    key, plain = books.create_key("acme", "web")
    books.create_account("other")
    await following.follower.refresh()
    with psycopg.connect(database, autocommit=True) as connection:
        (version,) = connection.execute("SELECT version FROM directory.change").fetchone() or (0,)
    for number in range(lost):
        books.set_tier("other", f"t{number}")  # that only the former primary has heard of
    await following.follower.refresh()
    lose_changes(database, following, version)
    books.revoke_key(key.key_id)  # with the number of a lost one
    await following.follower.refresh()
    assert not following.knows(plain)


def lose_changes(database: str, following: Following, version: int) -> None:
    """As if the database were one that had followed up to `version`."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("ALTER TABLE directory.account DISABLE TRIGGER USER")
        connection.execute(
            "UPDATE directory.account SET version = %s WHERE version > %s", [version] * 2
        )
        connection.execute("ALTER TABLE directory.account ENABLE TRIGGER USER")
        connection.execute("UPDATE directory.change SET version = %s", [version])
    edition = following.follower._edition
    assert edition is not None
    following.follower._edition = edition._replace(timeline="00000000")


async def test_keys_go_on_working_while_the_database_only_reads(
    database: str, books: Directory, following: Following
) -> None:
    _, plain = books.create_key("acme", "web")
    await following.follower.refresh()
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE directory.change SET budget_month = '2020-01-01'")
        name = connection.info.dbname
        connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    following.directory.close()
    with pytest.raises(DirectoryUnavailable):
        await following.follower.refresh()
    assert following.knows(plain)

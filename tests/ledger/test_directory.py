"""Accounts, projects, keys and prices in Postgres, and how workers hear of changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from ledger import verify
from ledger.accounts import AccountStatus, Budget, Credential, Edition, Key
from ledger.directory import (
    Directory,
    DirectoryRefused,
    DirectoryUnavailable,
    PriceRow,
    ReferenceReused,
)
from ledger.keys import keyed_hash, of_session

SECRET = b"s" * 32
DOLLAR = 1_000_000_000


@pytest.fixture
def directory(database: str) -> Iterator[Directory]:
    with Directory(database, secret=SECRET) as directory:
        yield directory


@pytest.fixture
def acme(directory: Directory) -> Directory:
    """The directory with the account acme ($25) and its project web."""
    directory.create_account("acme", "pro", 25 * DOLLAR)
    directory.create_project("acme", "web")
    return directory


def execute(database: str, statement: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(statement.encode())


def changes(directory: Directory, known: Edition) -> tuple[Edition, list[Credential]]:
    found = directory.changes_since(known)
    assert found is not None, "the database has the same past"
    return found


def name_of(database: str) -> str:
    return str(conninfo_to_dict(database)["dbname"])


def clean(database: str) -> bool:
    return not any(result.violations for result in verify.run(database))


# -- accounts -------------------------------------------------------------------------------------


def test_an_account_begins_with_its_opening_credit(database: str, acme: Directory) -> None:
    statement = acme.show_account("acme")
    assert (statement.account.tier, statement.account.status) == ("pro", AccountStatus.OPEN)
    assert (statement.balance, statement.credited) == (25 * DOLLAR, 25 * DOLLAR)
    assert (statement.charged, statement.reserved) == (0, 0)
    assert acme.list_accounts() == [statement]
    assert clean(database)


def test_a_tier_and_a_suspension_can_be_changed(acme: Directory) -> None:
    assert acme.set_tier("acme", "free").tier == "free"
    assert acme.suspend("acme").status == AccountStatus.SUSPENDED
    assert acme.resume("acme").status == AccountStatus.OPEN


def test_credit_goes_both_ways_with_a_reason(database: str, acme: Directory) -> None:
    assert acme.credit("acme", 5 * DOLLAR, "sorry for the outage").balance == 30 * DOLLAR
    assert acme.credit("acme", -30 * DOLLAR, "typing error").balance == 0
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT code, amount, reason FROM ledger.transfer ORDER BY transfer_id"
        ).fetchall()
    assert rows == [
        (5, 25 * DOLLAR, "opening credit"),
        (5, 5 * DOLLAR, "sorry for the outage"),
        (5, 30 * DOLLAR, "typing error"),
    ]
    assert clean(database)


@pytest.mark.parametrize("amount", [DOLLAR, -DOLLAR])
def test_a_reference_makes_a_credit_repeatable(database: str, acme: Directory, amount: int) -> None:
    assert acme.credit_once("acme", amount, "invoice 7", "invoice-7")
    with Directory(database) as another:
        assert not another.credit_once("acme", amount, "invoice 7", "invoice-7")
        assert another.credit_once("acme", amount, "invoice 7", "invoice-8")
    assert acme.show_account("acme").balance == 25 * DOLLAR + 2 * amount
    assert clean(database)


@pytest.mark.parametrize(
    ("amount", "reason"), [(2 * DOLLAR, "gift"), (-DOLLAR, "gift"), (DOLLAR, "Gift")]
)
def test_a_reference_belongs_to_one_adjustment(
    database: str, acme: Directory, amount: int, reason: str
) -> None:
    acme.credit_once("acme", DOLLAR, "gift", "k")
    with pytest.raises(ReferenceReused, match="'k' belongs to another adjustment"):
        acme.credit_once("acme", amount, reason, "k")
    assert acme.show_account("acme").balance == 26 * DOLLAR
    assert clean(database)


def test_a_reference_belongs_to_an_account(acme: Directory) -> None:
    acme.create_account("other")
    assert acme.credit_once("acme", DOLLAR, "gift", "k")
    assert acme.credit_once("other", 2 * DOLLAR, "another gift", "k")


def test_what_was_refused_leaves_its_reference_free(acme: Directory) -> None:
    with pytest.raises(DirectoryRefused, match="cannot be taken"):
        acme.credit_once("acme", -26 * DOLLAR, "gift", "k")
    assert acme.credit_once("acme", DOLLAR, "gift", "k")


def test_retries_that_overlap_credit_once(database: str, acme: Directory) -> None:
    with ThreadPoolExecutor(4) as threads:
        retries = [threads.submit(lambda: _credit_once_from_elsewhere(database)) for _ in range(8)]
        assert sorted(retry.result() for retry in retries) == [False] * 7 + [True]
    assert acme.show_account("acme").balance == 26 * DOLLAR


def _credit_once_from_elsewhere(database: str) -> bool:
    with Directory(database) as directory:
        return directory.credit_once("acme", DOLLAR, "gift", "k")


@pytest.mark.unsound_books("a lease is made up")
def test_leased_credit_is_reserved_and_cannot_be_taken(database: str, acme: Directory) -> None:
    execute(database, "UPDATE ledger.pool SET available = available - 100, leased = 100")
    statement = acme.show_account("acme")
    assert (statement.balance, statement.reserved) == (25 * DOLLAR, 100)
    assert statement.available == 25 * DOLLAR - 100
    with pytest.raises(DirectoryRefused, match="25 USD cannot be taken from 'acme'"):
        acme.credit("acme", -25 * DOLLAR, "all of it")


REFUSALS: list[tuple[Callable[[Directory], object], str]] = [
    (lambda d: d.create_account("acme"), "There is already an account 'acme'."),
    (lambda d: d.create_account("a/b"), "'a/b' cannot name an account"),
    (lambda d: d.create_account(""), "'' cannot name an account"),
    (lambda d: d.create_account("x", credit=-1), "cannot be negative"),
    (lambda d: d.show_account("acne"), "There is no account 'acne'; did you mean 'acme'?"),
    (lambda d: d.show_account("zzz"), "There is no account 'zzz'."),
    (lambda d: d.set_tier("x", "pro"), "There is no account 'x'."),
    (lambda d: d.credit("acme", 0, "r"), "The amount is 0"),
    (lambda d: d.credit("acme", 1, " "), "needs a reason"),
    (lambda d: d.credit_once("acme", 1, "r", ""), "1 to 255 printable ASCII"),
    (lambda d: d.credit_once("acme", 1, "r", "k" * 256), "1 to 255 printable ASCII"),
    (lambda d: d.credit_once("acme", 1, "r", "k\n"), "1 to 255 printable ASCII"),
    (lambda d: d.credit("acme", 2**62, "r"), "more than the books can hold"),
    (lambda d: d.create_project("acme", "web"), "'acme' already has a project 'web'"),
    (lambda d: d.create_project("acme", "-"), "'-' cannot name a project"),
    (lambda d: d.create_project("acme", "y", Budget(0)), "must be above 0"),
    (lambda d: d.delete_project("acme", "wep"), "no project 'wep'; did you mean 'web'?"),
    (lambda d: d.create_key("acme", "x"), "The account 'acme' has no project 'x'."),
    (lambda d: d.create_key("acme", "web", "a\nb"), "cannot name a key"),
    (lambda d: d.create_key("acme", "web", budget=Budget(-5)), "must be above 0"),
    (lambda d: d.list_keys("nobody"), "There is no account 'nobody'"),
    (lambda d: d.revoke_key(7), "There is no key with the id 7"),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSALS, ids=[text for _, text in REFUSALS])
def test_a_refusal_is_a_sentence(
    acme: Directory, call: Callable[[Directory], object], sentence: str
) -> None:
    before = acme.list_accounts()
    with pytest.raises(DirectoryRefused) as refused:
        call(acme)
    assert sentence in str(refused.value)
    assert str(refused.value).endswith((".", "?"))
    assert acme.list_accounts() == before


# -- keys -----------------------------------------------------------------------------------------


def test_a_key_is_stored_as_its_hash_only(database: str, acme: Directory) -> None:
    key, plain = acme.create_key("acme", "web", "laptop", models=["b", "a", "a"])
    assert plain.startswith("sk_farebox_")
    assert (key.account, key.project, key.name, key.models) == ("acme", "web", "laptop", ("a", "b"))
    (credential,) = acme.live_keys()[1]
    assert credential.key_hash == keyed_hash(SECRET, plain)
    with psycopg.connect(database) as connection:
        (row,) = connection.execute("SELECT k::text FROM directory.api_key k").fetchall()
    assert plain not in row[0]


def test_keys_are_listed_and_revoked(acme: Directory) -> None:
    acme.create_project("acme", "other")
    first, _ = acme.create_key("acme", "web")
    second, _ = acme.create_key("acme", "other", expires_at=datetime(2030, 1, 1, tzinfo=UTC))
    assert acme.list_keys() == acme.list_keys("acme") == [first, second]
    assert acme.list_keys("acme", "other") == [second]
    revoked = acme.revoke_key(first.key_id)
    assert revoked.revoked_at is not None
    assert acme.revoke_key(first.key_id) == revoked


def test_of_keys_that_have_ended_only_the_newest_are_listed(acme: Directory) -> None:
    acme.create_project("acme", "other")
    past = datetime.now(UTC) - timedelta(seconds=1)
    maker, _ = acme.create_key("acme", "web", scopes=["keys"])
    acme.create_key("acme", "web", made_by=maker.key_id)
    acme.create_key("acme", "other", expires_at=past)
    for project in ("web", "other", "web"):
        acme.create_key("acme", project)
    acme.revoke_key(maker.key_id)
    acme.revoke_key(5)

    def listed(ended_max: int | None, project: str | None = None) -> list[int]:
        return [key.key_id for key in acme.list_keys("acme", project, ended_max=ended_max)]

    assert listed(None) == listed(4) == [1, 2, 3, 4, 5, 6]
    assert listed(3) == [2, 3, 4, 5, 6]
    assert listed(1) == [4, 5, 6]
    assert listed(0) == [4, 6]
    assert listed(1, "web") == [2, 4, 6]


def test_a_deleted_project_takes_its_keys_along_and_frees_its_name(acme: Directory) -> None:
    acme.create_key("acme", "web")
    edition, _ = acme.live_keys()
    acme.delete_project("acme", "web")
    _, (credential,) = changes(acme, edition)
    assert credential.revoked
    assert (acme.list_projects(), acme.list_keys()) == ([], [])
    assert acme.create_project("acme", "web").path == "acme/web"


# -- what workers hear ----------------------------------------------------------------------------


def only(directory: Directory, known: Edition | None = None) -> tuple[Edition, Credential]:
    edition, (credential,) = changes(directory, known) if known else directory.live_keys()
    return edition, credential


def test_a_worker_hears_of_everything_that_concerns_a_key(acme: Directory) -> None:
    key, _ = acme.create_key("acme", "web", "laptop", models=["m"])
    edition, first = only(acme)
    account_id = acme.show_account("acme").account.account_id
    assert (first.key_id, first.key_name, first.project) == (key.key_id, "laptop", "web")
    assert (first.account_id, first.account, first.tier) == (account_id, "acme", "pro")
    assert (first.suspended, first.revoked, first.expires_at) == (False, False, None)
    assert (first.models, first.pools) == (frozenset({"m"}), (account_id,))

    assert changes(acme, edition) == (edition, [])
    acme.set_tier("acme", "free")
    edition, changed = only(acme, edition)
    assert changed == replace(first, tier="free")
    acme.suspend("acme")
    edition, changed = only(acme, edition)
    assert changed.suspended
    acme.revoke_key(key.key_id)
    edition, changed = only(acme, edition)
    assert changed.revoked
    assert changes(acme, edition) == (edition, [])
    assert acme.live_keys() == (edition, [])  # whoever starts now need not know it


def test_no_change_is_missed_between_concurrent_writers(database: str, acme: Directory) -> None:
    """Versions become visible in their order, however the transactions overlap."""
    per_writer = 25

    def write() -> None:
        with Directory(database, secret=SECRET) as directory:
            for _ in range(per_writer):
                directory.create_key("acme", "web")

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    edition, credentials = acme.live_keys()
    seen = [credential.key_id for credential in credentials]
    while any(writer.is_alive() for writer in writers) or changes(acme, edition)[1]:
        edition, credentials = changes(acme, edition)
        seen += [credential.key_id for credential in credentials]
    assert len(seen) == len(set(seen)) == 4 * per_writer


def test_a_lost_connection_is_said_and_replaced(database: str, acme: Directory) -> None:
    execute(
        database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    with pytest.raises(DirectoryUnavailable, match="The database does not answer"):
        acme.list_accounts()
    assert len(acme.list_accounts()) == 1


def test_a_standby_that_lacks_the_newest_changes_says_that_nobody_can_tell(
    database: str, acme: Directory
) -> None:
    """It gives their numbers to others: "nothing has changed since" would be untrue."""
    acme.create_key("acme", "web")
    edition, _ = acme.live_keys()
    assert acme.changes_since(edition._replace(timeline="0000000F")) is None
    assert acme.changes_since(edition._replace(version=edition.version + 1)) is None
    assert acme.changes_since(edition) == (edition, [])


def test_a_key_may_live_until_the_last_moment_there_is(database: str, acme: Directory) -> None:
    """East of Greenwich it is in the year 10000, which no datetime can say."""
    execute(database, f"ALTER DATABASE \"{name_of(database)}\" SET timezone = 'Europe/Berlin'")
    end = datetime.max.replace(tzinfo=UTC)
    with Directory(database, secret=SECRET) as directory:
        key, _ = directory.create_key("acme", "web", expires_at=end)
        assert only(directory)[1].expires_at == end
        assert [each.expires_at for each in directory.list_keys("acme")] == [end]
        assert directory.revoke_key(key.key_id).expires_at == end


def test_a_database_that_only_reads_is_one_that_is_away(database: str) -> None:
    read_only = 'ALTER DATABASE "{}" SET default_transaction_read_only = on'
    with Directory(database, secret=SECRET) as directory:
        directory.create_account("acme")
    execute(database, "UPDATE directory.change SET budget_month = '2020-01-01'")
    execute(database, read_only.format(name_of(database)))
    with Directory(database, secret=SECRET) as directory:
        assert len(directory.list_accounts()) == 1
        with pytest.raises(DirectoryUnavailable, match="read-only"):
            directory.live_keys()  # the month's budgets are to be opened
        with pytest.raises(DirectoryUnavailable, match="read-only"):
            directory.register_catalogue(["m"], [], [])


# -- budgets --------------------------------------------------------------------------------------


def pools_of(database: str) -> dict[int, tuple[int, datetime | None]]:
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT pool_id, available, valid_until FROM ledger.pool")
        return {pool_id: (available, until) for pool_id, available, until in rows}


def test_budgets_are_pools_behind_the_account(database: str, acme: Directory) -> None:
    acme.create_project("acme", "tight", Budget(50))
    acme.create_key("acme", "tight", budget=Budget(20))
    _, credential = only(acme)
    account, project, key = credential.pools
    assert account == credential.account_id
    assert min(project, key) >= 2**40
    pools = pools_of(database)
    assert (pools[project], pools[key]) == ((50, None), (20, None))
    assert clean(database)


def spend(database: str, pool: int, amount: int, leased: int = 0) -> None:
    execute(
        database,
        f"UPDATE ledger.pool SET available = available - {amount + leased},"
        f" spent = spent + {amount}, leased = leased + {leased} WHERE pool_id = {pool}",
    )


def test_a_budget_that_is_changed_keeps_what_was_spent(database: str, acme: Directory) -> None:
    key, _ = acme.create_key("acme", "web", budget=Budget(20))

    def change(budget: Budget | None) -> Key:
        return acme.update_key(key.key_id, name=key.name, budget=budget, expires_at=None, models=())

    _, credential = only(acme)
    pool = credential.pools[-1]
    spend(database, pool, 15)

    assert change(Budget(50)).budget == Budget(50)
    assert pools_of(database)[pool] == (35, None)
    change(Budget(10))
    assert pools_of(database)[pool] == (-5, None)

    change(None)
    assert only(acme)[1].pools == (credential.account_id,)
    change(Budget(30))
    assert only(acme)[1].pools == credential.pools
    assert pools_of(database)[pool] == (15, None)

    change(Budget(30, "month"))
    monthly = only(acme)[1].pools[-1]
    assert monthly != pool
    assert pools_of(database)[monthly][0] == 30


def test_a_project_gets_another_budget(database: str, acme: Directory) -> None:
    acme.create_key("acme", "web")
    acme.set_project_budget("acme", "web", Budget(70, "month"))
    _, credential = only(acme)
    assert pools_of(database)[credential.pools[-1]][0] == 70
    acme.set_project_budget("acme", "web", None)
    assert only(acme)[1].pools == (credential.account_id,)
    with pytest.raises(DirectoryRefused, match="above 0"):
        acme.set_project_budget("acme", "web", Budget(0))
    with pytest.raises(DirectoryRefused, match="no project"):
        acme.set_project_budget("acme", "none", None)


def test_a_key_that_is_changed_stays_the_same_key(acme: Directory) -> None:
    key, _ = acme.create_key("acme", "web", "old", budget=Budget(20), models=["a"])
    expiry = datetime(2031, 1, 1, tzinfo=UTC)
    changed = acme.update_key(
        key.key_id, name="new", budget=Budget(20), expires_at=expiry, models=["c", "b", "c"]
    )
    assert changed == replace(key, name="new", expires_at=expiry, models=("b", "c"))
    assert only(acme)[1].models == {"b", "c"}
    assert acme.find_key("acme", key.key_id) == changed
    acme.create_account("other")
    with pytest.raises(DirectoryRefused, match="no key"):
        acme.find_key("other", key.key_id)


def test_a_directory_within_a_transaction_stands_and_falls_with_it(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        with connection.transaction(force_rollback=True):
            Directory.within(connection).create_account("lost")
        with connection.transaction():
            Directory.within(connection).create_account("kept")
    with Directory(database) as directory:
        assert [each.account.name for each in directory.list_accounts()] == ["kept"]


def test_a_monthly_budget_gets_a_new_pool_each_month(database: str, acme: Directory) -> None:
    acme.create_project("acme", "tight", Budget(50, "month"))
    acme.create_key("acme", "tight", budget=Budget(20, "month"))
    edition, first = only(acme)
    assert changes(acme, edition) == (edition, [])

    # The month ends: as if the budgets so far had been made for an earlier one.
    execute(
        database,
        "UPDATE directory.change SET budget_month = budget_month - interval '1 month';"
        "UPDATE directory.budget_pool SET starts_at = starts_at - interval '1 month'",
    )
    edition, second = only(acme, edition)
    assert second.pools[0] == first.pools[0]
    assert not set(second.pools[1:]) & set(first.pools[1:])
    assert only(acme)[1] == second
    assert changes(acme, edition) == (edition, [])

    available, until = pools_of(database)[second.pools[1]]
    assert (available, until is not None and until > datetime.now(UTC)) == (50, True)


# -- models, providers, prices --------------------------------------------------------------------

PRICE = PriceRow("m", "p/m", "", (("input", 5), ("output", 10)), 1000)


def test_names_and_prices_get_numbers_that_stay(database: str, directory: Directory) -> None:
    first = directory.register_catalogue(["m", "m"], ["p"], [PRICE, PRICE])
    again = directory.register_catalogue(["n", "m"], ["q", "p"], [PRICE])
    assert (again.models["m"], again.providers["p"]) == (first.models["m"], first.providers["p"])
    assert again.prices == first.prices
    assert set(again.models) == {"m", "n"}
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT count(*) FROM ledger.gl_account WHERE kind = 2").fetchone()
        assert row == (2,)


@pytest.mark.parametrize(
    "changed",
    [
        replace(PRICE, model="n"),
        replace(PRICE, upstream="q/m"),
        replace(PRICE, variant="flex"),
        replace(PRICE, components=(("input", 6), ("output", 10))),
        replace(PRICE, margin_bps=0),
    ],
)
def test_another_content_is_another_price(directory: Directory, changed: PriceRow) -> None:
    ids = directory.register_catalogue(["m"], ["p"], [PRICE, changed]).prices
    assert ids[PRICE] != ids[changed]


def test_a_price_never_changes(database: str, directory: Directory) -> None:
    directory.register_catalogue(["m"], ["p"], [PRICE])
    for statement in ("UPDATE directory.price SET margin_bps = 0", "DELETE FROM directory.price"):
        with pytest.raises(psycopg.Error, match="append-only"):
            execute(database, statement)


# -- the secret of all gateways -------------------------------------------------------------------


def test_the_first_secret_is_the_one_that_all_need(database: str) -> None:
    for _ in range(2):
        with Directory(database, secret=SECRET) as directory:
            directory.claim_secret()
    with (
        Directory(database, secret=b"t" * 32) as other,
        pytest.raises(DirectoryRefused, match=r"another server\.secret"),
    ):
        other.claim_secret()


def test_the_mark_of_a_secret_is_no_hash_of_any_key(database: str) -> None:
    with Directory(database, secret=SECRET) as directory:
        directory.claim_secret()
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT mark FROM directory.secret").fetchone()
    assert row is not None
    assert row[0] not in (SECRET, keyed_hash(SECRET, ""))


# -- keys that keys and sessions have -------------------------------------------------------------


def test_a_key_says_who_sends_it(acme: Directory) -> None:
    made, plain = acme.create_key("acme", "web", "ops", budget=Budget(DOLLAR), scopes=["keys"])
    holder = acme.find_holder(plain)
    assert holder is not None
    assert (holder.key, holder.budget_left, holder.suspended) == (made, DOLLAR, False)
    assert made.scopes == ("keys",)
    acme.suspend("acme")
    acme.revoke_key(made.key_id)
    holder = acme.find_holder(plain)
    assert holder is not None
    assert holder.suspended
    assert holder.key.revoked_at is not None
    assert acme.find_holder(f"{plain}x") is None


def test_a_key_spends_from_the_budget_of_the_one_that_made_it(acme: Directory) -> None:
    maker, _ = acme.create_key("acme", "web", budget=Budget(DOLLAR, "month"), scopes=["keys"])
    made, _ = acme.create_key("acme", "web", budget=Budget(DOLLAR), made_by=maker.key_id)
    edition, (theirs, ours) = acme.live_keys()
    account, makers_budget = theirs.pools
    assert (ours.pools[0], ours.pools[2]) == (account, makers_budget)
    assert len(ours.pools) == 3
    acme.update_key(maker.key_id, name="", budget=None, expires_at=None, models=[])
    edition, changed = changes(acme, edition)
    assert [(each.key_id, len(each.pools)) for each in changed] == [
        (maker.key_id, 1),
        (made.key_id, 2),
    ]


def test_a_key_ends_with_the_one_that_made_it(acme: Directory) -> None:
    soon = datetime(2099, 1, 1, tzinfo=UTC)
    maker, _ = acme.create_key("acme", "web", expires_at=soon, scopes=["keys"])
    made, _ = acme.create_key("acme", "web", made_by=maker.key_id)
    assert made.expires_at == soon
    edition, found = acme.live_keys()
    assert [each.expires_at for each in found] == [soon, soon]
    acme.revoke_key(maker.key_id)
    _, found = changes(acme, edition)
    assert [each.revoked for each in found] == [True, True]
    assert acme.find_key("acme", made.key_id).revoked_at is not None
    assert acme.live_keys()[1] == []


def test_a_key_that_has_expired_is_none_to_workers(acme: Directory) -> None:
    maker, _ = acme.create_key("acme", "web", scopes=["keys"])
    acme.create_key("acme", "web", made_by=maker.key_id)
    edition, _ = acme.live_keys()

    def expire(expires_at: datetime | None) -> tuple[Edition, list[bool]]:
        acme.update_key(maker.key_id, name="", budget=None, expires_at=expires_at, models=[])
        later, found = changes(acme, edition)
        return later, [each.revoked for each in found]

    edition, revoked = expire(datetime.now(UTC) - timedelta(seconds=1))
    assert revoked == [True, True]
    assert acme.live_keys() == (edition, [])  # whoever starts now need not know them
    _, revoked = expire(datetime.now(UTC) + timedelta(hours=1))
    assert revoked == [False, False]
    _, revoked = expire(None)
    assert revoked == [False, False]


@pytest.mark.parametrize(
    ("makers", "its_own", "models", "revoked"),
    [
        (["a"], [], {"a"}, False),
        (["a"], ["a", "b"], {"a"}, False),
        ([], ["b"], {"b"}, False),
        ([], [], set(), False),
        (["a"], ["b"], {"b"}, True),  # nothing is left, and no models would mean all of them
    ],
)
def test_a_key_uses_no_model_that_was_taken_from_the_one_that_made_it(
    acme: Directory, makers: list[str], its_own: list[str], models: set[str], revoked: bool
) -> None:
    maker, _ = acme.create_key("acme", "web", scopes=["keys"])
    made, _ = acme.create_key("acme", "web", models=its_own, made_by=maker.key_id)
    edition, _ = acme.live_keys()
    acme.update_key(maker.key_id, name="x", budget=None, expires_at=None, models=makers)
    _, found = changes(acme, edition)
    (credential,) = [each for each in found if each.key_id == made.key_id]
    assert (set(credential.models), credential.revoked) == (models, revoked)


def test_a_key_that_a_key_made_has_no_scope(acme: Directory) -> None:
    maker, _ = acme.create_key("acme", "web", scopes=["keys"])
    with pytest.raises(psycopg.errors.CheckViolation):
        acme.create_key("acme", "web", scopes=["keys"], made_by=maker.key_id)


def test_a_session_has_one_key_and_that_of_an_ended_one_is_used_again(
    database: str, acme: Directory
) -> None:
    execute(
        database,
        "INSERT INTO console.user (issuer, subject, created_at) VALUES ('i', 's', now())",
    )
    now = datetime.now(UTC)
    (web,) = acme.list_projects("acme")

    def found(token: str, hours: int = 0) -> tuple[int, str] | None:
        at = now + timedelta(hours=hours)
        plain = of_session("farebox", SECRET, token, web.project_id)
        until = at + timedelta(hours=24)
        made = acme.session_key(plain, web.project_id, 1, "MCP of a@b", until, at)
        return None if made is None else (made.key_id, plain)

    first = found("one")
    assert first is not None
    assert found("one") == first
    second = found("two")
    assert second is not None
    assert second[0] != first[0]
    third = found("three", hours=25)
    assert third is not None
    assert third[0] == first[0]
    assert acme.find_holder(first[1]) is None  # the ended session's
    holder = acme.find_holder(third[1])
    assert holder is not None
    assert holder.key.expires_at == now + timedelta(hours=49)
    assert len(acme.list_keys("acme")) == 2
    acme.revoke_key(first[0])
    assert found("three", hours=25) is None

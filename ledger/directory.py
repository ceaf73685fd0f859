"""The directory: accounts, projects, keys and the price list, in Postgres.

Blocking, one connection, safe to call from several threads in turn: commands use it directly, the
gateway through a worker thread. Each call is one transaction. What a person may have got wrong is
a DirectoryRefused with a sentence; a database that does not answer is a DirectoryUnavailable, and
the next call connects anew.
"""

from __future__ import annotations

import difflib
import re
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import datetime
from types import TracebackType
from typing import Literal, LiteralString, NoReturn, Self

import psycopg
from psycopg import errors, sql
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from ledger import keys
from ledger.accounts import (
    RESERVED_NAMES,
    Account,
    AccountStatus,
    Budget,
    Credential,
    Edition,
    Holder,
    Key,
    KeyScope,
    Project,
    Statement,
)
from ledger.connection import TIMELINE, announce, connect, is_away
from ledger.errors import brief
from ledger.money import AMOUNT_MAX, format_usd

GOODWILL = 7  # gl_account: the other side of manual adjustments
MANUAL_ADJUSTMENT = 5  # transfer code

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}", re.ASCII)
_KEY_NAME_CHARACTERS_MAX = 100
_REFERENCE = re.compile(r"[ -~]{1,255}")
_CREDENTIAL_FIELDS = tuple(field.name for field in fields(Credential))
_CONNECT_SECONDS = 10

_CREATE_ACCOUNT = """
INSERT INTO directory.account (name, tier) VALUES (%s, %s)
RETURNING account_id, name, tier, status, created_at
"""
_SET_TIER = """
UPDATE directory.account SET tier = %s WHERE name = %s
RETURNING account_id, name, tier, status, created_at
"""
_SET_STATUS = """
UPDATE directory.account SET status = %s WHERE name = %s
RETURNING account_id, name, tier, status, created_at
"""
_FIND_ACCOUNT = """
SELECT account_id, name, tier, status, created_at FROM directory.account WHERE name = %s
"""
_STATEMENTS = """
SELECT a.account_id, a.name, a.tier, a.status, a.created_at, p.funded, p.spent, p.leased
  FROM directory.account a JOIN ledger.pool p ON p.pool_id = a.account_id
"""
_FIND_ADJUSTMENT = """
SELECT CASE t.debit_account_id WHEN %s THEN t.amount ELSE -t.amount END, t.reason
  FROM ledger.external_ref r
  JOIN ledger.transfer t ON t.account_id = %s AND t.transfer_id = r.transfer_id
 WHERE r.code = %s AND r.ref = %s
"""
_LIST_PROJECTS = """
SELECT p.project_id, a.name, p.name, p.budget, p.budget_period, p.created_at
  FROM directory.project p JOIN directory.account a USING (account_id)
 WHERE p.deleted_at IS NULL AND (%(account)s::text IS NULL OR a.name = %(account)s)
 ORDER BY a.name, p.name
"""
_OPEN_PROJECT_BUDGET = """
UPDATE directory.project p
   SET budget_pool_id = directory.open_budget(p.account_id, p.project_id, NULL, p.budget,
                                              directory.first_period(p.budget_period))
 WHERE p.project_id = %s
"""
_CREATE_KEY = """
INSERT INTO directory.api_key
  (project_id, name, key_hash, models, budget, budget_period, expires_at, scopes, made_by)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING key_id
"""
_OPEN_KEY_BUDGET = """
UPDATE directory.api_key k
   SET budget_pool_id = directory.open_budget(p.account_id, NULL, k.key_id, k.budget,
                                              directory.first_period(k.budget_period))
  FROM directory.project p WHERE p.project_id = k.project_id AND k.key_id = %s
"""
_SET_BUDGET = "SELECT directory.set_budget(%s, %s, %s, %s)"
_KEY_COLUMNS = """
       k.key_id, a.name, p.name, k.name, k.budget, k.budget_period, k.models, k.created_at,
       least(k.expires_at, m.expires_at), coalesce(k.revoked_at, m.revoked_at, p.deleted_at),
       k.scopes, k.made_by
"""
KEY_IS_LIVE = """
  (k.revoked_at IS NULL AND coalesce(k.expires_at, 'infinity') > now()
   AND m.revoked_at IS NULL AND coalesce(m.expires_at, 'infinity') > now())
"""
"""Of a key `k`, which ends with the key `m` that made it. Whether its project was deleted is
another matter. In these words, indexes find it."""

_KEY_TABLES = """
  FROM directory.api_key k
  JOIN directory.project p USING (project_id)
  JOIN directory.account a USING (account_id)
  LEFT JOIN directory.api_key m ON m.key_id = k.made_by
"""
_KEYS = f"SELECT {_KEY_COLUMNS} {_KEY_TABLES}"
# Those that have ended are read from the newest on, and no more of a project than are listed.
_LIST_KEYS = f"""
WITH chosen AS (
  SELECT p.project_id FROM directory.project p JOIN directory.account a USING (account_id)
   WHERE p.deleted_at IS NULL
     AND (%(account)s::text IS NULL OR a.name = %(account)s)
     AND (%(project)s::text IS NULL OR p.name = %(project)s)
), listed AS (
  SELECT k.key_id FROM chosen
    JOIN directory.api_key k USING (project_id)
    LEFT JOIN directory.api_key m ON m.key_id = k.made_by
   WHERE {KEY_IS_LIVE}
  UNION ALL
  (SELECT ended.key_id FROM chosen
    CROSS JOIN LATERAL (
      SELECT k.key_id, k.created_at FROM directory.api_key k
        LEFT JOIN directory.api_key m ON m.key_id = k.made_by
       WHERE k.project_id = chosen.project_id AND NOT {KEY_IS_LIVE}
       ORDER BY k.created_at DESC, k.key_id DESC LIMIT %(ended_max)s) ended
    ORDER BY ended.created_at DESC, ended.key_id DESC LIMIT %(ended_max)s)
)
{_KEYS} WHERE k.key_id IN (SELECT key_id FROM listed) ORDER BY k.key_id
"""  # noqa: S608
_FIND_HOLDER = f"""
SELECT {_KEY_COLUMNS}, a.account_id, p.project_id, a.status = 2, b.funded - b.spent
  {_KEY_TABLES} LEFT JOIN ledger.pool b ON b.pool_id = k.budget_pool_id
 WHERE k.key_hash = %s
"""
_SESSION_KEY = "SELECT directory.session_key(%s, %s, %s, %s, %s, %s)"
_CREDENTIALS = f"""
WITH touched AS (
  SELECT key_id FROM directory.api_key WHERE version > %(since)s
  UNION
  SELECT k.key_id FROM directory.api_key k JOIN directory.project p USING (project_id)
   WHERE p.version > %(since)s
  UNION
  SELECT k.key_id FROM directory.api_key k JOIN directory.project p USING (project_id)
    JOIN directory.account a USING (account_id) WHERE a.version > %(since)s
  UNION
  SELECT k.key_id FROM directory.api_key m JOIN directory.api_key k ON k.made_by = m.key_id
   WHERE m.version > %(since)s
), credential AS (
  SELECT k.key_id, k.key_hash, k.name AS key_name, p.project_id, p.name AS project,
         a.account_id, a.name AS account, a.tier, a.status = 2 AS suspended,
         NOT {KEY_IS_LIVE} OR p.deleted_at IS NOT NULL
           OR coalesce(k.models <> '{{}}' AND m.models <> '{{}}' AND NOT k.models && m.models,
                       false) AS revoked,  -- the last of them: no model is left
         least(k.expires_at, m.expires_at) AS expires_at,
         CASE WHEN k.models = '{{}}' THEN coalesce(m.models, '{{}}')
              WHEN k.models && m.models
              THEN ARRAY(SELECT unnest(k.models) INTERSECT SELECT unnest(m.models))
              ELSE k.models END AS models,
         array_remove(ARRAY[a.account_id, p.budget_pool_id, k.budget_pool_id, m.budget_pool_id],
                      NULL) AS pools
    FROM touched
    JOIN directory.api_key k USING (key_id)
    JOIN directory.project p USING (project_id)
    JOIN directory.account a USING (account_id)
    LEFT JOIN directory.api_key m ON m.key_id = k.made_by
)
SELECT c.version, k.* FROM directory.change c
  LEFT JOIN credential k ON %(since)s > 0 OR NOT k.revoked
 ORDER BY k.key_id
"""  # noqa: S608
_EDITION = f"""
SELECT version, {TIMELINE}, budget_month < date_trunc('month', now(), 'UTC') FROM directory.change
"""  # noqa: S608
_OPEN_MONTH = "SELECT directory.roll_budgets()"
_CREATE_PRICES = """
INSERT INTO directory.price (model, upstream, variant, margin_bps, components)
SELECT w.model, w.upstream, w.variant, w.margin_bps, w.components
  FROM unnest(%s::text[], %s::text[], %s::text[], %s::integer[], %s::jsonb[]) WITH ORDINALITY
       AS w(model, upstream, variant, margin_bps, components, n)
 WHERE NOT EXISTS (
   SELECT FROM directory.price p
    WHERE (p.model, p.upstream, p.variant, p.margin_bps, p.components)
        = (w.model, w.upstream, w.variant, w.margin_bps, w.components))
 ORDER BY w.n
"""
_FIND_PRICES = """
SELECT p.price_id
  FROM unnest(%s::text[], %s::text[], %s::text[], %s::integer[], %s::jsonb[]) WITH ORDINALITY
       AS w(model, upstream, variant, margin_bps, components, n)
  JOIN directory.price p
    ON (p.model, p.upstream, p.variant, p.margin_bps, p.components)
     = (w.model, w.upstream, w.variant, w.margin_bps, w.components)
 ORDER BY w.n
"""


class DirectoryRefused(Exception):
    """The request makes no sense as things are; the message is a sentence for who asked."""


class ReferenceReused(DirectoryRefused):
    """Another adjustment of this account was made with this reference."""

    def __init__(self, reference: str) -> None:
        super().__init__(
            f"The idempotency key {reference!r} belongs to another adjustment of this account:"
            " use a new one for each."
        )


class DirectoryUnavailable(Exception):
    """The database did not answer. A change may or may not have been made."""


@dataclass(frozen=True, slots=True)
class PriceRow:
    """The content of a price: nano-dollars per 1,000,000 units of each component, and the margin.

    `upstream` is `provider/model`; `variant` names the long-context step and service tier.
    """

    model: str
    upstream: str
    variant: str
    components: tuple[tuple[str, int], ...]  # sorted by unit
    margin_bps: int


@dataclass(frozen=True, slots=True)
class CatalogueIds:
    """The numbers under which the books know models, providers and prices."""

    models: Mapping[str, int]
    providers: Mapping[str, int]
    prices: Mapping[PriceRow, int]


class Directory:
    """One connection to the directory. Close it, or use it as a context manager.

    `secret` and `brand` are needed only where keys are made.
    """

    def __init__(self, conninfo: str, *, secret: bytes = b"", brand: str = "farebox") -> None:
        self._conninfo = conninfo
        self._secret = secret
        self._brand = brand
        self._lock = threading.Lock()
        self._connection: psycopg.Connection | None = None

    @classmethod
    def within(
        cls, connection: psycopg.Connection, *, secret: bytes = b"", brand: str = "farebox"
    ) -> Self:
        """The directory over a caller's connection, and inside of its transaction: what is changed
        and what the caller writes beside it stand and fall together. Not to be closed."""
        directory = cls("", secret=secret, brand=brand)
        directory._connection = connection
        return directory

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the connection go; a later call opens another."""
        with self._lock:
            self._disconnect()

    def claim_secret(self) -> None:
        """Make sure that the secret is the one with which all of this database's keys are made.

        Raises DirectoryRefused where it is not: no gateway would know a key that is made with it.
        """
        with self._transaction() as tx:
            mark = keys.secret_mark(self._secret)
            (ours,) = _one(tx.execute("SELECT directory.claim_secret(%s)", [mark]).fetchone())
        if not ours:
            raise DirectoryRefused(
                "This database belongs to another server.secret: give every gateway, and every "
                "machine that makes keys, a copy of the first one's. (docs/operating.md)"
            )

    def has_other_secret(self) -> bool:
        """Whether this database's keys are made with another secret; there may be none yet, nor a
        directory."""
        with self._transaction() as tx:
            if tx.execute("SELECT to_regclass('directory.secret')").fetchone() == (None,):
                return False
            mark = tx.execute("SELECT mark FROM directory.secret").fetchone()
            return mark not in (None, (keys.secret_mark(self._secret),))

    # -- accounts -------------------------------------------------------------------------------

    def create_account(self, name: str, tier: str = "", credit: int = 0) -> Account:
        """Open an account, with `credit` nano-dollars as its first journal entry."""
        _check_name("account", name)
        if name in RESERVED_NAMES:
            raise DirectoryRefused(f"{name!r} cannot name an account: a page is called that.")
        if credit < 0:
            raise DirectoryRefused(f"The first credit cannot be negative: {format_usd(credit)}.")
        with self._transaction() as tx:
            try:
                row = tx.execute(_CREATE_ACCOUNT, [name, tier]).fetchone()
            except errors.UniqueViolation:
                raise DirectoryRefused(f"There is already an account {name!r}.") from None
            account = _account(_one(row))
            if credit:
                _adjust(tx, account, credit, "opening credit", f"manual:{uuid.uuid4()}")
        self._announce(account)
        return account

    def list_accounts(self) -> list[Statement]:
        """All accounts by name, with their money."""
        with self._transaction() as tx:
            return [_statement(row) for row in tx.execute(_STATEMENTS + " ORDER BY a.name")]

    def show_account(self, name: str) -> Statement:
        """One account with its money."""
        with self._transaction() as tx:
            row = tx.execute(_STATEMENTS + " WHERE a.name = %s", [name]).fetchone()
            return _statement(row) if row else _unknown_account(tx, name)

    def set_tier(self, name: str, tier: str) -> Account:
        """Move an account to another tier; workers follow within a second."""
        return self._change_account(name, _SET_TIER, tier)

    def suspend(self, name: str) -> Account:
        """Serve none of the account's keys any more; running requests finish."""
        return self._change_account(name, _SET_STATUS, AccountStatus.SUSPENDED)

    def resume(self, name: str) -> Account:
        """End a suspension."""
        return self._change_account(name, _SET_STATUS, AccountStatus.OPEN)

    def credit(self, name: str, amount: int, reason: str) -> Statement:
        """Adjust an account by hand, down where `amount` is negative, with a journal entry.

        Only available credit can be taken away: what gateways hold is not.
        """
        self.credit_once(name, amount, reason, str(uuid.uuid4()))
        return self.show_account(name)

    def credit_once(self, name: str, amount: int, reason: str, reference: str) -> bool:
        """The same, once for each `reference` of the account; False where it was done before.

        The books keep references for good. Raises ReferenceReused where it belongs to an adjustment
        by another amount or for another reason.
        """
        if not reason.strip():
            raise DirectoryRefused("An adjustment needs a reason.")
        if amount == 0:
            raise DirectoryRefused("The amount is 0: there is nothing to adjust.")
        if not _REFERENCE.fullmatch(reference):
            raise DirectoryRefused("An idempotency key is 1 to 255 printable ASCII characters.")
        with self._transaction() as tx:
            account = _find_account(tx, name)
            kept = f"manual:{account.account_id}:{reference}"
            is_new = _adjust(tx, account, amount, reason, kept)
            if not is_new:
                facts = [GOODWILL, account.account_id, MANUAL_ADJUSTMENT, kept]
                if tx.execute(_FIND_ADJUSTMENT, facts).fetchone() != (amount, reason):
                    raise ReferenceReused(reference)
        if is_new:
            self._announce(account)
        return is_new

    def _change_account(self, name: str, statement: LiteralString, value: str | int) -> Account:
        with self._transaction() as tx:
            row = tx.execute(statement, [value, name]).fetchone()
            account = _account(row) if row else _unknown_account(tx, name)
        self._announce(account)
        return account

    def _announce(self, account: Account) -> None:
        """Tell the gateways; they find out by themselves where this fails."""
        with suppress(DirectoryUnavailable), self._transaction() as tx:
            announce(tx, account.account_id)

    # -- projects -------------------------------------------------------------------------------

    def create_project(self, account: str, project: str, budget: Budget | None = None) -> Project:
        """Add a project to an account; its budget is a limit over all its keys."""
        _check_name("project", project)
        _check_budget(budget)
        with self._transaction() as tx:
            account_id = _find_account(tx, account).account_id
            try:
                row = tx.execute(
                    "INSERT INTO directory.project (account_id, name, budget, budget_period)"
                    " VALUES (%s, %s, %s, %s) RETURNING project_id, created_at",
                    [account_id, project, *_budget_columns(budget)],
                ).fetchone()
            except errors.UniqueViolation:
                raise DirectoryRefused(
                    f"The account {account!r} already has a project {project!r}."
                ) from None
            project_id, created_at = _one(row)
            if budget is not None:
                tx.execute(_OPEN_PROJECT_BUDGET, [project_id])
            return Project(project_id, account, project, budget, created_at)

    def list_projects(self, account: str | None = None) -> list[Project]:
        """All projects that were not deleted, of one account or of all."""
        with self._transaction() as tx:
            if account is not None:
                _find_account(tx, account)
            rows = tx.execute(_LIST_PROJECTS, {"account": account})
            return [
                Project(project_id, owner, name, _budget(amount, period), created_at)
                for project_id, owner, name, amount, period, created_at in rows
            ]

    def set_project_budget(self, account: str, project: str, budget: Budget | None) -> None:
        """Give a project another budget, or none; what was spent in its period stays spent."""
        _check_budget(budget)
        with self._transaction() as tx:
            project_id = _find_project(tx, account, project)
            tx.execute(_SET_BUDGET, [project_id, None, *_budget_columns(budget)])

    def delete_project(self, account: str, project: str) -> None:
        """Delete a project: none of its keys is served any more. Its name is free again."""
        with self._transaction() as tx:
            tx.execute(
                "UPDATE directory.project SET deleted_at = now() WHERE project_id = %s",
                [_find_project(tx, account, project)],
            )

    # -- keys -----------------------------------------------------------------------------------

    def create_key(
        self,
        account: str,
        project: str,
        name: str = "",
        *,
        budget: Budget | None = None,
        expires_at: datetime | None = None,
        models: Sequence[str] = (),
        scopes: Sequence[KeyScope] = (),
        made_by: int | None = None,
    ) -> tuple[Key, str]:
        """Make a key and return its facts and the key itself, which is stored nowhere.

        Whether the key `made_by` may make this one is for the caller to know.
        """
        assert self._secret, "a directory that makes keys needs the server's secret"
        _check_key_name(name)
        _check_budget(budget)
        plain = keys.mint(self._brand)
        with self._transaction() as tx:
            row = tx.execute(
                _CREATE_KEY,
                [
                    _find_project(tx, account, project),
                    name,
                    keys.keyed_hash(self._secret, plain),
                    sorted(set(models)),
                    *_budget_columns(budget),
                    expires_at,
                    sorted(set(scopes)),
                    made_by,
                ],
            ).fetchone()
            (key_id,) = _one(row)
            if budget is not None:
                tx.execute(_OPEN_KEY_BUDGET, [key_id])
            return _find_key(tx, key_id), plain

    def find_holder(self, plain: str) -> Holder | None:
        """Who sends this key, revoked and expired ones too; None where there is no such key."""
        assert self._secret, "a directory that knows keys needs the server's secret"
        with self._transaction() as tx:
            hashed = keys.keyed_hash(self._secret, plain)
            row = tx.execute(_FIND_HOLDER, [hashed]).fetchone()
            if row is None:
                return None
            *key, account_id, project_id, suspended, budget_left = row
            return Holder(_key(tuple(key)), account_id, project_id, suspended, budget_left)

    def session_key(
        self,
        plain: str,
        project_id: int,
        user_id: int,
        name: str,
        expires_at: datetime,
        now: datetime,
    ) -> Key | None:
        """Make or renew the key with which a user's session calls models (`keys.of_session`).
        None where it was revoked, and so stays for as long as the session."""
        assert self._secret, "a directory that makes keys needs the server's secret"
        hashed = keys.keyed_hash(self._secret, plain)
        with self._transaction() as tx:
            facts = [project_id, user_id, hashed, name, expires_at, now]
            (key_id,) = _one(tx.execute(_SESSION_KEY, facts).fetchone())
            return None if key_id is None else _find_key(tx, key_id)

    def list_keys(
        self,
        account: str | None = None,
        project: str | None = None,
        *,
        ended_max: int | None = None,
    ) -> list[Key]:
        """The keys of everyone, an account, or one project, by number. Of those that are revoked or
        expired only the `ended_max` that were made last, where that is said."""
        with self._transaction() as tx:
            if account is not None and project is not None:
                _find_project(tx, account, project)
            elif account is not None:
                _find_account(tx, account)
            asked = {"account": account, "project": project, "ended_max": ended_max}
            return [_key(row) for row in tx.execute(_LIST_KEYS, asked)]

    def find_key(self, account: str, key_id: int) -> Key:
        """A key of an account, revoked or not."""
        with self._transaction() as tx:
            key = _find_key(tx, key_id)
            if key.account != account:
                raise _no_such_key(key_id)
            return key

    def update_key(
        self,
        key_id: int,
        *,
        name: str,
        budget: Budget | None,
        expires_at: datetime | None,
        models: Sequence[str],
    ) -> Key:
        """Change what a key may do; workers follow within a second. What was spent of a budget in
        its period stays spent."""
        _check_key_name(name)
        _check_budget(budget)
        with self._transaction() as tx:
            before = _find_key(tx, key_id)
            tx.execute(
                "UPDATE directory.api_key SET name = %s, expires_at = %s, models = %s"
                " WHERE key_id = %s",
                [name, expires_at, sorted(set(models)), key_id],
            )
            if budget != before.budget:
                tx.execute(_SET_BUDGET, [None, key_id, *_budget_columns(budget)])
            return _find_key(tx, key_id)

    def revoke_key(self, key_id: int) -> Key:
        """End a key for good; workers follow within a second. Revoking twice is no error."""
        with self._transaction() as tx:
            _find_key(tx, key_id)
            tx.execute(
                "UPDATE directory.api_key SET revoked_at = now()"
                " WHERE key_id = %s AND revoked_at IS NULL",
                [key_id],
            )
            return _find_key(tx, key_id)

    # -- what workers ask -----------------------------------------------------------------------

    def live_keys(self) -> tuple[Edition, list[Credential]]:
        """Every key that lives, and the edition of the directory that says so. It also opens the
        month's budgets when a month begins."""
        with self._transaction() as tx:
            edition, month_over = _edition(tx)
            if month_over:
                tx.execute(_OPEN_MONTH)
            return _credentials(tx, edition, since=0)

    def changes_since(self, known: Edition) -> tuple[Edition, list[Credential]] | None:
        """The directory's edition, and every key that changed after `known`; one that has expired
        is a revoked one. None where `known` is not of this database's past, so that nobody can
        tell: ask for `live_keys`.

        Cheap where nothing changed, so it may be asked several times a second. It also opens the
        month's budgets when a month begins.
        """
        with self._transaction() as tx:
            edition, month_over = _edition(tx)
            if edition.timeline != known.timeline or edition.version < known.version:
                return None
            if month_over:
                tx.execute(_OPEN_MONTH)
            elif edition == known:
                return known, []
            return _credentials(tx, edition, since=known.version)

    def register_catalogue(
        self, models: Sequence[str], providers: Sequence[str], prices: Sequence[PriceRow]
    ) -> CatalogueIds:
        """The numbers of these models, providers and prices; what is new is written first.

        Rows are never changed: another margin or component makes another row.
        """
        with self._transaction() as tx:
            tx.execute("SELECT pg_advisory_xact_lock(hashtext('directory.register_catalogue'))")
            return CatalogueIds(
                _register_names(tx, "model", models),
                _register_names(tx, "provider", providers),
                _register_prices(tx, prices),
            )

    # -- the connection -------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection]:
        with self._lock:
            try:
                connection = self._connect()
                with connection.transaction():
                    yield connection
            except psycopg.Error as error:
                if not (isinstance(error, psycopg.OperationalError) or is_away(error)):
                    raise  # what was asked is at fault
                self._disconnect()
                raise DirectoryUnavailable(
                    f"The database does not answer: {brief(error)}"
                ) from error

    def _connect(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._conninfo, connect_seconds=_CONNECT_SECONDS)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


# -- rows and refusals ----------------------------------------------------------------------------


def _one(row: TupleRow | None) -> TupleRow:
    assert row is not None, "this statement always returns a row"
    return row


def _edition(tx: psycopg.Connection) -> tuple[Edition, bool]:
    """The directory's edition now; whether a month has begun since its budgets were opened."""
    version, timeline, month_over = _one(tx.execute(_EDITION).fetchone())
    return Edition(version, timeline), month_over


def _credentials(
    tx: psycopg.Connection, edition: Edition, since: int
) -> tuple[Edition, list[Credential]]:
    """Keys that changed after a version (0: all that live), and the edition of that moment."""
    version, found = edition.version, []
    # Version and keys come from one statement, hence from one moment.
    # Read one by one: `fetchall` lets no other thread run until the last is there.
    for row in tx.execute(_CREDENTIALS, {"since": since}):
        version = row[0]
        if row[1] is not None:
            found.append(_credential(row[1:]))
    return edition._replace(version=version), found


def _account(row: TupleRow) -> Account:
    account_id, name, tier, status, created_at = row
    return Account(account_id, name, tier, AccountStatus(status), created_at)


def _statement(row: TupleRow) -> Statement:
    *account, funded, spent, leased = row
    return Statement(_account(tuple(account)), funded, spent, leased)


def _budget(amount: int | None, period: Literal["month"] | None) -> Budget | None:
    return None if amount is None else Budget(amount, period)


def _budget_columns(budget: Budget | None) -> tuple[int | None, str | None]:
    return (None, None) if budget is None else (budget.amount, budget.period)


def _key(row: TupleRow) -> Key:
    key_id, account, project, name, amount, period, models, *times, scopes, made_by = row
    created_at, expires_at, revoked_at = times
    return Key(
        key_id=key_id,
        account=account,
        project=project,
        name=name,
        budget=_budget(amount, period),
        models=tuple(models),
        created_at=created_at,
        expires_at=expires_at,
        revoked_at=revoked_at,
        scopes=tuple(scopes),
        made_by=made_by,
    )


def _credential(row: TupleRow) -> Credential:
    """A row in the order of `Credential`'s fields."""
    facts = dict(zip(_CREDENTIAL_FIELDS, row, strict=True))
    facts["models"] = frozenset(facts["models"])
    facts["pools"] = tuple(facts["pools"])
    return Credential(**facts)


def _find_account(tx: psycopg.Connection, name: str) -> Account:
    row = tx.execute(_FIND_ACCOUNT, [name]).fetchone()
    return _account(row) if row else _unknown_account(tx, name)


def _unknown_account(tx: psycopg.Connection, name: str) -> NoReturn:
    names = [row[0] for row in tx.execute("SELECT name FROM directory.account LIMIT 10000")]
    raise DirectoryRefused(f"There is no account {name!r}{_did_you_mean(name, names)}")


def _find_project(tx: psycopg.Connection, account: str, project: str) -> int:
    account_id = _find_account(tx, account).account_id
    rows = tx.execute(
        "SELECT name, project_id FROM directory.project"
        " WHERE account_id = %s AND deleted_at IS NULL",
        [account_id],
    )
    found: dict[str, int] = dict(rows.fetchall())
    if project not in found:
        raise DirectoryRefused(
            f"The account {account!r} has no project {project!r}{_did_you_mean(project, found)}"
        )
    return found[project]


def _find_key(tx: psycopg.Connection, key_id: int) -> Key:
    row = tx.execute(_KEYS + " WHERE k.key_id = %s", [key_id]).fetchone()
    if row is None:
        raise _no_such_key(key_id)
    return _key(row)


def _no_such_key(key_id: int) -> DirectoryRefused:
    return DirectoryRefused(f"There is no key with the id {key_id}; 'key list' shows them.")


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise DirectoryRefused(
            f"{name!r} cannot name {'an' if kind == 'account' else 'a'} {kind}: use up to 64"
            " letters, digits and . _ - @ +, beginning with a letter or digit."
        )


def _check_key_name(name: str) -> None:
    if len(name) > _KEY_NAME_CHARACTERS_MAX or not name.isprintable():
        raise DirectoryRefused(
            f"{name!r} cannot name a key:"
            f" use up to {_KEY_NAME_CHARACTERS_MAX} printable characters."
        )


def _check_budget(budget: Budget | None) -> None:
    if budget is not None and not 0 < budget.amount <= AMOUNT_MAX:
        raise DirectoryRefused(f"A budget must be above 0: {format_usd(budget.amount)}.")


def _adjust(
    tx: psycopg.Connection, account: Account, amount: int, reason: str, reference: str
) -> bool:
    """One journal entry between the account and goodwill, in the direction of the sign; False
    where there is one with this reference."""
    if abs(amount) > AMOUNT_MAX:
        raise DirectoryRefused(f"{format_usd(amount)} is more than the books can hold.")
    try:
        if amount > 0:
            row = tx.execute(
                "SELECT ledger.credit_pool(%s, %s, %s::smallint, %s, %s, %s)",
                [account.account_id, amount, MANUAL_ADJUSTMENT, GOODWILL, reference, reason],
            ).fetchone()
        else:
            row = tx.execute(
                "SELECT ledger.debit_pool(%s, %s, %s::smallint, %s, %s, false, %s)",
                [account.account_id, -amount, MANUAL_ADJUSTMENT, GOODWILL, reference, reason],
            ).fetchone()
    except errors.NumericValueOutOfRange:
        raise DirectoryRefused(
            f"The balance of {account.name!r} would become more than the books can hold."
        ) from None
    except psycopg.Error as error:
        if error.sqlstate != "LE007":
            raise
        raise DirectoryRefused(
            f"{format_usd(-amount)} USD cannot be taken from {account.name!r}: 'account show' says"
            " what is available; what gateways hold reserved comes back within a minute of rest."
        ) from None
    return row == (True,)


def _register_names(
    tx: psycopg.Connection, table: Literal["model", "provider"], names: Sequence[str]
) -> dict[str, int]:
    columns = {
        "table": sql.Identifier("directory", table),
        "id": sql.Identifier(f"{table}_id"),
    }
    wanted = list(dict.fromkeys(names))
    tx.execute(
        sql.SQL(
            "INSERT INTO {table} (name) SELECT w.name FROM unnest(%(names)s::text[])"
            " WITH ORDINALITY AS w(name, n)"
            " WHERE NOT EXISTS (SELECT FROM {table} t WHERE t.name = w.name) ORDER BY w.n"
        ).format(**columns),
        {"names": wanted},
    )
    rows = tx.execute(
        sql.SQL("SELECT name, {id} FROM {table} WHERE name = ANY (%s)").format(**columns),
        [wanted],
    )
    return dict(rows.fetchall())


def _register_prices(tx: psycopg.Connection, prices: Sequence[PriceRow]) -> dict[PriceRow, int]:
    wanted = list(dict.fromkeys(prices))
    columns = [
        [price.model for price in wanted],
        [price.upstream for price in wanted],
        [price.variant for price in wanted],
        [price.margin_bps for price in wanted],
        [Jsonb(dict(price.components)) for price in wanted],
    ]
    tx.execute(_CREATE_PRICES, columns)
    rows = tx.execute(_FIND_PRICES, columns).fetchall()
    return {price: price_id for price, (price_id,) in zip(wanted, rows, strict=True)}

"""Who may spend: accounts, their projects, and the keys that requests are made with.

Plain facts as the directory last saw them. Amounts are nano-dollars, times are aware datetimes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from ledger.store import PoolId

BudgetPeriod = Literal["month"]
KeyScope = Literal["keys"]
"""What a key may do beside calling models: make and revoke keys of its project."""


RESERVED_NAMES = frozenset(
    {"api", "invitation", "models", "sign-in", "sign-out", "static", "stripe"}
)
"""What no account is called: an account's pages stand under its name, beside others."""


class AccountStatus(enum.IntEnum):
    """Whether an account's keys are served."""

    OPEN = 1
    SUSPENDED = 2


@dataclass(frozen=True, slots=True)
class Account:
    """A customer: one prepaid balance, one tier. An empty tier means the configured default."""

    account_id: int
    name: str
    tier: str
    status: AccountStatus
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Statement:
    """An account with its money, all of one moment.

    `reserved` is what gateways hold of the balance at that moment: leased, spent or not yet.
    """

    account: Account
    credited: int
    charged: int
    reserved: int

    @property
    def balance(self) -> int:
        """Credited − charged; what is reserved is not taken off."""
        return self.credited - self.charged

    @property
    def available(self) -> int:
        """What no gateway holds: the most that can be taken away now."""
        return self.balance - self.reserved


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on what a project or key may spend, in its lifetime or per calendar month (UTC)."""

    amount: int
    period: BudgetPeriod | None = None


@dataclass(frozen=True, slots=True)
class Project:
    """A part of an account, with keys and perhaps a budget of its own."""

    project_id: int
    account: str
    name: str
    budget: Budget | None
    created_at: datetime

    @property
    def path(self) -> str:
        """`account/project`, as commands name it."""
        return f"{self.account}/{self.name}"


@dataclass(frozen=True, slots=True)
class Key:
    """A key's facts; the key itself is known only to who was given it.

    One that another key has made (`made_by`) ends with that one, and spends from its budget too.
    """

    key_id: int
    account: str
    project: str
    name: str
    budget: Budget | None
    models: tuple[str, ...]  # empty: every model
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    scopes: tuple[KeyScope, ...] = ()
    made_by: int | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """Who sends a key: the key's facts, and those of its account that decide what it may do.

    `budget_left` is what was not spent yet of the key's own budget in its period. The name of a
    deleted project may be another's by now; `project_id` is not.
    """

    key: Key
    account_id: int
    project_id: int
    suspended: bool
    budget_left: int | None


class Edition(NamedTuple):
    """A state of the directory that somebody knows: its version, and the database's timeline.

    A standby that takes over may lack the newest versions, and gives their numbers to others.
    """

    version: int
    timeline: str


@dataclass(frozen=True, slots=True)
class Credential:
    """Everything that a worker needs to authenticate a key and to know whose money it spends.

    `pools` are what a request is reserved from: the account's credit first, then the budgets of
    project and key, and of the key that made this one. `revoked` also where the project was
    deleted, or that key revoked. `tier` and `suspended` are the account's.
    """

    key_id: int
    key_hash: bytes
    key_name: str
    project_id: int
    project: str
    account_id: int
    account: str
    tier: str
    suspended: bool
    revoked: bool
    expires_at: datetime | None
    models: frozenset[str]
    pools: tuple[PoolId, ...]

"""What a worker makes of the directory's keys: the live ones, with limits, in little memory."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from farebox.worker import principals
from ledger.accounts import Credential
from ledger.limits import LimitRef
from ledger.store import PoolId
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

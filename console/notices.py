"""What an account's owners should be told: a row that a mailer can pick up, and a line in the log.

The row is written in the transaction of what it tells of. Kinds: `recharge_failed`,
`recharge_disabled`, `recharge_capped`, `dispute_opened`, `dispute_won`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from console.store import Connection, payments

log = logging.getLogger(__name__)

Kind = Literal[
    "recharge_failed", "recharge_disabled", "recharge_capped", "dispute_opened", "dispute_won"
]


def tell(
    connection: Connection,
    account_id: int,
    kind: Kind,
    detail: Mapping[str, str | int],
    now: datetime,
) -> None:
    """Call it at the end of the transaction of what happened."""
    payments.add_notice(connection, account_id, kind, detail, now)
    said = ", ".join(f"{name} {value}" for name, value in detail.items())
    log.warning("account %d: %s (%s)", account_id, kind, said)

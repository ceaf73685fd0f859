"""The ledger's settings: `[database]`."""

from __future__ import annotations

import msgspec


class DatabaseSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[database]`. Without a `url` the embedded Postgres in `data_dir` is used.

    `data_dir` also holds the ledger's journal, so it must outlive the process.
    """

    url: str = ""
    data_dir: str = ".farebox"

    def __repr__(self) -> str:  # a URL may carry a password
        return f"DatabaseSettings(data_dir={self.data_dir!r})"

"""A worker's keyring follows the directory: what it knows of keys is what the books say.

Four times a second the directory is asked what has changed since the edition that the ring is a
copy of; as a rule nothing has. Where that edition is not of the database's past, because a standby
has taken over that lacks the newest changes, nobody can tell what has changed: the ring is read
anew then, and what the directory does not have is forgotten. While the database is away, the keys
that are known go on working.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio

from farebox.config import Config
from ledger.accounts import Credential, Edition
from ledger.directory import Directory, DirectoryUnavailable
from ledger.limits import LimitKind, LimitRef
from proxy.authenticate import Keyring, Principal
from proxy.settings import TierSettings

_REFRESH_SECONDS = 0.25
_KEYS_A_TURN = 500  # taken over between two turns of other tasks


@dataclass(frozen=True, slots=True)
class _Changes:
    """What the directory says: live keys, ids of others. `whole`: there are no more than these."""

    edition: Edition
    live: list[tuple[bytes, Principal]]
    ended: list[int]
    whole: bool


class Follower:
    """Keeps `keyring` a copy of `directory`, with the tiers of a configuration. `wall` is in
    seconds since the epoch."""

    def __init__(
        self, directory: Directory, keyring: Keyring, config: Config, wall: Callable[[], float]
    ) -> None:
        self._directory = directory
        self._keyring = keyring
        self._config = config
        self._wall = wall
        self._edition: Edition | None = None
        self._one_at_a_time = trio.Lock()  # what was true before must not come after what is now

    async def run(self) -> None:
        """Until cancelled: a change of a key or an account is effective within a second."""
        while True:
            await trio.sleep(_REFRESH_SECONDS)
            with contextlib.suppress(DirectoryUnavailable):
                await self.refresh()

    async def refresh(self, reloaded: Config | None = None) -> None:
        """Take over what has changed since the last time; or all that there is, with the tiers of a
        configuration that is `reloaded`. Raises DirectoryUnavailable, and changes nothing then."""
        keyring = self._keyring
        async with self._one_at_a_time:
            with keyring.refreshing():
                changes = await trio.to_thread.run_sync(
                    self._changes, reloaded, abandon_on_cancel=True
                )
                if changes.whole:
                    keyring.keep({principal.key_id for _, principal in changes.live})
                keyring.update((), removed=changes.ended)
                keyring.forget_expired(self._wall())
                while changes.live:
                    keyring.update(changes.live[-_KEYS_A_TURN:])
                    del changes.live[-_KEYS_A_TURN:]
                    await trio.lowlevel.checkpoint()
            self._config, self._edition = reloaded or self._config, changes.edition

    def _changes(self, reloaded: Config | None) -> _Changes:
        """Blocks."""
        config = reloaded or self._config
        changed = None
        if reloaded is None and self._edition is not None:
            changed = self._directory.changes_since(self._edition)
        edition, credentials = changed or self._directory.live_keys()
        ended = [each.key_id for each in credentials if each.revoked]
        live = principals(credentials, config.tiers, config.limits.default_tier)
        return _Changes(edition, live, ended, whole=changed is None)


def principals(
    credentials: list[Credential], tiers: Mapping[str, TierSettings], default_tier: str
) -> list[tuple[bytes, Principal]]:
    """What the data plane needs of live keys, with their hashes and the limits of their tiers. A
    tier that the configuration does not have (any more) is the default one.

    There may be a hundred thousand: what is equal in many is one object, and `credentials` are
    taken away one by one, as no thread can do anything while a long list is freed.
    """
    limits: dict[tuple[str, str], tuple[LimitRef, ...]] = {}
    same: dict[tuple[int, ...], tuple[int, ...]] = {}
    found: list[tuple[bytes, Principal]] = []
    while credentials:
        each = credentials.pop()
        if each.revoked:
            continue
        tier = each.tier if each.tier in tiers else default_tier
        scope = f"account:{each.account_id}"
        if (scope, tier) not in limits:
            limits[scope, tier] = _limits(scope, tiers.get(tier, TierSettings()))
        principal = Principal(
            key_id=each.key_id,
            key_name=each.key_name,
            account_id=each.account_id,
            account=sys.intern(each.account),
            project_id=each.project_id,
            project=sys.intern(each.project),
            tier=sys.intern(tier),
            suspended=each.suspended,
            expires_at=each.expires_at.timestamp() if each.expires_at else 0,
            models=each.models,
            pools=same.setdefault(each.pools, each.pools),
            limits=limits[scope, tier],
        )
        found.append((each.key_hash, principal))
    return found


def _limits(scope: str, settings: TierSettings) -> tuple[LimitRef, ...]:
    sizes: list[tuple[LimitKind, int]] = [
        ("rpm", settings.rpm),
        ("tpm", settings.tpm),
        ("concurrent", settings.concurrent),
    ]
    return tuple(LimitRef(scope, kind, size) for kind, size in sizes if size)

"""Who is calling: a key from any of its five places → Principal, from an in-memory ring.

The ring is a copy of every live key's facts, refreshed four times a second with what has changed
in the books, so that authentication costs a look-up (and a keyed hash, where a connection's head is
another than its last), and a revoked key is refused within a second. A new key works at once: who
sends one that the ring does not know waits for the next refresh. Keys themselves are never held,
only their keyed hashes.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qsl

import trio

from adapters.errors import AccountSuspended, InvalidAPIKey, LedgerUnavailable
from ledger.client import LimitRef
from ledger.keys import is_minted, keyed_hash
from proxy.request_head import Head

_OUTDATED_MAX = 1000  # ends of keys that were moved since
REFRESH_SECONDS = 5.0  # so long a key that the ring does not know is waited for
_RETRY_AFTER_SECONDS = 1.0
_WEBSOCKET = b"sec-websocket-protocol"
_WEBSOCKET_PREFIX = "openai-insecure-api-key."
_API_KEY_HEADERS = (b"x-api-key", b"x-goog-api-key")
_OTHER_PLACES = frozenset({*_API_KEY_HEADERS, _WEBSOCKET})  # of the headers


@dataclass(frozen=True, slots=True)
class Principal:
    """The account, project and key behind a request, as of the last refresh.

    `pools` are what a reservation is taken from: the account's credit first, then budgets.
    `limits` are the tier's. `expires_at` is in seconds since the epoch, 0 for never. An empty
    `models` admits every model.
    """

    key_id: int
    key_name: str
    account_id: int
    account: str
    project_id: int
    project: str
    tier: str
    suspended: bool
    expires_at: float
    models: frozenset[str]
    pools: tuple[int, ...]
    limits: tuple[LimitRef, ...]


class Keyring:
    """All live keys by their keyed hash."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._by_hash: dict[bytes, Principal] = {}
        self._hashes: dict[int, bytes] = {}
        self._expiring: list[tuple[float, int]] = []  # a heap of moments and ids, some outdated
        self._begun = 0  # refreshes, in all
        self._done = 0  # the newest of them that came through
        self._refreshed = trio.Event()

    def __len__(self) -> int:
        return len(self._by_hash)

    def update(
        self, changed: Iterable[tuple[bytes, Principal]], removed: Iterable[int] = ()
    ) -> None:
        """Take over new facts of some keys (hash and principal), and forget others by id."""
        for key_id in removed:
            self._forget(key_id)
        for key_hash, principal in changed:
            self._forget(principal.key_id)
            self._by_hash[key_hash] = principal
            self._hashes[principal.key_id] = key_hash
            if principal.expires_at:
                heapq.heappush(self._expiring, (principal.expires_at, principal.key_id))
        if len(self._expiring) > _OUTDATED_MAX + 2 * len(self._by_hash):
            ring = self._by_hash.values()
            self._expiring = [(each.expires_at, each.key_id) for each in ring if each.expires_at]
            heapq.heapify(self._expiring)

    def keep(self, known: Container[int]) -> None:
        """Forget all keys but these, by their ids."""
        for key_id in [each for each in self._hashes if each not in known]:
            self._forget(key_id)

    def forget_expired(self, now: float) -> None:
        """Give the memory of keys back that nobody can use any more."""
        while self._expiring and self._expiring[0][0] <= now:
            _, key_id = heapq.heappop(self._expiring)
            key_hash = self._hashes.get(key_id)
            if key_hash is not None and 0 < self._by_hash[key_hash].expires_at <= now:
                self._forget(key_id)

    @contextmanager
    def refreshing(self) -> Iterator[None]:
        """While the books are read and `update` is told: ends the waits that had begun before."""
        self._begun += 1
        number = self._begun
        yield
        self._done = number
        self._refreshed.set()
        self._refreshed = trio.Event()

    async def refreshed(self) -> bool:
        """Wait until the ring knows what is in the books now; whether that came to pass within a
        few seconds."""
        wanted = self._begun + 1
        with trio.move_on_after(REFRESH_SECONDS):
            while self._done < wanted:
                await self._refreshed.wait()
        return self._done >= wanted

    def _forget(self, key_id: int) -> None:
        key_hash = self._hashes.pop(key_id, None)
        if key_hash is not None:
            del self._by_hash[key_hash]

    def hash_of(self, key: str) -> bytes:
        """Under which the ring has a key, if it has it."""
        return keyed_hash(self._secret, key)

    def find(self, key_hash: bytes, now: float) -> Principal | None:
        """Whose key that is, None where the ring does not have it, or it has expired; `now` is wall
        time in seconds. Raises AccountSuspended."""
        principal = self._by_hash.get(key_hash)
        if principal is None or (principal.expires_at and principal.expires_at <= now):
            return None
        if principal.suspended:
            raise AccountSuspended(f"The account {principal.account!r} is suspended.")
        return principal


def hash_of_key(keyring: Keyring, head: Head) -> bytes:
    """The keyed hash of the key that a request carries. Raises InvalidAPIKey (none, two different
    ones)."""
    return keyring.hash_of(_key(head.headers, head.query))


async def newcomer(keyring: Keyring, head: Head, now: float) -> Principal:
    """The caller of a request whose key may be newer than the ring.

    What has no checksum is no key, and is not waited for. Raises InvalidAPIKey (unknown, expired or
    revoked), AccountSuspended, and LedgerUnavailable where nobody can know now.
    """
    key = _key(head.headers, head.query)
    if is_minted(key):
        came = await keyring.refreshed()
        if (known := keyring.find(keyring.hash_of(key), now)) is not None:
            return known
        if not came:
            raise LedgerUnavailable(
                "The API key is unknown here, and the database cannot be asked for new ones now.",
                retry_after=_RETRY_AFTER_SECONDS,
            )
    raise InvalidAPIKey("The API key is unknown, expired or revoked.")


def _key(headers: Mapping[bytes, bytes], query: str) -> str:
    """The one key that a request carries (protocols §1.1)."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    bearer = token.strip().decode("latin-1") if scheme.lower() == b"bearer" else ""
    if bearer and _OTHER_PLACES.isdisjoint(headers) and "key=" not in query:
        return bearer
    found = _elsewhere(headers, query)
    if bearer:
        found.add(bearer)
    if not found:
        raise InvalidAPIKey(
            "No API key was sent: pass it as 'Authorization: Bearer KEY', 'x-api-key' or "
            "'x-goog-api-key'."
        )
    if len(found) > 1:
        raise InvalidAPIKey("Two different API keys were sent: send one.")
    return found.pop()


def _elsewhere(headers: Mapping[bytes, bytes], query: str) -> set[str]:
    """The keys in its other places."""
    keys = {headers[name].decode("latin-1") for name in _API_KEY_HEADERS if headers.get(name)}
    if "key=" in query:
        keys.update(value for name, value in parse_qsl(query) if name == "key" and value)
    if protocols := headers.get(_WEBSOCKET):
        for item in protocols.decode("latin-1").split(","):
            if item.strip().startswith(_WEBSOCKET_PREFIX):
                keys.add(item.strip()[len(_WEBSOCKET_PREFIX) :])
    return keys

"""Whom to believe: tokens of users as Supabase and others issue them (JSON Web Tokens).

Problem: a JSON Web Token says itself how it was signed, by whom, and where the key is to be found.
Whoever believes any of that can be talked into everything. Approach: the configuration says who
issues our tokens and for which audience, and which keys are theirs; the token's header is asked for
one thing, the name of its key (`kid`), and only to look it up among these.

Rules
- The algorithm is the key's: HS256 for `jwt_secret`, RS256 or ES256 for a published key, whatever
  the token says. Published keys of other kinds are not keys to us, shared secrets least of all.
- Nothing is fetched but `jwks_url`, and nobody who asks decides how often: keys are fresh for ten
  minutes; a name that is not among them leads to one more look, at most every 30 seconds. One
  fetch is made at a time, and all who need it wait for that one.
- While the issuer cannot be reached its last keys count, for up to an hour more: as long as tokens
  usually last. Where there are none, nobody can know whether a token is good, so the answer is 503.
- `exp`, `sub`, `aud` and `iss` must be there. Clocks may differ by 30 seconds.
- A user is known by issuer and subject. An e-mail address counts if the issuer vouches for it: it
  is the claim `email`, never what users write about themselves (`user_metadata`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import httpcore2
import jwt
import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from console.settings import ConsoleSettings

TOKEN_CHARACTERS_MAX = 16_384
SKEW_SECONDS = 30.0
KEYS_FRESH_SECONDS = 600.0
KEYS_KEPT_SECONDS = 3600.0  # beyond that, while the issuer cannot be reached
LOOK_AGAIN_SECONDS = 30.0
LOOK_AGAIN_WITHOUT_KEYS_SECONDS = 5.0
FETCH_SECONDS = 5.0

_JWKS_BYTES_MAX = 1 << 18
_END = datetime(9999, 1, 1, tzinfo=UTC).timestamp()  # of what clocks can say
_SUBJECT_CHARACTERS_MAX = 255
_EMAIL_CHARACTERS_MAX = 320
_NAME_CHARACTERS_MAX = 100
_REQUIRED = ["exp", "sub", "aud", "iss"]
_ALGORITHMS = {"RSA": "RS256", "EC": "ES256"}  # by key type
_NOT_REACHED = (
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpcore2.UnsupportedProtocol,
    OSError,
)


class TokenRefused(Exception):
    """The token is not one to believe; the message says why, to whoever sent it."""


class KeysUnavailable(Exception):
    """Nobody can say at the moment whether the token is good."""


class _NotAsAsked(Exception):
    """What was fetched is not what we asked for."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a token is about. `email` is in lower case, and empty where the issuer vouches for none
    that we can tell from others.
    """

    issuer: str
    subject: str
    email: str
    name: str
    expires_at: float  # seconds since the epoch


class _Claims(msgspec.Struct):
    """What we read of a token's claims, once its signature is known to be good."""

    iss: str
    sub: str
    exp: float
    nbf: float = -math.inf
    iat: float = -math.inf
    email: object = ""
    email_verified: object = True
    user_metadata: object = None
    name: object = ""


_Public = RSAPublicKey | EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class _Key:
    """A key, and the one algorithm that it is for."""

    algorithm: str
    key: bytes | _Public


class Verifier:
    """Tells good tokens from others, by `[console]`."""

    def __init__(self, settings: ConsoleSettings, wall: Callable[[], float]) -> None:
        self._issuer = settings.issuer
        self._audience = settings.audience
        self._wall = wall
        self._secret = _Key("HS256", settings.jwt_secret.encode()) if settings.jwt_secret else None
        self._published = PublishedKeys(settings.jwks_url) if settings.jwks_url else None

    @property
    def is_configured(self) -> bool:
        """Whether there is anybody whose tokens are good."""
        return self._secret is not None or self._published is not None

    async def verify(self, token: str) -> Identity:
        """Whom a token is about. Raises TokenRefused or KeysUnavailable."""
        if len(token) > TOKEN_CHARACTERS_MAX:
            raise TokenRefused("The token is too long.")
        key = await self._key_for(token)
        try:
            payload = jwt.decode_complete(
                token,
                key.key,
                algorithms=[key.algorithm],
                audience=self._audience,
                issuer=self._issuer,
                options={
                    "require": _REQUIRED,
                    "enforce_minimum_key_length": True,
                    # by our clock, below
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )["payload"]
            claims = msgspec.convert(payload, _Claims)
        except (jwt.PyJWTError, msgspec.ValidationError, ValueError) as error:
            raise TokenRefused(f"The token is not valid: {_why(error)}.") from None
        self._check_times(claims)
        return _identity(claims)

    async def _key_for(self, token: str) -> _Key:
        try:
            name = jwt.get_unverified_header(token).get("kid")
        except (jwt.PyJWTError, ValueError):
            raise TokenRefused("This is no JSON Web Token.") from None
        found = None
        if self._published is not None and isinstance(name, str):
            try:
                found = await self._published.find(name)
            except KeysUnavailable:
                if self._secret is None:
                    raise
        key = found or self._secret
        if key is None:
            raise TokenRefused("The token is signed with a key that is not the issuer's.")
        return key

    def _check_times(self, claims: _Claims) -> None:
        now = self._wall()
        if not math.isfinite(claims.exp) or claims.exp <= now - SKEW_SECONDS:
            raise TokenRefused("The token has expired: sign in again.")
        if not max(claims.nbf, claims.iat) <= now + SKEW_SECONDS:
            raise TokenRefused("The token is not valid yet: is a clock wrong?")


def _why(error: Exception) -> str:
    """A few words about an error of the library, none of them from the token."""
    reasons: Mapping[type[Exception], str] = {
        jwt.InvalidAudienceError: "it is for another audience",
        jwt.InvalidIssuerError: "it comes from another issuer",
        jwt.MissingRequiredClaimError: "a claim is missing",
        jwt.InvalidAlgorithmError: "its algorithm is not that of its key",
        jwt.InvalidSignatureError: "its signature is wrong",
    }
    return reasons.get(type(error), "it is malformed")


def _identity(claims: _Claims) -> Identity:
    if not 0 < len(claims.sub) <= _SUBJECT_CHARACTERS_MAX or not claims.sub.isprintable():
        raise TokenRefused("The token's subject is not a name we can keep.")
    email = ""
    if claims.email_verified is True:
        email = _text(claims.email, _EMAIL_CHARACTERS_MAX)
    name = _text(claims.name, _NAME_CHARACTERS_MAX)
    if not name and isinstance(claims.user_metadata, dict):
        name = _text(claims.user_metadata.get("full_name"), _NAME_CHARACTERS_MAX)
    counts = "@" in email and email.isascii()  # beyond it, two addresses may be one in lower case
    return Identity(
        claims.iss,
        claims.sub,
        email.lower() if counts else "",
        name,
        min(claims.exp, _END),
    )


def _text(value: object, characters_max: int) -> str:
    """A claim that we show; nothing where it is not a line of text."""
    if isinstance(value, str) and len(value) <= characters_max and value.isprintable():
        return value
    return ""


# -- published keys -------------------------------------------------------------------------------


class PublishedKeys:
    """The keys that an issuer publishes at a URL (RFC 7517), by their names."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: Mapping[str, _Key] = {}
        self._fresh_until = -math.inf
        self._look_again_at = -math.inf
        self._is_reached = False
        self._looking = trio.Lock()

    async def find(self, name: str) -> _Key | None:
        """The key of that name; None where the issuer has none.

        Raises KeysUnavailable where that cannot be known.
        """
        if name not in self._keys or trio.current_time() >= self._fresh_until:
            await self._look()
        found = self._keys.get(name)
        is_known = self._is_reached if found is None else self._has_keys()
        if not is_known:
            raise KeysUnavailable
        return found

    def _has_keys(self) -> bool:
        return trio.current_time() < self._fresh_until + KEYS_KEPT_SECONDS

    async def _look(self) -> None:
        """Fetch the keys, unless that was just tried. A caller that leaves does not cut it: what
        is tried counts, or those who leave would decide how often."""
        async with self._looking:
            if trio.current_time() < self._look_again_at:
                return
            keys: Mapping[str, _Key] = {}
            with trio.move_on_after(FETCH_SECONDS, shield=True):
                keys = await _fetch(self._url)
            now = trio.current_time()
            self._is_reached = bool(keys)
            if keys:
                self._keys = keys
                self._fresh_until = now + KEYS_FRESH_SECONDS
            self._look_again_at = now + (
                LOOK_AGAIN_SECONDS if self._has_keys() else LOOK_AGAIN_WITHOUT_KEYS_SECONDS
            )


async def _fetch(url: str) -> Mapping[str, _Key]:
    """The keys at a URL; none where it does not have what we need."""
    try:
        return _keys_in(await _get(url))
    except (*_NOT_REACHED, _NotAsAsked, msgspec.DecodeError, RecursionError):
        return {}


async def _get(url: str) -> bytes:
    """The body behind a URL. A redirection is not followed."""
    async with (
        httpcore2.AsyncConnectionPool() as pool,
        pool.stream("GET", url, headers={"accept": "application/json"}) as response,
    ):
        if response.status != 200:
            raise _NotAsAsked
        body = bytearray()
        async for chunk in response.aiter_stream():
            body += chunk
            if len(body) > _JWKS_BYTES_MAX:
                raise _NotAsAsked
        return bytes(body)


class _KeySet(msgspec.Struct):
    """A key set (RFC 7517)."""

    keys: list[dict[str, object]]


def _keys_in(body: bytes) -> Mapping[str, _Key]:
    """The keys of a key set that are of use to us."""
    found: dict[str, _Key] = {}
    for entry in msgspec.json.decode(body, type=_KeySet).keys:
        name, key = entry.get("kid"), _key_of(entry)
        if isinstance(name, str) and key is not None:
            found.setdefault(name, key)
    return found


def _key_of(entry: dict[str, object]) -> _Key | None:
    algorithm = _ALGORITHMS.get(str(entry.get("kty")))
    if (
        algorithm is None
        or entry.get("alg", algorithm) != algorithm
        or entry.get("use", "sig") != "sig"
    ):
        return None
    try:
        key = jwt.PyJWK(entry, algorithm).key
    except (jwt.PyJWTError, ValueError):
        return None
    # Too short keys and other curves are refused when they are used. A private key that has been
    # published is nobody's any more.
    return _Key(algorithm, key) if isinstance(key, _Public) else None

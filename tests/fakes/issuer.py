"""An issuer of tokens: signs them with keys of every kind, and publishes its keys on loopback.

Tokens are put together by hand where a library would refuse to: an attacker has no such scruples.
`KeyServer` counts who asks it, and answers as it is told to.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

SECRET = "a shared secret of more than thirty-two bytes"
ISSUER = "https://project.supabase.test/auth/v1"
AUDIENCE = "authenticated"
NOW = 1_795_000_000.0  # by the wall clock of the tests

RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_EC_KEY = ec.generate_private_key(ec.SECP256R1())

SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | bytes
Json = Mapping[str, object]


class Wall:
    """A wall clock that is set by hand."""

    def __init__(self, seconds: float = NOW) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        """Seconds since the epoch."""
        return self.seconds


def claims(**changed: object) -> dict[str, object]:
    """The claims of a good token as Supabase issues them; None leaves one out."""
    whole: dict[str, object] = {
        "iss": ISSUER,
        "sub": "8c1f7a86-0a2e-4a3e-9d53-1f0d5b4f8a11",
        "aud": AUDIENCE,
        "exp": int(NOW) + 3600,
        "iat": int(NOW) - 10,
        "email": "ann@example.test",
        "phone": "",
        "app_metadata": {"provider": "email", "providers": ["email"]},
        "user_metadata": {"full_name": "Ann", "email_verified": True},
        "role": "authenticated",
        "aal": "aal1",
        "session_id": "5f1c",
        "is_anonymous": False,
    }
    return {name: value for name, value in {**whole, **changed}.items() if value is not None}


def token(
    key: SigningKey, header: Json, body: Json | None = None, *, digest: str = "SHA256"
) -> str:
    """A token with this header, signed with this key, whatever the header says."""
    signed = f"{encoded(header)}.{encoded(claims() if body is None else body)}"
    return f"{signed}.{unpadded(signature(key, signed.encode(), digest))}"


def by_secret(secret: str = SECRET, header: Json | None = None, /, **changed: object) -> str:
    """A token signed with a shared secret."""
    return token(
        secret.encode(), {"alg": "HS256", "typ": "JWT"} | dict(header or {}), claims(**changed)
    )


def by_rsa(header: Json | None = None, /, **changed: object) -> str:
    """A token signed with the issuer's RSA key."""
    return token(RSA_KEY, {"alg": "RS256", "kid": "rsa"} | dict(header or {}), claims(**changed))


def by_ec(header: Json | None = None, /, **changed: object) -> str:
    """A token signed with the issuer's elliptic-curve key."""
    return token(EC_KEY, {"alg": "ES256", "kid": "ec"} | dict(header or {}), claims(**changed))


def signature(key: SigningKey, text: bytes, digest: str) -> bytes:
    """What stands behind the second dot."""
    algorithm = {"SHA256": hashes.SHA256(), "SHA512": hashes.SHA512()}[digest]
    if isinstance(key, bytes):
        return hmac.new(key, text, digest.lower()).digest()
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(text, padding.PKCS1v15(), algorithm)
    r, s = decode_dss_signature(key.sign(text, ec.ECDSA(algorithm)))
    size = (key.curve.key_size + 7) // 8
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def encoded(value: object) -> str:
    """JSON in base64url, as it stands in a token."""
    return unpadded(json.dumps(value).encode())


def unpadded(data: bytes) -> str:
    """Base64url without padding (RFC 7515)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def entry(name: str, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> dict[str, object]:
    """A key as it is published (RFC 7517)."""
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        parts = {"n": _number(numbers.n), "e": _number(numbers.e)}
        return {"kty": "RSA", "kid": name, "use": "sig", "alg": "RS256", **parts}
    point = key.public_key().public_numbers()
    size = (key.curve.key_size + 7) // 8
    curve = {256: "P-256", 384: "P-384"}[key.curve.key_size]
    algorithm = {256: "ES256", 384: "ES384"}[key.curve.key_size]
    parts = {"x": _number(point.x, size), "y": _number(point.y, size)}
    return {"kty": "EC", "kid": name, "crv": curve, "alg": algorithm, **parts}


def _number(value: int, size: int = 0) -> str:
    return unpadded(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def key_set(*entries: object) -> bytes:
    """A key set."""
    return json.dumps({"keys": list(entries)}).encode()


BOTH = key_set(entry("rsa", RSA_KEY), entry("ec", EC_KEY))


def set_event() -> trio.Event:
    """An event that has happened."""
    event = trio.Event()
    event.set()
    return event


@dataclass
class KeyServer:
    """Publishes keys. `status`, `body` and `headers` are what it answers, once it `may_answer`."""

    url: str = ""
    body: bytes = BOTH
    status: str = "200 OK"
    headers: str = ""
    asked: list[str] = field(default_factory=list)  # the request lines
    hears: trio.Event = field(default_factory=trio.Event)
    may_answer: trio.Event = field(default_factory=set_event)

    async def answer(self, stream: trio.SocketStream) -> None:
        """One request, one answer."""
        head = b""
        while b"\r\n\r\n" not in head:
            received = await stream.receive_some()
            if not received:
                return
            head += received
        self.asked.append(head.split(b"\r\n")[0].decode())
        self.hears.set()
        await self.may_answer.wait()
        start = f"HTTP/1.1 {self.status}\r\ncontent-length: {len(self.body)}\r\n{self.headers}"
        with trio.move_on_after(1):
            await stream.send_all(f"{start}connection: close\r\n\r\n".encode() + self.body)

    async def serve_one(self, stream: trio.SocketStream) -> None:
        """A connection, until its answer is out or whoever asked leaves."""
        try:
            await self.answer(stream)
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def publishing() -> AsyncIterator[KeyServer]:
    """A key server for the time of the block."""
    server = KeyServer()
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/jwks.json"
        nursery.start_soon(trio.serve_listeners, server.serve_one, [listener])
        yield server
        nursery.cancel_scope.cancel()

"""Tokens of others: every attack is a 401, and nobody who asks decides what is fetched, or when."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from trio.testing import MockClock, wait_all_tasks_blocked

from console.sessions import (
    FETCH_SECONDS,
    KEYS_FRESH_SECONDS,
    KEYS_KEPT_SECONDS,
    LOOK_AGAIN_SECONDS,
    LOOK_AGAIN_WITHOUT_KEYS_SECONDS,
    Identity,
    KeysUnavailable,
    TokenRefused,
    Verifier,
)
from console.settings import ConsoleSettings
from tests.fakes.console import browsing, console
from tests.fakes.issuer import (
    AUDIENCE,
    EC_KEY,
    ISSUER,
    NOW,
    OTHER_EC_KEY,
    OTHER_RSA_KEY,
    RSA_KEY,
    SECRET,
    KeyServer,
    Wall,
    by_ec,
    by_rsa,
    by_secret,
    claims,
    encoded,
    entry,
    key_set,
    publishing,
    token,
    unpadded,
)

BY_SECRET = ConsoleSettings(jwt_secret=SECRET, issuer=ISSUER, audience=AUDIENCE)


def by_keys(server: KeyServer) -> ConsoleSettings:
    """Settings of a deployment whose issuer publishes its keys."""
    return ConsoleSettings(jwks_url=server.url, issuer=ISSUER, audience=AUDIENCE)


def verifier(server: KeyServer) -> Verifier:
    return Verifier(by_keys(server), Wall())


# -- good tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize("good", [by_rsa, by_ec])
async def test_a_token_of_a_published_key_says_whom_it_is_about(good: Callable[[], str]) -> None:
    async with publishing() as server:
        found = await verifier(server).verify(good())
    assert found == Identity(ISSUER, str(claims()["sub"]), "ann@example.test", "Ann", NOW + 3600)
    assert server.asked == ["GET /jwks.json HTTP/1.1"]


async def test_a_token_of_the_shared_secret_is_good() -> None:
    found = await Verifier(BY_SECRET, Wall()).verify(by_secret())
    assert found.email == "ann@example.test"


async def test_a_key_id_beside_a_shared_secret_says_nothing() -> None:
    """Supabase names its shared secrets too."""
    await Verifier(BY_SECRET, Wall()).verify(by_secret(SECRET, {"kid": "legacy"}))


async def test_an_issuer_may_move_from_a_secret_to_published_keys() -> None:
    async with publishing() as server:
        both = Verifier(
            ConsoleSettings(
                jwt_secret=SECRET, jwks_url=server.url, issuer=ISSUER, audience=AUDIENCE
            ),
            Wall(),
        )
        await both.verify(by_secret(SECRET, {"kid": "legacy"}))
        await both.verify(by_ec())
        for forged in (
            by_secret(SECRET, {"kid": "ec"}),  # the key's algorithm counts
            token(EC_KEY, {"alg": "ES256", "kid": "legacy"}),
        ):
            with pytest.raises(TokenRefused):
                await both.verify(forged)


@pytest.mark.parametrize(
    "changed",
    [
        {"exp": int(NOW) - 29},
        {"nbf": int(NOW) + 29},
        {"iat": int(NOW) + 29},
        {"aud": ["other", AUDIENCE]},
        {"exp": NOW + 0.5},
    ],
)
async def test_clocks_may_differ_and_audiences_be_many(changed: dict[str, object]) -> None:
    await Verifier(BY_SECRET, Wall()).verify(by_secret(**changed))


@pytest.mark.parametrize(
    ("changed", "email", "name"),
    [
        ({"email": "Ann@Example.TEST"}, "ann@example.test", "Ann"),
        ({"email": "an\u212a@example.test"}, "", "Ann"),  # in lower case this is a k
        ({"email": "\u00e4nn@example.test"}, "", "Ann"),
        ({"email": None}, "", "Ann"),
        ({"email": ""}, "", "Ann"),
        ({"email": "no address"}, "", "Ann"),
        ({"email": "a\u0000@b"}, "", "Ann"),
        ({"email": "a@b\nc@d"}, "", "Ann"),
        ({"email": ["a@b"]}, "", "Ann"),
        ({"email": "a" * 400 + "@b"}, "", "Ann"),
        ({"email_verified": False}, "", "Ann"),
        ({"email_verified": "true"}, "", "Ann"),
        ({"email_verified": True}, "ann@example.test", "Ann"),
        # whatever users write about themselves is no address
        ({"email": None, "user_metadata": {"email": "eve@example.test"}}, "", ""),
        ({"name": "Ann B."}, "ann@example.test", "Ann B."),
        ({"name": "\u202e", "user_metadata": None}, "ann@example.test", ""),
        ({"user_metadata": {"full_name": {"a": 1}}}, "ann@example.test", ""),
        ({"user_metadata": "x"}, "ann@example.test", ""),
        ({"user_metadata": {"full_name": "x" * 101}}, "ann@example.test", ""),
    ],
)
async def test_only_what_the_issuer_vouches_for_counts(
    changed: dict[str, object], email: str, name: str
) -> None:
    found = await Verifier(BY_SECRET, Wall()).verify(by_secret(**changed))
    assert (found.email, found.name) == (email, name)


# -- attacks --------------------------------------------------------------------------------------

PUBLIC_PEM = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
PUBLIC_DER = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
)
PUBLIC_PKCS1 = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.PKCS1
)


def unsigned(algorithm: str, kid: str = "rsa") -> str:
    return f"{encoded({'alg': algorithm, 'kid': kid})}.{encoded(claims())}."


def altered(good: str, **changed: object) -> str:
    head, _, signature = good.split(".")
    return f"{head}.{encoded(claims(**changed))}.{signature}"


def headed(header: bytes) -> str:
    return f"{unpadded(header)}.{encoded(claims())}.AAAA"


# Claims that make a token no good, whoever has signed it.
BAD_CLAIMS: dict[str, dict[str, object]] = {
    "wrong audience": {"aud": "other"},
    "audience with more": {"aud": AUDIENCE + "x"},
    "audiences without ours": {"aud": ["a", "b"]},
    "no audience": {"aud": None},
    "empty audience": {"aud": ""},
    "audience of another type": {"aud": {AUDIENCE: 1}},
    "wrong issuer": {"iss": "https://evil.test/auth/v1"},
    "issuer with a slash": {"iss": ISSUER + "/"},
    "issuers": {"iss": [ISSUER]},
    "no issuer": {"iss": None},
    "expired": {"exp": int(NOW) - 30},
    "expired long ago": {"exp": 0},
    "negative expiry": {"exp": -1e30},
    "no expiry": {"exp": None},
    "never expires": {"exp": float("inf")},
    "expires nowhere": {"exp": float("nan")},
    "expiry as text": {"exp": str(int(NOW) + 3600)},
    "expiry as truth": {"exp": True},
    "expiry as list": {"exp": [int(NOW) + 3600]},
    "not yet valid": {"nbf": int(NOW) + 31},
    "never valid": {"nbf": float("nan")},
    "valid from text": {"nbf": "soon"},
    "issued in the future": {"iat": int(NOW) + 31},
    "no subject": {"sub": None},
    "empty subject": {"sub": ""},
    "subject as number": {"sub": 7},
    "subject as list": {"sub": ["a"]},
    "subject with a null": {"sub": "a\u0000b"},
    "subject that is half a character": {"sub": "\ud800"},
    "huge subject": {"sub": "s" * 300},
}

# Tokens for a deployment whose issuer publishes the keys "rsa" and "ec". `trap` is a URL that must
# never be asked.
ATTACKS: dict[str, Callable[[str], str]] = {
    "no algorithm": lambda trap: unsigned("none"),
    "no algorithm, other case": lambda trap: unsigned("nOnE"),
    "empty algorithm": lambda trap: unsigned(""),
    "algorithm missing": lambda trap: token(RSA_KEY, {"kid": "rsa"}),
    "algorithm of another type": lambda trap: token(RSA_KEY, {"alg": ["RS256"], "kid": "rsa"}),
    "no signature": lambda trap: by_rsa().rsplit(".", 1)[0] + ".",
    "public key as secret": lambda trap: token(PUBLIC_PEM, {"alg": "HS256", "kid": "rsa"}),
    "public key as secret, binary": lambda trap: token(PUBLIC_DER, {"alg": "HS256", "kid": "rsa"}),
    "public key as secret, PKCS#1": lambda trap: token(
        PUBLIC_PKCS1, {"alg": "HS256", "kid": "rsa"}
    ),
    "published key as secret": lambda trap: token(
        json.dumps(entry("rsa", RSA_KEY)).encode(), {"alg": "HS256", "kid": "rsa"}
    ),
    "empty secret": lambda trap: token(b"", {"alg": "HS256", "kid": "rsa"}),
    "RSA signature under the curve's name": lambda trap: token(
        RSA_KEY, {"alg": "RS256", "kid": "ec"}
    ),
    "curve's signature under the RSA key's name": lambda trap: token(
        EC_KEY, {"alg": "ES256", "kid": "rsa"}
    ),
    "another digest": lambda trap: token(RSA_KEY, {"alg": "RS512", "kid": "rsa"}, digest="SHA512"),
    "another padding": lambda trap: by_rsa({"alg": "PS256"}),
    "another RSA key": lambda trap: token(OTHER_RSA_KEY, {"alg": "RS256", "kid": "rsa"}),
    "another point of the curve": lambda trap: token(OTHER_EC_KEY, {"alg": "ES256", "kid": "ec"}),
    "signature of nothing": lambda trap: (
        f"{encoded({'alg': 'ES256', 'kid': 'ec'})}.{encoded(claims())}.{unpadded(bytes(64))}"
    ),
    "altered claims": lambda trap: altered(by_rsa(), sub="somebody else"),
    "signature cut short": lambda trap: by_rsa()[:-8],
    "unknown key": lambda trap: token(OTHER_RSA_KEY, {"alg": "RS256", "kid": "new"}),
    "no key id": lambda trap: token(RSA_KEY, {"alg": "RS256"}),
    "key id null": lambda trap: by_rsa({"kid": None}),
    "key id as number": lambda trap: by_rsa({"kid": 0}),
    "key id as list": lambda trap: by_rsa({"kid": ["rsa"]}),
    "key id as object": lambda trap: by_rsa({"kid": {"$ne": ""}}),
    "key id as path": lambda trap: token(b"", {"alg": "HS256", "kid": "../../../../dev/null"}),
    "key id as SQL": lambda trap: token(b"x", {"alg": "HS256", "kid": "x' UNION SELECT 'x' --"}),
    "key id as address": lambda trap: token(OTHER_RSA_KEY, {"alg": "RS256", "kid": trap}),
    "key id with a null": lambda trap: by_rsa({"kid": "rsa\u0000"}),
    "key inside": lambda trap: token(
        OTHER_RSA_KEY, {"alg": "RS256", "kid": "rsa", "jwk": entry("rsa", OTHER_RSA_KEY)}
    ),
    "key inside, no id": lambda trap: token(
        OTHER_RSA_KEY, {"alg": "RS256", "jwk": entry("rsa", OTHER_RSA_KEY)}
    ),
    "keys elsewhere": lambda trap: token(
        OTHER_RSA_KEY, {"alg": "RS256", "kid": "evil", "jku": trap, "x5u": trap}
    ),
    "keys elsewhere, known id": lambda trap: token(
        OTHER_RSA_KEY, {"alg": "RS256", "kid": "rsa", "jku": trap, "x5u": trap}
    ),
    "issuer elsewhere": lambda trap: token(
        OTHER_RSA_KEY, {"alg": "RS256", "kid": "evil"}, claims(iss=trap)
    ),
    "critical extension": lambda trap: by_rsa({"crit": ["x"], "x": 1}),
    "payload that is not encoded": lambda trap: by_rsa({"crit": ["b64"], "b64": False}),
    "huge": lambda trap: by_rsa(filler="x" * 1_000_000),
    "huge header": lambda trap: by_rsa({"filler": "x" * 20_000}),
    "deep header": lambda trap: headed(b"[" * 10_000),
    "deep object": lambda trap: headed(b'{"a":' * 2_000),
    "long number": lambda trap: headed(b'{"kid":' + b"9" * 6_000 + b"}"),
    "header no object": lambda trap: f"{encoded(['alg'])}.{encoded(claims())}.AAAA",
    "claims no object": lambda trap: token(RSA_KEY, {"alg": "RS256", "kid": "rsa"}, []),  # type: ignore[arg-type]
    "no base64": lambda trap: "!!!.???.***",
    "dots": lambda trap: "..",
    "a dot": lambda trap: ".",
    "five parts": lambda trap: f"{by_rsa()}.AAAA.AAAA",
    "JSON": lambda trap: json.dumps({"payload": "", "signatures": []}) + ".",
    "beyond ASCII": lambda trap: by_rsa() + ".é",
    **{
        name: lambda trap, changed=changed: by_rsa(**changed)  # type: ignore[misc]
        for name, changed in BAD_CLAIMS.items()
    },
}

# The same for a deployment with a shared secret.
SECRET_ATTACKS: dict[str, str] = {
    "no algorithm": unsigned("none"),
    "another secret": by_secret("another secret of more than thirty-two bytes"),
    "empty secret": by_secret(""),
    "another digest": token(SECRET.encode(), {"alg": "HS512", "typ": "JWT"}, digest="SHA512"),
    "RSA": by_rsa(),
    "secret under the name of RSA": token(SECRET.encode(), {"alg": "RS256"}),
    "key inside": by_rsa({"jwk": entry("rsa", RSA_KEY)}),
    "Supabase's public key for clients": by_secret(
        iss="supabase", sub=None, aud=None, role="anon", ref="project"
    ),
    **{name: by_secret(**changed) for name, changed in BAD_CLAIMS.items()},
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_attack_on_published_keys_is_refused(attack: str) -> None:
    async with publishing() as server, publishing() as trap:
        judge = verifier(server)
        await judge.verify(by_rsa())
        with pytest.raises(TokenRefused) as refused:
            await judge.verify(ATTACKS[attack](trap.url))
    assert trap.asked == []
    assert len(server.asked) == 1
    assert len(str(refused.value)) < 100  # nothing of the token is repeated


@pytest.mark.parametrize("attack", SECRET_ATTACKS)
async def test_an_attack_on_a_shared_secret_is_refused(attack: str) -> None:
    with pytest.raises(TokenRefused):
        await Verifier(BY_SECRET, Wall()).verify(SECRET_ATTACKS[attack])


async def test_every_attack_is_a_401_of_the_api(database: str) -> None:
    async with publishing() as server, publishing() as trap:
        parts = console(database, settings=by_keys(server), wall=Wall())
        async with browsing(parts) as browser:
            for attack, made in ATTACKS.items():
                bearer = f"Bearer {made(trap.url)}".encode()
                answer = await browser.get(
                    "/console/api/session", headers=[(b"authorization", bearer)]
                )
                assert (answer.status_code, answer.json()["error"]["code"]) == (
                    401,
                    "invalid_token",
                ), attack
                answer = await browser.post(
                    "/console/api/session",
                    headers=[
                        (b"authorization", bearer),
                        (b"x-farebox-client", f"192.0.2.{len(answer.text) % 200}".encode()),
                    ],
                )
                assert answer.status_code in {401, 429}, attack
                assert "set-cookie" not in answer.headers
            good = await browser.get(
                "/console/api/session", headers={"authorization": f"Bearer {by_rsa()}"}
            )
            assert good.status_code == 200
    assert trap.asked == []
    assert len(server.asked) == 1


async def test_without_an_issuer_no_token_is_good(database: str) -> None:
    async with browsing(console(database, wall=Wall())) as browser:
        for bad in (by_secret(), by_secret(""), unsigned("none")):
            answer = await browser.get(
                "/console/api/session", headers={"authorization": f"Bearer {bad}"}
            )
            assert answer.status_code == 401


# -- published keys -------------------------------------------------------------------------------

WEAK_RSA = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
P384 = ec.generate_private_key(ec.SECP384R1())


def private(name: str) -> dict[str, object]:
    """An entry that gives the private key away."""
    numbers = RSA_KEY.private_numbers()
    secret = {"d": numbers.d, "p": numbers.p, "q": numbers.q, "dp": numbers.dmp1}
    secret |= {"dq": numbers.dmq1, "qi": numbers.iqmp}
    parts = {
        part: unpadded(value.to_bytes((value.bit_length() + 7) // 8, "big"))
        for part, value in secret.items()
    }
    return entry(name, RSA_KEY) | parts


@pytest.mark.parametrize(
    ("published", "forged"),
    [
        (
            {"kty": "oct", "kid": "k", "k": unpadded(SECRET.encode()), "alg": "HS256"},
            by_secret(SECRET, {"kid": "k"}),
        ),
        (entry("k", RSA_KEY) | {"use": "enc"}, by_rsa({"kid": "k"})),
        (entry("k", RSA_KEY) | {"alg": "HS256"}, token(PUBLIC_PEM, {"alg": "HS256", "kid": "k"})),
        (entry("k", RSA_KEY) | {"alg": "RS512"}, token(RSA_KEY, {"alg": "RS512", "kid": "k"})),
        (entry("k", RSA_KEY) | {"alg": "none"}, unsigned("none", "k")),
        (entry("k", WEAK_RSA), token(WEAK_RSA, {"alg": "RS256", "kid": "k"})),
        (entry("k", P384), token(P384, {"alg": "ES384", "kid": "k"})),
        (entry("k", P384) | {"alg": "ES256"}, token(P384, {"alg": "ES256", "kid": "k"})),
        (private("k"), by_rsa({"kid": "k"})),
        (entry("k", EC_KEY) | {"x": "AAAA"}, by_ec({"kid": "k"})),
        (entry("k", EC_KEY) | {"kty": "RSA"}, by_ec({"kid": "k"})),
        (entry("k", EC_KEY) | {"kty": ["EC"]}, by_ec({"kid": "k"})),
        (entry("k", EC_KEY) | {"kid": ["k"]}, by_ec({"kid": "k"})),
    ],
)
async def test_only_strong_public_keys_of_two_kinds_are_keys(
    published: dict[str, object], forged: str
) -> None:
    async with publishing() as server:
        server.body = key_set(published, entry("good", EC_KEY))
        judge = verifier(server)
        with pytest.raises(TokenRefused):
            await judge.verify(forged)
        await judge.verify(by_ec({"kid": "good"}))


async def test_of_two_keys_with_one_name_the_first_counts() -> None:
    async with publishing() as server:
        server.body = key_set(entry("k", EC_KEY), entry("k", OTHER_EC_KEY))
        judge = verifier(server)
        await judge.verify(by_ec({"kid": "k"}))
        with pytest.raises(TokenRefused):
            await judge.verify(token(OTHER_EC_KEY, {"alg": "ES256", "kid": "k"}))


async def test_keys_are_fetched_once_in_ten_minutes(mock_clock: MockClock) -> None:
    async with publishing() as server:
        judge = verifier(server)
        for _ in range(3):
            await judge.verify(by_rsa())
            await judge.verify(by_ec())
        mock_clock.jump(KEYS_FRESH_SECONDS - 1)
        await judge.verify(by_rsa())
        assert len(server.asked) == 1
        mock_clock.jump(1)
        await judge.verify(by_rsa())
        await judge.verify(by_rsa())
        assert len(server.asked) == 2


async def test_all_who_need_the_keys_wait_for_one_fetch(mock_clock: MockClock) -> None:
    async with publishing() as server:
        judge = verifier(server)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(judge.verify, by_rsa())
        assert len(server.asked) == 1


async def test_unknown_names_lead_to_a_look_every_half_minute(mock_clock: MockClock) -> None:
    async with publishing() as server:
        judge = verifier(server)
        await judge.verify(by_rsa())
        for looks in (1, 2, 3):
            for number in range(10):
                with pytest.raises(TokenRefused, match="a key that is not the issuer's"):
                    await judge.verify(by_rsa({"kid": f"unknown {number}"}))
            assert len(server.asked) == looks
            mock_clock.jump(LOOK_AGAIN_SECONDS)


async def test_a_new_key_is_found_and_an_old_one_forgotten(mock_clock: MockClock) -> None:
    async with publishing() as server:
        server.body = key_set(entry("old", OTHER_RSA_KEY))
        judge = verifier(server)
        old = token(OTHER_RSA_KEY, {"alg": "RS256", "kid": "old"})
        await judge.verify(old)
        server.body = key_set(entry("ec", EC_KEY))
        with pytest.raises(TokenRefused):  # nobody makes us look again at once
            await judge.verify(by_ec())
        mock_clock.jump(LOOK_AGAIN_SECONDS)
        await judge.verify(by_ec())
        with pytest.raises(TokenRefused):
            await judge.verify(old)


BROKEN: dict[str, Callable[[KeyServer, KeyServer], None]] = {
    "error": lambda server, trap: setattr(server, "status", "500 Oops"),
    "nothing": lambda server, trap: setattr(server, "body", b""),
    "no JSON": lambda server, trap: setattr(server, "body", b"<html>"),
    "no key set": lambda server, trap: setattr(server, "body", b'{"error": "x"}'),
    "no keys": lambda server, trap: setattr(server, "body", key_set()),
    "no good keys": lambda server, trap: setattr(server, "body", key_set({"kty": "oct"})),
    "no objects": lambda server, trap: setattr(server, "body", key_set(1, 2)),
    "deep": lambda server, trap: setattr(server, "body", b'{"keys":' + b"[" * 100_000),
    "huge": lambda server, trap: setattr(server, "body", b" " * 300_000 + server.body),
    "moved": lambda server, trap: (
        setattr(server, "status", "302 Found"),  # type: ignore[func-returns-value]
        setattr(server, "headers", f"location: {trap.url}\r\n"),  # type: ignore[func-returns-value]
    )[0],
    "no HTTP": lambda server, trap: setattr(server, "headers", "no header\r\n"),
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_last_keys_count_while_there_are_no_others(
    mock_clock: MockClock, broken: str
) -> None:
    async with publishing() as server, publishing() as trap:
        judge = verifier(server)
        await judge.verify(by_rsa())
        BROKEN[broken](server, trap)
        mock_clock.jump(KEYS_FRESH_SECONDS)
        for _ in range(5):
            await judge.verify(by_rsa())
        with pytest.raises(KeysUnavailable):  # it may be a new one
            await judge.verify(by_rsa({"kid": "unknown"}))
        assert len(server.asked) == 2
        mock_clock.jump(KEYS_KEPT_SECONDS)
        with pytest.raises(KeysUnavailable):
            await judge.verify(by_rsa())
        assert trap.asked == []


async def test_keys_that_come_back_count_at_once(mock_clock: MockClock) -> None:
    async with publishing() as server:
        server.status = "503 Later"
        judge = verifier(server)
        for _ in range(3):
            with pytest.raises(KeysUnavailable):
                await judge.verify(by_rsa())
        assert len(server.asked) == 1
        server.status = "200 OK"
        mock_clock.jump(LOOK_AGAIN_WITHOUT_KEYS_SECONDS)
        await judge.verify(by_rsa())


async def test_nobody_there_is_an_outage_too(mock_clock: MockClock) -> None:
    async with publishing() as server:
        settings = by_keys(server)
    with pytest.raises(KeysUnavailable):
        await Verifier(settings, Wall()).verify(by_rsa())


async def test_a_silent_server_holds_nobody_up_for_long(mock_clock: MockClock) -> None:
    async with publishing() as server:
        server.may_answer = trio.Event()
        judge = verifier(server)
        refused: list[float] = []

        async def ask() -> None:
            with pytest.raises(KeysUnavailable):
                await judge.verify(by_rsa())
            refused.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
            await server.hears.wait()
            await wait_all_tasks_blocked()
            mock_clock.jump(FETCH_SECONDS)
        assert refused == [FETCH_SECONDS] * 5
        assert len(server.asked) == 1


async def test_who_leaves_does_not_cut_the_fetch(mock_clock: MockClock) -> None:
    async with publishing() as server:
        server.may_answer = trio.Event()
        judge = verifier(server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(judge.verify, by_rsa())
            await server.hears.wait()
            nursery.cancel_scope.cancel()
            server.may_answer.set()
        await judge.verify(by_rsa())
        assert len(server.asked) == 1


async def test_unknown_keys_are_a_503_of_the_api(database: str) -> None:
    async with publishing() as server:
        server.status = "500 Oops"
        parts = console(database, settings=by_keys(server), wall=Wall())
        async with browsing(parts) as browser:
            answer = await browser.get(
                "/console/api/session", headers={"authorization": f"Bearer {by_rsa()}"}
            )
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "sign_in_unavailable"
    assert answer.headers["retry-after"] == "5"

"""Which requests belong together: those that find each other's prompt in a provider's cache.

Providers keep what they have read of a prompt for some minutes, and charge a fraction for reading
it again, but each only what was sent to it. Requests of one conversation are therefore best sent to
the same upstream. What a conversation is, is told by whoever names it: a header of ours, a session
of an agent, a cache key. Where nobody does, a long request is known by how it begins.

Tools, instructions and the first turn of the user stay as they are while a conversation grows, and
so does the key that is made of them. A thousand bytes of each are looked at, whatever their length:
what is taken for the same by mistake is only served at the same place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import blake2b

from adapters.codec import Request

BODY_BYTES_MIN = 4096  # no provider caches less

_NAMED = ("prompt_cache_key", "conversation")
_INSTRUCTIONS = ("tools", "functions", "system", "instructions", "systemInstruction")
_OPENINGS = (*_INSTRUCTIONS, "system_instruction")  # Gemini's is spelt in two ways
_TURNS = ("messages", "input", "contents")
_UNNAMED = (b"", b"null", b'""')

_LOOKED_AT_BYTES = 1024  # of each part
_TURNS_BYTES = 64 * 1024  # within which the first turn is looked for
_PERSON = b"fb affinity"
# A string is passed over whole, also one that is cut off: brackets in it are text.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?|[\[\]{}]', re.DOTALL)


def conversation_key(request: Request, told: str) -> int | None:
    """64 bits that the requests of one conversation share, the same in every process.

    `told` is the conversation's id as far as the request's head or metadata has one. None where it
    does not matter which upstream serves: nothing of the request would be cached.
    """
    if request.kind != "chat":
        return None
    if told:
        return _key((b"told", told.encode(errors="surrogatepass")))
    for name in _NAMED:
        if (named := bytes(request.fields.get(name, b""))) not in _UNNAMED:
            return _key((name.encode(), named))
    if request.body_bytes < BODY_BYTES_MIN:
        return None
    return _key(_beginning(request))


def _key(parts: Iterator[bytes] | tuple[bytes, ...]) -> int:
    digest = blake2b(digest_size=8, person=_PERSON)
    for part in parts:
        digest.update(b"%d:%b" % (len(part), part))
    return int.from_bytes(digest.digest())


def _beginning(request: Request) -> Iterator[bytes]:
    """What a conversation begins with, as far as it tells conversations apart."""
    for name in _OPENINGS:
        if (raw := request.fields.get(name)) is not None:
            opening = memoryview(raw)
            yield b"%b %d" % (name.encode(), len(opening))
            yield bytes(opening[:_LOOKED_AT_BYTES])
    for name in _TURNS:
        if (raw := request.fields.get(name)) is not None:
            yield from _first_turn(bytes(memoryview(raw)[:_TURNS_BYTES]))
            return


def _first_turn(raw: bytes) -> Iterator[bytes]:
    """How a JSON array of turns begins, and what is near its first "user", up to that turn's end.

    Just before it stands the rest of the same turn or of the one before, by the order of members.
    """
    at = raw.find(b'"user"')
    if at < 0:  # a turn without a role, or only text
        at = raw.find(b"{") + 1
    yield raw[: min(at, _LOOKED_AT_BYTES)]
    yield raw[max(0, at - _LOOKED_AT_BYTES) : _end(raw, at)]


def _end(raw: bytes, start: int) -> int:
    """Where the object ends that `start` is in, as far as that is looked at."""
    depth = 0
    for token in _TOKEN.finditer(raw, start, start + _LOOKED_AT_BYTES):
        if (mark := token[0]) in (b"{", b"["):
            depth += 1
        elif mark in (b"}", b"]"):
            depth -= 1
            if depth < 0:
                return token.end()
    return start + _LOOKED_AT_BYTES

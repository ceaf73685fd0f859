"""What a scan tells of signatures and cache marks: found where they stand, never in mere text."""

from __future__ import annotations

import json

import pytest

from adapters import registry
from adapters.codec import Ask, Scan
from adapters.errors import InvalidRequest

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
GEMINI = "/v1beta/models/m:generateContent"
SEALED = "fb1.AAAA"
SEALED_BYTES = "ZmIxLkFBQUE="  # the same in base64
LONG = {"type": "ephemeral", "ttl": "1h"}


def scan(path: str, **members: object) -> Scan:
    found = registry.find("POST", path, "")
    assert found.operation.codec is not None
    body = json.dumps({"model": "m", **members}).encode()
    return found.operation.codec.decode(body, Ask(found.id)).scan


def said(*messages: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "hi"}, *messages], "max_tokens": 9}


def blocks(*content: object) -> dict[str, object]:
    return said({"role": "assistant", "content": list(content)})


def parts(*given: object) -> dict[str, object]:
    return {"contents": [{"role": "user", "parts": list(given)}]}


SIGNED = {
    "details": (
        CHAT,
        said({"role": "assistant", "reasoning_details": [{"type": "encrypted", "data": SEALED}]}),
    ),
    "calls": (
        CHAT,
        said({"role": "assistant", "tool_calls": [{"id": "1", "extra_content": SEALED}]}),
    ),
    "anthropic's blocks in a chat": (
        CHAT,
        blocks({"type": "thinking", "thinking": "so", "signature": SEALED}),
    ),
    "items": (RESPONSES, {"input": [{"type": "reasoning", "encrypted_content": SEALED}]}),
    "thinking": (MESSAGES, blocks({"type": "thinking", "thinking": "so", "signature": SEALED})),
    "no signature": (MESSAGES, blocks({"type": "thinking", "thinking": "so", "signature": ""})),
    "redacted": (MESSAGES, blocks({"type": "redacted_thinking", "data": SEALED})),
    "parts": (GEMINI, parts({"text": "so", "thoughtSignature": SEALED_BYTES})),
    "parts, as protobuf spells it": (
        GEMINI,
        parts({"text": "so", "thought_signature": SEALED_BYTES}),
    ),
}
UNSIGNED = {
    "chat": (CHAT, said({"role": "assistant", "content": SEALED})),
    "plain calls": (CHAT, said({"role": "assistant", "tool_calls": [{"id": "1"}]})),
    "text": (RESPONSES, {"input": SEALED}),
    "messages": (MESSAGES, blocks({"type": "text", "text": SEALED})),
    "its own": (MESSAGES, blocks({"type": "thinking", "thinking": SEALED, "signature": "Eq"})),
    "contents": (GEMINI, parts({"text": SEALED_BYTES})),
}


@pytest.mark.parametrize(("path", "members"), SIGNED.values(), ids=SIGNED)
def test_signatures_are_seen(path: str, members: dict[str, object]) -> None:
    assert scan(path, **members).signed


@pytest.mark.parametrize(("path", "members"), UNSIGNED.values(), ids=UNSIGNED)
def test_text_that_looks_like_one_is_none(path: str, members: dict[str, object]) -> None:
    assert not scan(path, **members).signed


@pytest.mark.parametrize(
    "members",
    [
        {**said(), "cache_control": LONG},
        {**said(), "system": [{"type": "text", "text": "be brief", "cache_control": LONG}]},
        {**said(), "tools": [{"name": "f", "input_schema": {}, "cache_control": LONG}]},
        blocks({"type": "text", "text": "so", "cache_control": LONG}),
        blocks({"type": "tool_use", "id": "1", "name": "f", "input": {}, "cache_control": LONG}),
        blocks(
            {
                "type": "tool_result",
                "tool_use_id": "1",
                "content": [{"type": "text", "text": "so", "cache_control": LONG}],
            }
        ),
        blocks({"type": "new", "content": [{"type": "text", "cache_control": LONG}]}),
        blocks(
            {
                "type": "document",
                "source": {"type": "content", "content": [{"type": "x", "cache_control": LONG}]},
            }
        ),
    ],
)
def test_a_cache_of_an_hour_is_seen_wherever_it_is_asked_for(members: dict[str, object]) -> None:
    assert scan(MESSAGES, **members).long_cache


def test_a_cache_mark_in_text_is_none() -> None:
    text = json.dumps({"cache_control": LONG})
    assert not scan(MESSAGES, **blocks({"type": "text", "text": text}), system=text).long_cache


@pytest.mark.parametrize(
    "part",
    [
        {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
        {"inline_data": {"mime_type": "image/png", "data": "AAAA"}},
        {"functionResponse": {"parts": [{"inlineData": {"mimeType": "image/png", "data": "A"}}]}},
    ],
)
def test_geminis_media_is_seen_in_every_spelling(part: dict[str, object]) -> None:
    assert scan(GEMINI, **parts({"text": "see"}, part)).media_tokens > 0


@pytest.mark.parametrize("at", [10, 65_533, 65_536, 200_000])
def test_a_long_body_is_checked_for_its_encoding_to_its_end(at: int) -> None:
    body = bytearray(json.dumps(said({"role": "user", "content": "a" * 300_000})).encode())
    body[:1] = b'{"model":"m",'
    place = body.index(b"aaaa") + at
    found = registry.find("POST", CHAT, "")
    assert found.operation.codec is not None
    body[place : place + 3] = "€".encode()
    assert found.operation.codec.decode(bytes(body), Ask()).model == "m"
    body[place + 2 : place + 3] = b"a"
    with pytest.raises(InvalidRequest, match="not valid UTF-8"):
        found.operation.codec.decode(bytes(body), Ask())

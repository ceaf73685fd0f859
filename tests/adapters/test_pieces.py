"""Bodies in pieces are what they would be as one, and hold what is large only once."""

from __future__ import annotations

import json
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import registry
from adapters.catalogue import Protocol, Provider
from adapters.codec import Ask, Call, Target
from adapters.envelope import Envelopes
from adapters.pieces import PIECE_BYTES, encoded, length_of
from tests.fakes.bodies import whole

ENVELOPES = Envelopes(b"x" * 32, "1")
LARGE = "a" * (4 * PIECE_BYTES)
IMAGE = "data:image/jpeg;base64," + "/9j/" * (1024 * 1024)


def call(protocol: Protocol, path: str, body: bytes) -> Call:
    """A request as it passes to a provider of its own protocol."""
    found = registry.find("POST", path, "")
    assert found.operation.codec is not None
    request = found.operation.codec.decode(body, Ask(found.id))
    target = Target(Provider("p", protocol, "http://p"), "theirs", 100, stream=False)
    return registry.upstream_codec(protocol).passing(request, target, ENVELOPES)


def chat(content: object) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": content}], "seed": 1}


@given(
    st.dictionaries(
        st.text(max_size=4),
        st.integers() | st.integers(PIECE_BYTES - 4, PIECE_BYTES + 4).map("x".__mul__),
        max_size=6,
    )
)
def test_pieces_are_the_body_in_one(members: dict[str, object]) -> None:
    fields = {name: msgspec.Raw(msgspec.json.encode(each)) for name, each in members.items()}
    size = sum(len(memoryview(raw)) for raw in fields.values())
    body = encoded(fields, size)
    assert whole(body) == msgspec.json.encode(fields)
    assert length_of(body) == len(whole(body))


@pytest.mark.parametrize(
    ("protocol", "path", "body"),
    [
        ("openai", "/v1/chat/completions", chat(LARGE)),
        ("openai-responses", "/v1/responses", {"model": "m", "input": LARGE, "seed": 1}),
        ("anthropic", "/v1/messages", {**chat(LARGE), "max_tokens": 9}),
        (
            "gemini",
            "/v1beta/models/m:generateContent",
            {"contents": [{"role": "user", "parts": [{"text": LARGE}]}], "labels": {}},
        ),
    ],
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_a_long_prompt_passes_as_it_came(
    protocol: Protocol, path: str, body: dict[str, object], separators: tuple[str, str]
) -> None:
    text = json.dumps(body, separators=separators).encode()
    sent = call(protocol, path, text).body
    assert not isinstance(sent, bytes)
    found = json.loads(whole(sent))
    assert {name: found[name] for name in body if name not in ("model", "max_tokens")} == {
        name: value for name, value in body.items() if name not in ("model", "max_tokens")
    }
    assert found.get("model", "theirs") == "theirs"
    large = max(sent, key=len)
    assert isinstance(large, memoryview)
    assert bytes(large) in text


def test_an_image_is_in_memory_once() -> None:
    content = [{"type": "image_url", "image_url": {"url": IMAGE}}]
    body = json.dumps(chat(content), separators=(",", ":")).encode()
    tracemalloc.start()
    try:
        sent = call("openai", "/v1/chat/completions", body).body
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert length_of(sent) > len(IMAGE)
    assert peak_bytes < len(IMAGE) // 10

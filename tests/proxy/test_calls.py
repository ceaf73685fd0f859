"""Which calls are made in a thread: long conversations and large media, where translated."""

from __future__ import annotations

import json

import pytest

from adapters.catalogue import Protocol, Provider
from adapters.codec import Ask
from adapters.envelope import Envelopes
from adapters.openai.chat_downstream import ChatDownstream
from proxy.calls import Calls
from proxy.route import Candidate
from tests.fakes.gateway import model_of, snapshot_of

SMALL = "x" * 1000
LONG = "x" * 300_000
PICTURE = "data:image/png;base64," + "A" * 2_000_000


def candidate_at(protocol: Protocol) -> Candidate:
    provider = Provider("p", protocol, "http://p")
    (candidate,) = snapshot_of([model_of("m", provider)], [provider]).routes["m"].candidates
    return candidate


def calls_for(part: dict[str, object]) -> Calls:
    codec = ChatDownstream()
    body = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
    request = codec.decode(json.dumps(body).encode(), Ask())
    return Calls(codec, request, Envelopes(b"k", "1"), 0)


@pytest.mark.parametrize(
    ("part", "long"),
    [
        ({"type": "text", "text": SMALL}, False),
        ({"type": "text", "text": LONG}, True),
        ({"type": "image_url", "image_url": {"url": PICTURE}}, True),
        ({"type": "image_url", "image_url": {"url": PICTURE[:500_000]}}, False),
    ],
    ids=["small", "long", "large", "picture"],
)
def test_what_is_long_is_translated_in_a_thread(part: dict[str, object], long: bool) -> None:
    calls = calls_for(part)
    assert calls.is_long(candidate_at("anthropic")) is long
    assert not calls.is_long(candidate_at("openai"))  # it passes

"""Which calls are made in a thread, and who is asked first where reasoning was signed."""

from __future__ import annotations

import json

import pytest

from adapters.canonical import Blob
from adapters.catalogue import Protocol, Provider
from adapters.codec import Ask
from adapters.envelope import Envelopes
from adapters.openai.chat_downstream import ChatDownstream
from proxy.calls import Calls
from proxy.route import Candidate
from tests.fakes.gateway import model_of, providers_of, snapshot_of

SMALL = "x" * 1000
LONG = "x" * 300_000
ENVELOPES = Envelopes(b"k", "1")
PICTURE = "data:image/png;base64," + "A" * 2_000_000


def candidate_at(protocol: Protocol) -> Candidate:
    provider = Provider("p", protocol, "http://p")
    (candidate,) = snapshot_of([model_of("m", provider)], [provider]).routes["m"].candidates
    return candidate


def calls_of(messages: list[dict[str, object]]) -> Calls:
    codec = ChatDownstream()
    body = {"model": "m", "messages": messages}
    request = codec.decode(json.dumps(body).encode(), Ask())
    return Calls(codec, request, ENVELOPES, 0)


def calls_for(part: dict[str, object]) -> Calls:
    return calls_of([{"role": "user", "content": [part]}])


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


@pytest.mark.parametrize("signer", ["a", "b", "c", "elsewhere", None])
def test_who_signed_is_asked_first_and_the_others_keep_their_order(signer: str | None) -> None:
    providers = providers_of("a", "b", "c")
    route = snapshot_of([model_of("m", *providers)], providers).routes["m"]
    arranged = (route.candidates[1], route.candidates[2], route.candidates[0])
    details = []
    if signer is not None:
        blob = Blob(signer, "upstream-model", "thinking", "signature")
        details = [{"type": "reasoning.text", "text": "hm", "signature": ENVELOPES.seal(blob)}]
    calls = calls_of(
        [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello", "reasoning_details": details},
            {"role": "user", "content": "more"},
        ]
    )
    names = [each.upstream.provider.name for each in calls.signers_first(arranged)]
    assert names == sorted("bca", key=lambda name: name != signer)

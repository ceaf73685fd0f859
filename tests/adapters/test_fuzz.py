"""Whatever a client or an upstream sends: served, refused, or a failure, and never an exception.

Bodies and answers that use much of each protocol are damaged at random (a fixed set of seeds, so
that a failure can be repeated) and go everywhere: every surface to every provider, every answer to
every client.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from adapters import estimate, registry
from adapters.canonical import Blob, BlobKind
from adapters.catalogue import Protocol, Provider
from adapters.codec import Ask, Call, Counted, DownstreamCodec, Request, Target
from adapters.envelope import Envelopes
from adapters.errors import APIError, UpstreamUnavailable
from adapters.expected import expected_input
from adapters.losses import told
from adapters.translate import Translation
from tests.fakes import answers_rich, askers_rich
from tests.fakes.bodies import whole
from tests.fakes.expected import text_of

PROTOCOLS: tuple[Protocol, ...] = ("openai", "openai-responses", "anthropic", "gemini")
ENVELOPES = Envelopes(b"s" * 32, "7")
HEADERS = {b"anthropic-version": b"2023-06-01"}
PATHS: dict[Protocol, tuple[str, ...]] = {
    "openai": ("/v1/chat/completions",),
    "openai-responses": ("/v1/responses", "/v1/responses/input_tokens"),
    "anthropic": ("/v1/messages", "/v1/messages/count_tokens"),
    "gemini": (
        "/v1beta/models/m:streamGenerateContent",
        "/v1beta/models/m:generateContent",
        "/v1beta/models/m:countTokens",
    ),
}
MODELS: dict[Protocol, tuple[str, ...]] = {
    "openai": ("gpt-5", "gpt-4o"),
    "openai-responses": ("gpt-5.2",),
    "anthropic": ("claude-sonnet-4-5", "claude-opus-4-8"),
    "gemini": ("gemini-3-pro", "gemini-2.5-flash", "gemini-1.5-pro"),
}
SIGNED: tuple[tuple[str, str, BlobKind], ...] = (
    ("gemini", "gemini-3-pro", "call"),
    ("gemini", "gemini-3-pro", "text"),
    ("anthropic", "claude-sonnet-4-5", "thinking"),
    ("openai-responses", "gpt-5.2", "reasoning"),
)
SEALED = [ENVELOPES.seal(Blob(*made, "native")) for made in SIGNED]
ODD: list[object] = [
    *(None, True, False, 0, -1, 1.5, 10**30, 1e308, "", "x", "\ud83d", "é\u2028", "a\r\nb", "\x00"),
    *("data:,", "data:image/png;base64,@@", "https://x", "{", '{"a":1}', "[1]", "null"),
    *([], [[]], [None], [1], {}, {"a": {}}, {"type": None}, {"type": "text"}, [{}], {"": ""}),
    *SEALED,
]

Path = tuple[str | int, ...]


def targets(*, stream: bool) -> list[tuple[Protocol, Target]]:
    """Every model at its provider."""
    return [
        (protocol, Target(Provider(protocol, protocol, "http://x"), model, 100, stream))
        for protocol, models in MODELS.items()
        for model in models
    ]


# -- damage ---------------------------------------------------------------------------------------


def places(value: object, path: Path = ()) -> Iterator[Path]:
    """The way to everything in a document, but not to itself."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from places(inner, (*path, at))


def at(document: object, path: Path) -> object:
    """What stands there."""
    for step in path:
        document = document[step]  # type: ignore[index] # where `places` says
    return document


def damaged(chance: random.Random, document: object) -> object:
    """A copy with a few odd places."""
    document = copy.deepcopy(document)
    for _ in range(chance.choice((1, 1, 2, 4))):
        ways = list(places(document))
        if not ways:
            break
        path = chance.choice(ways)
        around, key = at(document, path[:-1]), path[-1]
        assert isinstance(around, dict | list)
        match chance.randrange(5):
            case 0:
                del around[key]  # type: ignore[arg-type] # it is there
            case 1:
                around[key] = copy.deepcopy(at(document, chance.choice(ways)))  # type: ignore[index] # the same
            case 2 if isinstance(around, list):
                around.insert(chance.randrange(len(around)), copy.deepcopy(chance.choice(around)))
            case 2 if isinstance(around, dict):
                around[chance.choice(("é\n", str(key).upper()))] = around.pop(key)
            case _:
                around[key] = copy.deepcopy(chance.choice(ODD))  # type: ignore[index] # the same
    return document


# -- requests -------------------------------------------------------------------------------------


def exercise(codec: DownstreamCodec, request: Request, *, counts: bool) -> Iterator[Call]:
    """Send a request everywhere; the calls that came of it."""
    bound = estimate.bound(request, 1000)
    for protocol, target in targets(stream=request.stream):
        assert expected_input(request, protocol, bound).input_tokens <= bound.input_tokens
        upstream = registry.upstream_codec(protocol)
        with suppress(APIError):
            if protocol == request.protocol and not request.foreign:
                if counts:
                    upstream.counting_passing(request, target)
                else:
                    yield upstream.passing(request, target, ENVELOPES)
        with suppress(APIError):
            prompt = codec.prompt(request, ENVELOPES)
            if counts:
                upstream.counting(prompt, target)
            else:
                yield Translation(codec, upstream, request, prompt, target, ENVELOPES, 5)


def ask_everywhere(surface: Protocol, body: bytes) -> None:
    for path in PATHS[surface]:
        found = registry.find("POST", path)
        codec = found.operation.codec
        assert codec is not None
        with suppress(APIError):
            request = codec.decode(body, Ask(found.id, "", HEADERS))
            for call in exercise(codec, request, counts=found.operation.action == "count"):
                json.loads(whole(call.body))
                assert "\n" not in ",".join(told(call.dropped))
                call.stream()


@pytest.mark.parametrize("surface", PROTOCOLS)
def test_a_request_is_sent_or_refused(surface: Protocol) -> None:
    chance = random.Random(surface)
    for document in askers_rich.BODIES[surface]:
        ask_everywhere(surface, json.dumps(document).encode())
        for _ in range(250):
            ask_everywhere(surface, json.dumps(damaged(chance, document)).encode())


@pytest.mark.parametrize("surface", PROTOCOLS)
def test_depth_is_bounded(surface: Protocol) -> None:
    for document in askers_rich.BODIES[surface]:
        ways = list(places(document))
        for path in random.Random(1).sample(ways, min(len(ways), 40)):
            for opening, closing in ((b'{"a":', b"}"), (b"[", b"]")):
                copied = copy.deepcopy(document)
                around = at(copied, path[:-1])
                around[path[-1]] = "DEEP"  # type: ignore[index] # where `places` says
                for depth in (500, 20_000):
                    deep = opening * depth + b"1" + closing * depth
                    ask_everywhere(surface, json.dumps(copied).encode().replace(b'"DEEP"', deep))


@pytest.mark.parametrize("surface", PROTOCOLS)
def test_bytes_that_are_no_request_are_refused(surface: Protocol) -> None:
    chance = random.Random(surface)
    body = json.dumps(askers_rich.BODIES[surface][0]).encode()
    for _ in range(200):
        begin = chance.randrange(len(body))
        ask_everywhere(surface, body[:begin] + chance.randbytes(3) + body[begin + 3 :])


# -- answers --------------------------------------------------------------------------------------


def calls_of(surface: Protocol, provider: Protocol, *, stream: bool) -> list[Call]:
    """A request at every model of the provider, passed on where it can be, and translated."""
    body = dict(askers_rich.PLAIN[surface])
    path = PATHS[surface][0 if stream or surface != "gemini" else 1]
    if surface != "gemini":
        body["stream"] = stream
    found = registry.find("POST", path)
    codec = found.operation.codec
    assert codec is not None
    request = codec.decode(json.dumps(body).encode(), Ask(found.id, "alt=sse", HEADERS))
    upstream = registry.upstream_codec(provider)
    calls: list[Call] = []
    for protocol, target in targets(stream=stream):
        if protocol == provider == surface:
            calls.append(upstream.passing(request, target, ENVELOPES))
        if protocol == provider:
            prompt = codec.prompt(request, ENVELOPES)
            calls.append(Translation(codec, upstream, request, prompt, target, ENVELOPES, 5))
    return calls


def sse(events: object) -> bytes:
    """Events as a provider sends them, named where they can be."""
    out = b""
    for event in events if isinstance(events, list) else [events]:
        name = event.get("type") if isinstance(event, dict) else None
        if isinstance(name, str) and name.isascii() and name.isprintable():
            out += f"event: {name}\n".encode()
        out += b"data: " + json.dumps(event).encode() + b"\n\n"
    return out


TERMINALS = {
    "openai": (b"data: [DONE]",),
    "openai-responses": (
        b"event: response.completed",
        b"event: response.incomplete",
        b"event: response.failed",
    ),
    "anthropic": (b"event: message_stop",),
}


def play(chance: random.Random, surface: Protocol, call: Call, data: bytes) -> Counted:
    """Relay a stream cut anywhere; what a client got has one end at most."""
    relay = call.stream()
    out = bytearray()
    begin = 0
    while begin < len(data) and not relay.ended:
        end = begin + chance.choice((1, 50, 500, 5000))
        out += relay.feed(data[begin:end])
        begin = end
    if not relay.ended:
        out += relay.close()
    assert relay.feed(data) == b""
    if relay.failure is None:
        assert relay.ended
        out += relay.terminal
    else:
        out += relay.error_event(UpstreamUnavailable("It broke."), "request-id")
    ends = sum(out.count(mark) for mark in TERMINALS.get(surface, ()))
    if surface in TERMINALS:
        failed_end = relay.failure is not None and surface == "openai-responses"
        assert ends == (relay.failure is None or failed_end), bytes(out[-500:])
    return relay.counted(text_of(100))


def check(counted: Counted) -> None:
    usage = counted.usage
    for count in (usage.input_tokens, usage.output_tokens, usage.reasoning_tokens):
        assert 0 <= count < 2**43
    assert all(0 <= count < 2**43 for count in usage.pieces.values())


@pytest.mark.parametrize("surface", PROTOCOLS)
@pytest.mark.parametrize("provider", PROTOCOLS)
def test_an_answer_is_read_or_a_failure(surface: Protocol, provider: Protocol) -> None:
    chance = random.Random(f"{surface} {provider}")
    events, whole = answers_rich.ANSWERS[provider]
    end = b"data: [DONE]\n\n" if provider == "openai" else b""
    for call in calls_of(surface, provider, stream=True):
        check(play(chance, surface, call, sse(events) + end))
        for _ in range(50):
            data = sse(damaged(chance, events)) + end
            if chance.random() < 0.1:
                data = data[: chance.randrange(len(data))]
            check(play(chance, surface, call, data))
    for call in calls_of(surface, provider, stream=False):
        for _ in range(50):
            relay = call.plain(json.dumps(damaged(chance, whole)).encode())
            check(relay.counted(text_of(100)))
            if relay.failure is None:
                json.loads(relay.body)


@pytest.mark.parametrize("provider", PROTOCOLS)
def test_depth_of_an_answer_is_bounded(provider: Protocol) -> None:
    whole = answers_rich.ANSWERS[provider][1]
    deep = b"[" * 100_000 + b"]" * 100_000
    marked = copy.deepcopy(whole)
    chance = random.Random(provider)
    for path in chance.sample(list(places(marked)), 12):
        copied = copy.deepcopy(whole)
        at(copied, path[:-1])[path[-1]] = "DEEP"  # type: ignore[index] # where `places` says
        body = json.dumps(copied).encode().replace(b'"DEEP"', deep)
        for surface in PROTOCOLS:
            for call in calls_of(surface, provider, stream=False):
                check(call.plain(body).counted(text_of(1)))
            for call in calls_of(surface, provider, stream=True):
                check(play(chance, surface, call, b"data: " + body + b"\n\n"))


def test_many_of_anything_take_linear_time() -> None:
    """What takes a time in proportion to its square would take minutes here."""
    for surface in PROTOCOLS:
        for document in askers_rich.BODIES[surface]:
            for path in places(document):
                inner = at(document, path)
                if isinstance(inner, list) and len(path) <= 4:
                    copied = copy.deepcopy(document)
                    around = at(copied, path[:-1])
                    around[path[-1]] = inner * (600 // max(1, len(inner)))  # type: ignore[index] # where `places` says
                    once = time.process_time()
                    ask_everywhere(surface, json.dumps(copied).encode())
                    assert time.process_time() - once < 5, path

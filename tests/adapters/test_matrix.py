"""Every surface at every provider protocol: what a strict client gets, whole and however cut.

The upstream is the strict sandbox provider, which knows nothing of the codecs: a request that a
real provider would refuse fails here too. A client that follows its protocol's grammar to the
letter reads the answer (`tests.fakes.readers`). What it understands must be the same for a plain
answer, and for a stream that arrives in one piece, byte by byte, or cut anywhere; and it must be
what any other client at any other provider understands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters import registry, sandbox
from adapters.catalogue import Protocol, Provider
from adapters.codec import Ask as Head
from adapters.codec import Call, StreamRelay, Target
from adapters.envelope import Envelopes
from adapters.errors import UpstreamUnavailable
from adapters.translate import Translation
from tests.fakes import askers
from tests.fakes.askers import Ask
from tests.fakes.bodies import whole
from tests.fakes.expected import text_of
from tests.fakes.readers import STREAMS, WHOLES, Meaning
from tests.fakes.sandbox import Played, play

PROTOCOLS: tuple[Protocol, ...] = ("openai", "openai-responses", "anthropic", "gemini")
PAIRS = [(surface, provider) for surface in PROTOCOLS for provider in PROTOCOLS]
ENVELOPES = Envelopes(b"m" * 32, "7")
AUTHORIZED = {
    b"authorization": b"Bearer sandbox",
    b"x-api-key": b"sandbox",
    b"x-goog-api-key": b"sandbox",
    b"content-type": b"application/json",
}
PREFIX = {"openai": "/v1", "openai-responses": "/v1"}
TOOLS = {"get_weather": askers.WEATHER}
BOTH = TOOLS | {"get_time": askers.CLOCK}

# How each surface says why an answer ended.
FINISHES: dict[str, dict[str, str]] = {
    "end": {
        "openai": "stop",
        "openai-responses": "completed",
        "anthropic": "end_turn",
        "gemini": "STOP",
    },
    "calls": {
        "openai": "tool_calls",
        "openai-responses": "completed",
        "anthropic": "tool_use",
        "gemini": "STOP",
    },
    "length": {
        "openai": "length",
        "openai-responses": "max_output_tokens",
        "anthropic": "max_tokens",
        "gemini": "MAX_TOKENS",
    },
}


@dataclass(frozen=True)
class Scenario:
    """What is asked, and what is special about what has to come back."""

    ask: Ask
    finish: str = "end"
    check: Callable[[Meaning], bool] = field(default=lambda meaning: bool(meaning.text))


SCENARIOS = {
    "text": Scenario(Ask("sandbox")),
    "vision": Scenario(Ask("sandbox", image=True)),
    "one-tool": Scenario(
        Ask("sandbox-tools", tools=TOOLS),
        "calls",
        lambda meaning: [name for name, _ in meaning.calls] == ["get_weather"],
    ),
    "parallel-tools": Scenario(
        Ask("sandbox-parallel-tools", tools=BOTH),
        "calls",
        lambda meaning: [name for name, _ in meaning.calls] == ["get_weather", "get_time"],
    ),
    "tool-result": Scenario(Ask("sandbox", tools=TOOLS, result="It rains.")),
    "reasoning": Scenario(Ask("sandbox-reasoning", thinking=True, cap=4000)),
    "structured": Scenario(
        Ask("sandbox-json", schema=askers.PERSON), check=lambda m: m.text.startswith('{"name"')
    ),
    "cached": Scenario(
        Ask("sandbox-cached"),
        check=lambda meaning: meaning.usage is not None and meaning.usage[1] > 0,
    ),
    "length": Scenario(Ask("sandbox-long", cap=20), "length"),
}


@dataclass
class Exchange:
    """One request on its way to a provider, and what the provider says."""

    surface: Protocol
    call: Call
    played: Played

    def relayed(self, pieces: Iterable[bytes]) -> tuple[bytes, StreamRelay]:
        """The client's bytes of a stream that arrives in `pieces`."""
        relay = self.call.stream()
        out = b"".join([relay.feed(piece) for piece in pieces])
        if not relay.ended:
            out += relay.close()
        return out + (relay.terminal if relay.failure is None else b""), relay

    def plain(self) -> Meaning:
        """What the client of a plain answer understands."""
        relay = self.call.plain(self.played.body)
        assert relay.failure is None, relay.failure
        return WHOLES[self.surface](relay.body)

    def streamed(self, pieces: Sequence[bytes]) -> Meaning:
        """What the client of a stream understands."""
        out, relay = self.relayed(pieces)
        assert relay.failure is None, relay.failure
        return STREAMS[self.surface](out)


def exchange(surface: Protocol, protocol: Protocol, ask: Ask) -> Exchange:
    """Send `ask` from a client of `surface` to a provider of `protocol`."""
    target, body = askers.body_of(surface, ask)
    path, _, query = target.partition("?")
    found = registry.find("POST", path, query)
    codec = found.operation.codec
    assert codec is not None
    request = codec.decode(body, Head(found.id, query, {b"anthropic-version": b"2023-06-01"}))
    upstream = registry.upstream_codec(protocol)
    to = Target(Provider("p", protocol, "http://p"), ask.model, ask.cap, request.stream)
    call: Call
    if surface == protocol:
        call = upstream.passing(request, to, ENVELOPES)
    else:
        prompt = codec.prompt(request, ENVELOPES)
        call = Translation(codec, upstream, request, prompt, to, ENVELOPES, 1_800_000_000)
    headers = AUTHORIZED | {name.encode(): value.encode() for name, value in call.headers}
    path = PREFIX.get(protocol, "") + call.path
    played = play(sandbox.respond("POST", path, headers, whole(call.body)))
    return Exchange(surface, call, played)


def answered(surface: Protocol, protocol: Protocol, ask: Ask) -> Exchange:
    """The same, where the provider must not refuse."""
    found = exchange(surface, protocol, ask)
    assert found.played.status == 200, (found.played.body, found.call.body)
    return found


def comparable(meaning: Meaning) -> Meaning:
    """Without what is drawn anew for each answer."""
    return replace(meaning, ids=[], signatures=bool(meaning.signatures))


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize(("surface", "protocol"), PAIRS)
def test_every_client_understands_every_provider(
    surface: Protocol, protocol: Protocol, name: str
) -> None:
    scenario = SCENARIOS[name]
    plain = answered(surface, protocol, scenario.ask).plain()
    stream = answered(surface, protocol, scenario.ask.streamed())
    whole = stream.streamed([stream.played.body])
    for meaning in (plain, whole):
        assert meaning.finish == FINISHES[scenario.finish][surface]
        assert scenario.check(meaning)
        assert meaning.model == scenario.ask.model
        assert len(meaning.ids) == len(meaning.calls)
        if surface != "gemini":  # where calls may go without
            assert len(set(meaning.ids)) == len(meaning.ids)
    assert comparable(plain) == comparable(whole)
    single = [stream.played.body[at : at + 1] for at in range(len(stream.played.body))]
    assert comparable(stream.streamed(single)) == comparable(whole)


@pytest.mark.parametrize("name", SCENARIOS)
def test_all_clients_at_all_providers_understand_the_same(name: str) -> None:
    """Text, calls and usage do not depend on who asks or who answers."""
    seen = set()
    for surface, protocol in PAIRS:
        meaning = answered(surface, protocol, SCENARIOS[name].ask).plain()
        seen.add((meaning.text, repr(meaning.calls), meaning.refusal))
    assert len(seen) == 1, seen


@pytest.mark.parametrize(("surface", "protocol"), PAIRS)
@pytest.mark.parametrize("name", ["parallel-tools", "reasoning"])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_how_a_stream_is_cut_changes_nothing(
    surface: Protocol, protocol: Protocol, name: str, data: st.DataObject
) -> None:
    found = answered(surface, protocol, SCENARIOS[name].ask.streamed())
    body = found.played.body
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=12))
    edges = sorted({0, len(body), *cuts})
    pieces = [body[a:b] for a, b in pairwise(edges)]
    assert comparable(found.streamed(pieces)) == comparable(found.streamed([body]))


@pytest.mark.parametrize(("surface", "protocol"), PAIRS)
def test_refusals_are_told_apart_from_answers(surface: Protocol, protocol: Protocol) -> None:
    plain = answered(surface, protocol, Ask("sandbox-refusal")).plain()
    stream = answered(surface, protocol, Ask("sandbox-refusal").streamed())
    whole = stream.streamed([stream.played.body])
    assert comparable(plain) == comparable(whole)
    expected = {
        "openai": {"stop", "content_filter"},
        "openai-responses": {"completed", "content_filter"},
        "anthropic": {"refusal"},
        "gemini": {"SAFETY", "PROHIBITED_CONTENT", "STOP"},
    }
    assert plain.finish in expected[surface]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
@pytest.mark.parametrize(("surface", "protocol"), PAIRS)
def test_errors_before_an_answer_are_facts(
    surface: Protocol, protocol: Protocol, status: int
) -> None:
    found = exchange(surface, protocol, Ask(f"sandbox-error-{status}"))
    played = found.played
    assert played.status == status
    headers = {name.lower().encode(): value.encode() for name, value in played.headers.items()}
    failure = found.call.read_error(played.status, headers, played.body)
    kinds = {
        400: "bad_request",
        401: "auth",
        403: "forbidden",
        404: "model_not_found",
        429: "rate_limited",
        500: "server_error",
        503: "overloaded",
    }
    if protocol == "gemini" and status == 400:  # Google's word for a bad key
        assert failure.kind == "auth"
    else:
        assert failure.kind == kinds[status]
    assert failure.message


@pytest.mark.parametrize(("surface", "protocol"), PAIRS)
def test_an_overflowing_context_is_recognised(surface: Protocol, protocol: Protocol) -> None:
    found = exchange(surface, protocol, Ask("sandbox-context-overflow"))
    headers = {name.encode(): value.encode() for name, value in found.played.headers.items()}
    failure = found.call.read_error(found.played.status, headers, found.played.body)
    assert failure.kind == "context_length"


@pytest.mark.parametrize(("surface", "protocol"), PAIRS)
@pytest.mark.parametrize("model", ["sandbox-cut-40", "sandbox-error-in-stream"])
def test_a_stream_that_breaks_is_a_failure_for_the_client(
    surface: Protocol, protocol: Protocol, model: str
) -> None:
    found = answered(surface, protocol, Ask(model).streamed())
    body = found.played.body
    for pieces in ([body], [body[at : at + 1] for at in range(len(body))]):
        out, relay = found.relayed(pieces)
        assert relay.failure is not None
        assert relay.has_content
        assert relay.counted(text_of(100)).usage.output_tokens > 0
        told = relay.error_event(UpstreamUnavailable("The upstream broke off."), "id-1")
        meaning = STREAMS[surface](out + told)
        assert meaning.error == "The upstream broke off."
        assert meaning.text

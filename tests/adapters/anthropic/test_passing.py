"""Requests between two Anthropic ends: as they came, but for what we answer for."""

from __future__ import annotations

import json
from collections.abc import Mapping

from adapters.anthropic.upstream import MessagesUpstream
from adapters.canonical import Blob
from tests.adapters.anthropic.wiring import ENVELOPES, decoded, target
from tests.fakes.bodies import whole

SEALED = ENVELOPES.seal(Blob("other", "gpt", "reasoning", "v"))
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "ok"}
BUDGET = {"type": "enabled", "budget_tokens": 2000}


def passed(**members: object) -> tuple[dict[str, object], tuple[str, ...]]:
    """The body as the provider gets it, and what was lost."""
    call = MessagesUpstream().passing(decoded(**members), target(cap=77), ENVELOPES)
    return json.loads(whole(call.body)), call.dropped


def loop(*blocks: Mapping[str, object]) -> list[dict[str, object]]:
    """A conversation in the middle of a turn of calls."""
    return [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [*blocks, USE]},
        {"role": "user", "content": [RESULT]},
    ]


def test_a_body_goes_on_as_it_came() -> None:
    request = decoded(
        {b"anthropic-version": b"2026-10-21", b"anthropic-beta": b"b"},
        unknown={"a": 1.50},
        stream=True,
    )
    call = MessagesUpstream().passing(request, target(cap=77), ENVELOPES)
    assert json.loads(whole(call.body)) == {
        "model": target().model,
        "max_tokens": 77,
        "messages": [{"role": "user", "content": "Hi"}],
        "unknown": {"a": 1.5},
        "stream": True,
    }
    assert call.path == "/v1/messages"
    assert call.headers == (("anthropic-version", "2026-10-21"), ("anthropic-beta", "b"))
    assert call.dropped == ()


def test_values_keep_their_spelling() -> None:
    body = decoded(seed=1.50).fields["seed"]
    request = decoded()
    request.fields["odd"] = body
    assert b'"odd":1.5' in MessagesUpstream().passing(request, target(), ENVELOPES).body


def test_warming_the_cache_stays_what_it_is() -> None:
    assert passed(max_tokens=0)[0]["max_tokens"] == 0


def test_native_reasoning_is_not_touched() -> None:
    messages = loop({"type": "thinking", "thinking": "Hm", "signature": "EqQB"})
    sent, dropped = passed(messages=messages, thinking=BUDGET)
    assert sent["messages"] == messages
    assert sent["thinking"] == BUDGET
    assert dropped == ()


def test_reasoning_that_was_signed_elsewhere_is_taken_out() -> None:
    foreign = (
        {"type": "thinking", "thinking": "Hm", "signature": SEALED},
        {"type": "thinking", "thinking": "Hm", "signature": ""},
        {"type": "redacted_thinking", "data": SEALED},
    )
    adaptive = {"type": "adaptive"}
    sent, dropped = passed(messages=loop(*foreign), thinking=adaptive)
    assert sent["messages"] == loop()
    assert sent["thinking"] == adaptive
    assert dropped == ()


def test_thinking_by_a_budget_is_given_up_where_the_reasoning_is_lost() -> None:
    edits = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    for messages in (loop(), loop({"type": "thinking", "thinking": "Hm", "signature": SEALED})):
        sent, dropped = passed(messages=messages, thinking=BUDGET, context_management=edits)
        assert sent["messages"] == loop()
        assert "thinking" not in sent
        assert "context_management" not in sent
        assert dropped == ("degraded:thinking",)


def test_text_that_only_looks_like_an_envelope_stays() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": SEALED}]}]
    assert passed(messages=messages)[0]["messages"] == messages


def test_odd_messages_are_the_providers_to_judge() -> None:
    for messages in (
        [{"content": SEALED}],
        [{"role": "user"}, {"a": SEALED}],
        [{"role": 7, "content": [SEALED]}],
    ):
        sent, _ = passed(messages=messages, thinking=BUDGET)
        assert sent["messages"] == messages


def test_the_counter_gets_the_same_without_what_it_does_not_take() -> None:
    request = decoded({b"anthropic-beta": b"b"}, temperature=1, stream=True, system="s")
    call = MessagesUpstream().counting_passing(request, target())
    assert json.loads(call.body) == {
        "model": target().model,
        "messages": [{"role": "user", "content": "Hi"}],
        "system": "s",
    }
    assert call.headers == (("anthropic-version", "2023-06-01"), ("anthropic-beta", "b"))


def test_a_budget_goes_below_a_cap_that_had_to_be_lowered() -> None:
    request = decoded(max_tokens=9000, thinking={"type": "enabled", "budget_tokens": 8000})
    for cap, thinking in ((4000, {"type": "enabled", "budget_tokens": 3000}), (1000, None)):
        call = MessagesUpstream().passing(request, target(cap=cap), ENVELOPES)
        assert json.loads(whole(call.body)).get("thinking") == thinking
        assert call.dropped == ("clamped:thinking",)
    call = MessagesUpstream().passing(request, target(cap=9000), ENVELOPES)
    assert json.loads(whole(call.body))["thinking"]["budget_tokens"] == 8000
    assert call.dropped == ()


def test_a_tool_called_like_the_last_event_does_not_stand_in_for_it() -> None:
    relay = MessagesUpstream().passing(decoded(stream=True), target(cap=7), ENVELOPES).stream()
    tool = '{"type":"tool_use","id":"t","name":"message_stop","input":{}}'
    out = relay.feed(
        b'data: {"type":"message_start","message":{"id":"m","model":"x"}}\n\n'
        b'data: {"type":"content_block_start","index":0,"content_block":%b}\n\n'
        b'data: {"type":"message_delta","delta":{"stop_reason":"tool_use"}}\n\n' % tool.encode()
    )
    out += relay.close()
    assert relay.failure is None
    assert (out + relay.terminal).count(b"event: message_stop") == 1

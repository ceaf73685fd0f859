"""Chat clients at providers of every other protocol, end to end: the published edge cases.

Every stream is fed whole, byte by byte and cut at random, and must come out the same; what it
means is what OpenAI's own accumulator makes of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import msgspec
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from adapters import sse
from adapters.anthropic.upstream import MessagesUpstream
from adapters.canonical import Blob
from adapters.catalogue import Protocol, Provider
from adapters.codec import Ask, Target, UpstreamCodec
from adapters.envelope import Envelopes
from adapters.errors import UpstreamUnavailable
from adapters.gemini.upstream import GeminiUpstream
from adapters.openai.chat_downstream import ChatDownstream
from adapters.openai.chat_upstream import ChatUpstream
from adapters.openai.responses_upstream import ResponsesUpstream
from adapters.stream import nothing_expected
from adapters.translate import TranslatedStream, Translation

Json = dict[str, object]

ENVELOPES = Envelopes(b"c" * 32, "account")
UPSTREAMS: Mapping[Protocol, UpstreamCodec] = {
    "openai": ChatUpstream(),
    "openai-responses": ResponsesUpstream(),
    "anthropic": MessagesUpstream(),
    "gemini": GeminiUpstream(),
}
MODELS = {
    "openai": "some-model",
    "openai-responses": "gpt-6",
    "anthropic": "claude-opus-4-8",
    "gemini": "gemini-3.5-pro",
}
HI: Json = {"role": "user", "content": "hi"}
LOOK: Json = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}
CALL: Json = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
SPLITS = 20


def translated(protocol: Protocol, **members: object) -> Translation:
    """A chat request at a provider of another protocol."""
    body = {"model": "mine", "stream": True, "messages": [HI], **members}
    codec = ChatDownstream()
    request = codec.decode(json.dumps(body).encode(), Ask())
    target = Target(
        Provider("p", protocol, "https://a.example"), MODELS[protocol], 1000, request.stream
    )
    prompt = codec.prompt(request, ENVELOPES)
    return Translation(codec, UPSTREAMS[protocol], request, prompt, target, ENVELOPES, 7)


def sent(protocol: Protocol, **members: object) -> Json:
    found = json.loads(translated(protocol, **members).body)
    assert isinstance(found, dict)
    return found


def wire(events: Sequence[Json], *, done: bool = False) -> bytes:
    """Events as any of the providers sends them."""
    named = [
        (b"event: %b\n" % str(event["type"]).encode() if "type" in event else b"")
        + sse.event(json.dumps(event, ensure_ascii=False).encode())
        for event in events
    ]
    return b"".join(named) + (sse.event(b"[DONE]") if done else b"")


def pieces(stream: bytes) -> Iterator[list[bytes]]:
    yield [stream]
    yield [stream[at : at + 1] for at in range(len(stream))]
    chance = random.Random(0)  # the same cuts each time
    for _ in range(SPLITS):
        cuts = sorted(chance.sample(range(len(stream)), min(9, len(stream))))
        yield [stream[a:b] for a, b in pairwise([0, *cuts, len(stream)])]


def run(protocol: Protocol, stream: bytes, **members: object) -> tuple[bytes, TranslatedStream]:
    """What the client gets of a stream, however it is cut."""
    outs, relay = set(), None
    for parts in pieces(stream):
        relay = translated(protocol, **members).stream()
        outs.add(b"".join([relay.feed(part) for part in parts]) + relay.close() + relay.terminal)
    assert relay is not None
    (out,) = outs
    return out, relay


def chunks(out: bytes) -> list[Json]:
    raws = sse.Splitter().feed(out)
    return [json.loads(data) for raw in raws if (data := sse.data_of(raw)) != b"[DONE]"]


def deltas(out: bytes) -> list[Json]:
    return [chunk["choices"][0]["delta"] for chunk in chunks(out) if chunk["choices"]]  # type: ignore[index]


def gathered(out: bytes) -> Json:
    """The completion that OpenAI's SDK puts together."""
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in chunks(out):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    found = state.get_final_completion().model_dump()
    assert isinstance(found, dict)
    return found


def calls_in(out: bytes) -> list[tuple[str, str]]:
    message = gathered(out)["choices"][0]["message"]  # type: ignore[index]
    return [
        (call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]
    ]


# -- what providers send --------------------------------------------------------------------------


def gemini(*parts: Json, finish: str = "", usage: Json | None = None) -> Json:
    candidate: Json = {"index": 0, "content": {"role": "model", "parts": list(parts)}}
    if finish:
        candidate["finishReason"] = finish
    found: Json = {"candidates": [candidate], "responseId": "r", "modelVersion": "theirs"}
    return found if usage is None else {**found, "usageMetadata": usage}


def looks(at: str, **beside: object) -> Json:
    return {"functionCall": {"name": "look", "args": {"at": at}}, **beside}


def chat(finish: str | None = None, usage: Json | None = None, **delta: object) -> Json:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    found: Json = {"id": "x", "model": "theirs", "choices": [choice]}
    return found if usage is None else {**found, "usage": usage}


def anthropic(*middle: Json, reason: str = "end_turn") -> list[Json]:
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 6,
        "output_tokens": 1,
    }
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "theirs"}
    return [
        {"type": "message_start", "message": {**message, "content": [], "usage": usage}},
        *middle,
        {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": None},
            "usage": {"output_tokens": 9},
        },
        {"type": "message_stop"},
    ]


def block(index: int, start: Json, *deltas: Json) -> list[Json]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": each} for each in deltas),
        {"type": "content_block_stop", "index": index},
    ]


SAYS = block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Hi"})
TOOLS = {"tools": [LOOK]}
THREE = [("look", '{"at":"a"}'), ("look", '{"at":"b"}'), ("look", '{"at":"c"}')]


# -- calls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "events",
    [
        [gemini(looks("a")), gemini(looks("b")), gemini(looks("c"), finish="STOP")],
        [gemini(looks("a"), looks("b"), looks("c")), gemini(finish="STOP")],
        [gemini(looks("a"), looks("b")), gemini(looks("c"), finish="STOP")],
    ],
    ids=["one in each chunk", "all in one", "both"],
)
def test_edge_27_28_29_30_gemini_calls_have_indexes_of_their_own(events: list[Json]) -> None:
    out, relay = run("gemini", wire(events), **TOOLS)
    assert relay.failure is None
    assert [(name, args.replace(" ", "")) for name, args in calls_in(out)] == THREE
    assert gathered(out)["choices"][0]["finish_reason"] == "tool_calls"  # type: ignore[index]


def test_edge_31_32_indexes_follow_the_order_of_the_calls() -> None:
    other = {**LOOK, "function": {"name": "ask"}}
    call = {"type": "function_call", "call_id": "c", "status": "in_progress", "arguments": ""}
    events: list[Json] = [
        {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}}
    ]
    for at, name in ((3, "ask"), (5, "look")):
        item = {**call, "id": f"fc_{at}", "call_id": f"c{at}", "name": name}
        done = {**item, "status": "completed", "arguments": "{}"}
        events += [
            {"type": "response.output_item.added", "output_index": at, "item": item},
            {
                "type": "response.function_call_arguments.delta",
                "output_index": at,
                "item_id": f"fc_{at}",
                "delta": "{}",
            },
            {"type": "response.output_item.done", "output_index": at, "item": done},
        ]
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    response = {"id": "resp_1", "status": "completed", "output": [], "usage": usage}
    events.append({"type": "response.completed", "response": response})
    out, relay = run("openai-responses", wire(events), tools=[LOOK, other])
    assert relay.failure is None
    assert calls_in(out) == [("ask", "{}"), ("look", "{}")]


def test_edge_45_ids_stay_short_whatever_is_signed() -> None:
    signed = looks("a", thoughtSignature="c2ln" * 500)
    out, _ = run("gemini", wire([gemini(signed, finish="STOP")]), **TOOLS)
    (call,) = gathered(out)["choices"][0]["message"]["tool_calls"]  # type: ignore[index]
    assert len(call["id"]) <= 64


def test_edge_89_role_id_name_and_type_appear_once() -> None:
    start: Json = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
    args: list[Json] = [
        {"type": "input_json_delta", "partial_json": piece} for piece in ('{"at"', ':"x"}')
    ]
    events = anthropic(*SAYS, *block(1, start, *args), reason="tool_use")
    out, _ = run("anthropic", wire(events), **TOOLS)
    flat = json.dumps(deltas(out))
    assert [flat.count(f'"{name}"') for name in ("role", "id", "name", "type")] == [1, 1, 1, 1]
    message = gathered(out)["choices"][0]["message"]  # type: ignore[index]
    assert (message["role"], message["content"]) == ("assistant", "Hi")
    assert calls_in(out) == [("look", '{"at":"x"}')]
    assert message["tool_calls"][0]["type"] == "function"


def test_a_call_without_arguments_has_an_empty_object() -> None:
    start: Json = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
    out, _ = run("anthropic", wire(anthropic(*block(0, start), reason="tool_use")), **TOOLS)
    assert calls_in(out) == [("look", "{}")]


# -- errors ---------------------------------------------------------------------------------------


def test_edge_33_overloaded_in_the_middle_is_told() -> None:
    error: Json = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    out, relay = run("anthropic", wire([*anthropic(*SAYS)[:4], error]))
    assert relay.failure is not None
    assert relay.failure.kind == "overloaded"
    told = relay.error_event(UpstreamUnavailable("Everything failed."), "req")
    assert b"[DONE]" not in out
    assert b'"finish_reason":"' not in out
    (error_object,) = chunks(told)
    assert error_object["error"]["message"] == "Everything failed."  # type: ignore[index]


@pytest.mark.parametrize("protocol", MODELS)
def test_edge_34_a_lost_provider_is_no_end(protocol: Protocol) -> None:
    streams = {
        "openai": wire([chat(content="Hi")]),
        "openai-responses": wire([{"type": "response.created", "response": {"id": "r"}}]),
        "anthropic": wire(anthropic(*SAYS)[:4]),
        "gemini": wire([gemini({"text": "Hi"})]),
    }
    relay = translated(protocol).stream()
    out = relay.feed(streams[protocol]) + relay.close()
    assert relay.failure is not None
    assert relay.failure.kind == "truncated"
    assert b"[DONE]" not in out + relay.terminal


# -- reasoning and usage --------------------------------------------------------------------------


def test_edge_35_reasoning_goes_on_as_it_arrives() -> None:
    relay = translated("gemini").stream()
    for word in ("one", "two"):
        out = relay.feed(wire([gemini({"text": word, "thought": True})]))
        assert deltas(out)[-1] == {"reasoning_content": word}


WITH_USAGE = {"stream_options": {"include_usage": True}}
USAGE: Json = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def test_edge_36_usage_beside_the_reason_is_a_chunk_of_its_own() -> None:
    stream = wire([chat(content="Hi"), chat("stop", USAGE)], done=True)
    out, relay = run("openai", stream, **WITH_USAGE)
    *others, last = chunks(out)
    assert all(chunk["usage"] is None for chunk in others)
    assert (last["choices"], last["usage"]["prompt_tokens"]) == ([], 5)  # type: ignore[index]
    assert relay.counted(nothing_expected).usage.output_tokens == 2


def test_edge_37_83_usage_of_anthropic_is_whole() -> None:
    out, _ = run("anthropic", wire(anthropic(*SAYS)), **WITH_USAGE)
    usage = chunks(out)[-1]["usage"]
    assert isinstance(usage, dict)
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (20, 9)
    assert usage["total_tokens"] == 29
    details = usage["prompt_tokens_details"]
    assert (details["cached_tokens"], details["cache_write_tokens"]) == (4, 6)


def test_edge_38_39_41_usage_counts_once_wherever_it_is_cut() -> None:
    stream = wire([chat(content="Hi"), chat("stop"), {"choices": [], "usage": USAGE}], done=True)
    for cut in range(len(stream)):
        relay = translated("openai", **WITH_USAGE).stream()
        out = relay.feed(stream[:cut]) + relay.feed(stream[cut:]) + relay.close() + relay.terminal
        assert out.count(b'"usage":{') == 1
        assert relay.counted(nothing_expected).usage.input_tokens == 5


@pytest.mark.parametrize("protocol", MODELS)
def test_edge_40_characters_survive_every_cut(protocol: Protocol) -> None:
    text = "né 漢字 👩‍👩‍👧"
    delta = {"type": "response.output_text.delta", "output_index": 0, "content_index": 0}
    item = {"type": "message", "id": "m", "role": "assistant", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    place = {"output_index": 0, "item_id": "m", "content_index": 0}
    streams = {
        "openai": wire([chat(content=text), chat("stop")], done=True),
        "openai-responses": wire(
            [
                {"type": "response.created", "response": {"id": "r"}},
                {"type": "response.output_item.added", "output_index": 0, "item": item},
                {"type": "response.content_part.added", **place, "part": part},
                {**delta, "item_id": "m", "delta": text},
                {"type": "response.completed", "response": {"id": "r", "status": "completed"}},
            ]
        ),
        "anthropic": wire(
            anthropic(*block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": text}))
        ),
        "gemini": wire([gemini({"text": text}, finish="STOP")]),
    }
    out, relay = run(protocol, streams[protocol])
    assert relay.failure is None
    assert gathered(out)["choices"][0]["message"]["content"] == text  # type: ignore[index]


# -- signed reasoning, there and back -------------------------------------------------------------


def echoed(out: bytes) -> Json:
    """The assistant's message as a client sends it back, with all that it got."""
    message = gathered(out)["choices"][0]["message"]  # type: ignore[index]
    assert isinstance(message, dict)
    return {name: value for name, value in message.items() if value is not None}


def again(protocol: Protocol, message: Json) -> Json:
    """The next request, with the results of its calls."""
    calls = message.get("tool_calls", [])
    assert isinstance(calls, list)
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in calls]
    return sent(protocol, messages=[HI, message, *results], **TOOLS)


def test_edge_42_the_signature_of_a_call_comes_back_beside_it() -> None:
    signed = looks("a", thoughtSignature="c2ln")
    out, _ = run("gemini", wire([gemini(signed, finish="STOP")]), **TOOLS)
    first = next(delta for delta in deltas(out) if "tool_calls" in delta)
    fragment = first["tool_calls"][0]  # type: ignore[index]
    assert fragment["extra_content"]["google"]["thought_signature"].startswith("fb1.")
    body = again("gemini", echoed(out))
    part = body["contents"][1]["parts"][0]  # type: ignore[index]
    assert part["thoughtSignature"] == "c2ln"
    assert "thoughtSignature" not in part["functionCall"]


def test_edge_43_a_client_that_drops_what_it_does_not_know_goes_on() -> None:
    messages = [
        HI,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "ok"},
    ]
    made = translated("gemini", messages=messages, **TOOLS)
    part = json.loads(made.body)["contents"][1]["parts"][0]
    assert part["thoughtSignature"] == "skip_thought_signature_validator"
    assert "degraded:thought_signature" in made.dropped


THINKS = block(
    0,
    {"type": "thinking", "thinking": "", "signature": ""},
    {"type": "thinking_delta", "thinking": "Let me "},
    {"type": "thinking_delta", "thinking": "look."},
    {"type": "signature_delta", "signature": "s1g"},
)
USES = block(1, {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}})


@pytest.mark.parametrize(
    "kept", [("reasoning_details",), ("reasoning_content",), ("reasoning_content", "google")]
)
def test_edge_47_signed_thoughts_come_back_whatever_the_client_echoes(kept: Sequence[str]) -> None:
    out, _ = run("anthropic", wire(anthropic(*THINKS, *USES, reason="tool_use")), **TOOLS)
    message = echoed(out)
    calls = message["tool_calls"]
    assert isinstance(calls, list)
    assert message["reasoning_content"] == "Let me look."
    for name in {"reasoning_details", "reasoning_content"} - set(kept):
        del message[name]
    if "reasoning_details" in kept:
        del calls[0]["extra_content"]
    elif "google" in kept:  # as the AI SDK does it
        del calls[0]["extra_content"]["farebox"]
    body = again("anthropic", message)
    assert body["messages"][1]["content"] == [  # type: ignore[index]
        {"type": "thinking", "thinking": "Let me look.", "signature": "s1g"},
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}},
    ]


def test_thoughts_between_calls_come_back_between_them() -> None:
    later = [
        *block(
            2,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "Again."},
            {"type": "signature_delta", "signature": "s2g"},
        ),
        *block(3, {"type": "tool_use", "id": "toolu_2", "name": "look", "input": {}}),
    ]
    out, _ = run("anthropic", wire(anthropic(*THINKS, *USES, *later, reason="tool_use")), **TOOLS)
    body = again("anthropic", echoed(out))
    content = body["messages"][1]["content"]  # type: ignore[index]
    assert [part["type"] for part in content] == ["thinking", "tool_use"] * 2
    assert [part["signature"] for part in content[::2]] == ["s1g", "s2g"]


def test_signatures_of_another_provider_are_left_out() -> None:
    sealed = ENVELOPES.seal(Blob("other", "claude-opus-4-8", "thinking", "s"))
    details = [{"type": "reasoning.text", "text": "hm", "signature": sealed, "index": 0}]
    message = {"role": "assistant", "content": "Hi", "reasoning_details": details}
    body = sent("anthropic", messages=[HI, message, HI])
    assert body["messages"][1]["content"] == "Hi"  # type: ignore[index]


# -- history --------------------------------------------------------------------------------------


def test_edge_55_57_no_text_beside_a_call_is_no_empty_text() -> None:
    answer = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "ok"}
    messages = [HI, answer, result]
    (use,) = sent("anthropic", messages=messages, **TOOLS)["messages"][1]["content"]  # type: ignore[index]
    assert use["type"] == "tool_use"
    assistant = sent("openai", messages=messages, **TOOLS)["messages"][1]  # type: ignore[index]
    assert assistant["content"] is None


@pytest.mark.parametrize("protocol", ["anthropic", "gemini"])
def test_edge_59_broken_arguments_do_not_end_the_conversation(protocol: Protocol) -> None:
    broken = {**CALL, "function": {"name": "look", "arguments": '{"at": "x'}}
    messages = [
        HI,
        {"role": "assistant", "tool_calls": [broken]},
        {"role": "tool", "tool_call_id": "c1", "content": "failed"},
    ]
    made = translated(protocol, messages=messages, **TOOLS)
    assert "approx:arguments" in made.dropped
    assert b"_raw" in made.body
    assert b"failed" in made.body


# -- tools and formats ----------------------------------------------------------------------------


def test_edge_73_tools_are_converted() -> None:
    tool = sent("anthropic", **TOOLS)["tools"][0]  # type: ignore[index]
    function = LOOK["function"]
    assert isinstance(function, dict)
    assert (tool["name"], tool["description"]) == ("look", "Looks.")
    assert tool["input_schema"] == function["parameters"]
    assert "function" not in tool


@pytest.mark.parametrize("stream", [True, False])
def test_edge_74_calls_come_back_in_both_modes(stream: bool) -> None:
    made = translated("anthropic", stream=stream, **TOOLS)
    if stream:
        out, _ = run("anthropic", wire(anthropic(*USES_FIRST, reason="tool_use")), **TOOLS)
        message = gathered(out)["choices"][0]["message"]  # type: ignore[index]
    else:
        content = [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "x"}}]
        answer = {"id": "msg_1", "type": "message", "role": "assistant", "content": content}
        usage = {"input_tokens": 1, "output_tokens": 2}
        body = {**answer, "model": "t", "stop_reason": "tool_use", "usage": usage}
        relay = made.plain(json.dumps(body).encode())
        assert relay.failure is None
        completion = json.loads(relay.body)
        assert (completion["created"], completion["model"]) == (7, "mine")
        assert completion["choices"][0]["finish_reason"] == "tool_calls"
        message = completion["choices"][0]["message"]
        assert message["content"] is None
    (call,) = message["tool_calls"]
    assert (call["id"], call["type"]) == ("toolu_1", "function")
    assert json.loads(call["function"]["arguments"]) == {"at": "x"}


USES_FIRST = block(
    0,
    {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}},
    {"type": "input_json_delta", "partial_json": '{"at":"x"}'},
)


@pytest.mark.parametrize("protocol", MODELS)
def test_edge_75_a_responses_body_is_served_and_answered_as_chat(protocol: Protocol) -> None:
    members = {
        "model": "mine",
        "stream": True,
        "stream_options": {"include_usage": True},
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        "tools": [{"type": "function", "name": "look", "parameters": {}}],
        "max_output_tokens": 50,
    }
    codec = ChatDownstream()
    request = codec.decode(json.dumps(members).encode(), Ask())
    assert request.foreign
    prompt = codec.prompt(request, ENVELOPES)
    assert [tool.name for tool in prompt.tools] == ["look"]
    target = Target(Provider("p", protocol, "http://x"), MODELS[protocol], 50, stream=True)
    made = Translation(codec, UPSTREAMS[protocol], request, prompt, target, ENVELOPES)
    assert b"hi" in made.body
    assert "stream_options" not in made.dropped
    if protocol == "anthropic":
        relay = made.stream()
        out = relay.feed(wire(anthropic(*SAYS))) + relay.terminal
        assert gathered(out)["choices"][0]["message"]["content"] == "Hi"  # type: ignore[index]


@pytest.mark.parametrize("protocol", MODELS)
def test_edge_76_anthropic_blocks_in_messages_are_understood(protocol: Protocol) -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "here"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "found it"}
    messages = [
        HI,
        {"role": "assistant", "content": [{"type": "text", "text": "Well"}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "go on"}]},
    ]
    tool = {"name": "look", "input_schema": {"type": "object", "properties": {}}}
    made = translated(protocol, messages=messages, tools=[tool])
    for text in (b"here", b"found it", b"go on", b"toolu_1"):
        assert text in made.body
    if protocol == "openai":
        roles = [message["role"] for message in json.loads(made.body)["messages"]]
        assert roles == ["user", "assistant", "tool", "user"]


def test_edge_77_a_schema_reaches_gemini() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    given = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    config = sent("gemini", response_format=given)["generationConfig"]
    assert isinstance(config, dict)
    assert config["responseMimeType"] == "application/json"
    assert config["responseJsonSchema"]["properties"] == schema["properties"]


def test_the_forms_of_the_first_days_are_answered_in_kind() -> None:
    functions = [{"name": "look", "parameters": {}}]
    members = {"functions": functions, "function_call": {"name": "look"}}
    body = sent("anthropic", **members)
    assert body["tool_choice"] == {
        "type": "tool",
        "name": "look",
        "disable_parallel_tool_use": True,
    }
    out, _ = run("anthropic", wire(anthropic(*USES_FIRST, reason="tool_use")), **members)
    called = [delta["function_call"] for delta in deltas(out) if "function_call" in delta]
    assert called == [{"name": "look", "arguments": '{"at":"x"}'}]
    assert chunks(out)[-1]["choices"][0]["finish_reason"] == "function_call"  # type: ignore[index]


def test_answers_can_be_encoded_again() -> None:
    """Bytes for the client are JSON that msgspec itself would have written."""
    out, _ = run("anthropic", wire(anthropic(*THINKS, *USES, reason="tool_use")), **TOOLS)
    for raw in sse.Splitter().feed(out):
        data = sse.data_of(raw)
        assert data == b"[DONE]" or msgspec.json.encode(msgspec.json.decode(data)) == data

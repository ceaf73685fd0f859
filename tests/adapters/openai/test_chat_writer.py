"""Answers for chat clients: what OpenAI's accumulator makes of the chunks is the whole answer."""

from __future__ import annotations

import json
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from adapters import sse
from adapters.canonical import (
    BlockKind,
    Citation,
    Close,
    Delta,
    Event,
    Finish,
    FinishReason,
    Logprob,
    Meta,
    Open,
    Prompt,
    Reasoning,
    Start,
    Usage,
    Used,
)
from adapters.codec import Made, Request
from adapters.envelope import Envelopes
from adapters.errors import UpstreamUnavailable
from adapters.openai.chat_writer import ChatWriter

Json = dict[str, object]

ENVELOPES = Envelopes(b"w" * 32, "account")
MADE = Made("p", "family", input_tokens=11, created=5)


def writer(*, stream: bool = True, include_usage: bool = False, show: bool = True) -> ChatWriter:
    request = Request(
        fields={}, body_bytes=0, model="mine", stream=stream, include_usage=include_usage
    )
    return ChatWriter(request, Prompt(turns=(), reasoning=Reasoning(show=show)), ENVELOPES, MADE)


def answer(*blocks: tuple[BlockKind, list[str]], reason: FinishReason = "end") -> list[Event]:
    """The events of an answer of `blocks`."""
    events: list[Event] = [Start("chatcmpl-1", "theirs")]
    for index, (kind, texts) in enumerate(blocks):
        called = kind in ("call", "free_call")
        opened = Open(index, kind, f"c{index}", f"f{index}") if called else Open(index, kind)
        events.append(opened)
        events += [Delta(index, text) for text in texts]
        events.append(Close(index))
    return [*events, Finish(reason)]


def chunks(events: list[Event], **options: bool) -> list[Json]:
    one = writer(**options)
    out = b"".join([one.write(event) for event in events])
    assert out.endswith(b"data: [DONE]\n\n")
    raws = sse.Splitter().feed(out)
    return [json.loads(data) for raw in raws if (data := sse.data_of(raw)) != b"[DONE]"]


def deltas(events: list[Event], **options: bool) -> list[Json]:
    return [chunk["choices"][0]["delta"] for chunk in chunks(events, **options)]  # type: ignore[index]


def whole(events: list[Event]) -> Json:
    one = writer(stream=False)
    for event in events:
        one.write(event)
    found = json.loads(one.whole())
    assert isinstance(found, dict)
    return found


def message_of(completion: Json) -> Json:
    message = completion["choices"][0]["message"]  # type: ignore[index]
    assert isinstance(message, dict)
    return message


def gathered(found: list[Json]) -> Json:
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in found:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    completion = state.get_final_completion().model_dump()
    assert isinstance(completion, dict)
    return completion


TEXTS = st.lists(st.text(min_size=1, max_size=4), max_size=3)
BLOCKS = st.lists(
    st.tuples(st.sampled_from(["text", "thinking", "call", "refusal"]), TEXTS), max_size=6
)


def with_signatures(events: list[Event]) -> Iterator[Event]:
    for event in events:
        yield event
        if isinstance(event, Open) and event.kind in ("call", "thinking"):
            yield Meta(event.index, "s", "call" if event.kind == "call" else "thinking")


@given(blocks=BLOCKS, signed=st.booleans())
def test_the_stream_means_what_the_whole_answer_says(
    blocks: list[tuple[BlockKind, list[str]]], signed: bool
) -> None:
    events = answer(*blocks)
    if signed:
        events = list(with_signatures(events))
    streamed, plain = gathered(chunks(events)), whole(events)
    left, right = message_of(streamed), message_of(plain)
    assert (streamed["id"], streamed["created"]) == (plain["id"], plain["created"])
    for name in ("content", "refusal", "reasoning_content"):
        assert (left.get(name) or "") == (right.get(name) or "")
    calls = [
        {name: each for name, each in call.items() if name != "index"}
        for call in left.get("tool_calls") or ()  # type: ignore[attr-defined]
    ]
    for call in calls:
        call["function"].pop("parsed_arguments", None)
    assert calls == right.get("tool_calls", [])
    assert left.get("reasoning_details") == right.get("reasoning_details")


def test_chunks_have_the_same_facts_and_the_usage_comes_last() -> None:
    events = answer(("text", ["a", "b"]))
    events.insert(-1, Used(Usage(input_tokens=7, output_tokens=2, cached_input_tokens=3)))
    found = chunks(events, include_usage=True)
    assert {(each["id"], each["object"], each["created"], each["model"]) for each in found} == {
        ("chatcmpl-1", "chat.completion.chunk", 5, "mine")
    }
    assert [each["usage"] for each in found[:-1]] == [None] * (len(found) - 1)
    usage = found[-1]["usage"]
    assert isinstance(usage, dict)
    assert (usage["prompt_tokens"], usage["total_tokens"]) == (7, 9)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 3
    assert all("usage" not in each for each in chunks(events))


def test_without_usage_of_the_provider_it_is_our_count() -> None:
    found = chunks(answer(("text", ["abcde"])), include_usage=True)[-1]["usage"]
    assert isinstance(found, dict)
    assert (found["prompt_tokens"], found["completion_tokens"]) == (11, 2)


def test_an_answer_without_anything_is_an_empty_text() -> None:
    message = message_of(whole(answer(reason="content_filter")))
    assert (message["content"], message["refusal"]) == ("", None)


def test_runs_of_one_kind_are_parted_where_something_stood_between_them() -> None:
    events = answer(("text", ["a"]), ("text", ["b"]), ("call", ["{}"]), ("text", ["c"]))
    assert message_of(whole(events))["content"] == "ab\n\nc"


def test_reasons() -> None:
    expected: dict[FinishReason, str] = {
        "end": "stop",
        "stop_sequence": "stop",
        "pause": "stop",
        "tool_calls": "tool_calls",
        "length": "length",
        "context_window": "length",
        "content_filter": "content_filter",
        "refusal": "content_filter",
    }
    for reason, word in expected.items():
        assert whole(answer(("text", ["a"]), reason=reason))["choices"][0]["finish_reason"] == word  # type: ignore[index]
    said = whole(answer(("refusal", ["no"]), reason="refusal"))
    assert said["choices"][0]["finish_reason"] == "stop"  # type: ignore[index]


def test_a_signature_waits_for_no_arguments_but_its_first_fragment_waits_for_it() -> None:
    events = answer(("call", ["{}"]))
    early = [*events[:2], Meta(0, "s", "call"), *events[2:]]
    late = [*events[:3], Meta(0, "s", "call"), *events[3:]]
    for each, at in ((early, 0), (late, 1)):
        fragments = [delta["tool_calls"][0] for delta in deltas(each) if "tool_calls" in delta]  # type: ignore[index]
        sealed = fragments[at]["extra_content"]["farebox"]["sig"]
        blob = ENVELOPES.open(sealed)
        assert blob is not None
        assert (blob.provider, blob.family, blob.kind, blob.value) == ("p", "family", "call", "s")
        assert sum("extra_content" in fragment for fragment in fragments) == 1
        assert "extra_content" in message_of(whole(each))["tool_calls"][0]  # type: ignore[index]


def test_thoughts_that_are_not_wanted_are_not_shown() -> None:
    found = deltas(answer(("thinking", ["hm"]), ("text", ["a"])), show=False)
    assert found == [{"role": "assistant"}, {"content": "a"}, {}]


def test_arguments_of_two_calls_in_many_pieces() -> None:
    pieces = ['{"a":', '"\u2028', '\\n"', "}"]
    events = answer(("call", pieces), ("text", ["so", " é"]), ("call", pieces))
    found = [delta.get("tool_calls") for delta in deltas(events)]
    fragments = [calls[0] for calls in found if isinstance(calls, list)]
    assert [fragment["index"] for fragment in fragments] == [0] * 4 + [1] * 4
    assert [fragment["function"]["arguments"] for fragment in fragments] == pieces * 2
    assert ["id" in fragment for fragment in fragments] == ([True] + [False] * 3) * 2


def test_free_form_calls() -> None:
    message = message_of(whole(answer(("free_call", ["raw ", "text"]))))
    custom = {"name": "f0", "input": "raw text"}
    assert message["tool_calls"] == [{"id": "c0", "type": "custom", "custom": custom}]


def test_citations_and_logprobs() -> None:
    events = answer(("text", ["abc"]))
    logprob = Logprob("é", -0.5, (("b", -1.0),))
    events[3:3] = [Meta(0, citation=Citation("https://x", "t")), Meta(0, logprobs=(logprob,))]
    entry = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
    top = {"token": "b", "logprob": -1.0, "bytes": [98]}
    plain = whole(events)
    assert plain["choices"][0]["logprobs"]["content"] == [{**entry, "top_logprobs": [top]}]  # type: ignore[index]
    (annotation,) = message_of(plain)["annotations"]  # type: ignore[misc]
    assert annotation["url_citation"] == {  # type: ignore[has-type]
        "url": "https://x",
        "title": "t",
        "start_index": 0,
        "end_index": 3,
    }
    streamed = gathered(chunks(events))
    assert streamed["choices"][0]["logprobs"]["content"][0]["token"] == "é"  # type: ignore[index]


def test_an_error_is_an_event_of_its_own() -> None:
    told = writer().error_event(UpstreamUnavailable("It broke."), "req")
    error = json.loads(sse.data_of(told))["error"]
    assert (error["message"], error["code"]) == ("It broke.", "upstream_unavailable")

"""Answers as Gemini's clients get them."""

from __future__ import annotations

import json
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Sequence

import msgspec
import pytest

from adapters import sse
from adapters.canonical import (
    Blob,
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
    Thinking,
    Usage,
    Used,
)
from adapters.codec import Made, Request
from adapters.envelope import Envelopes
from adapters.errors import UpstreamOverloaded
from adapters.gemini.signature import signed_thought
from adapters.gemini.writer import GeminiWriter

ENVELOPES = Envelopes(b"s" * 32, "acme")
MADE = Made("claude", "claude-5", 11)

Json = dict[str, object]


def writer(*, stream: bool = True, array: bool = False, show: bool | None = None) -> GeminiWriter:
    request = Request(fields={}, body_bytes=2, model="m", stream=stream, array=array)
    return GeminiWriter(request, Prompt(turns=(), reasoning=Reasoning(show=show)), ENVELOPES, MADE)


def streamed(events: Sequence[Event], *, show: bool | None = None) -> list[Json]:
    wrote = writer(show=show)
    out = b"".join([wrote.write(event) for event in events])
    raw = sse.Splitter().feed(out)
    assert b"".join(raw) == out
    assert all(each.startswith(b"data: {") and each.count(b"\n") == 2 for each in raw)
    return [json.loads(sse.data_of(each)) for each in raw]


def whole(events: Sequence[Event], *, show: bool | None = None) -> Json:
    wrote = writer(stream=False, show=show)
    for event in events:
        wrote.write(event)
    found = json.loads(wrote.whole())
    assert isinstance(found, dict)
    return found


def parts_of(answer: Json) -> list[Json]:
    candidates = answer["candidates"]
    assert isinstance(candidates, list)
    parts = candidates[0]["content"]["parts"]
    assert isinstance(parts, list)
    return parts


def all_parts(answers: Sequence[Json]) -> list[Json]:
    return [part for answer in answers for part in parts_of(answer)]


def thought_of(part: Json) -> Thinking | None:
    signature = part["thoughtSignature"]
    assert isinstance(signature, str)
    b64decode(signature, validate=True)
    return signed_thought(signature, ENVELOPES)


def blob_of(part: Json) -> Blob | None:
    thought = thought_of(part)
    return None if thought is None else thought.blob


def text(*pieces: str, at: int = 0) -> list[Event]:
    return [Open(at, "text"), *[Delta(at, piece) for piece in pieces], Close(at)]


def call(arguments: str, *, at: int = 0, meta: Sequence[Meta] = ()) -> list[Event]:
    return [Open(at, "call", f"call_{at}", "f"), *meta, Delta(at, arguments), Close(at)]


USED = Used(Usage(input_tokens=10, cached_input_tokens=4, output_tokens=7, reasoning_tokens=2))
START = Start("r1", "upstream-model")


def test_text_goes_out_as_it_comes_and_the_last_chunk_has_the_rest() -> None:
    chunks = streamed([START, *text("Hel", "lo"), USED, Finish("end")])
    assert chunks[0] == {
        "candidates": [{"content": {"parts": [{"text": "Hel"}], "role": "model"}, "index": 0}],
        "modelVersion": "m",
        "responseId": "r1",
    }
    assert chunks[-1]["usageMetadata"] == {
        "promptTokenCount": 10,
        "cachedContentTokenCount": 4,
        "candidatesTokenCount": 5,
        "thoughtsTokenCount": 2,
        "totalTokenCount": 17,
    }
    assert [part["text"] for part in all_parts(chunks)] == ["Hel", "lo", ""]
    assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"  # type: ignore[index] # a list


def test_a_whole_answer_is_the_same_joined() -> None:
    answer = whole([START, *text("Hel", "lo"), *call('{"a":1}', at=1), USED, Finish("tool_calls")])
    assert parts_of(answer) == [
        {"text": "Hello"},
        {"functionCall": {"id": "call_1", "name": "f", "args": {"a": 1}}},
    ]
    assert answer["responseId"] == "r1"


def test_an_answer_with_nothing_has_no_parts() -> None:
    answer = whole([START, Finish("content_filter", detail="no")])
    assert parts_of(answer) == []
    assert answer["candidates"][0]["finishReason"] == "SAFETY"  # type: ignore[index] # a list
    assert answer["candidates"][0]["finishMessage"] == "no"  # type: ignore[index] # a list


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("end", "STOP"), ("stop_sequence", "STOP"), ("tool_calls", "STOP"), ("pause", "STOP"),
        ("length", "MAX_TOKENS"), ("context_window", "MAX_TOKENS"),
        ("content_filter", "SAFETY"), ("refusal", "SAFETY"),
    ],
)  # fmt: skip
def test_reasons(reason: FinishReason, word: str) -> None:
    answer = whole([START, Finish(reason)])
    assert answer["candidates"][0]["finishReason"] == word  # type: ignore[index] # a list


def test_a_call_is_one_part_when_it_is_complete() -> None:
    chunks = streamed(
        [START, Open(0, "call", "c1", "f"), Delta(0, '{"a"'), Delta(0, ":[1]}"), Close(0)]
    )
    assert all_parts(chunks) == [{"functionCall": {"id": "c1", "name": "f", "args": {"a": [1]}}}]


@pytest.mark.parametrize(
    ("arguments", "args"),
    [
        ("", {}),
        ('{"a": 1', {"_raw": '{"a": 1'}),
        ("[1]", {"_raw": "[1]"}),
        ('"x"', {"_raw": '"x"'}),
    ],
)
def test_arguments_are_always_an_object(arguments: str, args: Json) -> None:
    [part] = all_parts(streamed([START, Open(0, "call", "c", "f"), Delta(0, arguments), Close(0)]))
    assert part["functionCall"]["args"] == args  # type: ignore[index] # an object


def test_arguments_stay_on_one_line_and_exact() -> None:
    wrote = writer()
    events: list[Event] = [START, Open(0, "call", "c", "f")]
    for event in [*events, Delta(0, '{\n "n": 12345678901234567890\n}')]:
        wrote.write(event)
    out = wrote.write(Close(0))
    assert b'"args":{"n":12345678901234567890}' in out
    assert out.count(b"\n") == 2


def test_a_free_form_call_is_wrapped() -> None:
    [part] = all_parts(streamed([START, Open(0, "free_call", "c", "f"), Delta(0, "raw"), Close(0)]))
    assert part["functionCall"]["args"] == {"input": "raw"}  # type: ignore[index] # an object


THOUGHT: list[Event] = [
    Open(0, "thinking"), Delta(0, "hm"), Meta(0, "sig"), Close(0),
]  # fmt: skip
SIGNED = Blob("claude", "claude-5", "thinking", "sig")


def test_thoughts_are_shown_where_they_were_asked_for() -> None:
    events = [START, *THOUGHT, *text("x", at=1), Finish("end")]
    parts = all_parts(streamed(events, show=True))
    assert parts[0] == {"text": "hm", "thought": True}
    assert parts[1]["thought"] is True
    assert blob_of(parts[1]) == SIGNED
    assert parts[2] == {"text": "x"}
    merged = parts_of(whole(events, show=True))[0]
    assert (merged["text"], merged["thought"], blob_of(merged)) == ("hm", True, SIGNED)


@pytest.mark.parametrize("show", [None, False])
def test_signatures_of_hidden_thoughts_travel_on_the_next_part(show: bool | None) -> None:
    events = [START, *THOUGHT, *call("{}", at=1), Finish("tool_calls")]
    for parts in (all_parts(streamed(events, show=show)), parts_of(whole(events, show=show))):
        assert "hm" not in json.dumps(parts)
        assert "functionCall" in parts[0]
        assert thought_of(parts[0]) == Thinking(text="hm", blob=SIGNED)


def test_edge_44_the_signature_stands_beside_the_call() -> None:
    meta = [Meta(0, "c2ln", "call")]
    [part] = all_parts(streamed([START, *call("{}", meta=meta)]))
    assert set(part) == {"functionCall", "thoughtSignature"}
    assert set(part["functionCall"]) == {"id", "name", "args"}  # type: ignore[call-overload]


def test_two_signatures_never_share_a_part() -> None:
    redacted: list[Event] = [Open(1, "thinking"), Meta(1, "red", "redacted"), Close(1)]
    parts = parts_of(whole([START, *THOUGHT, *redacted, *call("{}", at=2), Finish("tool_calls")]))
    assert [blob_of(part) for part in parts] == [
        SIGNED,
        Blob("claude", "claude-5", "redacted", "red"),
    ]


def test_a_signature_at_the_end_gets_an_empty_part() -> None:
    parts = parts_of(whole([START, *THOUGHT, Finish("end")]))
    assert [(part["text"], blob_of(part)) for part in parts] == [("", SIGNED)]


def test_a_signature_comes_back_in_the_other_alphabet() -> None:
    [part] = parts_of(whole([START, *THOUGHT, Finish("end")]))
    again = urlsafe_b64encode(b64decode(str(part["thoughtSignature"]))).decode()
    signed = Thinking(text="hm", blob=SIGNED)
    assert signed_thought(again, ENVELOPES) == signed
    assert signed_thought(again.rstrip("="), ENVELOPES) == signed
    assert signed_thought(again, Envelopes(b"s" * 32, "other")) is None
    assert signed_thought("CiQB0kMrc2lnbmF0dXJl", ENVELOPES) is None


def test_sources_and_logprobs() -> None:
    facts = [
        Meta(0, citation=Citation("https://a", "A")),
        Meta(0, logprobs=(Logprob("x", -0.5, (("y", -1.0),)),)),
    ]
    events: list[Event] = [START, Open(0, "text"), Delta(0, "x"), *facts, Close(0), Finish("end")]
    result = {
        "chosenCandidates": [{"token": "x", "logProbability": -0.5}],
        "topCandidates": [{"candidates": [{"token": "y", "logProbability": -1.0}]}],
    }
    candidate = whole(events)["candidates"][0]  # type: ignore[index] # a list
    assert candidate["logprobsResult"] == result
    assert candidate["groundingMetadata"] == {
        "groundingChunks": [{"web": {"uri": "https://a", "title": "A"}}]
    }
    chunks = streamed(events)
    assert chunks[1]["candidates"][0]["logprobsResult"] == result  # type: ignore[index] # a list


def test_figures_are_estimated_where_there_are_none() -> None:
    assert whole([START, *text("12345678"), Finish("end")])["usageMetadata"] == {
        "promptTokenCount": 11,
        "candidatesTokenCount": 2,
        "totalTokenCount": 13,
    }


def test_edge_91_an_error_begins_with_error_and_has_a_numeric_code() -> None:
    wrote = writer()
    wrote.write(START)
    out = wrote.error_event(UpstreamOverloaded("busy"), "req_1")
    assert out.startswith(b'data: {"error":{')
    assert json.loads(sse.data_of(out))["error"]["code"] == 503


def test_the_array_form_is_one_json_array() -> None:
    wrote = writer(array=True)
    out = b"".join([wrote.write(event) for event in [START, *text("a", "b"), Finish("end")]])
    chunks = json.loads(out)
    assert [part["text"] for part in all_parts(chunks)] == ["a", "b", ""]
    assert len(json.loads(writer(array=True).write(Finish("end")))) == 1
    broken = writer(array=True)
    out = broken.write(START) + broken.write(Open(0, "text")) + broken.write(Delta(0, "a"))
    out += broken.error_event(UpstreamOverloaded("busy"), "req_1")
    assert json.loads(out)[-1]["error"]["code"] == 503
    assert json.loads(writer(array=True).error_event(UpstreamOverloaded("x"), "r"))[0]["error"]


def test_line_ends_of_unicode_are_escaped() -> None:
    wrote = writer()
    wrote.write(START)
    wrote.write(Open(0, "text"))
    out = wrote.write(Delta(0, "a\u2028b\u2029c\u0085d\u00e9"))
    assert len(out.decode().splitlines()) == 2
    assert msgspec.json.decode(sse.data_of(out))["candidates"][0]["content"]["parts"] == [
        {"text": "a\u2028b\u2029c\u0085d\u00e9"}
    ]

"""Gemini's answers as canonical events, however they were cut."""

from __future__ import annotations

import json
import random

import pytest

from adapters import sse
from adapters.canonical import (
    Citation,
    Close,
    Delta,
    Event,
    Finish,
    Logprob,
    Meta,
    Open,
    Start,
    Usage,
    Used,
)
from adapters.gemini.reader import GeminiReader


def chunk(*parts: object, **rest: object) -> dict[str, object]:
    candidate: dict[str, object] = {"index": 0}
    if parts:
        candidate["content"] = {"role": "model", "parts": list(parts)}
    top: dict[str, object] = {}
    for name, value in rest.items():
        (top if name in ("usageMetadata", "promptFeedback", "error") else candidate)[name] = value
    return {"candidates": [candidate], **top, "responseId": "r1", "modelVersion": "gemini-x"}


def call(name: str, args: object, **rest: object) -> dict[str, object]:
    return {"functionCall": {"name": name, "args": args}, **rest}


def read(*chunks: object, reader: GeminiReader | None = None) -> list[Event]:
    reader = reader or GeminiReader()
    for each in chunks:
        reader.read(json.dumps(each).encode())
    reader.close()
    assert reader.composer.failure is None
    return reader.composer.take()


def failing(*chunks: object) -> str:
    reader = GeminiReader()
    for each in chunks:
        reader.read(json.dumps(each).encode())
    reader.close()
    assert reader.composer.failure is not None
    return reader.composer.failure.kind


def finish_of(events: list[Event]) -> Finish:
    last = events[-1]
    assert isinstance(last, Finish)
    return last


USAGE = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}


def test_text_goes_on_over_chunks() -> None:
    assert read(
        chunk({"text": "Hel"}), chunk({"text": "lo"}, finishReason="STOP", usageMetadata=USAGE)
    ) == [
        Start("r1", "gemini-x"),
        Open(0, "text"),
        Delta(0, "Hel"),
        Delta(0, "lo"),
        Used(Usage(input_tokens=10, output_tokens=5)),
        Close(0),
        Finish("end"),
    ]


def test_edge_02_arguments_after_thoughts_are_never_lost() -> None:
    events = read(
        chunk({"text": "hm", "thought": True}),
        chunk(call("f", {"a": 1}, thoughtSignature="c2ln"), finishReason="STOP"),
    )
    opened = [event for event in events if isinstance(event, Open)]
    assert [each.kind for each in opened] == ["thinking", "call"]
    assert Delta(1, '{"a":1}') in events
    assert Meta(1, "c2ln", "call") in events
    assert finish_of(events).reason == "tool_calls"


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(
            [chunk(call("f", {"n": n})) for n in range(3)], id="edge_27_one_call_per_chunk"
        ),
        pytest.param(
            [chunk(*[call("f", {"n": n}) for n in range(3)])], id="edge_29_three_in_one_chunk"
        ),
    ],
)
def test_edge_27_29_calls_are_blocks_of_their_own(chunks: list[object]) -> None:
    events = read(*chunks, chunk(finishReason="STOP"))
    opened = [event for event in events if isinstance(event, Open)]
    assert [each.index for each in opened] == [0, 1, 2]
    deltas = [event for event in events if isinstance(event, Delta)]
    assert deltas == [Delta(n, f'{{"n":{n}}}') for n in range(3)]


def test_edge_28_the_same_function_three_times_has_three_ids() -> None:
    events = read(*[chunk(call("f", {})) for _ in range(3)], chunk(finishReason="STOP"))
    ids = [event.id for event in events if isinstance(event, Open)]
    assert len(set(ids)) == 3
    assert all(ids)


def test_edge_30_indexes_go_on_between_chunks() -> None:
    events = read(
        chunk({"text": "a"}), chunk(call("f", {})), chunk({"text": "b"}), chunk(call("g", {})),
        chunk(finishReason="STOP"),
    )  # fmt: skip
    assert [event.index for event in events if isinstance(event, Open)] == [0, 1, 2, 3]


def test_edge_35_thoughts_come_out_as_they_arrive() -> None:
    reader = GeminiReader()
    reader.read(json.dumps(chunk({"text": "let me", "thought": True})).encode())
    assert reader.composer.take()[-1] == Delta(0, "let me")
    reader.read(json.dumps(chunk({"text": " see", "thought": True})).encode())
    assert reader.composer.take() == [Delta(0, " see")]


def test_the_signature_of_a_call_comes_before_its_arguments() -> None:
    events = read(chunk(call("f", {}, thoughtSignature="s")), chunk(finishReason="STOP"))
    assert [type(event) for event in events[1:5]] == [Open, Meta, Delta, Close]


def test_a_signature_on_an_empty_part_belongs_to_the_text_before_it() -> None:
    events = read(
        chunk({"text": "done"}),
        chunk({"text": "", "thoughtSignature": "s"}, finishReason="STOP"),
    )
    assert events[1:] == [
        Open(0, "text"), Delta(0, "done"), Meta(0, "s", "text"), Close(0), Finish("end"),
    ]  # fmt: skip


def test_a_signature_without_text_before_it_becomes_a_thought() -> None:
    events = read(
        chunk(call("f", {})), chunk({"text": "", "thoughtSignature": "s"}, finishReason="STOP")
    )
    assert events[-4:-1] == [Open(1, "thinking"), Meta(1, "s", "text"), Close(1)]


def test_parts_with_and_without_a_signature_are_not_joined() -> None:
    events = read(
        chunk({"text": "a", "thoughtSignature": "s"}), chunk({"text": "b"}, finishReason="STOP")
    )
    assert [event.index for event in events if isinstance(event, Open)] == [0, 1]


def test_a_thought_is_signed_as_such() -> None:
    events = read(
        chunk({"text": "a", "thought": True, "thoughtSignature": "s"}), chunk(finishReason="STOP")
    )
    assert Meta(0, "s", "thinking") in events


def test_numbers_are_spelled_as_they_came() -> None:
    reader = GeminiReader()
    body = (
        b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":'
        b'{\n "id": 12345678901234567890, "x": 1.10}}}]},"finishReason":"STOP"}]}'
    )
    reader.plain(body)
    assert Delta(0, '{"id":12345678901234567890,"x":1.10}') in reader.composer.take()


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("STOP", "end"),
        ("MAX_TOKENS", "length"),
        ("CONTINUATION", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("SPII", "content_filter"),
        ("SOMETHING_NEW", "end"),
        ("OTHER", "end"),
    ],
)
def test_reasons(word: str, reason: str) -> None:
    assert finish_of(read(chunk({"text": "x"}, finishReason=word))).reason == reason


@pytest.mark.parametrize(
    "word", ["MALFORMED_FUNCTION_CALL", "MISSING_THOUGHT_SIGNATURE", "OTHER", "NO_IMAGE"]
)
def test_no_answer_is_a_failure(word: str) -> None:
    assert failing(chunk(finishReason=word, finishMessage="oops")) == "protocol"


def test_length_with_a_call_stays_length() -> None:
    events = read(chunk(call("f", {}), finishReason="MAX_TOKENS"))
    assert finish_of(events).reason == "length"


def test_a_blocked_prompt_is_filtered() -> None:
    events = read({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": USAGE})
    assert finish_of(events) == Finish("content_filter", detail="Blocked: SAFETY.")


def test_the_last_usage_wins_and_is_inclusive() -> None:
    final = {
        "promptTokenCount": 100,
        "cachedContentTokenCount": 40,
        "candidatesTokenCount": 7,
        "thoughtsTokenCount": 20,
        "toolUsePromptTokenCount": 3,
        "totalTokenCount": 130,
        "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 8}],
        "serviceTier": "FLEX",
    }
    events = read(
        chunk({"text": "x"}, usageMetadata=USAGE), chunk(finishReason="STOP", usageMetadata=final)
    )
    used = [event.usage for event in events if isinstance(event, Used)]
    assert used[-1] == Usage(
        input_tokens=103,
        cached_input_tokens=40,
        audio_input_tokens=8,
        output_tokens=27,
        reasoning_tokens=20,
        service_tier="flex",
    )


def test_figures_that_nobody_can_read_are_none_and_fail_no_answer() -> None:
    odd = {**USAGE, "promptTokensDetails": "none"}
    chunks = (
        chunk({"text": "x"}, usageMetadata=USAGE),
        chunk(finishReason="STOP", usageMetadata=odd),
    )
    events = read(*chunks)
    assert [event.usage for event in events if isinstance(event, Used)][-1] == Usage()
    assert finish_of(events).reason == "end"
    kept = read(chunks[0], chunk(finishReason="STOP", usageMetadata=None))
    assert [event.usage.input_tokens for event in kept if isinstance(event, Used)][-1] > 0


def test_usage_may_follow_the_reason() -> None:
    events = read(chunk({"text": "x"}, finishReason="STOP"), {"usageMetadata": USAGE})
    assert isinstance(events[-3], Used)


def test_sources_and_logprobs_are_facts_of_the_text() -> None:
    grounding = {
        "webSearchQueries": ["q1", "q2"],
        "groundingChunks": [{"web": {"uri": "https://a", "title": "A"}}] * 2,
    }
    logprobs = {
        "chosenCandidates": [{"token": "x", "logProbability": -0.5}],
        "topCandidates": [{"candidates": [{"token": "y", "logProbability": -1}]}],
    }
    events = read(
        chunk({"text": "x"}, logprobsResult=logprobs),
        chunk(finishReason="STOP", groundingMetadata=grounding, usageMetadata=USAGE),
    )
    assert Meta(0, logprobs=(Logprob("x", -0.5, (("y", -1.0),)),)) in events
    cited = [event.citation for event in events if isinstance(event, Meta) and event.citation]
    assert cited == [Citation("https://a", "A")]
    used = [event.usage for event in events if isinstance(event, Used)]
    assert used[-1].pieces == {"web_search": 2}


def test_a_stream_that_gave_no_reason_was_cut() -> None:
    assert failing(chunk({"text": "x"})) == "truncated"


def test_a_whole_answer_needs_no_reason() -> None:
    reader = GeminiReader()
    reader.plain(json.dumps(chunk({"text": "x"})).encode())
    assert finish_of(reader.composer.take()).reason == "end"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'{"error":{"code":503,"message":"busy","status":"UNAVAILABLE"}}', "overloaded"),
        (b'[{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED"}}]', "rate_limited"),
        (b"not json", "protocol"),
        (b'{"candidates":5}', "protocol"),
        (b"\xff", "protocol"),
    ],
)
def test_errors_inside_the_stream(data: bytes, kind: str) -> None:
    reader = GeminiReader()
    reader.read(data)
    assert reader.composer.failure is not None
    assert reader.composer.failure.kind == kind


def test_other_candidates_are_not_this_answer() -> None:
    other = {"index": 1, "content": {"parts": [{"text": "other"}]}, "finishReason": "STOP"}
    events = read(chunk({"text": "x"}), {"candidates": [other]}, chunk(finishReason="STOP"))
    assert [event.text for event in events if isinstance(event, Delta)] == ["x"]
    metered = read(
        chunk({"text": "x"}),
        {"candidates": [other]},
        chunk(finishReason="STOP"),
        reader=GeminiReader(passing=True),
    )
    assert [event.text for event in metered if isinstance(event, Delta)] == ["x", "other"]


def test_on_its_way_through_an_image_is_content() -> None:
    image = {"inlineData": {"mimeType": "image/png", "data": "aaaa"}}
    events = read(chunk(image), chunk(finishReason="STOP"), reader=GeminiReader(passing=True))
    assert any(isinstance(event, Delta) for event in events)


def test_a_done_of_servers_in_front_is_nothing() -> None:
    reader = GeminiReader()
    reader.read(json.dumps(chunk({"text": "x"}, finishReason="STOP")).encode())
    reader.read(b"[DONE]")
    reader.close()
    assert reader.composer.failure is None


STREAM = b"".join(
    b"data: " + json.dumps(each, ensure_ascii=False).encode() + b"\r\n\r\n"
    for each in (
        chunk({"text": "thinking", "thought": True}),
        chunk({"text": "Gr\u00fc\u00dfe \U0001f600 \u2028"}, usageMetadata=USAGE),
        chunk(call("f", {"q": "\u00e4"}, thoughtSignature="c2ln"), call("g", {})),
        chunk(finishReason="STOP", usageMetadata=USAGE),
    )
)


def through(pieces: list[bytes]) -> list[Event]:
    splitter, reader = sse.Splitter(), GeminiReader()
    for piece in pieces:
        for raw in splitter.feed(piece):
            reader.read(sse.data_of(raw))
    reader.close()
    events = reader.composer.take()
    assert reader.composer.failure is None
    return events


def test_cuts_change_nothing() -> None:
    whole = through([STREAM])
    assert through([STREAM[at : at + 1] for at in range(len(STREAM))]) == whole
    rng = random.Random(7)
    for _ in range(30):
        cuts = sorted(rng.sample(range(len(STREAM)), 9))
        pieces = [STREAM[a:b] for a, b in zip([0, *cuts], [*cuts, len(STREAM)], strict=True)]
        assert through(pieces) == whole


def test_figures_beyond_any_window_are_no_counts() -> None:
    figures = {"promptTokenCount": 7, "candidatesTokenCount": 2, "totalTokenCount": 10**30}
    events = read(chunk({"text": "x"}, finishReason="STOP", usageMetadata=figures))
    used = [event.usage for event in events if isinstance(event, Used)]
    assert (used[-1].input_tokens, used[-1].output_tokens) == (7, 2)

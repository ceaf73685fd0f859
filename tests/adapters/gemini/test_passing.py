"""Between two Gemini ends: nothing is lost, and nothing is noticed."""

from __future__ import annotations

import json
import random
from base64 import b64encode

import pytest

from adapters.canonical import Blob
from adapters.catalogue import Provider
from adapters.codec import Ask, Call, Request, Target
from adapters.envelope import Envelopes
from adapters.errors import UpstreamOverloaded
from adapters.gemini.downstream import (
    CountDownstream,
    GenerateDownstream,
    StreamGenerateDownstream,
)
from adapters.gemini.passing import renamed
from adapters.gemini.signature import SKIP_VALIDATION
from adapters.gemini.upstream import GeminiUpstream
from adapters.stream import nothing_expected
from tests.fakes.bodies import whole

ENVELOPES = Envelopes(b"s" * 32, "acme")
PROVIDER = Provider("google", "gemini", "https://generativelanguage.googleapis.com")
UPSTREAM = GeminiUpstream()


def call(body: bytes, *, stream: bool = False, query: str = "alt=sse", cap: int | None = 99,
         model: str = "gemini-3.5-flash") -> Call:  # fmt: skip
    codec = StreamGenerateDownstream() if stream else GenerateDownstream()
    request = codec.decode(body, Ask(id="shown", query=query))
    return UPSTREAM.passing(request, Target(PROVIDER, model, cap, stream), ENVELOPES)


def test_the_body_goes_as_it_came() -> None:
    body = (
        b'{"contents":[{"parts":[{"text":"h\\u00e9 \xc3\xa9"}]}],"futureField":{"x":1.10},'
        b'"generation_config":{"temperature":1.0,"max_output_tokens":99}}'
    )
    sent = call(body)
    assert sent.body == body
    assert sent.path == "/v1beta/models/gemini-3.5-flash:generateContent"
    assert sent.dropped == ()
    assert call(body, stream=True).path.endswith(":streamGenerateContent?alt=sse")


@pytest.mark.parametrize(
    ("config", "sent"),
    [
        ({}, {"maxOutputTokens": 99}),
        ({"topK": 1}, {"topK": 1, "maxOutputTokens": 99}),
        ({"max_output_tokens": 5000, "topK": 1}, {"max_output_tokens": 99, "topK": 1}),
    ],
)
def test_what_is_reserved_is_what_is_allowed(config: object, sent: object) -> None:
    body = json.dumps({"contents": [{"parts": []}], "generationConfig": config}).encode()
    assert json.loads(whole(call(body).body))["generationConfig"] == sent


def test_without_a_configuration_one_is_made() -> None:
    for extra in ({}, {"generationConfig": None}, {"model": "models/dearer"}):
        body = json.dumps({"contents": [{"parts": []}], **extra}).encode()
        assert json.loads(whole(call(body).body)) == {
            "contents": [{"parts": []}],
            "generationConfig": {"maxOutputTokens": 99},
        }


def slot(blob: Blob) -> str:
    return b64encode(ENVELOPES.seal(blob).encode()).decode()


def test_signatures_of_other_providers_stay_here() -> None:
    foreign = slot(Blob("claude", "c", "thinking", "x"))
    own = slot(Blob("google", "gemini-3.5-flash", "call", "c2ln"))
    contents = [
        {"role": "user", "parts": [{"text": "go"}]},
        {
            "role": "model",
            "parts": [
                {"text": "hm", "thought": True, "thoughtSignature": foreign},
                {"text": "", "thought_signature": foreign},
                {"functionCall": {"name": "f"}, "thoughtSignature": foreign},
                {"functionCall": {"name": "g"}, "thoughtSignature": own},
                {"text": "x", "thoughtSignature": "bmF0aXZl"},
            ],
        },
        {"role": "model", "parts": [{"text": "", "thoughtSignature": foreign}]},
    ]
    body = json.dumps({"contents": contents}).encode()
    sent = json.loads(whole(call(body).body))["contents"]
    assert sent == [
        contents[0],
        {
            "role": "model",
            "parts": [
                {"text": "hm", "thought": True},
                {"functionCall": {"name": "f"}, "thoughtSignature": SKIP_VALIDATION},
                {"functionCall": {"name": "g"}, "thoughtSignature": "c2ln"},
                {"text": "x", "thoughtSignature": "bmF0aXZl"},
            ],
        },
    ]
    older = json.loads(whole(call(body, model="gemini-2.5-flash").body))["contents"]
    assert older[1]["parts"][1:3] == [{"functionCall": {"name": n}} for n in ("f", "g")]


# -- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (b'{"a":1,"modelVersion":"gemini-x"}', b'{"a":1,"modelVersion":"shown"}'),
        (b'{"modelVersion" : "x\\"y", "z":1.10}', b'{"modelVersion" : "shown", "z":1.10}'),
        (b'{"a":"modelVersion"}', b'{"a":"modelVersion"}'),
        (b'{"text":"\\"modelVersion\\":\\"x\\""}', b'{"text":"\\"modelVersion\\":\\"x\\""}'),
        (
            b'{"functionCall":{"modelVersion":"mine"},"modelVersion":"x"}',
            b'{"functionCall":{"modelVersion":"mine"},"modelVersion":"shown"}',
        ),
        (
            b'{"functionCall":{"modelVersion":"mine"}}',
            b'{"functionCall":{"modelVersion":"mine"}}',
        ),
    ],
)
def test_only_the_name_of_the_model_changes(answer: bytes, shown: bytes) -> None:
    assert renamed(answer, b'"shown"') == shown


def chunk(text: str, rest: str = "") -> bytes:
    return (
        '{"candidates": [{"content": {"parts": [{"text": "TEXT"}],"role": "model"}REST,"index": 0}'
        '],"usageMetadata": {"promptTokenCount": 4,"candidatesTokenCount": 2,"totalTokenCount": 6},'
        '"modelVersion": "gemini-3.5-flash-001","unknown": 1.10}'
    ).replace("TEXT", text).replace("REST", rest).encode()  # fmt: skip


CHUNKS = [chunk("Gr\u00fc\u00dfe "), chunk("\U0001f600"), chunk("", ',"finishReason": "STOP"')]
STREAM = b": comment\n\n" + b"".join([b"data: " + each + b"\r\n\r\n" for each in CHUNKS])
BODY = b'{"contents":[{"parts":[{"text":"hi"}]}]}'


def relayed(pieces: list[bytes], query: str = "alt=sse") -> bytes:
    relay = call(BODY, stream=True, query=query).stream()
    out = b"".join([relay.feed(piece) for piece in pieces]) + relay.close()
    assert relay.failure is None
    assert relay.ended
    assert b"STOP" not in out  # not before it is paid for
    counted = relay.counted(nothing_expected)
    assert (counted.usage.input_tokens, counted.usage.output_tokens) == (4, 2)
    assert not counted.estimated
    return out + relay.terminal


SHOWN = [each.replace(b"gemini-3.5-flash-001", b"shown") for each in CHUNKS]


def test_edge_87_chunks_pass_and_nothing_stands_between_them() -> None:
    assert relayed([STREAM]) == b"".join([b"data: " + each + b"\n\n" for each in SHOWN])


def test_cuts_change_nothing() -> None:
    whole = relayed([STREAM])
    assert relayed([STREAM[at : at + 1] for at in range(len(STREAM))]) == whole
    rng = random.Random(3)
    for _ in range(20):
        cuts = sorted(rng.sample(range(len(STREAM)), 7))
        pieces = [STREAM[a:b] for a, b in zip([0, *cuts], [*cuts, len(STREAM)], strict=True)]
        assert relayed(pieces) == whole


def test_without_sse_the_stream_is_one_array() -> None:
    assert json.loads(relayed([STREAM], query="")) == [json.loads(each) for each in SHOWN]


def test_json_over_several_lines_becomes_one() -> None:
    lines = b"".join([b"data: " + line + b"\n" for line in CHUNKS[1].split(b" ")]) + b"\n"
    relay = call(BODY, stream=True).stream()
    out = relay.feed(lines)
    assert out.count(b"\n") == 2
    assert json.loads(out[6:]) == json.loads(SHOWN[1])


def test_a_stream_that_was_cut_has_failed() -> None:
    relay = call(BODY, stream=True).stream()
    relay.feed(b"data: " + CHUNKS[0] + b"\n\n")
    relay.close()
    assert relay.failure is not None
    assert relay.failure.kind == "truncated"
    assert relay.has_content


@pytest.mark.parametrize(
    ("chunks", "open_candidates"),
    [
        ([], [0, 1, 2]),
        ([{"index": 1, "finishReason": "STOP"}], [0, 2]),
        ([{"index": 2, "finishReason": "SAFETY"}, {"index": 1, "finishReason": "STOP"}], [0]),
        ([{"index": 1, "finishReason": None}, {"index": [2], "finishReason": "STOP"}], [0, 1, 2]),
        ([{"index": 1, "finishReason": None}, {"index": 7, "finishReason": "STOP"}], [0, 1, 2]),
    ],
)
def test_a_stream_that_is_cut_ends_every_candidate_that_has_not_ended(
    chunks: list[dict[str, object]], open_candidates: list[int]
) -> None:
    asked = {"contents": [{"parts": [{"text": "Hi"}]}], "generationConfig": {"candidateCount": 3}}
    relay = call(json.dumps(asked).encode(), stream=True).stream(limited=True)
    said = {"content": {"parts": [{"text": "Once"}], "role": "model"}, "index": 0}
    for candidate in (said, *chunks):
        relay.feed(f"data: {json.dumps({'candidates': [candidate]})}\n\n".encode())
    relay.limit(1)
    relay.feed(f"data: {json.dumps({'candidates': [said]})}\n\n".encode())
    assert relay.full
    relay.cut_short(nothing_expected)
    last = json.loads(relay.terminal.removeprefix(b"data: "))
    ended = [(each["index"], each["finishReason"]) for each in last["candidates"]]
    assert ended == [(index, "MAX_TOKENS") for index in open_candidates]


def test_edge_91_errors_of_ours_have_google_s_form() -> None:
    relay = call(BODY, stream=True).stream()
    event = relay.error_event(UpstreamOverloaded("busy"), "req_1")
    assert event.startswith(b'data: {"error":{')
    array = call(BODY, stream=True, query="").stream()
    out = array.feed(b"data: " + CHUNKS[0] + b"\n\n")
    out += array.error_event(UpstreamOverloaded("busy"), "req_1")
    assert json.loads(out)[1]["error"]["code"] == 503


def test_an_error_in_the_stream_is_a_failure_and_does_not_pass() -> None:
    relay = call(BODY, stream=True).stream()
    out = relay.feed(b'data: {"error":{"code":503,"message":"m","status":"UNAVAILABLE"}}\n\n')
    assert out == b""
    assert relay.failure is not None
    assert relay.failure.kind == "overloaded"


def test_a_whole_answer_passes() -> None:
    relay = call(BODY).plain(CHUNKS[2])
    assert relay.failure is None
    assert relay.body == SHOWN[2]
    assert relay.counted(nothing_expected).usage.output_tokens == 2


def test_a_blocked_prompt_passes_as_an_answer() -> None:
    body = b'{"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":4}}'
    relay = call(BODY).plain(body)
    assert relay.failure is None
    assert relay.body == body


def test_no_answer_at_all_is_empty() -> None:
    relay = call(BODY).plain(b'{"usageMetadata":{"promptTokenCount":4}}')
    assert relay.failure is not None
    assert relay.failure.kind == "empty"


@pytest.mark.parametrize("codec", [CountDownstream(), GenerateDownstream()])
def test_counting_asks_for_the_request_as_it_came(codec: GenerateDownstream) -> None:
    request: Request = codec.decode(
        b'{"model":"models/x","contents":[{"parts":[]}],"tools":[]}', Ask(id="m")
    )
    ask = UPSTREAM.counting_passing(request, Target(PROVIDER, "gemini-x", None, False))
    assert ask.path == "/v1beta/models/gemini-x:countTokens"
    assert json.loads(ask.body) == {
        "generateContentRequest": {
            "model": "models/gemini-x",
            "contents": [{"parts": []}],
            "tools": [],
        }
    }


def test_a_wrapped_request_is_counted_for_the_upstreams_model() -> None:
    body = b'{"generate_content_request":{"model":"models/x","contents":[{"parts":[]}]}}'
    request = CountDownstream().decode(body, Ask(id="m"))
    ask = UPSTREAM.counting_passing(request, Target(PROVIDER, "gemini-x", None, False))
    assert json.loads(ask.body)["generateContentRequest"]["model"] == "models/gemini-x"

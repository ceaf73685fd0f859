"""Responses requests: what decides route and price is read, and what would deceive is refused."""

from __future__ import annotations

import json
from base64 import b64encode

import pytest

from adapters.codec import Ask, Request
from adapters.errors import InvalidRequest
from adapters.media import IMAGE_TOKENS, document_tokens
from adapters.openai.responses_downstream import ResponsesCount, ResponsesDownstream
from adapters.openai.responses_scan import TOOL_CALLS_DEFAULT

CODEC = ResponsesDownstream()
PIXEL = "data:image/png;base64," + b64encode(b"\x89PNG\r\n\x1a\n" + b"0" * 300).decode()


def decoded(headers: dict[bytes, bytes] | None = None, /, **members: object) -> Request:
    body = json.dumps({"model": "m", "input": "hi", **members}).encode()
    return CODEC.decode(body, Ask(headers=headers or {}))


def said(*parts: object) -> list[object]:
    return [{"role": "user", "content": list(parts)}]


def test_facts() -> None:
    request = decoded(
        stream=True,
        max_output_tokens=99,
        service_tier="flex",
        safety_identifier="someone",
        prompt_cache_key="cache",
    )
    assert (request.model, request.protocol, request.stream) == ("m", "openai-responses", True)
    assert (request.output_cap, request.service_tier) == (99, "flex")
    assert (request.user_id, request.conversation_id) == ("someone", "cache")
    assert request.choices == 1


def test_conversation_is_named_by_metadata_then_header_then_cache_key() -> None:
    header = {b"session-id": b"session"}
    assert decoded(header, prompt_cache_key="cache").conversation_id == "session"
    named = decoded(header, metadata={"conversation_id": "mine", "user_id": "me"})
    assert (named.conversation_id, named.user_id) == ("mine", "me")
    assert decoded().conversation_id == ""


def test_body_stays_as_it_was() -> None:
    body = b'{"model":"m","input":[{"role":"user","content":"a"}],"x":1.50}'
    request = CODEC.decode(body, Ask())
    assert request.body_bytes == len(body)
    assert bytes(request.fields["x"]) == b"1.50"


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 7}, "model"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": {"role": "user"}}, "input"),
        ({"stream": "yes"}, "stream"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": "many"}, "max_output_tokens"),
        ({"max_tool_calls": -1}, "max_tool_calls"),
        ({"background": True}, "background"),
        ({"metadata": "no"}, "metadata"),
        ({"Max_Output_Tokens": 5}, "Max_Output_Tokens"),
    ],
)
def test_refused(members: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        decoded(**members)
    assert refusal.value.param == param


def test_key_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        CODEC.decode(b'{"model":"a","input":"x","model":"b"}', Ask())


@pytest.mark.parametrize("name", ["previous_response_id", "instructions"])
def test_input_may_be_missing_where_something_else_is_said(name: str) -> None:
    assert decoded(input=None, **{name: "x"}).model == "m"


# -- what it may cost -----------------------------------------------------------------------------


def test_text_is_counted_in_bytes() -> None:
    scan = decoded(input="é" * 10, instructions="abc").scan
    assert scan.text_bytes == len(json.dumps("é" * 10)) + len('"abc"')
    assert (scan.media_bytes, scan.media_tokens, scan.hidden, scan.passes) == (0, 0, False, 1)


def test_image_counts_as_an_image() -> None:
    scan = decoded(input=said({"type": "input_image", "image_url": PIXEL})).scan
    assert scan.media_bytes == len(json.dumps(PIXEL))
    assert scan.media_tokens == IMAGE_TOKENS
    assert not scan.hidden


def test_image_in_a_result_counts_too() -> None:
    items = [
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {
            "type": "function_call_output",
            "call_id": "c",
            "output": [{"type": "input_image", "image_url": PIXEL}],
        },
    ]
    assert decoded(input=items).scan.media_tokens == IMAGE_TOKENS


def test_file_counts_by_its_size() -> None:
    data = b64encode(b"%PDF-" + b"0" * 9000).decode()
    scan = decoded(input=said({"type": "input_file", "file_data": data})).scan
    assert scan.media_tokens == document_tokens(len(data) + 2)
    assert not scan.hidden


def test_audio_has_a_price_of_its_own() -> None:
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    assert decoded(input=said(sound)).scan.audio


def test_type_alone_decides_what_a_part_is() -> None:
    """A text with a picture's member in it is text, and paid as such."""
    part = {"type": "input_text", "text": "x", "image_url": PIXEL}
    scan = decoded(input=said(part)).scan
    assert scan.media_bytes == 0
    assert scan.text_bytes > len(PIXEL)


@pytest.mark.parametrize(
    "members",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": {"id": "conv_1"}},
        {"prompt": {"id": "pmpt_1"}},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"input": [{"id": "msg_1"}]},
        {"input": [{"type": "compaction", "encrypted_content": "x"}]},
        {"input": said({"type": "input_file", "file_id": "file-1"})},
        {"input": said({"type": "input_file", "file_url": "https://a.example"})},
        {"input": said({"type": "input_image", "file_id": "file-1"})},
        {"input": said({"type": "input_hologram"})},
        {"input": said({"no": "type"})},
        {"input": [17]},
    ],
)
def test_what_only_the_provider_sees_is_hidden(members: dict[str, object]) -> None:
    assert decoded(**members).scan.hidden


def test_nulls_hide_nothing() -> None:
    assert not decoded(previous_response_id=None, conversation=None, prompt=None).scan.hidden


def test_tools_of_the_clients_own_cost_one_pass() -> None:
    tools = [
        {"type": "function", "name": "f"},
        {"type": "custom", "name": "g"},
        {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "h"}]},
        {"type": "tool_search", "execution": "client"},
    ]
    scan = decoded(tools=tools).scan
    assert (scan.tools, scan.passes, scan.pieces) == (5, 1, {})


@pytest.mark.parametrize(
    ("tool", "pieces"),
    [
        ({"type": "web_search"}, {"web_search": TOOL_CALLS_DEFAULT}),
        ({"type": "web_search_preview_2025_03_11"}, {"web_search": TOOL_CALLS_DEFAULT}),
        ({"type": "image_generation"}, {"image": TOOL_CALLS_DEFAULT}),
        ({"type": "code_interpreter"}, {}),
        ({"type": "tool_search"}, {}),
        ({"type": "something_new"}, {}),
        ({}, {}),
    ],
)
def test_tools_of_the_provider_cost_a_pass_for_each_call(
    tool: dict[str, object], pieces: dict[str, int]
) -> None:
    scan = decoded(tools=[tool]).scan
    assert scan.passes == 1 + TOOL_CALLS_DEFAULT
    assert scan.pieces == pieces


def test_limit_of_tool_calls_is_the_clients() -> None:
    scan = decoded(tools=[{"type": "web_search"}], max_tool_calls=2).scan
    assert (scan.passes, scan.pieces) == (3, {"web_search": 2})


def test_additional_tools_count() -> None:
    item = {"type": "additional_tools", "role": "developer", "tools": [{"type": "web_search"}]}
    assert decoded(input=[item]).scan.passes > 1


def test_unreadable_tools_are_the_dearest() -> None:
    assert decoded(tools="nonsense").scan.passes > 1


@pytest.mark.parametrize(
    "members",
    [
        {"prompt_cache_options": {"ttl": "12h"}},
        {"prompt_cache_retention": "24h"},
        {
            "input": said(
                {"type": "input_text", "text": "x", "prompt_cache_breakpoint": {"ttl": "12h"}}
            )
        },
    ],
)
def test_long_cache(members: dict[str, object]) -> None:
    assert decoded(**members).scan.long_cache
    assert not decoded(prompt_cache_options={"ttl": "30m"}).scan.long_cache


# -- counting -------------------------------------------------------------------------------------


def test_count() -> None:
    codec = ResponsesCount()
    assert json.loads(codec.counted(12)) == {"object": "response.input_tokens", "input_tokens": 12}
    assert codec.stream_type(decoded()).startswith("text/event-stream")

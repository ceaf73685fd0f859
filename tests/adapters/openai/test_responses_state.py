"""Kept responses: what a request refers to, and how it looks with that in its place."""

from __future__ import annotations

import json

import msgspec
import pytest

from adapters import sse
from adapters.codec import Ask, Request
from adapters.errors import InvalidRequest, NotFound
from adapters.openai.body import read_fields
from adapters.openai.responses_downstream import ResponsesDownstream
from adapters.openai.responses_state import (
    deleted,
    final_response,
    input_items,
    listing,
    output_items,
    previous,
    references,
    response_id,
    stored_wish,
    with_history,
    with_references,
)

Json = dict[str, object]


def request(**members: object) -> Request:
    body = {"model": "m", "input": "hi", **members}
    return ResponsesDownstream().decode(json.dumps(body).encode(), Ask())


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def shown(items: list[msgspec.Raw]) -> list[Json]:
    return [json.loads(bytes(item)) for item in items]


def member(found: Request, name: str) -> object:
    return json.loads(bytes(found.fields[name]))


@pytest.mark.parametrize(
    ("body", "wish"),
    [
        (b"{}", True),
        (b'{"store":null}', True),
        (b'{"store":true}', True),
        (b'{"store":false}', False),
    ],
)
def test_answers_are_kept_unless_the_client_says_no(body: bytes, wish: bool) -> None:
    assert stored_wish(read_fields(body)) is wish


def test_store_must_be_a_flag() -> None:
    with pytest.raises(InvalidRequest):
        stored_wish(read_fields(b'{"store":"yes"}'))


def test_previous() -> None:
    assert previous(request(previous_response_id="resp_1").fields) == "resp_1"
    assert previous(request(previous_response_id=None).fields) == ""


def test_history_goes_before_the_new_input() -> None:
    old = [
        {"type": "message", "role": "user", "content": "one"},
        {"type": "message", "id": "msg_1", "role": "assistant", "content": []},
    ]
    before = request(
        previous_response_id="resp_1", instructions="Be brief.", tools=[{"type": "web_search"}]
    )
    assert before.scan.hidden
    after = with_history(before, [raw(item) for item in old])
    user = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    assert member(after, "input") == [*old, user]
    assert member(after, "store") is False
    assert "previous_response_id" not in after.fields
    assert member(after, "instructions") == "Be brief."
    # It is priced anew.
    assert not after.scan.hidden
    assert after.scan.text_bytes > before.scan.text_bytes
    assert after.scan.passes == before.scan.passes
    assert after.body_bytes == len(msgspec.json.encode(after.fields))


def test_references_are_replaced_where_they_stand() -> None:
    before = request(
        input=[
            {"type": "item_reference", "id": "msg_1"},
            {"role": "user", "content": "and?"},
            {"id": "msg_2"},
        ]
    )
    assert references(before.fields) == ["msg_1", "msg_2"]
    found = {name: raw({"role": "user", "content": name}) for name in ("msg_1", "msg_2")}
    after = with_references(before, found)
    assert [item["content"] for item in member(after, "input")] == ["msg_1", "and?", "msg_2"]  # type: ignore[attr-defined]
    assert references(after.fields) == []
    assert not after.scan.hidden
    with pytest.raises(NotFound) as refusal:
        with_references(before, {"msg_1": found["msg_1"]})
    assert refusal.value.param == "input[2].id"


def test_text_has_no_references() -> None:
    assert references(request().fields) == []
    with pytest.raises(InvalidRequest):
        references(read_fields(b'{"input":[7]}'))


def test_input_as_items_with_ids() -> None:
    (only,) = shown(input_items(request()))
    assert str(only.pop("id")).startswith("msg_")
    assert only == {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "hi"}],
    }


def test_items_keep_their_ids_and_their_members() -> None:
    items = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "id": "msg_mine"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "id": "fco_1", "call_id": "c", "output": "1"},
        {"type": "mcp_call", "x": 1.50},
    ]
    found = shown(input_items(request(input=items)))
    assert [str(item["id"]).partition("_")[0] for item in found] == [
        "msg",
        "msg",
        "fc",
        "fco",
        "item",
    ]
    assert found[1]["id"] == "msg_mine"
    assert found[1]["content"] == [{"type": "output_text", "text": "b", "annotations": []}]
    assert found[3] == items[3]
    assert [item["type"] for item in found[:2]] == ["message", "message"]


# -- bodies ---------------------------------------------------------------------------------------


def test_output_of_a_body() -> None:
    body = json.dumps({"id": "resp_1", "output": [{"type": "message", "content": []}]}).encode()
    (item,) = shown(output_items(body))
    assert str(item["id"]).startswith("msg_")
    assert response_id(body) == "resp_1"
    for nothing in (b"", b"[]", b'{"output":null}', b'{"output":[7]}'):
        assert output_items(nothing) == []
    assert response_id(b"[]") == ""


def test_final_response_of_a_stream() -> None:
    first = sse.event(b'{"type":"response.created","response":{"id":"a"}}')
    last = sse.event(b'{"type":"response.completed","response":{"id":"b"}}')
    stream = b": keep-alive\n\n" + first + last + sse.event(b"[DONE]")
    assert final_response(stream) == b'{"id":"b"}'
    assert final_response(last.rstrip()) == b'{"id":"b"}'
    assert final_response(b'{"id":"b"}') is None
    assert final_response(sse.event(b'{"type":"x"}')) is None


def test_deleted() -> None:
    assert json.loads(deleted("resp_1")) == {"id": "resp_1", "object": "response", "deleted": True}


# -- pages ----------------------------------------------------------------------------------------

ITEMS = [raw({"type": "message", "id": f"msg_{at}"}) for at in range(25)]


def page(query: str) -> tuple[list[str], Json]:
    body = json.loads(listing(ITEMS, query))
    return [item["id"] for item in body["data"]], body


def test_pages_in_both_orders() -> None:
    ids, body = page("")
    assert ids == [f"msg_{at}" for at in range(24, 4, -1)]
    assert (body["object"], body["first_id"], body["last_id"]) == ("list", "msg_24", "msg_5")
    assert body["has_more"] is True
    ids, body = page("after=msg_5")
    assert ids == ["msg_4", "msg_3", "msg_2", "msg_1", "msg_0"]
    assert body["has_more"] is False
    assert page("order=asc&limit=2&after=msg_0")[0] == ["msg_1", "msg_2"]
    assert page("after=msg_0")[1]["first_id"] == ""
    assert page("include=x&limit=100")[1]["has_more"] is False


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("order=up", "order"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=ten", "limit"),
        ("limit=%C2%B2", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("after=nobody", "after"),
    ],
)
def test_pages_that_are_none(query: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        listing(ITEMS, query)
    assert refusal.value.param == param

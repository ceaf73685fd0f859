"""What is read of a Messages request to route, reserve and price it."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from adapters.anthropic.downstream import MessagesCount, MessagesDownstream
from adapters.codec import Ask
from adapters.errors import InvalidRequest
from adapters.estimate import bound
from tests.adapters.anthropic.wiring import ASK, decoded

PDF = "JVBERi0xLjQ=" * 100
PNG = "iVBORw0KGgo=" * 100


def with_blocks(*blocks: Mapping[str, object], **members: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": list(blocks)}], **members}


def test_the_facts_of_a_request() -> None:
    request = decoded(stream=True, service_tier="standard_only", metadata={"user_id": "u"})
    assert request.protocol == "anthropic"
    assert (request.model, request.stream, request.output_cap) == ("m", True, 100)
    assert (request.service_tier, request.user_id, request.conversation_id) == ("default", "u", "")
    assert list(request.fields) == [*ASK, "stream", "service_tier", "metadata"]


def test_claude_code_says_who_it_is() -> None:
    user_id = json.dumps({"device_id": "d", "account_uuid": "", "session_id": "s"})
    request = decoded(metadata={"user_id": user_id})
    assert (request.user_id, request.conversation_id) == ("d", "s")
    request = decoded({b"x-claude-code-session-id": b"h"}, metadata={"user_id": user_id})
    assert request.conversation_id == "h"
    assert decoded(metadata={"user_id": "{no json"}).user_id == "{no json"
    assert decoded(metadata={"user_id": 7}).user_id == ""
    assert decoded(metadata=None).user_id == ""


def test_version_and_betas_go_on_and_credentials_do_not() -> None:
    headers = {
        b"anthropic-version": b"2026-10-21",
        b"anthropic-beta": b"a,b",
        b"anthropic-user-profile-id": b"p",
        b"anthropic-dangerous-direct-browser-access": b"true",
        b"x-api-key": b"secret",
        b"authorization": b"Bearer secret",
    }
    assert decoded(headers).forward == (
        ("anthropic-version", "2026-10-21"),
        ("anthropic-beta", "a,b"),
        ("anthropic-user-profile-id", "p"),
    )
    assert decoded().forward == (("anthropic-version", "2023-06-01"),)


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"metadata": []}, "metadata"),
        ({"Max_Tokens": 7}, "Max_Tokens"),
    ],
)
def test_what_is_refused(members: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decoded(**members)
    assert caught.value.param == param


def test_the_cap_is_required_only_where_there_is_an_answer() -> None:
    body = json.dumps({"model": "m", "messages": ASK["messages"]}).encode()
    with pytest.raises(InvalidRequest, match="max_tokens is required"):
        MessagesDownstream().decode(body, Ask())
    assert MessagesCount().decode(body, Ask()).output_cap is None
    assert MessagesCount().counted(12) == b'{"input_tokens":12}'


def test_warming_the_cache_holds_the_least() -> None:
    assert decoded(max_tokens=0).output_cap == 1


def test_keys_may_not_stand_twice() -> None:
    with pytest.raises(InvalidRequest, match="twice"):
        MessagesDownstream().decode(
            b'{"model":"a","model":"b","max_tokens":1,"messages":[{}]}', Ask()
        )


# -- what it may cost -----------------------------------------------------------------------------


def test_text_is_bounded_by_its_bytes() -> None:
    request = decoded(system="s" * 100, tools=[{"name": "f", "input_schema": {}}])
    assert request.scan.tools == 1
    assert request.scan.media_bytes == request.scan.media_tokens == 0
    assert 100 < request.scan.text_bytes < request.body_bytes
    assert bound(request, 0).input_tokens > request.body_bytes


def test_media_is_bounded_by_what_it_may_cost() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    pdf = {"type": "base64", "media_type": "application/pdf", "data": PDF}
    inner = {"type": "tool_result", "tool_use_id": "t", "content": [image]}
    scan = decoded(**with_blocks(image, {"type": "document", "source": pdf}, inner)).scan
    assert scan.media_bytes == 2 * (len(PNG) + 2) + len(PDF) + 2
    assert scan.media_tokens > 2 * 20_000
    assert not scan.hidden


@pytest.mark.parametrize(
    "members",
    [
        with_blocks({"type": "document", "source": {"type": "file", "file_id": "f"}}),
        with_blocks({"type": "document", "source": {"type": "url", "url": "https://a.b"}}),
        with_blocks({"type": "container_upload", "file_id": "f"}),
        with_blocks({"type": "something_new"}),
        {"container": "c"},
        {"thread": {"type": "continue"}},
        {"messages": [{"content": [7]}]},
    ],
)
def test_what_only_the_provider_sees_is_bounded_by_the_window(members: dict[str, object]) -> None:
    request = decoded(**members)
    assert request.scan.hidden
    assert bound(request, 200_000).input_tokens == 200_000


def test_the_providers_tools_make_it_read_again() -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
    scan = decoded(tools=[search]).scan
    assert (scan.passes, scan.pieces) == (4, {"web_search": 3})
    scan = decoded(tools=[{"type": "web_search_20260209", "name": "w"}]).scan
    assert (scan.passes, scan.pieces) == (11, {"web_search": 10})
    assert decoded(tools=[{"type": "code_execution_20250825", "name": "c"}]).scan.passes == 11
    assert decoded(tools=[{"type": "bash_20250124", "name": "bash"}]).scan.passes == 1
    assert decoded(mcp_servers=[{"type": "url"}]).scan.hidden


def test_an_hour_in_the_cache_has_its_own_price() -> None:
    mark = {"type": "ephemeral", "ttl": "1h"}
    assert decoded(cache_control=mark).scan.long_cache
    assert decoded(
        **with_blocks({"type": "text", "text": "x", "cache_control": mark})
    ).scan.long_cache
    assert not decoded(cache_control={"type": "ephemeral", "ttl": "5m"}).scan.long_cache
    assert not decoded(**with_blocks({"type": "text", "text": '"ttl": "1h"'})).scan.long_cache


@pytest.mark.parametrize(
    ("plain", "escaped"),
    [(b'"ttl"', b'"t\\u0074l"'), (b'"1h"', b'"\\u0031h"'), (b'"1h"', b'"1\\u0068"')],
)
def test_escapes_hide_no_hour_in_the_cache(plain: bytes, escaped: bytes) -> None:
    body = json.dumps({**ASK, "cache_control": {"type": "ephemeral", "ttl": "1h"}}).encode()
    assert plain in body
    request = MessagesDownstream().decode(body.replace(plain, escaped), Ask())
    assert request.scan.long_cache


def test_escapes_hide_no_summary() -> None:
    body = json.dumps({**ASK, "context_management": {"edits": [{"type": "compact_20260112"}]}})
    for written in (body, body.replace("compact_", "comp\\u0061ct_")):
        assert MessagesDownstream().decode(written.encode(), Ask()).scan.passes == 2


def test_what_encoders_escape_is_no_reason_to_hold_more() -> None:
    """Characters beyond ASCII, and what is unsafe in HTML."""
    odd = json.dumps({**ASK, "system": "é \U0001f600 \x7f"})
    body = odd.replace("é", "\\u003cb\\u003e \\u0026 \\u0027")
    scan = MessagesDownstream().decode(body.encode(), Ask()).scan
    assert (scan.long_cache, scan.passes) == (False, 1)


def test_fast_answers_are_priced_as_such() -> None:
    assert decoded(speed="fast", service_tier="auto").service_tier == "fast"


def test_other_models_of_the_provider_are_not_for_sale() -> None:
    with pytest.raises(InvalidRequest) as refused:
        decoded(fallbacks=[{"model": "claude-dear"}])
    assert refused.value.param == "fallbacks"
    assert decoded(fallbacks=[]).model == "m"


def test_a_wider_window_is_held_where_a_beta_asks_for_it() -> None:
    body = json.dumps({"model": "m", "max_tokens": 1, "messages": [{"content": "x" * 700_000}]})
    betas = b"files-api-2025-04-14,context-1m-2025-08-07"
    wide = MessagesDownstream().decode(body.encode(), Ask(headers={b"anthropic-beta": betas}))
    assert bound(wide, 200_000).input_tokens > 700_000
    assert bound(wide, 200_000, native=False).input_tokens == 200_000
    assert bound(MessagesDownstream().decode(body.encode(), Ask()), 200_000).input_tokens == 200_000

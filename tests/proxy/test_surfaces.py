"""What the data plane adds to the codecs: kept responses, counts, dialects, losses, who is tried.

A whole worker between scripted providers and clients in memory, in virtual time.
"""

from __future__ import annotations

import json
from typing import cast

import h11
import pytest
import trio
from trio.testing import MockClock

from adapters.canonical import Blob
from adapters.catalogue import Protocol, Provider
from adapters.envelope import Envelopes
from ledger.limits import LimitRef
from ledger.store import EventStatus
from tests.fakes import provider
from tests.fakes.gateway import ACCOUNT, SECRET, Answer, Client, model_of, principal_of, running
from tests.fakes.provider import STREAM_HEAD, ScriptedProvider, chunk, delta, reply

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
GEMINI = "/v1beta/models/gpt:generateContent"
HELLO = [{"role": "user", "content": "Hi"}]
CONTENTS = {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]}

Json = dict[str, object]


def speaking(name: str, protocol: Protocol) -> Provider:
    """A provider of that protocol."""
    return Provider(name, protocol, f"http://{name}/v1", api_keys=("provider-key",))


async def said(client: Client, body: Json) -> Json:
    """The response object that answers `body`."""
    answer = await client.call(RESPONSES, {"model": "gpt", **body})
    assert answer.status == 200, answer.body
    return answer.json


def messages_of(sent: Json) -> list[tuple[str, str]]:
    """(role, text) of what a chat provider got."""
    found = []
    for message in cast("list[Json]", sent["messages"]):
        content = message["content"]
        if isinstance(content, list):
            content = "".join(str(cast("Json", part)["text"]) for part in content)
        found.append((str(message["role"]), str(content)))
    return found


# -- kept responses -------------------------------------------------------------------------------


async def test_a_conversation_goes_on_from_a_kept_response() -> None:
    upstream = ScriptedProvider(provider.completion("One."), provider.completion("Two."))
    async with running({"p": upstream}) as world:
        client = world.connect()
        first = await said(client, {"input": "first", "instructions": "Be brief."})
        second = await said(client, {"input": "second", "previous_response_id": first["id"]})
        assert messages_of(upstream.bodies[1]) == [
            ("user", "first"),
            ("assistant", "One."),
            ("user", "second"),
        ]
        assert second["previous_response_id"] == first["id"]
        third = await said(client, {"input": "third", "previous_response_id": second["id"]})
        assert [text for _, text in messages_of(upstream.bodies[2])][:4] == [
            "first",
            "One.",
            "second",
            "Two.",
        ]
        assert third["store"] is True


async def test_kept_responses_can_be_fetched_listed_and_deleted() -> None:
    async with running({"p": ScriptedProvider(provider.completion("One."))}) as world:
        client = world.connect()
        made = await said(client, {"input": "first"})
        path = f"{RESPONSES}/{made['id']}"
        fetched = await client.call(path, method="GET")
        assert fetched.json == made
        items = await client.call(f"{path}/input_items", method="GET")
        (item,) = cast("list[Json]", items.json["data"])
        assert item["role"] == "user"
        cancelled = await client.call(f"{path}/cancel")
        assert (cancelled.status, cancelled.error["code"]) == (400, "invalid_request")
        deleted = await client.call(path, method="DELETE")
        assert deleted.json == {"id": made["id"], "object": "response", "deleted": True}
        for method, each in (("GET", path), ("DELETE", path), ("GET", f"{path}/input_items")):
            gone = await client.call(each, method=method)
            assert (gone.status, gone.error["code"]) == (404, "not_found")
        more = {"model": "gpt", "input": "x", "previous_response_id": made["id"]}
        lost = await client.call(RESPONSES, more)
        assert (lost.status, lost.error["param"]) == (404, "previous_response_id")


async def test_what_is_not_to_be_kept_is_not() -> None:
    async with running({"p": ScriptedProvider(provider.completion("One."))}) as world:
        client = world.connect()
        made = await said(client, {"input": "first", "store": False})
        gone = await client.call(f"{RESPONSES}/{made['id']}", method="GET")
        assert gone.status == 404


async def test_a_streamed_response_is_kept_before_its_end_is_told() -> None:
    async with running({"p": ScriptedProvider(provider.stream("Hel", "lo"))}) as world:
        client = world.connect()
        ask = {"model": "gpt", "input": "first", "stream": True}
        answer = await client.call(RESPONSES, ask)
        completed = json.loads(answer.body.rstrip().rpartition(b"data: ")[2])["response"]
        fetched = await client.call(f"{RESPONSES}/{completed['id']}", method="GET")
        assert fetched.json == completed


async def test_a_running_response_can_be_cancelled(autojump_clock: MockClock) -> None:
    upstream = ScriptedProvider([STREAM_HEAD, delta("x" * 40), 600.0])
    async with running({"p": upstream}) as world:
        client = world.connect()
        await client.send(RESPONSES, {"model": "gpt", "input": "first", "stream": True})
        assert isinstance(await client.event(), h11.Response)
        body = b""
        while b"response.created" not in body:
            event = await client.event()
            assert isinstance(event, h11.Data)
            body += event.data
        line = next(part for part in body.split(b"\n") if part.startswith(b"data: "))
        made = json.loads(line[6:])["response"]["id"]
        cancelled = await world.connect().call(f"{RESPONSES}/{made}/cancel")
        assert (cancelled.status, cancelled.json["status"]) == (200, "cancelled")
        kept = await world.connect().call(f"{RESPONSES}/{made}", method="GET")
        assert kept.json == cancelled.json
        while isinstance(event := await client.event(), h11.Data):
            body += event.data
        assert b"response.failed" in body
        assert b"The response was cancelled." in body
        assert trio.current_time() < 1
        (event_,) = await world.flushed()
        assert event_.status == EventStatus.CANCELLED
        assert event_.output_tokens == 10
        await world.assert_books_are_clean()


# -- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "member"),
    [
        (f"{RESPONSES}/input_tokens", {"model": "gpt", "input": "x" * 400}, "input_tokens"),
        (
            f"{MESSAGES}/count_tokens",
            {"model": "gpt", "messages": [{"role": "user", "content": "x" * 400}]},
            "input_tokens",
        ),
        (
            "/v1beta/models/gpt:countTokens",
            {"contents": [{"parts": [{"text": "x" * 400}]}]},
            "totalTokens",
        ),
    ],
)
async def test_a_count_is_estimated_where_the_provider_has_none(
    path: str, body: Json, member: str
) -> None:
    upstream = ScriptedProvider(provider.completion())
    async with running({"p": upstream}, credit=0) as world:
        answer = await world.connect().call(path, body)
        assert answer.status == 200, answer.body
        assert answer.headers["x-farebox-estimated"] == "true"
        assert 100 <= cast("int", answer.json[member]) <= 140
        assert upstream.calls == 0
        await world.assert_books_are_clean()


async def test_a_count_is_the_provider_s_own_where_it_has_one() -> None:
    upstream = ScriptedProvider(reply(200, {"input_tokens": 4711}))
    models = [model_of("gpt", speaking("a", "anthropic"))]
    async with running({"a": upstream}, models=models) as world:
        ask = {"model": "gpt", "messages": HELLO}
        answer = await world.connect().call(f"{MESSAGES}/count_tokens", ask)
        assert answer.json == {"input_tokens": 4711}
        assert "x-farebox-estimated" not in answer.headers
        answer = await world.connect().call(
            f"{RESPONSES}/input_tokens", {"model": "gpt", "input": "Hi"}
        )
        assert answer.json["input_tokens"] == 4711


async def test_counts_are_limited_as_requests_are() -> None:
    limits = (LimitRef(f"account:{ACCOUNT}", "rpm", 1),)
    async with running({"p": ScriptedProvider(provider.completion())}, limits=limits) as world:
        client = world.connect()
        ask = {"model": "gpt", "messages": HELLO}
        assert (await client.call(f"{MESSAGES}/count_tokens", ask)).status == 200
        assert (await client.call(f"{MESSAGES}/count_tokens", ask)).status == 429


# -- limits ---------------------------------------------------------------------------------------

_OPENAI_LIMITS = [f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")]
_ANTHROPIC_LIMITS = [
    f"anthropic-ratelimit-requests-{what}" for what in ("limit", "remaining", "reset")
]


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        (CHAT, {"model": "gpt", "messages": HELLO}, _OPENAI_LIMITS),
        (RESPONSES, {"model": "gpt", "input": "Hi"}, _OPENAI_LIMITS),
        (f"{RESPONSES}/input_tokens", {"model": "gpt", "input": "Hi"}, _OPENAI_LIMITS),
        (MESSAGES, {"model": "gpt", "messages": HELLO, "max_tokens": 9}, _ANTHROPIC_LIMITS),
        (f"{MESSAGES}/count_tokens", {"model": "gpt", "messages": HELLO}, _ANTHROPIC_LIMITS),
        (GEMINI, CONTENTS, []),
        ("/v1beta/models/gpt:countTokens", CONTENTS, []),
    ],
)
async def test_limits_are_told_in_the_words_of_the_surface(
    path: str, body: Json, told: list[str]
) -> None:
    limits = (LimitRef(f"account:{ACCOUNT}", "rpm", 2),)
    async with running({"p": ScriptedProvider(provider.completion())}, limits=limits) as world:
        client = world.connect()
        await client.call(path, body)
        served = await client.call(path, body)
        refused = await client.call(path, body)
        assert (served.status, refused.status) == (200, 429)
        assert int(refused.headers["retry-after"]) >= 1
        for answer in (served, refused):
            assert [name for name in answer.headers if "ratelimit" in name] == told
            assert [answer.headers[name] for name in told[:2]] == ["2", "0"][: len(told)]


# -- dialects -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers", "dialect"),
    [
        ("/v1/models", {}, "openai"),
        ("/v1/models", {"anthropic-version": "2023-06-01"}, "anthropic"),
        ("/v1/models", {"x-goog-api-client": "google-genai-sdk/3.4.0"}, "gemini"),
        ("/v1/models?key=sk_farebox_test", {}, "gemini"),
        ("/v1beta/models", {}, "gemini"),
        ("/anthropic/v1/models", {}, "anthropic"),
        ("/gemini/v1/models", {}, "gemini"),
    ],
)
async def test_models_are_listed_in_the_caller_s_dialect(
    path: str, headers: dict[str, str], dialect: str
) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        answer = await world.connect().call(path, method="GET", headers=headers)
        assert answer.status == 200, answer.body
        if dialect == "gemini":
            names = [entry["name"] for entry in cast("list[Json]", answer.json["models"])]
            assert names[0] == "models/gpt"
            assert any("farebox" in str(name) for name in names)
        else:
            ids = [entry["id"] for entry in cast("list[Json]", answer.json["data"])]
            assert ids == ["gpt", "farebox/auto", "farebox/balanced", "farebox/cost-saver"]
            assert ("has_more" in answer.json) == (dialect == "anthropic")


async def test_a_restricted_key_sees_what_it_may_use() -> None:
    principal = principal_of(models=frozenset({"other"}))
    async with running(
        {"p": ScriptedProvider(provider.completion())}, principal=principal
    ) as world:
        answer = await world.connect().call("/v1/models", method="GET")
        assert answer.json["data"] == []
        assert (await world.connect().call("/v1/models/gpt", method="GET")).status == 404


def code_of(answer: Answer, dialect: str) -> object:
    """The stable code of an error in each envelope."""
    error = answer.error
    if dialect == "anthropic":
        return cast("Json", error["details"])["error_code"]
    if dialect == "gemini":
        return cast("list[Json]", error["details"])[0]["reason"]
    return error["code"]


@pytest.mark.parametrize(
    ("path", "body", "dialect"),
    [
        (CHAT, {"model": "no", "messages": HELLO}, "openai"),
        (RESPONSES, {"model": "no", "input": "Hi"}, "openai"),
        (MESSAGES, {"model": "no", "messages": HELLO, "max_tokens": 9}, "anthropic"),
        (
            "/anthropic/v1/messages",
            {"model": "no", "messages": HELLO, "max_tokens": 9},
            "anthropic",
        ),
        ("/v1beta/models/no:generateContent", CONTENTS, "gemini"),
        ("/v1/models/no:generateContent", CONTENTS, "gemini"),
        ("/gemini/v1beta/models/no:streamGenerateContent", CONTENTS, "gemini"),
    ],
)
async def test_each_surface_refuses_in_its_own_envelope(
    path: str, body: Json, dialect: str
) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        unknown = await world.connect().call(path, body)
        assert (unknown.status, code_of(unknown, dialect)) == (404, "model_not_available")
        broken = await world.connect().call(path, b"{")
        assert (broken.status, code_of(broken, dialect)) == (400, "invalid_request")
        keyless = await world.connect().call(path, body, key="wrong")
        assert (keyless.status, code_of(keyless, dialect)) == (401, "invalid_api_key")
        packed = await world.connect().call(path, body, headers={"content-encoding": "gzip"})
        assert (packed.status, code_of(packed, dialect)) == (415, "invalid_request")


@pytest.mark.parametrize(
    ("path", "headers", "dialect"),
    [
        ("/v1/nothing", {}, "openai"),
        ("/anthropic/v1/nothing", {}, "anthropic"),
        ("/v1/messages/batches", {"anthropic-version": "2023-06-01"}, "anthropic"),
        ("/v1beta/models/gpt:doNothing", {}, "gemini"),
        ("/v1beta/tunedModels/x:generateContent", {}, "gemini"),
    ],
)
async def test_unknown_paths_are_refused_in_the_envelope_of_the_caller(
    path: str, headers: dict[str, str], dialect: str
) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        answer = await world.connect().call(path, {"x": 1}, headers=headers)
        assert (answer.status, code_of(answer, dialect)) == (404, "not_found")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"model": "gpt", "messages": HELLO}),
        (RESPONSES, {"model": "gpt", "input": "Hi"}),
        (MESSAGES, {"model": "gpt", "messages": HELLO, "max_tokens": 50}),
        (GEMINI, CONTENTS),
    ],
)
async def test_edge_92_an_exhausted_balance_is_never_retried(path: str, body: Json) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}, credit=1) as world:
        answer = await world.connect().call(path, body)
        assert answer.status == 402
        assert answer.headers["x-should-retry"] == "false"
        assert answer.error["type"] == "insufficient_prepaid_balance"
        assert answer.error["required_usd"]


# -- embeddings -----------------------------------------------------------------------------------


async def test_embeddings_reach_both_protocols_from_both_surfaces() -> None:
    google = ScriptedProvider(reply(200, {"embeddings": [{"values": [0.5, 0.25]}]}))
    openai = ScriptedProvider(
        reply(
            200,
            {
                "object": "list",
                "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
                "model": "m",
                "usage": {"prompt_tokens": 3, "total_tokens": 3},
            },
        )
    )
    models = [
        model_of("at-google", speaking("g", "gemini"), kind="embedding"),
        model_of("at-openai", speaking("p", "openai"), kind="embedding"),
        model_of("at-anthropic", speaking("a", "anthropic"), kind="embedding"),
    ]
    never = ScriptedProvider(provider.completion())
    hosts = {"g": google, "p": openai, "a": never}
    async with running(hosts, models=models) as world:
        client = world.connect()
        for model in ("at-google", "at-openai"):
            ask = {"model": model, "input": "Hi", "encoding_format": "float"}
            answer = await client.call("/v1/embeddings", ask)
            (entry,) = cast("list[Json]", answer.json["data"])
            assert entry["embedding"] == [0.5, 0.25]
            one = {"content": {"parts": [{"text": "Hi"}]}}
            path = f"/v1beta/models/{model}:batchEmbedContents"
            answer = await client.call(path, {"requests": [{"model": model, **one}]})
            assert answer.json["embeddings"] == [{"values": [0.5, 0.25]}]
        refused = await client.call("/v1/embeddings", {"model": "at-anthropic", "input": "Hi"})
        assert (refused.status, refused.error["param"]) == (400, "model")
        assert never.calls == 0
        assert len(await world.flushed()) == 4
        await world.assert_books_are_clean()


# -- losses, and who is tried ----------------------------------------------------------------------


async def test_what_a_provider_cannot_take_is_named() -> None:
    upstream = ScriptedProvider(provider.completion())
    async with running({"p": upstream}) as world:
        ask = {"model": "gpt", "messages": HELLO, "max_tokens": 50, "top_k": 5}
        answer = await world.connect().call(MESSAGES, ask)
        assert answer.headers["x-farebox-dropped"] == "top_k"
        assert "top_k" not in upstream.bodies[0]


async def test_an_upstream_that_cannot_express_the_request_is_passed_over() -> None:
    other = ScriptedProvider(provider.completion())
    never = ScriptedProvider(provider.completion())
    models = [model_of("gpt", speaking("a", "anthropic"), speaking("p", "openai"))]
    async with running({"a": never, "p": other}, models=models) as world:
        ask = {"model": "gpt", "messages": HELLO, "logprobs": True}
        answer = await world.connect().call(CHAT, ask)
        assert answer.status == 200
        assert (never.calls, other.calls) == (0, 1)
        await world.assert_books_are_clean()


async def test_where_none_can_express_it_the_field_is_named() -> None:
    never = ScriptedProvider(provider.completion())
    models = [model_of("gpt", speaking("a", "anthropic"))]
    async with running({"a": never}, models=models) as world:
        answer = await world.connect().call(
            CHAT, {"model": "gpt", "messages": HELLO, "logprobs": True}
        )
        assert (answer.status, answer.error["param"]) == (400, "logprobs")
        assert never.calls == 0
        assert await world.flushed() == []
        await world.assert_books_are_clean()


async def test_signed_reasoning_stays_with_its_provider() -> None:
    first = ScriptedProvider(provider.completion())
    signer = ScriptedProvider(
        reply(
            200,
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "upstream-model",
                "content": [{"type": "text", "text": "Hello"}],
                "stop_reason": "end_turn",
                "usage": {"input_tokens": 10, "output_tokens": 5},
            },
        )
    )
    models = [model_of("gpt", speaking("p", "openai"), speaking("a", "anthropic"))]
    sealed = Envelopes(SECRET, str(ACCOUNT)).seal(Blob("a", "upstream-model", "thinking", "sig"))
    history = [
        {"role": "user", "content": "Hi"},
        {"type": "reasoning", "summary": [], "encrypted_content": sealed},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Again"},
    ]
    async with running({"p": first, "a": signer}, models=models) as world:
        answer = await world.connect().call(RESPONSES, {"model": "gpt", "input": history})
        assert answer.status == 200, answer.body
        assert (first.calls, signer.calls) == (0, 1)
        assert '"sig"' in json.dumps(signer.bodies[0])


async def test_only_anthropic_s_own_headers_reach_anthropic() -> None:
    upstream = ScriptedProvider(
        reply(413, {"type": "error", "error": {"type": "request_too_large"}})
    )
    models = [model_of("gpt", speaking("a", "anthropic"))]
    async with running({"a": upstream}, models=models) as world:
        headers = {
            "anthropic-version": "2026-10-21",
            "anthropic-beta": "effort-2025-11-24",
            "x-app": "cli",
            "cookie": "secret=1",
        }
        ask = {"model": "gpt", "messages": HELLO, "max_tokens": 50}
        answer = await world.connect().call(MESSAGES, ask, headers=headers)
        assert answer.status == 413
        head = upstream.heads[0]
        assert "anthropic-version: 2026-10-21" in head
        assert "anthropic-beta: effort-2025-11-24" in head
        assert "secret" not in head
        assert "x-app" not in head
        await world.connect().call(CHAT, {"model": "gpt", "messages": HELLO}, headers=headers)
        assert "effort-2025-11-24" not in upstream.heads[1]


async def test_usage_of_the_serving_protocol_is_charged() -> None:
    """10 uncached, 20 read from the cache, 30 written, 5 out: 60,000 n$ of cost, and 10 %."""
    body = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "upstream-model",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "usage": {
            "input_tokens": 10,
            "cache_read_input_tokens": 20,
            "cache_creation_input_tokens": 30,
            "output_tokens": 5,
        },
    }
    models = [model_of("gpt", speaking("a", "anthropic"))]
    async with running({"a": ScriptedProvider(reply(200, body))}, models=models) as world:
        answer = await world.connect().call(CHAT, {"model": "gpt", "messages": HELLO})
        usage = cast("Json", answer.json["usage"])
        assert usage["prompt_tokens"] == 60
        (event,) = await world.flushed()
        assert event.cost == 10_000 + 10_000 + 30_000 + 10_000
        assert event.charge == 66_000


async def test_warming_a_cache_is_an_answer_and_is_charged() -> None:
    """There is no output, but what was written to the cache costs: 40 at 1, + 10 %."""
    body = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "upstream-model",
        "content": [],
        "stop_reason": "max_tokens",
        "usage": {"input_tokens": 10, "cache_creation_input_tokens": 30, "output_tokens": 0},
    }
    models = [model_of("gpt", speaking("a", "anthropic"))]
    async with running({"a": ScriptedProvider(reply(200, body))}, models=models) as world:
        ask = {"model": "gpt", "messages": HELLO, "max_tokens": 0}
        answer = await world.connect().call(MESSAGES, ask)
        assert answer.json == body | {"model": "gpt"}
        assert "x-farebox-estimated" not in answer.headers
        (event,) = await world.flushed()
        assert event.charge == 44_000


async def test_a_stream_without_its_last_word_is_no_answer(autojump_clock: MockClock) -> None:
    """The surface's grammar never ends well where the upstream's did not."""
    script = [STREAM_HEAD, delta("Hel"), chunk("nonsense {")]
    async with running({"p": ScriptedProvider(script)}) as world:
        ask = {"model": "gpt", "messages": HELLO, "max_tokens": 50, "stream": True}
        answer = await world.connect().call(MESSAGES, ask)
        assert b"event: error" in answer.body
        assert b"message_stop" not in answer.body

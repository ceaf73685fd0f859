"""Cursor's three kinds of body at `/v1/chat/completions`, each answered as a chat completion."""

from __future__ import annotations

import json

import httpx2
import pytest

from tests.fakes.process import GatewayProcess
from tests.sdk.conftest import Named
from tests.sdk.shapes import ANSWER, CLOCK, QUESTION, WEATHER

Json = dict[str, object]

RESULT = "rain, 7 degrees"


def post(gateway: GatewayProcess, key: str, body: Json) -> httpx2.Response:
    answer = httpx2.post(
        f"{gateway.base_url}/v1/chat/completions",
        headers={"authorization": f"Bearer {key}"},
        json=body,
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    return answer


def deltas(answer: httpx2.Response) -> list[Json]:
    """The deltas of a chat stream that ended well."""
    *events, done = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


@pytest.fixture
def agent_body(named: Named) -> Json:
    """What agent mode sends: a Responses body."""
    return {
        "model": named("sandbox-parallel-tools"),
        "input": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        ],
        "tools": [
            {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": False},
            {"type": "custom", "name": "ApplyPatch", "description": "Applies a patch."},
        ],
        "reasoning": {"effort": "medium", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "store": False,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_edge_75_a_responses_body_is_answered_as_chat(
    gateway: GatewayProcess, key: str, agent_body: Json
) -> None:
    said = deltas(post(gateway, key, agent_body))
    assert said[0]["role"] == "assistant"
    fragments = [call for delta in said for call in delta.get("tool_calls") or ()]  # type: ignore[attr-defined]
    assert {fragment["index"] for fragment in fragments} == {0, 1}
    names = [
        (fragment.get("function") or fragment.get("custom") or {}).get("name")
        for fragment in fragments
    ]
    assert [name for name in names if name] == ["get_weather", "ApplyPatch"]


def test_edge_75_with_results_in_responses_items(
    gateway: GatewayProcess, key: str, agent_body: Json
) -> None:
    call: Json = {
        "type": "function_call",
        "call_id": "call_1",
        "name": "get_weather",
        "arguments": '{"city":"Oslo","days":1}',
    }
    result: Json = {"type": "function_call_output", "call_id": "call_1", "output": RESULT}
    items = agent_body["input"]
    assert isinstance(items, list)
    del agent_body["stream"], agent_body["stream_options"]
    answer = post(gateway, key, agent_body | {"input": [*items, call, result]})
    found = answer.json()
    assert found["object"] == "chat.completion"
    assert RESULT in found["choices"][0]["message"]["content"]


def test_edge_76_anthropic_blocks_in_chat_messages(
    gateway: GatewayProcess, key: str, named: Named
) -> None:
    answer = post(
        gateway,
        key,
        {
            "model": named("sandbox-tools"),
            "messages": [
                {"role": "user", "content": QUESTION},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "text", "text": "I look."},
                        {
                            "type": "tool_use",
                            "id": "toolu_1",
                            "name": "get_weather",
                            "input": {"city": "Oslo", "days": 1},
                        },
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "toolu_1", "content": RESULT}
                    ],
                },
            ],
            "tools": [{"name": "get_weather", "description": "Weather", "input_schema": WEATHER}],
        },
    )
    assert RESULT in answer.json()["choices"][0]["message"]["content"]


def test_edge_76_flat_and_bare_tools_beside_ordinary_ones(
    gateway: GatewayProcess, key: str, named: Named
) -> None:
    answer = post(
        gateway,
        key,
        {
            "model": named("sandbox-parallel-tools"),
            "messages": [{"role": "user", "content": QUESTION}],
            "tools": [
                {"name": "get_weather", "description": "Weather", "input_schema": WEATHER},
                {"type": "function", "name": "get_time", "parameters": CLOCK},
                {"type": "function", "function": {"name": "now", "parameters": CLOCK}},
            ],
        },
    )
    calls = answer.json()["choices"][0]["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["get_weather", "get_time", "now"]


def test_an_ordinary_chat_body_stays_one(gateway: GatewayProcess, key: str, named: Named) -> None:
    answer = post(
        gateway,
        key,
        {"model": named("sandbox"), "messages": [{"role": "user", "content": QUESTION}]},
    )
    assert answer.json()["choices"][0]["message"]["content"].startswith(ANSWER)

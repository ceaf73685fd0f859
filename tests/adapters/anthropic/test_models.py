"""The list of models as Anthropic's SDK pages through it, and what names tell of models."""

from __future__ import annotations

import json

import anthropic
import httpx2
import pytest

from adapters.anthropic.models import ModelList
from adapters.anthropic.traits import traits_of
from adapters.catalogue import Model, Provider, Upstream
from adapters.codec import Listed
from adapters.errors import InvalidRequest

CLAUDE = Provider("anthropic", "anthropic", "https://api.anthropic.com")


def listed(name: str) -> Listed:
    model = Model(
        name,
        ((Upstream(CLAUDE, "claude-opus-4-8", None),),),
        context_window=200_000,
        max_output_tokens=64_000,
        created=1_700_000_000,
    )
    return Listed(name, model)


MODELS = [listed(f"m{number}") for number in range(25)]


def page(query: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(ModelList().page(MODELS, query))
    return found


def ids(found: dict[str, object]) -> list[str]:
    data = found["data"]
    assert isinstance(data, list)
    return [each["id"] for each in data]


def test_pages() -> None:
    first = page("")
    assert ids(first) == [f"m{number}" for number in range(20)]
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, "m0", "m19")
    rest = page("after_id=m19&limit=1000")
    assert ids(rest) == [f"m{number}" for number in range(20, 25)]
    assert rest["has_more"] is False
    before = page("before_id=m3&limit=2")
    assert ids(before) == ["m1", "m2"]
    assert before["has_more"] is True
    assert page("after_id=m24") == {
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("after_id=nobody", "after_id"),
        ("before_id=nobody", "before_id"),
        ("before_id=m1&after_id=m1", "before_id"),
    ],
)
def test_pages_that_are_none(query: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        page(query)
    assert caught.value.param == param


def test_the_sdk_reads_every_page() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        query = request.url.query.decode()
        return httpx2.Response(200, json=page(query))

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    with anthropic.Anthropic(api_key="k", http_client=http) as client:
        models = list(client.models.list(limit=7))
    assert [each.id for each in models] == [each.id for each in MODELS]
    assert models[0].created_at.year == 2023
    assert models[0].lifecycle == "active"
    assert models[0].max_input_tokens == 200_000
    assert models[0].capabilities is not None
    assert models[0].capabilities.thinking.types.adaptive.supported


def test_an_entry() -> None:
    entry = json.loads(ModelList().entry(MODELS[3]))
    assert (entry["type"], entry["id"], entry["display_name"]) == ("model", "m3", "m3")
    assert entry["created_at"] == "2023-11-14T22:13:20Z"
    assert entry["pricing"] is None


@pytest.mark.parametrize(
    ("name", "thinking", "sampling", "prefill", "system_turns", "structured"),
    [
        ("claude-3-5-sonnet-20241022", "", True, True, False, False),
        ("claude-3-opus-20240229", "", True, True, False, False),
        ("claude-instant-1.2", "", True, True, False, False),
        ("claude-3-7-sonnet-latest", "manual", True, True, False, False),
        ("claude-sonnet-4-20250514", "manual", True, True, False, False),
        ("claude-opus-4@20250514", "manual", True, True, False, False),
        ("anthropic.claude-sonnet-4-5-20250929-v1:0", "manual", True, True, False, True),
        ("anthropic/claude-sonnet-4.5", "manual", True, True, False, True),
        ("claude-opus-4-6", "adaptive", True, False, False, True),
        ("claude-opus-4-7", "adaptive", False, False, False, True),
        ("claude-opus-4-8", "adaptive", False, False, True, True),
        ("claude-sonnet-5", "adaptive", False, False, True, True),
        ("claude-opus-10-1", "adaptive", False, False, True, True),
        ("claude-next", "adaptive", False, False, True, True),
        ("deepseek-chat", "manual", True, True, False, True),
    ],
)
def test_what_names_tell(
    name: str, thinking: str, sampling: bool, prefill: bool, system_turns: bool, structured: bool
) -> None:
    traits = traits_of(name)
    found = (
        traits.thinking,
        traits.sampling,
        traits.prefill,
        traits.system_turns,
        traits.structured,
    )
    assert found == (thinking, sampling, prefill, system_turns, structured)


def test_some_always_think() -> None:
    assert traits_of("claude-mythos-1").always_thinks
    assert not traits_of("claude-opus-4-8").always_thinks

"""The list of models, as Google's SDKs page through it."""

from __future__ import annotations

import json

import pytest

from adapters.catalogue import Model
from adapters.codec import Listed
from adapters.errors import InvalidRequest
from adapters.gemini.models import ModelList

MODELS = [
    Listed(name, Model(name, (), kind=kind, context_window=window, max_output_tokens=8))
    for name, kind, window in (
        ("gpt-4o", "chat", 128),
        ("farebox/auto", "chat", 0),
        ("embed", "embedding", 1),
    )
]
LIST = ModelList()


def test_an_entry() -> None:
    assert json.loads(LIST.entry(MODELS[0])) == {
        "name": "models/gpt-4o",
        "displayName": "gpt-4o",
        "supportedGenerationMethods": ["generateContent", "streamGenerateContent", "countTokens"],
        "inputTokenLimit": 128,
        "outputTokenLimit": 8,
    }
    assert json.loads(LIST.entry(MODELS[1]))["name"] == "models/farebox/auto"
    assert "embedContent" in json.loads(LIST.entry(MODELS[2]))["supportedGenerationMethods"]


def test_every_model_is_on_exactly_one_page() -> None:
    names, query = [], "pageSize=2"
    for _ in range(5):
        page = json.loads(LIST.page(MODELS, query))
        names += [each["displayName"] for each in page["models"]]
        if "nextPageToken" not in page:
            break
        query = f"pageSize=2&pageToken={page['nextPageToken']}"
    assert names == [each.id for each in MODELS]


def test_one_page_is_enough_without_asking() -> None:
    assert len(json.loads(LIST.page(MODELS, "key=x"))["models"]) == 3


@pytest.mark.parametrize("query", ["pageSize=x", "pageSize=-1", "pageToken=zzzz", "pageToken=%ff"])
def test_odd_pages_are_refused(query: str) -> None:
    with pytest.raises(InvalidRequest):
        LIST.page(MODELS, query)

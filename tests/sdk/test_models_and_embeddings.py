"""The list of models in each SDK's dialect, and embeddings from either side to either provider."""

from __future__ import annotations

import math

import pytest
from anthropic import Anthropic
from google.genai import Client, types
from openai import OpenAI

from tests.fakes.process import SPEAKERS

EMBEDDING = [f"{each.name}-sandbox-embedding" for each in SPEAKERS if each.embeds]
EVERYONE = {f"{each.name}-sandbox" for each in SPEAKERS}


def test_openai_lists_models_with_prices(openai_client: OpenAI) -> None:
    models = {model.id: model for model in openai_client.models.list()}
    assert models.keys() >= EVERYONE
    assert models["gemini-sandbox"].model_extra is not None
    assert models["gemini-sandbox"].model_extra["pricing"]["input"]
    assert openai_client.models.retrieve("gemini-sandbox").id == "gemini-sandbox"


def test_anthropic_lists_models_page_by_page(anthropic_client: Anthropic) -> None:
    models = list(anthropic_client.models.list(limit=50))
    assert {model.id for model in models} >= EVERYONE
    assert all(model.type == "model" and model.display_name for model in models)
    assert anthropic_client.models.retrieve("chat-sandbox").id == "chat-sandbox"


def test_gemini_lists_models_page_by_page(gemini_client: Client) -> None:
    models = list(gemini_client.models.list(config={"page_size": 50}))
    names = {(model.name or "").removeprefix("models/") for model in models}
    assert names >= EVERYONE
    assert gemini_client.models.get(model="chat-sandbox").name == "models/chat-sandbox"


@pytest.mark.parametrize("model", EMBEDDING)
def test_openai_embeds(openai_client: OpenAI, model: str) -> None:
    answer = openai_client.embeddings.create(model=model, input=["one", "two"])
    assert [entry.index for entry in answer.data] == [0, 1]
    assert answer.data[0].embedding != answer.data[1].embedding
    assert math.isclose(sum(x * x for x in answer.data[0].embedding), 1, rel_tol=1e-3)
    assert answer.usage.total_tokens > 0
    plain = openai_client.embeddings.create(model=model, input="one", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(answer.data[0].embedding, abs=1e-6)
    small = openai_client.embeddings.create(model=model, input="one", dimensions=64)
    assert len(small.data[0].embedding) == 64


@pytest.mark.parametrize("model", EMBEDDING)
def test_gemini_embeds(gemini_client: Client, model: str) -> None:
    contents = [types.Content(parts=[types.Part(text=text)]) for text in ("one", "two")]
    answer = gemini_client.models.embed_content(model=model, contents=[*contents])
    assert answer.embeddings is not None
    first, second = (entry.values for entry in answer.embeddings)
    assert first
    assert first != second
    small = gemini_client.models.embed_content(
        model=model, contents="one", config={"output_dimensionality": 64}
    )
    assert small.embeddings is not None
    assert len(small.embeddings[0].values or []) == 64

"""Google's paths, whose verb stands behind the last colon."""

from __future__ import annotations

import pytest

from adapters.codec import Operation
from adapters.errors import MethodNotAllowed
from adapters.gemini import routes


@pytest.mark.parametrize(
    ("method", "path", "operation", "model"),
    [
        ("POST", "/v1beta/models/gemini-x:generateContent", routes.GENERATE, "gemini-x"),
        ("POST", "/v1/models/gemini-x:generateContent", routes.GENERATE, "gemini-x"),
        ("POST", "/v1alpha/models/x:streamGenerateContent", routes.STREAM, "x"),
        ("POST", "/v1/models/x:countTokens", routes.COUNT, "x"),
        ("POST", "/v1/models/openai/gpt-4o:countTokens", routes.COUNT, "openai/gpt-4o"),
        ("POST", "/v1/models/openai%2Fgpt-4o:countTokens", routes.COUNT, "openai/gpt-4o"),
        (
            "POST",
            "/v1/models/ollama/llama3:8b:generateContent",
            routes.GENERATE,
            "ollama/llama3:8b",
        ),
        ("POST", "/v1/models/x%3AgenerateContent", routes.GENERATE, "x"),
        ("POST", "/v1/models/x:embedContent", routes.EMBED, "x"),
        ("POST", "/v1/models/x:batchEmbedContents", routes.BATCH_EMBED, "x"),
        ("GET", "/v1beta/models", routes.MODELS, ""),
        ("GET", "/v1/models/openai/gpt-4o", routes.MODEL, "openai/gpt-4o"),
        ("GET", "/v1/models/llama3:8b", routes.MODEL, "llama3:8b"),
    ],
)
def test_paths(method: str, path: str, operation: Operation, model: str) -> None:
    assert routes.find(method, path) == (operation, model)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1beta/tunedModels/x:generateContent"),
        ("POST", "/v1/publishers/google/models/x:generateContent"),
        ("POST", "/v1/models/x:predict"),
        ("POST", "/v1/models/:generateContent"),
        ("POST", "/v2/models/x:generateContent"),
        ("GET", "/v1beta/files"),
        ("GET", "/"),
    ],
)
def test_what_is_not_here(method: str, path: str) -> None:
    assert routes.find(method, path) is None


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models/x:generateContent"), ("POST", "/v1/models"), ("DELETE", "/v1/models/x")],
)
def test_other_methods(method: str, path: str) -> None:
    with pytest.raises(MethodNotAllowed):
        routes.find(method, path)


def test_numbers_are_those_of_the_books() -> None:
    assert {op.name: op.number for op in routes.OPERATIONS} == {
        "generateContent": 30,
        "streamGenerateContent": 31,
        "countTokens": 32,
        "embedContent": 33,
        "batchEmbedContents": 34,
        "models": 35,
        "model": 36,
    }

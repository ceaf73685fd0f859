"""Which path is which operation, and who speaks for a provider."""

from __future__ import annotations

import pytest

from adapters import registry
from adapters.errors import InvalidRequest, MethodNotAllowed, NotFound
from adapters.openai.chat_upstream import ChatUpstream
from adapters.openai.embeddings import EmbeddingsUpstream


@pytest.mark.parametrize(
    ("method", "path", "name", "model"),
    [
        ("POST", "/v1/chat/completions", "chat.completions", ""),
        ("POST", "/v1/chat/completions/", "chat.completions", ""),
        ("POST", "/v1/embeddings", "embeddings", ""),
        ("GET", "/v1/models", "models", ""),
        ("GET", "/v1/models/", "models", ""),
        ("GET", "/v1/models/gpt", "model", "gpt"),
        ("GET", "/v1/models/openai/gpt", "model", "openai/gpt"),
        ("GET", "/v1/models/openai%2Fgpt%20x", "model", "openai/gpt x"),
    ],
)
def test_paths(method: str, path: str, name: str, model: str) -> None:
    match = registry.find(method, path)
    assert (match.operation.name, match.id) == (name, model)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v2/models", "/v1/chat", "/v1/modelsx", "//"])
def test_paths_that_nobody_serves(path: str) -> None:
    with pytest.raises(NotFound):
        registry.find("GET", path)


@pytest.mark.parametrize(
    ("method", "path", "served"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/gpt", "GET"),
    ],
)
def test_another_method_is_named(method: str, path: str, served: str) -> None:
    with pytest.raises(MethodNotAllowed, match=f"served for {served}, not {method}"):
        registry.find(method, path)


def test_numbers_in_the_books_never_change() -> None:
    assert registry.ENDPOINTS == {
        1: ("openai", "chat.completions"),
        2: ("openai", "embeddings"),
        3: ("openai", "models"),
        4: ("openai", "model"),
    }


def test_only_models_are_asked_through_a_codec() -> None:
    assert registry.find("POST", "/v1/chat/completions").operation.codec is not None
    assert registry.find("GET", "/v1/models").operation.codec is None


def test_who_speaks_for_a_provider() -> None:
    assert isinstance(registry.upstream_codec("openai", "chat"), ChatUpstream)
    assert isinstance(registry.upstream_codec("openai", "embedding"), EmbeddingsUpstream)
    with pytest.raises(InvalidRequest) as refused:
        registry.upstream_codec("openai", "video")
    assert refused.value.param == "model"

"""Which path is which operation, and who speaks for a provider."""

from __future__ import annotations

import pytest

from adapters import registry
from adapters.anthropic.refusal import AnthropicRefusals
from adapters.anthropic.upstream import MessagesUpstream
from adapters.errors import MethodNotAllowed, NotFound
from adapters.gemini.refusal import GeminiRefusals
from adapters.openai.chat_upstream import ChatUpstream
from adapters.openai.refusal import OpenAIRefusals


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
        ("GET", "/v1/usage", "usage", ""),
        ("GET", "/v1/usage/0191", "usage.receipt", "0191"),
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
    with pytest.raises(MethodNotAllowed, match=f"served for {served}, not {method}") as caught:
        registry.find(method, path)
    assert caught.value.headers == [("allow", served)]


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("/chat/completions", "add /v1 to the base URL"),
        ("/responses", "add /v1 to the base URL"),
        ("/v1/v1/chat/completions", "leave it out of the base URL"),
        ("/anthropic/v1/v1/messages", "leave it out of the base URL"),
        ("/gemini/v1beta/v1beta/models/m:generateContent", "leave it out of the base URL"),
    ],
)
def test_a_wrong_base_url_is_told(path: str, advice: str) -> None:
    with pytest.raises(NotFound, match=advice):
        registry.find("POST", path)


@pytest.mark.parametrize(
    ("path", "refusals"),
    [
        ("/v1/messages", AnthropicRefusals),
        ("/anthropic/nothing", AnthropicRefusals),
        ("/v1beta/nothing", GeminiRefusals),
        ("/v1/nothing", OpenAIRefusals),
    ],
)
def test_what_is_no_operation_is_refused_in_the_words_of_its_path(
    path: str, refusals: type[object]
) -> None:
    assert isinstance(registry.refusals(path, "", {}), refusals)


def test_numbers_in_the_books_never_change() -> None:
    assert registry.ENDPOINTS == {
        1: ("openai", "chat.completions"),
        2: ("openai", "embeddings"),
        3: ("openai", "models"),
        4: ("openai", "model"),
        5: ("openai", "responses"),
        6: ("openai", "responses.input_tokens"),
        7: ("openai", "response"),
        8: ("openai", "response.delete"),
        9: ("openai", "response.cancel"),
        10: ("openai", "response.input_items"),
        11: ("openai", "usage"),
        12: ("openai", "usage.receipt"),
        20: ("anthropic", "messages"),
        21: ("anthropic", "messages.count_tokens"),
        22: ("anthropic", "models"),
        23: ("anthropic", "model"),
        30: ("gemini", "generateContent"),
        31: ("gemini", "streamGenerateContent"),
        32: ("gemini", "countTokens"),
        33: ("gemini", "embedContent"),
        34: ("gemini", "batchEmbedContents"),
        35: ("gemini", "models"),
        36: ("gemini", "model"),
    }


def test_only_models_are_asked_through_a_codec() -> None:
    assert registry.find("POST", "/v1/chat/completions").operation.codec is not None
    assert registry.find("GET", "/v1/models").operation.codec is None


def test_who_speaks_for_a_provider() -> None:
    assert isinstance(registry.upstream_codec("openai"), ChatUpstream)
    assert isinstance(registry.upstream_codec("anthropic"), MessagesUpstream)


GOOGLE = {b"x-goog-api-key": b"k"}
ANTHROPIC = {b"anthropic-version": b"2023-06-01"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "surface", "name", "model"),
    [
        ("POST", "/v1/messages", {}, "anthropic", "messages", ""),
        ("POST", "/anthropic/v1/messages", {}, "anthropic", "messages", ""),
        ("POST", "/messages", {}, "anthropic", "messages", ""),
        ("POST", "/v1/messages/count_tokens", {}, "anthropic", "messages.count_tokens", ""),
        ("GET", "/v1/models", ANTHROPIC, "anthropic", "models", ""),
        ("GET", "/v1/models/a/b", ANTHROPIC, "anthropic", "model", "a/b"),
        ("GET", "/anthropic/v1/models/x", {}, "anthropic", "model", "x"),
        ("GET", "/v1/models", GOOGLE, "gemini", "models", ""),
        ("GET", "/v1/models/x", GOOGLE, "gemini", "model", "x"),
        ("POST", "/v1/models/x:generateContent", {}, "gemini", "generateContent", "x"),
        ("POST", "/v1beta/models/a%2Fb:countTokens", {}, "gemini", "countTokens", "a/b"),
        ("POST", "/gemini/v1/models/x:embedContent", {}, "gemini", "embedContent", "x"),
        ("GET", "/v1beta/models", {}, "gemini", "models", ""),
        ("POST", "/v1/responses", {}, "openai", "responses", ""),
        ("POST", "/v1/responses/input_tokens", {}, "openai", "responses.input_tokens", ""),
        ("GET", "/v1/responses/resp_1", {}, "openai", "response", "resp_1"),
        ("POST", "/v1/responses/resp_1/cancel", {}, "openai", "response.cancel", "resp_1"),
        ("GET", "/v1/responses/r/input_items", {}, "openai", "response.input_items", "r"),
    ],
)
def test_dialects(
    method: str, path: str, headers: dict[bytes, bytes], surface: str, name: str, model: str
) -> None:
    match = registry.find(method, path, "", headers)
    operation = match.operation
    assert (operation.surface, operation.name, match.id) == (surface, name, model)

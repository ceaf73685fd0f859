"""What goes wrong raises the class that each SDK has for it, wherever it went wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import anthropic
import httpx2
import openai
import pytest
from google.genai import errors as gemini_errors

from tests.fakes.process import GatewayProcess
from tests.sdk.conftest import (
    Named,
    anthropic_client_of,
    gemini_client_of,
    openai_client_of,
)
from tests.sdk.shapes import QUESTION


@dataclass(frozen=True)
class Raised:
    """What an application sees of an exception."""

    status: int | None
    text: str
    code: str | None = None


@dataclass(frozen=True)
class Api:
    """One SDK's one way to ask. `ask` and `stream` take gateway, key, model and text; `classes`
    are the SDK's own for a status, `broken` the one for a stream that breaks."""

    surface: str
    ask: Callable[[GatewayProcess, str, str, str], object]
    stream: Callable[[GatewayProcess, str, str, str], object]
    classes: dict[int, type[Exception]]
    server_error: type[Exception]
    broken: type[Exception]
    raised: Callable[[Exception], Raised]


# -- how each asks --------------------------------------------------------------------------------


def ask_chat(gateway: GatewayProcess, key: str, model: str, text: str) -> object:
    with openai_client_of(gateway, key) as client:
        return client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}]
        )


def stream_chat(gateway: GatewayProcess, key: str, model: str, text: str) -> object:
    with (
        openai_client_of(gateway, key) as client,
        client.chat.completions.stream(
            model=model, messages=[{"role": "user", "content": text}]
        ) as stream,
    ):
        return stream.get_final_completion()


def ask_responses(gateway: GatewayProcess, key: str, model: str, text: str) -> object:
    with openai_client_of(gateway, key) as client:
        return client.responses.create(model=model, input=text)


def stream_responses(gateway: GatewayProcess, key: str, model: str, text: str) -> object:
    with (
        openai_client_of(gateway, key) as client,
        client.responses.stream(model=model, input=text) as stream,
    ):
        return stream.get_final_response()


def ask_messages(gateway: GatewayProcess, key: str, model: str, text: str) -> object:
    with anthropic_client_of(gateway, key) as client:
        return client.messages.create(
            model=model, max_tokens=100, messages=[{"role": "user", "content": text}]
        )


def stream_messages(gateway: GatewayProcess, key: str, model: str, text: str) -> object:
    with (
        anthropic_client_of(gateway, key) as client,
        client.messages.stream(
            model=model, max_tokens=100, messages=[{"role": "user", "content": text}]
        ) as stream,
    ):
        return stream.get_final_message()


def ask_gemini(gateway: GatewayProcess, key: str, model: str, text: str) -> object:
    with gemini_client_of(gateway, key) as client:
        return client.models.generate_content(model=model, contents=text)


def stream_gemini(gateway: GatewayProcess, key: str, model: str, text: str) -> object:
    with gemini_client_of(gateway, key) as client:
        return list(client.models.generate_content_stream(model=model, contents=text))


# -- and what it raises ---------------------------------------------------------------------------


def openai_raised(error: Exception) -> Raised:
    assert isinstance(error, openai.APIError)
    return Raised(getattr(error, "status_code", None), error.message, error.code)


def anthropic_raised(error: Exception) -> Raised:
    assert isinstance(error, anthropic.APIStatusError)
    body = error.body
    assert isinstance(body, dict)
    details = body["error"].get("details") or {}
    return Raised(error.status_code, str(error), details.get("error_code"))


def gemini_raised(error: Exception) -> Raised:
    assert isinstance(error, gemini_errors.APIError)
    assert isinstance(error.details, dict)
    reasons = [each.get("reason") for each in error.details["error"].get("details", ())]
    return Raised(error.code, str(error.message), next(iter(reasons), None))


OPENAI: dict[int, type[Exception]] = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    402: openai.APIStatusError,
    404: openai.NotFoundError,
    413: openai.APIStatusError,
    429: openai.RateLimitError,
}
ANTHROPIC: dict[int, type[Exception]] = {
    400: anthropic.BadRequestError,
    401: anthropic.AuthenticationError,
    402: anthropic.PaymentRequiredError,
    404: anthropic.NotFoundError,
    413: anthropic.ContentTooLargeError,
    429: anthropic.RateLimitError,
}
GEMINI: dict[int, type[Exception]] = dict.fromkeys(OPENAI, gemini_errors.ClientError)

APIS = {
    "chat": Api(
        "openai",
        ask_chat,
        stream_chat,
        OPENAI,
        openai.InternalServerError,
        openai.APIError,
        openai_raised,
    ),
    "responses": Api(
        "openai",
        ask_responses,
        stream_responses,
        OPENAI,
        openai.InternalServerError,
        openai.APIError,
        openai_raised,
    ),
    "messages": Api(
        "anthropic",
        ask_messages,
        stream_messages,
        ANTHROPIC,
        anthropic.APIStatusError,
        anthropic.APIStatusError,
        anthropic_raised,
    ),
    "gemini": Api(
        "gemini",
        ask_gemini,
        stream_gemini,
        GEMINI,
        gemini_errors.ServerError,
        gemini_errors.APIError,
        gemini_raised,
    ),
}


@pytest.fixture(params=APIS)
def api(request: pytest.FixtureRequest) -> Api:
    found: Api = APIS[request.param]
    return found


def refused(
    api: Api, status: int, gateway: GatewayProcess, key: str, model: str, text: str = QUESTION
) -> Raised:
    """What is raised, plain and streamed alike."""
    with pytest.raises(api.classes[status]) as streamed:
        api.stream(gateway, key, model, text)
    with pytest.raises(api.classes[status]) as plain:
        api.ask(gateway, key, model, text)
    found, other = api.raised(plain.value), api.raised(streamed.value)
    assert (found.status, found.code) == (other.status, other.code)
    assert found.status == status
    return found


def test_401(api: Api, gateway: GatewayProcess) -> None:
    assert refused(api, 401, gateway, "sk_farebox_wrong", "chat-sandbox").code == "invalid_api_key"


def test_404(api: Api, gateway: GatewayProcess, key: str) -> None:
    assert refused(api, 404, gateway, key, "no-such-model").code == "model_not_available"


def test_413(api: Api, gateway: GatewayProcess, key: str) -> None:
    refused(api, 413, gateway, key, "chat-sandbox", "x" * 400_000)


def test_429_after_the_limit(
    api: Api, gateway: GatewayProcess, request: pytest.FixtureRequest
) -> None:
    slow = gateway.new_key(f"slow-{request.node.callspec.id}", "10.00", "--tier", "slow")
    api.ask(gateway, slow, "chat-sandbox", QUESTION)
    assert refused(api, 429, gateway, slow, "chat-sandbox").code == "rate_limit_exceeded"


def test_402_says_what_is_missing(api: Api, gateway: GatewayProcess, poor_key: str) -> None:
    found = refused(api, 402, gateway, poor_key, "messages-sandbox")
    assert "balance" in found.text.lower() or "credit" in found.text.lower()


def test_edge_92_a_402_is_asked_once(gateway: GatewayProcess, poor_key: str) -> None:
    """Retries stay on here, as they are for an application."""
    with (
        openai_client_of(gateway, poor_key, retries=5) as chat,
        anthropic_client_of(gateway, poor_key, retries=5) as messages,
        gemini_client_of(gateway, poor_key) as gemini,
    ):
        asked: list[Callable[[], object]] = [
            lambda: chat.chat.completions.create(
                model="gemini-sandbox", messages=[{"role": "user", "content": QUESTION}]
            ),
            lambda: chat.responses.create(model="gemini-sandbox", input=QUESTION),
            lambda: messages.messages.create(
                model="gemini-sandbox",
                max_tokens=100,
                messages=[{"role": "user", "content": QUESTION}],
            ),
            lambda: gemini.models.generate_content(model="gemini-sandbox", contents=QUESTION),
        ]
        for ask in asked:
            before = gateway.calls(status="402")
            with pytest.raises(
                (openai.APIStatusError, anthropic.APIStatusError, gemini_errors.APIError)
            ):
                ask()
            assert gateway.calls_since(before, status="402") == 1


def test_the_402_of_a_raw_client_says_not_to_retry(gateway: GatewayProcess, poor_key: str) -> None:
    answer = httpx2.post(
        f"{gateway.base_url}/v1/messages",
        headers={"authorization": f"Bearer {poor_key}"},
        json={
            "model": "gemini-sandbox",
            "max_tokens": 100,
            "messages": [{"role": "user", "content": QUESTION}],
        },
    )
    assert answer.status_code == 402
    assert answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert error["type"] == "insufficient_prepaid_balance"
    assert {
        "balance_usd",
        "reserved_usd",
        "required_usd",
        "affordable_output_tokens",
    } <= error.keys()


def test_a_bad_request_at_the_provider_is_one_here(
    api: Api, gateway: GatewayProcess, key: str, named: Named
) -> None:
    if named("") != "gemini-":  # Google's 400 is about our own API key
        refused(api, 400, gateway, key, named("sandbox-error-400"))
    refused(api, 400, gateway, key, named("sandbox-context-overflow"))


def test_an_overflow_has_the_words_that_clients_know(
    api: Api, gateway: GatewayProcess, key: str, named: Named
) -> None:
    found = refused(api, 400, gateway, key, named("sandbox-context-overflow"))
    if api.surface == "openai":
        assert found.code == "context_length_exceeded"
    if api.surface == "anthropic":
        assert "prompt is too long" in found.text


# Not 401, which takes the provider away from the tests that follow: see test_failures.
@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_a_failed_provider_is_a_server_error(
    api: Api, gateway: GatewayProcess, key: str, named: Named, status: int
) -> None:
    with pytest.raises(api.server_error) as error:
        api.ask(gateway, key, named(f"sandbox-error-{status}"), QUESTION)
    assert (api.raised(error.value).status or 0) in (502, 503)


@pytest.mark.parametrize("behaviour", ["sandbox-error-first", "sandbox-overloaded-first"])
def test_a_stream_that_fails_at_once_is_a_server_error(
    api: Api, gateway: GatewayProcess, key: str, named: Named, behaviour: str
) -> None:
    with pytest.raises(api.server_error) as error:
        api.stream(gateway, key, named(behaviour), QUESTION)
    assert (api.raised(error.value).status or 0) in (502, 503)


@pytest.mark.parametrize("behaviour", ["sandbox-cut-40", "sandbox-error-in-stream"])
def test_a_stream_that_breaks_raises(
    api: Api, gateway: GatewayProcess, key: str, named: Named, behaviour: str
) -> None:
    with pytest.raises(api.broken):
        api.stream(gateway, key, named(behaviour), QUESTION)

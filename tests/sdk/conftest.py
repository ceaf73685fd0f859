"""One real gateway for all SDK tests. Its four providers speak the four protocols, and all of them
are one sandbox process: what a client gets must not depend on which of them answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import anthropic
import openai
import pytest
from google import genai

from tests.fakes.node import Node, node_of_the_tests
from tests.fakes.process import (
    LOOPBACK,
    SPEAKERS,
    GatewayProcess,
    four_providers,
    sandbox_process,
    serving,
)

SETTINGS = """
max_body_bytes = 300000
retry_budget = "0"

[tiers.slow]
rpm = 1
"""
# Names that coding agents know: what they send depends on it.
AGENT_MODELS = {"gpt-5.5": "messages/sandbox-script", "gpt-6.1-sol": "messages/sandbox-script"}
# Families have rules of their own for what they take; the sandbox holds clients to them.
FAMILIES = {
    f"{family}-sandbox-reasoning-tools": provider
    for provider, families in {
        "chat": ["gpt-4o", "deepseek-v4"],
        "responses": ["gpt-4.1", "gpt-5.6"],
        "messages": ["claude-opus-4-1", "claude-sonnet-4-5", "claude-opus-4-6", "claude-opus-4-8"],
        "gemini": ["gemini-2.0-flash", "gemini-2.5-flash", "gemini-2.5-pro", "gemini-3.5-flash"],
    }.items()
    for family in families
}
HERE = Path(__file__).parent

Named = Callable[[str], str]


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """`farebox serve` in front of four providers. Its books are in order at the end."""
    directory = tmp_path_factory.mktemp("gateway")
    with sandbox_process() as origin:
        more = AGENT_MODELS | {name: f"{at}/{name}" for name, at in FAMILIES.items()}
        # Tests break the same upstreams one after the other, and each wants to see how they break:
        # what becomes of that with repeats and circuits is in test_failures.
        config = LOOPBACK + SETTINGS + four_providers(origin, more, failures_to_open=1000)
        with serving(directory, config) as process:
            yield process
            assert process.stop() == 0, process.tail()
            process.run("ledger", "verify")
            assert process.record("account", "show", "sdk")["reserved_usd"] == "0"
            process.start()


@pytest.fixture(scope="session")
def key(gateway: GatewayProcess) -> str:
    """A key of an account with credit."""
    return gateway.new_key("sdk", "1000.00")


@pytest.fixture(scope="session")
def poor_key(gateway: GatewayProcess) -> str:
    """A key of an account that can afford nothing."""
    return gateway.new_key("poor", "0.000001")


@pytest.fixture
def openai_client(gateway: GatewayProcess, key: str) -> Iterator[openai.OpenAI]:
    """OpenAI's package, which speaks Chat Completions and Responses. It does not retry."""
    with openai_client_of(gateway, key) as client:
        yield client


@pytest.fixture
def anthropic_client(gateway: GatewayProcess, key: str) -> Iterator[anthropic.Anthropic]:
    """Anthropic's package. It does not retry."""
    with anthropic_client_of(gateway, key) as client:
        yield client


@pytest.fixture
def gemini_client(gateway: GatewayProcess, key: str) -> Iterator[genai.Client]:
    """Google's package; it never retries."""
    with gemini_client_of(gateway, key) as client:
        yield client


def openai_client_of(gateway: GatewayProcess, key: str, retries: int = 0) -> openai.OpenAI:
    """A client with that key."""
    return openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=retries)


def anthropic_client_of(gateway: GatewayProcess, key: str, retries: int = 0) -> anthropic.Anthropic:
    """A client with that key."""
    return anthropic.Anthropic(base_url=gateway.base_url, api_key=key, max_retries=retries)


def gemini_client_of(gateway: GatewayProcess, key: str) -> genai.Client:
    """A client with that key."""
    return genai.Client(api_key=key, http_options={"base_url": gateway.base_url})


@pytest.fixture(params=[each.name for each in SPEAKERS])
def named(request: pytest.FixtureRequest) -> Named:
    """The id of a behaviour of the sandbox at the provider whose turn it is."""

    def model(behaviour: str) -> str:
        return f"{request.param}-{behaviour}"

    return model


@pytest.fixture(scope="session")
def node() -> Node:
    """The Node of the test requirements, with the npm packages of this folder."""
    found = node_of_the_tests()
    found.install(HERE)
    return found

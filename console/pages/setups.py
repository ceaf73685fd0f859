"""What people copy: how SDKs and tools are pointed at this gateway, and what its errors mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Setup:
    """A tool, and the text that connects it."""

    name: str
    text: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """What an error means, and what to do."""

    status: str
    code: str
    means: str
    remedy: str


def setups(base_url: str, model: str) -> Sequence[Setup]:
    """For a gateway at `base_url` and one of its models."""
    return (
        Setup(
            "OpenAI SDK",
            f"""from openai import OpenAI

client = OpenAI(base_url="{base_url}/v1", api_key="sk_farebox_…")
answer = client.chat.completions.create(
    model="{model}", messages=[{{"role": "user", "content": "Hello!"}}]
)
print(answer.choices[0].message.content)""",
        ),
        Setup(
            "Anthropic SDK",
            f"""from anthropic import Anthropic

client = Anthropic(base_url="{base_url}/anthropic", api_key="sk_farebox_…")
answer = client.messages.create(
    model="{model}", max_tokens=1024, messages=[{{"role": "user", "content": "Hello!"}}]
)
print(answer.content[0].text)""",
        ),
        Setup(
            "Gemini SDK",
            f"""from google import genai

client = genai.Client(
    api_key="sk_farebox_…", http_options={{"base_url": "{base_url}/gemini"}}
)
print(client.models.generate_content(model="{model}", contents="Hello!").text)""",
        ),
        Setup(
            "Claude Code",
            f"""export ANTHROPIC_BASE_URL={base_url}/anthropic
export ANTHROPIC_AUTH_TOKEN=sk_farebox_…
claude --model {model}""",
        ),
        Setup(
            "Codex",
            f"""# ~/.codex/config.toml
model = "{model}"
model_provider = "farebox"

[model_providers.farebox]
name = "Farebox"
base_url = "{base_url}/v1"
env_key = "FAREBOX_API_KEY"
wire_api = "responses\"""",
            "Then: FAREBOX_API_KEY=sk_farebox_… codex",
        ),
        Setup(
            "Cursor",
            f"""OpenAI API Key              sk_farebox_…
Override OpenAI Base URL    {base_url}/v1
Model                       {model}""",
            "Settings → Models → API Keys. Cursor calls from its own servers: the gateway has to "
            "be reachable from there.",
        ),
        Setup(
            "Gemini CLI",
            f"""export GOOGLE_GEMINI_BASE_URL={base_url}/gemini
export GEMINI_API_KEY=sk_farebox_…
gemini --model {model}""",
        ),
        Setup(
            "curl",
            f"""curl {base_url}/v1/chat/completions \\
  -H 'Authorization: Bearer sk_farebox_…' -H 'Content-Type: application/json' \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'""",
        ),
    )


def mcp_setup(base_url: str) -> str:
    """For Claude Code; other clients take the same address and header."""
    return (
        f"claude mcp add --transport http farebox {base_url}/mcp \\\n"
        "  --header 'Authorization: Bearer sk_farebox_… or a session token'"
    )


ERRORS = (
    ErrorCode(
        "400",
        "invalid_request",
        "The body or a parameter is malformed, or the model's provider has no words for it.",
        "Read the message: it names the field.",
    ),
    ErrorCode(
        "401",
        "invalid_api_key",
        "The key is missing, unknown, expired or revoked.",
        "Make a new key; look whether the old one is listed as expired or revoked.",
    ),
    ErrorCode(
        "402",
        "insufficient_prepaid_balance",
        "The balance, or the budget of the key or project, does not cover what the request may "
        "cost at most.",
        "Add credit or raise the budget, or ask for fewer output tokens: the error says how many "
        "are affordable. Automatic top-ups keep it from happening.",
    ),
    ErrorCode(
        "403",
        "permission_denied",
        "The key may not use this model.",
        "Use another key, or change its models.",
    ),
    ErrorCode(
        "403", "account_suspended", "The account is suspended.", "Ask the operator of the gateway."
    ),
    ErrorCode(
        "404",
        "model_not_available",
        "No priced model of that name is served here.",
        "Compare the name with the list of models.",
    ),
    ErrorCode(
        "409",
        "idempotency_key_in_use",
        "A request with this Idempotency-Key still runs.",
        "Wait for its answer, then ask again: it will be the same one.",
    ),
    ErrorCode(
        "413",
        "request_too_large",
        "The body is larger than this gateway takes.",
        "Send less, or refer to files by their address.",
    ),
    ErrorCode(
        "422",
        "idempotency_key_reused",
        "This Idempotency-Key belongs to another request.",
        "Use a new one for each request.",
    ),
    ErrorCode(
        "429",
        "rate_limit_exceeded",
        "A limit of the plan is reached; the message says which.",
        "Wait as long as retry-after says, as SDKs do by themselves; or ask for another plan.",
    ),
    ErrorCode(
        "502, 503",
        "upstream_unavailable",
        "Every provider of the model has failed.",
        "Try again, or use another model. Nothing was charged.",
    ),
    ErrorCode(
        "503",
        "ledger_unavailable, overloaded",
        "The gateway cannot confirm credit at the moment, or has too much to do.",
        "Try again after a second.",
    ),
    ErrorCode(
        "504",
        "upstream_timeout",
        "The provider took too long.",
        "Stream long answers, or ask for shorter ones.",
    ),
    ErrorCode(
        "500",
        "internal_error",
        "A fault of the gateway.",
        "Tell its operator the request id.",
    ),
)

"""What people copy: how SDKs and tools are pointed at this gateway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Setup:
    """A tool, and the text that connects it."""

    name: str
    text: str
    note: str = ""


def setups(base_url: str, model: str, key: str) -> Sequence[Setup]:
    """For a gateway at `base_url` and one of its models; `key` stands for an API key."""
    return (
        Setup(
            "OpenAI SDK",
            f"""from openai import OpenAI

client = OpenAI(base_url="{base_url}/v1", api_key="{key}")
answer = client.chat.completions.create(
    model="{model}", messages=[{{"role": "user", "content": "Hello!"}}]
)
print(answer.choices[0].message.content)""",
        ),
        Setup(
            "Anthropic SDK",
            f"""from anthropic import Anthropic

client = Anthropic(base_url="{base_url}/anthropic", api_key="{key}")
answer = client.messages.create(
    model="{model}", max_tokens=1024, messages=[{{"role": "user", "content": "Hello!"}}]
)
print(answer.content[0].text)""",
        ),
        Setup(
            "Gemini SDK",
            f"""from google import genai

client = genai.Client(
    api_key="{key}", http_options={{"base_url": "{base_url}/gemini"}}
)
print(client.models.generate_content(model="{model}", contents="Hello!").text)""",
        ),
        Setup(
            "Claude Code",
            f"""export ANTHROPIC_BASE_URL={base_url}/anthropic
export ANTHROPIC_AUTH_TOKEN={key}
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
            f"Then: FAREBOX_API_KEY={key} codex",
        ),
        Setup(
            "Cursor",
            f"""OpenAI API Key              {key}
Override OpenAI Base URL    {base_url}/v1
Model                       {model}""",
            "Settings → Models → API Keys. Cursor calls from its own servers: the gateway has to "
            "be reachable from there.",
        ),
        Setup(
            "Gemini CLI",
            f"""export GOOGLE_GEMINI_BASE_URL={base_url}/gemini
export GEMINI_API_KEY={key}
gemini --model {model}""",
        ),
        Setup(
            "curl",
            f"""curl {base_url}/v1/chat/completions \\
  -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'""",
        ),
    )


def mcp_setup(base_url: str, key: str) -> str:
    """For Claude Code; other clients take the same address and header."""
    return (
        f"claude mcp add --transport http farebox {base_url}/mcp \\\n"
        f"  --header 'Authorization: Bearer {key} or a session token'"
    )

"""What is known about each provider, so that a configuration needs only its key.

Data, not code: a preset fills in what `[[providers]]` leaves out. One whose `base_url` is empty
cannot be switched on by its environment variable alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from adapters.catalogue import Auth, Protocol


@dataclass(frozen=True, slots=True)
class Preset:
    """How to reach one provider. `env` names the variable with its key, empty: it needs none.

    `base_url_hint` says what to write where the address is the customer's own. `example` is the
    model that a first call asks for: a known, current one for everything, of moderate price.
    """

    base_url: str
    env: str
    protocol: Protocol = "openai"
    auth: Auth = "bearer"
    key_required: bool = True
    base_url_hint: str = ""
    example: str = ""


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "openai": Preset("https://api.openai.com/v1", "OPENAI_API_KEY", example="gpt-5.4-mini"),
        "anthropic": Preset(
            "https://api.anthropic.com",
            "ANTHROPIC_API_KEY",
            "anthropic",
            "x-api-key",
            example="claude-sonnet-5",
        ),
        "gemini": Preset(
            "https://generativelanguage.googleapis.com",
            "GEMINI_API_KEY",
            "gemini",
            "x-goog-api-key",
            example="gemini-3.8-flash",
        ),
        "azure": Preset(
            "",
            "AZURE_OPENAI_API_KEY",
            auth="api-key",
            base_url_hint="https://RESOURCE.openai.azure.com/openai/v1",
        ),
        "deepseek": Preset(
            "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY", example="deepseek-v4-flash"
        ),
        "qwen": Preset(
            "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
            "DASHSCOPE_API_KEY",
            example="qwen3.8-flash",
        ),
        "moonshot": Preset("https://api.moonshot.ai/v1", "MOONSHOT_API_KEY", example="kimi-k3"),
        "minimax": Preset("https://api.minimax.io/v1", "MINIMAX_API_KEY", example="MiniMax-M3"),
        "zhipu": Preset("https://api.z.ai/api/paas/v4", "ZHIPU_API_KEY", example="glm-5.3"),
        "mistral": Preset(
            "https://api.mistral.ai/v1", "MISTRAL_API_KEY", example="mistral-small-latest"
        ),
        "xai": Preset("https://api.x.ai/v1", "XAI_API_KEY", example="grok-4.7"),
        "groq": Preset(
            "https://api.groq.com/openai/v1", "GROQ_API_KEY", example="openai/gpt-oss-120b"
        ),
        "together": Preset(
            "https://api.together.xyz/v1", "TOGETHER_API_KEY", example="openai/gpt-oss-120b"
        ),
        "openrouter": Preset(
            "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", example="openai/gpt-5.4-mini"
        ),
        "ollama": Preset("http://127.0.0.1:11434/v1", "", key_required=False),
        "vllm": Preset("http://127.0.0.1:8000/v1", "VLLM_API_KEY", key_required=False),
    }
)

# What a provider without a preset is authenticated with.
AUTH_BY_PROTOCOL: Mapping[Protocol, Auth] = MappingProxyType(
    {
        "openai": "bearer",
        "openai-responses": "bearer",
        "anthropic": "x-api-key",
        "gemini": "x-goog-api-key",
    }
)

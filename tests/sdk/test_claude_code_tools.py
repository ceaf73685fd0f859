"""Claude Code connects to `/mcp` as people are told to, and calls all seven tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path

import pytest

from tests.fakes.agent import Ended, binary_of, run, scripted
from tests.fakes.node import Node
from tests.fakes.process import (
    WITH_CONSOLE,
    GatewayProcess,
    four_providers,
    sandbox_process,
    serving,
)
from tests.fakes.tools import TOOLS

MODEL = "messages-sandbox-script"
CHATTED = "chat-sandbox"
TURNS = (
    {"tool": "list_models", "arguments": {"contains": CHATTED}},
    {
        "tool": "chat_completion",
        "arguments": {
            "model": CHATTED,
            "messages": [{"role": "user", "content": "Hello!"}],
            "max_tokens": 20,
        },
    },
    {"tool": "create_api_key", "arguments": {"project": "web", "name": "made by Claude Code"}},
    {"tool": "list_api_keys", "arguments": {}},
    {"tool": "revoke_api_key", "arguments": {"key_id": "KEY_ID"}},
    {"tool": "get_usage", "arguments": {"days": 1}},
    {"tool": "get_balance", "arguments": {}},
)


@pytest.fixture(scope="module")
def claude(node: Node) -> Path:
    return binary_of(node, "@anthropic-ai/claude-code-*/claude")


@pytest.fixture(scope="module")
def with_console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with its console, whose providers are the sandbox."""
    with sandbox_process() as origin:
        config = WITH_CONSOLE + four_providers(origin)
        with serving(tmp_path_factory.mktemp("tools"), config) as process:
            yield process


def environment(gateway: GatewayProcess, key: str, home: Path) -> Mapping[str, str]:
    return {
        "HOME": str(home),
        "ANTHROPIC_BASE_URL": gateway.base_url,
        "ANTHROPIC_AUTH_TOKEN": key,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "ENABLE_TOOL_SEARCH": "false",  # which would have the model look for them first
    }


def add(claude: Path, place: Path, gateway: GatewayProcess, key: str) -> Ended:
    """As the integrations page says it."""
    return run(
        [
            claude,
            *("mcp", "add", "--transport", "http", "farebox", f"{gateway.base_url}/mcp"),
            *("--header", f"Authorization: Bearer {key}"),
        ],
        place,
        environment(gateway, key, place / "home"),
    )


def results(ended: Ended) -> dict[str, dict[str, object]]:
    """What each tool answered, by its name."""
    named: dict[str, str] = {}
    found: dict[str, dict[str, object]] = {}
    for line in ended.lines():
        message = line.get("message")
        content = message["content"] if isinstance(message, dict) else []
        for part in content if isinstance(content, list) else []:
            if part.get("type") == "tool_use":
                named[part["id"]] = part["name"].removeprefix("mcp__farebox__")
            elif part.get("type") == "tool_result":
                text = part["content"]
                if isinstance(text, list):
                    text = "".join(each.get("text", "") for each in text)
                assert not part.get("is_error"), text
                found[named[part["tool_use_id"]]] = json.loads(text)
    return found


def test_all_seven_tools_are_called(
    claude: Path, with_console: GatewayProcess, tmp_path: Path
) -> None:
    gateway = with_console
    gateway.record("account", "create", "agent", "--credit", "50.00")
    other = gateway.record("key", "create", "agent/web")
    made = gateway.record("key", "create", "agent/web", "--scope", "keys")
    key = str(made["key"])
    (tmp_path / "home").mkdir()
    added = add(claude, tmp_path, gateway, key)
    assert added.code == 0, added.errors
    around = environment(gateway, key, tmp_path / "home")
    listed = run([claude, "mcp", "list"], tmp_path, around)
    assert "farebox" in listed.output
    assert "Connected" in listed.output, listed.output

    turns = [{**each, "tool": f"mcp__farebox__{each['tool']}"} for each in TURNS]
    script = scripted(*turns, {"text": "Done."})
    ended = run(
        [
            claude,
            *("--print", script.replace('"KEY_ID"', str(other["id"]))),
            *("--model", MODEL, "--output-format", "stream-json", "--verbose"),
            *("--allowedTools", ",".join(sorted(f"mcp__farebox__{name}" for name in TOOLS))),
        ],
        tmp_path,
        around,
    )
    assert ended.code == 0, ended.errors + ended.output[-3000:]
    found = results(ended)
    assert set(found) == TOOLS, ended.output[-3000:]
    assert found["chat_completion"]["text"]
    assert Decimal(str(found["chat_completion"]["cost_usd"])) > 0
    assert found["get_balance"]["account"] == "agent"
    assert Decimal(str(found["get_balance"]["balance_usd"])) < 50
    assert found["revoke_api_key"] == {"key_id": other["id"], "revoked": True}
    assert str(found["create_api_key"]["secret"]).startswith("sk_farebox_")


def test_a_wrong_key_is_no_connection(
    claude: Path, with_console: GatewayProcess, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    wrong = "sk_farebox_" + "x" * 42
    add(claude, tmp_path, with_console, wrong)
    around = environment(with_console, wrong, tmp_path / "home")
    listed = run([claude, "mcp", "list"], tmp_path, around)
    assert "farebox" in listed.output
    assert "✓" not in listed.output

"""Claude Code completes a task with real tools on models of every protocol's provider."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.agent import Ended, binary_of, run, scripted
from tests.fakes.node import Node
from tests.fakes.process import GatewayProcess
from tests.sdk.conftest import Named

TASK = scripted(
    {
        "text": "I make the file first.",
        "tool": "Bash",
        "arguments": {"command": "echo one > made.txt", "description": "Make a file"},
    },
    {"tool": "Read", "arguments": {"file_path": "PLACE/made.txt"}},
    {
        "tool": "Edit",
        "arguments": {"file_path": "PLACE/made.txt", "old_string": "one", "new_string": "two"},
    },
    {"text": "The file now says two."},
)


@pytest.fixture(scope="module")
def claude(node: Node) -> Path:
    return binary_of(node, "@anthropic-ai/claude-code-*/claude")


def work(
    claude: Path, gateway: GatewayProcess, key: str, place: Path, model: str, *options: str
) -> Ended:
    """Run the task in `place`."""
    home = place / "home"
    home.mkdir()
    return run(
        [
            claude,
            "--print",
            TASK.replace("PLACE", str(place)),
            *("--model", model),
            *("--output-format", "json"),
            *("--allowedTools", "Bash,Read,Edit"),
            *options,
        ],
        place,
        {
            "HOME": str(home),
            "ANTHROPIC_BASE_URL": gateway.base_url,
            "ANTHROPIC_AUTH_TOKEN": key,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    )


@pytest.mark.parametrize("options", [("--bare",), ()], ids=["bare", "full"])
def test_a_task_is_completed(
    claude: Path,
    gateway: GatewayProcess,
    key: str,
    tmp_path: Path,
    named: Named,
    options: tuple[str, ...],
) -> None:
    ended = work(claude, gateway, key, tmp_path, named("sandbox-script"), *options)
    assert ended.code == 0, ended.errors
    result = json.loads(ended.output)
    assert result["is_error"] is False
    assert result["result"] == "The file now says two."
    assert result["num_turns"] == 4
    assert result["usage"]["output_tokens"] > 0
    assert (tmp_path / "made.txt").read_text() == "two\n"


def test_edge_92_a_402_is_shown_after_one_request(
    claude: Path, gateway: GatewayProcess, poor_key: str, tmp_path: Path
) -> None:
    before = gateway.calls(status="402")
    ended = work(claude, gateway, poor_key, tmp_path, "chat-sandbox-script", "--bare")
    assert "402" in ended.output
    assert gateway.calls_since(before, status="402") == 1
    assert not (tmp_path / "made.txt").exists()

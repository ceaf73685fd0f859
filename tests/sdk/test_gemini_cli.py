"""The Gemini CLI completes a task with real tools on models of every protocol's provider."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.agent import binary_of, run, scripted
from tests.fakes.node import Node
from tests.fakes.process import GatewayProcess
from tests.sdk.conftest import Named

SETTINGS = {
    "security": {"auth": {"selectedType": "gemini-api-key"}, "folderTrust": {"enabled": False}},
    "general": {"enableAutoUpdate": False},
    "privacy": {"usageStatisticsEnabled": False},
}
TASK = scripted(
    {
        "thought": "A file is wanted.",
        "text": "I make it.",
        "tool": "run_shell_command",
        "arguments": {"command": "echo two > made.txt"},
    },
    {"tool": "read_file", "arguments": {"file_path": "made.txt"}},
    {"text": "The file is there."},
)


@pytest.fixture(scope="module")
def gemini(node: Node) -> Path:
    return binary_of(node, "@google/gemini-cli/bundle/gemini.js")


def test_a_task_is_completed(
    gemini: Path, node: Node, gateway: GatewayProcess, key: str, tmp_path: Path, named: Named
) -> None:
    home = tmp_path / "home"
    (home / ".gemini").mkdir(parents=True)
    (home / ".gemini" / "settings.json").write_text(json.dumps(SETTINGS))
    ended = run(
        [
            *(node.binary, gemini, "--prompt", TASK),
            *("--model", named("sandbox-script")),
            *("--output-format", "json"),
            "--yolo",
        ],
        tmp_path,
        {"HOME": str(home), "GEMINI_API_KEY": key, "GOOGLE_GEMINI_BASE_URL": gateway.base_url},
    )
    assert ended.code == 0, ended.output + ended.errors
    result = json.loads(ended.output)
    assert result["response"].endswith("The file is there.")
    assert result["stats"]["tools"]["totalSuccess"] == 2
    assert (tmp_path / "made.txt").read_text() == "two\n"

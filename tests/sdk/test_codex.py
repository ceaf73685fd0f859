"""The Codex CLI completes a task with real tools on models of every protocol's provider."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.agent import Ended, binary_of, run, scripted
from tests.fakes.node import Node
from tests.fakes.process import GatewayProcess
from tests.sdk.conftest import Named

CONFIG = """
model_provider = "farebox"
check_for_update_on_startup = false

[analytics]
enabled = false

[model_providers.farebox]
name = "Farebox"
base_url = "{base_url}/v1"
env_key = "FAREBOX_KEY"
wire_api = "responses"
request_max_retries = 1
stream_max_retries = 1
"""
LAST = "The file is there."
BY_SHELL = scripted(
    {"text": "I make it.", "tool": "exec_command", "arguments": {"cmd": "echo two > made.txt"}},
    {"tool": "exec_command", "arguments": {"cmd": "cat made.txt"}},
    {"text": LAST},
)
BY_PATCH = scripted(
    {
        "custom": "apply_patch",
        "input": "*** Begin Patch\n*** Add File: made.txt\n+two\n*** End Patch\n",
    },
    {"text": LAST},
)
BY_CODE = scripted(
    {
        "custom": "exec",
        "input": "const made = await tools.exec_command({cmd: 'echo two > made.txt'});\n"
        "text(made.output);\n",
    },
    {"text": LAST},
)


@pytest.fixture(scope="module")
def codex(node: Node) -> Path:
    return binary_of(node, "@openai/codex-*/vendor/*/bin/codex")


def work(
    codex: Path, gateway: GatewayProcess, key: str, place: Path, model: str, task: str
) -> Ended:
    """Run the task in `place`. Its own sandbox is off: it needs rights that tests may not have."""
    home = place / "home"
    home.mkdir()
    (home / "config.toml").write_text(CONFIG.format(base_url=gateway.base_url))
    return run(
        [
            codex,
            "exec",
            *("--model", model),
            "--json",
            "--skip-git-repo-check",
            "--dangerously-bypass-approvals-and-sandbox",
            task,
        ],
        place,
        {"HOME": str(home), "CODEX_HOME": str(home), "FAREBOX_KEY": key},
    )


def completed(ended: Ended, place: Path) -> None:
    """The task was done, by tools, and the model had the last word."""
    assert ended.code == 0, ended.output + ended.errors
    items = [line["item"] for line in ended.lines() if line["type"] == "item.completed"]
    said = [item["text"] for item in items if isinstance(item, dict) and "text" in item]
    assert said[-1] == LAST, ended.output
    assert (place / "made.txt").read_text() == "two\n"
    last = ended.lines()[-1]
    assert last["type"] == "turn.completed"
    usage = last["usage"]
    assert isinstance(usage, dict)
    assert usage["input_tokens"] > 0
    assert usage["output_tokens"] > 0


def test_a_task_is_completed(
    codex: Path, gateway: GatewayProcess, key: str, tmp_path: Path, named: Named
) -> None:
    completed(work(codex, gateway, key, tmp_path, named("sandbox-script"), BY_SHELL), tmp_path)


@pytest.mark.parametrize(
    ("model", "task"),
    [("gpt-5.5", BY_PATCH), ("gpt-6.1-sol", BY_CODE)],
    ids=["a grammar tool", "one in a namespace in the input"],
)
def test_free_form_tools_work_at_a_provider_without_them(
    codex: Path, gateway: GatewayProcess, key: str, tmp_path: Path, model: str, task: str
) -> None:
    """For the models it knows, Codex declares tools in more ways than one."""
    completed(work(codex, gateway, key, tmp_path, model, task), tmp_path)

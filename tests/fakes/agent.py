"""A coding agent's command-line tool, run without a person, a network or the user's own files."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.node import Node, cannot_run, node_of_the_tests

PACKAGES = Path(__file__).parent.parent / "sdk" / "clis"
CACHE = Path(sys.prefix, "clis")  # some 900 MB, so it stays between runs
RUN_SECONDS = 180  # most of which a busy machine takes


def binary_of(node: Node, package: str) -> Path:
    """The executable in the platform's own part of an npm package; `package` is a glob.

    Nothing that the package would run on being installed is run. Skips the test where there is
    none for this machine.
    """
    install(node)
    found = sorted((CACHE / "node_modules").glob(package))
    if not found:
        cannot_run(f"there is no {package} for {platform.system()} on {platform.machine()}")
    return found[0]


def install(node: Node) -> None:
    """Fetch the agents' packages, unless they are there as the lock names them."""
    CACHE.mkdir(exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy2(PACKAGES / name, CACHE / name)
    node.install(CACHE)


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    output: str
    errors: str

    def lines(self) -> list[dict[str, object]]:
        """What it printed as lines of JSON."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]


def run(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> Ended:
    """Run a command in `folder` until it ends. What it started ends with it, and so it does itself
    when its time is over."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=RUN_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        raise AssertionError(f"it did not end:\n{output}\n{errors}") from None
    finally:
        _end_group(process.pid)
    return Ended(process.returncode, output, errors)


def _end_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return  # it left nobody behind


def scripted(*turns: Mapping[str, object]) -> str:
    """A prompt that makes the sandbox's `sandbox-script` answer with these turns."""
    lines = "\n".join(json.dumps(turn) for turn in turns)
    return f"Play this script.\n```script\n{lines}\n```"


if __name__ == "__main__":
    install(node_of_the_tests())

"""Every edge case of `docs/protocols.md` has a test, and every such test stands in its table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CASES = 92
_ROW = re.compile(r"^\| (\d+) \| .* \| (.*) \|$", re.MULTILINE)
_NAME = re.compile(r"test_edge((?:_\d\d)+)_")


def documented() -> dict[int, set[str]]:
    """Case → names of its tests, as the page has them."""
    table = (ROOT / "docs/protocols.md").read_text().partition("## Edge cases")[2]
    return {
        int(number): set(re.findall(r"`(\w+)`", tests)) for number, tests in _ROW.findall(table)
    }


def present() -> dict[int, set[str]]:
    """Case → names of its tests, as they are."""
    found: dict[int, set[str]] = {number: set() for number in range(1, CASES + 1)}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
                named := _NAME.match(node.name)
            ):
                for number in named[1].strip("_").split("_"):
                    found[int(number)].add(node.name)
    return found


def test_every_case_has_a_test() -> None:
    assert not [number for number, tests in present().items() if not tests]


def test_the_page_names_every_test() -> None:
    assert documented() == present()

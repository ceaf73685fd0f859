"""The official npm packages of OpenAI, Anthropic and Google against a real gateway.

Each has a script of cases here (`openai.mjs` and so on) that asserts for itself and says how every
case went; this looks at what it said.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fakes.node import Node
from tests.fakes.process import SPEAKERS, GatewayProcess

HERE = Path(__file__).parent
SCRIPTS = ("openai", "anthropic", "gemini")
Results = dict[str, dict[str, object]]

_CASE = re.compile(r"^  (?:async )?(\w+)(?:\(|: )", re.MULTILINE)


def cases_of(script: str) -> list[str]:
    """The names of a script's cases, read from it, so that each is a test of its own."""
    _, each, once = re.split(
        r"^const (?:each|once) = \{$", (HERE / f"{script}.mjs").read_text(), flags=re.MULTILINE
    )
    for_each = _CASE.findall(each.split("\n};\n")[0])
    return [f"{speaker.name}/{name}" for speaker in SPEAKERS for name in for_each] + _CASE.findall(
        once.split("\n};\n")[0]
    )


@pytest.fixture(scope="module")
def results(gateway: GatewayProcess, key: str, poor_key: str, node: Node) -> dict[str, Results]:
    """What each script said, by script and case."""
    return {
        script: node.results(
            HERE / f"{script}.mjs",
            [
                gateway.base_url,
                key,
                poor_key,
                gateway.new_key(f"slow-{script}-node", "10.00", "--tier", "slow"),
            ],
        )
        for script in SCRIPTS
    }


@pytest.mark.parametrize(
    ("script", "case"), [(script, case) for script in SCRIPTS for case in cases_of(script)]
)
def test_it_works(results: dict[str, Results], script: str, case: str) -> None:
    assert results[script][case]["error"] is None, results[script][case]["error"]


def test_no_case_is_missing(results: dict[str, Results]) -> None:
    assert {script: list(said) for script, said in results.items()} == {
        script: cases_of(script) for script in SCRIPTS
    }

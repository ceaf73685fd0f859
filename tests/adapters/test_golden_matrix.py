"""What every provider gets for each request, and what every client gets for each answer, as files.

`tests/golden/matrix/SURFACE-at-PROVIDER.json` has, for each scenario of `test_matrix`, the body
that was sent upstream, what was dropped, and the whole answer as the client got it. Ids that are
drawn anew are replaced by what they are. A change here is a change for users: read the diff, then
accept it with `GOLDEN=update make test ARGS="tests/adapters/test_golden_matrix.py"`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from adapters.catalogue import Protocol
from tests.adapters.test_matrix import PAIRS, SCENARIOS, answered
from tests.fakes.bodies import whole

GOLDEN = Path(__file__).parents[1] / "golden" / "matrix"
UPDATE = os.environ.get("GOLDEN") == "update"

# What is random or signed in an answer → what stands for it.
_DRAWN = [
    (
        re.compile(r"\b(msg|rs|fc|ctc|resp|toolu|call|chatcmpl|req|gen)_?-?[A-Za-z0-9_-]{12,}"),
        r"\1…",
    ),
    (re.compile(r"fb1\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"), "fb1…"),
    (re.compile(r"ZmIxL[A-Za-z0-9+/=_-]+"), "base64(fb1…)"),
    (re.compile(r"[A-Za-z0-9+/_-]{60,}={0,2}"), "…"),
]


def still(value: object) -> object:
    """A JSON value without what is drawn anew."""
    if isinstance(value, str):
        for pattern, stand_in in _DRAWN:
            value = pattern.sub(stand_in, value)
        return value
    if isinstance(value, list):
        return [still(each) for each in value]
    if isinstance(value, dict):
        return {name: still(each) for name, each in value.items()}
    return value


def exchanged(surface: Protocol, protocol: Protocol) -> dict[str, object]:
    """Every scenario of one pair."""
    found: dict[str, object] = {}
    for name, scenario in SCENARIOS.items():
        exchange = answered(surface, protocol, scenario.ask)
        relay = exchange.call.plain(exchange.played.body)
        found[name] = {
            "path": exchange.call.path,
            "sent": still(json.loads(whole(exchange.call.body))),
            "dropped": list(exchange.call.dropped),
            "answer": still(json.loads(relay.body)),
        }
    return found


@pytest.mark.parametrize(("surface", "protocol"), PAIRS)
def test_the_golden_file_is_what_happens(surface: Protocol, protocol: Protocol) -> None:
    path = GOLDEN / f"{surface}-at-{protocol}.json"
    found = exchanged(surface, protocol)
    if UPDATE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    assert json.loads(path.read_text()) == found

"""The table of faults is right, and every day another handful of them is noticed."""

from __future__ import annotations

import datetime as dt
import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.mutants.faults import MUTANTS
from tests.mutants.mutant import (
    ROOT,
    Mutant,
    TableRotten,
    Verdict,
    laboratory,
    mutated,
    position,
)

_FUNCTION = re.compile(r"^CREATE (?:OR REPLACE )?FUNCTION (\S+)\(", re.MULTILINE)
HANDFUL = int(os.environ.get("MUTANTS", "4"))


def of_today() -> list[Mutant]:
    """Neighbours in the table are alike, so the handful is spread over it."""
    day = dt.datetime.now(dt.UTC).date().toordinal()
    return [MUTANTS[(day + n * len(MUTANTS) // HANDFUL) % len(MUTANTS)] for n in range(HANDFUL)]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_fault_can_be_made_and_its_tests_are_there(mutant: Mutant) -> None:
    source = (ROOT / mutant.file).read_text()
    assert mutated(mutant, source) != source
    assert all((ROOT / test.partition("::")[0]).is_file() for test in mutant.tests)


@pytest.mark.parametrize(
    "mutant", [m for m in MUTANTS if m.file.endswith(".sql")], ids=lambda mutant: mutant.name
)
def test_a_fault_in_sql_is_in_the_latest_version_of_its_function(mutant: Mutant) -> None:
    file = ROOT / mutant.file
    source = file.read_text()
    *_, function = _FUNCTION.findall(source[: position(mutant, source) + len(mutant.old)])
    later = [each for each in file.parent.glob("*.sql") if each.name > file.name]
    superseded = [each.name for each in later if function in _FUNCTION.findall(each.read_text())]
    assert not superseded, f"{function} is replaced in {superseded}"


def test_names_are_unique_and_there_are_enough() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40


def test_a_text_that_is_there_twice_or_not_at_all_is_an_error() -> None:
    for old in ("import", "nowhere to be found"):
        mutant = Mutant("m", "f.py", old, "", "for a test", ())
        with pytest.raises(TableRotten, match="m: found"):
            mutated(mutant, "import this\nimport that\n")


def test_a_fault_stays_within_its_function() -> None:
    source = "def first() -> int:\n    return 1\n\n\ndef second() -> int:\n    return 1\n"
    mutant = Mutant("m", "f.py", "return 1", "return 2", "for a test", (), within="def second")
    assert mutated(mutant, source) == source[::-1].replace("1", "2", 1)[::-1]


def test_todays_faults_are_noticed() -> None:
    with laboratory() as lab, ThreadPoolExecutor(2) as pool:
        mutants = of_today()
        for mutant, outcome in zip(mutants, pool.map(lab.examine, mutants), strict=True):
            assert outcome.verdict is Verdict.NOTICED, f"{mutant.name}: {outcome.evidence}"

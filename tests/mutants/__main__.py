"""`python -m tests.mutants [NAME …]`: every fault must be noticed by the tests it names."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.mutants.faults import MUTANTS
from tests.mutants.mutant import (
    ROOT,
    Laboratory,
    Mutant,
    Outcome,
    TableRotten,
    Verdict,
    laboratory,
    mutated,
)

AT_ONCE = 2
TOTAL_SECONDS = 12 * 60.0


def main(names: Sequence[str]) -> int:
    unknown = set(names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        print(f"no such mutant: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    rotten = list(_rotten(chosen))
    if rotten:
        print("\n".join(rotten), file=sys.stderr)
        return 1
    with laboratory() as lab:
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        original = lab.examine_original(tests)
        if original.verdict is not Verdict.SURVIVED:
            print(f"the tests do not pass as it is: {original.evidence}", file=sys.stderr)
            return 1
        return _report(lab, chosen)


def _rotten(mutants: Sequence[Mutant]) -> Iterator[str]:
    for mutant in mutants:
        try:
            mutated(mutant, (ROOT / mutant.file).read_text())
        except TableRotten as error:
            yield str(error)


def _report(lab: Laboratory, mutants: Sequence[Mutant]) -> int:
    """Examine them all, a few at a time, and say what became of each."""
    begun = time.monotonic()

    def examine(mutant: Mutant) -> Outcome:
        if time.monotonic() - begun > TOTAL_SECONDS:
            return Outcome(Verdict.BROKEN, f"not examined within {TOTAL_SECONDS:.0f} s")
        return lab.examine(mutant)

    bad: list[str] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for mutant, outcome in zip(mutants, pool.map(examine, mutants), strict=True):
            verdict, evidence = outcome.verdict, outcome.evidence
            print(f"{verdict.value:9}{mutant.name}: {evidence}", flush=True)
            if verdict is not Verdict.NOTICED:
                bad.append(f"{mutant.name} ({verdict.value}): {mutant.why}")
    seconds = time.monotonic() - begun
    print(f"{len(mutants) - len(bad)} of {len(mutants)} mutants noticed in {seconds:.0f} s")
    print("\n".join(bad), end="\n" if bad else "", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

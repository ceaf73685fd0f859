"""`python -m tests.crash [CYCLES [SEED]]`: kill a gateway under load so often, then audit it."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio

from tests.crash import harness


def main(arguments: Sequence[str]) -> int:
    cycles = int(arguments[0]) if arguments else 1000
    seed = int(arguments[1]) if len(arguments) > 1 else random.randrange(2**32)
    sys.stdout.write(f"{cycles} cycles, seed {seed}\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="farebox-crash-") as folder:
        report = trio.run(harness.run, Path(folder), cycles, seed)
    sys.stdout.write(f"{report}\n")
    return 1 if report.verdict.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

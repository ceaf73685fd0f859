"""`python -m tests.chaos [MINUTES [SEED]]`: providers that fail in every way, workers that die, and
clients that must never be lied to. Ends by itself; exit code 1 where anything was wrong."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio

from tests.chaos import harness


def main(arguments: Sequence[str]) -> int:
    minutes = float(arguments[0]) if arguments else 10.0
    seed = int(arguments[1]) if len(arguments) > 1 else random.randrange(2**32)
    sys.stdout.write(f"{minutes:g} minutes, seed {seed}\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="farebox-chaos-") as folder:
        report = trio.run(harness.run, Path(folder), minutes, seed)
    sys.stdout.write(f"{report}\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`farebox` as it is, but with a ledger for every worker, and little patience with who is silent.

What it takes more than thirty workers, or half a minute, to see of the real one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from farebox import supervise
from farebox.cli import main

SHARDED = (sys.executable, str(Path(__file__)))

supervise.SETTINGS = supervise.SupervisorSettings(workers_per_shard=1, polls_max=4)

if __name__ == "__main__":
    main()

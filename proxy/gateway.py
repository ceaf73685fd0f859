"""What one worker is made of: passed to every exchange, built by `farebox.worker`.

Nothing here is global: tests build the same from fakes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ledger.client import Ledger
from proxy.admit import Load
from proxy.authenticate import Keyring
from proxy.connection import Connection
from proxy.control import Control
from proxy.deadlines import Deadlines
from proxy.idempotency import Answers
from proxy.keep_alive import KeepAlives
from proxy.latency import Latencies
from proxy.memory import Memory
from proxy.metrics import Metrics
from proxy.outputs import Outputs
from proxy.receipts import UsageHistory
from proxy.record import Log
from proxy.route import Snapshot
from proxy.settings import ServerSettings
from proxy.stored import Responses
from proxy.turn import Means
from proxy.upstream import Upstreams
from proxy.watch import Watch


def wall_seconds() -> float:
    """Seconds since the epoch: for expiry dates, never for durations."""
    return time.time_ns() / 1e9


@dataclass(slots=True)
class Gateway:
    """A worker's parts. `snapshot` and `settings` are replaced whole on reload.

    `secret` seals what clients carry for us between requests. `outputs` is None where reservations
    hold the whole output cap, `control` where there is no console.
    """

    settings: ServerSettings
    snapshot: Snapshot
    keyring: Keyring
    ledger: Ledger
    upstreams: Upstreams
    watch: Watch
    metrics: Metrics
    log: Log
    load: Load
    memory: Memory
    secret: bytes
    responses: Responses
    answers: Answers
    usage: UsageHistory
    means: Means
    outputs: Outputs | None = None
    control: Control | None = None
    latencies: Latencies = field(default_factory=Latencies)
    keep_alives: KeepAlives = field(default_factory=KeepAlives)
    deadlines: Deadlines = field(default_factory=Deadlines)
    wall: Callable[[], float] = wall_seconds
    draining: bool = False
    connections: set[Connection] = field(default_factory=set)

    def drain(self) -> None:
        """Close idle connections now, and the others after their answer."""
        self.draining = True
        for connection in self.connections:
            if connection.is_idle:
                connection.deadline.scope.cancel()

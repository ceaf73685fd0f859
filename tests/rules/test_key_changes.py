"""A new key works, and a revoked one stops, within a second, without a restart."""

from __future__ import annotations

import time
from pathlib import Path

import trio

from tests.fakes.callers import call
from tests.fakes.process import GatewayProcess, serving


async def seconds_until(gateway: GatewayProcess, key: str, status: int) -> float:
    """How long until a call is answered with `status`."""
    started = time.monotonic()
    while (await call(gateway.base_url, key, "sandbox")).status != status:
        assert time.monotonic() - started < 5, f"no {status} within five seconds"
        await trio.sleep(0.02)
    return time.monotonic() - started


async def test_a_key_is_effective_within_a_second(tmp_path: Path) -> None:
    with serving(tmp_path) as gateway:
        gateway.record("account", "create", "acme", "--credit", "1.00")
        made = gateway.record("key", "create", "acme/default")
        assert await seconds_until(gateway, str(made["key"]), 200) < 1
        gateway.record("key", "revoke", str(made["id"]))
        assert await seconds_until(gateway, str(made["key"]), 401) < 1

"""One real gateway with the sandbox provider for all SDK tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.process import LOOPBACK, GatewayProcess, serving

TIERS = """
[tiers.slow]
rpm = 1
"""


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """`farebox serve` with the sandbox provider."""
    directory: Path = tmp_path_factory.mktemp("gateway")
    with serving(directory, LOOPBACK + "max_body_bytes = 200000\n" + TIERS) as process:
        yield process


@pytest.fixture(scope="session")
def key(gateway: GatewayProcess) -> str:
    """A key of an account with credit."""
    return gateway.new_key("sdk", "1000.00")

"""Fixtures that several packages' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes import postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.TestServer]:
    """One real Postgres for the whole session, started when the first test asks for it."""
    with postgres.serve() as server:
        yield server


@pytest.fixture
def database(postgres_server: postgres.TestServer) -> Iterator[str]:
    """The conninfo of a fresh database with every migration applied."""
    with postgres_server.database() as conninfo:
        yield conninfo


@pytest.fixture
def empty_database(postgres_server: postgres.TestServer) -> Iterator[str]:
    """The conninfo of a fresh database without any migration."""
    with postgres_server.empty_database() as conninfo:
        yield conninfo

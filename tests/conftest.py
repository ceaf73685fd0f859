"""Fixtures that several packages' tests share.

Whatever a test does to a database, its books are sound afterwards: every invariant (C1–C8) is
checked when the test is over. One that damages them on purpose, or leaves none to check, says so:
`@pytest.mark.unsound_books("why")`. `tests.fakes.gateway.running` and `tests.fakes.process.serving`
do the same for the books that they bring along.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from ledger import verify
from tests.fakes import postgres

# An example may take as long as a busy machine needs. All else is as the profile in use has it,
# like the fixed seed of CI's.
settings.register_profile(settings.get_current_profile_name(), settings.default, deadline=None)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark, which has an argument: why."""
    config.addinivalue_line("markers", "unsound_books(why): its database is not checked afterwards")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.TestServer]:
    """One real Postgres for the whole session, started when the first test asks for it."""
    with postgres.serve() as server:
        yield server


@pytest.fixture
def database(request: pytest.FixtureRequest, postgres_server: postgres.TestServer) -> Iterator[str]:
    """The conninfo of a fresh database with every migration applied."""
    mark = request.node.get_closest_marker("unsound_books")
    with postgres_server.database() as conninfo:
        yield conninfo
        if mark is None:
            found = [each for check in verify.run(conninfo) for each in check.violations]
            assert not found, "the test leaves unsound books"
        else:
            assert mark.args[0], "say why"


@pytest.fixture
def empty_database(postgres_server: postgres.TestServer) -> Iterator[str]:
    """The conninfo of a fresh database without any migration."""
    with postgres_server.empty_database() as conninfo:
        yield conninfo

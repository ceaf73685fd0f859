"""Columns packed by us are what Postgres reads."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.arrays import BIGINT, INTEGER, SMALLINT, UUID, ElementType
from tests.fakes import postgres

TYPES = (("bigint", BIGINT), ("integer", INTEGER), ("smallint", SMALLINT))


@pytest.fixture(scope="module")
def connection(postgres_server: postgres.TestServer) -> Iterator[psycopg.Connection]:
    with (
        postgres_server.empty_database() as conninfo,
        psycopg.connect(conninfo, autocommit=True) as connection,
    ):
        yield connection


@pytest.mark.parametrize(("name", "kind"), TYPES)
@given(data=st.data())
def test_every_column_arrives_as_it_was(
    connection: psycopg.Connection, name: str, kind: ElementType, data: st.DataObject
) -> None:
    edge = 1 << (8 * kind.width - 1)
    numbers = data.draw(st.lists(st.integers(-edge, edge - 1), max_size=50))
    statement = f"SELECT %b::{name}[]".encode()
    row = connection.execute(statement, [kind.array(numbers)]).fetchone()
    assert row == (numbers,)


@pytest.mark.parametrize(("name", "kind"), TYPES)
def test_a_number_that_is_too_wide_is_refused(name: str, kind: ElementType) -> None:
    with pytest.raises(OverflowError, match=str(kind.width)):
        kind.array([1, 1 << (8 * kind.width - 1)])


@given(ids=st.lists(st.uuids(), max_size=50))
def test_every_id_arrives_as_it_was(connection: psycopg.Connection, ids: list[uuid.UUID]) -> None:
    packed = UUID.array([each.bytes for each in ids])
    assert connection.execute("SELECT %b::uuid[]", [packed]).fetchone() == (ids,)

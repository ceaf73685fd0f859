"""Models in the console: what the data plane serves, no more and no less."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.catalogue import Catalogue
from farebox.catalogue import catalogue
from farebox.config import load
from farebox.snapshot import on_offer
from ledger.directory import Directory
from tests.fakes.catalogues import PARTLY_PRICED
from tests.fakes.console import FACTS, Browser
from tests.fakes.people import town

KEYS = "/console/api/accounts/acme/keys"


@pytest.fixture
def partly_priced(tmp_path: Path) -> Catalogue:
    file = tmp_path / "farebox.toml"
    file.write_text(PARTLY_PRICED)
    config = load(file, {})
    return on_offer(config, catalogue(config))


@asynccontextmanager
async def operator_of(database: str, catalogue: Catalogue) -> AsyncIterator[Browser]:
    """Of a console that lists `catalogue`, and knows the project acme/web."""
    with Directory(database) as directory:
        directory.create_account("acme")
        directory.create_project("acme", "web")
    async with town(database, facts=replace(FACTS, catalogue=catalogue)) as place:
        yield await place.operator()


async def test_a_model_that_cannot_be_sold_is_not_listed(
    database: str, partly_priced: Catalogue
) -> None:
    async with operator_of(database, partly_priced) as operator:
        (model,) = (await operator.get("/console/api/accounts/acme/models")).json()["models"]
        assert model["id"] == "talks"
        assert [price["unit"] for price in model["price_rows"][0]["prices"]] == ["input", "output"]
        assert "noprice" not in (await operator.get("/console/acme/models")).text


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("talks", 201),
        ("own/c", 201),
        ("farebox/auto", 201),
        ("farebox-balanced", 201),
        ("noprice", 400),
        ("own/b", 400),
        ("farebox/else", 400),
    ],
)
async def test_a_key_is_limited_to_what_can_be_asked_for(
    database: str, partly_priced: Catalogue, name: str, status: int
) -> None:
    async with operator_of(database, partly_priced) as operator:
        answer = await operator.post(KEYS, json={"project": "web", "models": [name]})
    assert answer.status_code == status, answer.text

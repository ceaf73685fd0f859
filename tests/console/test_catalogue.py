"""Models in the console: what the data plane serves, no more and no less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from adapters.catalogue import Catalogue
from farebox.catalogue import catalogue, on_offer
from farebox.config import load
from ledger.directory import Directory
from tests.fakes.console import FACTS
from tests.fakes.people import town

PARTLY_PRICED = """
[[providers]]
name = "own"
base_url = "http://127.0.0.1:1/v1"

[[models]]
id = "noprice"
upstreams = ["own/a"]
price = { input = "1" }

[[models]]
id = "talks"
upstreams = ["own/b", "own/c"]
upstream_price = { "own/c" = { input = "1", output = "2" } }
"""
KEYS = "/console/api/accounts/acme/keys"


@pytest.fixture
def partly_priced(tmp_path: Path) -> Catalogue:
    """A model without a price, and one with a price at its second upstream only."""
    file = tmp_path / "farebox.toml"
    file.write_text(PARTLY_PRICED)
    config = load(file, {})
    return on_offer(config, catalogue(config))


async def test_a_model_that_cannot_be_sold_is_not_listed(
    database: str, partly_priced: Catalogue
) -> None:
    with Directory(database) as directory:
        directory.create_account("acme")
        directory.create_project("acme", "web")
    async with town(database, facts=replace(FACTS, catalogue=partly_priced)) as place:
        operator = await place.operator()
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
    with Directory(database) as directory:
        directory.create_account("acme")
        directory.create_project("acme", "web")
    async with town(database, facts=replace(FACTS, catalogue=partly_priced)) as place:
        operator = await place.operator()
        answer = await operator.post(KEYS, json={"project": "web", "models": [name]})
    assert answer.status_code == status, answer.text

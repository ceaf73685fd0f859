"""The first page of an account: what it says of one that is new, or has nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from console.pages.overview import BURN_DAYS, DAYS, _burn, _mean_of, _passed
from console.store.usage import Slice
from tests.console.test_keys import acme

NOW = datetime(2026, 11, 22, 15, 30, tzinfo=UTC)
TODAY = NOW.replace(hour=0, minute=0)
WEEK = [TODAY - timedelta(days=n) for n in reversed(range(DAYS))]
TEN_DOLLARS = 10_000_000_000


def spent(day: datetime) -> Slice:
    return Slice(
        starts_at=day,
        model="x",
        requests=1,
        failed=0,
        charge=TEN_DOLLARS,
        cost=0,
        input_tokens=0,
        cached_input_tokens=0,
        output_tokens=0,
        reasoning_tokens=0,
    )


@pytest.mark.parametrize(
    ("first", "a_day", "said"),
    [
        (NOW - timedelta(hours=6), 40, "mean of the last 6 hours"),
        (NOW - timedelta(hours=24), 10, "mean of the last 24 hours"),
        (NOW - timedelta(hours=60), 4, "mean of the last 2 days"),
        (NOW - timedelta(minutes=90), None, "too little to tell yet"),
        (WEEK[0], 10 / (BURN_DAYS - 1 + 15.5 / 24), f"mean of the last {BURN_DAYS} days"),
    ],
)
def test_a_mean_is_of_the_time_since_the_first_request(
    first: datetime, a_day: float | None, said: str
) -> None:
    """Ten dollars in six hours are forty dollars a day, not one and a half."""
    passed = _passed(first, WEEK, NOW)
    assert _mean_of(passed) == said
    slices = [spent(TODAY), replace(spent(WEEK[0]), charge=TEN_DOLLARS)]
    assert _burn(slices, WEEK, passed) == round((a_day or 0) * 1e9)


async def test_an_account_without_credit_and_requests(database: str) -> None:
    async with acme(database) as (_, browser):
        text = (await browser.get("/console/acme")).text
    assert "no credit: requests are refused" in text
    assert "nothing is held" not in text
    assert "<svg class='chart" not in text
    assert len(re.findall("No requests in these days", text)) == 2

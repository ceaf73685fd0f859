"""The first page of an account: what is left, how fast it goes and where, and how well it works."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial

from starlette.responses import Response

from console import plan
from console.access import moment
from console.pages import charts, words
from console.pages.charts import NARROW, Series
from console.pages.frame import Facts, Visit
from console.store import Connection, usage
from console.store.usage import Latency, Slice, Span, milliseconds_of
from ledger.accounts import Statement

DAYS = 30
BURN_DAYS = 7

_DAY = timedelta(days=1)
_SHORT_RUNWAY_DAYS = 7
_LONG_RUNWAY_DAYS = 365
_MODELS_SHOWN = 12
_OTHERS = "others"
_SPEND = "Spend by day and model"
_TELLING = timedelta(hours=2)  # since the full hour of the first request
_NO_RUNWAY: Facts = {"text": "–", "note": "too little to tell yet", "kind": ""}


async def show(visit: Visit) -> Response:
    """The page."""
    console, member = visit.console, visit.member
    now = moment(console)
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    begin = today - (DAYS - 1) * _DAY
    statement = await plan.statement(console, member)
    slices, latencies, first = await console.database.run(
        partial(_sums, account_id=member.account_id, since=begin, until=today + _DAY)
    )
    days = [begin + n * _DAY for n in range(DAYS)]
    failed = sum(each.failed for each in slices)
    requests = sum(each.requests for each in slices)
    passed = _passed(first, days, now)
    burn = _burn(slices, days, passed)
    return visit.render(
        "overview.html",
        "",
        {
            "days": DAYS,
            "balance": _balance(statement),
            "burn": {"usd": words.usd(burn) if passed else "–", "note": _mean_of(passed)},
            "runway": _runway(statement.balance, burn, now) if passed else _NO_RUNWAY,
            "requests": {
                "count": words.count(requests),
                "note": f"{words.share(failed, requests)} failed" if requests else "",
                "kind": "" if failed * 50 <= requests else "warn",
            },
            "spend": _spend(slices, days),
            "errors": _errors(slices, days),
            "latency": _latency(latencies, days),
            "models": _models(slices, latencies),
        },
    )


def _sums(
    connection: Connection, account_id: int, since: datetime, until: datetime
) -> tuple[list[Slice], list[Latency], datetime | None]:
    """Both of one account and time, and the hour of the first request of them."""
    slices = usage.slices(connection, account_id, Span.DAY, since, until)
    latencies = usage.latencies(connection, account_id, Span.DAY, since, until)
    first = min((each.starts_at for each in slices), default=None)
    if first is not None:
        hours = usage.slices(connection, account_id, Span.HOUR, first, first + _DAY)
        first = min((each.starts_at for each in hours), default=first)
    return slices, latencies, first


# -- the four figures -----------------------------------------------------------------------------


def _balance(statement: Statement) -> Facts:
    held = statement.reserved
    note, kind = f"{words.usd(held)} of it reserved" if held else "", ""
    if statement.balance <= 0:
        note, kind = "no credit: requests are refused", "bad"
    return {"usd": words.usd(statement.balance), "note": note, "kind": kind}


def _passed(first: datetime | None, days: Sequence[datetime], now: datetime) -> timedelta | None:
    """The time that the mean is of: the last days, or less where the first request was in them;
    None where it is so short that it says nothing of a day."""
    passed = now - max(first or now, days[-BURN_DAYS])
    return passed if passed >= _TELLING or first is None else None


def _burn(slices: Iterable[Slice], days: Sequence[datetime], passed: timedelta | None) -> int:
    """Nano-dollars a day, over the time that has passed."""
    if not passed:
        return 0
    spent = sum(each.charge for each in slices if each.starts_at >= days[-BURN_DAYS])
    return round(spent / (passed / _DAY))


def _mean_of(passed: timedelta | None) -> str:
    if passed is None:
        return "too little to tell yet"
    if not passed or passed > (BURN_DAYS - 1) * _DAY:
        return f"mean of the last {BURN_DAYS} days"
    if passed < 2 * _DAY:
        return f"mean of the last {passed // timedelta(hours=1)} hours"
    return f"mean of the last {passed // _DAY} days"


def _runway(balance: int, burn: int, now: datetime) -> Facts:
    if burn <= 0:
        return {"text": "–", "note": "nothing was spent lately", "kind": ""}
    days = max(balance, 0) / burn
    if days > _LONG_RUNWAY_DAYS:
        return {"text": "over a year", "note": "at this rate", "kind": "good"}
    whole = int(days)
    text = "less than a day" if whole < 1 else f"{whole} day{'s' if whole > 1 else ''}"
    until = now + timedelta(days=days)
    kind = "warn" if days < _SHORT_RUNWAY_DAYS else ""
    return {"text": text, "note": f"until {words.day(until)}, at this rate", "kind": kind}


# -- the charts -----------------------------------------------------------------------------------


def _spend(slices: Sequence[Slice], days: Sequence[datetime]) -> Facts:
    """By day and model; what is beyond the colours is summed up."""
    by_model: Counter[str] = Counter()
    for each in slices:
        by_model[each.model] += each.charge
    dearest = [model for model, charge in by_model.most_common() if charge]
    if not dearest:
        return {
            "chart": "",
            "narrow_chart": "",
            "total_usd": words.usd(0),
            "legend": [],
            "rows": [],
        }
    shown = dearest if len(dearest) <= charts.SERIES_MAX else dearest[: charts.SERIES_MAX - 1]
    names = shown if len(shown) == len(dearest) else [*shown, _OTHERS]
    spent: Counter[tuple[datetime, str]] = Counter()
    for each in slices:
        name = each.model if each.model in shown else _OTHERS
        spent[each.starts_at, name] += each.charge
    series = [Series(name, [spent[day, name] / 1e9 for day in days]) for name in names]
    totals = {name: sum(spent[day, name] for day in days) for name in names}
    return {
        "chart": charts.bars(_SPEND, _labels(days), series, _dollars),
        "narrow_chart": charts.bars(
            _SPEND, _labels(days), series, _dollars, width=NARROW, height=300
        ),
        "total_usd": words.usd(sum(by_model.values())),
        "legend": [
            {"colour": f"s{n}", "name": name, "value": words.usd(totals[name])}
            for n, name in enumerate(names, 1)
        ],
        "rows": [
            {
                "day": words.day(day),
                "usd": [words.usd(spent[day, name]) for name in names],
                "total_usd": words.usd(sum(spent[day, name] for name in names)),
            }
            for day in reversed(days)
        ],
    }


def _errors(slices: Sequence[Slice], days: Sequence[datetime]) -> Facts:
    answered: Counter[datetime] = Counter()
    failed: Counter[datetime] = Counter()
    for each in slices:
        answered[each.starts_at] += each.requests - each.failed
        failed[each.starts_at] += each.failed
    series = [
        Series("answered", [answered[day] for day in days]),
        Series("failed", [failed[day] for day in days], "failed"),
    ]
    whole = answered.total() + failed.total()
    return {
        "share": words.share(failed.total(), whole),
        "chart": charts.bars(
            "Requests by day", _labels(days), series, _plain, width=NARROW, height=200, whole=True
        )
        if whole
        else "",
        "legend": [
            {"colour": "s1", "name": "answered", "value": ""},
            {"colour": "failed", "name": "failed", "value": ""},
        ],
    }


def _latency(latencies: Sequence[Latency], days: Sequence[datetime]) -> Facts:
    by_day: dict[datetime, Counter[int]] = {day: Counter() for day in days}
    for each in latencies:
        if each.starts_at is not None and each.starts_at in by_day:
            by_day[each.starts_at][each.bucket] += each.requests
    series = [
        Series("median", [quantile(by_day[day], 0.5) for day in days]),
        Series("95th percentile", [quantile(by_day[day], 0.95) for day in days]),
    ]
    return {
        "chart": charts.lines(
            "Time to first byte by day",
            _labels(days),
            series,
            words.lasted,
            width=NARROW,
            height=200,
        )
        if latencies
        else "",
        "legend": [
            {"colour": "s1", "name": "median", "value": ""},
            {"colour": "s2", "name": "95th percentile", "value": ""},
        ],
    }


def _models(slices: Sequence[Slice], latencies: Sequence[Latency]) -> list[Facts]:
    """The models that were asked, dearest first."""
    buckets: dict[str, Counter[int]] = {}
    for each in latencies:
        if each.model is not None:
            buckets.setdefault(each.model, Counter())[each.bucket] += each.requests
    sums: dict[str, Counter[str]] = {}
    for slice_ in slices:
        sums.setdefault(slice_.model, Counter()).update(
            charge=slice_.charge,
            requests=slice_.requests,
            failed=slice_.failed,
            input=slice_.input_tokens,
            output=slice_.output_tokens,
        )
    ordered = sorted(sums, key=lambda model: (-sums[model]["charge"], model))
    return [
        {
            "model": model,
            "requests": words.count(sums[model]["requests"]),
            "input_tokens": words.count(sums[model]["input"]),
            "output_tokens": words.count(sums[model]["output"]),
            "failed": words.share(sums[model]["failed"], sums[model]["requests"]),
            "median": words.lasted(quantile(buckets.get(model, Counter()), 0.5)),
            "usd": words.usd(sums[model]["charge"]),
        }
        for model in ordered[:_MODELS_SHOWN]
    ]


def quantile(buckets: Mapping[int, int], share: float) -> float | None:
    """The time within which that share of answers began, in milliseconds, at most a fifth too
    much; None where there were none."""
    whole = sum(buckets.values())
    if not whole:
        return None
    below = 0
    for bucket in sorted(buckets):
        below += buckets[bucket]
        if below >= share * whole:
            return milliseconds_of(bucket)
    raise AssertionError("the last bucket holds the rest")


def _labels(days: Sequence[datetime]) -> list[str]:
    return [f"{day:%b} {day.day}" for day in days]


def _dollars(amount: float) -> str:
    whole = amount >= 10 or amount == 0
    return f"${amount:,.0f}" if whole else words.usd(Decimal(repr(round(amount, 9))))


def _plain(amount: float) -> str:
    return words.count(round(amount))

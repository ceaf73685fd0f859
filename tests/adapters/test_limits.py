"""What is left of limits, in the words of OpenAI and of Anthropic."""

from __future__ import annotations

from datetime import UTC, datetime

from adapters.limits import Left, anthropic_headers, openai_headers

LIMITS = [Left("requests", 20, 19, 2.9996), Left("tokens", 200_000, 150_000, 14.25)]
NOW = datetime(2026, 11, 21, 8, 59, 59, tzinfo=UTC).timestamp()


def test_openai_is_told_durations() -> None:
    assert openai_headers(LIMITS) == [
        ("x-ratelimit-limit-requests", "20"),
        ("x-ratelimit-remaining-requests", "19"),
        ("x-ratelimit-reset-requests", "3.000s"),
        ("x-ratelimit-limit-tokens", "200000"),
        ("x-ratelimit-remaining-tokens", "150000"),
        ("x-ratelimit-reset-tokens", "14.250s"),
    ]


def test_anthropic_is_told_times_never_too_early() -> None:
    assert anthropic_headers(LIMITS, NOW) == [
        ("anthropic-ratelimit-requests-limit", "20"),
        ("anthropic-ratelimit-requests-remaining", "19"),
        ("anthropic-ratelimit-requests-reset", "2026-11-21T09:00:02Z"),
        ("anthropic-ratelimit-tokens-limit", "200000"),
        ("anthropic-ratelimit-tokens-remaining", "150000"),
        ("anthropic-ratelimit-tokens-reset", "2026-11-21T09:00:14Z"),
    ]


def test_nothing_is_told_where_nothing_is_limited() -> None:
    assert openai_headers([]) == anthropic_headers([], NOW) == []

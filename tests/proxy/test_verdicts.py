"""The table of outcomes: complete, and without contradictions."""

from __future__ import annotations

from typing import get_args

import pytest

from adapters.codec import FailureKind, UpstreamFailure
from adapters.errors import NotFound
from proxy.upstream import Reason
from proxy.verdicts import VERDICTS, Fault, Outcome, Says, Verdict

EACH = pytest.mark.parametrize(("outcome", "verdict"), VERDICTS.items(), ids=VERDICTS)


def test_every_outcome_has_a_verdict() -> None:
    assert set(VERDICTS) == {*get_args(FailureKind), *get_args(Reason)}


@EACH
def test_what_is_the_requests_fault_is_tried_nowhere_else(
    outcome: Outcome, verdict: Verdict
) -> None:
    assert verdict.elsewhere == (verdict.fault is not Fault.REQUEST)
    assert not (verdict.again and not verdict.elsewhere)


@EACH
def test_what_an_operator_has_to_mend_raises_an_alarm(outcome: Outcome, verdict: Verdict) -> None:
    if verdict.fault in (Fault.CREDENTIAL, Fault.MAPPING):
        assert verdict.alarm
        assert not verdict.again


@EACH
def test_a_request_at_fault_says_nothing_bad_of_its_upstream(
    outcome: Outcome, verdict: Verdict
) -> None:
    if verdict.fault is Fault.REQUEST:
        assert verdict.says is Says.ALIVE


@EACH
def test_words_of_the_fault_exist_where_they_are_told(outcome: Outcome, verdict: Verdict) -> None:
    if outcome in get_args(FailureKind):
        kind: FailureKind = outcome  # type: ignore[assignment]  # it is one, as just found
        told = UpstreamFailure(kind, "No.").client_error()
        assert (told is not None) == (verdict.told == "the fault")
    else:
        assert verdict.told != "the fault"


@EACH
def test_whoever_is_at_fault_is_told_something(outcome: Outcome, verdict: Verdict) -> None:
    if outcome in get_args(FailureKind) and verdict.told == "the fault":
        kind: FailureKind = outcome  # type: ignore[assignment]  # it is one, as just found
        told = UpstreamFailure(kind, "").client_error()
        assert told is not None
        assert told.message


def test_what_is_not_found_is_not_said_to_be_the_model() -> None:
    told = UpstreamFailure("not_found", "File 'file_1' not found.").client_error()
    assert isinstance(told, NotFound)
    assert "file_1" in told.message

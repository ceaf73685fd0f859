"""What operators read of failing upstreams is what the code's own table says."""

from __future__ import annotations

from pathlib import Path

from adapters.codec import UpstreamFailure
from proxy.turn import ASKED_MAX, ATTEMPTS_MAX, WAITS_SECONDS_MAX
from proxy.verdicts import VERDICTS, Outcome, Says, Verdict

PAGE = (Path(__file__).parents[2] / "docs/reliability.md").read_text()
TOLD = {"unavailable": "502", "overloaded": "503", "timeout": "504"}


def rows() -> dict[str, list[str]]:
    """The cells of the table of outcomes, by outcome."""
    found = {}
    _, _, table = PAGE.partition("| outcome |")
    for line in table.partition("\n\n")[0].splitlines()[2:]:
        names, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        for name in names.split(","):
            found[name.strip(" `")] = cells
    return found


def says(verdict: Verdict) -> str:
    said = verdict.says.value
    if verdict.scope == "provider":
        said += ", with the whole provider" if verdict.says is Says.OUT else " of the provider"
    return said


def test_every_outcome_is_there_with_what_follows_from_it() -> None:
    table = rows()
    assert set(table) == set(VERDICTS)
    for outcome, verdict in VERDICTS.items():
        _, elsewhere, again, said, alone = table[outcome]
        assert elsewhere == ("yes" if verdict.elsewhere else "no"), outcome
        assert again == ("yes" if verdict.again else "no"), outcome
        assert said.startswith(says(verdict)), outcome
        assert ("alarm" in said) == verdict.alarm, outcome
        assert alone == told(outcome, verdict), outcome


def told(outcome: Outcome, verdict: Verdict) -> str:
    """The status that a client gets."""
    if verdict.told != "the fault":
        return TOLD[verdict.told]
    error = UpstreamFailure(outcome, "no").client_error()  # type: ignore[arg-type] # it is a kind
    return str(error.status) if error is not None else "404"


def test_the_bounds_are_those_of_the_code() -> None:
    assert (ASKED_MAX, ATTEMPTS_MAX, WAITS_SECONDS_MAX) == (3, 4, 10.0)
    assert "three times at each upstream, four attempts" in PAGE
    assert "ten seconds of pauses" in PAGE

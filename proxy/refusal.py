"""What a client hears when no upstream has served its request.

It hears one thing, though its upstreams may have failed in different ways. What is known of them
comes in as plain values: how each attempt ended, why those that were not asked are `shut`, and how
long any of them wants to be left alone. The first rule that fits decides:

1. None of them knows the model: there is no such model here.
2. All wait for somebody who runs this gateway: asking again is of no use before that.
3. Nothing worse than too much work: they are to be asked again, and after how long.
4. Otherwise the last attempt tells: it took too long, or it failed.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapters.errors import (
    APIError,
    ModelNotAvailable,
    UpstreamOverloaded,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.health import State, UpstreamState
from proxy.verdicts import VERDICTS, Outcome

_RETRY_AFTER_SECONDS = 1.0  # where nobody has named a time
_OUT_OF_TIME: frozenset[Outcome] = frozenset({"first_byte_timeout", "idle_timeout"})


def shut_by(state: UpstreamState) -> Outcome:
    """Why an upstream that was not asked may not be asked; "busy" where that will pass."""
    return state.cause if state.state is State.OPEN and state.cause is not None else "busy"


def refusal(
    outcomes: Sequence[Outcome], shut: Sequence[Outcome], waits: Sequence[float]
) -> APIError:
    """The client's error, from how the attempts ended, what shut the upstreams that were not asked
    (there is one or the other), and the seconds until one of them may be asked again."""
    retry_after = min(waits, default=_RETRY_AFTER_SECONDS)
    verdicts = [VERDICTS[outcome] for outcome in (*outcomes, *shut)]
    if all(verdict.told == "the fault" for verdict in verdicts):
        return ModelNotAvailable("No upstream of this model knows it.", param="model")
    if all(verdict.alarm for verdict in verdicts):
        words = "The upstreams of this model refuse this gateway; whoever runs it has been told."
        if outcomes:
            return UpstreamUnavailable(words, should_retry=False)
        return UpstreamOverloaded(words, retry_after=retry_after, should_retry=False)
    if all(VERDICTS[outcome].told == "overloaded" for outcome in outcomes):
        causes = ", ".join(dict.fromkeys((*outcomes, *shut)))
        return UpstreamOverloaded(
            f"No upstream of this model can take the request now ({causes}); try again shortly.",
            retry_after=retry_after,
        )
    return _last(outcomes)


def _last(outcomes: Sequence[Outcome]) -> APIError:
    """What the last attempt says for all of them."""
    last = outcomes[-1]
    several = len(outcomes) > 1
    attempts = f"{len(outcomes)} attempts, the last: {last}" if several else last
    if VERDICTS[last].told == "timeout":
        # Who has waited for as long as is configured would wait, and let work, as long again.
        return UpstreamTimeout(
            f"The upstream of this model did not answer in time ({attempts}).",
            should_retry=False if last in _OUT_OF_TIME else None,
        )
    return UpstreamUnavailable(f"No upstream of this model could serve the request ({attempts}).")

"""What may be heard while upstreams fail, and what the books must say of it afterwards.

The rules, each of them decidable from the outside:

 1  An answer that ends as a good one does (status 200, why it stopped, the protocol's last event,
    HTTP's end of the body, no error) is the whole expected text, to the letter.
 2  Any other answer says so: with a status that an upstream's failure may have, with an error event
    as the last thing in its stream, or with a connection that breaks, for which a worker must have
    died within the life of the request.
 3  What came of an answer that failed is the beginning of the right text.
 4  Providers heard of a question no more often than the gateway may ask, and none of them was
    listened to that was asked after the first word had reached the client. An answer is whole only
    where one of them gave all of it.
 5  A whole answer is charged exactly once, with what its usage costs. One that failed before its
    first word is not charged; one that broke off, for no more than the whole would have cost.
 6  At the end nothing is held, and every invariant of the books holds.

A sentence about a breach is a problem; one problem fails the run.
"""

from __future__ import annotations

import enum
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal

from farebox.sandbox import Performance
from tests.chaos.transcript import Heard, Transcript, read

INPUT_USD = Decimal("1.00")  # per million tokens, at every upstream
OUTPUT_USD = Decimal("4.00")
MARGIN = Decimal("1.10")
ATTEMPTS_MAX = 4 + 2  # and one more at whoever could not be asked before
_OK = 200
_LISTENED_TO = ("whole", "spoilt", "cut", "reset")
_NANO = Decimal("1e-9")
_DEATH_SECONDS = 2.0  # how long a death may take to be felt, on a busy machine
_STATUSES = {
    502: {"upstream_unavailable"},
    503: {"upstream_unavailable", "ledger_unavailable", "overloaded"},
    504: {"upstream_timeout"},
}


class Ending(enum.Enum):
    """How an answer ended, as its client has to see it."""

    WHOLE = "whole"
    REFUSED = "refused"  # a status
    BROKEN_OFF = "error event"
    DISCONNECTED = "connection broken"
    FALSE = "false"  # what must not be


@dataclass(frozen=True, slots=True)
class Told:
    """What is kept of an answer. `output_tokens_max` is what the whole of it could cost, however
    it is counted: its words, or the tokens that so many bytes usually make."""

    request_id: str
    nonce: str
    ending: Ending
    code: str
    begun: float
    first_content: float | None
    usage: tuple[int, int] | None
    output_tokens_max: int
    text_came: bool


@dataclass
class Judge:
    """Judges each answer when it has ended, by rules 1 to 3. `deaths` are the moments at which
    workers were killed."""

    deaths: list[float] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def hear(self, heard: Heard) -> None:
        """An answer has ended."""
        transcript = read(heard.question.surface, heard.body)
        ending, code, breaches = _ending(heard, transcript, self.deaths)
        name = f"{heard.request_id or 'a request'} ({heard.question.surface})"
        self.problems += [f"{name}: {breach}" for breach in breaches]
        self.told.append(
            Told(
                heard.request_id,
                heard.question.nonce,
                ending,
                code,
                heard.begun,
                heard.first_content,
                transcript.usage,
                _tokens_at_most(heard.question.expected),
                bool(transcript.text) if heard.status == 200 else False,
            )
        )


def _ending(
    heard: Heard, transcript: Transcript, deaths: Sequence[float]
) -> tuple[Ending, str, list[str]]:
    """How it ended, with which code, and what is wrong with that."""
    if not heard.framed:
        breaches = [] if heard.status not in (0, 200) else list(_not_right(heard, transcript))
        if not any(heard.begun - _DEATH_SECONDS <= at <= heard.ended for at in deaths):
            breaches.append(f"the connection broke, and no worker had died ({heard.status})")
        return Ending.DISCONNECTED, "", breaches
    if heard.status != 200:
        code = _code(heard.body)
        return Ending.REFUSED, f"{heard.status} {code}", list(_refused_badly(heard, code))
    breaches = list(_not_right(heard, transcript))
    if transcript.error:
        if transcript.terminal and heard.question.surface == "chat":
            breaches.append("an error, and then the end of a good answer")
        if transcript.after_error:
            breaches.append("something follows the error")
        return Ending.BROKEN_OFF, transcript.error, breaches
    if not (transcript.finish == "stop" and transcript.terminal):
        breaches.append(
            f"it ends well and is not whole: finish {transcript.finish!r}, "
            f"last event {transcript.terminal}"
        )
    elif transcript.text != heard.question.expected:
        breaches.append(
            f"it is complete and wrong: {len(transcript.text)} characters, "
            f"not {len(heard.question.expected)}"
        )
    elif transcript.usage is None and heard.question.surface == "chat":
        breaches.append("it does not say what it used, and was asked to")
    return (Ending.FALSE if breaches else Ending.WHOLE), "", breaches


def _not_right(heard: Heard, transcript: Transcript) -> Iterator[str]:
    if transcript.unreadable:
        yield f"an event cannot be read: {transcript.unreadable!r}"
    if not heard.question.expected.startswith(transcript.text):
        yield f"its text is not the beginning of the answer: …{transcript.text[-40:]!r}"


def _refused_badly(heard: Heard, code: str) -> Iterator[str]:
    if code not in _STATUSES.get(heard.status, ()):
        yield f"refused with {heard.status} {code}: {heard.body[:200].decode(errors='replace')}"
    elif heard.status == 503 and not heard.headers.get("retry-after", "").isdigit():
        yield "a 503 that does not say when to come back"


def _tokens_at_most(text: str) -> int:
    return max(text.count(" ") + 1, -(-len(text) // 4))


def _code(body: bytes) -> str:
    try:
        error = json.loads(body)["error"]
        return str(error.get("code") or error["details"]["error_code"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return "unreadable"


# -- what providers and books know ----------------------------------------------------------------


def wrong_upstream(told: Sequence[Told], performances: Sequence[Performance]) -> Iterator[str]:
    """Rule 4, given what the providers say of all that they did."""
    by_nonce: dict[str, list[Performance]] = defaultdict(list)
    for performance in performances:
        by_nonce[performance.nonce].append(performance)
    for each in told:
        yield from _wrongly_asked(each, by_nonce[each.nonce])


def _wrongly_asked(told: Told, performances: Sequence[Performance]) -> Iterator[str]:
    # A connection that was kept open may break under a request, which is then sent once more.
    sent_again = sum(each.status == 0 and each.end in ("cut", "reset") for each in performances)
    if len(performances) > ATTEMPTS_MAX + sent_again:
        yield f"question {told.nonce} was sent to providers {len(performances)} times"
    if told.first_content is not None:
        # A request that the gateway has given up may reach its provider late; nobody listens then,
        # and the provider notices.
        late = [
            each
            for each in performances
            if each.began > told.first_content and each.status == _OK and each.end in _LISTENED_TO
        ]
        if late:
            yield f"another provider was listened to when {told.request_id} had its first word"
    if told.ending is Ending.WHOLE and not any(each.end == "whole" for each in performances):
        ends = ", ".join(each.end for each in performances) or "nothing"
        yield f"the answer {told.request_id} is whole, but providers gave: {ends}"


def wrong_in_the_books(
    told: Sequence[Told], records: Sequence[Mapping[str, object]], account: Mapping[str, object]
) -> Iterator[str]:
    """Rules 5 and 6, given the exported usage and the account once the gateway has drained."""
    by_request = {str(record["request_id"]): record for record in records}
    for request_id, count in Counter(str(each["request_id"]) for each in records).items():
        if count > 1:
            yield f"request {request_id} has {count} records"
    for each in told:
        record = by_request.get(each.request_id) if each.request_id else None
        charge = Decimal(str(record["charge_usd"])) if record is not None else Decimal(0)
        yield from _wrongly_charged(each, record, charge)
    if Decimal(str(account["reserved_usd"])):
        yield f"{account['reserved_usd']} is still reserved"


def _wrongly_charged(
    told: Told, record: Mapping[str, object] | None, charge: Decimal
) -> Iterator[str]:
    if told.ending is Ending.WHOLE:
        if record is None or record["billing_status"] != "charged":
            yield f"the answer {told.request_id} is not charged"
            return
        tokens = int(str(record["input_tokens"])), int(str(record["output_tokens"]))
        if charge != _price(*tokens):
            yield f"{charge} charged for {tokens} tokens ({told.request_id})"
        if told.usage is not None and told.usage != tokens:
            yield f"usage {told.usage} told, {tokens} recorded ({told.request_id})"
    elif told.ending is Ending.REFUSED and charge:
        yield f"{charge} charged for a refusal ({told.request_id})"
    elif told.ending is Ending.BROKEN_OFF and not told.text_came and charge:
        yield f"{charge} charged for an answer without a word ({told.request_id})"
    elif told.ending is Ending.BROKEN_OFF and record is not None:
        most = _price(int(str(record["input_tokens"])), told.output_tokens_max)
        if charge > most:
            yield f"{charge} charged for a part, {most} for the whole ({told.request_id})"


def _price(input_tokens: int, output_tokens: int) -> Decimal:
    exact = (input_tokens * INPUT_USD + output_tokens * OUTPUT_USD) / 1_000_000 * MARGIN
    return exact.quantize(_NANO, ROUND_CEILING)

"""The models: one behaviour each, the same in every protocol.

A model may be asked for under the name of a real family, such as `claude-opus-4-8-sandbox-tools`:
it behaves like `sandbox-tools`, and its provider refuses what it refuses for that family.

A model may be asked for with `-once`, `-twice` or `-thrice` behind its name, such as
`sandbox-error-500-once`: it behaves like itself as often, and then like `sandbox-echo`, for each
request by itself. Requests are the same one where they are the same down to the byte.

A provider may have a mood: the name of a model whose faults are then those of all its models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Literal, get_args

from adapters.catalogue import Kind
from adapters.sandbox import behaviours
from adapters.sandbox.answer import Answer
from adapters.sandbox.asked import Asked

Status = Literal[
    400, 401, 402, 403, 404, 408, 409, 413, 415, 422, 425, 429, 500, 502, 503, 504, 529
]
STATUSES: tuple[Status, ...] = get_args(Status)
Trouble = Status | Literal["context", "content", "no_credit", "no_page", "no_reference", "redirect"]

Accident = Literal["cut", "reset", "hang", "unended", "malformed", "server_error", "overloaded"]


@dataclass(frozen=True, slots=True)
class Break:
    """Where an answer goes wrong, and how.

    After `percent` of its pieces; a stream that goes wrong at 0 has not even been opened, unless
    it is `opened`.
    """

    percent: int
    how: Accident
    opened: bool = False

    @property
    def at_once(self) -> bool:
        """Whether it goes wrong before anything was sent."""
        return self.percent == 0 and not self.opened


@dataclass(frozen=True, slots=True)
class Hint:
    """When to come back, as a refusal tells it; in milliseconds as well where `exact`."""

    seconds: float
    exact: bool = False

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        """As OpenAI and Anthropic tell it."""
        rounded = ("retry-after", str(math.ceil(self.seconds)))
        if not self.exact:
            return (rounded,)
        return (("retry-after-ms", str(round(self.seconds * 1000))), rounded)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a model's name does not say: how often it was asked the same before, and its provider's
    mood."""

    tried: int = 0
    mood: str = ""


USUAL = Circumstances()


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One behaviour. `description` is a sentence for documents and lists.

    `usage` says where a stream has it: where the protocol has it, in a Chat stream beside the
    finish reason, or nowhere, in plain answers neither (Anthropic cannot leave it out). `hint` is
    what it tells where it is asked too much. It recovers after it was tried `recovers_after` times;
    0: never.
    """

    description: str
    kind: Kind = "chat"
    refuses: Trouble | None = None
    hint: Hint | None = Hint(1)
    recovers_after: int = 0
    write: Callable[[Asked], Answer] = behaviours.summary
    reasons: Literal["", "shown", "hidden"] = ""
    usage: Literal["asked", "on_finish", "never"] = "asked"
    head_seconds: float = 0
    first_seconds: float = 0
    delta_seconds: float = 0
    caches: bool = False
    breaks: Break | None = None

    def under(self, circumstances: Circumstances) -> Model:
        """As it behaves in these circumstances."""
        if self.recovers_after and circumstances.tried >= self.recovers_after:
            recovered = replace(MODELS[_RECOVERED], kind=self.kind)
            return recovered.under(Circumstances(mood=circumstances.mood))
        mood = find(circumstances.mood)
        if mood is None:
            return self
        mood = mood.under(Circumstances(circumstances.tried))
        return replace(
            self,
            refuses=mood.refuses or self.refuses,
            hint=mood.hint if mood.refuses else self.hint,
            breaks=mood.breaks or self.breaks,
            head_seconds=mood.head_seconds or self.head_seconds,
            first_seconds=mood.first_seconds or self.first_seconds,
            delta_seconds=mood.delta_seconds or self.delta_seconds,
        )

    def answer(self, asked: Asked) -> Answer:
        """What it writes, as far as the request lets it. Raises behaviours.Unshapeable."""
        answer = self.write(asked).until(asked.stop)
        if asked.must_reason or (self.reasons and asked.may_reason):
            answer = behaviours.reasoned(answer, hidden=self.reasons == "hidden")
        return answer if asked.cap is None else answer.within(asked.cap)


_HINTED: tuple[Status, ...] = (429, 503)

MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "sandbox": Model(description="Sums up the prompt in about thirty words."),
        "sandbox-echo": Model(
            description="Says the last text once more; asked to `echo 3 x`, says `x-1 x-2 x-3`.",
            write=behaviours.echo,
        ),
        "sandbox-echo-slow": Model(
            description="The same, with 0.02 seconds between words.",
            write=behaviours.echo,
            delta_seconds=0.02,
        ),
        "sandbox-long": Model(
            description="Counts to 500 without a pause.", write=partial(behaviours.count_to, 500)
        ),
        "sandbox-slow": Model(
            description="Counts to 20: 0.3 seconds to the first word, 0.05 between words.",
            write=partial(behaviours.count_to, 20),
            first_seconds=0.3,
            delta_seconds=0.05,
        ),
        "sandbox-slower": Model(
            description="The same, with 0.5 seconds between words: some ten in all.",
            write=partial(behaviours.count_to, 20),
            first_seconds=0.3,
            delta_seconds=0.5,
        ),
        "sandbox-late": Model(
            description="Sends nothing for 2 seconds, not even a status, then answers at once.",
            head_seconds=2,
        ),
        "sandbox-slow-first": Model(
            description="Opens its answer at once, and says its first word after 2 seconds.",
            first_seconds=2,
        ),
        "sandbox-no-usage": Model(
            description="Never says what it used, where its protocol allows that.", usage="never"
        ),
        "sandbox-usage-on-finish": Model(
            description="Streams its usage beside the finish reason, asked or not.",
            usage="on_finish",
        ),
        "sandbox-cached": Model(
            description="Says that half of the prompt was cached.", caches=True
        ),
        "sandbox-reasoning": Model(
            description="Reasons for 64 tokens before it answers.", reasons="shown"
        ),
        "sandbox-redacted": Model(
            description="Reasons for 64 tokens that nobody may read, and then answers.",
            reasons="hidden",
        ),
        "sandbox-tools": Model(
            description="Calls the first function it is given, with arguments of the right shape.",
            write=behaviours.call_one,
        ),
        "sandbox-parallel-tools": Model(
            description="Calls every tool it is given once, all in one turn.",
            write=behaviours.call_all,
        ),
        "sandbox-reasoning-tools": Model(
            description="Reasons, and then calls every tool it is given.",
            write=behaviours.call_all,
            reasons="shown",
        ),
        "sandbox-script": Model(
            description="Plays the script that a message of the user contains, turn by turn.",
            write=behaviours.scripted,
        ),
        "sandbox-json": Model(
            description="Answers with JSON of the shape that the request describes.",
            write=behaviours.json,
        ),
        "sandbox-empty": Model(
            description="Answers well, but with nothing.", write=behaviours.nothing
        ),
        "sandbox-refusal": Model(description="Refuses, as a model does.", write=behaviours.refusal),
        "sandbox-filtered": Model(
            description="Is stopped by its provider's filter in the middle of the answer.",
            write=behaviours.filtered,
        ),
        "sandbox-cut-40": Model(
            description="Cuts the connection after 40 % of the answer.", breaks=Break(40, "cut")
        ),
        "sandbox-cut-60": Model(
            description="Cuts the connection after 60 % of the answer.", breaks=Break(60, "cut")
        ),
        "sandbox-reset-40": Model(
            description="Breaks the connection off after 40 % of the answer.",
            breaks=Break(40, "reset"),
        ),
        "sandbox-reset-first": Model(
            description="Breaks the connection off instead of an answer.", breaks=Break(0, "reset")
        ),
        "sandbox-cut-first": Model(
            description="Closes the connection instead of an answer.", breaks=Break(0, "cut")
        ),
        "sandbox-unended": Model(
            description="Ends the body without the end of the answer in it.",
            breaks=Break(100, "unended"),
        ),
        "sandbox-silent": Model(
            description="Never answers, not even with a status.", breaks=Break(0, "hang")
        ),
        "sandbox-hung": Model(
            description="Opens its answer, and falls silent before the first word.",
            breaks=Break(0, "hang", opened=True),
        ),
        "sandbox-stall": Model(
            description="Falls silent after two words of twenty.",
            write=partial(behaviours.count_to, 20),
            breaks=Break(10, "hang"),
        ),
        "sandbox-malformed": Model(
            description="Breaks its JSON in the middle of the answer.",
            breaks=Break(50, "malformed"),
        ),
        "sandbox-malformed-first": Model(
            description="Begins its answer with broken JSON.", breaks=Break(0, "malformed")
        ),
        "sandbox-error-in-stream": Model(
            description="Sends an error object in the middle of the answer.",
            breaks=Break(50, "server_error"),
        ),
        "sandbox-error-first": Model(
            description="Sends an error object as the first event of a 200.",
            breaks=Break(0, "server_error"),
        ),
        "sandbox-overloaded-first": Model(
            description="Opens its answer, and is overloaded before the first word.",
            breaks=Break(0, "overloaded", opened=True),
        ),
        **{
            f"sandbox-error-{status}": Model(
                description=f"Answers with status {status}.", refuses=status
            )
            for status in STATUSES
        },
        "sandbox-error-429-exact": Model(
            description="Answers with status 429, and when to come back in milliseconds: 500.",
            refuses=429,
            hint=Hint(0.5, exact=True),
        ),
        "sandbox-error-429-long": Model(
            description="Answers with status 429, and that 120 seconds are to pass.",
            refuses=429,
            hint=Hint(120),
        ),
        **{
            f"sandbox-error-{status}-unhinted": Model(
                description=f"Answers with status {status}, and not when to come back.",
                refuses=status,
                hint=None,
            )
            for status in _HINTED
        },
        "sandbox-no-credit": Model(
            description="Finds its caller's account used up.", refuses="no_credit"
        ),
        "sandbox-no-page": Model(
            description="Answers with status 404 and a page of HTML.", refuses="no_page"
        ),
        "sandbox-no-reference": Model(
            description="Does not find something that the request names.", refuses="no_reference"
        ),
        "sandbox-redirect": Model(
            description="Answers with status 307 and another address.", refuses="redirect"
        ),
        "sandbox-context-overflow": Model(
            description="Finds every prompt too long.", refuses="context"
        ),
        "sandbox-content-filter": Model(
            description="Finds every prompt improper.", refuses="content"
        ),
        "sandbox-embedding": Model(
            description="Gives unit vectors that depend on nothing but the input.",
            kind="embedding",
        ),
    }
)

_MARK = "sandbox"
_RECOVERED = "sandbox-echo"
_RECOVERS = {"once": 1, "twice": 2, "thrice": 3}


def find(name: str) -> Model | None:
    """The model of that name, with or without a real family in front of it, and how often it
    fails behind it."""
    family, mark, behaviour = name.partition(_MARK)
    if family and not family.endswith("-"):
        return None
    fails, _, last = behaviour.rpartition("-")
    if last not in _RECOVERS:
        return MODELS.get(mark + behaviour)
    model = MODELS.get(mark + fails)
    return None if model is None else replace(model, recovers_after=_RECOVERS[last])


def family_of(name: str) -> str:
    """The real family in front of a model's name; empty without one."""
    return name.partition(_MARK)[0].removesuffix("-")

"""The models: one behaviour each, the same in every protocol.

A model may be asked for under the name of a real family, such as `claude-opus-4-8-sandbox-tools`:
it behaves like `sandbox-tools`, and its provider refuses what it refuses for that family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal

from adapters.catalogue import Kind
from adapters.sandbox import behaviours
from adapters.sandbox.answer import Answer
from adapters.sandbox.asked import Asked

Trouble = Literal[
    400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 529, "context", "content"
]
STATUSES: tuple[Trouble, ...] = (
    400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 529
)  # fmt: skip

Accident = Literal["cut", "hang", "malformed", "server_error", "overloaded"]


@dataclass(frozen=True, slots=True)
class Break:
    """Where an answer goes wrong, and how.

    After `percent` of its pieces; a stream that goes wrong at 0 has not even been opened, unless
    it is `opened`.
    """

    percent: int
    how: Accident
    opened: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One behaviour. `description` is a sentence for documents and lists.

    `usage` says where a stream has it: where the protocol has it, in a Chat stream beside the
    finish reason, or nowhere, in plain answers neither (Anthropic cannot leave it out).
    """

    description: str
    kind: Kind = "chat"
    refuses: Trouble | None = None
    write: Callable[[Asked], Answer] = behaviours.summary
    reasons: Literal["", "shown", "hidden"] = ""
    usage: Literal["asked", "on_finish", "never"] = "asked"
    head_seconds: float = 0
    first_seconds: float = 0
    delta_seconds: float = 0
    caches: bool = False
    breaks: Break | None = None

    def answer(self, asked: Asked) -> Answer:
        """What it writes, as far as the request lets it. Raises behaviours.Unshapeable."""
        answer = self.write(asked).until(asked.stop)
        if asked.must_reason or (self.reasons and asked.may_reason):
            answer = behaviours.reasoned(answer, hidden=self.reasons == "hidden")
        return answer if asked.cap is None else answer.within(asked.cap)


MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "sandbox": Model(description="Sums up the prompt in about thirty words."),
        "sandbox-long": Model(
            description="Counts to 500 without a pause.", write=partial(behaviours.count_to, 500)
        ),
        "sandbox-slow": Model(
            description="Counts to 20: 0.3 seconds to the first word, 0.05 between words.",
            write=partial(behaviours.count_to, 20),
            first_seconds=0.3,
            delta_seconds=0.05,
        ),
        "sandbox-late": Model(
            description="Sends nothing for 2 seconds, not even a status, then answers at once.",
            head_seconds=2,
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
        "sandbox-stall": Model(
            description="Falls silent after two words of twenty.",
            write=partial(behaviours.count_to, 20),
            breaks=Break(10, "hang"),
        ),
        "sandbox-malformed": Model(
            description="Breaks its JSON in the middle of the answer.",
            breaks=Break(50, "malformed"),
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


def find(name: str) -> Model | None:
    """The model of that name, with or without a real family in front of it."""
    family, mark, behaviour = name.partition(_MARK)
    if family and not family.endswith("-"):
        return None
    return MODELS.get(mark + behaviour)


def family_of(name: str) -> str:
    """The real family in front of a model's name; empty without one."""
    return name.partition(_MARK)[0].removesuffix("-")

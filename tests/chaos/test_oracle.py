"""The oracle of the chaos run can fail: each way in which an answer or the books can be wrong.

Transcripts are made by hand, good ones first; then each is doctored in one place.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from farebox.sandbox import End, Performance
from tests.chaos import oracle
from tests.chaos.oracle import Ending, Judge
from tests.chaos.questions import Question, Surface
from tests.chaos.transcript import Heard

REQUEST = "r1"


def chat_event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def chat_delta(content: str | None, finish: str | None = None) -> bytes:
    delta = {} if content is None else {"content": content}
    return chat_event(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])


CHAT = [
    chat_delta("abc-1"),
    b": keep-alive\n\n",
    chat_delta(" abc-2"),
    chat_delta(" abc-3"),
    chat_delta(None, "stop"),
    chat_event(choices=[], usage={"prompt_tokens": 10, "completion_tokens": 3}),
    b"data: [DONE]\n\n",
]
CHAT_ERROR = chat_event(error={"message": "gone", "code": "upstream_unavailable"})


def message_event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def message_delta(text: str) -> bytes:
    return message_event("content_block_delta", delta={"type": "text_delta", "text": text})


MESSAGES = [
    message_event("message_start", message={}),
    message_delta("abc-1 abc-2"),
    message_delta(" abc-3"),
    message_event("message_delta", delta={"stop_reason": "end_turn"}),
    message_event("message_stop"),
]
MESSAGES_ERROR = message_event("error", error={"type": "api_error", "message": "gone"})
GOOD: dict[Surface, list[bytes]] = {"chat": CHAT, "messages": MESSAGES}
ERRORS: dict[Surface, bytes] = {"chat": CHAT_ERROR, "messages": MESSAGES_ERROR}

SURFACES = pytest.mark.parametrize("surface", ["chat", "messages"])


def heard(surface: Surface, *events: bytes, status: int = 200, framed: bool = True) -> Heard:
    return Heard(
        Question("abc", surface, 3),
        begun=100.0,
        ended=101.0,
        status=status,
        headers={"x-request-id": REQUEST},
        body=b"".join(events),
        framed=framed,
    )


def judged(answer: Heard, *deaths: float) -> tuple[Ending, list[str]]:
    judge = Judge(list(deaths))
    judge.hear(answer)
    (told,) = judge.told
    return told.ending, judge.problems


# -- answers --------------------------------------------------------------------------------------


@SURFACES
def test_a_whole_answer_is_right(surface: Surface) -> None:
    assert judged(heard(surface, *GOOD[surface])) == (Ending.WHOLE, [])


@SURFACES
def test_an_answer_that_breaks_off_and_says_so_is_right(surface: Surface) -> None:
    events = [*GOOD[surface][:2], ERRORS[surface]]
    assert judged(heard(surface, *events)) == (Ending.BROKEN_OFF, [])


@pytest.mark.parametrize(
    ("surface", "left_out"),
    [(surface, number) for surface, events in GOOD.items() for number in range(len(events))],
)
def test_an_answer_that_lacks_anything_is_wrong(surface: Surface, left_out: int) -> None:
    """Every event of an answer is missed, but for those that say nothing of its end."""
    events = list(GOOD[surface])
    gone = events.pop(left_out)
    ending, problems = judged(heard(surface, *events))
    if gone.startswith(b":") or b"message_start" in gone:
        assert (ending, problems) == (Ending.WHOLE, [])
    else:
        assert ending is Ending.FALSE
        assert problems


@pytest.mark.parametrize(
    ("surface", "end"),
    [(surface, number) for surface, events in GOOD.items() for number in range(len(events))],
)
def test_a_stream_that_just_ends_is_wrong(surface: Surface, end: int) -> None:
    ending, problems = judged(heard(surface, *GOOD[surface][:end]))
    assert ending is Ending.FALSE
    assert "ends well and is not whole" in problems[0]


@SURFACES
def test_a_word_twice_or_from_another_answer_is_wrong(surface: Surface) -> None:
    twice = [GOOD[surface][0], *GOOD[surface]]
    if surface == "messages":
        twice = [MESSAGES[0], MESSAGES[1], *MESSAGES[1:]]
    other = [each.replace(b"abc-2", b"xyz-2") for each in GOOD[surface]]
    for events in (twice, other):
        ending, problems = judged(heard(surface, *events))
        assert ending is Ending.FALSE
        assert any("not the beginning of the answer" in each for each in problems)


@SURFACES
def test_another_answers_words_before_an_error_are_wrong(surface: Surface) -> None:
    events = [each.replace(b"abc", b"xyz") for each in GOOD[surface][:3]]
    _, problems = judged(heard(surface, *events, ERRORS[surface]))
    assert any("not the beginning of the answer" in each for each in problems)


def test_an_error_must_be_the_end() -> None:
    _, problems = judged(heard("chat", CHAT[0], CHAT_ERROR, b"data: [DONE]\n\n"))
    assert "an error, and then the end of a good answer" in problems[0]
    _, problems = judged(heard("messages", MESSAGES[0], MESSAGES_ERROR, MESSAGES[-1]))
    assert "something follows the error" in problems[0]


def test_an_event_that_cannot_be_read_is_wrong() -> None:
    _, problems = judged(heard("chat", *CHAT[:2], b"data: {nonsense\n\n", CHAT_ERROR))
    assert "cannot be read" in problems[0]


def test_a_finish_for_another_reason_is_wrong() -> None:
    cut = [each.replace(b'"stop"', b'"length"') for each in CHAT]
    assert judged(heard("chat", *cut))[0] is Ending.FALSE


@SURFACES
def test_a_connection_may_break_only_when_a_worker_died(surface: Surface) -> None:
    broken = heard(surface, *GOOD[surface][:2], framed=False)
    assert judged(broken, 100.5) == (Ending.DISCONNECTED, [])
    for deaths in ([], [50.0], [110.0]):
        ending, problems = judged(broken, *deaths)
        assert ending is Ending.DISCONNECTED
        assert "no worker had died" in problems[0]


def test_what_came_before_a_death_must_be_right_too() -> None:
    broken = heard("chat", CHAT[2], framed=False)
    _, problems = judged(broken, 100.5)
    assert "not the beginning of the answer" in problems[0]


@pytest.mark.parametrize(
    ("status", "code", "headers", "is_right"),
    [
        (502, "upstream_unavailable", {}, True),
        (503, "upstream_unavailable", {"retry-after": "2"}, True),
        (503, "upstream_unavailable", {}, False),
        (504, "upstream_timeout", {}, True),
        (500, "internal_error", {}, False),
        (400, "invalid_request", {}, False),
        (402, "insufficient_balance", {}, False),
        (404, "model_not_available", {}, False),
        (429, "rate_limit_exceeded", {"retry-after": "1"}, False),
        (502, "", {}, False),
    ],
)
def test_a_refusal_must_be_one_that_failures_explain(
    status: int, code: str, headers: dict[str, str], is_right: bool
) -> None:
    answer = heard("chat", json.dumps({"error": {"code": code}}).encode(), status=status)
    answer.headers |= headers
    ending, problems = judged(answer)
    assert ending is Ending.REFUSED
    assert (not problems) == is_right


def test_each_surface_names_its_code_in_its_own_place() -> None:
    body = {"type": "overloaded_error", "details": {"error_code": "upstream_unavailable"}}
    answer = heard("messages", json.dumps({"error": body}).encode(), status=503)
    answer.headers["retry-after"] = "1"
    assert judged(answer) == (Ending.REFUSED, [])
    answer.body = json.dumps({"error": body | {"details": {}}}).encode()
    assert len(judged(answer)[1]) == 1


# -- providers and books --------------------------------------------------------------------------


def performance(end: End, status: int = 200, began: float = 100.0) -> Performance:
    return Performance(1, "sandbox-echo", "", "abc", 0, status, end, began, began + 1)


def seen_upstream(answer: Heard, *performances: Performance) -> list[str]:
    judge = Judge()
    judge.hear(answer)
    return list(oracle.wrong_upstream(judge.told, performances))


FAILED = performance("refused", 500)


def test_asking_too_often_is_wrong() -> None:
    refused = heard("chat", status=502)
    assert seen_upstream(refused, *[FAILED] * oracle.ATTEMPTS_MAX) == []
    assert len(seen_upstream(refused, *[FAILED] * (oracle.ATTEMPTS_MAX + 1))) == 1


def test_a_connection_that_broke_under_a_request_may_be_replaced() -> None:
    refused = heard("chat", status=502)
    broken = [performance("reset", 0)] * 2
    assert seen_upstream(refused, *broken, *[FAILED] * oracle.ATTEMPTS_MAX) == []
    assert len(seen_upstream(refused, *broken, *[FAILED] * (oracle.ATTEMPTS_MAX + 1))) == 1


def test_a_whole_answer_that_nobody_gave_is_wrong() -> None:
    whole = heard("chat", *CHAT)
    assert seen_upstream(whole, FAILED, performance("whole")) == []
    for ends in ((), (FAILED,), (performance("cut"),), (performance("spoilt"),)):
        assert "is whole, but" in seen_upstream(whole, *ends)[0]


@pytest.mark.parametrize("end", ["whole", "spoilt", "cut", "reset"])
def test_listening_to_another_after_the_first_word_is_wrong(end: End) -> None:
    whole = heard("chat", *CHAT)
    whole.first_content = 100.5
    good, late = performance("whole", began=100.4), performance(end, began=100.6)
    assert seen_upstream(whole, good, performance("left", began=100.6)) == []
    assert "had its first word" in seen_upstream(whole, good, late)[0]


RECORD: dict[str, object] = {
    "request_id": REQUEST,
    "billing_status": "charged",
    "input_tokens": 10,
    "output_tokens": 3,
    "charge_usd": "0.0000242",  # (10 × $1 + 3 × $4) / 1e6 × 1.1
}
ACCOUNT: dict[str, object] = {"reserved_usd": "0"}


def audited(answer: Heard, *records: dict[str, object], reserved: str = "0") -> list[str]:
    judge = Judge([100.5])
    judge.hear(answer)
    return list(oracle.wrong_in_the_books(judge.told, records, {"reserved_usd": reserved}))


def test_right_books_are_right() -> None:
    assert audited(heard("chat", *CHAT), RECORD) == []
    part = RECORD | {"output_tokens": 1, "charge_usd": "0.0000154"}
    assert audited(heard("chat", CHAT[0], CHAT_ERROR), part) == []
    assert audited(heard("chat", framed=False)) == []


DOCTORED: dict[str, Callable[[], list[str]]] = {
    "not charged": lambda: audited(heard("chat", *CHAT)),
    "voided": lambda: audited(heard("chat", *CHAT), RECORD | {"billing_status": "voided"}),
    "twice": lambda: audited(heard("chat", *CHAT), RECORD, RECORD),
    "wrong amount": lambda: audited(heard("chat", *CHAT), RECORD | {"charge_usd": "0.0000243"}),
    "other usage": lambda: audited(
        heard("chat", *CHAT), RECORD | {"output_tokens": 4, "charge_usd": "0.0000286"}
    ),
    "held": lambda: audited(heard("chat", *CHAT), RECORD, reserved="0.01"),
    "for a refusal": lambda: audited(
        heard("chat", b'{"error": {"code": "upstream_unavailable"}}', status=502), RECORD
    ),
    "for no word": lambda: audited(heard("chat", CHAT_ERROR), RECORD),
    "too much for a part": lambda: audited(
        heard("chat", CHAT[0], CHAT_ERROR),
        RECORD | {"output_tokens": 100, "charge_usd": "0.000451"},
    ),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_wrong_books_are_wrong(name: str) -> None:
    assert len(DOCTORED[name]()) == 1

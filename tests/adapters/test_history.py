"""adapters.history: whatever clients did to a conversation, providers get it in one order."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.canonical import (
    Blob,
    Document,
    HostedTool,
    Image,
    Part,
    Prompt,
    Refusal,
    ResultPart,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from adapters.errors import RequestNotExpressible
from adapters.history import (
    NO_RESULT,
    arguments_object,
    arranged,
    result_text,
    split_system,
    system_as_user,
    tools_of,
)
from adapters.losses import Losses
from adapters.names import safe_id

IMAGE = Image(media_type="image/png", data="aGk=")


def user(*parts: Part | str) -> Turn:
    return Turn(role="user", parts=said(parts))


def assistant(*parts: Part | str) -> Turn:
    return Turn(role="assistant", parts=said(parts))


def system(*parts: Part | str) -> Turn:
    return Turn(role="system", parts=said(parts))


def said(parts: Sequence[Part | str]) -> tuple[Part, ...]:
    return tuple(Text(text=part) if isinstance(part, str) else part for part in parts)


def call(id: str, arguments: str = "{}") -> ToolCall:  # noqa: A002
    return ToolCall(id=id, name=f"tool_{id}"[:9], arguments=arguments)


def result(id: str, *content: ResultPart | str, error: bool = False) -> ToolResult:  # noqa: A002
    parts = tuple(Text(text=part) if isinstance(part, str) else part for part in content)
    return ToolResult(call_id=id, content=parts or (Text(text=f"of {id}"),), error=error)


def arrange(*turns: Turn, reported: tuple[str, ...] = ()) -> list[Turn]:
    losses = Losses("p")
    out = arranged(turns, losses)
    assert losses.names == reported
    return list(out)


LOST = ("approx:tool_results",)


# -- results --------------------------------------------------------------------------------------


def test_edge_49_results_spread_over_messages_are_gathered() -> None:
    assert arrange(
        user("go"),
        assistant(call("a"), call("b"), call("c")),
        user(result("c")),
        user(result("a")),
        user(result("b")),
        assistant("done"),
    ) == [
        user("go"),
        assistant(call("a"), call("b"), call("c")),
        user(result("a"), result("b"), result("c")),
        assistant("done"),
    ]


def test_edge_50_text_between_results_goes_behind_them() -> None:
    assert arrange(
        assistant(call("a"), call("b")), user(result("a"), "meanwhile"), user(result("b"))
    ) == [assistant(call("a"), call("b")), user(result("a"), result("b"), "meanwhile")]


def test_edge_51_a_result_two_messages_later_is_put_next_to_its_call() -> None:
    assert arrange(
        assistant(call("a")), user("wait"), assistant("waiting"), user(result("a"), "now")
    ) == [assistant(call("a")), user(result("a"), "wait"), assistant("waiting"), user("now")]


def test_edge_52_lost_results_leave_a_mark_and_lost_calls_a_label() -> None:
    missing = ToolResult(call_id="a", content=(Text(text=NO_RESULT),), error=True)
    assert arrange(
        user(result("gone", "42", IMAGE), "go"), assistant(call("a")), user("next"), reported=LOST
    ) == [
        user("Tool result (gone): 42", IMAGE, "go"),
        assistant(call("a")),
        user(missing, "next"),
    ]


def test_edge_53_media_between_results_follow_them() -> None:
    assert arrange(
        assistant(call("a"), call("b")), user(result("a"), IMAGE, result("b"), "see")
    ) == [assistant(call("a"), call("b")), user(result("a"), result("b"), IMAGE, "see")]


def test_edge_54_results_in_another_order_follow_that_of_the_calls() -> None:
    assert arrange(assistant(call("a"), call("b")), user(result("b"), result("a"))) == [
        assistant(call("a"), call("b")),
        user(result("a"), result("b")),
    ]


def test_edge_55_no_empty_text_beside_a_call() -> None:
    for empty in ("", " \n"):
        assert arrange(assistant(empty, call("a")), user(result("a"))) == [
            assistant(call("a")),
            user(result("a")),
        ]


def test_edge_56_blank_text() -> None:
    assert arrange(user(""), assistant(" "), system(" ", ""), user("a", "", " ")) == [
        user("a", " ")  # white space beside text is allowed
    ]
    assert arrange(user(" ")) == [user(" ")]  # all there is to send
    assert arrange(user(IMAGE), user(" ")) == [user(IMAGE)]
    assert arrange(user(" ", IMAGE), assistant(Refusal(text=""), Thinking())) == [user(IMAGE)]
    assert arrange(assistant(call("a")), user(result("a", "", ""), "\n")) == [
        assistant(call("a")),
        user(ToolResult(call_id="a", content=())),
    ]
    signed = Thinking(blob=Blob("p", "m", "redacted", "x"))
    assert arrange(assistant(signed)) == [assistant(signed)]


def test_edge_58_unsafe_ids_are_made_safe_on_both_sides() -> None:
    asked, answered = arrange(assistant(call("functions.Bash:0")), user(result("functions.Bash:0")))
    (made,), (given_back,) = asked.parts, answered.parts
    assert isinstance(made, ToolCall)
    assert isinstance(given_back, ToolResult)
    assert made.id == given_back.call_id == safe_id("functions.Bash:0")


def test_edge_59_broken_arguments_lose_neither_call_nor_result() -> None:
    broken = call("a", '{"x": ')
    turns = arrange(assistant(broken), user(result("a")))
    assert turns == [assistant(broken), user(result("a"))]
    losses = Losses("p")
    assert msgspec.json.decode(arguments_object(broken, losses)) == {"_raw": '{"x":'}
    assert losses.names == ("approx:arguments",)


def test_the_last_of_two_results_counts() -> None:
    assert arrange(
        assistant(call("a")), user(result("a", "1")), user(result("a", "2")), reported=LOST
    ) == [assistant(call("a")), user(result("a", "2"))]


def test_ids_that_every_answer_counts_anew_mean_the_nearest_call() -> None:
    turns = arrange(
        assistant(call("call_0")), user(result("call_0", "1")),
        assistant(call("call_0")), user(result("call_0", "2")),
    )  # fmt: skip
    calls = [part for turn in turns for part in turn.parts if isinstance(part, ToolCall)]
    results = [part for turn in turns for part in turn.parts if isinstance(part, ToolResult)]
    assert len({one.id for one in calls}) == 2
    assert [one.id for one in calls] == [one.call_id for one in results]
    assert [result_text(one) for one in results] == ["1", "2"]


def test_equal_ids_in_one_turn_are_answered_in_order() -> None:
    asked, answered = arrange(
        assistant(call("", "1"), call("", "2")), user(result("", "1"), result("", "2"))
    )
    ids = [part.id for part in asked.parts if isinstance(part, ToolCall)]
    assert len(set(ids)) == 2
    assert [part.call_id for part in answered.parts if isinstance(part, ToolResult)] == ids


def test_a_conversation_may_not_end_in_a_call_without_its_result() -> None:
    for turns in (
        [user("go"), assistant(call("a"))],
        [user("go"), assistant(call("a"), call("b")), user(result("a"))],
    ):
        with pytest.raises(RequestNotExpressible) as refused:
            arranged(turns, Losses("acme"))
        assert refused.value.param == "tool_calls"
        assert "acme" in str(refused.value)


def test_calls_of_adjacent_turns_are_one_step() -> None:
    assert arrange(
        assistant("let me see", call("a")), assistant(call("b")), user(result("a"), result("b"))
    ) == [assistant("let me see", call("a"), call("b")), user(result("a"), result("b"))]


def test_results_come_before_a_system_turn_that_stood_between() -> None:
    assert arrange(assistant(call("a")), system("hurry"), user(result("a")), user("and?")) == [
        assistant(call("a")),
        user(result("a")),
        system("hurry"),
        user("and?"),
    ]


def test_turns_are_merged_with_their_speaker_where_it_is_one() -> None:
    bob, eve = (Turn(role="user", parts=said([name]), name=name) for name in ("bob", "eve"))
    assert [turn.name for turn in arrange(bob, bob)] == ["bob"]
    assert [turn.name for turn in arrange(bob, user("x"))] == ["bob"]
    assert [turn.name for turn in arrange(bob, eve)] == [""]
    assert len(arrange(system("a"), system("b"))) == 2


IDS = st.sampled_from(["a", "b", "c:0", ""])
PARTS = st.one_of(
    st.sampled_from(["", " ", "text"]).map(lambda text: Text(text=text)),
    IDS.map(call),
    IDS.map(result),
    st.just(IMAGE),
    st.just(Thinking(text="hm")),
)
ANY_TURN = st.builds(
    Turn,
    role=st.sampled_from(["user", "assistant", "system"]),
    parts=st.lists(PARTS, max_size=5).map(tuple),
)
TURN = ANY_TURN.map(
    lambda turn: msgspec.structs.replace(
        turn,
        parts=tuple(
            part
            for part in turn.parts
            if not isinstance(part, ToolCall if turn.role != "assistant" else ToolResult)
        ),
    )
)


@settings(max_examples=300, deadline=None)
@given(st.lists(TURN, max_size=10))
def test_any_history_is_arranged(turns: list[Turn]) -> None:
    out = arranged([*turns, user("the end")], Losses("p"))
    ids = [part.id for turn in out for part in turn.parts if isinstance(part, ToolCall)]
    assert len(ids) == len(set(ids))
    assert all(safe_id(one) == one for one in ids)
    for before, turn in zip((system(), *out), out, strict=False):
        assert turn.parts
        assert turn.role == "system" or turn.role != before.role
        expected = [part.id for part in before.parts if isinstance(part, ToolCall)]
        found = [part.call_id for part in turn.parts if isinstance(part, ToolResult)]
        assert found == expected
        assert all(isinstance(part, ToolResult) for part in turn.parts[: len(found)])
    again = Losses("p")
    assert arranged(out, again) == out
    assert again.names == ()


# -- system ---------------------------------------------------------------------------------------


def test_leading_system_turns_are_the_instructions() -> None:
    turns = [system("a", ""), system("b"), user("c"), system("d")]
    assert split_system(turns) == ((Text(text="a"), Text(text="b")), (user("c"), system("d")))
    assert split_system([system("a")]) == ((Text(text="a"),), ())
    assert split_system([]) == ((), ())


def test_later_system_turns_become_tagged_text() -> None:
    losses = Losses("p")
    turns = system_as_user([user("c"), system("d"), assistant("e")], losses)
    assert turns == (user("c"), user("<system>\nd\n</system>"), assistant("e"))
    assert losses.names == ("approx:system",)
    assert system_as_user([user("c")], (none := Losses("p"))) == (user("c"),)
    assert none.names == ()


# -- tools ----------------------------------------------------------------------------------------


def test_tools_and_choice_are_those_declared() -> None:
    tool, choice = Tool(name="t"), ToolChoice(mode="any")
    prompt = Prompt(turns=(), tools=(tool,), tool_choice=choice)
    assert tools_of(prompt) == ((tool,), choice)
    assert tools_of(Prompt(turns=(), tool_choice=choice)) == ((), None)
    hosted = Prompt(turns=(), hosted_tools=(HostedTool(type="web_search"),), tool_choice=choice)
    assert tools_of(hosted) == ((), choice)


def test_tools_of_the_history_are_declared_where_the_client_did_not() -> None:
    free = ToolCall(id="3", name="patch", arguments="x", free=True, namespace="ns")
    turns = (assistant(call("a"), call("a"), free),)
    tools, choice = tools_of(Prompt(turns=turns, tool_choice=ToolChoice(mode="auto")))
    assert [(tool.name, tool.namespace, tool.free) for tool in tools] == [
        ("tool_a", "", False),
        ("patch", "ns", True),
    ]
    assert tools[0].schema == {"type": "object", "properties": {}}
    assert choice == ToolChoice(mode="none")


@pytest.mark.parametrize(
    ("arguments", "raw"),
    [
        ("", b"{}"),
        ("  ", b"{}"),
        (' {"id": 12345678901234567890, "f": 1.10} ', b'{"id": 12345678901234567890, "f": 1.10}'),
    ],
)
def test_arguments_keep_every_digit(arguments: str, raw: bytes) -> None:
    losses = Losses("p")
    assert bytes(arguments_object(call("a", arguments), losses)) == raw
    assert losses.names == ()


@pytest.mark.parametrize(
    "arguments", ["[1]", '"x"', "null", "x", '{"a": NaN}', "{" * 5000, '{"a":1} x', "\ud83d"]
)
def test_arguments_that_are_no_object_become_one(arguments: str) -> None:
    losses = Losses("p")
    value = msgspec.json.decode(arguments_object(call("a", arguments), losses))
    assert list(value) == ["_raw"]
    assert losses.names == ("approx:arguments",)


def test_input_of_a_free_tool_is_wrapped() -> None:
    free = ToolCall(id="a", name="t", arguments='a"b', free=True)
    assert bytes(arguments_object(free, Losses("p"))) == rb'{"input":"a\"b"}'


def test_what_a_result_says() -> None:
    assert result_text(result("a", "x", IMAGE, "y")) == "x\ny"
    assert result_text(result("a", "x", error=True)) == "Error: x"
    assert result_text(ToolResult(call_id="a", content=(Document(text="d"),))) == ""


def test_what_only_a_model_says_is_left_out_of_other_turns() -> None:
    call = ToolCall(id="a", name="f", arguments="{}")
    result = ToolResult(call_id="a", content=(Text(text="r"),))
    losses = Losses("p")
    turns = [user(Thinking(text="hm"), call, "go"), assistant("yes"), user(result, "on")]
    assert arranged(turns, losses) == (
        user("go"),
        assistant("yes"),
        user("Tool result (a): r", "on"),
    )
    assert losses.names == ("approx:tool_results",)


def test_many_calls_of_one_id_take_no_longer_than_others() -> None:
    calls = [ToolCall(id="a", name="f", arguments="{}")] * 20_000
    results = [ToolResult(call_id="a", content=(Text(text=str(n)),)) for n in range(20_000)]
    answered = arranged([assistant(*calls), user(*results)], Losses("p"))[1]
    assert [result_text(part) for part in answered.parts if isinstance(part, ToolResult)] == [
        str(n) for n in range(20_000)
    ]

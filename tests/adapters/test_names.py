"""adapters.names: names that every provider accepts, and the way back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.canonical import Tool, ToolCall, Turn
from adapters.names import (
    ANTHROPIC_NAMES,
    GEMINI_NAMES,
    OPENAI_NAMES,
    NameRule,
    ToolNames,
    safe_id,
)

RULES = [OPENAI_NAMES, ANTHROPIC_NAMES, GEMINI_NAMES]
NAMES = st.text("aB1_-.: é\ud83d", max_size=8) | st.text("ab", min_size=60, max_size=200)
TOOLS = st.lists(
    st.builds(Tool, name=NAMES, namespace=st.sampled_from(["", "a", "a__a"])), max_size=12
)


def accepted(rule: NameRule, name: str) -> bool:
    return (
        0 < len(name) <= rule.length
        and rule.first.match(name) is not None
        and rule.rest.search(name) is None
    )


@given(TOOLS, st.sampled_from(RULES))
def test_names_are_a_bijection_that_the_provider_accepts(tools: list[Tool], rule: NameRule) -> None:
    names = ToolNames(rule, tools)
    distinct = {(tool.namespace, tool.name) for tool in tools}
    wires = {names.wire(name, namespace) for namespace, name in distinct}
    assert len(wires) == len(distinct)
    for tool in tools:
        wire = names.wire(tool.name, tool.namespace)
        assert accepted(rule, wire)
        back = names.tool(wire)
        assert back is not None
        assert (back.namespace, back.name) == (tool.namespace, tool.name)


def test_what_fits_keeps_its_name() -> None:
    names = ToolNames(
        OPENAI_NAMES, [Tool(name="a.b"), Tool(name="b", namespace="a"), Tool(name="a_b")]
    )
    assert names.wire("a_b") == "a_b"
    assert names.wire("b", "a") == "a__b"
    assert names.wire("a.b") != "a_b"
    assert names.wire("a.b").startswith("a_b_")


def test_three_tools_that_would_be_called_the_same() -> None:
    tools = [
        Tool(name="a__b__c"), Tool(name="b__c", namespace="a"), Tool(name="c", namespace="a__b"),
    ]  # fmt: skip
    names = ToolNames(OPENAI_NAMES, tools)
    assert [names.tool(names.wire(tool.name, tool.namespace)) for tool in tools] == tools


def test_names_of_the_history_take_nothing_away_from_declared_tools() -> None:
    call = ToolCall(id="i", name="a b", arguments="")
    names = ToolNames(OPENAI_NAMES, [Tool(name="a_b")], [Turn(role="assistant", parts=(call,))])
    assert names.wire("a_b") == "a_b"
    assert names.wire("a b") != "a_b"
    assert names.tool(names.wire("a b")) is None
    assert names.tool("unheard") is None


def test_gemini_wants_a_letter_first() -> None:
    names = ToolNames(GEMINI_NAMES, [Tool(name="1st"), Tool(name="ns.tool:x")])
    assert names.wire("1st") == "_1st"
    assert names.wire("ns.tool:x") == "ns.tool:x"


@given(st.lists(st.text(max_size=90) | st.text("a:.", max_size=70), unique=True))
def test_ids_are_safe_stable_and_distinct(ids: list[str]) -> None:
    safe = [safe_id(one) for one in ids]
    assert len(set(safe)) == len(ids)
    assert [safe_id(one) for one in safe] == safe
    for one in safe:
        assert accepted(OPENAI_NAMES, one)


@pytest.mark.parametrize("one", ["call_1", "toolu_01-x", "a" * 64])
def test_safe_ids_stay(one: str) -> None:
    assert safe_id(one) == one


@pytest.mark.parametrize("one", ["", "functions.Bash:0", "a" * 65, "a\n", "é", "\ud83d"])
def test_edge_45_other_ids_become_short(one: str) -> None:
    assert safe_id(one).startswith("tc_")
    assert len(safe_id(one)) == 27

"""adapters.restore: calls come back under the client's names, and free-form input as raw text."""

from __future__ import annotations

from adapters.canonical import Close, Delta, Event, Finish, Meta, Open, Start, Tool
from adapters.names import OPENAI_NAMES, ToolNames
from adapters.restore import Restorer

TOOLS = [
    Tool(name="plain"),
    Tool(name="patch", free=True, namespace="edit"),
    Tool(name="find it", search=True),
]
NAMES = ToolNames(OPENAI_NAMES, TOOLS)


def restored(*events: Event) -> list[Event]:
    restorer = Restorer(NAMES)
    return [out for event in events for out in restorer.pass_on([event])]


def test_names_namespaces_and_searches_come_back() -> None:
    assert restored(Open(0, "call", "i", NAMES.wire("find it"))) == [
        Open(0, "call", "i", "find it", "", True)
    ]
    assert restored(Open(0, "call", "i", "plain"), Delta(0, "{"), Close(0)) == [
        Open(0, "call", "i", "plain"),
        Delta(0, "{"),
        Close(0),
    ]


def test_edge_71_a_free_form_tool_in_a_namespace() -> None:
    assert restored(
        Open(0, "call", "i", "edit__patch"),
        Delta(0, '{"inp'),
        Delta(0, 'ut": "a\\'),
        Meta(0, "sig", "call"),
        Delta(0, 'nb"}'),
        Close(0),
        Open(1, "text"),
        Delta(1, '{"input": "x"}'),
        Close(1),
    ) == [
        Open(0, "free_call", "i", "patch", "edit"),
        Delta(0, "a"),
        Meta(0, "sig", "call"),
        Delta(0, "\nb"),
        Close(0),
        Open(1, "text"),
        Delta(1, '{"input": "x"}'),
        Close(1),
    ]


def test_edge_70_an_object_for_a_free_form_tool_becomes_text() -> None:
    out = restored(Open(0, "call", "i", "edit__patch"), Delta(0, '{"patch": "x"}'), Close(0))
    assert out[1:] == [Delta(0, "x"), Close(0)]


def test_a_provider_with_free_form_tools_of_its_own_needs_no_unwrapping() -> None:
    out = restored(Open(0, "free_call", "i", "edit__patch"), Delta(0, "{}"), Close(0))
    assert out == [Open(0, "free_call", "i", "patch", "edit"), Delta(0, "{}"), Close(0)]


def test_what_is_no_declared_call_stays() -> None:
    events: list[Event] = [Start(), Open(0, "call", "i", "made_up"), Close(0), Finish("tool_calls")]
    assert restored(*events) == events

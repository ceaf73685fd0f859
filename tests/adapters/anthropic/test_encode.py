"""Prompts of other protocols' clients as Anthropic gets them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.anthropic.traits import NEW_VERSION, OLD_VERSION
from adapters.anthropic.upstream import MessagesUpstream
from adapters.canonical import (
    Audio,
    Blob,
    Cache,
    Document,
    Effort,
    Grammar,
    HostedTool,
    Image,
    OutputFormat,
    Part,
    Prompt,
    Reasoning,
    Refusal,
    Sampling,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from adapters.errors import RequestNotExpressible
from tests.adapters.anthropic.wiring import (
    MODEL,
    OLD_MODEL,
    Sent,
    encoded,
    prompt_of,
    said,
    target,
)

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = Tool(name="f", description="Does f.", schema=SCHEMA)
HI = said("Hi")
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYPgPAAEDAQAIicLsAAAAAElFTkSuQmCC"


def user(*parts: Part) -> Turn:
    return Turn(role="user", parts=parts)


def model_turn(*parts: Part) -> Turn:
    return Turn(role="assistant", parts=parts)


def system(text: str, cache: Cache = "") -> Turn:
    return Turn(role="system", parts=(Text(text=text, cache=cache),))


def call(number: int, name: str = "f", arguments: str = '{"a": 1}') -> ToolCall:
    return ToolCall(id=f"c{number}", name=name, arguments=arguments)


def result(number: int, text: str = "ok", *, error: bool = False) -> ToolResult:
    return ToolResult(call_id=f"c{number}", content=(Text(text=text),), error=error)


def signed(text: str, value: str, model: str = MODEL, kind: str = "thinking") -> Thinking:
    return Thinking(text=text, blob=Blob("anthropic", model, kind, value))  # type: ignore[arg-type] # a kind


def refused(prompt: Prompt, model: str = MODEL) -> str:
    """The field that a refusal names."""
    with pytest.raises(RequestNotExpressible) as caught:
        encoded(prompt, model)
    assert "anthropic" in caught.value.message
    return str(caught.value.param)


def content(sent: Sent, at: int) -> object:
    """What a message says."""
    return sent["messages"][at]["content"]


def blocks(sent: Sent, at: int) -> list[Any]:  # type: ignore[explicit-any] # JSON, looked at
    """What a message says, in blocks."""
    found = content(sent, at)
    assert isinstance(found, list)
    return found


# -- conversation ---------------------------------------------------------------------------------


def test_a_small_request() -> None:
    sent, dropped = encoded(Prompt(turns=(system("Be brief."), *HI)))
    assert sent == {
        "model": MODEL,
        "max_tokens": 1000,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
    }
    assert dropped == ()


def test_the_version_is_the_one_that_the_model_takes() -> None:
    for model, version in ((MODEL, NEW_VERSION), (OLD_MODEL, OLD_VERSION), ("glm-5", OLD_VERSION)):
        found = MessagesUpstream().encode(Prompt(turns=HI), target(model))
        assert found.headers == (("anthropic-version", version),)
        assert found.path == "/v1/messages"


def test_edge_46_reasoning_and_calls_keep_their_order() -> None:
    turns = (
        *HI,
        model_turn(signed("t1", "s1"), call(1), signed("t2", "s2"), call(2)),
        user(result(1), result(2)),
    )
    sent, dropped = encoded(Prompt(turns=turns, tools=(TOOL,)))
    assert content(sent, 1) == [
        {"type": "thinking", "thinking": "t1", "signature": "s1"},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
        {"type": "thinking", "thinking": "t2", "signature": "s2"},
        {"type": "tool_use", "id": "c2", "name": "f", "input": {"a": 1}},
    ]
    assert dropped == ()


def test_edge_47_signed_reasoning_of_a_chat_client_is_a_thinking_block() -> None:
    turns = (*HI, model_turn(signed("Hm.", "sig"), Text(text="Yes.")), *said("Go on"))
    sent, _ = encoded(Prompt(turns=turns))
    assert blocks(sent, 1)[0] == {"type": "thinking", "thinking": "Hm.", "signature": "sig"}


@pytest.mark.parametrize(
    "blob",
    [
        None,
        Blob("other", MODEL, "thinking", "s"),
        Blob("anthropic", "claude-opus-4-7", "thinking", "s"),
    ],
)
def test_reasoning_that_this_model_did_not_sign_is_left_out(blob: Blob | None) -> None:
    turns = (*HI, model_turn(Thinking(text="Hm.", blob=blob), Text(text="Yes.")), *said("Go on"))
    sent, _ = encoded(Prompt(turns=turns))
    assert content(sent, 1) == "Yes."


def test_redacted_reasoning_comes_back() -> None:
    turns = (*HI, model_turn(signed("", "red", kind="redacted"), call(1)), user(result(1)))
    sent, _ = encoded(Prompt(turns=turns, tools=(TOOL,)))
    assert blocks(sent, 1)[0] == {"type": "redacted_thinking", "data": "red"}


def test_edge_50_text_between_results_goes_behind_them() -> None:
    assistant: list[dict[str, object]] = [
        {"type": "tool_use", "id": i, "name": "f", "input": {}} for i in ("A", "B")
    ]
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": assistant},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "A", "content": "ra"},
                {"type": "text", "text": "by the way"},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "B", "content": "rb"}]},
    ]
    sent, _ = encoded(prompt_of(messages=messages))
    assert content(sent, 2) == [
        {"type": "tool_result", "tool_use_id": "A", "content": "ra"},
        {"type": "tool_result", "tool_use_id": "B", "content": "rb"},
        {"type": "text", "text": "by the way"},
    ]


def test_edge_51_a_late_result_is_brought_to_its_call() -> None:
    turns = (*HI, model_turn(call(1)), *said("Wait"), model_turn(Text(text="…")), user(result(1)))
    sent, _ = encoded(Prompt(turns=(*turns, *said("And?")), tools=(TOOL,)))
    assert [each["role"] for each in sent["messages"]] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert blocks(sent, 2)[0]["type"] == "tool_result"
    assert blocks(sent, 2)[1] == {"type": "text", "text": "Wait"}
    assert content(sent, 4) == "And?"


def test_edge_54_results_come_in_the_order_of_their_calls() -> None:
    turns = (*HI, model_turn(call(1), call(2)), user(result(2), result(1)))
    sent, _ = encoded(Prompt(turns=turns, tools=(TOOL,)))
    assert [each["tool_use_id"] for each in blocks(sent, 2)] == ["c1", "c2"]


def test_edge_55_and_56_nothing_blank_is_sent() -> None:
    turns = (
        system(""),
        user(Text(text=""), Text(text="Hi")),
        model_turn(Text(text=""), call(1)),
        user(ToolResult(call_id="c1", content=(Text(text=""),))),
        model_turn(Text(text="  ")),
        *said("Go on"),
    )
    sent, _ = encoded(Prompt(turns=turns, tools=(TOOL,)))
    assert "system" not in sent
    assert content(sent, 0) == "Hi"
    assert [each["type"] for each in blocks(sent, 1)] == ["tool_use"]
    # The blank turn is gone, so that its neighbours are one.
    assert content(sent, 2) == [
        {"type": "tool_result", "tool_use_id": "c1"},
        {"type": "text", "text": "Go on"},
    ]


def test_edge_56_white_space_beside_text_stays() -> None:
    sent, _ = encoded(Prompt(turns=(user(Text(text="a"), Text(text=" "), Text(text="b")),)))
    assert [each["text"] for each in blocks(sent, 0)] == ["a", " ", "b"]


def test_an_assistant_who_begins_is_asked_first() -> None:
    sent, dropped = encoded(Prompt(turns=(model_turn(Text(text="Hello!")), *HI)))
    assert sent["messages"][0] == {"role": "user", "content": "."}
    assert dropped == ("approx:messages",)


def test_later_instructions_stay_in_place_or_become_the_users() -> None:
    prompt = Prompt(turns=(*said("a", "b", "c"), system("Now shout.")))
    new, _ = encoded(prompt)
    assert new["messages"][-1] == {"role": "system", "content": "Now shout."}
    old, dropped = encoded(prompt, OLD_MODEL)
    assert blocks(old, 2)[-1]["text"] == "<system>\nNow shout.\n</system>"
    assert dropped == ("approx:system",)


def test_the_beginning_of_an_answer_is_for_models_that_go_on_with_it() -> None:
    prompt = Prompt(turns=said("Count", "One, "))
    sent, _ = encoded(prompt, OLD_MODEL)
    assert sent["messages"][-1] == {"role": "assistant", "content": "One,"}
    assert refused(prompt) == "messages"


def test_an_empty_conversation_is_refused() -> None:
    assert refused(Prompt(turns=(system("Be brief."),))) == "messages"


def test_results_carry_errors_and_media() -> None:
    image = Image(media_type="image/png", data=PNG)
    seen = ToolResult(call_id="c1", content=(Text(text="see"), image))
    turns = (*HI, model_turn(call(1), call(2)), user(seen, result(2, "no", error=True)))
    sent, _ = encoded(Prompt(turns=turns, tools=(TOOL,)))
    first, second = blocks(sent, 2)
    assert [each["type"] for each in first["content"]] == ["text", "image"]
    assert second == {"type": "tool_result", "tool_use_id": "c2", "content": "no", "is_error": True}


def test_history_with_calls_but_without_tools_declares_them() -> None:
    sent, _ = encoded(Prompt(turns=(*HI, model_turn(call(1)), user(result(1)))))
    assert [each["name"] for each in sent["tools"]] == ["f"]
    assert sent["tool_choice"] == {"type": "none"}


def test_ids_of_calls_are_made_safe_on_both_ends() -> None:
    odd = ToolCall(id="functions.Bash:0", name="f", arguments="")
    answer = ToolResult(call_id="functions.Bash:0", content=())
    sent, _ = encoded(Prompt(turns=(*HI, model_turn(odd), user(answer)), tools=(TOOL,)))
    used, answered = blocks(sent, 1)[0], blocks(sent, 2)[0]
    assert used["id"] == answered["tool_use_id"]
    assert used["id"].replace("_", "").isalnum()
    assert used["input"] == {}


def test_numbers_in_arguments_keep_their_digits() -> None:
    turns = (*HI, model_turn(call(1, arguments='{"id": 12345678901234567890}')), user(result(1)))
    found = MessagesUpstream().encode(Prompt(turns=turns, tools=(TOOL,)), target())
    assert b'{"id": 12345678901234567890}' in found.body


# -- media ----------------------------------------------------------------------------------------


def test_media() -> None:
    parts: tuple[Part, ...] = (
        Image(media_type="image/jpeg", data=PNG),  # it is not
        Image(url="https://a.b/c.png"),
        Document(media_type="application/pdf", data="JVBERi0xLjQ=", name="a.pdf"),
        Document(url="https://a.b/c.pdf"),
        Document(media_type="text/csv", data="YSxi", name="a.csv"),
        Document(text="Hello"),
    )
    sent, _ = encoded(Prompt(turns=(user(*parts),)))
    assert content(sent, 0) == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
        {"type": "image", "source": {"type": "url", "url": "https://a.b/c.png"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0xLjQ="},
            "title": "a.pdf",
        },
        {"type": "document", "source": {"type": "url", "url": "https://a.b/c.pdf"}},
        {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": "a,b"},
            "title": "a.csv",
        },
        {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": "Hello"},
        },
    ]


@pytest.mark.parametrize(
    ("part", "field"),
    [
        (Image(media_type="image/tiff", data="AAAA"), "image"),
        (Image(file_id="file-1"), "file_id"),
        (Document(file_id="file-1"), "file_id"),
        (Document(media_type="video/mp4", data="AAAA"), "file"),
        (Audio(media_type="audio/wav", data="AAAA"), "input_audio"),
    ],
)
def test_media_that_has_no_place_is_refused(part: Part, field: str) -> None:
    assert refused(Prompt(turns=(user(part),))) == field


# -- tools ----------------------------------------------------------------------------------------


def test_edge_69_a_free_form_tool_has_an_object_schema() -> None:
    tool = Tool(name="patch", free=True, grammar=Grammar("lark", "start: x"))
    history = ToolCall(id="c1", name="patch", arguments="raw *text*", free=True)
    sent, _ = encoded(Prompt(turns=(*HI, model_turn(history), user(result(1))), tools=(tool,)))
    schema = sent["tools"][0]["input_schema"]
    assert isinstance(schema, dict)
    assert schema["type"] == "object"
    assert list(schema["properties"]) == ["input"]
    assert "start: x" in json.dumps(schema)
    assert blocks(sent, 1)[0]["input"] == {"input": "raw *text*"}


def test_edge_73_and_74_tools_are_converted_and_their_names_known() -> None:
    prompt = Prompt(turns=HI, tools=(TOOL, Tool(name="no.good name", namespace="ns")))
    for stream in (True, False):
        found = MessagesUpstream().encode(prompt, target(stream=stream))
        first, second = json.loads(found.body)["tools"]
        assert first == {"name": "f", "description": "Does f.", "input_schema": SCHEMA}
        assert second["name"] == "ns__no_good_name"
        assert second["input_schema"]["type"] == "object"
        assert found.names is not None
        assert found.names.tool("ns__no_good_name") is prompt.tools[1]


@pytest.mark.parametrize(
    ("choice", "parallel", "sent_choice"),
    [
        (None, None, None),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (ToolChoice(mode="auto"), None, {"type": "auto"}),
        (ToolChoice(mode="any"), False, {"type": "any", "disable_parallel_tool_use": True}),
        (ToolChoice(mode="none"), False, {"type": "none"}),
        (ToolChoice(mode="named", names=("f",)), True, {"type": "tool", "name": "f"}),
    ],
)
def test_choices(
    choice: ToolChoice | None, parallel: bool | None, sent_choice: dict[str, object] | None
) -> None:
    prompt = Prompt(turns=HI, tools=(TOOL,), tool_choice=choice, parallel=parallel)
    sent, _ = encoded(prompt)
    assert sent.get("tool_choice") == sent_choice


def test_a_choice_of_some_declares_only_those() -> None:
    tools = (TOOL, Tool(name="g"))
    sent, dropped = encoded(
        Prompt(turns=HI, tools=tools, tool_choice=ToolChoice(mode="any", names=("g",)))
    )
    assert [each["name"] for each in sent["tools"]] == ["g"]
    assert dropped == ("approx:tool_choice",)


def test_a_choice_without_tools_is_none() -> None:
    sent, _ = encoded(Prompt(turns=HI, tool_choice=ToolChoice(mode="any"), parallel=False))
    assert not {"tools", "tool_choice"} & sent.keys()


def test_a_named_choice_means_the_tool_in_its_group() -> None:
    tools = (Tool(name="f", namespace="ns"),)
    choice = ToolChoice(mode="named", names=("f",))
    sent, _ = encoded(Prompt(turns=HI, tools=tools, tool_choice=choice))
    assert sent["tool_choice"] == {"type": "tool", "name": sent["tools"][0]["name"]}


def test_tools_of_other_providers_are_dropped_unless_they_must_be_used() -> None:
    hosted = (HostedTool(type="web_search"),)
    sent, dropped = encoded(Prompt(turns=HI, tools=(TOOL,), hosted_tools=hosted, web_search=True))
    assert len(sent["tools"]) == 1
    assert dropped == ("tool:web_search", "web_search_options")
    assert "tools" not in encoded(Prompt(turns=HI, hosted_tools=hosted))[0]
    forced = ToolChoice(mode="hosted", names=("web_search",))
    prompt = Prompt(turns=HI, tools=(TOOL,), hosted_tools=hosted, tool_choice=forced)
    assert refused(prompt) == "tool_choice"


# -- thinking -------------------------------------------------------------------------------------


def thinking(
    reasoning: Reasoning, model: str, cap: int = 64_000, prompt: Prompt | None = None
) -> tuple[object, object, tuple[str, ...]]:
    """The members `thinking` and `effort`, and what was lost."""
    base = prompt or Prompt(turns=HI)
    members = {name: getattr(base, name) for name in base.__struct_fields__}
    sent, dropped = encoded(Prompt(**{**members, "reasoning": reasoning}), model, cap)
    return sent.get("thinking"), sent.get("output_config", {}).get("effort"), dropped


@pytest.mark.parametrize(
    ("effort", "sent_thinking", "sent_effort", "dropped"),
    [
        ("none", {"type": "disabled"}, None, ()),
        ("minimal", {"type": "adaptive"}, "low", ("approx:effort",)),
        ("low", {"type": "adaptive"}, "low", ()),
        ("xhigh", {"type": "adaptive"}, "xhigh", ()),
        ("max", {"type": "adaptive"}, "max", ()),
    ],
)
def test_models_that_decide_for_themselves_get_an_effort(
    effort: Effort, sent_thinking: object, sent_effort: object, dropped: tuple[str, ...]
) -> None:
    found = thinking(Reasoning(effort=effort), MODEL)
    assert found == (sent_thinking, sent_effort, dropped)


def test_efforts_that_a_model_does_not_know_are_lowered() -> None:
    found = thinking(Reasoning(effort="xhigh"), "claude-opus-4-6")
    assert found == ({"type": "adaptive"}, "high", ("approx:effort",))


def test_models_that_always_think_cannot_be_told_not_to() -> None:
    found = thinking(Reasoning(effort="none"), "claude-fable-5")
    assert found == (None, "low", ("approx:effort",))


def test_what_is_seen_of_the_reasoning() -> None:
    for show, display in ((True, "summarized"), (False, "omitted")):
        found, _, _ = thinking(Reasoning(effort="high", show=show), MODEL)
        assert found == {"type": "adaptive", "display": display}
    assert thinking(Reasoning(show=True), MODEL)[0] == {"type": "adaptive", "display": "summarized"}


def test_a_budget_for_a_model_that_decides_for_itself_is_an_effort() -> None:
    assert thinking(Reasoning(budget=10_000), MODEL)[:2] == ({"type": "adaptive"}, "medium")
    assert thinking(Reasoning(budget=-1), MODEL)[:2] == ({"type": "adaptive"}, None)


@pytest.mark.parametrize("cap", [1025, 1100, 2000, 4096, 32_768, 33_000, 40_000])
def test_edge_80_a_budget_is_below_the_cap(cap: int) -> None:
    found, _, _ = thinking(Reasoning(effort="xhigh"), OLD_MODEL, cap)
    assert isinstance(found, dict)
    assert 1024 <= found["budget_tokens"] < cap


def test_edge_80_a_budget_that_does_not_fit_is_reported() -> None:
    assert thinking(Reasoning(effort="xhigh"), OLD_MODEL, 8000)[2] == ("clamped:reasoning_effort",)
    assert thinking(Reasoning(effort="high"), OLD_MODEL, 64_000) == (
        {"type": "enabled", "budget_tokens": 16384},
        None,
        (),
    )


@pytest.mark.parametrize("cap", [1, 512, 1024])
def test_edge_81_no_budget_below_the_least(cap: int) -> None:
    found = thinking(Reasoning(effort="high"), OLD_MODEL, cap)
    assert found == (None, None, ("reasoning_effort",))


@pytest.mark.parametrize("mode", ["any", "named"])
def test_edge_82_a_forced_choice_goes_before_thinking(mode: str) -> None:
    choice = ToolChoice(mode=mode, names=("f",))  # type: ignore[arg-type] # one of its modes
    prompt = Prompt(turns=HI, tools=(TOOL,), tool_choice=choice)
    found = thinking(Reasoning(effort="high"), OLD_MODEL, prompt=prompt)
    assert found[0] is None
    assert "reasoning_effort" in found[2]


def test_calls_whose_reasoning_is_lost_go_on_without_thinking() -> None:
    lost = Prompt(turns=(*HI, model_turn(call(1)), user(result(1))), tools=(TOOL,))
    assert thinking(Reasoning(effort="high"), OLD_MODEL, prompt=lost) == (
        None,
        None,
        ("degraded:reasoning",),
    )
    kept = model_turn(signed("Hm.", "s", OLD_MODEL), call(1))
    prompt = Prompt(turns=(*HI, kept, user(result(1))), tools=(TOOL,))
    found, _, dropped = thinking(Reasoning(effort="high"), OLD_MODEL, prompt=prompt)
    assert found == {"type": "enabled", "budget_tokens": 16384}
    assert dropped == ()
    assert thinking(Reasoning(effort="high"), MODEL, prompt=lost)[0] == {"type": "adaptive"}


def test_the_beginning_of_an_answer_goes_before_thinking() -> None:
    found = thinking(Reasoning(effort="high"), OLD_MODEL, prompt=Prompt(turns=said("a", "b")))
    assert found[0] is None


def test_models_that_cannot_think_are_not_asked() -> None:
    assert thinking(Reasoning(effort="high"), "claude-3-5-haiku")[2] == ("reasoning_effort",)
    assert thinking(Reasoning(effort="none"), "claude-3-5-haiku") == (None, None, ())


# -- how to answer --------------------------------------------------------------------------------


def test_edge_78_a_schema_and_an_effort_share_their_place() -> None:
    wanted = OutputFormat(kind="schema", schema=SCHEMA, name="n", strict=True)
    prompt = Prompt(turns=HI, format=wanted, reasoning=Reasoning(effort="low"))
    found = MessagesUpstream().encode(prompt, target())
    config = json.loads(found.body)["output_config"]
    assert config["effort"] == "low"
    assert config["format"]["type"] == "json_schema"
    assert config["format"]["schema"]["properties"] == SCHEMA["properties"]
    assert [name for name, _ in found.headers] == ["anthropic-version"]


def test_models_without_schemas_refuse_them() -> None:
    wanted = OutputFormat(kind="schema", schema=SCHEMA)
    assert refused(Prompt(turns=HI, format=wanted), "claude-3-7-sonnet") == "response_format"


def test_any_json_is_asked_for_in_words() -> None:
    prompt = Prompt(turns=(system("Be brief."), *HI), format=OutputFormat(kind="json"))
    sent, dropped = encoded(prompt)
    assert "JSON" in json.dumps(sent["system"])
    assert dropped == ("approx:response_format",)


@pytest.mark.parametrize(
    ("model", "sampling", "kept", "dropped"),
    [
        (MODEL, Sampling(temperature=0.5, top_p=0.9), {}, ("temperature", "top_p")),
        (OLD_MODEL, Sampling(temperature=1.5), {"temperature": 1}, ("clamped:temperature",)),
        (OLD_MODEL, Sampling(temperature=0.5, top_p=0.9), {"temperature": 0.5}, ("top_p",)),
        (OLD_MODEL, Sampling(top_p=0.9, top_k=5), {"top_p": 0.9, "top_k": 5}, ()),
        ("glm", Sampling(temperature=0.0, top_p=0.9), {"temperature": 0.0, "top_p": 0.9}, ()),
        (MODEL, Sampling(seed=1, presence_penalty=0.0), {}, ("seed", "presence_penalty")),
    ],
)
def test_sampling(
    model: str, sampling: Sampling, kept: dict[str, float], dropped: tuple[str, ...]
) -> None:
    sent, lost = encoded(Prompt(turns=HI, sampling=sampling), model)
    assert {name: sent.get(name) for name in kept} == kept
    assert not {"temperature", "top_p", "top_k", "seed"} & sent.keys() - kept.keys()
    assert lost == dropped


def test_thinking_goes_before_sampling() -> None:
    reasoning, sampling = Reasoning(effort="low"), Sampling(temperature=0.5)
    sent, dropped = encoded(
        Prompt(turns=HI, reasoning=reasoning, sampling=sampling), OLD_MODEL, 9000
    )
    assert "temperature" not in sent
    assert dropped == ("temperature",)


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (Prompt(turns=HI, choices=2), "n"),
        (Prompt(turns=HI, audio_output=True), "modalities"),
        (Prompt(turns=HI, sampling=Sampling(logprobs=True)), "logprobs"),
        (Prompt(turns=HI, sampling=Sampling(logit_bias={"1": 2})), "logit_bias"),
    ],
)
def test_what_would_change_the_answer_is_refused(prompt: Prompt, field: str) -> None:
    assert refused(prompt) == field


def test_small_things() -> None:
    prompt = Prompt(
        turns=HI,
        stop=("END", " \n"),
        end_user="u" * 300,
        service_tier="flex",
        verbosity="low",
        cache_key="k",
        metadata={"a": "b"},
    )
    sent, dropped = encoded(prompt)
    assert sent["stop_sequences"] == ["END"]
    assert len(sent["metadata"]["user_id"]) == 64
    assert sent["service_tier"] == "standard_only"
    assert dropped == ("stop",)


# -- caching --------------------------------------------------------------------------------------


def marks(value: object) -> list[str]:
    """The times of all cache marks, in order."""
    if isinstance(value, list):
        return [mark for each in value for mark in marks(each)]
    if not isinstance(value, dict):
        return []
    own = [value["cache_control"]["ttl"]] if "cache_control" in value else []
    return [*(mark for each in value.values() for mark in marks(each)), *own]


def test_the_last_four_cache_marks_are_kept() -> None:
    tool = Tool(name="f", cache="1h")
    texts = [Text(text=str(at), cache="30m") for at in range(4)]
    sent, _ = encoded(Prompt(turns=(system("s", "12h"), user(*texts)), tools=(tool,)))
    assert marks(sent["tools"]) == []
    assert marks(sent["system"]) == []
    assert marks(sent["messages"]) == ["5m"] * 4


def test_long_marks_come_before_short_ones() -> None:
    texts = (Text(text="a", cache="5m"), Text(text="b", cache="1h"))
    sent, _ = encoded(Prompt(turns=(system("s", "12h"), user(*texts))))
    assert [*marks(sent["system"]), *marks(sent["messages"])] == ["1h", "5m", "5m"]


def test_results_and_media_can_be_marked() -> None:
    marked = ToolResult(call_id="c1", content=(Text(text="r"),), cache="5m")
    turns = (user(Image(url="https://a.b", cache="5m")), model_turn(call(1)), user(marked))
    sent, _ = encoded(Prompt(turns=turns, tools=(TOOL,)))
    assert marks(sent["messages"]) == ["5m", "5m"]


# -- what a model says of itself cannot be said back ----------------------------------------------


def test_refusals_and_media_of_the_model() -> None:
    turn = model_turn(Refusal(text="No."), Image(media_type="image/png", data=PNG))
    sent, dropped = encoded(Prompt(turns=(*HI, turn, *said("Why?"))))
    assert content(sent, 1) == "No."
    assert dropped == ("image",)


# -- counting -------------------------------------------------------------------------------------


def test_the_counter_gets_what_it_takes() -> None:
    prompt = Prompt(turns=(system("s"), *HI), tools=(TOOL,), stop=("x",), end_user="u")
    call_ = MessagesUpstream().counting(prompt, target())
    assert call_.path == "/v1/messages/count_tokens"
    assert json.loads(call_.body).keys() == {"model", "system", "messages", "tools"}
    assert call_.headers == (("anthropic-version", NEW_VERSION),)
    assert call_.read(b'{"input_tokens": 12}') == 12
    for body in (b"", b"{}", b'{"input_tokens": -1}', b'{"input_tokens": "x"}'):
        assert call_.read(body) is None

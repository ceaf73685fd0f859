"""Prompts as chat requests: OpenAI's own form, and the one that every compatible server reads."""

from __future__ import annotations

import json

import pytest

from adapters.canonical import (
    Audio,
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
from adapters.catalogue import Provider
from adapters.codec import Ask, Encoded, Target
from adapters.envelope import Envelopes
from adapters.errors import RequestNotExpressible
from adapters.openai.chat_downstream import ChatDownstream
from adapters.openai.chat_encode import encoded
from adapters.openai.chat_upstream import ChatUpstream
from tests.fakes.bodies import whole

Json = dict[str, object]

OLD = Provider("p", "openai", "http://x")
NEW = Provider("p", "openai", "http://x", output_cap_field="max_completion_tokens")
HI = Turn(role="user", parts=(Text(text="hi"),))
LOOK = Tool(name="look", description="Looks.", schema={"type": "object", "properties": {}})
PATCH = Tool(name="patch", free=True, grammar=Grammar("lark", "start: X"))


def encode(
    *turns: Turn,
    provider: Provider = OLD,
    model: str = "some",
    stream: bool = False,
    **members: object,
) -> Encoded:
    prompt = Prompt(turns=turns or (HI,), **members)  # type: ignore[arg-type]
    return encoded(prompt, Target(provider, model, 50, stream))


def body(*turns: Turn, provider: Provider = OLD, model: str = "some", **members: object) -> Json:
    found = json.loads(encode(*turns, provider=provider, model=model, **members).body)  # type: ignore[arg-type]
    assert isinstance(found, dict)
    return found


def messages(*turns: Turn, provider: Provider = OLD, model: str = "some") -> list[Json]:
    found = body(*turns, provider=provider, model=model)["messages"]
    assert isinstance(found, list)
    return found


def user(*parts: Part) -> Turn:
    return Turn(role="user", parts=parts)


def answer(*parts: Part) -> Turn:
    return Turn(role="assistant", parts=parts)


def call(call_id: str, arguments: str = "{}", name: str = "look", free: bool = False) -> ToolCall:
    return ToolCall(id=call_id, name=name, arguments=arguments, free=free)


def result(call_id: str, *content: Text | Image, error: bool = False) -> ToolResult:
    return ToolResult(call_id=call_id, content=content, error=error)


# -- the frame ------------------------------------------------------------------------------------


def test_the_cap_goes_under_the_providers_name_and_streams_ask_for_usage() -> None:
    assert body() == {
        "model": "some",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 50,
    }
    streamed = json.loads(encode(provider=NEW, stream=True).body)
    assert streamed["max_completion_tokens"] == 50
    assert (streamed["stream"], streamed["stream_options"]) == (True, {"include_usage": True})


# -- messages -------------------------------------------------------------------------------------


def test_texts_are_parts_for_openai_and_one_text_for_the_others() -> None:
    turn = Turn(role="system", parts=(Text(text="a"), Text(text="b")))
    assert messages(turn, HI)[0]["content"] == "a\n\nb"
    assert messages(turn, HI, provider=NEW)[0]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]


def test_marks_for_the_cache_go_where_they_are_known() -> None:
    turn = user(Text(text="a", cache="5m"), Text(text="b", cache="1h"))
    marked = messages(turn, provider=NEW, model="gpt-6")[0]["content"]
    assert isinstance(marked, list)
    assert [part["prompt_cache_breakpoint"]["ttl"] for part in marked] == ["30m", "12h"]
    for provider, model in ((OLD, "gpt-6"), (NEW, "gpt-4o")):
        assert "cache" not in json.dumps(messages(turn, provider=provider, model=model))


def test_results_come_first_and_their_media_after_all_of_them() -> None:
    image = Image(media_type="image/png", data="AAAA")
    found = messages(
        HI,
        answer(call("a"), call("b")),
        user(result("a", Text(text="x"), image), result("b", error=True), Text(text="go on")),
    )
    assert found[2:] == [
        {"role": "tool", "tool_call_id": "a", "content": "x\n[image attached below]"},
        {"role": "tool", "tool_call_id": "b", "content": "Error: "},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "text", "text": "go on"},
            ],
        },
    ]


def test_arguments_keep_every_byte_and_are_never_empty() -> None:
    odd = '{ "n": 12345678901234567890 , "x"'
    found = messages(HI, answer(call("a", odd), call("b", "")), user(result("a"), result("b")))
    calls = found[1]["tool_calls"]
    assert isinstance(calls, list)
    assert [each["function"]["arguments"] for each in calls] == [odd, "{}"]


def test_free_form_calls_are_native_or_wrapped() -> None:
    turns = (HI, answer(call("a", "raw", "patch", free=True)), user(result("a")))
    (native,) = messages(*turns, provider=NEW)[1]["tool_calls"]  # type: ignore[misc]
    assert native == {"id": "a", "type": "custom", "custom": {"name": "patch", "input": "raw"}}  # type: ignore[has-type]
    (wrapped,) = messages(*turns)[1]["tool_calls"]  # type: ignore[misc]
    assert json.loads(wrapped["function"]["arguments"]) == {"input": "raw"}  # type: ignore[has-type]


def test_reasoning_goes_back_to_those_that_want_it() -> None:
    turns = (HI, answer(Thinking(text="hm"), Text(text="A")), HI)
    assert messages(*turns, model="deepseek-v4")[1]["reasoning_content"] == "hm"
    assert "reasoning_content" not in messages(*turns)[1]


def test_refusals_are_text_for_those_that_know_none() -> None:
    turns = (HI, answer(Refusal(text="no")), HI)
    assert messages(*turns)[1] == {"role": "assistant", "content": "no"}
    modern = messages(*turns, provider=NEW)[1]
    assert modern == {"role": "assistant", "content": None, "refusal": "no"}


@pytest.mark.parametrize(
    ("part", "written"),
    [
        (
            Image(url="https://x", detail="low"),
            {"type": "image_url", "image_url": {"url": "https://x", "detail": "low"}},
        ),
        (
            Audio(media_type="audio/mpeg", data="AAAA"),
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
        ),
        (
            Document(media_type="application/pdf", data="AAAA", name="a.pdf"),
            {
                "type": "file",
                "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"},
            },
        ),
        (
            Document(media_type="text/plain", data="d29yZHM=", name="a.txt"),
            {"type": "text", "text": "a.txt:\n\nwords"},
        ),
        (Document(text="words"), {"type": "text", "text": "words"}),
    ],
)
def test_parts(part: Part, written: Json) -> None:
    assert messages(user(part))[0]["content"] == [written]


@pytest.mark.parametrize(
    "part",
    [
        Image(file_id="f"),
        Document(file_id="f"),
        Document(url="https://x"),
        Document(media_type="video/mp4", data="AAAA"),
        Audio(media_type="audio/flac", data="AAAA"),
    ],
)
def test_parts_that_cannot_be_sent_are_refused(part: Part) -> None:
    with pytest.raises(RequestNotExpressible):
        messages(user(part))


# -- tools ----------------------------------------------------------------------------------------


def test_tools_in_both_forms() -> None:
    function = {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Looks.",
            "parameters": {"type": "object", "properties": {}},
        },
    }
    old = body(tools=(LOOK, PATCH))["tools"]
    new = body(tools=(LOOK, PATCH), provider=NEW)["tools"]
    assert isinstance(old, list)
    assert isinstance(new, list)
    assert old[0] == new[0] == function
    assert old[1]["function"]["parameters"]["required"] == ["input"]
    grammar = {"syntax": "lark", "definition": "start: X"}
    assert new[1]["custom"]["format"] == {"type": "grammar", "grammar": grammar}


def test_unsafe_names_have_a_way_back() -> None:
    tool = Tool(name="a.b", namespace="files")
    made = encode(tools=(tool,))
    wire = json.loads(made.body)["tools"][0]["function"]["name"]
    assert wire == "files__a_b"
    assert made.names is not None
    assert made.names.tool(wire) == tool


@pytest.mark.parametrize(
    ("choice", "written"),
    [
        (ToolChoice(mode="auto"), "auto"),
        (ToolChoice(mode="any"), "required"),
        (ToolChoice(mode="none"), "none"),
        (
            ToolChoice(mode="named", names=("look",)),
            {"type": "function", "function": {"name": "look"}},
        ),
        (
            ToolChoice(mode="named", names=("patch",)),
            {"type": "custom", "custom": {"name": "patch"}},
        ),
        (
            ToolChoice(mode="any", names=("look",)),
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "look"}}],
                },
            },
        ),
    ],
)
def test_choices(choice: ToolChoice, written: object) -> None:
    assert body(tools=(LOOK, PATCH), tool_choice=choice, provider=NEW)["tool_choice"] == written


def test_a_subset_of_tools_is_all_that_others_get() -> None:
    made = encode(tools=(LOOK, PATCH), tool_choice=ToolChoice(mode="any", names=("look",)))
    found = json.loads(made.body)
    assert len(found["tools"]) == 1
    assert found["tool_choice"] == "required"
    assert made.dropped == ("approx:tool_choice",)


def test_tools_of_another_provider_are_left_out_unless_they_are_forced() -> None:
    hosted = (HostedTool(type="web_search"),)
    made = encode(tools=(LOOK,), hosted_tools=hosted)
    assert made.dropped == ("tool:web_search",)
    with pytest.raises(RequestNotExpressible):
        encode(hosted_tools=hosted, tool_choice=ToolChoice(mode="hosted", names=("web_search",)))


# -- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "effort", "written", "dropped"),
    [
        ("gpt-6", "max", "max", ()),
        ("gpt-5.6", "none", "none", ()),
        ("gpt-5", "xhigh", "high", ("approx:effort",)),
        ("openai/o4-mini", "minimal", "low", ("approx:effort",)),
        ("gpt-oss-120b", "high", "high", ()),
        ("gpt-4o", "high", None, ("reasoning_effort",)),
        ("some", "none", None, ()),
    ],
)
def test_effort_goes_to_models_that_know_it(
    model: str, effort: Effort, written: str | None, dropped: tuple[str, ...]
) -> None:
    made = encode(model=model, reasoning=Reasoning(effort=effort))
    assert json.loads(made.body).get("reasoning_effort") == written
    assert made.dropped == dropped


def test_sampling() -> None:
    given = Sampling(temperature=0, top_p=0.5, top_k=3, seed=1, logprobs=True, top_logprobs=2)
    made = encode(sampling=given, stop=("a", "b", "c", "d", "e"))
    found = json.loads(made.body)
    assert (found["temperature"], found["top_p"], found["seed"]) == (0, 0.5, 1)
    assert (found["logprobs"], found["top_logprobs"]) == (True, 2)
    assert found["stop"] == ["a", "b", "c", "d"]
    assert not made.stops_itself
    assert made.dropped == ("top_k",)


def test_models_that_reason_take_no_sampling() -> None:
    made = encode(model="gpt-5", sampling=Sampling(temperature=1), stop=("a",))
    assert b"stop" not in made.body
    assert not made.stops_itself
    assert made.dropped == ("temperature",)


def test_formats() -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False, "required": []}
    given = OutputFormat(kind="schema", schema=schema, name="my answer", strict=True)
    found = body(format=given)["response_format"]
    assert isinstance(found, dict)
    assert found["json_schema"] == {"name": "my_answer", "schema": schema, "strict": True}
    assert body(format=OutputFormat(kind="json"))["response_format"] == {"type": "json_object"}
    assert "response_format" not in body(format=OutputFormat(kind="text"))


def test_hints_go_to_openai_alone() -> None:
    hints: Json = {
        "end_user": "u" * 99,
        "cache_key": "k",
        "verbosity": "low",
        "service_tier": "flex",
        "metadata": {"a": "b"},
    }
    new = body(provider=NEW, model="gpt-6", **hints)
    assert (new["prompt_cache_key"], new["verbosity"], new["service_tier"]) == ("k", "low", "flex")
    assert len(str(new["safety_identifier"])) <= 64
    assert "metadata" not in new
    assert body(**hints) == body()  # type: ignore[arg-type]


@pytest.mark.parametrize("members", [{"choices": 2}, {"audio_output": True}])
def test_what_cannot_be_translated_is_refused(members: Json) -> None:
    with pytest.raises(RequestNotExpressible):
        encode(**members)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("llama-4", "max_tokens"),
        ("gpt-oss-120b", "max_tokens"),
        ("gpt-5.4", "max_completion_tokens"),
        ("openai/o3", "max_completion_tokens"),
    ],
)
def test_reasoning_models_know_the_newer_cap_wherever_they_are(model: str, name: str) -> None:
    target = Target(Provider("p", "openai", "http://proxy"), model, 77, stream=False)
    body = json.loads(encoded(Prompt(turns=(HI,)), target).body)
    assert {key: value for key, value in body.items() if "max_" in key} == {name: 77}
    request = ChatDownstream().decode(
        b'{"model":"m","messages":[{"role":"user","content":"x"}]}', Ask()
    )
    passed = json.loads(whole(ChatUpstream().passing(request, target, Envelopes(b"k", "1")).body))
    assert {key: value for key, value in passed.items() if "max_" in key} == {name: 77}

"""A Gemini request as the one model in the middle has it."""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode

import pytest

from adapters.canonical import (
    Audio,
    Blob,
    Document,
    Image,
    OutputFormat,
    Prompt,
    Reasoning,
    Sampling,
    Text,
    Thinking,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from adapters.codec import Ask
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest, RequestNotExpressible
from adapters.gemini.downstream import CountDownstream, GenerateDownstream
from adapters.gemini.signature import Sealed, encoded

ENVELOPES = Envelopes(b"s" * 32, "acme")
HI = [{"role": "user", "parts": [{"text": "hi"}]}]
PNG = b64encode(b"\x89PNG\r\n\x1a\n" + b"0" * 16).decode()


def prompt(contents: object = None, **rest: object) -> Prompt:
    body = json.dumps({"contents": HI if contents is None else contents, **rest}).encode()
    codec = GenerateDownstream()
    return codec.prompt(codec.decode(body, Ask(id="m")), ENVELOPES)


def user(*parts: object) -> dict[str, object]:
    return {"role": "user", "parts": list(parts)}


def model(*parts: object) -> dict[str, object]:
    return {"role": "model", "parts": list(parts)}


def config(**members: object) -> Prompt:
    return prompt(generationConfig=members)


def test_roles_and_instructions() -> None:
    found = prompt(
        [{"parts": [{"text": "a"}]}, model({"text": "b"}), {"role": "user", "parts": []}],
        systemInstruction={"role": "user", "parts": [{"text": "be nice"}]},
    )
    assert found.turns == (
        Turn(role="system", parts=(Text(text="be nice"),)),
        Turn(role="user", parts=(Text(text="a"),)),
        Turn(role="assistant", parts=(Text(text="b"),)),
        Turn(role="user", parts=()),
    )
    assert prompt(system_instruction="be nice").turns[0].parts == (Text(text="be nice"),)


def test_calls_without_ids_meet_their_results_by_order_and_name() -> None:
    found = prompt(
        [
            user({"text": "go"}),
            model(
                {"functionCall": {"name": "f", "args": {"n": 1}}},
                {"functionCall": {"name": "g"}},
                {"functionCall": {"name": "f", "args": {"n": 2}}},
            ),
            user(
                {"functionResponse": {"name": "f", "response": {"output": "one"}}},
                {"functionResponse": {"name": "f", "response": {"output": "two"}}},
                {"functionResponse": {"name": "g", "response": {"error": "no"}}},
            ),
        ]
    )
    calls = [part for part in found.turns[1].parts if isinstance(part, ToolCall)]
    assert [(each.id, each.arguments) for each in calls] == [
        ("call_1_0", '{"n": 1}'),
        ("call_1_1", "{}"),
        ("call_1_2", '{"n": 2}'),
    ]
    assert found.turns[2].parts == (
        ToolResult(call_id="call_1_0", name="f", content=(Text(text="one"),)),
        ToolResult(call_id="call_1_2", name="f", content=(Text(text="two"),)),
        ToolResult(call_id="call_1_1", name="g", content=(Text(text="no"),), error=True),
    )


def test_given_ids_are_kept() -> None:
    found = prompt(
        [
            model({"functionCall": {"id": "a", "name": "f"}}),
            model({"functionCall": {"id": "b", "name": "f"}}),
            user(
                {"functionResponse": {"id": "b", "name": "f", "response": {"result": "2"}}},
                {"functionResponse": {"name": "f", "response": {"result": "1"}}},
                {"functionResponse": {"id": "z", "name": "x", "response": {}}},
            ),
        ]
    )
    results = [part for part in found.turns[1].parts if isinstance(part, ToolResult)]
    assert [each.call_id for each in results] == ["b", "a", "z"]


@pytest.mark.parametrize(
    ("response", "text", "error"),
    [
        ({"output": "x"}, "x", False),
        ({"result": "x"}, "x", False),
        ({"result": 5}, '{"result": 5}', False),
        ({"error": "x"}, "x", True),
        ({"error": {"code": 1}}, '{"code": 1}', True),
        ({"output": "x", "more": 1}, '{"output": "x", "more": 1}', False),
    ],
)
def test_what_a_function_answered(response: object, text: str, error: bool) -> None:
    [result] = prompt(
        [user({"functionResponse": {"name": "f", "response": response}})]
    ).turns[0].parts  # fmt: skip
    assert isinstance(result, ToolResult)
    assert (result.content, result.error) == ((Text(text=text),), error)


def test_media() -> None:
    [turn] = prompt(
        [
            user(
                {
                    "inline_data": {"mime_type": "image/jpeg", "data": PNG},
                    "mediaResolution": {"level": "MEDIA_RESOLUTION_LOW"},
                },
                {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}},
                {"inlineData": {"mimeType": "application/pdf", "data": "AAAA"}},
                {"inlineData": {"mimeType": "text/plain", "data": b64encode(b"note").decode()}},
                {"fileData": {"mimeType": "image/png", "fileUri": "https://a/b.png"}},
                {"fileData": {"mimeType": "video/mp4", "fileUri": "gs://a/b"}},
            )
        ]
    ).turns
    assert turn.parts == (
        Image(media_type="image/png", data=PNG, detail="low"),
        Audio(media_type="audio/wav", data="AAAA"),
        Document(media_type="application/pdf", data="AAAA"),
        Document(media_type="text/plain", text="note"),
        Image(media_type="image/png", url="https://a/b.png"),
        Document(media_type="video/mp4", file_id="gs://a/b"),
    )


def sealed(blob: Blob, *, safe: bool = False) -> str:
    envelope = ENVELOPES.seal(blob).encode()
    return (urlsafe_b64encode(envelope) if safe else b64encode(envelope)).decode()


@pytest.mark.parametrize("safe", [False, True])
def test_signatures_of_ours_come_back_in_either_alphabet(safe: bool) -> None:
    thinking, call = Blob("c", "f", "thinking", "s?>"), Blob("g", "f", "call", "t?>")
    [turn] = prompt(
        [
            model(
                {"text": "hm", "thought": True, "thoughtSignature": sealed(thinking, safe=safe)},
                {"text": "said", "thought_signature": sealed(thinking, safe=safe)},
                {"functionCall": {"name": "f"}, "thoughtSignature": sealed(thinking, safe=safe)},
                {"functionCall": {"name": "f"}, "thoughtSignature": sealed(call, safe=safe)},
                {"text": "", "thoughtSignature": sealed(call, safe=safe)},
            )
        ]
    ).turns
    assert turn.parts == (
        Thinking(text="hm", blob=thinking),
        Thinking(blob=thinking),
        Text(text="said"),
        Thinking(blob=thinking),
        ToolCall(id="call_0_0", name="f", arguments="{}"),
        ToolCall(id="call_0_1", name="f", arguments="{}", blob=call),
        Thinking(blob=call),
    )


def test_a_thought_that_was_hidden_comes_back_with_its_signature() -> None:
    blob = Blob("c", "f", "thinking", "s")
    slot = encoded(Sealed(ENVELOPES.seal(blob), "h\u00fc\nm"))
    call = {"functionCall": {"name": "f"}, "thoughtSignature": slot}
    [turn] = prompt([model(call, {"text": "", "thought": True, "thoughtSignature": slot})]).turns
    hidden = Thinking(text="h\u00fc\nm", blob=blob)
    assert turn.parts == (hidden, ToolCall(id="call_0_0", name="f", arguments="{}"), hidden)


@pytest.mark.parametrize("apart", [False, True])
def test_an_answer_comes_back_as_it_was_streamed(apart: bool) -> None:
    blob, text = Blob("c", "f", "thinking", "s"), Blob("g", "f", "text", "t")
    parts: list[object] = [
        {"text": "let", "thought": True},
        {"text": " me", "thought": True},
        {"text": "", "thought": True, "thoughtSignature": sealed(blob)},
        {"text": "again", "thought": True},
        {"text": "He"},
        {"text": "\n"},
        {"text": "lo"},
        {"text": "", "thoughtSignature": sealed(text)},
        {"functionCall": {"name": "f"}},
    ]
    contents = [model(part) for part in parts] if apart else [model(*parts)]
    [turn] = prompt(contents).turns
    assert turn.parts[:-1] == (
        Thinking(text="let me", blob=blob),
        Thinking(text="again"),
        Text(text="He\nlo"),
        Thinking(blob=text),
    )


def test_signatures_of_googles_own_are_left_out() -> None:
    [turn] = prompt(
        [
            model(
                {"text": "", "thoughtSignature": "CiQB0kMrc2ln"},
                {"functionCall": {"name": "f"}, "thoughtSignature": "CiQB0kMrc2ln"},
            )
        ]
    ).turns
    assert turn.parts == (ToolCall(id="call_0_0", name="f", arguments="{}"),)


def test_what_ran_at_google_becomes_text_and_is_reported() -> None:
    found = prompt(
        [
            model(
                {"executableCode": {"language": "PYTHON", "code": "1+1"}},
                {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "2"}},
                {"toolCall": {"x": 1}},
            )
        ]
    )
    assert found.turns[0].parts == (Text(text="```python\n1+1\n```\n```\n2\n```\n"),)
    assert set(found.dropped) == {"approx:codeExecution", "toolCall"}


def test_tools_and_the_choice_among_them() -> None:
    schema = {"type": "OBJECT", "properties": {"a": {"type": "STRING", "nullable": True}}}
    found = prompt(
        tools=[
            {
                "functionDeclarations": [
                    {"name": "f", "description": "d", "parameters": schema},
                    {"name": "g", "parameters_json_schema": {"type": "object"}},
                    {"name": "h"},
                ]
            },
            {"googleSearch": {}},
        ],
        toolConfig={"function_calling_config": {"mode": "ANY", "allowed_function_names": ["f"]}},
    )
    assert [tool.name for tool in found.tools] == ["f", "g", "h"]
    assert found.tools[0].schema == {
        "type": "object",
        "properties": {"a": {"type": ["string", "null"]}},
    }
    assert found.tools[2].schema is None
    assert [hosted.type for hosted in found.hosted_tools] == ["googleSearch"]
    assert found.tool_choice == ToolChoice(mode="named", names=("f",))


@pytest.mark.parametrize(
    ("calling", "choice"),
    [
        ({"mode": "AUTO"}, ToolChoice(mode="auto")),
        ({}, ToolChoice(mode="auto")),
        ({"mode": "none"}, ToolChoice(mode="none")),
        ({"mode": "ANY"}, ToolChoice(mode="any")),
        (
            {"mode": "ANY", "allowedFunctionNames": ["a", "b"]},
            ToolChoice(mode="any", names=("a", "b")),
        ),
        ({"mode": "MODE_UNSPECIFIED"}, None),
    ],
)
def test_modes(calling: object, choice: ToolChoice | None) -> None:
    assert prompt(toolConfig={"functionCallingConfig": calling}).tool_choice == choice


def test_sampling() -> None:
    found = config(
        temperature=1, topP=0.95, topK=64.0, seed=3, presence_penalty=0.5, frequencyPenalty=0.25,
        responseLogprobs=True, logprobs=4, stopSequences=["a", "b"], candidateCount=2,
    )  # fmt: skip
    assert found.sampling == Sampling(
        temperature=1.0, top_p=0.95, top_k=64, seed=3, presence_penalty=0.5,
        frequency_penalty=0.25, logprobs=True, top_logprobs=4,
    )  # fmt: skip
    assert (found.stop, found.choices) == (("a", "b"), 2)


@pytest.mark.parametrize(
    ("thinking", "reasoning"),
    [
        (
            {"include_thoughts": True, "thinking_budget": 1024},
            Reasoning(budget=1024, show=True),
        ),
        ({"thinkingBudget": -1}, Reasoning()),
        ({"thinkingBudget": 0, "includeThoughts": False}, Reasoning(budget=0, show=False)),
        ({"thinkingLevel": "XHIGH"}, Reasoning(effort="xhigh")),
        ({"thinkingLevel": "low"}, Reasoning(effort="low")),
    ],
)
def test_reasoning(thinking: object, reasoning: Reasoning) -> None:
    assert config(thinkingConfig=thinking).reasoning == reasoning


SCHEMA = {"type": "OBJECT", "properties": {"a": {"type": "INTEGER"}}}
LOWER = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ({}, None),
        ({"responseMimeType": "text/plain"}, None),
        ({"responseMimeType": "application/json"}, OutputFormat(kind="json")),
        (
            {"responseMimeType": "application/json", "responseSchema": SCHEMA},
            OutputFormat(kind="schema", schema=LOWER),
        ),
        (
            {"responseMimeType": "application/json", "response_json_schema": SCHEMA},
            OutputFormat(kind="schema", schema=LOWER),
        ),
        ({"_responseJsonSchema": SCHEMA}, OutputFormat(kind="schema", schema=LOWER)),
        (
            {"responseFormat": [{"text": {"mimeType": "APPLICATION_JSON", "schema": SCHEMA}}]},
            OutputFormat(kind="schema", schema=LOWER),
        ),
        (
            {"responseFormat": [{"text": {"mimeType": "APPLICATION_JSON"}}]},
            OutputFormat(kind="json"),
        ),
    ],
)
def test_formats(members: dict[str, object], wanted: OutputFormat | None) -> None:
    assert config(**members).format == wanted


def test_hints_go_without_a_word_and_the_rest_is_reported() -> None:
    found = prompt(
        safetySettings=[],
        labels={"a": "b"},
        store=True,
        serviceTier="PRIORITY",
        generationConfig={"mediaResolution": "X", "responseMimeType": "text/x.enum"},
    )
    assert set(found.dropped) == {"store", "mediaResolution", "responseMimeType"}
    assert found.service_tier == "priority"


@pytest.mark.parametrize("name", ["cachedContent", "cached_content", "continuationToken"])
def test_what_lies_at_google_cannot_be_moved(name: str) -> None:
    with pytest.raises(RequestNotExpressible):
        prompt(**{name: "x"})


def test_images_cannot_be_asked_of_others() -> None:
    with pytest.raises(RequestNotExpressible):
        config(responseModalities=["TEXT", "IMAGE"])
    assert config(response_modalities=["AUDIO"]).audio_output


@pytest.mark.parametrize(
    ("contents", "param"),
    [
        ([{"role": "system", "parts": []}], "contents[0].role"),
        ([{"role": "user", "parts": 5}], "contents[0].parts"),
        ([user({"text": 5})], "contents[0].parts[0].text"),
        ([model({"functionCall": {}})], "contents[0].parts[0].functionCall.name"),
        (
            [model({"functionCall": {"name": "f", "args": []}})],
            "contents[0].parts[0].functionCall.args",
        ),
        (
            [user({"inlineData": {"mimeType": "image/png", "data": ""}})],
            "contents[0].parts[0].inlineData.data",
        ),
    ],
)
def test_malformed_contents_are_named(contents: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        prompt(contents)
    assert refused.value.param == param


def test_a_request_to_be_counted_is_unwrapped() -> None:
    body = {"generateContentRequest": {"contents": HI, "system_instruction": "s"}}
    codec = CountDownstream()
    request = codec.decode(json.dumps(body).encode(), Ask(id="m"))
    assert [turn.role for turn in codec.prompt(request, ENVELOPES).turns] == ["system", "user"]

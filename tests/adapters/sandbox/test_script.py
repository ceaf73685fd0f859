"""A test can script what the model does, turn by turn, in every protocol."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.fakes.sandbox import Json, an_object, chat, generate, messages, objects, responses

LINES = [
    {"text": "I look.", "tool": "bash", "arguments": {"command": "ls"}},
    {"custom": "apply_patch", "input": "*** Begin\n+x"},
    {"text": "That is all."},
]
SCRIPT = "Do it:\n```script\n" + "\n".join(map(json.dumps, LINES)) + "\n```\nThanks."
WRAPPED = f"<context>{SCRIPT}</context>"
SCHEMA: Json = {"type": "object", "properties": {"command": {"type": "string"}}}
Turn = tuple[str, list[tuple[str, object]]]


class Client:
    """A conversation in one protocol: `turn` asks once and says everything back."""

    def __init__(self) -> None:
        self.history: list[Json] = []

    def turn(self) -> Turn:
        raise NotImplementedError


class Chat(Client):
    def __init__(self) -> None:
        super().__init__()
        self.history = [{"role": "system", "content": "x"}, {"role": "user", "content": WRAPPED}]
        parameters: Json = {"name": "mcp__Bash", "parameters": SCHEMA}
        self.tools: list[Json] = [
            {"type": "function", "function": parameters},
            {"type": "custom", "custom": {"name": "apply_patch"}},
        ]

    def turn(self) -> Turn:
        played = chat("sandbox-script", messages=self.history, tools=self.tools)
        message = an_object(objects(played.json["choices"])[0]["message"])
        message.pop("refusal")
        self.history.append(message)
        calls: list[tuple[str, object]] = []
        for call in objects(message.get("tool_calls", [])):
            made = an_object(call[str(call["type"])])
            said = json.loads(str(made["arguments"])) if "arguments" in made else made["input"]
            calls.append((str(made["name"]), said))
            self.history.append({"role": "tool", "tool_call_id": call["id"], "content": "ok"})
        return str(message["content"] or ""), calls


class Responses(Client):
    def __init__(self) -> None:
        super().__init__()
        self.history = [{"role": "user", "content": [{"type": "input_text", "text": WRAPPED}]}]
        self.tools: list[Json] = [
            {"type": "function", "name": "Bash", "parameters": SCHEMA},
            {"type": "custom", "name": "apply_patch"},
        ]

    def turn(self) -> Turn:
        answer = responses("sandbox-script", input=self.history, tools=self.tools).json
        text, calls = "", list[tuple[str, object]]()
        for item in objects(answer["output"]):
            self.history.append(item)
            if item["type"] == "message":
                text += str(objects(item["content"])[0]["text"])
                continue
            free = item["type"] == "custom_tool_call"
            said = item["input"] if free else json.loads(str(item["arguments"]))
            calls.append((str(item["name"]), said))
            output = {"type": f"{item['type']}_output", "call_id": item["call_id"], "output": "ok"}
            self.history.append(output)
        return text, calls


class Messages(Client):
    def __init__(self) -> None:
        super().__init__()
        self.history = [{"role": "user", "content": [{"type": "text", "text": WRAPPED}]}]
        self.tools: list[Json] = [
            {"name": "Bash", "input_schema": SCHEMA},
            {"name": "apply_patch", "input_schema": {"type": "object"}},
        ]

    def turn(self) -> Turn:
        answer = messages(
            "sandbox-script",
            messages=self.history,
            tools=self.tools,
            thinking={"type": "enabled", "budget_tokens": 1024},
        ).json
        blocks = objects(answer["content"])
        assert blocks[0]["type"] == "thinking"
        self.history.append({"role": "assistant", "content": blocks})
        calls: list[tuple[str, object]] = [
            (str(block["name"]), block["input"]) for block in blocks if block["type"] == "tool_use"
        ]
        results = [
            {"type": "tool_result", "tool_use_id": block["id"], "content": "ok"}
            for block in blocks
            if block["type"] == "tool_use"
        ]
        if results:
            self.history.append({"role": "user", "content": results})
        return "".join(str(block["text"]) for block in blocks if block["type"] == "text"), calls


class Generate(Client):
    def __init__(self) -> None:
        super().__init__()
        self.history = [
            {"role": "user", "parts": [{"text": "The files are:"}]},
            {"role": "user", "parts": [{"text": WRAPPED}]},
        ]
        declared = [
            {"name": "run:Bash", "parametersJsonSchema": SCHEMA},
            {"name": "apply_patch"},
        ]
        self.tools: list[Json] = [{"functionDeclarations": declared}]

    def turn(self) -> Turn:
        model = "gemini-3.5-flash-sandbox-script"
        answer = generate(model, contents=self.history, tools=self.tools).json
        content = an_object(objects(answer["candidates"])[0]["content"])
        self.history.append(content)
        found = [
            an_object(part["functionCall"])
            for part in objects(content["parts"])
            if "functionCall" in part
        ]
        if found:
            results = [
                {"functionResponse": {"name": call["name"], "response": {"output": "ok"}}}
                for call in found
            ]
            self.history.append({"role": "user", "parts": results})
        text = "".join(str(part.get("text", "")) for part in objects(content["parts"]))
        return text, [(str(call["name"]), call["args"]) for call in found]


@pytest.mark.parametrize("client", [Chat, Responses, Messages, Generate])
def test_a_script_is_played_turn_by_turn(client: Callable[[], Client]) -> None:
    asking = client()
    text, ((name, arguments),) = asking.turn()
    assert text == "I look."
    assert name.endswith("Bash")
    assert arguments == {"command": "ls"}
    text, ((name, said),) = asking.turn()
    assert (text, name) == ("", "apply_patch")
    assert said in ("*** Begin\n+x", {"input": "*** Begin\n+x"})
    assert asking.turn() == ("That is all.", [])
    if isinstance(asking, Messages | Chat | Responses):
        asking.history.append({"role": "user", "content": "And now?"})
    else:
        asking.history.append({"role": "user", "parts": [{"text": "And now?"}]})
    assert asking.turn() == ("done", [])


def test_without_a_script_it_is_done() -> None:
    answer = chat("sandbox-script").json
    assert an_object(objects(answer["choices"])[0]["message"])["content"] == "done"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"tool": "Bash"}', "The script calls Bash, but the tools are: none."),
        ("{oops", "Line 1 of the script cannot be read"),
    ],
)
def test_a_script_that_cannot_be_played_says_so(line: str, said: str) -> None:
    history = [{"role": "user", "content": f"```script\n{line}\n```"}]
    answer = chat("sandbox-script", messages=history).json
    message = an_object(objects(answer["choices"])[0]["message"])
    assert str(message["content"]).startswith(said)


def test_a_later_script_takes_over() -> None:
    def script(text: str) -> Json:
        line = json.dumps({"text": text})
        return {"role": "user", "content": f"```script\n{line}\n```"}

    history = [script("one"), {"role": "assistant", "content": "one"}, script("two")]
    answer = chat("sandbox-script", messages=history).json
    assert an_object(objects(answer["choices"])[0]["message"])["content"] == "two"


def test_a_question_on_the_side_gets_json() -> None:
    schema = {"type": "object", "properties": {"model": {"enum": ["flash", "pro"]}}}
    config = {"responseMimeType": "application/json", "responseJsonSchema": schema}
    contents = [{"role": "user", "parts": [{"text": WRAPPED}]}]
    answer = generate("sandbox-script", contents=contents, generationConfig=config).json
    part = objects(an_object(objects(answer["candidates"])[0]["content"])["parts"])[0]
    assert json.loads(str(part["text"])) == {"model": "flash"}

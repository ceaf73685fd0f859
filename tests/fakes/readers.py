"""What a strict client of each protocol understands of an answer, streamed or whole.

Written from the grammars that the official SDKs enforce, and from nothing of the product: every
event out of place is an AssertionError. Used where a test needs to know what an answer *means*,
whatever protocol it came in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

Json = dict[str, Any]


@dataclass
class Meaning:
    """What the application gets. `usage` is (input, cached input, output), inclusive."""

    text: str = ""
    thinking: str = ""
    refusal: str = ""
    calls: list[tuple[str, object]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    finish: str = ""
    usage: tuple[int, int, int] | None = None
    error: str = ""
    model: str = ""
    signatures: int = 0


def events(stream: bytes) -> Iterator[tuple[str, Json | str]]:
    """(event name, data) of a stream; comments are passed over. Each event ends in a blank line."""
    text = stream.decode().replace("\r\n", "\n")
    assert not text or text.endswith("\n\n"), "the last event is cut"
    for block in text.split("\n\n"):
        name, data = "", []
        for line in block.split("\n"):
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data.append(line[6:])
            else:
                assert not line or line.startswith(":"), line
        if data:
            (one,) = data
            yield name, one if one == "[DONE]" else json.loads(one)


# -- chat completions -----------------------------------------------------------------------------


def chat_stream(stream: bytes) -> Meaning:
    found, calls = Meaning(), list[Json]()
    done = finished = role = False
    for name, chunk in events(stream):
        assert not name, "chat events have no names"
        assert not done, "something after [DONE]"
        assert not found.error, "something after an error"
        if chunk == "[DONE]":
            done = True
            continue
        assert isinstance(chunk, dict)
        if "error" in chunk:
            found.error = chunk["error"]["message"]
            continue
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["id"].startswith("chatcmpl-")
        found.model = chunk["model"]
        if chunk.get("usage"):
            found.usage = _chat_usage(chunk["usage"])
        for choice in chunk["choices"]:
            assert choice["index"] == 0
            delta = choice["delta"]
            if "role" in delta:
                assert not role, "the role came twice"
                role = True
            assert not (finished and any(delta.values())), "content after the finish"
            found.text += delta.get("content") or ""
            found.thinking += delta.get("reasoning_content") or ""
            found.refusal += delta.get("refusal") or ""
            for call in delta.get("tool_calls") or ():
                _chat_fragment(calls, call)
            if choice.get("finish_reason"):
                assert not finished, "two finishes"
                finished = True
                found.finish = choice["finish_reason"]
    assert bool(found.error) != done, "neither an error nor [DONE], or both"
    assert found.error or finished
    _chat_calls(found, calls)
    return found


def _chat_fragment(calls: list[Json], fragment: Json) -> None:
    index = fragment["index"]
    if index == len(calls):
        assert fragment["id"]
        assert fragment["type"] in ("function", "custom")
        calls.append(json.loads(json.dumps(fragment)))
        return
    assert index == len(calls) - 1, "fragments of calls overlap"
    assert not fragment.get("id")
    assert not fragment.get("type")
    kind = calls[index]["type"]
    member = "arguments" if kind == "function" else "input"
    inner = fragment.get(kind) or {}
    assert not inner.get("name")
    calls[index][kind][member] += inner.get(member, "")


def _chat_calls(found: Meaning, calls: list[Json]) -> None:
    for call in calls:
        found.ids.append(call["id"])
        if call["type"] == "function":
            function = call["function"]
            found.calls.append((function["name"], _parsed(function["arguments"], found)))
        else:
            found.calls.append((call["custom"]["name"], call["custom"]["input"]))


def _parsed(arguments: str, found: Meaning) -> object:
    """Arguments must be JSON, save where the answer was cut."""
    if found.error or found.finish == "length":
        return arguments
    return json.loads(arguments)


def _chat_usage(usage: Json) -> tuple[int, int, int]:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    details = usage.get("prompt_tokens_details") or {}
    return usage["prompt_tokens"], details.get("cached_tokens") or 0, usage["completion_tokens"]


def chat_whole(body: bytes) -> Meaning:
    answer = json.loads(body)
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    message = choice["message"]
    assert message["role"] == "assistant"
    found = Meaning(
        text=message["content"] or "",
        thinking=message.get("reasoning_content") or "",
        refusal=message.get("refusal") or "",
        finish=choice["finish_reason"],
        usage=_chat_usage(answer["usage"]) if answer.get("usage") else None,
        model=answer["model"],
    )
    _chat_calls(found, message.get("tool_calls") or [])
    return found


# -- responses ------------------------------------------------------------------------------------


def responses_stream(stream: bytes) -> Meaning:
    opened, done = dict[int, Json](), list[Json]()
    terminal: Json | None = None
    errors = []
    parts: dict[tuple[str, int], str] = {}
    for number, (name, event) in enumerate(events(stream)):
        assert isinstance(event, dict)
        kind = event["type"]
        assert name == kind
        assert event["sequence_number"] == number, "sequence numbers have a gap"
        assert terminal is None, f"{kind} after the end"
        assert (number == 0) == (kind == "response.created")
        if kind == "error":
            errors.append(event["message"])
        elif kind in ("response.completed", "response.incomplete", "response.failed"):
            terminal = event["response"]
            assert terminal["status"] == kind.removeprefix("response.")
        elif kind == "response.output_item.added":
            assert event["output_index"] == len(opened)
            opened[event["output_index"]] = event["item"]
            assert event["item"]["id"]
        elif kind == "response.output_item.done":
            index = event["output_index"]
            assert index == len(done), "items are not in order"
            assert event["item"]["id"] == opened[index]["id"]
            done.append(event["item"])
        elif "item_id" in event:
            assert event["item_id"] == opened[event["output_index"]]["id"]
            assert event["output_index"] == len(done), "an event of an item that is complete"
            _responses_part(parts, event)
    assert terminal is not None, "no end"
    assert len(done) == len(opened) or terminal["status"] == "failed"
    found = _response(terminal)
    if terminal["status"] != "failed":
        assert [item["id"] for item in terminal["output"]] == [item["id"] for item in done]
        assert terminal["output"] == done
    else:
        assert errors == [terminal["error"]["message"]]
        found.error = errors[0]
        found.text = "".join(parts.values())  # of what was complete and of what was not
    return found


def _responses_part(parts: dict[tuple[str, int], str], event: Json) -> None:
    """Deltas add up to what `done` says, and come only for parts that were added."""
    kind = event["type"]
    part = event.get("content_index", event.get("summary_index", 0))
    key = (str(event["item_id"]), int(part or 0))
    if kind in ("response.content_part.added", "response.reasoning_summary_part.added"):
        parts[key] = ""
    elif kind in (
        "response.function_call_arguments.delta",
        "response.custom_tool_call_input.delta",
    ):
        parts[key] = parts.get(key, "") + event["delta"]
    elif kind.endswith(".delta"):
        parts[key] += event["delta"]
    elif kind in ("response.output_text.done", "response.reasoning_summary_text.done"):
        assert parts[key] == event["text"]
    elif kind == "response.refusal.done":
        assert parts[key] == event["refusal"]
    elif kind == "response.function_call_arguments.done":
        assert parts.get(key, "") == event["arguments"]
    elif kind == "response.custom_tool_call_input.done":
        assert parts.get(key, "") == event["input"]


def responses_whole(body: bytes) -> Meaning:
    return _response(json.loads(body))


def _response(response: Json) -> Meaning:
    assert response["object"] == "response"
    assert response["id"].startswith("resp_")
    found = Meaning(finish=response["status"], model=response["model"])
    if response["status"] == "incomplete":
        found.finish = response["incomplete_details"]["reason"]
    if response["status"] != "failed" and response.get("usage"):
        usage = response["usage"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        assert isinstance(usage["output_tokens_details"]["reasoning_tokens"], int)
        cached = usage["input_tokens_details"]["cached_tokens"]
        found.usage = usage["input_tokens"], cached, usage["output_tokens"]
    for item in response["output"]:
        match item["type"]:
            case "message":
                for part in item["content"]:
                    if part["type"] == "refusal":
                        found.refusal += part["refusal"]
                    else:
                        found.text += part["text"]
            case "reasoning":
                found.thinking += "".join(part["text"] for part in item["summary"])
                found.thinking += "".join(part["text"] for part in item.get("content") or ())
                found.signatures += bool(item.get("encrypted_content"))
            case "function_call":
                assert item["id"] != item["call_id"]
                found.ids.append(item["call_id"])
                cut = response["status"] != "completed"
                arguments = item["arguments"] if cut else json.loads(item["arguments"])
                found.calls.append((item["name"], arguments))
            case "custom_tool_call":
                found.ids.append(item["call_id"])
                found.calls.append((item["name"], item["input"]))
            case other:
                raise AssertionError(other)
    return found


# -- messages -------------------------------------------------------------------------------------


def messages_stream(stream: bytes) -> Meaning:
    message: Json = {}
    block: Json | None = None
    stopped = False
    error = ""
    for name, event in events(stream):
        assert isinstance(event, dict)
        kind = event["type"]
        assert name == kind
        if kind == "ping":
            continue
        assert not stopped, f"{kind} after the end"
        assert not error, f"{kind} after an error"
        assert (kind in ("message_start", "error")) or message, "no message_start"
        match kind:
            case "error":
                error = event["error"]["message"]
            case "message_start":
                assert not message, "two message_starts"
                message = event["message"]
                assert message["content"] == []
                assert message["usage"]["input_tokens"] is not None
            case "content_block_start":
                assert block is None, "blocks overlap"
                assert event["index"] == len(message["content"])
                block = event["content_block"]
                _check_block_start(block)
            case "content_block_delta":
                assert block is not None
                assert event["index"] == len(message["content"])
                _block_delta(block, event["delta"])
            case "content_block_stop":
                assert block is not None, "a block stopped twice"
                assert event["index"] == len(message["content"])
                if block["type"] == "text":
                    assert block["text"], "an empty text block"
                message["content"].append(block)
                block = None
            case "message_delta":
                assert block is None
                message |= event["delta"]
                message["usage"] |= {k: v for k, v in event["usage"].items() if v is not None}
            case "message_stop":
                stopped = True
            case other:
                raise AssertionError(other)
    assert stopped != bool(error)
    if error and not message:
        return Meaning(error=error)
    if block is not None:  # what the error cut
        message["content"].append(block)
    for each in message["content"]:
        if each["type"] == "tool_use":
            partial = each.pop("partial", "")
            cut = error or message["stop_reason"] == "max_tokens"
            each["input"] = partial if cut else json.loads(partial or "{}")
    found = _message(message)
    found.error = error
    return found


def _check_block_start(block: Json) -> None:
    match block["type"]:
        case "text":
            assert block["text"] == ""
        case "thinking":
            assert (block["thinking"], block["signature"]) == ("", "")
        case "redacted_thinking":
            assert block["data"]
        case "tool_use":
            assert block["input"] == {}
            assert block["id"]
            assert block["name"]
        case other:
            raise AssertionError(other)


def _block_delta(block: Json, delta: Json) -> None:
    match block["type"], delta["type"]:
        case "text", "text_delta":
            block["text"] += delta["text"]
        case "thinking", "thinking_delta":
            assert "signature" not in delta
            block["thinking"] += delta["thinking"]
        case "thinking", "signature_delta":
            assert not block["signature"], "a signature in two deltas"
            block["signature"] = delta["signature"]
        case "tool_use", "input_json_delta":
            block["partial"] = block.get("partial", "") + delta["partial_json"]
        case "text", "citations_delta":
            pass
        case other:
            raise AssertionError(f"{other} do not go together")


def messages_whole(body: bytes) -> Meaning:
    return _message(json.loads(body))


def _message(message: Json) -> Meaning:
    assert (message["type"], message["role"]) == ("message", "assistant")
    assert message["id"].startswith("msg_")
    found = Meaning(finish=message["stop_reason"] or "", model=message["model"])
    usage = message["usage"]
    cached = usage.get("cache_read_input_tokens") or 0
    written = usage.get("cache_creation_input_tokens") or 0
    found.usage = usage["input_tokens"] + cached + written, cached, usage["output_tokens"]
    for block in message["content"]:
        match block["type"]:
            case "text":
                assert block["text"]
                found.text += block["text"]
            case "thinking":
                found.thinking += block["thinking"]
                found.signatures += bool(block["signature"])
            case "redacted_thinking":
                found.signatures += 1
            case "tool_use":
                found.ids.append(block["id"])
                found.calls.append((block["name"], block["input"]))
            case other:
                raise AssertionError(other)
    return found


# -- gemini ---------------------------------------------------------------------------------------


def gemini_stream(stream: bytes) -> Meaning:
    found = Meaning()
    for name, chunk in events(stream):
        assert not name, "Google's events have no names"
        assert not found.finish, "something after the finish"
        assert not found.error
        assert isinstance(chunk, dict)
        if "error" in chunk:
            assert next(iter(chunk)) == "error"
            assert isinstance(chunk["error"]["code"], int)
            found.error = chunk["error"]["message"]
            continue
        _gemini(found, chunk)
    assert bool(found.error) != bool(found.finish)
    return found


def gemini_whole(body: bytes) -> Meaning:
    found = Meaning()
    _gemini(found, json.loads(body))
    assert found.finish
    return found


def _gemini(found: Meaning, answer: Json) -> None:
    if answer.get("modelVersion"):
        found.model = answer["modelVersion"]
    if usage := answer.get("usageMetadata"):
        output = usage.get("candidatesTokenCount", 0) + usage.get("thoughtsTokenCount", 0)
        tools = usage.get("toolUsePromptTokenCount", 0)
        cached = usage.get("cachedContentTokenCount", 0)
        found.usage = usage.get("promptTokenCount", 0) + tools, cached, output
    if blocked := (answer.get("promptFeedback") or {}).get("blockReason"):
        found.finish = blocked
    for candidate in answer.get("candidates") or ():
        for part in (candidate.get("content") or {}).get("parts") or ():
            found.signatures += bool(part.get("thoughtSignature"))
            if call := part.get("functionCall"):
                assert isinstance(call.get("args", {}), dict)
                found.ids.append(call.get("id", ""))
                found.calls.append((call["name"], call.get("args", {})))
            elif part.get("thought"):
                found.thinking += part["text"]
            else:
                found.text += part["text"]
        found.finish = candidate.get("finishReason") or found.finish


Reader = Callable[[bytes], Meaning]

STREAMS: Mapping[str, Reader] = MappingProxyType(
    {
        "openai": chat_stream,
        "openai-responses": responses_stream,
        "anthropic": messages_stream,
        "gemini": gemini_stream,
    }
)
WHOLES: Mapping[str, Reader] = MappingProxyType(
    {
        "openai": chat_whole,
        "openai-responses": responses_whole,
        "anthropic": messages_whole,
        "gemini": gemini_whole,
    }
)

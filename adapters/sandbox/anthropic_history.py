"""Anthropic's rules for what stands in a conversation, and in which order.

Whether the blocks have their shapes was checked before.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence

from adapters.sandbox.anthropic_rules import Rules
from adapters.sandbox.anthropic_words import refused
from adapters.sandbox.script import Json
from adapters.sandbox.shapes import a_string, an_object, objects
from adapters.sandbox.signing import is_signed

_CACHE_MARKS_MAX = 4
_THOUGHTS = ("thinking", "redacted_thinking")
_ONLY_IN: Mapping[str, str] = {
    "tool_use": "assistant",
    "thinking": "assistant",
    "redacted_thinking": "assistant",
    "server_tool_use": "assistant",
    "tool_result": "user",
    "image": "user",
}
_MAGIC: Mapping[bytes, str] = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}


def check_system(system: object) -> None:
    """No empty block; an empty string is fine."""
    if any(block["text"] == "" for block in objects(system)):
        raise refused("system: text content blocks must be non-empty")


def check_messages(fields: Json, rules: Rules, version: bytes) -> None:
    """All rules for `messages`. Raises Refused."""
    messages = objects(fields["messages"])
    for index, message in enumerate(messages):
        _check_role(index, message, rules)
        _check_content(index, message)
        for at, block in enumerate(objects(message["content"])):
            _check_block(
                f"messages.{index}.content.{at}", block, message, a_string(fields["model"])
            )
            _check_dated(f"messages.{index}.content.{at}", block, message, version)
    _check_calls(messages)
    _check_end(messages, rules)
    if an_object(fields.get("thinking")).get("type") == "enabled":
        _check_thought(messages)
    if not objects(fields.get("tools")) and any(map(_calls, messages)):
        raise refused("Requests which include `tool_use` or `tool_result` blocks must define tools")


def check_cache_marks(fields: Json) -> None:
    """At most four, and the long ones first."""
    marks = [an_object(mark) for mark in _cache_marks(fields)]
    if len(marks) > _CACHE_MARKS_MAX:
        raise refused(
            f"A maximum of {_CACHE_MARKS_MAX} blocks with cache_control may be provided. Found "
            f"{len(marks)}."
        )
    seconds = [mark.get("ttl") == "1h" for mark in marks]
    if seconds != sorted(seconds, reverse=True):
        raise refused(
            "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block. "
            "Note that blocks are processed in the following order: `tools`, `system`, `messages`."
        )


def _cache_marks(fields: Json) -> Iterator[object]:
    places = [*objects(fields.get("tools")), *objects(fields.get("system"))]
    for message in objects(fields["messages"]):
        for block in objects(message["content"]):
            places += [*objects(block.get("content")), block]
    for place in [*places, fields]:
        if "cache_control" in place:
            yield place["cache_control"]


# -- one message ----------------------------------------------------------------------------------


def _check_role(index: int, message: Json, rules: Rules) -> None:
    role = message["role"]
    if index == 0 and role != "user":
        raise refused('messages: first message must use the "user" role')
    if role == "system" and not rules.later_system:
        raise refused(
            f"messages.{index}.role: 'system' messages are not supported on this model; use the "
            "top-level `system` parameter"
        )


def _check_content(index: int, message: Json) -> None:
    content, role = message["content"], message["role"]
    if content in ("", []):
        if role != "assistant":
            raise refused(f"messages.{index}: {role} messages must have non-empty content")
        return
    texts = [content] if isinstance(content, str) else _texts(content)
    if "" in texts:
        raise refused("messages: text content blocks must be non-empty")
    if texts and not any(map(str.strip, texts)) and len(texts) == 1:
        raise refused("messages: text content blocks must contain non-whitespace text")


def _texts(content: object) -> list[str]:
    return [a_string(block["text"]) for block in objects(content) if block["type"] == "text"]


def _check_block(at: str, block: Json, message: Json, model: str) -> None:
    kind, role = a_string(block["type"]), message["role"]
    needed = _ONLY_IN.get(kind, role)
    if needed != role:
        raise refused(f"{at}: `{kind}` blocks can only be in `{needed}` messages")
    if role == "system" and kind != "text":
        raise refused(f"{at}: `{kind}` blocks cannot be in `system` messages")
    if block.get("cache_control") and kind == "text" and not a_string(block["text"]).strip():
        raise refused(f"{at}.text: cache_control cannot be set for empty text blocks")
    match kind:
        case "thinking":
            signature, thought = a_string(block["signature"]), a_string(block["thinking"])
            if not is_signed(signature, "anthropic", model, thought):
                raise refused(f"{at}: Invalid `signature` in `thinking` block")
        case "redacted_thinking":
            if not is_signed(a_string(block["data"]), "anthropic-redacted", model):
                raise refused(f"{at}: Invalid `data` in `redacted_thinking` block")
        case "image":
            _check_image(at, block)
        case "tool_result":
            for index, inner in enumerate(objects(block.get("content"))):
                if inner["type"] == "image":
                    _check_image(f"{at}.tool_result.content.{index}", inner)


def _check_dated(at: str, block: Json, message: Json, version: bytes) -> None:
    """What the version of October 2026 has stopped taking."""
    if version != b"2026-10-21":
        return
    if block["type"] == "document" and message["role"] == "assistant":
        raise refused(f"{at}: `document` blocks can only be in `user` messages")
    if block["type"] == "text" and block.get("citations") and message["role"] == "user":
        raise refused(f"{at}.text.citations: Extra inputs are not permitted")


def _check_image(at: str, block: Json) -> None:
    source = an_object(block["source"])
    if source["type"] != "base64":
        return
    try:
        data = b64decode(a_string(source["data"]), validate=True)
    except ValueError:
        raise refused(f"{at}.image.source.base64: invalid base64 data") from None
    if not data:
        raise refused(f"{at}.image.source.base64.data: image cannot be empty")
    said = source["media_type"]
    found = next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), said)
    if found != said:
        raise refused(
            f"{at}.image.source.base64: The image was specified using the {said} media type, but "
            f"the image appears to be a {found} image"
        )


# -- calls and their results ----------------------------------------------------------------------


def _calls(message: Json) -> list[str]:
    return [
        a_string(block["id"])
        for block in objects(message["content"])
        if block["type"] == "tool_use"
    ]


def _results(message: Json) -> list[str]:
    return [
        a_string(block["tool_use_id"])
        for block in objects(message["content"])
        if block["type"] == "tool_result"
    ]


def _check_calls(messages: Sequence[Json]) -> None:
    """The message after calls begins with all of their results, and with no others."""
    seen: set[str] = set()
    asked: list[str] = []
    for index, message in enumerate(messages):
        results = _results(message)
        for at, result in enumerate(results):
            if result not in asked:
                raise refused(
                    f"messages.{index}.content.{at}: unexpected `tool_use_id` found in "
                    f"`tool_result` blocks: {result}. Each `tool_result` block must have a "
                    "corresponding `tool_use` block in the previous message."
                )
        if len(set(results)) < len(results):
            raise refused(
                f"messages.{index}.content: each tool_use must have a single result. Found "
                f"multiple `tool_result` blocks with id: {results[-1]}"
            )
        kinds = [block["type"] for block in objects(message["content"])]
        in_front = kinds[: len(results)] == ["tool_result"] * len(results)
        if (missing := [each for each in asked if each not in results]) or not in_front:
            raise _unanswered(index - 1, missing or asked)
        asked = _calls(message)
        if len(set(asked)) < len(asked) or not seen.isdisjoint(asked):
            raise refused(f"messages.{index}.content: `tool_use` ids must be unique")
        seen.update(asked)
    if asked:
        raise _unanswered(len(messages) - 1, asked)


def _unanswered(index: int, ids: Sequence[str]) -> Exception:
    return refused(
        f"messages.{index}: `tool_use` ids were found without `tool_result` blocks immediately "
        f"after: {', '.join(ids)}. Each `tool_use` block must have a corresponding `tool_result` "
        "block in the next message."
    )


def _check_end(messages: Sequence[Json], rules: Rules) -> None:
    """What a conversation may end with."""
    last = messages[-1]
    if last["role"] != "assistant":
        return
    if not rules.prefill:
        raise refused(
            "This model does not support assistant message prefill. The conversation must end "
            "with a user message."
        )
    content = last["content"]
    texts = [content] if isinstance(content, str) else _texts(content)
    if texts and texts[-1] != texts[-1].rstrip():
        raise refused("messages: final assistant content cannot end with trailing whitespace")


def _check_thought(messages: Sequence[Json]) -> None:
    """With manual thinking, the turn that goes on with results has begun with a thought."""
    index = len(messages) - 1
    first = -1
    while index > 0 and _results(messages[index]):
        first = index - 1
        index -= 2
    if first < 0:
        return
    blocks = objects(messages[first]["content"])
    if blocks and blocks[0]["type"] not in _THOUGHTS:
        raise refused(
            f"messages.{first}.content.0.type: Expected `thinking` or `redacted_thinking`, but "
            f"found `{blocks[0]['type']}`. When `thinking` is enabled, a final `assistant` message "
            "must start with a thinking block (preceeding the lastmost set of `tool_use` and "
            "`tool_result` blocks). We recommend you include thinking blocks from previous turns. "
            "To avoid this requirement, disable `thinking`."
        )

"""The items of a Responses input, as the turns of a conversation.

What the model made of one answer (reasoning, messages, calls) are items that follow each other;
they become one turn of the assistant's. Items of tools that the provider ran are left out by their
name: nobody else can tell what they mean. What would leave a gap in the conversation is refused.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec

from adapters.canonical import (
    Blob,
    HostedTool,
    Part,
    ResultPart,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
)
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest, RequestNotExpressible
from adapters.openai.responses_parts import read_parts
from adapters.openai.responses_tools import SEARCH_NAME, Declared, read_tools
from adapters.raw import UNREADABLE

Role = Literal["system", "user", "assistant"]

_ROLES: Mapping[str, Role] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
_SAFE_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_ABSENT = msgspec.Raw()


class _Item(msgspec.Struct, gc=False):
    type: str | None = None
    id: object = None
    role: object = None
    content: msgspec.Raw = _ABSENT
    summary: msgspec.Raw = _ABSENT
    encrypted_content: object = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT
    output: msgspec.Raw = _ABSENT
    execution: object = None
    tools: msgspec.Raw = _ABSENT
    reasoning: msgspec.Raw = _ABSENT
    text: msgspec.Raw = _ABSENT


_decode_items = msgspec.json.Decoder(str | list[msgspec.Raw] | None).decode
_decode_item = msgspec.json.Decoder(_Item).decode
_decode_text = msgspec.json.Decoder(str).decode
_NEAR = 64  # parts before a text's signature among which the text is looked for


class _Waiting:
    """Calls without a result, for results that do not say whose they are."""

    __slots__ = ("_ids", "_names")

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # by id
        self._ids: dict[str, deque[str]] = {}  # by name; answered ones go when they are first

    def called(self, name: str, call_id: str) -> None:
        self._names[call_id] = name
        self._ids.setdefault(name, deque()).append(call_id)

    def answered(self, call_id: str) -> None:
        self._names.pop(call_id, None)

    def first(self, name: str) -> str | None:
        """The first call of `name` that has no result yet."""
        ids = self._ids.get(name, deque())
        while ids and self._names.get(ids[0]) != name:
            ids.popleft()
        return ids[0] if ids else None


class Conversation:
    """Reads items one after the other.

    `reasoning` and `text` are the settings of the last `configuration_update`, as raw JSON.
    """

    __slots__ = (
        "_declared",
        "_envelopes",
        "_signature",
        "_turns",
        "_waiting",
        "dropped",
        "hosted",
        "reasoning",
        "text",
        "tools",
    )

    def __init__(self, envelopes: Envelopes) -> None:
        self.tools: list[Tool] = []
        self.hosted: list[HostedTool] = []
        self.dropped: dict[str, None] = {}
        self.reasoning = _ABSENT
        self.text = _ABSENT
        self._envelopes = envelopes
        self._turns: list[tuple[Role, list[Part]]] = []
        self._waiting = _Waiting()
        self._declared: set[tuple[str, str]] = set()  # namespace and name of each tool
        self._signature: Blob | None = None  # of the call that follows

    @property
    def turns(self) -> tuple[Turn, ...]:
        return tuple(Turn(role=role, parts=tuple(parts)) for role, parts in self._turns)

    def read(self, raw: msgspec.Raw, param: str, role: Role) -> None:
        """Add a text of `role`, or items. Raises InvalidRequest, RequestNotExpressible."""
        if not raw:
            return
        try:
            items = _decode_items(raw)
        except UNREADABLE:
            raise InvalidRequest(
                f"{param} must be a string, or a list of items.", param=param
            ) from None
        if isinstance(items, str):
            self._turns.append((role, [Text(text=items)]))
            return
        for at, item in enumerate(items or ()):
            self._read_item(item, f"{param}[{at}]")

    def _read_item(self, raw: msgspec.Raw, where: str) -> None:
        try:
            item = _decode_item(raw)
        except UNREADABLE as error:
            raise InvalidRequest(f"{where} is no proper item: {error}.", param=where) from None
        kind = item.type or ("message" if item.role is not None else "item_reference")
        read = _READERS.get(kind)
        if read is not None:
            read(self, item, where)
        elif kind in _GAPS:
            raise RequestNotExpressible(
                f"{where}: the provider of this model knows no {kind} items.", param=where
            )
        else:
            self._drop(kind)

    # -- items ------------------------------------------------------------------------------------

    def _message(self, item: _Item, where: str) -> None:
        role = _ROLES.get(item.role) if isinstance(item.role, str) else None
        if role is None:
            raise InvalidRequest(
                f"{where}.role must be user, assistant, system or developer.", param=f"{where}.role"
            )
        parts = read_parts(item.content, f"{where}.content")
        if role == "assistant":
            self._assistant(*parts)
        else:
            self._turns.append((role, list(parts)))

    def _reasoning(self, item: _Item, where: str) -> None:
        blob = None
        if isinstance(item.encrypted_content, str):
            # A value that is not ours was made by another provider than the one that serves.
            blob = self._envelopes.open(item.encrypted_content)
        texts = read_parts(item.summary, f"{where}.summary")
        texts = texts or read_parts(item.content, f"{where}.content")
        text = "\n\n".join(part.text for part in texts if isinstance(part, Text))
        if blob is not None and blob.kind == "call":
            self._signature = blob
            if text:
                self._assistant(Thinking(text=text))
        elif blob is not None and blob.kind == "text":
            self._before_text(Thinking(text=text, blob=blob))
        elif text or blob is not None:
            self._assistant(Thinking(text=text, blob=blob))

    def _call(self, item: _Item, where: str) -> None:
        free = item.type == "custom_tool_call"
        if not item.name:
            raise InvalidRequest(f"{where}.name is required.", param=f"{where}.name")
        self._add_call(
            ToolCall(
                id=self._call_id(item, where),
                name=item.name,
                arguments=_text_or_json(item.input if free else item.arguments),
                free=free,
                namespace=item.namespace or "",
            )
        )

    def _result(self, item: _Item, where: str) -> None:
        call_id = item.call_id or self._id_of(item.name or "", where)
        self._waiting.answered(call_id)
        content = read_parts(item.output, f"{where}.output")
        kept = tuple(part for part in content if isinstance(part, ResultPart))
        self._tool_result(ToolResult(call_id=call_id, content=kept, name=item.name or ""))

    def _search_call(self, item: _Item, where: str) -> None:
        if item.execution == "server":
            self._drop("tool_search_call")
            return
        self._add_call(
            ToolCall(
                id=self._call_id(item, where),
                name=SEARCH_NAME,
                arguments=_text_or_json(item.arguments),
                search=True,
            )
        )

    def _search_output(self, item: _Item, where: str) -> None:
        """The tools that were found can be called from here on, and are the result."""
        found = self._declare(item.tools, f"{where}.tools")
        if item.execution == "server":
            self._drop("tool_search_output")
            return
        call_id = item.call_id or self._id_of(SEARCH_NAME, where)
        self._waiting.answered(call_id)
        text = "\n".join(_listed(tool) for tool in found.tools) or "No tools were found."
        self._tool_result(ToolResult(call_id=call_id, content=(Text(text=text),), name=SEARCH_NAME))

    def _additional_tools(self, item: _Item, where: str) -> None:
        self._declare(item.tools, f"{where}.tools")
        self.dropped["approx:additional_tools"] = None

    def _configuration(self, item: _Item, where: str) -> None:
        self.reasoning = item.reasoning or self.reasoning
        self.text = item.text or self.text

    # -- inside -----------------------------------------------------------------------------------

    def _drop(self, kind: str) -> None:
        self.dropped[kind if _SAFE_NAME.fullmatch(kind) else "input"] = None

    def _declare(self, raw: msgspec.Raw, where: str) -> Declared:
        found = read_tools(raw, where) if raw else Declared()
        known = self._declared
        self.tools += [tool for tool in found.tools if (tool.namespace, tool.name) not in known]
        known.update((tool.namespace, tool.name) for tool in found.tools)
        self.hosted += found.hosted
        return found

    def _assistant(self, *parts: Part) -> None:
        if self._turns and self._turns[-1][0] == "assistant":
            self._turns[-1][1].extend(parts)
        else:
            self._turns.append(("assistant", list(parts)))

    def _before_text(self, thinking: Thinking) -> None:
        """A text's signature comes behind it in the items, and goes before it in the turn."""
        parts = self._turns[-1][1] if self._turns and self._turns[-1][0] == "assistant" else []
        last = reversed(range(max(0, len(parts) - _NEAR), len(parts)))
        at = next((at for at in last if isinstance(parts[at], Text)), None)
        if at is None:
            self._assistant(thinking)
        else:
            parts.insert(at, thinking)

    def _add_call(self, call: ToolCall) -> None:
        if self._signature is not None:
            call = msgspec.structs.replace(call, blob=self._signature)
            self._signature = None
        self._waiting.called(call.name, call.id)
        self._assistant(call)

    def _tool_result(self, result: ToolResult) -> None:
        """Results that follow each other are one turn."""
        if self._turns and _ends_in_result(self._turns[-1][1]):
            self._turns[-1][1].append(result)
        else:
            self._turns.append(("user", [result]))

    def _call_id(self, item: _Item, where: str) -> str:
        call_id = item.call_id or (item.id if isinstance(item.id, str) else "")
        if not call_id:
            raise InvalidRequest(f"{where}.call_id is required.", param=f"{where}.call_id")
        return call_id

    def _id_of(self, name: str, where: str) -> str:
        """The first call of `name` that has no result yet."""
        found = self._waiting.first(name)
        if found is None:
            raise InvalidRequest(
                f"{where}.call_id is required: no call before it waits for a result.",
                param=f"{where}.call_id",
            )
        return found


_READERS: Mapping[str, Callable[[Conversation, _Item, str], None]] = {
    "message": Conversation._message,
    "reasoning": Conversation._reasoning,
    "function_call": Conversation._call,
    "custom_tool_call": Conversation._call,
    "function_call_output": Conversation._result,
    "custom_tool_call_output": Conversation._result,
    "tool_search_call": Conversation._search_call,
    "tool_search_output": Conversation._search_output,
    "additional_tools": Conversation._additional_tools,
    "configuration_update": Conversation._configuration,
}
# Without these the conversation is another one.
_GAPS = frozenset({"item_reference", "compaction", "compaction_trigger"})


def _ends_in_result(parts: Sequence[Part]) -> bool:
    return bool(parts) and isinstance(parts[-1], ToolResult)


def _text_or_json(raw: msgspec.Raw) -> str:
    """A text; some clients send the object itself, whose JSON it is then."""
    if not raw:
        return ""
    try:
        return _decode_text(raw)
    except UNREADABLE:
        return "" if bytes(raw) == b"null" else bytes(raw).decode(errors="replace")


def _listed(tool: Tool) -> str:
    name = f"{tool.namespace}.{tool.name}" if tool.namespace else tool.name
    return f"{name}: {tool.description}" if tool.description else name

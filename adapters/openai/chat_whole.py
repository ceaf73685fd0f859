"""A chat completion's message, put together from the deltas of its chunks as an SDK does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

Json = dict[str, object]

_TEXTS = ("content", "reasoning_content", "refusal")


class WholeMessage:
    """The message of one plain answer."""

    __slots__ = ("_arguments", "_calls", "_function_call", "_lists", "_texts")

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {name: [] for name in _TEXTS}
        self._lists: dict[str, list[object]] = {}
        self._calls: list[Json] = []
        self._arguments: list[list[str]] = []  # of each call, in pieces
        self._function_call: Json | None = None

    def add(self, delta: Mapping[str, object]) -> None:
        """One delta more."""
        for name, value in delta.items():
            if name in self._texts:
                self._texts[name].append(cast("str", value))
            elif name == "tool_calls":
                for fragment in cast("list[Json]", value):
                    self._add_fragment(fragment)
            elif name == "function_call":
                self._add_fragment({"index": 0, "type": "function", "function": value})
            elif isinstance(value, list):
                self._lists.setdefault(name, []).extend(value)

    def _add_fragment(self, fragment: Json) -> None:
        index = cast("int", fragment["index"])
        kind = "custom" if "custom" in fragment else "function"
        given = cast("Json", fragment.get(kind, {}))
        if index == len(self._calls):
            self._calls.append({name: fragment[name] for name in fragment if name != "index"})
            self._calls[index][kind] = dict(given)
            self._arguments.append([])
        elif "extra_content" in fragment:
            self._calls[index]["extra_content"] = fragment["extra_content"]
        self._arguments[index].append(cast("str", given.get(_argument(kind), "")))

    def built(self, *, legacy: bool) -> Json:
        """The message. `legacy`: its call goes where it went before there were tools."""
        texts = {name: "".join(pieces) for name, pieces in self._texts.items()}
        for call, pieces in zip(self._calls, self._arguments, strict=True):
            kind = "custom" if "custom" in call else "function"
            cast("Json", call[kind])[_argument(kind)] = "".join(pieces)
        nothing = self._calls or texts["refusal"]
        message: Json = {
            "role": "assistant",
            "content": texts["content"] or (None if nothing else ""),
            "refusal": texts["refusal"] or None,
        }
        if texts["reasoning_content"]:
            message["reasoning_content"] = texts["reasoning_content"]
        message |= self._lists
        if self._calls and legacy:
            message["function_call"] = self._calls[0]["function"]
        elif self._calls:
            message["tool_calls"] = self._calls
        return message


def _argument(kind: str) -> str:
    return "input" if kind == "custom" else "arguments"

"""What the models write, in no protocol: a summary, numbers, calls, JSON, or what a test scripts.

A script stands in the conversation itself, since what a test says to a real client is all that
reaches a model: a fenced block in a text of the user's,

    ```script
    {"text": "I look around.", "tool": "Bash", "arguments": {"command": "ls"}}
    {"custom": "apply_patch", "input": "*** Begin Patch"}
    {"text": "That is all."}
    ```

The turns of the assistant after it pick the line; behind the last one the answer is `done`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

import msgspec

from adapters.sandbox.answer import Answer, Call, Part, Refusal, Text, Thought, fragments, words
from adapters.sandbox.asked import Asked, Said, Tool
from adapters.sandbox.schema_example import example

THOUGHT_TOKENS = 64

_SHOWN_CHARACTERS = 40  # of the prompt, in the answer
_SCRIPT = re.compile(r"```script\s*\n(.*?)```", re.DOTALL)


class Unshapeable(Exception):
    """There is no value of the shape that is asked for. `tool` is the one whose arguments have
    that shape; empty where it is the answer's."""

    def __init__(self, why: str, tool: str = "") -> None:
        super().__init__(why)
        self.tool = tool


def summary(asked: Asked) -> Answer:
    """About thirty words on what was asked."""
    size = len(asked.last_text.encode())
    shown = " ".join(asked.last_text.split())
    if len(shown) > _SHOWN_CHARACTERS:
        shown = shown[:_SHOWN_CHARACTERS] + "…"
    return _saying(
        "This is the sandbox of Farebox, not a model: nobody has thought about your words. "
        f"Messages received: {asked.messages}. The last one has {size} bytes of text and "
        f"begins: {shown}"
    )


def count_to(last: int, asked: Asked) -> Answer:
    """1 2 3 …, so that a reader sees what is missing."""
    return _saying(_numbers(last))


ECHO = re.compile(r"\becho (?P<count>[0-9]{1,4}) (?P<nonce>[\w-]+)")
"""How `echo` is asked for words that can be counted."""


def echo(asked: Asked) -> Answer:
    """What only a reader of the request can say, so that a right answer can be told from others.

    Numbered words where some are asked for, else the last text.
    """
    found = ECHO.search(asked.last_text)
    if found is None:
        return _saying(asked.last_text)
    numbers = range(1, int(found["count"]) + 1)
    return _saying(" ".join(f"{found['nonce']}-{number}" for number in numbers))


def nothing(asked: Asked) -> Answer:
    """No part at all."""
    return Answer()


def refusal(asked: Asked) -> Answer:
    """A model's own refusal."""
    return Answer((Refusal(words("I'm sorry, but I cannot assist with that request.")),))


def filtered(asked: Asked) -> Answer:
    """Half a summary, and then the provider's filter."""
    part = summary(asked).parts[0]
    return Answer((Text(part.pieces[: len(part.pieces) // 2]),), "filter")


def json(asked: Asked) -> Answer:
    """JSON of the shape that was asked for."""
    if asked.shape is not None:
        return Answer((Text(fragments(_shaped(asked.shape))),))
    return Answer((Text(fragments({"sandbox": True, "messages": asked.messages})),))


def call_one(asked: Asked) -> Answer:
    """A call of the first tool, a function where there is one.

    The result of a call is not answered by calling again, so that agents come to an end.
    """
    first = sorted(asked.tools, key=lambda tool: tool.free)[:1]
    return _calling(asked, first)


def call_all(asked: Asked) -> Answer:
    """Calls of all tools in one turn, where that is allowed."""
    return _calling(asked, asked.tools if asked.parallel else asked.tools[:1])


def _calling(asked: Asked, tools: Sequence[Tool]) -> Answer:
    if asked.brings_results or not tools:
        return summary(asked)
    return Answer(tuple(_example_call(tool) for tool in tools), "calls")


def _example_call(tool: Tool) -> Call:
    if tool.free:
        return Call(tool, words("sandbox input"))
    arguments = _shaped(tool.parameters, tool.name) if tool.parameters else {}
    return Call(tool, fragments(arguments))


def _shaped(schema: dict[str, object], tool: str = "") -> object:
    try:
        return example(schema)
    except ValueError as error:
        raise Unshapeable(str(error), tool) from None


def reasoned(answer: Answer, *, hidden: bool = False) -> Answer:
    """The same answer after a thought."""
    thought = Thought(words(_numbers(THOUGHT_TOKENS)), hidden)
    return Answer((thought, *answer.parts), answer.finish, answer.stopped_by)


def _saying(text: str) -> Answer:
    return Answer((Text(words(text)),))


def _numbers(last: int) -> str:
    return " ".join(map(str, range(1, last + 1)))


# -- scripts of tests -----------------------------------------------------------------------------


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a scripted model."""

    text: str = ""
    tool: str = ""
    arguments: dict[str, object] = {}
    custom: str = ""
    input: str = ""
    thought: str = ""


_line_decoder = msgspec.json.Decoder(Line)


def scripted(asked: Asked) -> Answer:
    """The line of the script whose turn it is.

    A client's question on the side that wants JSON and offers no tools gets JSON.
    """
    if asked.shape is not None and not asked.tools:
        return json(asked)
    lines, turn = _script_of(asked.said)
    if turn >= len(lines):
        return _saying("done")
    try:
        line = _line_decoder.decode(lines[turn])
    except msgspec.MsgspecError as error:
        return _saying(f"Line {turn + 1} of the script cannot be read: {error}")
    return _performed(line, asked.tools)


def _script_of(said: Sequence[Said]) -> tuple[Sequence[str], int]:
    """The last script in the user's words, and how many turns the assistant had since."""
    lines: Sequence[str] = ()
    turn = 0
    for speaker, group in groupby(said, key=lambda each: each.speaker):
        if speaker == "assistant":
            turn += 1
        for text in (each.text for each in group if speaker == "user"):
            for found in _SCRIPT.findall(text):
                lines = [line for line in found.splitlines() if line.strip()]
                turn = 0
    return lines, turn


def _performed(line: Line, tools: Sequence[Tool]) -> Answer:
    parts: list[Part] = []
    if line.thought:
        parts.append(Thought(words(line.thought)))
    if line.text:
        parts.append(Text(words(line.text)))
    for wanted in filter(None, (line.tool, line.custom)):
        tool = _meant(wanted, tools)
        if tool is None:
            offered = ", ".join(each.name for each in tools) or "none"
            return _saying(f"The script calls {wanted}, but the tools are: {offered}.")
        parts.append(_scripted_call(line, wanted, tool))
    called = any(isinstance(part, Call) for part in parts)
    return Answer(tuple(parts), "calls" if called else "end")


def _scripted_call(line: Line, wanted: str, tool: Tool) -> Call:
    """A free text in a function's arguments, where the tool is one, as gateways wrap it."""
    if wanted == line.tool:
        return Call(tool, fragments(line.arguments))
    if tool.free:
        return Call(tool, words(line.input))
    return Call(tool, fragments({"input": line.input}))


def _meant(wanted: str, tools: Sequence[Tool]) -> Tool | None:
    """The tool of that name, else the first whose name ends with it; case does not matter."""
    return next(_matching(wanted.lower(), tools), None)


def _matching(wanted: str, tools: Sequence[Tool]) -> Iterator[Tool]:
    yield from (tool for tool in tools if tool.name.lower() == wanted)
    yield from (tool for tool in tools if tool.name.lower().endswith(wanted))

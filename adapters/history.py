"""A conversation in the one order that every provider takes.

Clients interleave, repeat and lose results of tools: after interruptions, after compaction of a
long history, and because their own provider happens to allow it. Others demand that the results of
a turn's calls follow it at once, all of them and nothing else first. `arranged` is that order; it
is a pure function of the history, so that a prompt cache finds the same beginning every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from adapters import freeform
from adapters.canonical import (
    Part,
    Prompt,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from adapters.characters import whole
from adapters.losses import Losses
from adapters.names import safe_id

NO_RESULT = "[no result recorded]"

_REPORTED = "tool_results"
_OF_MODELS = (Thinking, ToolCall)  # what only a model says
_EMPTY_SCHEMA = {"type": "object", "properties": {}}

_decode = msgspec.json.Decoder().decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)
_replace = msgspec.structs.replace


# -- order ----------------------------------------------------------------------------------------


def arranged(turns: Sequence[Turn], losses: Losses) -> tuple[Turn, ...]:
    """The same conversation, where every assistant turn with calls is followed by a user turn that
    begins with exactly their results, in the order of the calls.

    Turns of one role that follow each other are one, except system ones; nothing is empty; ids of
    calls are safe and unique. Results that came twice, to no call, or not at all are reported.
    Raises RequestNotExpressible where the conversation ends in a call without its result.
    """
    calls = _Calls(losses)
    filed = [calls.file(turn) for turn in _merged(_without_blanks(turns))]
    last = max((at for at, (turn, _) in enumerate(filed) if turn.parts), default=-1)
    return tuple(_without_blanks(_merged(_answered(filed, last, losses))))


@dataclass(slots=True)
class _Pending:
    """One call of the history, and its result once that was found."""

    call: ToolCall
    result: ToolResult | None = None


@dataclass(slots=True)
class _SameId:
    """The calls of one turn under one id; those before `answered` have their results."""

    calls: list[_Pending]
    answered: int = 0

    def next(self) -> _Pending:
        """The first that has no result yet, else the last."""
        pending = self.calls[min(self.answered, len(self.calls) - 1)]
        self.answered += 1
        return pending


class _Calls:
    """Which result belongs to which call, while the turns are walked in their order.

    Some servers count the ids of calls from 0 in every answer, so an id means the last turn that
    used it, and within that turn the first call that has no result yet.
    """

    __slots__ = ("_by_id", "_ids", "_losses")

    def __init__(self, losses: Losses) -> None:
        self._losses = losses
        self._by_id: dict[str, _SameId] = {}  # of the last turn that used an id
        self._ids: set[str] = set()  # as they go out

    def file(self, turn: Turn) -> tuple[Turn, list[_Pending]]:
        """A turn without the results in it, and the calls that it makes."""
        calls: list[_Pending] = []
        by_id: dict[str, _SameId] = {}
        parts: list[Part] = []
        for part in turn.parts:
            if isinstance(part, ToolCall):
                pending = _Pending(_replace(part, id=self._unique(part.id)))
                calls.append(pending)
                by_id.setdefault(part.id, _SameId([])).calls.append(pending)
                parts.append(pending.call)
            elif isinstance(part, ToolResult):
                parts += self._assign(part)
            else:
                parts.append(part)
        self._by_id.update(by_id)
        return _replace(turn, parts=tuple(parts)), calls

    def _assign(self, result: ToolResult) -> tuple[Part, ...]:
        """Put a result to its call; what is left is that of a result without one."""
        same_id = self._by_id.get(result.call_id)
        if same_id is None:
            self._losses.approximate(_REPORTED)
            return _as_text(result)
        pending = same_id.next()
        if pending.result is not None:
            self._losses.approximate(_REPORTED)
        pending.result = _replace(
            result, call_id=pending.call.id, content=tuple(filter(_says_something, result.content))
        )
        return ()

    def _unique(self, given: str) -> str:
        chosen = safe_id(given)
        if chosen in self._ids:
            chosen = safe_id(f"{given}:{len(self._ids)}")
        self._ids.add(chosen)
        return chosen


def _answered(
    filed: Sequence[tuple[Turn, list[_Pending]]], last: int, losses: Losses
) -> Iterator[Turn]:
    """Every turn, with its results behind it."""
    for at, (turn, calls) in enumerate(filed):
        if turn.parts:
            yield turn
        if calls:
            results = [_result_of(pending, at == last, losses) for pending in calls]
            yield Turn(role="user", parts=tuple(results))


def _result_of(pending: _Pending, at_the_end: bool, losses: Losses) -> ToolResult:
    if pending.result is not None:
        return pending.result
    if at_the_end:
        losses.refuse("tool_calls", f"wants a result for every call; {pending.call.id} has none")
    losses.approximate(_REPORTED)
    return ToolResult(call_id=pending.call.id, content=(Text(text=NO_RESULT),), error=True)


def _as_text(result: ToolResult) -> tuple[Part, ...]:
    """A result that no call asked for, as something the user said."""
    media = [part for part in result.content if not isinstance(part, Text)]
    label = result.name or result.call_id
    return Text(text=f"Tool result ({label}): {result_text(result)}"), *media


def _merged(turns: Iterable[Turn]) -> list[Turn]:
    """Turns of one role that follow each other as one; system ones stay apart."""
    groups: list[list[Turn]] = []
    for turn in turns:
        if groups and turn.role == groups[-1][0].role != "system":
            groups[-1].append(turn)
        else:
            groups.append([turn])
    return [_joined(group) for group in groups]


def _joined(turns: Sequence[Turn]) -> Turn:
    if len(turns) == 1:
        return turns[0]
    names = {turn.name for turn in turns if turn.name}
    parts = tuple(part for turn in turns for part in turn.parts)
    return Turn(role=turns[0].role, parts=parts, name=names.pop() if len(names) == 1 else "")


def _without_blanks(turns: Iterable[Turn]) -> Iterator[Turn]:
    """Turns without what providers refuse: empty parts, reasoning and calls of anyone but the
    model, and white space that would be the only text. A user's white space alone stays: there is
    nothing else to send."""
    for turn in turns:
        parts = tuple(part for part in turn.parts if _says_something(part))
        if turn.role != "assistant":
            parts = tuple(part for part in parts if not isinstance(part, _OF_MODELS))
        if not any(isinstance(part, Text) and not part.text.isspace() for part in parts):
            others = tuple(part for part in parts if not isinstance(part, Text))
            parts = others if others or turn.role != "user" else parts
        if parts:
            yield turn if len(parts) == len(turn.parts) else _replace(turn, parts=parts)


def _says_something(part: Part) -> bool:
    if isinstance(part, Text | Refusal):
        return part.text != ""
    return not isinstance(part, Thinking) or part.text != "" or part.blob is not None


# -- system ---------------------------------------------------------------------------------------


def split_system(turns: Sequence[Turn]) -> tuple[tuple[Text, ...], tuple[Turn, ...]]:
    """The instructions, which are the system turns at the beginning, and the rest."""
    leading = next((at for at, turn in enumerate(turns) if turn.role != "system"), len(turns))
    texts = tuple(text for turn in turns[:leading] for text in _texts(turn.parts))
    return texts, tuple(turns[leading:])


def system_as_user(turns: Sequence[Turn], losses: Losses) -> tuple[Turn, ...]:
    """System turns as text of the user's, for providers that know none in a conversation.

    Comes after `split_system` and before `arranged`, which joins them to their neighbours.
    """
    return tuple(_tagged(turn, losses) if turn.role == "system" else turn for turn in turns)


def _tagged(turn: Turn, losses: Losses) -> Turn:
    losses.approximate("system")
    parts = tuple(
        _replace(text, text=f"<system>\n{text.text}\n</system>") for text in _texts(turn.parts)
    )
    return Turn(role="user", parts=parts)


def _texts(parts: Iterable[Part]) -> list[Text]:
    return [part for part in parts if isinstance(part, Text) and part.text]


# -- tools ----------------------------------------------------------------------------------------


def tools_of(prompt: Prompt) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    """The tools to declare, and the choice among them; None without tools.

    Some providers refuse a history with calls of tools that are not declared: those are made up
    from their names then, and may not be called.
    """
    if prompt.tools:
        return prompt.tools, prompt.tool_choice
    tools = tuple(_tools_in(prompt.turns))
    if tools and not prompt.hosted_tools:
        return tools, ToolChoice(mode="none")
    return tools, prompt.tool_choice if prompt.hosted_tools else None


def _tools_in(turns: Iterable[Turn]) -> list[Tool]:
    tools: dict[tuple[str, str], Tool] = {}
    for call in _calls_in(turns):
        tools.setdefault(
            (call.namespace, call.name),
            Tool(
                name=call.name,
                schema=None if call.free else _EMPTY_SCHEMA,
                free=call.free,
                namespace=call.namespace,
                search=call.search,
            ),
        )
    return list(tools.values())


def _calls_in(turns: Iterable[Turn]) -> Iterator[ToolCall]:
    return (part for turn in turns for part in turn.parts if isinstance(part, ToolCall))


def arguments_object(call: ToolCall, losses: Losses) -> msgspec.Raw:
    """The arguments as a JSON object, every number spelled as it was.

    What is no object becomes one with the text in it: the conversation goes on.
    """
    text = whole(freeform.arguments(call.arguments) if call.free else call.arguments.strip())
    if not text:
        return msgspec.Raw(b"{}")
    if _is_object(text):
        return msgspec.Raw(text.encode())
    losses.approximate("arguments")
    return msgspec.Raw(msgspec.json.encode({"_raw": text}))


def _is_object(text: str) -> bool:
    if not text.startswith("{"):
        return False
    try:
        _decode(text)
    except _UNREADABLE:
        return False
    return True


def result_text(result: ToolResult) -> str:
    """What a result says, for protocols that take only text and know no errors."""
    text = "\n".join(part.text for part in result.content if isinstance(part, Text))
    return f"Error: {text}" if result.error else text

"""Calls in an answer, under the names and in the form that the client declared its tools.

A provider that knows no groups of tools got `group__name`; one that knows only functions got a
free-form tool as a function with one string. Here both become again what the client asked for.
"""

from __future__ import annotations

from adapters.canonical import Close, Delta, Event, Open
from adapters.freeform import Unwrapper
from adapters.names import ToolNames


class Restorer:
    """One answer's events, with calls as the client knows them."""

    __slots__ = ("_names", "_unwrapper")

    def __init__(self, names: ToolNames) -> None:
        self._names = names
        self._unwrapper: Unwrapper | None = None  # of the open block

    def pass_on(self, events: list[Event]) -> list[Event]:
        """What the client sees of `events`."""
        if self._unwrapper is None:
            for event in events:
                if type(event) is Open:
                    break
            else:
                return events  # only blocks that begin have names
        out: list[Event] = []
        for event in events:
            if isinstance(event, Open):
                out.append(self._opened(event))
            elif self._unwrapper is not None and isinstance(event, Delta):
                if text := self._unwrapper.feed(event.text):
                    out.append(Delta(event.index, text))
            else:
                if self._unwrapper is not None and isinstance(event, Close):
                    if text := self._unwrapper.close():
                        out.append(Delta(event.index, text))
                    self._unwrapper = None
                out.append(event)
        return out

    def _opened(self, event: Open) -> Open:
        tool = self._names.tool(event.name) if event.kind in ("call", "free_call") else None
        self._unwrapper = None
        if tool is None:
            return event
        kind = event.kind
        if tool.free and kind == "call":
            self._unwrapper = Unwrapper()
            kind = "free_call"
        return Open(event.index, kind, event.id, tool.name, tool.namespace, tool.search)

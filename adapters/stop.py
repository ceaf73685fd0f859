"""Stop sequences for providers that know none: the answer is cut where the first is complete.

What could be the beginning of a sequence is held back until it is certain; at most as many
characters as the longest sequence has, less one. Only text is searched, as providers do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adapters.canonical import Close, Delta, Event, Finish, Open

# Each is looked for in every piece of text; providers take far fewer and shorter ones.
STOPS_MAX = 64
STOP_CHARACTERS_MAX = 1000


def can_be_scanned(stops: Sequence[str]) -> bool:
    """Whether looking for `stops` costs next to nothing."""
    return len(stops) <= STOPS_MAX and all(len(stop) <= STOP_CHARACTERS_MAX for stop in stops)


class StopScanner:
    """One answer's events, up to the first of `stops`; how it is cut never changes what comes out.

    A sequence that is found ends the answer: what comes out ends in a `Finish`, and nothing
    follows.
    """

    __slots__ = ("_calls", "_held", "_index", "_stops", "_text", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped = False
        self._stops = [stop for stop in stops if stop]
        self._held = ""  # the end of the open text, which may be the beginning of a sequence
        self._text = False  # the open block is text
        self._index = -1  # of the open block
        self._calls = False  # the answer has some

    def pass_on(self, events: Iterable[Event]) -> list[Event]:
        """What the client sees of `events`."""
        out: list[Event] = []
        for event in events:
            if self.stopped:
                break
            self._one(event, out)
        return out

    def _one(self, event: Event, out: list[Event]) -> None:
        if isinstance(event, Delta) and self._text:
            self._search(event.text, out)
            return
        if isinstance(event, Open):
            self._text, self._index = event.kind == "text", event.index
            self._calls = self._calls or event.kind in ("call", "free_call")
        elif isinstance(event, Close):
            self._let_out(self._held, out)
            self._held = ""
        out.append(event)

    def _search(self, more: str, out: list[Event]) -> None:
        text = self._held + more
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, at = min(found)  # a model that knew them would have come no further
            self._let_out(text[:at], out)
            # Agents act on the reason: a call in the answer is to be served whatever ended it.
            finish = Finish("tool_calls") if self._calls else Finish("stop_sequence", text[at:end])
            out += [Close(self._index), finish]
            self._held, self.stopped = "", True
        else:
            certain = min((_certain(text, stop) for stop in self._stops), default=len(text))
            self._let_out(text[:certain], out)
            self._held = text[certain:]

    def _let_out(self, text: str, out: list[Event]) -> None:
        if text:
            out.append(Delta(self._index, text))


def _certain(text: str, stop: str) -> int:
    """How many characters of `text` cannot be the beginning of `stop`, which is not in it."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return at
        at = text.find(stop[0], at + 1)
    return len(text)

"""Stop sequences for providers that know none: the answer is cut where one begins.

What could be the beginning of a sequence is held back until it is certain; at most as many
characters as the longest sequence has, less one. Only text is searched, as providers do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adapters.canonical import Close, Delta, Event, Finish, Open, Used


class StopScanner:
    """One answer's events, up to the first of `stops`; after it only a `Finish` comes."""

    __slots__ = ("_held", "_inside", "_longest", "_stops", "_text", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped = False
        self._stops = [stop for stop in stops if stop]
        self._longest = max(map(len, self._stops), default=1)
        self._held = ""
        self._text = False  # the open block is text
        self._inside = -1

    def pass_on(self, events: Iterable[Event]) -> list[Event]:
        """What the client sees of `events`."""
        out: list[Event] = []
        for event in events:
            if self.stopped:
                if isinstance(event, Used):
                    continue
                break
            self._one(event, out)
        return out

    def _one(self, event: Event, out: list[Event]) -> None:
        if isinstance(event, Open):
            self._text, self._inside = event.kind == "text", event.index
        elif isinstance(event, Delta) and self._text:
            self._search(event, out)
            return
        elif isinstance(event, Close | Finish) and self._held:
            out.append(Delta(self._inside, self._held))
            self._held = ""
        out.append(event)

    def _search(self, event: Delta, out: list[Event]) -> None:
        text = self._held + event.text
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, stop = min(found)
            if at:
                out.append(Delta(event.index, text[:at]))
            out += [Close(event.index), Finish("stop_sequence", stop)]
            self._held, self.stopped = "", True
            return
        keep = self._undecided(text)
        self._held = text[len(text) - keep :]
        if keep < len(text):
            out.append(Delta(event.index, text[: len(text) - keep]))

    def _undecided(self, text: str) -> int:
        """How many of the last characters may be the beginning of a stop sequence."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[len(text) - size :]
            if any(stop.startswith(tail) for stop in self._stops):
                return size
        return 0

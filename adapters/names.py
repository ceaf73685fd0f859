"""Names and ids that every provider accepts, and the way back.

Providers differ in which characters a tool's name may have and how long it may be; clients have
groups of tools (`namespace`) that others do not know. `ToolNames` is a bijection for one request,
used for its tools, its history and the calls in the answer. Ids of calls need no table: both the
call and its result are in the history, so a pure function of the id is enough.
"""

from __future__ import annotations

import re
from base64 import b32encode
from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from adapters.canonical import Tool, ToolCall, Turn

_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HASH_CHARACTERS = 8


class NameRule(NamedTuple):
    """What a provider accepts: `first` as first character, `length` characters at most."""

    first: re.Pattern[str]
    rest: re.Pattern[str]  # what is *not* allowed anywhere
    length: int


OPENAI_NAMES = NameRule(re.compile(r"[A-Za-z0-9_-]"), re.compile(r"[^A-Za-z0-9_-]"), 64)
ANTHROPIC_NAMES = NameRule(re.compile(r"[A-Za-z0-9_-]"), re.compile(r"[^A-Za-z0-9_-]"), 128)
GEMINI_NAMES = NameRule(re.compile(r"[A-Za-z_]"), re.compile(r"[^A-Za-z0-9_.:-]"), 128)


class ToolNames:
    """Names as the provider gets them, for the tools and calls of one request."""

    __slots__ = ("_originals", "_rule", "_wire")

    def __init__(self, rule: NameRule, tools: Iterable[Tool], turns: Iterable[Turn] = ()) -> None:
        self._rule = rule
        self._wire: dict[tuple[str, str], str] = {}
        self._originals: dict[str, Tool | None] = {}
        declared = list(tools)
        # What needs no change keeps its name, whatever comes before it.
        for tool in sorted(declared, key=lambda tool: not self._fits(tool)):
            self._add(tool.namespace, tool.name, tool)
        for turn in turns:
            for part in turn.parts:
                if isinstance(part, ToolCall):
                    self._add(part.namespace, part.name, None)

    def wire(self, name: str, namespace: str = "") -> str:
        """The name as the provider gets it."""
        return self._add(namespace, name, None)

    def tool(self, wire: str) -> Tool | None:
        """The tool that the provider calls by this name; None for one that was not declared."""
        return self._originals.get(wire)

    def _fits(self, tool: Tool) -> bool:
        return not tool.namespace and self._safe(tool.name) == tool.name

    def _add(self, namespace: str, name: str, tool: Tool | None) -> str:
        known = self._wire.get((namespace, name))
        if known is not None:
            return known
        wire = self._safe(f"{namespace}__{name}" if namespace else name)
        tries = 0
        while wire in self._originals:
            suffix = _hash(f"{namespace}\0{name}\0{tries}")
            wire = f"{wire[: self._rule.length - len(suffix) - 1]}_{suffix}"
            tries += 1
        self._wire[namespace, name] = wire
        self._originals[wire] = tool
        return wire

    def _safe(self, name: str) -> str:
        rule = self._rule
        safe = rule.rest.sub("_", name) or "_"
        if rule.first.match(safe) is None:
            safe = f"_{safe}"
        if len(safe) > rule.length:
            safe = f"{safe[: rule.length - _HASH_CHARACTERS - 1]}_{_hash(name)}"
        return safe


def safe_id(given: str) -> str:
    """An id of a call that every provider accepts: itself, or a hash of it."""
    if _SAFE_ID.fullmatch(given):
        return given
    return f"tc_{_hash(given, 24)}"


def _hash(text: str, characters: int = _HASH_CHARACTERS) -> str:
    digest = blake2b(text.encode(errors="surrogatepass"), digest_size=20).digest()
    return b32encode(digest).decode().lower()[:characters]

"""Tells a running sandbox how to behave, and asks it how it has behaved (see `farebox.sandbox`)."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence

import msgspec

from farebox.sandbox import Performance


class _Log(msgspec.Struct):
    performances: list[Performance]


class _Calls(msgspec.Struct):
    calls: int
    models: dict[str, int]


class Sandbox:
    """A sandbox process at `origin`, as `tests.fakes.process.sandbox_process` yields it."""

    def __init__(self, origin: str) -> None:
        self._origin = origin

    def set_mood(self, mood: str) -> None:
        """Have every answer from here on fail as that model's do; empty: none any more."""
        body = json.dumps({"mood": mood}).encode()
        with urllib.request.urlopen(f"{self._origin}/sandbox/mood", body, timeout=10) as answer:  # noqa: S310 - loopback
            answer.read()

    def performances(self, after: int = 0) -> Sequence[Performance]:
        """The answers that have ended, behind the one of that number."""
        return msgspec.json.decode(self._get(f"log?after={after}"), type=_Log).performances

    def calls(self) -> dict[str, int]:
        """How often each model was asked."""
        return msgspec.json.decode(self._get("calls"), type=_Calls).models

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self._origin}/sandbox/{path}", timeout=10) as answer:  # noqa: S310 - loopback
            body: bytes = answer.read()
        return body

"""A provider of one's own making: scripts of bytes and pauses, answered one per request.

`ScriptedProvider` goes through its scripts, `ChoosingProvider` has a function pick one by the
moment and by what is asked. Both keep what they were asked and when, and when an asker left in the
middle of an answer; a script's pauses notice that at once, as a provider's server does.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Callable, Mapping, Sequence

import trio

from proxy.transport import Transport
from tests.fakes.network import MemoryTransport


class Reset(enum.Enum):
    """Breaks the connection off, as a process that crashes does."""

    RESET = "reset"


RESET = Reset.RESET
HANG = math.inf
"""A pause without an end."""

Step = bytes | float | Reset | None
"""Bytes to send, seconds to pause, RESET to break the connection off, or None to close it."""

Script = Sequence[Step]
SILENCE: Script = [HANG]
"""Not even a head."""

Asked = dict[str, object]
"""The body of a request."""


class ScriptedProvider:
    """Answers each request with the next script, and the last one for ever after.

    `asked_at` are the moments at which requests had arrived, `left_at` those at which an asker
    closed its connection before the end of its script: so often was an answer `cancelled`.
    """

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.bodies: list[Asked] = []
        self.heads: list[str] = []
        self.asked_at: list[float] = []
        self.left_at: list[float] = []

    @property
    def calls(self) -> int:
        """How many requests have arrived."""
        return len(self.bodies)

    @property
    def cancelled(self) -> int:
        """How many askers have left before the end of their answer."""
        return len(self.left_at)

    def script_for(self, asked: Asked) -> Script:
        """What the newest request is answered with."""
        return self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]

    async def __call__(self, transport: Transport) -> None:
        assert isinstance(transport, MemoryTransport)
        while (body := await self._read(transport)) is not None:
            self.asked_at.append(trio.current_time())
            self.bodies.append(body)
            try:
                for step in self.script_for(body):
                    if step is None:
                        return
                    if isinstance(step, Reset):
                        transport.reset()
                        return
                    if isinstance(step, bytes):
                        await transport.send(step)
                    else:
                        await _pause(transport, step)
            except OSError:
                self.left_at.append(trio.current_time())
                return

    async def _read(self, transport: Transport) -> Asked | None:
        data = b""
        while b"\r\n\r\n" not in data:
            part = await transport.receive()
            if not part:
                return None
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        self.heads.append(head.decode())
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += await transport.receive()
        decoded = json.loads(body)
        assert isinstance(decoded, dict)
        return decoded


class ChoosingProvider(ScriptedProvider):
    """Has each script chosen: `choose` gets the moment, and the body that was sent."""

    def __init__(self, choose: Callable[[float, Asked], Script]) -> None:
        super().__init__()
        self._choose = choose

    def script_for(self, asked: Asked) -> Script:
        return self._choose(trio.current_time(), asked)


async def _pause(transport: MemoryTransport, seconds: float) -> None:
    """Raises OSError as soon as the asker leaves."""
    with trio.move_on_after(seconds):
        await transport.peer_gone()
        raise BrokenPipeError("peer closed")


def reply(status: int, body: object, headers: Mapping[str, str] | None = None) -> Script:
    """A whole answer with a JSON body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Status", f"content-length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return ["\r\n".join(lines).encode() + b"\r\n\r\n" + data]


def cut(whole: Script, percent: int) -> Script:
    """A whole answer of which so much of the body arrives before the connection is closed."""
    (data,) = whole
    assert isinstance(data, bytes)
    head, _, body = data.partition(b"\r\n\r\n")
    return [head + b"\r\n\r\n" + body[: len(body) * percent // 100], None]


def error(status: int, message: str, code: str | None = None, **headers: str) -> Script:
    """An error in OpenAI's envelope; underscores in header names become dashes."""
    body = {"error": {"message": message, "type": "t", "param": None, "code": code}}
    return reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def completion(
    text: str = "Hello!", *, input_tokens: int = 10, output_tokens: int = 5, **extra: object
) -> Script:
    """A plain chat completion with usage."""
    return reply(200, completion_body(text, input_tokens, output_tokens) | extra)


def completion_body(text: str, input_tokens: int, output_tokens: int) -> dict[str, object]:
    """Its body."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "upstream-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": usage(input_tokens, output_tokens),
    }


def usage(input_tokens: int, output_tokens: int) -> dict[str, object]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
STREAM_END = b"0\r\n\r\n"


def chunk(data: object) -> bytes:
    """One event in one HTTP chunk."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    event = f"data: {text}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


def delta(content: str | None = None, *, finish: str | None = None, **extra: object) -> bytes:
    """A chat completion chunk."""
    message: dict[str, object] = {} if content is None else {"content": content}
    return chunk(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "upstream-model",
            "choices": [{"index": 0, "delta": message, "finish_reason": finish}],
            **extra,
        }
    )


def usage_chunk(input_tokens: int = 10, output_tokens: int = 5) -> bytes:
    """The chunk that carries usage and no choice."""
    return chunk(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "upstream-model",
            "choices": [],
            "usage": usage(input_tokens, output_tokens),
        }
    )


def stream(*words: str, gap: float = 0, output_tokens: int = 5) -> Script:
    """A complete stream of `words`, `gap` seconds apart."""
    steps: list[Step] = [STREAM_HEAD]
    for word in words:
        steps += [gap, delta(word)] if gap else [delta(word)]
    steps += [
        delta(finish="stop"),
        usage_chunk(output_tokens=output_tokens),
        chunk("[DONE]"),
        STREAM_END,
    ]
    return steps

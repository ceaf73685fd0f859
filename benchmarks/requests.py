"""What clients ask: a generating request as an SDK sends it, on each of the four surfaces.

The body has about 800 bytes unless a longer prompt or an image is wanted, the head has ten headers.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from benchmarks.answers import Json, Protocol

# What the last event of a stream has, and no other.
LAST_EVENT: Mapping[Protocol, bytes] = {
    "openai": b"data: [DONE]",
    "openai-responses": b'"response.completed"',
    "anthropic": b'"message_stop"',
    "gemini": b'"finishReason"',
}

_SYSTEM = "You are a helpful assistant."
_SENTENCE = "Summarise the following paragraph in one sentence for a busy reader. "
_PROMPT_BYTES = len(_SENTENCE) * 9
_JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"
_KEY_CHARACTERS = string.digits + string.ascii_letters


@dataclass(frozen=True)
class Ask:
    """One request: at which surface, for which model, how large, with which headers besides."""

    model: str
    surface: Protocol = "openai"
    prompt_bytes: int = _PROMPT_BYTES
    image_bytes: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def stream(self) -> bool:
        """Whether the answer is to be streamed: the model's name says it."""
        name = self.model.rpartition(".")[2]
        return name.startswith("stream-") or name == "idle"

    @property
    def stamped(self) -> bool:
        """Whether each delta tells when it was sent; what comes all at once does not."""
        return self.stream and not self.model.endswith("-0ms")

    @property
    def path(self) -> str:
        """Where it goes."""
        if self.surface == "gemini":
            action = "streamGenerateContent?alt=sse" if self.stream else "generateContent"
            return f"/v1beta/models/{self.model}:{action}"
        return _PATHS[self.surface]

    @cached_property
    def body(self) -> bytes:
        """Its JSON."""
        prompt = (_SENTENCE * (self.prompt_bytes // len(_SENTENCE) + 1))[: self.prompt_bytes]
        fields = _FIELDS[self.surface](self, prompt)
        return json.dumps(fields, separators=(",", ":")).encode()

    def request(self, key: str) -> bytes:
        """All its bytes, from whoever has `key`."""
        before, after = self._cut
        return before + key.encode() + after

    def header_fields(self) -> dict[str, str]:
        """Its headers, without those of the connection and the key's."""
        fields = {
            "accept": "application/json",
            "accept-encoding": "identity",
            "content-type": "application/json",
            "user-agent": "benchmark/1.0",
            "x-stainless-lang": "python",
        }
        if self.surface == "anthropic":
            fields["anthropic-version"] = "2023-06-01"
        return fields | dict(self.headers)

    @cached_property
    def _cut(self) -> tuple[bytes, bytes]:
        """The request before its key, and after it."""
        fields = {"host": "127.0.0.1", "connection": "keep-alive"} | self.header_fields()
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {fields[name]}" for name in fields)]
        lines.append(f"content-length: {len(self.body)}")
        head = "\r\n".join([*lines, "authorization: Bearer "]).encode()
        return head, b"\r\n\r\n" + self.body


def _chat(ask: Ask, prompt: str) -> Json:
    content: object = prompt
    if ask.image_bytes:
        url = {"url": f"data:image/jpeg;base64,{_image(ask.image_bytes)}"}
        content = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": url}]
    fields: Json = {
        "model": ask.model,
        "messages": [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": content},
        ],
        "temperature": 0.2,
        "max_tokens": 256,
        "user": "benchmark",
    }
    if ask.stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return fields


def _responses(ask: Ask, prompt: str) -> Json:
    return {
        "model": ask.model,
        "instructions": _SYSTEM,
        "input": [{"role": "user", "content": prompt}],
        "temperature": 0.2,
        "max_output_tokens": 256,
        "store": False,
        "stream": ask.stream,
    }


def _messages(ask: Ask, prompt: str) -> Json:
    return {
        "model": ask.model,
        "system": _SYSTEM,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0.2,
        "max_tokens": 256,
        "stream": ask.stream,
    }


def _gemini(_ask: Ask, prompt: str) -> Json:
    return {
        "systemInstruction": {"parts": [{"text": _SYSTEM}]},
        "contents": [{"role": "user", "parts": [{"text": prompt}]}],
        "generationConfig": {"temperature": 0.2, "maxOutputTokens": 256},
    }


_PATHS: Mapping[Protocol, str] = {
    "openai": "/v1/chat/completions",
    "openai-responses": "/v1/responses",
    "anthropic": "/v1/messages",
}
_FIELDS = {
    "openai": _chat,
    "openai-responses": _responses,
    "anthropic": _messages,
    "gemini": _gemini,
}


def _image(size: int) -> str:
    """Base64 of something that compresses as little as a photograph."""
    photograph = _JPEG + random.Random(size).randbytes(size - len(_JPEG))  # noqa: S311  # no secret
    return base64.b64encode(photograph).decode()


def unknown_keys(count: int) -> Iterator[str]:
    """Keys that look real, each another one, which nobody was ever given."""
    chance = random.Random(count)  # noqa: S311  # nobody is to be kept from guessing them
    for _ in range(count):
        yield "sk_farebox_" + "".join(chance.choices(_KEY_CHARACTERS, k=42))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a command that asks."""
    parser.add_argument("--model", required=True)
    parser.add_argument("--surface", choices=tuple(_FIELDS), default="openai")
    parser.add_argument("--prompt-bytes", type=int, default=_PROMPT_BYTES)
    parser.add_argument("--image-bytes", type=int, default=0)
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE")


def arguments(ask: Ask) -> list[str]:
    """The same options, filled in."""
    sizes = ["--prompt-bytes", str(ask.prompt_bytes), "--image-bytes", str(ask.image_bytes)]
    headers = [f"--header={name}:{value}" for name, value in ask.headers.items()]
    return ["--model", ask.model, "--surface", ask.surface, *sizes, *headers]


def from_arguments(options: argparse.Namespace) -> Ask:
    """What such a command is to ask."""
    headers = dict(header.split(":", 1) for header in options.header)
    return Ask(options.model, options.surface, options.prompt_bytes, options.image_bytes, headers)

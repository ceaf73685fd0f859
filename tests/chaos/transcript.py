"""What a client makes of the bytes of a streamed answer, as far as they have come.

Read as the SDKs read: text, why it ended, the protocol's last event, an error instead. Nothing of
the gateway's own codecs is used but the framing of events.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters import sse
from tests.chaos.questions import Question, Surface

Object = Mapping[str, object]


@dataclass
class Heard:
    """One answer as its client has it. `framed`: HTTP's own end of the body has arrived.

    Moments are those of `time.monotonic`; `first_content` is None where no text came.
    """

    question: Question
    begun: float
    ended: float = 0.0
    first_content: float | None = None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    framed: bool = False

    @property
    def request_id(self) -> str:
        return self.headers.get("x-request-id", "")


@dataclass
class Transcript:
    """The events of a stream, read one by one.

    `finish` is why the model stopped, `terminal` whether the protocol's last event came, `error`
    the code of an error event, `after_error` whether anything followed it. `usage` is (input,
    output) where the answer said so.
    """

    surface: Surface
    text: str = ""
    finish: str = ""
    terminal: bool = False
    error: str = ""
    after_error: bool = False
    unreadable: str = ""
    usage: tuple[int, int] | None = None

    def feed(self, event: bytes) -> None:
        """The next raw event."""
        payload = sse.data_of(event)
        if not payload:
            return  # a comment
        if self.error:
            self.after_error = True
        if payload == b"[DONE]" and self.surface == "chat":
            self.terminal = True
            return
        try:
            decoded = json.loads(payload)
        except ValueError:
            self.unreadable = payload[:80].decode(errors="replace")
            return
        if self.surface == "chat":
            self._chat(decoded)
        else:
            self._messages(decoded)

    def _chat(self, chunk: Object) -> None:
        if (error := chunk.get("error")) is not None:
            self.error = str(_object(error).get("code") or "unnamed")
        if usage := chunk.get("usage"):
            told = _object(usage)
            self.usage = int(str(told["prompt_tokens"])), int(str(told["completion_tokens"]))
        for choice in _objects(chunk.get("choices")):
            self.text += str(_object(choice.get("delta")).get("content") or "")
            self.finish = str(choice.get("finish_reason") or self.finish)

    def _messages(self, event: Object) -> None:
        match event.get("type"):
            case "content_block_delta":
                self.text += str(_object(event["delta"]).get("text") or "")
            case "message_delta":
                reason = _object(event["delta"]).get("stop_reason")
                self.finish = "stop" if reason == "end_turn" else str(reason or self.finish)
            case "message_stop":
                self.terminal = True
            case "error":
                self.error = str(_object(event["error"]).get("type") or "unnamed")


def read(surface: Surface, body: bytes) -> Transcript:
    """The transcript of a whole body."""
    transcript = Transcript(surface)
    for event in sse.Splitter().feed(body):
        transcript.feed(event)
    return transcript


def _object(value: object) -> Object:
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[Object]:
    return [_object(each) for each in value] if isinstance(value, list) else []

"""What providers answer, in each of the four protocols: whole, or as the events of a stream.

One text answer with its usage, shaped like the real ones: for the stand-in provider
(`benchmarks.provider`) and for the codecs alone (`benchmarks.codecs`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

Protocol = Literal["openai", "openai-responses", "anthropic", "gemini"]
Json = dict[str, object]

WORD = " lorem ipsum"
PROMPT_TOKENS = 220

_TEXT = "The quick brown fox jumps over the lazy dog and keeps on running. " * 4
_CREATED = 1_750_000_000
_CHAT_ID = "chatcmpl-benchmark0000000000000000"


def whole(protocol: Protocol, model: str) -> bytes:
    """The body of an answer in one piece: about 600 bytes."""
    return _dump(_WHOLE[protocol](model))


def stream(
    protocol: Protocol,
    words: int,
    *,
    texts: Sequence[str] = (WORD,),
    model: str = "m",
    usage: bool = True,
) -> Iterator[bytes]:
    """The events of one text answer of `words` deltas, as a provider of `protocol` sends them.

    The deltas are `texts` in turn. `usage` matters to Chat Completions alone: it tells only those
    who ask for it.
    """
    deltas = list(itertools.islice(itertools.cycle(texts), words))
    events = _STREAMS[protocol](deltas, model)
    if protocol != "openai" or usage:
        return events
    return (event for event in events if b'"choices":[]' not in event)


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _named(event: Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), _dump(event))


# -- Chat Completions ------------------------------------------------------------------------------


def _chat_usage(words: int) -> Json:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": words,
        "total_tokens": PROMPT_TOKENS + words,
    }


def _whole_chat(model: str) -> Json:
    message = {"role": "assistant", "content": _TEXT, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {
        "id": _CHAT_ID,
        "object": "chat.completion",
        "created": _CREATED,
        "model": model,
        "choices": [choice],
        "usage": _chat_usage(64),
        "service_tier": "default",
        "system_fingerprint": "fp_benchmark",
    }


def _chat(deltas: Sequence[str], model: str) -> Iterator[bytes]:
    def chunk(choices: list[Json], usage: Json | None = None) -> bytes:
        event = {
            "id": _CHAT_ID,
            "object": "chat.completion.chunk",
            "created": _CREATED,
            "model": model,
            "service_tier": "default",
            "system_fingerprint": "fp_benchmark",
            "choices": choices,
            "usage": usage,
        }
        return b"data: %b\n\n" % _dump(event)

    def delta(content: Json, reason: str | None = None) -> bytes:
        return chunk([{"index": 0, "delta": content, "finish_reason": reason}])

    yield delta({"role": "assistant", "content": ""})
    for text in deltas:
        yield delta({"content": text})
    yield delta({}, "stop")
    yield chunk([], _chat_usage(len(deltas)))
    yield b"data: [DONE]\n\n"


# -- Responses -------------------------------------------------------------------------------------


def _responses_usage(words: int) -> Json:
    return {
        "input_tokens": PROMPT_TOKENS,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": words,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": words + PROMPT_TOKENS,
    }


_RESPONSES_ITEM: Json = {"id": "msg_1", "type": "message", "role": "assistant"}
_RESPONSES_PART: Json = {"type": "output_text", "annotations": []}


def _whole_response(model: str) -> Json:
    part = {**_RESPONSES_PART, "text": _TEXT}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": _CREATED,
        "status": "completed",
        "model": model,
        "output": [{**_RESPONSES_ITEM, "status": "completed", "content": [part]}],
        "usage": _responses_usage(64),
    }


def _responses(deltas: Sequence[str], model: str) -> Iterator[bytes]:
    number = itertools.count()

    def event(kind: str, **more: object) -> bytes:
        return _named({"type": f"response.{kind}", "sequence_number": next(number), **more})

    text = "".join(deltas)
    response = {"id": "resp_1", "object": "response", "model": model, "status": "in_progress"}
    item = {**_RESPONSES_ITEM, "status": "in_progress", "content": []}
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    part = {**_RESPONSES_PART, "text": text}
    yield event("created", response={**response, "output": []})
    yield event("in_progress", response={**response, "output": []})
    yield event("output_item.added", output_index=0, item=item)
    yield event("content_part.added", **place, part={**_RESPONSES_PART, "text": ""})
    for delta in deltas:
        yield event("output_text.delta", **place, delta=delta, logprobs=[])
    yield event("output_text.done", **place, text=text, logprobs=[])
    yield event("content_part.done", **place, part=part)
    done = {**item, "status": "completed", "content": [part]}
    yield event("output_item.done", output_index=0, item=done)
    usage = _responses_usage(len(deltas))
    ended = {**response, "status": "completed", "output": [done], "usage": usage}
    yield event("completed", response=ended)


# -- Messages --------------------------------------------------------------------------------------


def _whole_message(model: str) -> Json:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": _TEXT}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": PROMPT_TOKENS, "output_tokens": 64},
    }


def _messages(deltas: Sequence[str], model: str) -> Iterator[bytes]:
    message = _whole_message(model) | {"content": [], "stop_reason": None}
    message["usage"] = {"input_tokens": PROMPT_TOKENS, "output_tokens": 1}
    yield _named({"type": "message_start", "message": message})
    block = {"type": "text", "text": ""}
    yield _named({"type": "content_block_start", "index": 0, "content_block": block})
    for text in deltas:
        delta = {"type": "text_delta", "text": text}
        yield _named({"type": "content_block_delta", "index": 0, "delta": delta})
    yield _named({"type": "content_block_stop", "index": 0})
    ending = {"stop_reason": "end_turn", "stop_sequence": None}
    usage = {"output_tokens": len(deltas)}
    yield _named({"type": "message_delta", "delta": ending, "usage": usage})
    yield _named({"type": "message_stop"})


# -- Gemini ----------------------------------------------------------------------------------------


def _gemini_answer(model: str, text: str, tokens: int, **more: object) -> Json:
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0, **more}
    usage = {
        "promptTokenCount": PROMPT_TOKENS,
        "candidatesTokenCount": tokens,
        "totalTokenCount": PROMPT_TOKENS + tokens,
    }
    return {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": model,
        "responseId": "r",
    }


def _whole_gemini(model: str) -> Json:
    return _gemini_answer(model, _TEXT, 64, finishReason="STOP")


def _gemini(deltas: Sequence[str], model: str) -> Iterator[bytes]:
    for at, text in enumerate(deltas, 1):
        more = {"finishReason": "STOP"} if at == len(deltas) else {}
        yield b"data: %b\r\n\r\n" % _dump(_gemini_answer(model, text, at, **more))


_WHOLE: Mapping[Protocol, Callable[[str], Json]] = {
    "openai": _whole_chat,
    "openai-responses": _whole_response,
    "anthropic": _whole_message,
    "gemini": _whole_gemini,
}
_STREAMS: Mapping[Protocol, Callable[[Sequence[str], str], Iterator[bytes]]] = {
    "openai": _chat,
    "openai-responses": _responses,
    "anthropic": _messages,
    "gemini": _gemini,
}

"""Chat Completions as a server: what a client asks, read strictly.

To decode, only what decides the route, the reservation or the shape of the answer is read; a
parameter that only the model understands is for the provider to judge. Refused is what would make
the price ambiguous (a key twice, two different caps) or what every provider refuses anyway. The
whole is read by `chat_prompt`, where it has to be translated.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import msgspec

from adapters import sse
from adapters.canonical import Prompt
from adapters.codec import Ask, Made, Request, Scan
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest
from adapters.openai.body import (
    Fields,
    count_of,
    flag_of,
    metadata_of,
    model_of,
    read_fields,
    refuse_other_models,
    refuse_other_spellings,
    require_items,
    text_of,
)
from adapters.openai.chat_prompt import read_prompt
from adapters.openai.chat_scan import scanned
from adapters.openai.chat_text import NAMES, TOKENS_MAX, StreamOptions, TextBody, read_text
from adapters.openai.chat_writer import ChatWriter
from adapters.openai.refusal import OpenAIRefusals

CHOICES_MAX = 128

_WEB_SEARCH = MappingProxyType({"web_search": 1})  # a search model searches once an answer
_CAPS = ("max_completion_tokens", "max_tokens")
_CAPS_OF_INPUT = (*_CAPS, "max_output_tokens")
# Whatever decides which model answers, how much, and at which price.
_PRICED = frozenset(
    {
        "model",
        "models",
        "messages",
        "n",
        *_CAPS,
        "stream",
        "stream_options",
        "service_tier",
        "tools",
    }
    | {"functions", "prediction", "audio", "modalities", "web_search_options"}
    | {"input", "instructions", "max_output_tokens", "prompt_cache_options"}
)


_decode_stream_options = msgspec.json.Decoder(StreamOptions | None).decode


class ChatDownstream(OpenAIRefusals):
    """The client's side of `POST /v1/chat/completions`."""

    def stream_type(self, request: Request) -> str:
        return "text/event-stream; charset=utf-8"

    def decode(self, body: bytes, ask: Ask) -> Request:
        fields = read_fields(body)
        text = read_text(body) if NAMES.issuperset(fields) else None
        if text is None:
            return _request(fields, len(body))
        return _text_request(fields, text, len(body))

    def prompt(self, request: Request, envelopes: Envelopes) -> Prompt:
        return read_prompt(request, envelopes)

    def writer(
        self, request: Request, prompt: Prompt, envelopes: Envelopes, made: Made
    ) -> ChatWriter:
        return ChatWriter(request, prompt, envelopes, made)


def _text_request(fields: Fields, text: TextBody, body_bytes: int) -> Request:
    """A request of nothing but text."""
    options = text.stream_options
    return Request(
        fields=fields,
        body_bytes=body_bytes,
        model=text.model,
        stream=bool(text.stream),
        keep_alive=sse.KEEP_ALIVE,
        include_usage=options is not None and bool(options.include_usage),
        output_cap=text.max_completion_tokens or text.max_tokens,
        scan=Scan(text_bytes=len(fields["messages"])),
        user_id=text.user or "",
    )


def _request(fields: Fields, body_bytes: int) -> Request:
    """Any request."""
    refuse_other_spellings(fields, _PRICED)
    model = model_of(fields)
    has_input = "messages" not in fields and "input" in fields
    if not has_input:
        require_items(fields, "messages", b"{", "a list of message objects")
    refuse_other_models(fields, "models")
    stream = flag_of(fields, "stream")
    metadata = metadata_of(fields)
    scan, foreign = scanned(fields)
    return Request(
        fields=fields,
        body_bytes=body_bytes,
        model=model,
        stream=stream,
        keep_alive=sse.KEEP_ALIVE,
        include_usage=_include_usage(fields, stream),
        output_cap=_output_cap(fields, _CAPS_OF_INPUT if has_input else _CAPS),
        choices=count_of(fields, "n", CHOICES_MAX) or 1,
        service_tier=text_of(fields, "service_tier") or "",
        pieces=_WEB_SEARCH if "web_search_options" in fields else {},
        scan=scan,
        user_id=metadata.user_id or text_of(fields, "user") or "",
        conversation_id=metadata.conversation_id,
        foreign=foreign,
    )


def _output_cap(fields: Fields, names: Sequence[str]) -> int | None:
    """The client's cap under any of its names."""
    cap: int | None = None
    for name in names:
        if name in fields and (given := count_of(fields, name, TOKENS_MAX)) is not None:
            if cap is not None and cap != given:
                raise InvalidRequest(
                    "max_tokens and max_completion_tokens differ; send only max_completion_tokens.",
                    param="max_tokens",
                )
            cap = given
    return cap


def _include_usage(fields: Fields, stream: bool) -> bool:
    if "stream_options" not in fields:
        return False
    try:
        options = _decode_stream_options(fields["stream_options"])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise InvalidRequest(
            "stream_options must be an object; include_usage in it must be true or false.",
            param="stream_options",
        ) from None
    if options is None:
        return False
    if not stream:
        raise InvalidRequest(
            "stream_options is only allowed where stream is true.", param="stream_options"
        )
    return options.include_usage or False

"""The Responses API as a server: what a client asks, read strictly.

Only what decides the route, the reservation or the shape of the answer is read here; the rest is
for the provider to judge, or for `responses_prompt` where it speaks another protocol. References to
earlier answers are resolved before that (`responses_state`).
"""

from __future__ import annotations

import msgspec

from adapters import sse
from adapters.canonical import Prompt
from adapters.codec import Ask, Made, Request
from adapters.envelope import Envelopes
from adapters.errors import APIError, InvalidRequest
from adapters.openai.body import (
    Fields,
    count_of,
    flag_of,
    metadata_of,
    model_of,
    read_fields,
    refuse_other_spellings,
    text_of,
)
from adapters.openai.refusal import OpenAIRefusals
from adapters.openai.responses_failed import failed_at_once
from adapters.openai.responses_prompt import read_prompt
from adapters.openai.responses_scan import is_given, scanned
from adapters.openai.responses_writer import ResponsesWriter

TOKENS_MAX = 2**31 - 1

# Whatever decides which model answers, how much, and at which price.
_PRICED = frozenset(
    {
        "model",
        "input",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "stream",
        "background",
        "service_tier",
        "tools",
        "previous_response_id",
        "conversation",
        "prompt",
        "context_management",
        "prompt_cache_options",
        "prompt_cache_retention",
    }
)
# With one of these a request may do without input of its own.
_OTHER_INPUT = ("previous_response_id", "conversation", "prompt", "instructions")
# What is kept is kept here, whatever the provider is told; and what the answer says where the
# request did not.
_KEPT_HERE = {"store": msgspec.Raw(b"true"), "previous_response_id": msgspec.Raw(b"null")}
_KEEP_ALIVE_EVENT = b'event: keepalive\ndata: {"type":"keepalive"}\n\n'
_NO_INPUT = "input is required: a string, or a list of items."


class ResponsesDownstream(OpenAIRefusals):
    """The client's side of `POST /v1/responses`."""

    def stream_type(self, request: Request) -> str:
        return "text/event-stream; charset=utf-8"

    def decode(self, body: bytes, ask: Ask) -> Request:
        fields = read_fields(body)
        refuse_other_spellings(fields, _PRICED)
        model = model_of(fields)
        _check_input(fields)
        if flag_of(fields, "background"):
            # An answer that goes on without its reader could not be charged.
            raise InvalidRequest(
                "background is not offered here: leave it out, and send stream: true for answers "
                "that take long.",
                param="background",
            )
        tool_calls = count_of(fields, "max_tool_calls", TOKENS_MAX)
        metadata = metadata_of(fields)
        return Request(
            fields=fields,
            body_bytes=len(body),
            model=model,
            protocol="openai-responses",
            stream=flag_of(fields, "stream"),
            keep_alive=_keep_alive(ask),
            include_usage=True,
            output_cap=count_of(fields, "max_output_tokens", TOKENS_MAX),
            service_tier=text_of(fields, "service_tier") or "",
            scan=scanned(fields, tool_calls),
            user_id=metadata.user_id
            or text_of(fields, "safety_identifier")
            or text_of(fields, "user")
            or "",
            conversation_id=metadata.conversation_id
            or ask.headers.get(b"session-id", b"").decode("latin-1")
            or text_of(fields, "prompt_cache_key")
            or "",
            echo={name: fields.get(name, absent) for name, absent in _KEPT_HERE.items()},
        )

    def prompt(self, request: Request, envelopes: Envelopes) -> Prompt:
        return read_prompt(request.fields, envelopes)

    def writer(
        self, request: Request, prompt: Prompt, envelopes: Envelopes, made: Made
    ) -> ResponsesWriter:
        return ResponsesWriter(request, envelopes, made)

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return failed_at_once(error, request_id)


class ResponsesCount(ResponsesDownstream):
    """The client's side of `POST /v1/responses/input_tokens`."""

    def counted(self, tokens: int) -> bytes:
        return b'{"object":"response.input_tokens","input_tokens":%d}' % tokens


def _keep_alive(ask: Ask) -> bytes:
    """A comment; Codex times streams by their events, and passes over those it does not know."""
    agent = ask.headers.get(b"user-agent", b"") + ask.headers.get(b"originator", b"")
    return _KEEP_ALIVE_EVENT if b"codex" in agent.lower() else sse.KEEP_ALIVE


def _check_input(fields: Fields) -> None:
    """Text or items. Each item is looked at where it is read, not here."""
    if not is_given(fields, "input"):
        if not any(is_given(fields, name) for name in _OTHER_INPUT):
            raise InvalidRequest(_NO_INPUT, param="input")
        return
    if bytes(memoryview(fields["input"])[:1]) not in (b'"', b"["):
        raise InvalidRequest(_NO_INPUT, param="input")

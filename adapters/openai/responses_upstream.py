"""The Responses API as a client: the request a provider gets, and how its answer is read.

Between two ends of this protocol the body goes as it came, apart from the model's name, the caps
that the money was reserved for, and reasoning that this provider could not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import msgspec

from adapters.canonical import Prompt
from adapters.codec import CountCall, Encoded, Request, Target, UpstreamFailure
from adapters.envelope import Envelopes, is_sealed
from adapters.openai.failure import read_failure
from adapters.openai.responses_encode import Encoder, encode_json
from adapters.openai.responses_passing import ResponsesManner, shown_response
from adapters.openai.responses_reader import ResponsesReader
from adapters.openai.responses_scan import TOOL_CALLS_DEFAULT
from adapters.openai.responses_state import final_response
from adapters.passing import PassingCall
from adapters.pieces import encoded
from adapters.raw import UNREADABLE

_PATH = "/responses"
_COUNT_PATH = "/responses/input_tokens"
_FALSE = msgspec.Raw(b"false")
# What the token counter knows of a request.
_COUNTED = frozenset(
    {
        "conversation",
        "input",
        "instructions",
        "model",
        "parallel_tool_calls",
        "personality",
        "previous_response_id",
        "reasoning",
        "text",
        "tool_choice",
        "tools",
        "truncation",
    }
)


class _Item(msgspec.Struct, gc=False):
    type: object = None
    content: list[object] | None = None
    encrypted_content: object = None


class _Count(msgspec.Struct, gc=False):
    input_tokens: int


_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_item = msgspec.json.Decoder(_Item).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_count = msgspec.json.Decoder(_Count).decode
_encode = msgspec.json.encode


class ResponsesUpstream:
    """The provider's side. Implements `codec.UpstreamCodec`."""

    def encode(self, prompt: Prompt, target: Target) -> Encoded:
        encoder = Encoder(prompt, target)
        body = encode_json(encoder.body())
        return Encoded(
            path=_PATH,
            body=body,
            reader=ResponsesReader,
            dropped=encoder.losses.names,
            stops_itself=False,
            names=encoder.names,
        )

    def passing(self, request: Request, target: Target, envelopes: Envelopes) -> PassingCall:
        fields = dict(request.fields)
        fields["model"] = msgspec.Raw(_encode(target.model))
        # Providers keep for their own client, and all of ours are one to them.
        fields["store"] = _FALSE
        if target.output_cap is not None:
            fields["max_output_tokens"] = msgspec.Raw(b"%d" % target.output_cap)
        if request.scan.passes > 1 and not _is_set(fields, "max_tool_calls"):
            # More calls than were reserved for would be read, and billed, again and again.
            fields["max_tool_calls"] = msgspec.Raw(b"%d" % TOOL_CALLS_DEFAULT)
        if request.scan.signed:
            fields["input"] = _readable(fields["input"], target, envelopes)
        return PassingCall(
            _PATH,
            encoded(fields, request.body_bytes),
            reader=partial(ResponsesReader, passing=True),
            manner=partial(ResponsesManner, request),
            shown=lambda body: shown_response(final_response(body) or body, request),
            failure=read_failure,
            pieces=request.pieces,
        )

    def counting(self, prompt: Prompt, target: Target) -> CountCall | None:
        return CountCall(_COUNT_PATH, encode_json(Encoder(prompt, target).input_body()), _count)

    def counting_passing(self, request: Request, target: Target) -> CountCall | None:
        fields = {name: raw for name, raw in request.fields.items() if name in _COUNTED}
        fields["model"] = msgspec.Raw(_encode(target.model))
        return CountCall(_COUNT_PATH, _encode(fields), _count)

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        return read_failure(status, headers, body)


def _readable(items: msgspec.Raw, target: Target, envelopes: Envelopes) -> msgspec.Raw:
    """The input without reasoning that the provider cannot read.

    That is what another provider signed, and what has no more than an id: the provider would look
    for it in vain, and refuse the request.
    """
    try:
        kept = [
            shown
            for item in _decode_items(items)
            if (shown := _shown(item, target, envelopes)) is not None
        ]
    except UNREADABLE:
        return items
    return msgspec.Raw(_encode(kept))


def _shown(raw: msgspec.Raw, target: Target, envelopes: Envelopes) -> msgspec.Raw | None:
    """An item as the provider gets it; None where it is left out."""
    try:
        item = _decode_item(raw)
    except UNREADABLE:
        return raw
    value = item.encrypted_content
    if item.type != "reasoning":
        return raw
    if not isinstance(value, str) or not value:
        return raw if item.content else None
    if not is_sealed(value):
        return raw
    blob = envelopes.open(value)
    if blob is None or blob.kind != "reasoning" or not target.accepts(blob):
        return None
    members = _decode_members(raw)
    members["encrypted_content"] = msgspec.Raw(_encode(blob.value))
    return msgspec.Raw(_encode(members))


def _is_set(fields: dict[str, msgspec.Raw], name: str) -> bool:
    return bytes(fields.get(name, b"null")) != b"null"


def _count(body: bytes) -> int | None:
    try:
        count = _decode_count(body).input_tokens
    except UNREADABLE:
        return None
    return count if count >= 0 else None

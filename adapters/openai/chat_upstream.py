"""Chat Completions as a client: the request a provider gets, and what its answers mean.

Same protocol on both sides: every member and every value goes on as the client sent it, in its
order, apart from the model's name, the output cap (the tokens that are reserved are the tokens
that are allowed) and the wish for usage, without which a stream cannot be billed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import msgspec

from adapters.canonical import Prompt
from adapters.codec import CountCall, Encoded, Request, Target, UpstreamFailure
from adapters.envelope import MARKS, Envelopes
from adapters.openai.body import Fields, flag_of
from adapters.openai.chat_encode import PATH, encoded
from adapters.openai.chat_relay import ChatPlainRelay, ChatStreamRelay
from adapters.openai.chat_traits import cap_field
from adapters.openai.failure import read_failure
from adapters.pieces import Body
from adapters.pieces import encoded as body_of

_MARK = MARKS[0]

_CAPS = ("max_completion_tokens", "max_tokens")
_OTHER_CAP = {_CAPS[0]: _CAPS[1], _CAPS[1]: _CAPS[0]}
_NULL = b"null"
_TRUE = msgspec.Raw(b"true")
_decode_messages = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode
_encode = msgspec.json.encode


class ChatUpstream:
    """The provider's side of `POST …/chat/completions`."""

    def encode(self, prompt: Prompt, target: Target) -> Encoded:
        return encoded(prompt, target)

    def passing(self, request: Request, target: Target, envelopes: Envelopes) -> ChatCall:
        return ChatCall(_passed(request, target), request)

    def counting(self, prompt: Prompt, target: Target) -> CountCall | None:
        return None

    def counting_passing(self, request: Request, target: Target) -> CountCall | None:
        return None

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        return read_failure(status, headers, body)


class ChatCall(msgspec.Struct, frozen=True):
    """A request as it came, at a provider of its own protocol. Implements `codec.Call`."""

    body: Body
    request: Request
    path: str = PATH
    headers: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        return read_failure(status, headers, body)

    def stream(self, *, limited: bool = False) -> ChatStreamRelay:
        request = self.request
        return ChatStreamRelay(
            request.model, request.include_usage, request.pieces, limited=limited
        )

    def plain(self, body: bytes) -> ChatPlainRelay:
        return ChatPlainRelay(self.request.model, body, self.request.pieces)


def _passed(request: Request, target: Target) -> Body:
    fields = dict(request.fields)
    fields["model"] = _written(target.model)
    if target.output_cap is not None:
        _write_cap(fields, cap_field(target), target.output_cap)
    if request.stream:
        fields["stream_options"] = _with_usage(fields.get("stream_options"))
    if "metadata" in fields and not flag_of(fields, "store"):
        del fields["metadata"]  # OpenAI takes it only with `store`; what we need was read
    if request.scan.signed:
        fields["messages"] = without_envelopes(fields["messages"])
    return body_of(fields, request.body_bytes)


def _write_cap(fields: Fields, known: str, cap: int) -> None:
    """Allow `cap` tokens under a name that the provider obeys.

    The client's name stays, save where the provider knows only `max_tokens`: it would ignore the
    newer one and go on without a limit. A null would overrule the other name.
    """
    written = msgspec.Raw(b"%d" % cap)
    if _OTHER_CAP[known] not in fields:  # as nearly always
        fields[known] = written
        return
    names = [name for name in _CAPS if bytes(fields.get(name, _NULL)) != _NULL]
    if not names or (known == "max_tokens" and known not in names):
        names = [known]
    for name in _CAPS:
        if name in names:
            fields[name] = written
        else:
            fields.pop(name, None)


@lru_cache(maxsize=1024)
def _written(model: str) -> msgspec.Raw:
    """The name of a provider's model: there are as many as are configured."""
    return msgspec.Raw(_encode(model))


def _with_usage(options: msgspec.Raw | None) -> msgspec.Raw:
    """The client's stream options with usage asked for."""
    members = (_decode_members(options) if options is not None else None) or {}
    members["include_usage"] = _TRUE
    return msgspec.Raw(_encode(members))


def without_envelopes(messages: msgspec.Raw) -> msgspec.Raw:
    """Messages without signatures that were sealed here: no provider of this protocol knows them.

    They come back where a conversation changes from another provider to this one.
    """
    try:
        return msgspec.Raw(_encode([_opened(each) for each in _decode_messages(messages)]))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return messages  # it is not what it should be: the provider will say so


def _opened(message: Fields) -> Fields:
    """One message without its envelopes; text that only looks like one stays."""
    if (details := message.get("reasoning_details")) is not None and _holds_mark(details):
        kept = [each for each in _decode_list(details) if not _holds_mark(each)]
        message["reasoning_details"] = msgspec.Raw(_encode(kept))
        if not kept:
            del message["reasoning_details"]
    if (calls := message.get("tool_calls")) is not None and _holds_mark(calls):
        message["tool_calls"] = msgspec.Raw(
            _encode([_opened_call(call) for call in _decode_messages(calls)])
        )
    return message


def _opened_call(call: Fields) -> Fields:
    if (extra := call.get("extra_content")) is not None and _holds_mark(extra):
        members = _decode_members(extra) or {}
        kept = {name: value for name, value in members.items() if not _holds_mark(value)}
        call["extra_content"] = msgspec.Raw(_encode(kept))
        if not kept:
            del call["extra_content"]
    return call


def _holds_mark(raw: msgspec.Raw) -> bool:
    return _MARK in bytes(raw)

"""Chat Completions as a client: the request a provider gets, and what its answers mean.

Same protocol on both sides: every member and every value goes on as the client sent it, in its
order, apart from the model's name, the output cap (the tokens that are reserved are the tokens
that are allowed) and the wish for usage, without which a stream cannot be billed.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from adapters.catalogue import Provider
from adapters.codec import Request, UpstreamFailure
from adapters.openai.body import flag_of
from adapters.openai.chat_relay import ChatPlainRelay, ChatStreamRelay
from adapters.openai.failure import read_failure

_CAPS = ("max_completion_tokens", "max_tokens")
_NULL = b"null"
_TRUE = msgspec.Raw(b"true")
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode
_encode = msgspec.json.encode


class ChatUpstream:
    """The provider's side of `POST …/chat/completions`."""

    path = "/chat/completions"

    def encode(
        self, request: Request, provider: Provider, model: str, output_cap: int | None
    ) -> bytes:
        fields = dict(request.fields)
        fields["model"] = msgspec.Raw(_encode(model))
        if output_cap is not None:
            _write_cap(fields, provider.output_cap_field, output_cap)
        if request.stream:
            fields["stream_options"] = _with_usage(fields.get("stream_options"))
        if "metadata" in fields and not flag_of(fields, "store"):
            del fields["metadata"]  # OpenAI takes it only with `store`; what we need was read
        return _encode(fields)

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        return read_failure(status, headers, body)

    def stream(self, request: Request) -> ChatStreamRelay:
        return ChatStreamRelay(request.model, request.include_usage, request.pieces)

    def plain(self, request: Request, body: bytes) -> ChatPlainRelay:
        return ChatPlainRelay(request.model, body, request.pieces)


def _write_cap(fields: dict[str, msgspec.Raw], known: str, cap: int) -> None:
    """Allow `cap` tokens under a name that the provider obeys.

    The client's name stays, save where the provider knows only `max_tokens`: it would ignore the
    newer one and go on without a limit. A null would overrule the other name.
    """
    names = [name for name in _CAPS if bytes(fields.get(name, _NULL)) != _NULL]
    if not names or (known == "max_tokens" and known not in names):
        names = [known]
    for name in _CAPS:
        if name in names:
            fields[name] = msgspec.Raw(b"%d" % cap)
        else:
            fields.pop(name, None)


def _with_usage(options: msgspec.Raw | None) -> msgspec.Raw:
    """The client's stream options with usage asked for."""
    members = (_decode_members(options) if options is not None else None) or {}
    members["include_usage"] = _TRUE
    return msgspec.Raw(_encode(members))

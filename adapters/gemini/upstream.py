"""Gemini as a client: the request that Google gets, and what its answers mean."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import msgspec

from adapters.canonical import Prompt
from adapters.codec import CountCall, Encoded, Request, Target, UpstreamFailure
from adapters.envelope import Envelopes
from adapters.gemini import fields
from adapters.gemini.encode import STOPS_MAX, Body, encode_body
from adapters.gemini.failure import read_failure
from adapters.gemini.passing import passing_call
from adapters.gemini.reader import GeminiReader
from adapters.losses import Losses
from adapters.passing import PassingCall
from adapters.raw import UNREADABLE

_VERSION = "v1beta"
_COLLECTIONS = ("models/", "tunedModels/")
_WRAPPED = "generateContentRequest"
_encode = msgspec.json.encode


class _Count(msgspec.Struct, rename="camel"):
    total_tokens: int | None = None


_decode_count = msgspec.json.Decoder(_Count).decode


class GeminiUpstream:
    """The provider's side of generateContent. Implements `codec.UpstreamCodec`."""

    def encode(self, prompt: Prompt, target: Target) -> Encoded:
        losses = Losses(target.provider.name)
        body, names = encode_body(prompt, target, losses)
        return Encoded(
            path=_generate_path(target),
            body=_encode(body),
            reader=GeminiReader,
            dropped=losses.names,
            # Google takes a few; the rest is looked for here.
            stops_itself=len([stop for stop in prompt.stop if stop]) <= STOPS_MAX,
            names=names,
        )

    def passing(self, request: Request, target: Target, envelopes: Envelopes) -> PassingCall:
        return passing_call(request, target, envelopes, _generate_path(target))

    def counting(self, prompt: Prompt, target: Target) -> CountCall:
        body, _ = encode_body(prompt, target, Losses(target.provider.name))
        return _count_call(target, body)

    def counting_passing(self, request: Request, target: Target) -> CountCall:
        members = request.fields
        key = fields.spelled(members, _WRAPPED)
        inner = fields.raw_members(members[key], key) if key in members else members
        return _count_call(target, dict(inner))

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        return read_failure(status, headers, body)


def _generate_path(target: Target) -> str:
    verb = ":streamGenerateContent?alt=sse" if target.stream else ":generateContent"
    return path_of(target, verb)


def path_of(target: Target, verb: str) -> str:
    """Where something is done to the model; `verb` begins with a colon."""
    return f"/{_VERSION}/{quote(resource_of(target), safe='/')}{verb}"


def resource_of(target: Target) -> str:
    """The model as Google names it, with its collection."""
    return target.model if target.model.startswith(_COLLECTIONS) else f"models/{target.model}"


def _count_call(target: Target, request: Body | dict[str, msgspec.Raw]) -> CountCall:
    """Google counts a bare conversation or a whole request; only the latter with its tools."""
    request.pop("model", None)
    body = {_WRAPPED: {"model": resource_of(target), **request}}
    return CountCall(path_of(target, ":countTokens"), _encode(body), _counted)


def _counted(body: bytes) -> int | None:
    try:
        return _decode_count(body).total_tokens
    except UNREADABLE:
        return None

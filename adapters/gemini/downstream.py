"""Gemini as a server: what a client asks, read strictly where it decides route or price.

The model stands in the path, and so does whether the answer is streamed. The rest of the body
passes as it is to a Gemini provider; `prompt` reads all of it for any other.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qs

import msgspec

from adapters.canonical import Prompt
from adapters.codec import Ask, Made, Request, Writer
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest
from adapters.gemini import fields
from adapters.gemini.prompt import read_prompt
from adapters.gemini.refusal import GeminiRefusals
from adapters.gemini.scan import scan
from adapters.gemini.wire import canonical_tier
from adapters.gemini.writer import GeminiWriter
from adapters.openai.body import Fields, read_fields, require_items

CHOICES_MAX = 8
TOKENS_MAX = 2**31 - 1

_EVENTS = "text/event-stream; charset=utf-8"
_ARRAY = "application/json; charset=utf-8"
_WRAPPED = "generateContentRequest"  # of countTokens: a whole request to be counted
_PREFIX = re.compile(r"(?:publishers/[^/]+/)?models/")
# Whatever decides how much is answered, and at which price.
_PRICED = {
    name.lower(): name
    for name in (
        *("contents", "systemInstruction", "tools", "toolConfig", "generationConfig"),
        *("cachedContent", "serviceTier", "maxOutputTokens", "candidateCount", _WRAPPED),
    )
}


class GenerateDownstream(GeminiRefusals):
    """The client's side of `POST …/models/{model}:generateContent`."""

    _streams = False

    def stream_type(self, request: Request) -> str:
        return _ARRAY if request.array else _EVENTS

    def decode(self, body: bytes, ask: Ask) -> Request:
        raw = read_fields(body)
        return self._request(raw, _priced(raw), body, ask)

    def prompt(self, request: Request, envelopes: Envelopes) -> Prompt:
        return read_prompt(fields.named(request.fields), envelopes)

    def writer(self, request: Request, prompt: Prompt, envelopes: Envelopes, made: Made) -> Writer:
        return GeminiWriter(request, prompt, envelopes, made)

    def _request(self, raw: Fields, members: Fields, body: bytes, ask: Ask) -> Request:
        """The facts of `members`, which are those of a request of this protocol."""
        require_items(members, "contents", b"{", "a list of content objects")
        config: Fields = {}
        if "generationConfig" in members:
            config = _priced(
                fields.raw_members(members["generationConfig"], "generationConfig"),
                "generationConfig",
            )
        return Request(
            fields=raw,
            body_bytes=len(body),
            model=model_in(ask.id),
            protocol="gemini",
            stream=self._streams,
            include_usage=True,
            array=self._streams and "sse" not in parse_qs(ask.query).get("alt", ()),
            output_cap=fields.count(config, "maxOutputTokens", "generationConfig", TOKENS_MAX),
            choices=fields.count(config, "candidateCount", "generationConfig", CHOICES_MAX) or 1,
            service_tier=canonical_tier(fields.text(members, "serviceTier")),
            scan=scan(members),
        )


class StreamGenerateDownstream(GenerateDownstream):
    """The client's side of `POST …/models/{model}:streamGenerateContent`."""

    _streams = True


class CountDownstream(GenerateDownstream):
    """The client's side of `POST …/models/{model}:countTokens`. A `codec.CountingCodec`.

    What is to be counted stands in the body itself or, as a whole request, in a member of it.
    """

    def decode(self, body: bytes, ask: Ask) -> Request:
        raw = read_fields(body)
        return self._request(raw, _unwrapped(_priced(raw)), body, ask)

    def prompt(self, request: Request, envelopes: Envelopes) -> Prompt:
        return read_prompt(_unwrapped(fields.named(request.fields)), envelopes)

    def counted(self, tokens: int) -> bytes:
        return msgspec.json.encode({"totalTokens": tokens})


def model_in(id: str) -> str:  # noqa: A002 # as the head calls it
    """The model that a path names, without the collection it stands in."""
    model = id[prefix.end() :] if (prefix := _PREFIX.match(id)) else id
    if not model:
        raise InvalidRequest("The path names no model.", param="model")
    return model


def _unwrapped(members: Fields) -> Fields:
    if _WRAPPED not in members:
        return members
    if "contents" in members:
        raise InvalidRequest(f"Send contents or {_WRAPPED}, not both.", param=_WRAPPED)
    return _priced(fields.raw_members(members[_WRAPPED], _WRAPPED), _WRAPPED)


def _priced(raw: Fields, where: str = "") -> Fields:
    """Members by name, none of which another parser could take for one that is priced.

    Parsers without regard to case would read `GenerationConfig` as a second `generationConfig`.
    """
    members = fields.named(raw, where)
    for name in members:
        known = _PRICED.get(name.lower(), name)
        if known != name:
            param = fields.path(where, name)
            raise InvalidRequest(f"Write {param!r} as {known!r}.", param=param)
    return members

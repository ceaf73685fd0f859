"""The Messages API as a server: what a client asks, read strictly.

To decode, only what decides the route, the reservation or the shape of the answer is read; a
parameter that only the model understands is for the provider to judge. Refused is what would make
the price ambiguous, and a missing cap, which the protocol demands. The whole is read by `prompt`,
where it has to be translated.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from adapters.anthropic.prompt import read_prompt
from adapters.anthropic.refusal import AnthropicRefusals
from adapters.anthropic.scan import scanned
from adapters.anthropic.traits import OLD_VERSION
from adapters.anthropic.wire import PING
from adapters.anthropic.writer import MessagesWriter
from adapters.canonical import Prompt
from adapters.codec import Ask, Made, Request
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest
from adapters.openai.body import (
    Fields,
    count_of,
    flag_of,
    model_of,
    read_fields,
    refuse_other_models,
    refuse_other_spellings,
    require_items,
    text_of,
)

TOKENS_MAX = 2**31 - 1

# Whatever decides which model answers, how much, and at which price.
_PRICED = frozenset(
    {"model", "messages", "system", "max_tokens", "stream", "tools", "service_tier", "speed"}
    | {"cache_control", "container", "thread", "mcp_servers", "fallbacks", "compaction"}
    | {"context_management", "thinking", "output_config"}
)
_TIERS = {"standard_only": "default"}
_FAST = "fast"

_VERSION = "anthropic-version"
_FORWARDED = "anthropic-"
_NOT_FORWARDED = frozenset(
    {
        "anthropic-version",
        "anthropic-api-key",
        "anthropic-auth-token",
        "anthropic-dangerous-direct-browser-access",
    }
)
_BETA = b"anthropic-beta"
_SESSION = b"x-claude-code-session-id"


class _Metadata(msgspec.Struct):
    user_id: object = None


class _ClaudeCodeUser(msgspec.Struct):
    """What Claude Code writes into `metadata.user_id`, as JSON."""

    account_uuid: str = ""
    device_id: str = ""
    session_id: str = ""


_decode_metadata = msgspec.json.Decoder(_Metadata | None).decode
_decode_user = msgspec.json.Decoder(_ClaudeCodeUser).decode


class MessagesDownstream(AnthropicRefusals):
    """The client's side of `POST /v1/messages`."""

    def stream_type(self, request: Request) -> str:
        return "text/event-stream; charset=utf-8"

    def decode(self, body: bytes, ask: Ask) -> Request:
        fields = read_fields(body)
        return _request(fields, len(body), ask, _output_cap(fields))

    def prompt(self, request: Request, envelopes: Envelopes) -> Prompt:
        return read_prompt(request, envelopes)

    def writer(
        self, request: Request, prompt: Prompt, envelopes: Envelopes, made: Made
    ) -> MessagesWriter:
        return MessagesWriter(request, envelopes, made)


class MessagesCount(MessagesDownstream):
    """The client's side of `POST /v1/messages/count_tokens`."""

    def decode(self, body: bytes, ask: Ask) -> Request:
        return _request(read_fields(body), len(body), ask, None)

    def counted(self, tokens: int) -> bytes:
        return b'{"input_tokens":%d}' % tokens


def _request(fields: Fields, body_bytes: int, ask: Ask, output_cap: int | None) -> Request:
    refuse_other_spellings(fields, _PRICED)
    model = model_of(fields)
    require_items(fields, "messages", b"{", "a list of message objects")
    refuse_other_models(fields, "fallbacks")
    user_id, session_id = _who(fields)
    return Request(
        fields=fields,
        body_bytes=body_bytes,
        model=model,
        protocol="anthropic",
        stream=flag_of(fields, "stream"),
        keep_alive=PING,
        include_usage=True,
        output_cap=output_cap,
        service_tier=_service_tier(fields),
        scan=scanned(fields, ask.headers.get(_BETA, b"")),
        user_id=user_id,
        conversation_id=ask.headers.get(_SESSION, b"").decode("latin-1") or session_id,
        forward=_forwarded(ask.headers),
    )


def _output_cap(fields: Fields) -> int:
    """The client's cap; of a request that only warms the cache (0) the least that can be held."""
    if bytes(fields.get("max_tokens", b"")) == b"0":
        return 1
    cap = count_of(fields, "max_tokens", TOKENS_MAX)
    if cap is None:
        raise InvalidRequest("max_tokens is required.", param="max_tokens")
    return cap


def _service_tier(fields: Fields) -> str:
    if text_of(fields, "speed") == _FAST:
        return _FAST
    tier = text_of(fields, "service_tier") or ""
    return _TIERS.get(tier, tier)


def _who(fields: Fields) -> tuple[str, str]:
    """User and session of `metadata.user_id`: Claude Code has both in it, and more, as JSON."""
    if "metadata" not in fields:
        return "", ""
    try:
        metadata = _decode_metadata(fields["metadata"]) or _Metadata()
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise InvalidRequest("metadata must be an object.", param="metadata") from None
    user_id = metadata.user_id if isinstance(metadata.user_id, str) else ""
    if not user_id.startswith("{"):
        return user_id, ""
    try:
        user = _decode_user(user_id.encode())
    except (msgspec.MsgspecError, UnicodeError):
        return user_id, ""
    return user.account_uuid or user.device_id, user.session_id


def _forwarded(headers: Mapping[bytes, bytes]) -> tuple[tuple[str, str], ...]:
    """What an Anthropic provider has to know beside the body: the version, betas, and more that
    SDKs put there; never a credential."""
    version = headers.get(_VERSION.encode(), b"").decode("latin-1") or OLD_VERSION
    named = ((name.decode("latin-1"), value) for name, value in headers.items())
    others = (
        (name, value.decode("latin-1"))
        for name, value in named
        if name.startswith(_FORWARDED) and name not in _NOT_FORWARDED
    )
    return (_VERSION, version), *others

"""The Messages API as a client: the request a provider gets, and what its answers mean.

Where the client speaks this protocol, too, its body goes on member by member, with its own version
and betas: only the model's name and the cap are ours, and reasoning that was signed elsewhere is
taken out. Where that leaves a turn of calls without the reasoning that a budget demands, thinking
is given up for this request instead of the conversation.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import msgspec

from adapters.anthropic.encode import build
from adapters.anthropic.failure import read_failure
from adapters.anthropic.passing import MessagesManner, renamed
from adapters.anthropic.reader import MessagesReader
from adapters.anthropic.thinking import BUDGET_MIN, fitting_budget
from adapters.canonical import Prompt
from adapters.codec import CountCall, Encoded, Request, Scan, Target, UpstreamFailure
from adapters.envelope import Envelopes, is_sealed
from adapters.losses import Losses
from adapters.openai.body import Fields
from adapters.passing import PassingCall
from adapters.pieces import encoded
from adapters.raw import UNREADABLE

PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"

_VERSION = "anthropic-version"
# What the token counter does not take.
_NOT_COUNTED = frozenset(
    {"max_tokens", "stream", "temperature", "top_p", "top_k", "stop_sequences", "metadata"}
    | {"service_tier", "container", "inference_geo", "diagnostics", "fallbacks", "tags"}
)
_THINKING = ("thinking", "redacted_thinking")


class _Block(msgspec.Struct):
    type: object = None
    signature: object = None
    data: object = None


class _Thinking(msgspec.Struct):
    type: object = None
    budget_tokens: object = None


class _Count(msgspec.Struct):
    input_tokens: int


_decode_members = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_blocks = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_block = msgspec.json.Decoder(_Block).decode
_decode_thinking = msgspec.json.Decoder(_Thinking | None).decode
_decode_count = msgspec.json.Decoder(_Count).decode
_decode_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.encode


class MessagesUpstream:
    """Providers that speak `POST /v1/messages`."""

    def encode(self, prompt: Prompt, target: Target) -> Encoded:
        losses = Losses(target.provider.name)
        built = build(prompt, target, losses)
        return Encoded(
            PATH,
            _encode(built.members),
            MessagesReader,
            ((_VERSION, built.version),),
            losses.names,
            names=built.names,
        )

    def passing(self, request: Request, target: Target, envelopes: Envelopes) -> PassingCall:
        fields = dict(request.fields)
        fields["model"] = msgspec.Raw(_encode(target.model))
        only_warms = bytes(fields.get("max_tokens", b"")) == b"0"
        if target.output_cap is not None and not only_warms:
            fields["max_tokens"] = msgspec.Raw(b"%d" % target.output_cap)
        dropped = _take_out_what_was_signed_elsewhere(fields, request.scan)
        dropped += _fit_budget(fields, request, target.output_cap)
        return PassingCall(
            PATH,
            encoded(fields, request.body_bytes),
            reader=MessagesReader,
            manner=partial(MessagesManner, request.model),
            shown=lambda body: renamed(body, request.model),
            failure=read_failure,
            pieces=request.pieces,
            headers=request.forward,
            dropped=dropped,
            silent=only_warms,
        )

    def counting(self, prompt: Prompt, target: Target) -> CountCall:
        built = build(prompt, target, Losses(target.provider.name))
        members = {name: value for name, value in built.members.items() if name not in _NOT_COUNTED}
        return CountCall(COUNT_PATH, _encode(members), _read_count, ((_VERSION, built.version),))

    def counting_passing(self, request: Request, target: Target) -> CountCall:
        fields = {name: raw for name, raw in request.fields.items() if name not in _NOT_COUNTED}
        fields["model"] = msgspec.Raw(_encode(target.model))
        _take_out_what_was_signed_elsewhere(fields, request.scan)
        return CountCall(COUNT_PATH, _encode(fields), _read_count, request.forward)

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        return read_failure(status, headers, body)


def _read_count(body: bytes) -> int | None:
    try:
        count = _decode_count(body).input_tokens
    except UNREADABLE:
        return None
    return count if count >= 0 else None


# -- reasoning of others --------------------------------------------------------------------------


def _take_out_what_was_signed_elsewhere(fields: Fields, scan: Scan) -> tuple[str, ...]:
    """Change the messages of `fields`, and the wish to think where it cannot be met any more;
    returns what is to be reported."""
    raw = fields["messages"]
    by_budget = _budget_of(fields) is not None
    if not scan.signed and not by_budget:
        return ()
    try:
        messages = _decode_members(raw)
        if scan.signed:
            messages = [_without_foreign_thinking(message) for message in messages]
            fields["messages"] = msgspec.Raw(_encode(messages))
        if by_budget and _has_lost_reasoning(messages):
            _give_up_thinking(fields)
            return ("degraded:thinking",)
    except (*UNREADABLE, KeyError):
        pass  # it is not what it should be: the provider will say so
    return ()


def _fit_budget(fields: Fields, request: Request, cap: int | None) -> tuple[str, ...]:
    """A budget goes under a cap that is lower than the client's; returns what is to be reported."""
    if cap is None or request.output_cap is None or cap >= request.output_cap:
        return ()
    budget = _budget_of(fields)
    if budget is None or not cap <= budget < request.output_cap:
        return ()
    if cap <= BUDGET_MIN:
        _give_up_thinking(fields)
    else:
        fields["thinking"] = msgspec.Raw(
            b'{"type":"enabled","budget_tokens":%d}' % fitting_budget(budget, cap)
        )
    return ("clamped:thinking",)


def _give_up_thinking(fields: Fields) -> None:
    del fields["thinking"]
    fields.pop("context_management", None)  # what is in it presupposes thinking


def _budget_of(fields: Fields) -> int | None:
    """How many tokens the model may think by, None where it is not told in tokens."""
    try:
        thinking = _decode_thinking(fields["thinking"]) if "thinking" in fields else None
    except UNREADABLE:
        return None
    if thinking is None or thinking.type != "enabled":
        return None
    return thinking.budget_tokens if isinstance(thinking.budget_tokens, int) else None


def _without_foreign_thinking(message: Fields) -> Fields:
    content = message["content"]
    if bytes(memoryview(content)[:1]) != b"[":
        return message
    blocks = _decode_blocks(content)
    kept = [block for block in blocks if not _is_foreign(block)]
    if len(kept) == len(blocks):
        return message
    return {**message, "content": msgspec.Raw(_encode(kept))}


def _is_foreign(raw: msgspec.Raw) -> bool:
    """Whether a block is reasoning that this provider did not sign."""
    block = _decode_block(raw)
    if block.type not in _THINKING:
        return False
    signature = block.signature if block.type == "thinking" else block.data
    return not isinstance(signature, str) or not signature or is_sealed(signature)


def _has_lost_reasoning(messages: list[Fields]) -> bool:
    """Whether the last message has results of calls that no reasoning leads to any more."""
    if len(messages) < 2 or _decode_text(messages[-2]["role"]) != "assistant":
        return False
    results, calls = _types(messages[-1]["content"]), _types(messages[-2]["content"])
    return "tool_result" in results and "tool_use" in calls and calls[0] not in _THINKING


def _types(content: msgspec.Raw) -> list[object]:
    if bytes(memoryview(content)[:1]) != b"[":
        return []
    return [_decode_block(block).type for block in _decode_blocks(content)]

"""What is read of Google's answers, and how their words translate.

Leaves that nothing depends on are `object`: servers in front of Google vary, and an answer that can
be delivered should be. Unknown members are ignored here and pass on the same-protocol path.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from adapters.canonical import FinishReason, Usage
from adapters.raw import UNREADABLE

ABSENT = msgspec.Raw()


class Call(msgspec.Struct, gc=False):
    id: object = None
    name: object = None
    args: msgspec.Raw = ABSENT


class Part(msgspec.Struct, rename="camel", gc=False):
    """A part of an answer. The members from `inline_data` on are only looked for, not into."""

    text: str | None = None
    thought: object = None
    thought_signature: object = None
    function_call: Call | None = None
    inline_data: msgspec.Raw = ABSENT
    file_data: msgspec.Raw = ABSENT
    executable_code: msgspec.Raw = ABSENT
    code_execution_result: msgspec.Raw = ABSENT
    tool_call: msgspec.Raw = ABSENT
    tool_response: msgspec.Raw = ABSENT

    @property
    def is_opaque(self) -> bool:
        """Whether it holds something that only Google's own protocol has a place for."""
        return any(
            (
                self.inline_data,
                self.file_data,
                self.executable_code,
                self.code_execution_result,
                self.tool_call,
                self.tool_response,
            )
        )


class Content(msgspec.Struct, gc=False):
    parts: list[Part] | None = None


class Web(msgspec.Struct):
    uri: object = None
    title: object = None


class GroundingChunk(msgspec.Struct):
    web: Web | None = None


class Grounding(msgspec.Struct, rename="camel"):
    grounding_chunks: list[GroundingChunk] | None = None
    web_search_queries: list[object] | None = None


class Citations(msgspec.Struct, rename="camel"):
    citations: list[Web] | None = None
    citation_sources: list[Web] | None = None


class TokenLogprob(msgspec.Struct, rename="camel"):
    token: str = ""
    log_probability: float = 0.0


class TopLogprobs(msgspec.Struct):
    candidates: list[TokenLogprob] | None = None


class Logprobs(msgspec.Struct, rename="camel"):
    chosen_candidates: list[TokenLogprob] | None = None
    top_candidates: list[TopLogprobs] | None = None


class Candidate(msgspec.Struct, rename="camel", gc=False):
    index: object = None
    content: Content | None = None
    finish_reason: object = None
    finish_message: object = None
    grounding_metadata: Grounding | None = None
    citation_metadata: Citations | None = None
    logprobs_result: Logprobs | None = None


class Feedback(msgspec.Struct, rename="camel"):
    block_reason: object = None
    block_reason_message: object = None


class Modality(msgspec.Struct, rename="camel"):
    modality: object = None
    token_count: object = None


class UsageMetadata(msgspec.Struct, rename="camel", gc=False):
    prompt_token_count: object = None
    cached_content_token_count: object = None
    candidates_token_count: object = None
    thoughts_token_count: object = None
    tool_use_prompt_token_count: object = None
    total_token_count: object = None
    prompt_tokens_details: list[Modality] | None = None
    candidates_tokens_details: list[Modality] | None = None
    service_tier: object = None


class Answer(msgspec.Struct, rename="camel", gc=False):
    """A whole answer, or one chunk of a streamed one: they look the same."""

    candidates: list[Candidate] | None = None
    prompt_feedback: Feedback | None = None
    usage_metadata: msgspec.Raw = ABSENT
    model_version: object = None
    response_id: object = None
    error: msgspec.Raw = ABSENT


# -- why an answer ended --------------------------------------------------------------------------

REASONS: Mapping[str, FinishReason] = {
    "STOP": "end",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
    "ESCALATION": "content_filter",
    "PUP_LIMITED_DISABLED": "content_filter",
    "MODEL_ARMOR": "content_filter",
}
# The model said something that is no answer.
MALFORMED = frozenset(
    {
        "MALFORMED_FUNCTION_CALL",
        "UNEXPECTED_TOOL_CALL",
        "TOO_MANY_TOOL_CALLS",
        "MISSING_THOUGHT_SIGNATURE",
        "MALFORMED_RESPONSE",
    }
)
# No reason worth the name: an answer where there is content, else none.
VAGUE = frozenset({"OTHER", "IMAGE_OTHER", "NO_IMAGE"})

FINISH_REASONS: Mapping[FinishReason, str] = {
    "end": "STOP",
    "stop_sequence": "STOP",
    "tool_calls": "STOP",
    "pause": "STOP",
    "length": "MAX_TOKENS",
    "context_window": "MAX_TOKENS",
    "content_filter": "SAFETY",
    "refusal": "SAFETY",
}

# -- what was consumed ----------------------------------------------------------------------------

_AUDIO = "AUDIO"
_TOKENS_MAX = 2**40  # more than any window; beyond it a figure is an error, not a count
_NO_PIECES: Mapping[str, int] = {}
_decode_usage = msgspec.json.Decoder(UsageMetadata | None).decode
# Google's word for the tier it serves unless told otherwise.
STANDARD_TIER = "standard"


def usage_in(raw: msgspec.Raw, searches: int = 0) -> Usage | None:
    """The figures of a chunk; None where it has none. Those that cannot be read are zeros, so
    that ours count, and no older ones."""
    try:
        given = _decode_usage(raw) if raw else None
    except UNREADABLE:
        return Usage()
    return None if given is None else usage_of(given, searches)


def usage_of(given: UsageMetadata, searches: int = 0) -> Usage:
    """Google's figures, inclusive: what tools found is input, thoughts are output."""
    prompt, tools = _count(given.prompt_token_count), _count(given.tool_use_prompt_token_count)
    thoughts = _count(given.thoughts_token_count)
    said = _count(given.candidates_token_count) + thoughts
    # Some answers leave one of the parts out of all but the total.
    output = max(said, _count(given.total_token_count) - prompt - tools) if said else 0
    return Usage(
        input_tokens=prompt + tools,
        cached_input_tokens=_count(given.cached_content_token_count),
        audio_input_tokens=_audio(given.prompt_tokens_details),
        output_tokens=output,
        reasoning_tokens=thoughts,
        audio_output_tokens=_audio(given.candidates_tokens_details),
        pieces={"web_search": searches} if searches else _NO_PIECES,
        service_tier=canonical_tier(given.service_tier),
    )


def canonical_tier(tier: object) -> str:
    """A service tier as prices are kept by: `default` is Google's `standard`."""
    if not isinstance(tier, str) or not tier:
        return ""
    tier = tier.lower().removeprefix("service_tier_")
    if tier == "unspecified":
        return ""
    return "default" if tier == STANDARD_TIER else tier


def usage_metadata(usage: Usage) -> dict[str, object]:
    """The same figures as Google has them, where counts are told apart instead."""
    found: dict[str, object] = {
        "promptTokenCount": usage.input_tokens,
        "candidatesTokenCount": usage.output_tokens - usage.reasoning_tokens,
        "totalTokenCount": usage.input_tokens + usage.output_tokens,
    }
    if usage.cached_input_tokens:
        found["cachedContentTokenCount"] = usage.cached_input_tokens
    if usage.reasoning_tokens:
        found["thoughtsTokenCount"] = usage.reasoning_tokens
    for name, total, audio in (
        ("promptTokensDetails", usage.input_tokens, usage.audio_input_tokens),
        ("candidatesTokensDetails", usage.output_tokens, usage.audio_output_tokens),
    ):
        if audio:
            found[name] = [
                {"modality": "TEXT", "tokenCount": total - audio},
                {"modality": _AUDIO, "tokenCount": audio},
            ]
    return found


def _audio(details: list[Modality] | None) -> int:
    if not details:
        return 0
    return sum([_count(each.token_count) for each in details if each.modality == _AUDIO])


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 < value <= _TOKENS_MAX else 0

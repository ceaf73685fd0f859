"""The one model in the middle: what every protocol is read into, and written from.

A client's request becomes a `Prompt`; a provider's answer, whole or streamed, becomes a sequence
of `Event`. With N protocols on either side that makes N + M codecs instead of N × M, and a rule
that holds here (which events may follow which, what a count includes) holds everywhere. Where
client and provider speak the same protocol, none of this is used: bytes pass.

Token counts follow one convention whatever the provider's: totals are inclusive, details are
subsets of their total. `input_tokens` counts cached, cache-written and audio input too;
`output_tokens` counts reasoning and audio output too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

# -- what was consumed ----------------------------------------------------------------------------


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer consumed, as the provider reported it or as we counted it.

    `cache_write_tokens` are those kept for minutes (5m, 30m or not said), `cache_write_1h_tokens`
    those kept for an hour or more. `pieces` holds what is not a token (`image`, `web_search`,
    `request`, `second`). `service_tier` is what the provider says it *served*, which may differ
    from what was asked.
    """

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    audio_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    audio_output_tokens: int = 0
    pieces: Mapping[str, int] = {}
    service_tier: str = ""


# -- signed reasoning -----------------------------------------------------------------------------

BlobKind = Literal["thinking", "redacted", "reasoning", "call", "text"]


class Blob(msgspec.Struct, frozen=True):
    """What only one provider can check: a thinking signature, encrypted reasoning, a thought
    signature.

    `family` is the provider's model that made it. `kind`: `thinking` and `redacted` are
    Anthropic's, `reasoning` is an OpenAI reasoning item, `call` and `text` say which of Gemini's
    parts carried the signature (`thinking` where it was the thought itself).
    """

    provider: str
    family: str
    kind: BlobKind
    value: str


# -- parts of a turn ------------------------------------------------------------------------------

Cache = Literal["", "5m", "30m", "1h", "12h"]
"""How long a prompt up to this part should stay cached; empty: no mark."""


class Text(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    cache: Cache = ""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """One of `data` (base64, with its `media_type`), `url` and `file_id` is set."""

    media_type: str = ""
    data: str = ""
    url: str = ""
    file_id: str = ""
    detail: str = ""  # auto, low, high, original
    cache: Cache = ""


class Audio(msgspec.Struct, frozen=True, kw_only=True):
    """`data` is base64; `media_type` such as `audio/wav`."""

    media_type: str
    data: str


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A file: one of `data` (base64), `text`, `url` and `file_id` is set.

    Video is a document with a `video/*` media type.
    """

    media_type: str = ""
    data: str = ""
    text: str = ""
    url: str = ""
    file_id: str = ""
    name: str = ""
    cache: Cache = ""


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """Reasoning of an earlier answer; `blob` is None where it came without a signature."""

    text: str = ""
    blob: Blob | None = None


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call the model made. `arguments` is JSON text, or the raw input of a `free` tool.

    `namespace` is the group its tool was declared in (Responses); `blob` a signature on the call
    itself (Gemini). `search`: a call of the client's own tool search.
    """

    id: str
    name: str
    arguments: str
    free: bool = False
    namespace: str = ""
    search: bool = False
    blob: Blob | None = None


class ToolResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a call. `name` is empty where the client's protocol does not repeat it."""

    call_id: str
    content: tuple[ResultPart, ...]
    name: str = ""
    error: bool = False
    cache: Cache = ""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """What the model said when it declined, as history."""

    text: str


Part = Text | Image | Audio | Document | Thinking | ToolCall | ToolResult | Refusal
ResultPart = Text | Image | Audio | Document


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One message. `system` may stand anywhere; the leading ones are the instructions.

    `name` is who spoke, where the protocol has it.
    """

    role: Literal["system", "user", "assistant"]
    parts: tuple[Part, ...]
    name: str = ""


# -- what may be called ---------------------------------------------------------------------------


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function, or a `free` tool that takes raw text.

    `schema` is the JSON Schema of the arguments as decoded JSON, None where none was given.
    `strict` None: not said. `grammar` describes a free tool's input in words, for models that
    know no grammars. `namespace` is its group. `search`: the client's own tool search.
    """

    name: str
    description: str = ""
    schema: Mapping[str, object] | None = None
    strict: bool | None = None
    free: bool = False
    grammar: Grammar | None = None
    namespace: str = ""
    search: bool = False
    cache: Cache = ""


class Grammar(msgspec.Struct, frozen=True):
    """A free tool's input: `syntax` is `lark` or `regex`."""

    syntax: str
    definition: str


class HostedTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that the provider itself runs, such as `web_search`: only its own kind knows it."""

    type: str


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """`named`: exactly the tool `names[0]`. `hosted`: a tool of the provider, by its type.

    `names` with `auto` or `any` restricts the choice to a subset.
    """

    mode: Literal["auto", "any", "none", "named", "hosted"]
    names: tuple[str, ...] = ()


# -- the request ----------------------------------------------------------------------------------

Effort = Literal["", "none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Reasoning(msgspec.Struct, frozen=True, kw_only=True):
    """How much to think. `budget` in tokens goes before `effort` where both are set.

    `adaptive`: the model decides by itself. `show`: whether the reasoning's text is wanted; None
    where the client did not say.
    """

    effort: Effort = ""
    budget: int | None = None
    adaptive: bool = False
    show: bool | None = None


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[str, float] | None = None
    logprobs: bool = False
    top_logprobs: int | None = None


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True):
    """`json`: any JSON object. `schema`: JSON of the shape of `schema`."""

    kind: Literal["text", "json", "schema"]
    schema: Mapping[str, object] | None = None
    name: str = ""
    description: str = ""
    strict: bool | None = None


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A whole request, whatever protocol it came in. What is None or empty was not said.

    `dropped` are the client's fields that no other protocol has a place for, to be reported; the
    output cap is not here: it is what was reserved, and given to the codec beside the prompt.
    """

    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    hosted_tools: tuple[HostedTool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel: bool | None = None
    format: OutputFormat | None = None
    reasoning: Reasoning | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    verbosity: str = ""
    end_user: str = ""
    cache_key: str = ""
    metadata: Mapping[str, str] = {}
    service_tier: str = ""
    choices: int = 1
    audio_output: bool = False
    web_search: bool = False  # asked for by a field of its own (Chat Completions)
    dropped: tuple[str, ...] = ()


# -- the answer -----------------------------------------------------------------------------------

BlockKind = Literal["text", "thinking", "call", "free_call", "refusal"]
FinishReason = Literal[
    "end",
    "stop_sequence",
    "tool_calls",
    "length",
    "context_window",
    "content_filter",
    "refusal",
    "pause",
]


class Start(msgspec.Struct, frozen=True, gc=False):
    """An answer begins. `usage` is what is known of it now, often nothing."""

    id: str = ""
    model: str = ""
    usage: Usage | None = None


class Open(msgspec.Struct, frozen=True, gc=False):
    """A block begins; `index` counts from 0 without gaps, and blocks never overlap.

    `id`, `name` and `namespace` are those of a call; `search`: it calls the client's own tool
    search. Ids are unique in an answer, and such as every client accepts.
    """

    index: int
    kind: BlockKind
    id: str = ""
    name: str = ""
    namespace: str = ""
    search: bool = False


class Delta(msgspec.Struct, frozen=True, gc=False):
    """More of the open block: text, or a piece of a call's arguments. Never empty."""

    index: int
    text: str


class Citation(msgspec.Struct, frozen=True, gc=False):
    url: str
    title: str = ""


class Logprob(msgspec.Struct, frozen=True):
    """One output token, and the likeliest ones in its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Meta(msgspec.Struct, frozen=True):
    """Facts about the open block: its signature (whole, of `kind`), a citation, or the logprobs
    of what came since the last ones."""

    index: int
    signature: str = ""
    kind: BlobKind = "thinking"
    citation: Citation | None = None
    logprobs: tuple[Logprob, ...] = ()


class Close(msgspec.Struct, frozen=True, gc=False):
    """The open block is complete."""

    index: int


class Used(msgspec.Struct, frozen=True, gc=False):
    """The usage up to now. The last one counts; they are never added up."""

    usage: Usage


class Finish(msgspec.Struct, frozen=True, gc=False):
    """The answer is complete. `stop_sequence` is the one that ended it, `detail` a sentence."""

    reason: FinishReason
    stop_sequence: str = ""
    detail: str = ""


Event = Start | Open | Delta | Meta | Close | Used | Finish

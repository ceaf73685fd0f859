"""A prompt as a Messages request.

The protocol is strict about order: results right behind their calls, a user first, nothing empty,
at most four cache marks. What the model at hand cannot take is in `traits`.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

from adapters import freeform
from adapters.anthropic.thinking import Obstacles, plan
from adapters.anthropic.traits import Traits, traits_of
from adapters.canonical import (
    Audio,
    Cache,
    Document,
    Image,
    OutputFormat,
    Part,
    Prompt,
    Refusal,
    Sampling,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from adapters.characters import whole
from adapters.codec import Target
from adapters.history import arguments_object, arranged, split_system, system_as_user, tools_of
from adapters.json_schema import for_anthropic, for_anthropic_format
from adapters.losses import Losses
from adapters.media import sniffed
from adapters.names import ANTHROPIC_NAMES, ToolNames

CACHE_MARKS_MAX = 4
USER_ID_CHARACTERS_MAX = 256

_CAP_DEFAULT = 16384  # only where nothing was reserved: the protocol demands a number
_ANY_USER_TEXT = "."
_JSON_INSTRUCTION = "Answer with exactly one JSON object and nothing else."
_IMAGE_TYPES = frozenset(("image/jpeg", "image/png", "image/gif", "image/webp"))
_PDF = "application/pdf"
_TTLS: Mapping[Cache, str] = {"5m": "5m", "30m": "5m", "1h": "1h", "12h": "1h"}
_TIERS = {"auto": "auto", "priority": "auto", "default": "standard_only", "flex": "standard_only"}

Block = dict[str, object]


class Built(NamedTuple):
    """A request's members, the version they are written for, and the names of its tools."""

    members: dict[str, object]
    version: str
    names: ToolNames


def build(prompt: Prompt, target: Target, losses: Losses) -> Built:
    """The whole request. Raises RequestNotExpressible."""
    traits = traits_of(target.model)
    _refuse_what_has_no_place(prompt, losses)
    system, rest = split_system(prompt.turns)
    if not traits.system_turns:
        rest = system_as_user(rest, losses)
    turns = _with_user_first(arranged(rest, losses), losses)
    tools, choice = tools_of(prompt)
    tools, choice = _chosen(tools, choice, losses)
    names = ToolNames(ANTHROPIC_NAMES, tools, turns)
    writer = _Content(target, names, losses)
    # In the order in which the provider reads them: that of cache marks.
    declared = [_tool(tool, names, writer, losses) for tool in tools]
    instructions = [writer.text(text) for text in system]
    if prompt.format is not None and prompt.format.kind == "json":
        losses.approximate("response_format")
        instructions.append({"type": "text", "text": _JSON_INSTRUCTION})
    messages = [_message(turn, writer) for turn in turns]
    messages = [message for message in messages if message["content"]]
    prefill = _ends_in_an_answer(messages, traits, losses)
    writer.thin_out_marks()
    cap = target.output_cap or _CAP_DEFAULT
    forced = choice is not None and choice.mode in ("any", "named")
    obstacles = Obstacles(forced, prefill, _lost_reasoning(messages))
    thinking, effort = planned = plan(prompt.reasoning, traits, cap, obstacles, losses)
    members: dict[str, object] = {
        "model": target.model,
        "max_tokens": cap,
        "system": _system(instructions),
        "messages": _stripped(messages) if prefill else messages,
        "tools": declared,
        "tool_choice": _tool_choice(choice, prompt.parallel, tools, names),
        "thinking": thinking,
        "output_config": _output_config(effort, prompt.format, traits, losses),
        "stop_sequences": _stops(prompt.stop, losses),
        "metadata": _metadata(prompt.end_user),
        "service_tier": _TIERS.get(prompt.service_tier),
        "stream": target.stream,
    }
    present = {name: value for name, value in members.items() if value}
    sampling = _sampling(prompt.sampling, traits, planned.thinks, losses)
    return Built({**present, **sampling}, traits.version, names)


def _refuse_what_has_no_place(prompt: Prompt, losses: Losses) -> None:
    if prompt.choices > 1:
        losses.refuse("n", "gives one answer at a time")
    if prompt.audio_output:
        losses.refuse("modalities", "does not answer with audio")
    if prompt.sampling.logit_bias:
        losses.refuse("logit_bias", "knows no biases")
    if prompt.sampling.logprobs or prompt.sampling.top_logprobs:
        losses.refuse("logprobs", "tells no probabilities")
    if prompt.tool_choice is not None and prompt.tool_choice.mode == "hosted":
        losses.refuse("tool_choice", "cannot be made to use a tool of another provider")
    for tool in prompt.hosted_tools:
        losses.drop(f"tool:{tool.type}")
    if prompt.web_search:
        losses.drop("web_search_options")


# -- conversation ---------------------------------------------------------------------------------


def _with_user_first(turns: Sequence[Turn], losses: Losses) -> Sequence[Turn]:
    if not turns or turns[0].role != "assistant":
        return turns
    losses.approximate("messages")
    return (Turn(role="user", parts=(Text(text=_ANY_USER_TEXT),)), *turns)


def _ends_in_an_answer(messages: Sequence[Block], traits: Traits, losses: Losses) -> bool:
    """Whether the model is to go on with the beginning of an answer. Raises where it does not."""
    if not messages:
        losses.refuse("messages", "wants at least one message that is not empty")
    prefill = messages[-1]["role"] == "assistant"
    if prefill and not traits.prefill:
        losses.refuse("messages", "starts answers itself: the last message may not be an answer's")
    return prefill


def _message(turn: Turn, writer: _Content) -> Block:
    blocks = [block for part in turn.parts for block in writer.blocks(part, turn.role)]
    content: object = blocks
    if len(blocks) == 1 and blocks[0].keys() == {"type", "text"}:
        content = blocks[0]["text"]
    return {"role": turn.role, "content": content}


def _lost_reasoning(messages: Sequence[Block]) -> bool:
    """Whether the model is about to go on after results of its calls, without the reasoning that
    led to them."""
    if len(messages) < 2 or messages[-1]["role"] != "user" or messages[-2]["role"] != "assistant":
        return False
    calls, results = messages[-2]["content"], messages[-1]["content"]
    if not isinstance(calls, list) or not isinstance(results, list):
        return False
    is_loop = results[0].get("type") == "tool_result"
    return is_loop and calls[0].get("type") not in ("thinking", "redacted_thinking")


def _stripped(messages: list[Block]) -> list[Block]:
    """The messages, the last of which is the beginning of an answer: it may not end in a space."""
    *others, last = messages
    content = last["content"]
    if isinstance(content, str):
        last = {**last, "content": content.rstrip()}
    elif isinstance(content, list) and content and content[-1].get("type") == "text":
        *blocks, text = content
        last = {**last, "content": [*blocks, {**text, "text": str(text["text"]).rstrip()}]}
    return [*others, last]


def _system(instructions: list[Block]) -> object:
    """One text without a mark stays text."""
    if len(instructions) == 1 and "cache_control" not in instructions[0]:
        return instructions[0]["text"]
    return instructions


class _Content:
    """Writes blocks, and remembers which of them mark the end of a prefix to be cached."""

    __slots__ = ("_losses", "_marked", "_names", "_target")

    def __init__(self, target: Target, names: ToolNames, losses: Losses) -> None:
        self._target = target
        self._names = names
        self._losses = losses
        self._marked: list[Block] = []

    def blocks(self, part: Part, role: str) -> list[Block]:
        """A part as blocks: none where it cannot be sent back."""
        if isinstance(part, Thinking):
            return self._thinking(part)
        if isinstance(part, ToolCall):
            return [self._call(part)]
        if isinstance(part, ToolResult):
            return [self._result(part)]
        if isinstance(part, Refusal):
            return [{"type": "text", "text": whole(part.text)}]
        if not isinstance(part, Text) and role != "user":
            self._losses.drop(type(part).__name__.lower())  # a model's own: it cannot be said back
            return []
        return [self._content(part)]

    def text(self, part: Text) -> Block:
        """A block of text."""
        return self.marked({"type": "text", "text": whole(part.text)}, part.cache)

    def marked(self, block: Block, cache: Cache) -> Block:
        """The block, with its cache mark if it has one."""
        if cache:
            block["cache_control"] = {"type": "ephemeral", "ttl": _TTLS[cache]}
            self._marked.append(block)
        return block

    def thin_out_marks(self) -> None:
        """Keep the last marks only, and none for an hour behind one for minutes."""
        for block in self._marked[:-CACHE_MARKS_MAX]:
            del block["cache_control"]
        short = False
        for block in self._marked[-CACHE_MARKS_MAX:]:
            control = block["cache_control"]
            assert isinstance(control, dict), "it was made here"
            short = short or control["ttl"] == "5m"
            if short:
                control["ttl"] = "5m"

    def _thinking(self, part: Thinking) -> list[Block]:
        blob = part.blob
        if blob is None or not self._target.accepts(blob):
            return []
        if blob.kind == "redacted":
            return [{"type": "redacted_thinking", "data": blob.value}]
        return [{"type": "thinking", "thinking": part.text, "signature": blob.value}]

    def _call(self, part: ToolCall) -> Block:
        return {
            "type": "tool_use",
            "id": part.id,
            "name": self._names.wire(part.name, part.namespace),
            "input": arguments_object(part, self._losses),
        }

    def _result(self, part: ToolResult) -> Block:
        block: Block = {"type": "tool_result", "tool_use_id": part.call_id}
        content = [self._content(inner) for inner in part.content]
        if len(content) == 1 and content[0].keys() == {"type", "text"}:
            block["content"] = content[0]["text"]
        elif content:
            block["content"] = content
        if part.error:
            block["is_error"] = True
        return self.marked(block, part.cache)

    def _content(self, part: Text | Image | Audio | Document) -> Block:
        if isinstance(part, Text):
            return self.text(part)
        if isinstance(part, Image):
            return self.marked({"type": "image", "source": self._image(part)}, part.cache)
        if isinstance(part, Audio):
            self._losses.refuse("input_audio", "takes no audio")
        block: Block = {"type": "document", "source": self._document(part)}
        if part.name:
            block["title"] = part.name
        return self.marked(block, part.cache)

    def _image(self, image: Image) -> Block:
        if image.file_id:
            self._refuse_file()
        if image.url:
            return {"type": "url", "url": image.url}
        media_type = sniffed(image.data, image.media_type)
        if media_type not in _IMAGE_TYPES:
            self._losses.refuse("image", f"takes no images of the type {media_type or 'unknown'}")
        return {"type": "base64", "media_type": media_type, "data": image.data}

    def _document(self, document: Document) -> Block:
        if document.file_id:
            self._refuse_file()
        if document.url:
            return {"type": "url", "url": document.url}
        media_type = sniffed(document.data, document.media_type)
        if document.data and media_type == _PDF:
            return {"type": "base64", "media_type": _PDF, "data": document.data}
        if document.data and not media_type.startswith("text/"):
            self._losses.refuse("file", f"takes no files of the type {media_type or 'unknown'}")
        text = document.text or b64decode(document.data).decode(errors="replace")
        return {"type": "text", "media_type": "text/plain", "data": whole(text)}

    def _refuse_file(self) -> None:
        self._losses.refuse("file_id", "cannot see files that another provider keeps")


# -- tools ----------------------------------------------------------------------------------------


def _chosen(
    tools: tuple[Tool, ...], choice: ToolChoice | None, losses: Losses
) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    """The tools that may be called: there is no other way to restrict a choice."""
    if choice is None or choice.mode not in ("auto", "any") or not choice.names:
        return tools, choice
    losses.approximate("tool_choice")
    allowed = frozenset(choice.names)
    return tuple(tool for tool in tools if tool.name in allowed), choice


def _tool(tool: Tool, names: ToolNames, writer: _Content, losses: Losses) -> Block:
    if tool.free:
        schema, strict, description = freeform.parameters(tool), None, freeform.description(tool)
    else:
        schema, strict = for_anthropic(tool.schema, strict=tool.strict, losses=losses)
        description = tool.description
    block: Block = {"name": names.wire(tool.name, tool.namespace)}
    if description:
        block["description"] = description
    block["input_schema"] = schema
    if strict is not None:
        block["strict"] = strict
    return writer.marked(block, tool.cache)


def _tool_choice(
    choice: ToolChoice | None, parallel: bool | None, tools: Sequence[Tool], names: ToolNames
) -> Block | None:
    if not tools:
        return None
    one_at_a_time = {"disable_parallel_tool_use": True} if parallel is False else {}
    if choice is None or choice.mode == "auto":
        return {"type": "auto", **one_at_a_time} if choice or one_at_a_time else None
    if choice.mode == "named":
        name = choice.names[0]
        namespace = next((tool.namespace for tool in tools if tool.name == name), "")
        return {"type": "tool", "name": names.wire(name, namespace), **one_at_a_time}
    return {"type": "any", **one_at_a_time} if choice.mode == "any" else {"type": "none"}


# -- how to answer --------------------------------------------------------------------------------


def _output_config(
    effort: str, wanted: OutputFormat | None, traits: Traits, losses: Losses
) -> Block:
    config: Block = {"effort": effort} if effort else {}
    if wanted is not None and wanted.kind == "schema":
        if not traits.structured:
            losses.refuse("response_format", "cannot keep this model to a schema")
        schema = for_anthropic_format(wanted.schema or {"type": "object"}, losses)
        config["format"] = {"type": "json_schema", "schema": schema}
    return config


def _sampling(sampling: Sampling, traits: Traits, thinks: bool, losses: Losses) -> Block:
    for name in ("seed", "presence_penalty", "frequency_penalty"):
        if getattr(sampling, name) is not None:
            losses.drop(name)
    wanted = {
        name: value
        for name in ("temperature", "top_p", "top_k")
        if (value := getattr(sampling, name)) is not None
    }
    allowed = traits.sampling and not thinks
    if wanted.get("temperature", 0) > 1 and allowed:
        losses.clamp("temperature")
        wanted["temperature"] = 1
    both = "temperature" in wanted and "top_p" in wanted
    for name in list(wanted):
        if not allowed or (name == "top_p" and both and not traits.temperature_and_top_p):
            del wanted[name]
            losses.drop(name)
    return dict(wanted)


def _stops(stops: Sequence[str], losses: Losses) -> list[str]:
    kept = [stop for stop in stops if stop.strip()]
    if len(kept) < len(stops):
        losses.drop("stop")
    return kept


def _metadata(end_user: str) -> Block | None:
    if not end_user:
        return None
    if len(end_user) > USER_ID_CHARACTERS_MAX:
        end_user = blake2b(end_user.encode(errors="replace"), digest_size=32).hexdigest()
    return {"user_id": end_user}

"""A prompt as a chat request, for OpenAI itself and for the many servers that are compatible.

OpenAI is told from the others by the name of its cap: who wants `max_completion_tokens` knows
free-form tools, subsets of tools and lists of text parts; the others get the oldest form of
everything, which all of them read.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

import msgspec

from adapters import freeform, json_schema
from adapters.canonical import (
    Audio,
    Cache,
    Document,
    Image,
    OutputFormat,
    Part,
    Prompt,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from adapters.codec import Encoded, Target
from adapters.effort import effort_of, nearest
from adapters.history import arranged, result_text, tools_of
from adapters.losses import Losses
from adapters.media import data_url
from adapters.names import OPENAI_NAMES, ToolNames
from adapters.openai.chat_reader import ChatReader
from adapters.openai.chat_traits import Traits, cap_field, traits_of

PATH = "/chat/completions"
STOPS_MAX = 4
_ID_CHARACTERS_MAX = 64
_ATTACHED = "[{} attached below]"
_UNSAFE_IN_NAME = re.compile(r"[^A-Za-z0-9_-]")
_TTLS: Mapping[Cache, str] = {"5m": "30m", "30m": "30m", "1h": "12h", "12h": "12h"}
_AUDIO_FORMATS: Mapping[str, str] = {
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/wave": "wav",
    "audio/mp3": "mp3",
    "audio/mpeg": "mp3",
}
_SERVICE_TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast"})

Json = dict[str, object]


def encoded(prompt: Prompt, target: Target) -> Encoded:
    """The request. Raises RequestNotExpressible."""
    losses = Losses(target.provider.name)
    _refuse_what_cannot_be(prompt, losses)
    encoder = _Encoder(prompt, target, losses)
    body = msgspec.json.encode(encoder.body())
    return Encoded(
        path=PATH,
        body=body,
        reader=ChatReader,
        dropped=losses.names,
        stops_itself=encoder.stops_itself,
        pieces={"web_search": 1} if prompt.web_search else {},
        names=encoder.names,
    )


def _refuse_what_cannot_be(prompt: Prompt, losses: Losses) -> None:
    if prompt.choices > 1:
        losses.refuse("n", "answers another protocol than the client's, where n must be 1")
    if prompt.audio_output:
        losses.refuse("audio", "cannot speak to a client of another protocol")


class _Encoder:
    """One prompt on its way out; what it loses is gathered in `losses`."""

    __slots__ = ("_losses", "_modern", "_prompt", "_target", "_traits", "names", "stops_itself")

    def __init__(self, prompt: Prompt, target: Target, losses: Losses) -> None:
        self._prompt = prompt
        self._target = target
        self._losses = losses
        self._modern = target.provider.output_cap_field == "max_completion_tokens"
        self._traits: Traits = traits_of(target.model)
        self.names = ToolNames(OPENAI_NAMES, prompt.tools, prompt.turns)
        self.stops_itself = len(prompt.stop) <= STOPS_MAX and self._traits.sampling

    def body(self) -> Json:
        prompt, target = self._prompt, self._target
        body: Json = {"model": target.model, "messages": self._messages()}
        if target.output_cap is not None:
            body[cap_field(target)] = target.output_cap
        if target.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        body |= self._tools()
        if prompt.format is not None and prompt.format.kind != "text":
            body["response_format"] = self._format(prompt.format)
        body |= self._reasoning() | self._sampling() | self._hints()
        if prompt.web_search:
            body["web_search_options"] = {}
        return body

    # -- messages ---------------------------------------------------------------------------------

    def _messages(self) -> list[Json]:
        turns = arranged(self._prompt.turns, self._losses)
        return [message for turn in turns for message in self._of_turn(turn)]

    def _of_turn(self, turn: Turn) -> list[Json]:
        if turn.role == "assistant":
            messages = self._assistant(turn)
        elif turn.role == "system":
            messages = [{"role": "system", "content": self._content(turn.parts)}]
        else:
            messages = self._user(turn)
        if turn.name:
            for message in messages:
                if message["role"] != "tool":
                    message["name"] = turn.name
        return messages

    def _user(self, turn: Turn) -> list[Json]:
        """The results of tools first, each a message; what is no text in them comes after all of
        them, together with the rest of the turn."""
        results = [part for part in turn.parts if isinstance(part, ToolResult)]
        messages = [self._result(result) for result in results]
        spilled = [part for each in results for part in each.content if not isinstance(part, Text)]
        rest = [*spilled, *(part for part in turn.parts if not isinstance(part, ToolResult))]
        if rest:
            messages.append({"role": "user", "content": self._content(rest)})
        return messages

    def _result(self, result: ToolResult) -> Json:
        notes = [
            _ATTACHED.format(type(part).__name__.lower())
            for part in result.content
            if not isinstance(part, Text)
        ]
        text = "\n".join(filter(None, [result_text(result), *notes]))
        return {"role": "tool", "tool_call_id": result.call_id, "content": text}

    def _assistant(self, turn: Turn) -> list[Json]:
        texts = [part.text for part in turn.parts if isinstance(part, Text)]
        refusals = [part.text for part in turn.parts if isinstance(part, Refusal)]
        calls = [self._call(part) for part in turn.parts if isinstance(part, ToolCall)]
        thoughts = [part.text for part in turn.parts if isinstance(part, Thinking) and part.text]
        if not self._modern:
            texts, refusals = texts + refusals, []
        if not (texts or refusals or calls):
            return []
        # Strict servers want a null beside calls, never an empty text.
        message: Json = {"role": "assistant", "content": "\n\n".join(texts) if texts else None}
        if refusals:
            message["refusal"] = "\n\n".join(refusals)
        if thoughts and self._traits.reasoning:
            message["reasoning_content"] = "\n\n".join(thoughts)
        if calls:
            message["tool_calls"] = calls
        return [message]

    def _call(self, call: ToolCall) -> Json:
        name = self.names.wire(call.name, call.namespace)
        if call.free and self._modern:
            custom = {"name": name, "input": call.arguments}
            return {"id": call.id, "type": "custom", "custom": custom}
        text = freeform.arguments(call.arguments) if call.free else call.arguments
        function = {"name": name, "arguments": text or "{}"}
        encoded: Json = {"id": call.id, "type": "function", "function": function}
        if call.blob is not None and call.blob.kind == "call" and self._target.accepts(call.blob):
            encoded["extra_content"] = {"google": {"thought_signature": call.blob.value}}
        return encoded

    # -- parts ------------------------------------------------------------------------------------

    def _content(self, parts: Sequence[Part]) -> str | list[Json]:
        """One text as it is; for compatible servers several texts as one, too."""
        texts = [part.text for part in parts if isinstance(part, Text)]
        joins = len(parts) == 1 or not self._modern
        if len(texts) == len(parts) and joins and not any(map(self._mark, parts)):
            return "\n\n".join(texts)
        return [self._bare_part(part) | self._mark(part) for part in parts]

    def _mark(self, part: Part) -> Json:
        cache = part.cache if isinstance(part, Text | Image | Document) else ""
        if not cache or not (self._modern and self._traits.breakpoints):
            return {}
        return {"prompt_cache_breakpoint": {"mode": "explicit", "ttl": _TTLS[cache]}}

    def _bare_part(self, part: Part) -> Json:
        match part:
            case Text() | Refusal():
                return {"type": "text", "text": part.text}
            case Image():
                return {"type": "image_url", "image_url": self._image(part)}
            case Audio():
                return {"type": "input_audio", "input_audio": self._audio(part)}
            case Document():
                return self._document(part)
            case _:
                raise AssertionError(f"{type(part).__name__} in a user's turn")

    def _image(self, image: Image) -> Json:
        if image.file_id:
            self._refuse_file_id()
        url = data_url(image.media_type, image.data) if image.data else image.url
        return {"url": url, "detail": image.detail} if image.detail else {"url": url}

    def _audio(self, audio: Audio) -> Json:
        form = _AUDIO_FORMATS.get(audio.media_type)
        if form is None:
            self._losses.refuse("input_audio", f"takes wav and mp3, not {audio.media_type}")
        return {"data": audio.data, "format": form}

    def _document(self, document: Document) -> Json:
        if document.file_id:
            self._refuse_file_id()
        if document.media_type.startswith("video/"):
            self._losses.refuse("file", "takes no video")
        if document.url:
            self._losses.refuse("file_url", "takes no addresses of files")
        text = document.text or _text_of(document)
        if text:
            title = f"{document.name}:\n\n" if document.name else ""
            return {"type": "text", "text": title + text}
        file = {
            "filename": document.name or "document.pdf",
            "file_data": data_url(document.media_type or "application/pdf", document.data),
        }
        return {"type": "file", "file": file}

    def _refuse_file_id(self) -> None:
        self._losses.refuse("file_id", "does not know files that were given to another one")

    # -- tools ------------------------------------------------------------------------------------

    def _tools(self) -> Json:
        prompt = self._prompt
        for hosted in prompt.hosted_tools:
            self._losses.drop(f"tool:{hosted.type}")
        tools, choice = tools_of(prompt)
        if choice is not None and choice.mode == "hosted":
            self._losses.refuse("tool_choice", f"cannot run {choice.names[0]} itself")
        if not tools:
            return {}
        if choice is not None and choice.names and not self._modern and choice.mode != "named":
            allowed = frozenset(choice.names)
            tools = tuple(tool for tool in tools if tool.name in allowed)
            self._losses.approximate("tool_choice")
        encoded: Json = {"tools": [self._tool(tool) for tool in tools]}
        if choice is not None:
            encoded["tool_choice"] = self._choice(choice, tools)
        if prompt.parallel is not None:
            encoded["parallel_tool_calls"] = prompt.parallel
        return encoded

    def _tool(self, tool: Tool) -> Json:
        name = self.names.wire(tool.name, tool.namespace)
        if tool.free and self._modern:
            custom: Json = {"name": name, "description": tool.description}
            if (grammar := tool.grammar) is not None:
                inner = {"syntax": grammar.syntax, "definition": grammar.definition}
                custom["format"] = {"type": "grammar", "grammar": inner}
            return {"type": "custom", "custom": custom}
        if tool.free:
            description, schema, strict = (
                freeform.description(tool),
                freeform.parameters(tool),
                None,
            )
        else:
            description = tool.description
            schema, strict = json_schema.for_openai(
                tool.schema, strict=tool.strict, losses=self._losses
            )
        function: Json = {"name": name, "description": description, "parameters": schema}
        if not description:
            del function["description"]
        if strict is not None:
            function["strict"] = strict
        return {"type": "function", "function": function}

    def _choice(self, choice: ToolChoice, tools: Iterable[Tool]) -> object:
        mode = "required" if choice.mode == "any" else choice.mode
        if not choice.names or (choice.mode != "named" and not self._modern):
            return mode
        by_name = {tool.name: tool for tool in reversed(list(tools))}
        named = [self._named(name, by_name.get(name)) for name in choice.names]
        if choice.mode == "named":
            return named[0]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}

    def _named(self, name: str, tool: Tool | None) -> Json:
        kind = "custom" if tool is not None and tool.free and self._modern else "function"
        wire = self.names.wire(name, tool.namespace if tool is not None else "")
        return {"type": kind, kind: {"name": wire}}

    # -- parameters -------------------------------------------------------------------------------

    def _format(self, given: OutputFormat) -> Json:
        if given.kind == "json":
            return {"type": "json_object"}
        schema, strict = json_schema.for_openai(
            given.schema, strict=given.strict, losses=self._losses
        )
        name = _UNSAFE_IN_NAME.sub("_", given.name)[:_ID_CHARACTERS_MAX] or "response"
        inner: Json = {"name": name, "schema": schema}
        if given.description:
            inner["description"] = given.description
        if strict is not None:
            inner["strict"] = strict
        return {"type": "json_schema", "json_schema": inner}

    def _reasoning(self) -> Json:
        effort = effort_of(self._prompt.reasoning) if self._prompt.reasoning is not None else ""
        if not effort:
            return {}
        if not self._traits.efforts:
            if effort != "none":
                self._losses.drop("reasoning_effort")
            return {}
        return {"reasoning_effort": nearest(effort, self._traits.efforts, self._losses)}

    def _sampling(self) -> Json:
        given = self._prompt.sampling
        knobs = {
            "temperature": given.temperature,
            "top_p": given.top_p,
            "presence_penalty": given.presence_penalty,
            "frequency_penalty": given.frequency_penalty,
        }
        if not self._traits.sampling:
            for name, value in knobs.items():
                if value is not None:
                    self._losses.drop(name)
            knobs = {}
        if given.top_k is not None:
            self._losses.drop("top_k")
        stop = self._prompt.stop[:STOPS_MAX] if self._traits.sampling else ()
        members = {
            **knobs,
            "seed": given.seed,
            "logit_bias": given.logit_bias,
            "logprobs": given.logprobs or None,
            "top_logprobs": given.top_logprobs if given.logprobs else None,
            "stop": list(stop) or None,
        }
        return {name: value for name, value in members.items() if value is not None}

    def _hints(self) -> Json:
        """What makes no difference to the answer, for those that are known to take it."""
        prompt = self._prompt
        hints: Json = {}
        if prompt.verbosity and self._traits.verbosity:
            hints["verbosity"] = prompt.verbosity
        if not self._modern:
            return hints
        if prompt.end_user:
            hints["safety_identifier"] = _short(prompt.end_user)
        if prompt.cache_key:
            hints["prompt_cache_key"] = _short(prompt.cache_key)
        if prompt.service_tier in _SERVICE_TIERS:
            hints["service_tier"] = prompt.service_tier
        return hints


def _text_of(document: Document) -> str:
    """The text of a document that is nothing else; empty for one that is."""
    if not document.media_type.startswith("text/"):
        return ""
    try:
        return b64decode(document.data).decode()
    except (Base64Error, ValueError):
        return ""


def _short(identifier: str) -> str:
    """An identifier of a length that is accepted: itself, or a hash of it."""
    if len(identifier) <= _ID_CHARACTERS_MAX:
        return identifier
    return blake2b(identifier.encode(errors="replace"), digest_size=20).hexdigest()

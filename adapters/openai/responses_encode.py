"""A canonical prompt as a Responses body.

Nothing is kept at the provider: the whole history goes with every request, and reasoning comes back
encrypted, to be sent again. Tools of the client's own keep their form, free-form ones included;
what only another kind of provider could run is left out and reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

import msgspec

from adapters.canonical import (
    Audio,
    Cache,
    Document,
    Image,
    OutputFormat,
    Part,
    Prompt,
    Refusal,
    ResultPart,
    Sampling,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from adapters.codec import Target
from adapters.effort import effort_of, nearest
from adapters.history import arranged, result_text, split_system, tools_of
from adapters.json_schema import for_openai
from adapters.losses import Losses
from adapters.media import data_url
from adapters.names import OPENAI_NAMES, ToolNames
from adapters.openai.chat_traits import traits_of

OUTPUT_TOKENS_MIN = 16

_USER_CHARACTERS_MAX = 64
_TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast", "ultrafast"})
_VERBOSITIES = frozenset({"low", "medium", "high"})
_AUDIO_FORMATS = {
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/mp3": "mp3",
    "audio/mpeg": "mp3",
}
_TTLS: Mapping[Cache, str] = {"5m": "30m", "30m": "30m", "1h": "12h", "12h": "12h"}
_MODES = {"auto": "auto", "any": "required", "none": "none"}
_VERSION = re.compile(r"gpt-(\d+)(?:\.(\d+))?")
_MARKS_SINCE = (5, 6)  # the first models that take explicit cache marks
_REASONING_SINCE = (5, 0)
_FILE_PREFIX = "file-"  # of OpenAI's own file ids

Json = dict[str, object]


class Encoder:
    """Encodes one prompt; `names` and `losses` are complete after `body`."""

    __slots__ = ("_choice", "_free", "_marks", "_prompt", "_target", "_tools", "losses", "names")

    def __init__(self, prompt: Prompt, target: Target) -> None:
        self.losses = Losses(target.provider.name)
        self._prompt = prompt
        self._target = target
        self._tools, self._choice = tools_of(prompt)
        self.names = ToolNames(OPENAI_NAMES, self._tools, prompt.turns)
        self._marks = _version(target.model) >= _MARKS_SINCE
        self._free: set[str] = set()  # ids of calls of free-form tools

    def body(self) -> Json:
        """All that is sent. Raises RequestNotExpressible."""
        prompt, target = self._prompt, self._target
        self._refuse()
        body = self.input_body()
        if target.output_cap is not None:
            body["max_output_tokens"] = max(target.output_cap, OUTPUT_TOKENS_MIN)
            if target.output_cap < OUTPUT_TOKENS_MIN:
                self.losses.clamp("max_output_tokens")
        self._sample(body, prompt.sampling)
        if prompt.service_tier in _TIERS:
            body["service_tier"] = prompt.service_tier
        if prompt.end_user:
            body["safety_identifier"] = _short(prompt.end_user)
        if prompt.cache_key:
            body["prompt_cache_key"] = _short(prompt.cache_key)
        if prompt.metadata:
            body["metadata"] = dict(prompt.metadata)
        body["store"] = False
        if target.stream:
            body["stream"] = True
        return body

    def input_body(self) -> Json:
        """What decides the number of input tokens. Raises RequestNotExpressible."""
        prompt = self._prompt
        instructions, turns = split_system(prompt.turns)
        turns = arranged(turns, self.losses)
        body: Json = {"model": self._target.model}
        if instructions and turns and not self._has_mark(instructions):
            body["instructions"] = "\n\n".join(text.text for text in instructions)
        elif instructions:
            turns = (Turn(role="system", parts=instructions), *turns)
        body["input"] = [item for turn in turns for item in self._items(turn)]
        if turns and turns[-1].role == "assistant" and _speaks(turns[-1]):
            self.losses.approximate("prefill")
        self._declare(body)
        self._think(body)
        text: Json = {}
        if (form := self._format(prompt.format)) is not None:
            text["format"] = form
        if prompt.verbosity in _VERBOSITIES:
            text["verbosity"] = prompt.verbosity
        if text:
            body["text"] = text
        return body

    def _refuse(self) -> None:
        """What would change the answer, and has no place here."""
        prompt = self._prompt
        if prompt.choices > 1:
            self.losses.refuse("n", "gives one answer to a request")
        if prompt.audio_output:
            self.losses.refuse("modalities", "does not speak")
        if prompt.sampling.logit_bias:
            self.losses.refuse("logit_bias", "has no place for it")

    # -- parameters -------------------------------------------------------------------------------

    def _sample(self, body: Json, sampling: Sampling) -> None:
        sampled = traits_of(self._target.model).sampling
        for name in ("temperature", "top_p"):
            if (value := getattr(sampling, name)) is None:
                continue
            if sampled:
                body[name] = value
            else:
                self.losses.drop(name)
        for name in ("top_k", "seed", "presence_penalty", "frequency_penalty"):
            if getattr(sampling, name) is not None:
                self.losses.drop(name)
        include = ["reasoning.encrypted_content"] if _reasons(self._target.model) else []
        if sampling.logprobs:
            include.append("message.output_text.logprobs")
            if sampling.top_logprobs:
                body["top_logprobs"] = sampling.top_logprobs
        if include:
            body["include"] = include

    def _think(self, body: Json) -> None:
        asked = self._prompt.reasoning
        if asked is None:
            return
        if not _reasons(self._target.model):
            if asked.effort not in ("", "none") or asked.budget or asked.adaptive:
                self.losses.drop("reasoning")
            return
        reasoning: Json = {}
        if effort := effort_of(asked):
            known = traits_of(self._target.model).efforts
            reasoning["effort"] = nearest(effort, known, self.losses) if known else effort
        if asked.show:
            reasoning["summary"] = "auto"
        if reasoning:
            body["reasoning"] = reasoning

    def _format(self, form: OutputFormat | None) -> Json | None:
        if form is None or form.kind == "text":
            return None
        if form.kind == "json":
            return {"type": "json_object"}
        schema, strict = for_openai(form.schema, strict=form.strict, losses=self.losses)
        written: Json = {
            "type": "json_schema",
            "name": form.name or "response",
            "schema": schema,
            "strict": bool(strict),
        }
        if form.description:
            written["description"] = form.description
        return written

    # -- tools ------------------------------------------------------------------------------------

    def _declare(self, body: Json) -> None:
        prompt, choice = self._prompt, self._choice
        for hosted in prompt.hosted_tools:
            self.losses.drop(f"tool:{hosted.type}")
        if prompt.web_search:
            self.losses.drop("web_search_options")
        if prompt.tool_choice is not None and prompt.tool_choice.mode == "hosted":
            self.losses.refuse("tool_choice", "does not run this tool")
        if not self._tools:
            return
        body["tools"] = [self._tool(tool) for tool in self._tools]
        if choice is not None:
            body["tool_choice"] = self._chosen(choice)
        if prompt.parallel is not None:
            body["parallel_tool_calls"] = prompt.parallel

    def _tool(self, tool: Tool) -> Json:
        written: Json = {
            "type": "custom" if tool.free else "function",
            "name": self.names.wire(tool.name, tool.namespace),
        }
        if tool.description:
            written["description"] = tool.description
        if not tool.free:
            schema, strict = for_openai(tool.schema, strict=tool.strict, losses=self.losses)
            # Left out, it would mean: strictly where that is possible.
            written |= {"parameters": schema, "strict": bool(strict)}
        elif tool.grammar is not None:
            written["format"] = {
                "type": "grammar",
                "syntax": tool.grammar.syntax,
                "definition": tool.grammar.definition,
            }
        return written

    def _chosen(self, choice: ToolChoice) -> object:
        if choice.mode == "named":
            return self._named(choice.names[0])
        mode = _MODES[choice.mode]
        if choice.names and choice.mode != "none":
            tools = [self._named(name) for name in choice.names]
            return {"type": "allowed_tools", "mode": mode, "tools": tools}
        return mode

    def _named(self, name: str) -> Json:
        for tool in self._tools:
            if tool.name == name:
                kind = "custom" if tool.free else "function"
                return {"type": kind, "name": self.names.wire(name, tool.namespace)}
        return {"type": "function", "name": self.names.wire(name)}

    # -- history ----------------------------------------------------------------------------------

    def _items(self, turn: Turn) -> Iterable[Json]:
        """A turn as items: what is said in one go is one message."""
        said: list[Json] = []
        role = "developer" if turn.role == "system" else turn.role
        for part in turn.parts:
            item = self._item(part)
            if item is None:
                said += self._said(part, turn.role)
                continue
            yield from _message(role, said)
            said = []
            if item:
                yield item
        yield from _message(role, said)

    def _item(self, part: Part) -> Json | None:
        """A part that is an item of its own; empty where it is left out, None where it is said."""
        if isinstance(part, Thinking):
            return self._reasoning(part)
        if isinstance(part, ToolCall):
            return self._call(part)
        if isinstance(part, ToolResult):
            return self._result(part)
        return None

    def _reasoning(self, thinking: Thinking) -> Json:
        blob = thinking.blob
        if blob is None or blob.kind != "reasoning" or not self._target.accepts(blob):
            return {}
        summary = [{"type": "summary_text", "text": thinking.text}] if thinking.text else []
        return {"type": "reasoning", "summary": summary, "encrypted_content": blob.value}

    def _call(self, call: ToolCall) -> Json:
        name = self.names.wire(call.name, call.namespace)
        if call.free:
            self._free.add(call.id)
            return {
                "type": "custom_tool_call",
                "call_id": call.id,
                "name": name,
                "input": call.arguments,
            }
        return {
            "type": "function_call",
            "call_id": call.id,
            "name": name,
            "arguments": call.arguments or "{}",
        }

    def _result(self, result: ToolResult) -> Json:
        free = result.call_id in self._free
        return {
            "type": "custom_tool_call_output" if free else "function_call_output",
            "call_id": result.call_id,
            "output": self._output(result),
        }

    def _output(self, result: ToolResult) -> object:
        texts = [part for part in result.content if isinstance(part, Text)]
        if len(texts) == len(result.content):
            return result_text(result)
        return [said for part in result.content for said in self._said(part, "user")]

    def _said(self, part: Part | ResultPart, role: str) -> Iterable[Json]:
        """A part of a message."""
        if isinstance(part, Refusal):
            yield {"type": "refusal", "refusal": part.text}
        elif isinstance(part, Text):
            kind = "output_text" if role == "assistant" else "input_text"
            yield self._marked({"type": kind, "text": part.text}, part.cache, role)
        elif role == "assistant":
            self.losses.drop("assistant_media")  # what it showed has no place in the history
        elif isinstance(part, Image):
            yield self._marked(self._image(part), part.cache, role)
        elif isinstance(part, Document):
            yield self._marked(self._document(part), part.cache, role)
        elif isinstance(part, Audio):
            yield self._audio(part)

    def _image(self, image: Image) -> Json:
        written: Json = {"type": "input_image", "detail": image.detail or "auto"}
        if image.file_id:
            written["file_id"] = self._file_id(image.file_id)
        else:
            written["image_url"] = image.url or data_url(image.media_type, image.data)
        return written

    def _document(self, document: Document) -> Json:
        if document.media_type.startswith("video/"):
            self.losses.refuse("input", "does not take video")
        if document.text:
            text = f"{document.name}\n\n{document.text}" if document.name else document.text
            return {"type": "input_text", "text": text}
        if document.file_id:
            return {"type": "input_file", "file_id": self._file_id(document.file_id)}
        if document.url:
            return {"type": "input_file", "file_url": document.url}
        media_type = document.media_type or "application/pdf"
        return {
            "type": "input_file",
            "filename": document.name or "document.pdf",
            "file_data": data_url(media_type, document.data),
        }

    def _audio(self, audio: Audio) -> Json:
        form = _AUDIO_FORMATS.get(audio.media_type)
        if form is None:
            self.losses.refuse("input_audio", f"does not take {audio.media_type}")
        return {"type": "input_audio", "input_audio": {"data": audio.data, "format": form}}

    def _file_id(self, file_id: str) -> str:
        if not file_id.startswith(_FILE_PREFIX):
            self.losses.refuse("file_id", "does not know files of another provider")
        return file_id

    def _marked(self, part: Json, cache: Cache, role: str) -> Json:
        if cache and self._marks and role != "assistant":
            part["prompt_cache_breakpoint"] = {"mode": "explicit", "ttl": _TTLS[cache]}
        return part

    def _has_mark(self, texts: Sequence[Text]) -> bool:
        return self._marks and any(text.cache for text in texts)


def _message(role: str, said: list[Json]) -> Iterable[Json]:
    if said:
        yield {"type": "message", "role": role, "content": said}


def _speaks(turn: Turn) -> bool:
    """Whether a turn ends in words that an answer could go on from."""
    return bool(turn.parts) and isinstance(turn.parts[-1], Text)


def _version(model: str) -> tuple[int, int]:
    """A GPT model's version; (0, 0) for others."""
    found = _VERSION.match(model.rpartition("/")[2])
    return (int(found[1]), int(found[2] or 0)) if found is not None else (0, 0)


def _reasons(model: str) -> bool:
    """Whether a model may reason: those known not to refuse every word of it."""
    version = _version(model)
    return version == (0, 0) or version >= _REASONING_SINCE


def _short(text: str) -> str:
    """A name within OpenAI's limit: itself, or a hash of it."""
    if len(text) <= _USER_CHARACTERS_MAX:
        return text
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def encode_json(body: Json) -> bytes:
    """A body as it is sent."""
    return msgspec.json.encode(body)

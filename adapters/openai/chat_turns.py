"""The messages of a chat request as turns, whichever of its several dialects they are in.

Beside what OpenAI documents: `function` messages of its first days, the reasoning that compatible
servers add to messages and clients send back, signatures that were sealed here, and Anthropic's
blocks, which Cursor puts into messages. What a part is, its type alone decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from adapters.canonical import (
    Audio,
    Blob,
    Cache,
    Document,
    Image,
    Part,
    Refusal,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    Turn,
)
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest, RequestNotExpressible
from adapters.media import checked, parse_data_url
from adapters.openai.chat_marks import CacheControl, CacheMark, cache_of

_ABSENT = msgspec.Raw()
_decode_text = msgspec.json.Decoder(str).decode
_replace = msgspec.structs.replace
T = TypeVar("T")


# -- what arrives ---------------------------------------------------------------------------------


class ImageURL(msgspec.Struct, gc=False):
    url: str
    detail: str | None = None


class InputAudio(msgspec.Struct, gc=False):
    data: str
    format: str | None = None


class File(msgspec.Struct, gc=False):
    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


class Source(msgspec.Struct, gc=False):
    """Where the data of an Anthropic block is."""

    type: str = ""
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


class ContentPart(msgspec.Struct):
    """A part of a message, with the members of every type."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | ImageURL | None = None
    video_url: str | ImageURL | None = None
    input_audio: InputAudio | None = None
    file: File | None = None
    cache_control: CacheControl | None = None
    prompt_cache_breakpoint: CacheMark | None = None
    # Anthropic's
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = _ABSENT
    tool_use_id: str | None = None
    content: str | list[ContentPart] | None = None
    is_error: bool | None = None
    thinking: object = None
    signature: str | None = None
    data: str | None = None
    source: Source | None = None


class FunctionCall(msgspec.Struct, gc=False):
    """`arguments` is JSON text; some clients send the object itself."""

    name: str
    arguments: msgspec.Raw = _ABSENT


class CustomCall(msgspec.Struct, gc=False):
    name: str
    input: str = ""


class CallMember(msgspec.Struct):
    """One of `tool_calls`."""

    id: str | None = None
    function: FunctionCall | None = None
    custom: CustomCall | None = None
    extra_content: object = None


class Message(msgspec.Struct):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[CallMember] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    audio: object = None
    reasoning_content: object = None
    reasoning: object = None
    reasoning_details: object = None
    cache_control: CacheControl | None = None


# -- turns ----------------------------------------------------------------------------------------


def read_turns(messages: Sequence[Message], envelopes: Envelopes) -> tuple[Turn, ...]:
    """The conversation. Raises InvalidRequest, and RequestNotExpressible for what only another
    provider of this protocol could know."""
    reader = _TurnReader(envelopes)
    return tuple(reader.turn(each, number) for number, each in enumerate(messages))


class _TurnReader:
    """Reads one message after the other; a function's answer needs what was called before it."""

    __slots__ = ("_envelopes", "_function_id")

    def __init__(self, envelopes: Envelopes) -> None:
        self._envelopes = envelopes
        self._function_id = ""  # of the last call in the form of the first days, which has none

    def turn(self, message: Message, number: int) -> Turn:
        at = f"messages[{number}]"
        match message.role:
            case "system" | "developer":
                parts = self._parts(message, at, _SYSTEM_PARTS)
                return Turn(role="system", parts=parts, name=message.name or "")
            case "user":
                parts = self._parts(message, at, _USER_PARTS)
                return Turn(role="user", parts=parts, name=message.name or "")
            case "assistant":
                parts = self._assistant(message, number, at)
                return Turn(role="assistant", parts=parts, name=message.name or "")
            case "tool":
                if not message.tool_call_id:
                    field = f"{at}.tool_call_id"
                    raise InvalidRequest(f"{field} is required.", param=field)
                return self._result(message, at, message.tool_call_id)
            case "function":
                return self._result(message, at, self._function_id or message.name or at)
            case _:
                raise InvalidRequest(
                    f"{at}.role must be system, developer, user, assistant or tool.",
                    param=f"{at}.role",
                )

    def _result(self, message: Message, at: str, call_id: str) -> Turn:
        parts = self._parts(message, at, _RESULT_PARTS)
        return Turn(role="user", parts=(_result(call_id, parts, name=message.name or ""),))

    def _assistant(self, message: Message, number: int, at: str) -> tuple[Part, ...]:
        if message.audio is not None:
            raise RequestNotExpressible(
                f"{at}.audio: the audio of an earlier answer is known only where it was made.",
                param=f"{at}.audio",
            )
        calls = self._calls(message, number, at)
        thoughts = _thoughts(message, self._envelopes)
        if not thoughts:
            calls = _with_text(calls, _reasoning_text(message))
        parts: list[Part] = [each.part for each in thoughts if not each.calls_before]
        known = {each.part.blob for each in thoughts}
        parts += self._parts(message, at, _ASSISTANT_PARTS)
        if message.refusal:
            parts.append(Refusal(text=message.refusal))
        for before, call in enumerate(calls):
            if before:
                parts += [each.part for each in thoughts if each.calls_before == before]
            parts += [each for each in call.thoughts if each.blob not in known]
            parts.append(call.call)
        return tuple(parts)

    def _calls(self, message: Message, number: int, at: str) -> list[_Call]:
        calls = []
        for position, member in enumerate(message.tool_calls or ()):
            call_id = member.id or f"call_{number}_{position}"
            calls.append(_call(member, call_id, f"{at}.tool_calls[{position}]", self._envelopes))
        if message.function_call is not None:
            self._function_id = f"call_{number}"
            calls.append(_Call(_function_call(self._function_id, message.function_call)))
        return calls

    def _parts(
        self, message: Message, at: str, readers: Mapping[str, _PartReader]
    ) -> tuple[Part, ...]:
        if isinstance(message.content, list):
            parts = _read_parts(message.content, f"{at}.content", readers, self._envelopes)
        else:
            parts = (Text(text=message.content),) if message.content else ()
        if parts and message.cache_control is not None:
            parts = (*parts[:-1], _marked(parts[-1], cache_of(message.cache_control, None)))
        return parts


def _result(call_id: str, parts: Iterable[Part], name: str = "", error: bool = False) -> ToolResult:
    content = tuple(part for part in parts if isinstance(part, Text | Image | Audio | Document))
    cache: Cache = ""
    for part in content:
        cache = cache if isinstance(part, Audio) else part.cache or cache
    return ToolResult(call_id=call_id, content=content, name=name, error=error, cache=cache)


def _marked(part: Part, cache: Cache) -> Part:
    if isinstance(part, Text | Image | Document | ToolResult):
        return _replace(part, cache=part.cache or cache)
    return part


# -- calls ----------------------------------------------------------------------------------------


class _Call(NamedTuple):
    """A call, and the thoughts before it whose signatures it carries."""

    call: ToolCall
    thoughts: tuple[Thinking, ...] = ()


def _call(member: CallMember, call_id: str, at: str, envelopes: Envelopes) -> _Call:
    blobs = _blobs_of(member.extra_content, envelopes)
    signature = next((blob for blob in blobs if blob.kind == "call"), None)
    thoughts = tuple(Thinking(blob=blob) for blob in blobs if blob.kind != "call")
    if member.custom is not None:
        name, text = member.custom.name, member.custom.input
        call = ToolCall(id=call_id, name=name, arguments=text, free=True, blob=signature)
    elif member.function is not None:
        call = _replace(_function_call(call_id, member.function), blob=signature)
    else:
        raise InvalidRequest(f"{at}.function is required.", param=f"{at}.function")
    return _Call(call, thoughts)


def _with_text(calls: list[_Call], text: str) -> list[_Call]:
    """The calls, where the first thought that one of them carries has its text."""
    for at, (call, thoughts) in enumerate(calls):
        if thoughts:
            first = _replace(thoughts[0], text=text)
            return [*calls[:at], _Call(call, (first, *thoughts[1:])), *calls[at + 1 :]]
    return calls


def _function_call(call_id: str, call: FunctionCall) -> ToolCall:
    return ToolCall(id=call_id, name=call.name, arguments=_arguments(call.arguments))


def _arguments(raw: msgspec.Raw) -> str:
    """Arguments as JSON text, with every byte of it as it came."""
    given = bytes(raw)
    if not given or given == b"null":
        return ""
    return _decode_text(raw) if given.startswith(b'"') else given.decode()


# -- reasoning ------------------------------------------------------------------------------------


class _Thought(NamedTuple):
    """A thought of an earlier answer, and how many calls came before it."""

    part: Thinking
    calls_before: int = 0


def _thoughts(message: Message, envelopes: Envelopes) -> list[_Thought]:
    """The thoughts as they were made, where their signatures came back; else one with the text of
    all, save where the calls carry a signature for it.

    Signatures of other makers mean nothing where this goes.
    """
    details = message.reasoning_details
    signed = [
        _Thought(Thinking(text=_text(entry.get("text")), blob=blob), _calls_before(entry))
        for entry in (details if isinstance(details, list) else ())
        if isinstance(entry, dict)
        for sealed in (entry.get("signature") or entry.get("data"),)
        if isinstance(sealed, str) and (blob := envelopes.open(sealed)) is not None
    ]
    text = _reasoning_text(message)
    if signed or not text or _carry_thoughts(message, envelopes):
        return signed
    return [_Thought(Thinking(text=text))]


def _carry_thoughts(message: Message, envelopes: Envelopes) -> bool:
    return any(
        blob.kind != "call"
        for member in message.tool_calls or ()
        for blob in _blobs_of(member.extra_content, envelopes)
    )


def _reasoning_text(message: Message) -> str:
    return _text(message.reasoning_content) or _text(message.reasoning)


def _blobs_of(extra: object, envelopes: Envelopes) -> list[Blob]:
    """What was sealed into a call's `extra_content`: ours, and where some clients echo it."""
    found: dict[Blob, None] = {}
    for holder, member in (("farebox", "sig"), ("google", "thought_signature")):
        held = extra.get(holder) if isinstance(extra, dict) else None
        sealed = held.get(member) if isinstance(held, dict) else None
        if isinstance(sealed, str) and (blob := envelopes.open(sealed)) is not None:
            found[blob] = None
    return list(found)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _calls_before(entry: Mapping[object, object]) -> int:
    value = entry.get("tool_calls_before")
    return value if isinstance(value, int) else 0


# -- parts ----------------------------------------------------------------------------------------

_PartReader = Callable[[ContentPart, str, Envelopes], Part | None]


def _read_parts(
    given: Iterable[ContentPart],
    at: str,
    readers: Mapping[str, _PartReader],
    envelopes: Envelopes,
) -> tuple[Part, ...]:
    parts = []
    for number, each in enumerate(given):
        where = f"{at}[{number}]"
        read = readers.get(each.type)
        if read is None:
            raise RequestNotExpressible(
                f"{where}: a part of type {each.type!r} cannot stand here.", param=f"{where}.type"
            )
        part = read(each, where, envelopes)
        if part is not None:
            parts.append(_marked(part, cache_of(each.cache_control, each.prompt_cache_breakpoint)))
    return tuple(parts)


def _read_text(part: ContentPart, at: str, envelopes: Envelopes) -> Text:
    return Text(text=part.text or "")


def _read_refusal(part: ContentPart, at: str, envelopes: Envelopes) -> Refusal:
    return Refusal(text=part.refusal or "")


def _read_image(part: ContentPart, at: str, envelopes: Envelopes) -> Image:
    image = _address(part.image_url, f"{at}.image_url")
    detail = image.detail or ""
    if image.url.startswith("data:"):
        media_type, data = parse_data_url(image.url, f"{at}.image_url")
        media_type = checked(media_type, "image", f"{at}.image_url")
        return Image(media_type=media_type, data=data, detail=detail)
    return Image(url=image.url, detail=detail)


def _read_video(part: ContentPart, at: str, envelopes: Envelopes) -> Document:
    url = _address(part.video_url, f"{at}.video_url").url
    if url.startswith("data:"):
        media_type, data = parse_data_url(url, f"{at}.video_url")
        return Document(media_type=media_type, data=data)
    return Document(media_type="video/mp4", url=url)


def _read_audio(part: ContentPart, at: str, envelopes: Envelopes) -> Audio:
    audio = _required(part.input_audio, f"{at}.input_audio")
    named = f"audio/{audio.format or 'wav'}"
    url = audio.data if audio.data.startswith("data:") else f"data:{named};base64,{audio.data}"
    media_type, data = parse_data_url(url, f"{at}.input_audio.data")
    media_type = checked(media_type, "audio", f"{at}.input_audio.data")
    return Audio(media_type=media_type or named, data=data)


def _read_file(part: ContentPart, at: str, envelopes: Envelopes) -> Document:
    file = _required(part.file, f"{at}.file")
    if file.file_data:
        url = file.file_data
        if not url.startswith("data:"):
            url = f"data:application/pdf;base64,{url}"
        media_type, data = parse_data_url(url, f"{at}.file.file_data")
        return Document(media_type=media_type, data=data, name=file.filename or "")
    return Document(file_id=_required(file.file_id, f"{at}.file.file_id"), name=file.filename or "")


def _read_tool_use(part: ContentPart, at: str, envelopes: Envelopes) -> ToolCall:
    return ToolCall(
        id=_required(part.id, f"{at}.id"),
        name=_required(part.name, f"{at}.name"),
        arguments=_arguments(part.input),
    )


def _read_tool_result(part: ContentPart, at: str, envelopes: Envelopes) -> ToolResult:
    content: tuple[Part, ...] = ()
    if isinstance(part.content, list):
        content = _read_parts(part.content, f"{at}.content", _RESULT_PARTS, envelopes)
    elif part.content:
        content = (Text(text=part.content),)
    call_id = _required(part.tool_use_id, f"{at}.tool_use_id")
    return _result(call_id, content, error=bool(part.is_error))


def _read_thinking(part: ContentPart, at: str, envelopes: Envelopes) -> Thinking | None:
    """A thought: Anthropic's, or Mistral's, which is a list of texts."""
    thinking = part.thinking
    if isinstance(thinking, list):
        texts = [_text(each.get("text")) for each in thinking if isinstance(each, dict)]
        return Thinking(text="".join(texts))
    return Thinking(text=_text(thinking), blob=envelopes.open(part.signature or ""))


def _read_redacted(part: ContentPart, at: str, envelopes: Envelopes) -> Thinking | None:
    blob = envelopes.open(part.data or "")
    return None if blob is None else Thinking(blob=blob)


def _read_source_image(part: ContentPart, at: str, envelopes: Envelopes) -> Image:
    source = _required(part.source, f"{at}.source")
    if source.url:
        return Image(url=source.url)
    media_type, data = _source_data(source, f"{at}.source")
    return Image(media_type=checked(media_type, "image", f"{at}.source"), data=data)


def _read_document(part: ContentPart, at: str, envelopes: Envelopes) -> Document:
    source = _required(part.source, f"{at}.source")
    if source.url:
        return Document(url=source.url)
    if source.type == "text":
        return Document(media_type="text/plain", text=source.data or "")
    media_type, data = _source_data(source, f"{at}.source")
    return Document(media_type=media_type, data=data)


def _source_data(source: Source, at: str) -> tuple[str, str]:
    return parse_data_url(f"data:{source.media_type or ''};base64,{source.data or ''}", at)


def _address(given: str | ImageURL | None, field: str) -> ImageURL:
    return ImageURL(given) if isinstance(given, str) else _required(given, field)


def _required(value: T | None, field: str) -> T:
    if value is None or value == "":
        raise InvalidRequest(f"{field} is required.", param=field)
    return value


_SYSTEM_PARTS: Mapping[str, _PartReader] = {"text": _read_text, "input_text": _read_text}
_RESULT_PARTS: Mapping[str, _PartReader] = {
    **_SYSTEM_PARTS,
    "image_url": _read_image,
    "input_image": _read_image,
    "image": _read_source_image,
    "input_audio": _read_audio,
    "file": _read_file,
    "document": _read_document,
}
_USER_PARTS: Mapping[str, _PartReader] = {
    **_RESULT_PARTS,
    "video_url": _read_video,
    "tool_result": _read_tool_result,
}
_ASSISTANT_PARTS: Mapping[str, _PartReader] = {
    **_SYSTEM_PARTS,
    "output_text": _read_text,
    "refusal": _read_refusal,
    "thinking": _read_thinking,
    "redacted_thinking": _read_redacted,
    "tool_use": _read_tool_use,
}

"""Gemini's contents as turns.

Calls may come without ids: they get one from their place, `call_<turn>_<n>`, and a response belongs
to the first call of its name that has none yet. A signature of ours that was put on a call or on
text comes back as an empty thought before it; Google's own are worth nothing elsewhere.

Clients send an answer back as it was streamed, in as many parts, or even contents, as it had
chunks. What belongs together is joined here: a signature holds for the whole thought before it.
"""

from __future__ import annotations

from base64 import b64decode
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from adapters import media
from adapters.canonical import (
    Audio,
    Document,
    Image,
    Part,
    ResultPart,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    Turn,
)
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest
from adapters.gemini import fields
from adapters.gemini.signature import signed_thought
from adapters.openai.body import Fields

Role = Literal["user", "assistant"]

_ROLES: Mapping[str, Role] = {
    "": "user",
    "user": "user",
    "function": "user",
    "model": "assistant",
}
_DETAILS: Mapping[str, str] = {
    "MEDIA_RESOLUTION_LOW": "low",
    "MEDIA_RESOLUTION_HIGH": "high",
    "MEDIA_RESOLUTION_ULTRA_HIGH": "original",
}
_FILES = "https://generativelanguage.googleapis.com/"
# Members of a part that change nothing, or that go with one which is read.
_SILENT = frozenset({"text", "thought", "thoughtSignature", "mediaResolution", "partMetadata"})
_DATA = frozenset(
    {"inlineData", "fileData", "functionCall", "functionResponse", "executableCode"}
    | {"codeExecutionResult"}
)
_OUTPUTS = ("output", "result")
_decode_str = msgspec.json.Decoder(str).decode


class Turns:
    """Reads the contents of one request. `dropped` are the members that have no place elsewhere."""

    def __init__(self, envelopes: Envelopes) -> None:
        self.dropped: dict[str, None] = {}
        self._envelopes = envelopes
        self._waiting = _Waiting()
        self._turn = 0
        self._calls = 0  # of the turn

    def read(self, contents: msgspec.Raw) -> list[Turn]:
        """The conversation."""
        turns: list[tuple[Role, list[Part]]] = []
        for at, raw in enumerate(fields.items(contents, "contents")):
            role, parts = self._content(raw, at)
            if turns and role == turns[-1][0] == "assistant":
                turns[-1][1].extend(parts)
            else:
                turns.append((role, parts))
        return [
            Turn(role=role, parts=tuple(_joined(parts) if role == "assistant" else parts))
            for role, parts in turns
        ]

    def _content(self, raw: msgspec.Raw, at: int) -> tuple[Role, list[Part]]:
        where = f"contents[{at}]"
        content = fields.members(raw, where)
        role = _ROLES.get(fields.text(content, "role", where))
        if role is None:
            name = f"{where}.role"
            raise InvalidRequest(f"{name} must be 'user' or 'model'.", param=name)
        self._turn, self._calls = at, 0
        return role, list(self._parts(content, where))

    def system(self, raw: msgspec.Raw) -> Turn:
        """The instructions: a content of text, or a string."""
        where = "systemInstruction"
        if bytes(memoryview(raw)[:1]) == b'"':
            return Turn(role="system", parts=(Text(text=_decode_str(raw)),))
        parts = tuple(self._parts(fields.members(raw, where), where))
        if not all(isinstance(part, Text) for part in parts):
            raise InvalidRequest(f"{where} must hold nothing but text.", param=where)
        return Turn(role="system", parts=parts)

    # -- parts ------------------------------------------------------------------------------------

    def _parts(self, content: Fields, where: str) -> Iterator[Part]:
        where = f"{where}.parts"
        for at, raw in enumerate(fields.items(content.get("parts"), where)):
            inside = f"{where}[{at}]"
            yield from self._part(fields.members(raw, inside), inside)

    def _part(self, part: Fields, where: str) -> Iterator[Part]:
        for name in part.keys() - _SILENT - _DATA:
            self.dropped[name] = None
        signature = fields.text(part, "thoughtSignature", where)
        signed = signed_thought(signature, self._envelopes)
        if "functionCall" in part:
            yield from self._call(part["functionCall"], signed, f"{where}.functionCall")
            return
        text = fields.text(part, "text", where)
        if fields.flag(part, "thought", where):
            if signed is not None:
                yield Thinking(text=text or signed.text, blob=signed.blob)
            elif text:
                yield Thinking(text=text)
            return
        if signed is not None:
            yield signed
        if text:
            yield Text(text=text)
        yield from self._other(part, where)

    def _other(self, part: Fields, where: str) -> Iterator[Part]:
        if (found := _media(part, where)) is not None:
            yield found
        if "functionResponse" in part:
            yield self._result(part["functionResponse"], f"{where}.functionResponse")
        if "executableCode" in part:
            yield self._block(part["executableCode"], f"{where}.executableCode", "code")
        if "codeExecutionResult" in part:
            yield self._block(part["codeExecutionResult"], f"{where}.codeExecutionResult", "output")

    def _block(self, raw: msgspec.Raw, where: str, name: str) -> Text:
        """What ran at Google, as text: the model should know what it did."""
        self.dropped["approx:codeExecution"] = None
        members = fields.members(raw, where)
        language = fields.text(members, "language", where).lower()
        return Text(text=f"```{language}\n{fields.text(members, name, where)}\n```\n")

    # -- calls ------------------------------------------------------------------------------------

    def _call(self, raw: msgspec.Raw, signed: Thinking | None, where: str) -> Iterator[Part]:
        members = fields.members(raw, where)
        name = fields.text(members, "name", where)
        if not name:
            raise InvalidRequest(f"{where}.name is required.", param=f"{where}.name")
        blob = signed.blob if signed is not None else None
        own = blob if blob is not None and blob.kind == "call" else None
        if signed is not None and own is None:
            yield signed
        args = members.get("args")
        call = ToolCall(
            id=fields.text(members, "id", where) or self._id(),
            name=name,
            arguments="{}" if args is None else _json_text(args, f"{where}.args"),
            blob=own,
        )
        self._waiting.add(call)
        yield call

    def _result(self, raw: msgspec.Raw, where: str) -> ToolResult:
        members = fields.members(raw, where)
        name = fields.text(members, "name", where)
        for unknown in members.keys() - {"id", "name", "response", "parts"}:
            self.dropped[unknown] = None
        text, error = _response(members.get("response"), f"{where}.response")
        content: list[ResultPart] = [Text(text=text)] if text else []
        for at, part in enumerate(fields.items(members.get("parts"), f"{where}.parts")):
            inside = f"{where}.parts[{at}]"
            if (found := _media(fields.members(part, inside), inside)) is not None:
                content.append(found)
        given = fields.text(members, "id", where)
        call = self._waiting.take(given, name)
        call_id = call.id if call is not None else given or self._id()
        return ToolResult(call_id=call_id, name=name, content=tuple(content), error=error)

    def _id(self) -> str:
        self._calls += 1
        return f"call_{self._turn}_{self._calls - 1}"


class _Waiting:
    """Calls and the responses that they still wait for, by number."""

    __slots__ = ("_answered", "_by_id", "_by_name", "_calls")

    def __init__(self) -> None:
        self._calls: list[ToolCall] = []
        self._by_id: dict[str, deque[int]] = {}
        self._by_name: dict[str, deque[int]] = {}
        self._answered: set[int] = set()  # out of one queue, and perhaps still in the other

    def add(self, call: ToolCall) -> None:
        number = len(self._calls)
        self._calls.append(call)
        self._by_id.setdefault(call.id, deque()).append(number)
        self._by_name.setdefault(call.name, deque()).append(number)

    def take(self, given: str, name: str) -> ToolCall | None:
        """The call that a response belongs to: by the id it was given, else the first by name."""
        for queue in (self._by_id.get(given), self._by_name.get(name)):
            while queue:
                number = queue.popleft()
                if number not in self._answered:
                    self._answered.add(number)
                    return self._calls[number]
        return None


def _joined(said: list[Part]) -> list[Part]:
    """What a model said, with the pieces of one text, or of one thought, in one part."""
    parts: list[Part] = []
    pieces: list[str] = []  # of the last part: joined once, however many there are
    for part in said:
        before = parts[-1] if parts else None
        if isinstance(part, Text) and isinstance(before, Text):
            pieces.append(part.text)
        elif isinstance(part, Thinking) and _goes_on(before, part):
            pieces.append(part.text)
            parts[-1] = part
        else:
            _settle(parts, pieces)
            parts.append(part)
            pieces = [part.text] if isinstance(part, Text | Thinking) else []
    _settle(parts, pieces)
    return parts


def _goes_on(before: Part | None, thought: Thinking) -> bool:
    """Whether a thought is more of the one before: that has no signature yet, and this one's, if
    it has any, is for a thought."""
    if not isinstance(before, Thinking) or before.blob is not None:
        return False
    return thought.blob is None or thought.blob.kind not in ("call", "text")


def _settle(parts: list[Part], pieces: list[str]) -> None:
    """Give the last part all its text."""
    if len(pieces) > 1 and isinstance(parts[-1], Text | Thinking):
        parts[-1] = msgspec.structs.replace(parts[-1], text="".join(pieces))


def _media(part: Fields, where: str) -> Image | Audio | Document | None:
    if "inlineData" in part:
        return _inline(part["inlineData"], _detail(part, where), f"{where}.inlineData")
    if "fileData" in part:
        return _file(part["fileData"], _detail(part, where), f"{where}.fileData")
    return None


def _inline(raw: msgspec.Raw, detail: str, where: str) -> Image | Audio | Document:
    members = fields.members(raw, where)
    data = fields.text(members, "data", where)
    media_type = fields.text(members, "mimeType", where).lower() or "application/octet-stream"
    kind = media_type.partition("/")[0]
    media_type, data = media.parse_data_url(media.data_url(media_type, data), f"{where}.data")
    if kind in ("image", "audio", "text"):  # for anything else, enough is held for all of these
        media.checked(media_type, kind, f"{where}.data")
    name = fields.text(members, "displayName", where)
    if media_type.startswith("image/"):
        return Image(media_type=media_type, data=data, detail=detail)
    if media_type.startswith("audio/"):
        return Audio(media_type=media_type, data=data)
    if media_type.startswith("text/"):
        text = b64decode(data).decode(errors="replace")
        return Document(media_type=media_type, text=text, name=name)
    return Document(media_type=media_type, data=data, name=name)


def _file(raw: msgspec.Raw, detail: str, where: str) -> Image | Document:
    members = fields.members(raw, where)
    uri = fields.text(members, "fileUri", where)
    if not uri:
        raise InvalidRequest(f"{where}.fileUri is required.", param=f"{where}.fileUri")
    media_type = fields.text(members, "mimeType", where).lower()
    # What lies at Google is nobody else's to read.
    is_open = uri.startswith(("https://", "http://")) and not uri.startswith(_FILES)
    url, file_id = (uri, "") if is_open else ("", uri)
    if media_type.startswith("image/"):
        return Image(media_type=media_type, url=url, file_id=file_id, detail=detail)
    return Document(media_type=media_type, url=url, file_id=file_id)


def _detail(part: Fields, where: str) -> str:
    if "mediaResolution" not in part:
        return ""
    where = f"{where}.mediaResolution"
    return _DETAILS.get(fields.text(fields.members(part["mediaResolution"], where), "level"), "")


def _response(raw: msgspec.Raw | None, where: str) -> tuple[str, bool]:
    """What a function answered, and whether that is an error.

    Google's SDKs wrap what a function returned in one member; without it the result reads as on
    other surfaces.
    """
    if raw is None:
        return "", False
    members = fields.raw_members(raw, where)
    if len(members) == 1:
        ((name, value),) = members.items()
        if name == "error" or (name in _OUTPUTS and _is_text(value)):
            return _plain(value), name == "error"
    return ("", False) if not members else (_json_text(raw, where), False)


def _plain(value: msgspec.Raw) -> str:
    return _decode_str(value) if _is_text(value) else bytes(value).decode()


def _is_text(value: msgspec.Raw) -> bool:
    return bytes(memoryview(value)[:1]) == b'"'


def _json_text(raw: msgspec.Raw, where: str) -> str:
    """An object as it was sent."""
    if bytes(memoryview(raw)[:1]) != b"{":
        raise InvalidRequest(f"{where} must be an object.", param=where)
    return bytes(raw).decode()

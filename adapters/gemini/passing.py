"""Between two Gemini ends: the body as it came, the answer as it comes.

Changed on the way out are the cap, the name of the model, and signatures that only another
provider could check; on the way back the name of the model, and what stands between chunks: Google
sends nothing there, and its SDKs read nothing else.
"""

from __future__ import annotations

import re
from functools import partial

import msgspec

from adapters.canonical import Usage
from adapters.codec import Request, Target
from adapters.envelope import Envelopes
from adapters.errors import APIError, InvalidRequest
from adapters.gemini import fields
from adapters.gemini.failure import read_failure
from adapters.gemini.framing import Framing, framing
from adapters.gemini.reader import GeminiReader
from adapters.gemini.refusal import GeminiRefusals
from adapters.gemini.signature import SKIP_VALIDATION, sealed_in
from adapters.gemini.traits import traits_of
from adapters.gemini.wire import Answer, usage_metadata
from adapters.openai.body import Fields
from adapters.passing import PassingCall
from adapters.pieces import Body, encoded
from adapters.raw import UNREADABLE

_encode = msgspec.json.encode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_answer = msgspec.json.Decoder(Answer).decode
_REFUSALS = GeminiRefusals()
_CONFIG = "generationConfig"
_CAP = "maxOutputTokens"
_VERSION_KEY = b'"modelVersion"'
_CALL = b'"functionCall"'
_REASON = b'"finishReason"'
_VERSION = re.compile(rb'"modelVersion"[ \t\r\n]*:[ \t\r\n]*"((?:[^"\\]|\\.)*)"')
_DONE = b"[DONE]"
_SIGNATURE = "thoughtSignature"
# What a chunk says of the answer as a whole, and the one that ends it has to say again.
_NAMES = ("modelVersion", "responseId", "createTime")


def passing_call(request: Request, target: Target, envelopes: Envelopes, path: str) -> PassingCall:
    """A request of this protocol, as it came."""
    return PassingCall(
        path,
        _body(request, target, envelopes),
        reader=partial(GeminiReader, passing=True),
        manner=lambda: GeminiManner(request.model, framing(request.array), request.choices),
        shown=lambda body: renamed(body, _encode(request.model)),
        failure=read_failure,
        pieces=request.pieces,
    )


class GeminiManner:
    """One stream's chunks on their way through. Implements `passing.Manner`."""

    __slots__ = ("_choices", "_ended", "_framing", "_last", "_member", "_model", "_shown_member")

    def __init__(self, model: str, frames: Framing, choices: int) -> None:
        self._model = _encode(model)
        self._member = self._shown_member = b""  # as the last chunk had it, and as it is shown
        self._framing = frames
        self._last = b"{}"  # chunk that passed, of a stream that may be cut
        self._choices = choices
        self._ended: set[int] = set()  # candidates with a reason, where there are several

    def shown(self, raw: bytes, payload: bytes) -> bytes:
        if not payload or payload.startswith(_DONE):
            return b""
        if b"\n" in payload:
            payload = payload.replace(b"\n", b" ")  # between tokens: text has it escaped
        return self._framing.item(self._renamed(payload))

    def _renamed(self, payload: bytes) -> bytes:
        if payload.count(_VERSION_KEY) == 1 and _CALL not in payload:
            if not self._member or self._member not in payload:
                found = _VERSION.search(payload)
                self._member = found[0] if found is not None else b""
                self._shown_member = renamed(self._member, self._model)
            return payload.replace(self._member, self._shown_member, 1)
        return renamed(payload, self._model)

    def end(self) -> bytes:
        return self._framing.end()

    def remember(self, payload: bytes) -> None:
        if payload.startswith(_DONE):
            return
        self._last = payload
        if self._choices > 1 and _REASON in payload:
            self._ended |= _ended_in(payload)

    def cut(self, usage: Usage) -> bytes:
        try:
            last = _decode_members(renamed(self._last, self._model))
        except UNREADABLE:
            last = {}
        content = {"parts": [{"text": ""}], "role": "model"}
        chunk: dict[str, object] = {
            "candidates": [
                {"content": content, "finishReason": "MAX_TOKENS", "index": index}
                for index in range(self._choices)
                if index not in self._ended
            ],
            "usageMetadata": usage_metadata(usage),
            "modelVersion": msgspec.Raw(self._model),
            **{name: last[name] for name in _NAMES if name in last},
        }
        return self._framing.item(_encode(chunk))

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return self._framing.item(_REFUSALS.error_body(error, request_id)) + self._framing.end()


def _ended_in(payload: bytes) -> set[int]:
    """The candidates that end in a chunk."""
    try:
        candidates = _decode_answer(payload).candidates or ()
    except UNREADABLE:
        return set()  # which the reader sees as well: it is no answer
    return {each.index for each in candidates if isinstance(each.index, int) and each.finish_reason}


def renamed(answer: bytes, model: bytes) -> bytes:
    """The answer under the client's name of the model (as JSON), all else byte for byte."""
    if _VERSION_KEY not in answer:
        return answer
    found = list(_VERSION.finditer(answer))
    if len(found) != 1 or _CALL in answer:  # it may stand in arguments
        return _renamed_member(answer, model)
    start, end = found[0].span(1)
    return answer[: start - 1] + model + answer[end + 1 :]


def _renamed_member(answer: bytes, model: bytes) -> bytes:
    try:
        members = _decode_members(answer)
    except UNREADABLE:
        return answer
    if "modelVersion" in members:
        members["modelVersion"] = msgspec.Raw(model)
    return _encode(members)


# -- the body -------------------------------------------------------------------------------------


def _body(request: Request, target: Target, envelopes: Envelopes) -> Body:
    members = dict(request.fields)
    members.pop("model", None)  # the path names it
    if target.output_cap is not None:
        _write_cap(members, target.output_cap)
    key = fields.spelled(members, "contents")
    if request.scan.signed:
        members[key] = _without_envelopes(members[key], target, envelopes)
    return encoded(members, request.body_bytes)


def _write_cap(members: Fields, cap: int) -> None:
    """Allow as many tokens as were reserved."""
    key = fields.spelled(members, _CONFIG)
    config: Fields = {}
    if key in members and bytes(members[key]) != b"null":
        config = fields.raw_members(members[key], key)
    config[fields.spelled(config, _CAP)] = msgspec.Raw(b"%d" % cap)
    members[key] = msgspec.Raw(_encode(config))


def _without_envelopes(contents: msgspec.Raw, target: Target, envelopes: Envelopes) -> msgspec.Raw:
    """The contents with what was sealed here opened for the model that made it, and taken out for
    any other."""
    try:
        kept = []
        for each in fields.items(contents, "contents"):
            content = fields.raw_members(each, "contents")
            key = fields.spelled(content, "parts")
            parts = [
                part
                for raw in fields.items(content.get(key), key)
                if (part := _unsealed(raw, target, envelopes)) is not None
            ]
            if parts:
                content[key] = msgspec.Raw(_encode(parts))
                kept.append(content)
    except InvalidRequest:
        return contents  # for the provider to judge
    return msgspec.Raw(_encode(kept))


def _unsealed(raw: msgspec.Raw, target: Target, envelopes: Envelopes) -> Fields | None:
    """One part; None where it was nothing but the place of an envelope."""
    part = fields.raw_members(raw, "contents.parts")
    names = fields.named(part)
    sealed = sealed_in(fields.text(names, _SIGNATURE))
    if sealed is None:
        return part
    key = fields.spelled(part, _SIGNATURE)
    blob = envelopes.open(sealed.envelope)
    if blob is not None and target.accepts(blob):
        part[key] = msgspec.Raw(_encode(blob.value))
    elif "functionCall" in names and traits_of(target.model).wants_signatures:
        part[key] = msgspec.Raw(_encode(SKIP_VALIDATION))
    else:
        del part[key]
        if not fields.text(names, "text") and names.keys() <= {"text", "thought", _SIGNATURE}:
            return None
    return part

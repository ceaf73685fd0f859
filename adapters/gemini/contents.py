"""Turns as Gemini's contents.

A user's content begins with the responses to all calls before it, in their order; the first
content is the user's. Signatures stand beside a call, never in it, and no part has two. A model
that wants them on the calls of the current turn gets Google's own stand-in where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from adapters.canonical import (
    Audio,
    Document,
    Image,
    Part,
    Refusal,
    ResultPart,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    Turn,
)
from adapters.codec import Target
from adapters.gemini.signature import SKIP_VALIDATION
from adapters.gemini.traits import Traits
from adapters.history import arguments_object, result_text
from adapters.losses import Losses
from adapters.names import ToolNames

WirePart = dict[str, object]

_PLACEHOLDER = "."  # where the protocol wants a user's word and there is none
_RESOLUTIONS: Mapping[str, str] = {
    "low": "MEDIA_RESOLUTION_LOW",
    "high": "MEDIA_RESOLUTION_HIGH",
    "original": "MEDIA_RESOLUTION_ULTRA_HIGH",
}
# What Google fetches itself: its own files, its own storage, and public videos.
_FETCHED = (
    "gs://",
    "https://generativelanguage.googleapis.com/",
    "https://www.youtube.com/",
    "https://youtu.be/",
)
_replace = msgspec.structs.replace


class Contents:
    """Writes the turns of one request, as `history.arranged` has them."""

    __slots__ = ("_losses", "_names", "_names_by_call", "_target", "_traits")

    def __init__(self, names: ToolNames, target: Target, traits: Traits, losses: Losses) -> None:
        self._names = names
        self._target = target
        self._traits = traits
        self._losses = losses
        self._names_by_call: Mapping[str, str] = {}

    def written(self, turns: Sequence[Turn]) -> list[dict[str, object]]:
        """The value of `contents`."""
        self._names_by_call = {
            part.id: self._names.wire(part.name, part.namespace)
            for turn in turns
            for part in turn.parts
            if isinstance(part, ToolCall)
        }
        current = _current_turn(turns)
        contents: list[dict[str, object]] = []
        for at, turn in enumerate(turns):
            if turn.role == "assistant":
                role, parts = "model", list(self._model_parts(turn, signed=at > current))
            else:
                role, parts = "user", list(self._user_parts(turn))
            if parts:
                contents.append({"role": role, "parts": parts})
        if not contents or contents[0]["role"] == "model":
            self._losses.approximate("messages")
            contents.insert(0, {"role": "user", "parts": [{"text": _PLACEHOLDER}]})
        elif contents[-1]["role"] == "model":
            self._losses.approximate("prefill")  # answered anew, not gone on with
        return contents

    # -- the model's side -------------------------------------------------------------------------

    def _model_parts(self, turn: Turn, *, signed: bool) -> Iterator[WirePart]:
        """`signed`: the first call has to carry a signature."""
        wants = signed and self._traits.wants_signatures
        waiting = ""  # a signature for the call that follows
        for part in turn.parts:
            if isinstance(part, Thinking):
                own = part.blob if part.blob and self._target.accepts(part.blob) else None
                if own is not None and own.kind == "call":
                    waiting = own.value
                elif own is not None:
                    yield _signed_thought(part.text, own.kind, own.value)
            elif isinstance(part, ToolCall):
                yield self._call(part, waiting, wants=wants)
                waiting, wants = "", False
            else:
                yield from self._said(part)

    def _call(self, call: ToolCall, waiting: str, *, wants: bool) -> WirePart:
        args = arguments_object(call, self._losses)
        function: WirePart = {"name": self._names.wire(call.name, call.namespace), "args": args}
        if self._traits.call_ids:
            function = {"id": call.id, **function}
        signature = waiting
        if call.blob is not None and self._target.accepts(call.blob):
            signature = call.blob.value
        if not signature and wants:
            self._losses.degrade("thought_signature")
            signature = SKIP_VALIDATION
        part: WirePart = {"functionCall": function}
        return {**part, "thoughtSignature": signature} if signature else part

    # -- the user's side --------------------------------------------------------------------------

    def _user_parts(self, turn: Turn) -> Iterator[WirePart]:
        spilled: list[ResultPart] = []  # media of results, for models that want it apart
        for part in turn.parts:
            if isinstance(part, ToolResult):
                yield self._result(part, spilled)
                continue
            yield from self._spill(spilled)
            yield from self._said(part)
        yield from self._spill(spilled)

    def _result(self, result: ToolResult, spilled: list[ResultPart]) -> WirePart:
        texts = [result_text(_replace(result, error=False))]
        others: list[ResultPart] = []
        for part in result.content:
            if isinstance(part, Document) and part.text:
                texts.append(_titled(part))
            elif not isinstance(part, Text):
                others.append(part)
        function: WirePart = {
            "name": self._names_by_call.get(result.call_id, result.name),
            # Never an object of the tool's own: Google looks for references in it.
            "response": {"error" if result.error else "output": "\n".join(filter(None, texts))},
        }
        if self._traits.call_ids:
            function = {"id": result.call_id, **function}
        if others and self._traits.media_in_results:
            function["parts"] = [each for part in others for each in self._said(part)]
        else:
            spilled += others
        return {"functionResponse": function}

    def _spill(self, spilled: list[ResultPart]) -> Iterator[WirePart]:
        for part in spilled:
            yield from self._said(part)
        spilled.clear()

    # -- either -----------------------------------------------------------------------------------

    def _said(self, part: Part) -> Iterator[WirePart]:
        if isinstance(part, Text | Refusal):
            yield {"text": part.text}
        elif isinstance(part, Image):
            yield self._image(part)
        elif isinstance(part, Audio):
            yield _inline(part.media_type, part.data)
        elif isinstance(part, Document):
            yield self._document(part)

    def _image(self, image: Image) -> WirePart:
        if image.data:
            part = _inline(image.media_type, image.data)
        else:
            part = self._file(image.media_type, image.url, image.file_id, "image_url")
        resolution = _RESOLUTIONS.get(image.detail)
        if resolution is not None and self._traits.part_resolution:
            part["mediaResolution"] = {"level": resolution}
            if image.detail == "original":
                self._losses.approximate("detail")
        return part

    def _document(self, document: Document) -> WirePart:
        if document.text:
            return {"text": _titled(document)}
        if document.data:
            return _inline(document.media_type, document.data)
        return self._file(document.media_type, document.url, document.file_id, "file_url")

    def _file(self, media_type: str, url: str, file_id: str, field: str) -> WirePart:
        if file_id and not file_id.startswith(_FETCHED):
            self._losses.refuse("file_id", "does not hold this file; send its data")
        uri = url or file_id
        if not uri.startswith(_FETCHED):
            self._losses.refuse(
                field, "does not fetch addresses on the web; send the data itself, as a data URL"
            )
        data: WirePart = {"fileUri": uri}
        return {"fileData": {"mimeType": media_type, **data} if media_type else data}


def _signed_thought(text: str, kind: str, signature: str) -> WirePart:
    """A thought, or the empty text that signs what was said before or after it: parts with and
    without a signature are never joined."""
    if kind == "text":
        return {"text": "", "thoughtSignature": signature}
    return {"text": text, "thought": True, "thoughtSignature": signature}


def _titled(document: Document) -> str:
    return f"{document.name}\n\n{document.text}".strip()


def _inline(media_type: str, data: str) -> WirePart:
    return {"inlineData": {"mimeType": media_type, "data": data}}


def _current_turn(turns: Sequence[Turn]) -> int:
    """Where the user last said something: what comes after it is one turn to Google. Results are
    part of it, whatever stands beside them."""
    for at in range(len(turns) - 1, -1, -1):
        turn = turns[at]
        if turn.role == "user" and not any(isinstance(part, ToolResult) for part in turn.parts):
            return at
    return -1

"""Answers as Gemini gives them, whole and in chunks, and its other operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from adapters.sandbox.answer import Answer, Call, Finish, Part, Refusal, Text, Thought, joined
from adapters.sandbox.asked import text_tokens
from adapters.sandbox.behaviours import Unshapeable
from adapters.sandbox.embeddings import DIMENSIONS, unit_vector
from adapters.sandbox.gemini_request import (
    GenerateRequest,
    read_count,
    read_embed,
    read_embeds,
    read_generate,
)
from adapters.sandbox.gemini_words import error_object, found_model, refused, trouble, unshapeable
from adapters.sandbox.models import MODELS, Circumstances, Model
from adapters.sandbox.performance import perform
from adapters.sandbox.script import Action, Json, encode, json_answer
from adapters.sandbox.shapes import decoded
from adapters.sandbox.signing import sign

_FINISH: Mapping[Finish, str] = {
    "end": "STOP",
    "calls": "STOP",
    "length": "MAX_TOKENS",
    "stop": "STOP",
    "filter": "SAFETY",
}
_METHODS: Mapping[str, Sequence[str]] = {
    "chat": ("generateContent", "countTokens"),
    "embedding": ("embedContent", "batchEmbedContents"),
}
_TOKENS_MAX = {"inputTokenLimit": 1_048_576, "outputTokenLimit": 65_536}
_LISTED_DEFAULT = 50


def operate(
    name: str,
    action: str,
    query: Mapping[str, str],
    body: bytes,
    circumstances: Circumstances,
) -> Iterable[Action]:
    """Serve `POST /{version}/models/{name}:{action}`. Raises Refused."""
    match action:
        case "generateContent":
            return _generate(name, body, circumstances)
        case "streamGenerateContent":
            return _generate(
                name, body, circumstances, stream=True, as_events=query.get("alt") == "sse"
            )
        case "countTokens":
            return _count(name, body, circumstances)
        case "embedContent" | "batchEmbedContents":
            return _embed(name, action, body, circumstances)
    raise refused(f"Method {action} is not found.", 404)


def _generate(
    name: str,
    body: bytes,
    circumstances: Circumstances,
    *,
    stream: bool = False,
    as_events: bool = False,
) -> Iterable[Action]:
    model = found_model(name).under(circumstances)
    request = read_generate(name, body, stream=stream)
    if model.refuses == "content":
        answer = Answer()
    elif model.refuses is not None:
        raise trouble(model, name)
    else:
        try:
            answer = model.answer(request.asked)
        except Unshapeable as error:
            raise unshapeable(error) from None
    rendering = GenerateRendering(request, model, answer, as_events=as_events)
    return perform(rendering, model, answer, stream=stream)


def _count(name: str, body: bytes, circumstances: Circumstances) -> Iterable[Action]:
    model = found_model(name, "countTokens").under(circumstances)
    tokens = read_count(name, body).prompt_tokens
    if model.refuses is not None and model.refuses != "content":
        raise trouble(model, name)
    details = [{"modality": "TEXT", "tokenCount": tokens}]
    return json_answer({"totalTokens": tokens, "promptTokensDetails": details})


def _embed(name: str, action: str, body: bytes, circumstances: Circumstances) -> Iterable[Action]:
    model = found_model(name, action).under(circumstances)
    single = action == "embedContent"
    requests = [read_embed(name, body)] if single else read_embeds(name, body)
    if model.refuses is not None:
        raise trouble(model, name)
    values = [
        {"values": unit_vector(each.text.encode(), each.dimensions or DIMENSIONS)}
        for each in requests
    ]
    used = {"promptTokenCount": sum(text_tokens([each.text]) for each in requests)}
    found = {"embedding": values[0]} if single else {"embeddings": values}
    return json_answer({**found, "usageMetadata": used})


def list_models(query: Mapping[str, str]) -> Iterable[Action]:
    """Serve `GET /{version}/models`, by pages."""
    size, token = query.get("pageSize", str(_LISTED_DEFAULT)), query.get("pageToken", "0")
    if not size.isdecimal() or not token.isdecimal():
        raise refused("Request contains an invalid argument.")
    first, names = int(token), list(MODELS)
    last = first + (int(size) or _LISTED_DEFAULT)
    more = {"nextPageToken": str(last)} if last < len(names) else {}
    return json_answer({"models": [_listed(name) for name in names[first:last]], **more})


def show_model(name: str) -> Iterable[Action]:
    """Serve `GET /{version}/models/{name}`. Raises Refused."""
    found_model(name, "")
    return json_answer(_listed(name))


def _listed(name: str) -> Json:
    model = found_model(name, "")
    return {
        "name": f"models/{name}",
        "version": "001",
        "displayName": name.replace("-", " ").capitalize(),
        "description": model.description,
        **_TOKENS_MAX,
        "supportedGenerationMethods": _METHODS[model.kind],
    }


class GenerateRendering:
    """One answer; its candidates are equal.

    Calls come whole. A signature is that of the first call, or stands at the end of the text.
    """

    headers: Sequence[tuple[str, str]] = ()

    def __init__(
        self, request: GenerateRequest, model: Model, answer: Answer, *, as_events: bool
    ) -> None:
        self._request = request
        self._asked = request.asked
        self._model = model
        self._answer = answer
        self._as_events = as_events
        self._thought = 0
        self._said = 0
        self._chunks = 0
        self._signs = request.signs or any(isinstance(part, Thought) for part in answer.parts)
        self.stream_type = "text/event-stream" if as_events else "application/json"

    def whole(self) -> bytes:
        """The answer in one."""
        self._count_all()
        if self._model.refuses:
            return encode(self._blocked())
        parts = [found for part in self._answer.parts if (found := self._whole_part(part))]
        if self._signs and not self._answer.calls and parts and not parts[-1].get("thought"):
            parts[-1]["thoughtSignature"] = self._signature("")
        return encode(self._response({"parts": parts} if parts else {}, self._finish()))

    def failed(self) -> bytes:
        """An error object."""
        return encode(error_object(500))

    def opening(self) -> Iterator[bytes]:
        """Nothing of the body: the first chunk has content. But the head goes out."""
        return iter((b"",))

    def begun(self, part: Part) -> Iterator[bytes]:
        """Nothing either."""
        return iter(())

    def piece(self, part: Part, piece: str) -> Iterator[bytes]:
        """A chunk with a piece of text or of a shown thought."""
        match part:
            case Thought():
                self._thought += 1
                if self._shows(part):
                    yield self._chunk({"text": piece, "thought": True})
            case Text() | Refusal():
                self._said += 1
                yield self._chunk({"text": piece})
            case Call():
                self._said += 1

    def ended(self, part: Part) -> Iterator[bytes]:
        """A chunk with the call, if it is whole."""
        if isinstance(part, Call) and (found := self._whole_part(part)):
            yield self._chunk(found)

    def closing(self) -> Iterator[bytes]:
        """Why it ended, with the signature of what was said."""
        if self._model.refuses:
            yield self._event(self._blocked(), last=True)
            return
        signs = self._signs and not self._answer.calls
        signed = {"thoughtSignature": self._signature("")} if signs else {}
        content: Json = {"parts": [{"text": "", **signed}]} if self._answer.parts else {}
        yield self._event(self._response(content, self._finish()), last=True)

    def error(self, *, overloaded: bool) -> Iterator[bytes]:
        """An error object instead of a chunk."""
        yield self._event(error_object(503 if overloaded else 500), last=True)

    def broken(self) -> bytes:
        """Half a chunk."""
        return b'data: {"candidates": [{"content": {"par\r\n\r\n'

    def _event(self, value: Json, *, last: bool = False) -> bytes:
        """An event, or an element of the one array that the body is."""
        first, self._chunks = self._chunks == 0, self._chunks + 1
        if self._as_events:
            return b"data: %b\r\n\r\n" % encode(value)
        return b"%b%b%b" % (b"[" if first else b",\r\n", encode(value), b"]" if last else b"")

    def _chunk(self, part: Json) -> bytes:
        return self._event(self._response({"parts": [part]}))

    def _response(self, content: Json, finish: str | None = None) -> Json:
        ended = {"finishReason": finish} if finish else {}
        candidates = [
            {"content": {**content, "role": "model"}, **ended, "index": index}
            for index in range(self._request.candidates)
        ]
        return {"candidates": candidates, **self._about()}

    def _blocked(self) -> Json:
        return {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, **self._about()}

    def _about(self) -> Json:
        usage = {} if self._model.usage == "never" else {"usageMetadata": self._usage()}
        return {**usage, "modelVersion": self._asked.model, "responseId": self._asked.name}

    def _finish(self) -> str:
        refuses = any(isinstance(part, Refusal) for part in self._answer.parts)
        return "SAFETY" if refuses else _FINISH[self._answer.finish]

    def _whole_part(self, part: Part) -> Json | None:
        """None for what is not shown, and for a call that was cut off."""
        match part:
            case Text() | Refusal():
                return {"text": joined(part)}
            case Thought():
                return {"text": joined(part), "thought": True} if self._shows(part) else None
            case Call(tool):
                arguments = decoded(joined(part).encode())
                if arguments is None:
                    return None
                at = self._answer.calls.index(part)
                call: Json = {"name": tool.name, "args": arguments}
                if self._request.signs:
                    call["id"] = f"{self._asked.name}{at}"
                signed = {"thoughtSignature": self._signature(tool.name)}
                return {"functionCall": call, **(signed if self._signs and at == 0 else {})}

    def _shows(self, part: Thought) -> bool:
        return self._request.shows_thoughts and not part.hidden

    def _signature(self, function: str) -> str:
        return sign(self._asked.name, "gemini", self._asked.model, function)

    def _count_all(self) -> None:
        self._thought = self._answer.thought_tokens
        self._said = self._answer.tokens - self._thought

    def _usage(self) -> Json:
        """What was used until now; thoughts are not part of the candidates' tokens here."""
        prompt, count = self._asked.prompt_tokens, self._request.candidates
        cached = {"cachedContentTokenCount": prompt // 2} if self._model.caches else {}
        thoughts = {"thoughtsTokenCount": self._thought * count} if self._thought else {}
        return {
            "promptTokenCount": prompt,
            **cached,
            "candidatesTokenCount": self._said * count,
            **thoughts,
            "totalTokenCount": prompt + (self._said + self._thought) * count,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt}],
        }

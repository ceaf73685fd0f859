"""A Gemini answer, read into canonical events: chunk by chunk, or in one piece.

Google's parts have no beginning and no end: text goes on until something else comes, a call comes
whole. There is no last word either: the reason to stop is on one of the last chunks, figures and
signatures may follow it, so an answer that gave a reason is complete when its body is.

A signature is told as a fact of the block that its part belongs to: of kind `call` on a call
(before its arguments), `thinking` on a thought, `text` on text. A part that has nothing but a
signature belongs to the text before it; where there is none, it becomes a thought without text.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from adapters.canonical import BlobKind, Citation, Logprob
from adapters.failures import scrub
from adapters.gemini import wire
from adapters.gemini.failure import find_failure, read_error_object
from adapters.raw import UNREADABLE
from adapters.stream import Composer, State

_decode = msgspec.json.Decoder(wire.Answer).decode
_USAGE_CHUNKS = 16  # between two times that the figures are told, for answers that are cut
_DONE = b"[DONE]"  # of servers in front: Google knows no such thing


class GeminiReader:
    """One answer. Implements `codec.Reader`.

    `passing`: the client gets the answer itself, and this is only its meter. Then every candidate
    and every kind of part counts as content, and reasons of Google's own end an answer like any
    other.
    """

    __slots__ = (
        "_cited",
        "_content",
        "_number",
        "_passing",
        "_searches",
        "_signed",
        "_since_usage",
        "_usage",
        "composer",
    )

    def __init__(self, *, passing: bool = False) -> None:
        self.composer = Composer()
        self._passing = passing
        self._content = False
        self._number = 0  # of blocks with keys of ours
        self._searches = 0
        self._usage = wire.ABSENT  # the last figures
        self._since_usage = _USAGE_CHUNKS - 1  # the first is told at once
        self._signed = False  # the open block has its signature: nothing may be joined to it
        self._cited: set[str] = set()

    def read(self, data: bytes) -> None:
        if not data.startswith(_DONE):
            self._read(data)

    def plain(self, body: bytes) -> None:
        self._read(body)
        self.composer.reason("end")  # Google answers without a reason, too
        self.close()

    def close(self) -> None:
        if self._since_usage:
            self._tell_usage()
        self.composer.finish()

    def _tell_usage(self) -> None:
        """Every chunk brings the figures up to it: told now and then, and at the end."""
        usage = wire.usage_in(self._usage, self._searches)
        if usage is not None:
            self.composer.used(usage)
        self._since_usage = 0

    # -- one chunk --------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        composer = self.composer
        try:
            answer = _decode(data)
        except UNREADABLE:
            failure = find_failure(data)
            composer.fail("protocol", "The answer is not what Gemini answers.", failure)
            return
        if answer.error and (failure := read_error_object(bytes(answer.error))) is not None:
            composer.fail("server_error", failure.message, failure)
            return
        if composer.state is State.IDLE:
            composer.start(_text(answer.response_id), _text(answer.model_version))
        candidates = answer.candidates or []
        for candidate in candidates:
            index = candidate.index
            first = index == 0 or (index is None and candidate is candidates[0])
            if first or self._passing:
                self._candidate(candidate, ends=first)
        feedback = answer.prompt_feedback
        if feedback is not None and feedback.block_reason and not answer.candidates:
            composer.reason("content_filter", detail=_why(feedback))
        if len(answer.usage_metadata) > len(b"null"):
            self._usage = answer.usage_metadata
            self._since_usage += 1
            if self._since_usage >= _USAGE_CHUNKS or composer.has_reason:
                self._tell_usage()

    def _candidate(self, candidate: wire.Candidate, *, ends: bool) -> None:
        if candidate.content is not None:
            for part in candidate.content.parts or ():
                self._part(part)
        if candidate.logprobs_result is not None:
            self._logprobs(candidate.logprobs_result)
        if candidate.grounding_metadata is not None:
            self._grounding(candidate.grounding_metadata)
        if candidate.citation_metadata is not None:
            cited = candidate.citation_metadata
            self._cite([*(cited.citations or ()), *(cited.citation_sources or ())])
        if ends and candidate.finish_reason:
            self._reason(_text(candidate.finish_reason), scrub(candidate.finish_message))

    # -- parts ------------------------------------------------------------------------------------

    def _part(self, part: wire.Part) -> None:
        signature = "" if part.thought_signature is None else _text(part.thought_signature)
        if part.function_call is not None:
            self._call(part.function_call, signature)
        elif part.text:
            kind: Literal["thinking", "text"] = "thinking" if part.thought is True else "text"
            self._content = True
            if self._signed:
                self._close()
            self.composer.run(kind, part.text)
            if signature:
                self._sign(signature, kind)
        elif signature:
            self._sign_alone(signature, "thinking" if part.thought is True else "text")
        elif self._passing and part.is_opaque:
            self._content = True
            self.composer.run("text", " ")  # content that only Google can count

    def _call(self, call: wire.Call, signature: str) -> None:
        composer, key = self.composer, self._key()
        self._content = True
        self._close()
        composer.open(key, "call", _text(call.id), _text(call.name))
        if signature:
            composer.meta(key, signature=signature, kind="call")
        composer.delta(key, _arguments(call.args))
        composer.close(key)

    def _sign(self, signature: str, kind: BlobKind) -> None:
        """The open block carries a signature."""
        self.composer.meta(self.composer.open_key, signature=signature, kind=kind)
        self._signed = True

    def _sign_alone(self, signature: str, kind: BlobKind) -> None:
        if self._signed or self.composer.open_kind != kind:
            self._close()
            self.composer.open(self._key(), "thinking")
        self._sign(signature, kind)

    def _close(self) -> None:
        self.composer.close_all()
        self._signed = False

    def _key(self) -> int:
        self._number += 1
        return self._number

    # -- facts ------------------------------------------------------------------------------------

    def _grounding(self, found: wire.Grounding) -> None:
        self._searches = max(self._searches, len(found.web_search_queries or ()))
        self._cite([chunk.web for chunk in found.grounding_chunks or () if chunk.web is not None])

    def _cite(self, sources: list[wire.Web]) -> None:
        """Sources of the text, each once; they come when it is complete."""
        key = self.composer.open_key
        if key is None or self.composer.open_kind != "text":
            return
        for source in sources:
            url = _text(source.uri)
            if url and url not in self._cited:
                self._cited.add(url)
                self.composer.meta(key, citation=Citation(url, _text(source.title)))

    def _logprobs(self, result: wire.Logprobs) -> None:
        key = self.composer.open_key
        if key is None or self.composer.open_kind != "text" or not result.chosen_candidates:
            return
        tops = result.top_candidates or []
        found = []
        for at, chosen in enumerate(result.chosen_candidates):
            likeliest = (tops[at].candidates if at < len(tops) else None) or ()
            top = tuple((each.token, each.log_probability) for each in likeliest)
            found.append(Logprob(chosen.token, chosen.log_probability, top))
        self.composer.meta(key, logprobs=tuple(found))

    def _reason(self, word: str, message: str) -> None:
        composer = self.composer
        known = wire.REASONS.get(word)
        if known is not None:
            composer.reason(known, detail=message)
        elif self._passing or not (word in wire.MALFORMED or self._is_nothing(word)):
            composer.reason("end", detail=message)
        else:
            why = f"The model's answer is malformed ({word}). {message}"
            composer.fail("protocol", why.strip())

    def _is_nothing(self, word: str) -> bool:
        return word in wire.VAGUE and not self._content


def _arguments(args: msgspec.Raw) -> str:
    """The arguments as compact JSON, every number spelled as it was."""
    if not args or bytes(args) == b"null":
        return "{}"
    text = bytes(args)
    try:
        return msgspec.json.format(text, indent=-1).decode()
    except UNREADABLE:  # half a character, which was only skipped until now
        return text.decode(errors="replace")


def _why(feedback: wire.Feedback) -> str:
    return scrub(feedback.block_reason_message) or f"Blocked: {_text(feedback.block_reason)}."


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""

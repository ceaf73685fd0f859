"""One request as each of its candidates gets it: passed on, or translated.

The canonical prompt is made at most once, and only where some candidate speaks another protocol
than the client. Nothing is sent here.

This is the one place that holds what was asked, which may be megabytes. An answer may stream for
minutes, and whoever lives as long as that takes figures out of the request, never its body: so it
can be let go of here, for all, when there is nobody left to be asked.
"""

from __future__ import annotations

from typing import cast

import msgspec

from adapters.canonical import Prompt, Thinking, ToolCall
from adapters.codec import Call, CountCall, DownstreamCodec, Request, Target
from adapters.embedders import embedding_call
from adapters.embedding import EmbeddingDownstream
from adapters.envelope import MARKS, Envelopes
from adapters.errors import InvalidRequest, RequestNotExpressible
from adapters.translate import Translation
from proxy.route import Candidate

_LONG_BYTES = 256 * 1024  # of many small messages, at worst 100 ms
_LARGE_BYTES = 1024 * 1024  # of media, which is only looked at: about 40 ms


class Calls(msgspec.Struct, eq=False):
    """The calls of one request; `codec` is the client's side. `created` is now, in seconds since
    the epoch."""

    codec: DownstreamCodec
    request: Request
    envelopes: Envelopes
    created: int
    _prompt: Prompt | None = None

    def let_go(self) -> None:
        """Nobody else is asked: from here on `request` has its facts, and no body."""
        self.request = msgspec.structs.replace(self.request, fields={}, echo={})
        self._prompt = None

    def at(self, candidate: Candidate, output_cap: int | None) -> Call:
        """The call of one candidate.

        Raises RequestNotExpressible where its provider's protocol has no place for something that
        was asked, and InvalidRequest where the body is malformed.
        """
        request, speech = self.request, candidate.speech[self.request.protocol]
        target = self._target(candidate, output_cap)
        try:
            if request.kind == "embedding":
                return embedding_call(cast("EmbeddingDownstream", self.codec), request, target)
            if speech.same and not request.foreign:
                return speech.codec.passing(request, target, self.envelopes)
            return Translation(
                self.codec,
                speech.codec,
                request,
                self.prompt(),
                target,
                self.envelopes,
                self.created,
            )
        except RecursionError:
            raise _too_deep() from None

    def is_long(self, candidate: Candidate) -> bool:
        """Whether the call of a candidate takes so long to make that others would notice."""
        size = self.request.body_bytes
        if size <= _LONG_BYTES:
            return False
        long = size > _LARGE_BYTES or size - self.request.scan.media_bytes > _LONG_BYTES
        return long and not self._passes(candidate)

    def counting(self, candidate: Candidate) -> CountCall | None:
        """The question for one candidate's own token counter; None where it has none.

        Raises as `at` does.
        """
        upstream = candidate.speech[self.request.protocol].codec
        target = self._target(candidate, None)
        try:
            if self._passes(candidate):
                return upstream.counting_passing(self.request, target)
            return upstream.counting(self.prompt(), target)
        except RecursionError:
            raise _too_deep() from None

    def prompt(self) -> Prompt:
        """The canonical request."""
        if self._prompt is None:
            try:
                self._prompt = self.codec.prompt(self.request, self.envelopes)
            except RecursionError:
                raise _too_deep() from None
        return self._prompt

    def signers_first(self, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        """The candidates in their order, but first those that have signed some of the reasoning.

        A conversation with signed reasoning in it stays where that was signed, as long as that
        provider is among them: only there it is worth anything.
        """
        if len(candidates) == 1 or not self._holds_envelopes():
            return candidates
        try:
            turns = self.prompt().turns
        except RequestNotExpressible:  # elsewhere than where it passes
            return candidates
        signers = {
            part.blob.provider
            for turn in turns
            for part in turn.parts
            if isinstance(part, Thinking | ToolCall) and part.blob is not None
        }
        return tuple(
            sorted(candidates, key=lambda each: each.upstream.provider.name not in signers)
        )

    def _holds_envelopes(self) -> bool:
        if not self.request.scan.signed:
            return False
        values = map(bytes, self.request.fields.values())
        return any(mark in value for value in values for mark in MARKS)

    def _passes(self, candidate: Candidate) -> bool:
        return candidate.speech[self.request.protocol].same and not self.request.foreign

    def _target(self, candidate: Candidate, output_cap: int | None) -> Target:
        upstream = candidate.upstream
        return Target(upstream.provider, upstream.model, output_cap, self.request.stream)


def _too_deep() -> InvalidRequest:
    """What could be read may still be too deep to be written, from where the stack is deeper."""
    return InvalidRequest("The request body is nested too deeply.")

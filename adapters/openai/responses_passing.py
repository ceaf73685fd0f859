"""A Responses stream between two ends of this protocol: what is done to its events on the way.

Only events that carry the response itself name the model; their bytes are edited, all others pass
as they came. The response and the last event are remembered, so that an error of ours goes on where
the stream was. For an end of ours more has to be known: see `responses_cut`.
"""

from __future__ import annotations

import re

import msgspec

from adapters import sse
from adapters.canonical import Usage
from adapters.codec import Request
from adapters.errors import APIError
from adapters.openai.responses_cut import Gathered
from adapters.openai.responses_failed import failed_at_once, failure_events
from adapters.raw import UNREADABLE, kept

_RESPONSE = b'"response"'  # never inside a string, where its quotes would be escaped
_NUMBER = re.compile(rb'"sequence_number"\s*:\s*(\d{1,18})')
_ABSENT = msgspec.Raw()

Members = dict[str, msgspec.Raw]

_decode_members = msgspec.json.Decoder(Members).decode
_encode = msgspec.json.encode


class ResponsesManner:
    """What one stream's client sees. Implements `passing.Manner`."""

    __slots__ = ("_gathered", "_last", "_ours", "_response")

    def __init__(self, request: Request) -> None:
        self._ours = _ours(request)
        self._response: Members = {}
        self._last = b""
        self._gathered = Gathered()

    def shown(self, raw: bytes, payload: bytes) -> bytes:
        if payload:
            self._last = payload
        if _RESPONSE not in payload:
            return raw
        try:
            members = _decode_members(payload)
            response = _decode_members(members.get("response", _ABSENT))
        except UNREADABLE:
            return raw
        _overwrite(response, self._ours)
        self._response = response
        members["response"] = msgspec.Raw(_encode(response))
        return sse.with_data(raw, _encode(members))

    def end(self) -> bytes:
        return b""

    def remember(self, payload: bytes) -> None:
        self._gathered.read(payload)

    def cut(self, usage: Usage) -> bytes:
        return self._gathered.end(self._next_number(), self._response, usage)

    def error_event(self, error: APIError, request_id: str) -> bytes:
        if not self._response:
            return failed_at_once(error, request_id)
        return failure_events(error, request_id, self._next_number(), self._response)

    def _next_number(self) -> int:
        """Of the event behind the last that passed."""
        number = _NUMBER.search(self._last)
        return int(number[1]) + 1 if number is not None else 0


def shown_response(body: bytes, request: Request) -> bytes:
    """A whole response as the client of `request` sees it; every other byte of a value stays."""
    try:
        response = _decode_members(body)
    except UNREADABLE:
        return body
    _overwrite(response, _ours(request))
    return _encode(response)


def _ours(request: Request) -> Members:
    """What the provider knows otherwise: the model's name, and what is kept here, not there."""
    return {"model": msgspec.Raw(_encode(request.model)), **kept(request.echo)}


def _overwrite(response: Members, ours: Members) -> None:
    """Write what the response has a member for."""
    for name in response.keys() & ours.keys():
        response[name] = ours[name]

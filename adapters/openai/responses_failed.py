"""How a Responses stream ends where an answer could not be completed.

Readers disagree on what an error looks like: the public schema has its members at the top of an
`error` event, the SDKs raise on an `error` object inside it, and Codex looks at nothing but
`response.failed`. So all three are sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from secrets import token_hex

import msgspec

from adapters.errors import APIError
from adapters.openai.refusal import OpenAIRefusals
from adapters.openai.responses_wire import event, response_object

_REFUSALS = OpenAIRefusals()


class _Envelope(msgspec.Struct):
    error: dict[str, msgspec.Raw]


_decode_envelope = msgspec.json.Decoder(_Envelope).decode


def failure_events(
    error: APIError, request_id: str, sequence: int, response: Mapping[str, object]
) -> bytes:
    """The end of a stream whose next event is number `sequence`; `response` is what has come."""
    facts = _decode_envelope(_REFUSALS.error_body(error, request_id)).error
    code, message = facts["code"], facts["message"]
    told = event(
        "error",
        {
            "sequence_number": sequence,
            "code": code,
            "message": message,
            "param": facts["param"],
            "error": facts,
        },
    )
    failed = {**response, "status": "failed", "error": {"code": code, "message": message}}
    return told + event("response.failed", {"sequence_number": sequence + 1, "response": failed})


def failed_at_once(error: APIError, request_id: str) -> bytes:
    """The same for a stream of which nothing has come: SDKs want to see a response first."""
    response = response_object(f"resp_{token_hex(24)}", "", 0)
    created = event("response.created", {"sequence_number": 0, "response": response})
    return created + failure_events(error, request_id, 1, response)

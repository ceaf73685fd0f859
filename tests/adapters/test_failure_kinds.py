"""Every status, and every failure of the sandbox, is read as the same kind in every protocol.

And nothing of what a client can have a provider repeat takes that provider out of rotation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import sandbox
from adapters.anthropic import failure as anthropic_failure
from adapters.codec import FailureKind, UpstreamFailure
from adapters.gemini import failure as gemini_failure
from adapters.openai import failure as openai_failure
from proxy.verdicts import VERDICTS, Says
from tests.fakes.sandbox import Played, chat, generate, messages, responses

Read = Callable[[int, Mapping[bytes, bytes], bytes], UpstreamFailure]

READERS: Mapping[str, Read] = {
    "openai": openai_failure.read_failure,
    "anthropic": anthropic_failure.read_failure,
    "gemini": gemini_failure.read_failure,
}
NAMED: Mapping[int, FailureKind] = {
    401: "auth",
    402: "quota",
    403: "forbidden",
    404: "model_not_found",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    425: "conflict",
    429: "rate_limited",
    503: "overloaded",
    504: "timeout",
    529: "overloaded",
}
SILENT = [b"", b"<html>nginx</html>", b"{}", b"null", b'{"error":null}', b"\xff"]


@pytest.mark.parametrize("reader", READERS)
def test_a_status_alone_tells_the_kind(reader: str) -> None:
    for status in range(100, 600):
        mended = "bad_request" if 400 <= status < 500 else "server_error"
        for body in SILENT:
            found = READERS[reader](status, {}, body)
            assert (found.kind, found.status) == (NAMED.get(status, mended), status), body
            assert found.kind in VERDICTS


ASKING: Mapping[str, tuple[str, Callable[[str], Played]]] = {
    "chat": ("openai", chat),
    "responses": ("openai", responses),
    "messages": ("anthropic", messages),
    "generate": ("gemini", generate),
}
KINDS: Mapping[str, FailureKind] = {
    "sandbox-error-400": "bad_request",
    "sandbox-error-401": "auth",
    "sandbox-error-402": "quota",
    "sandbox-error-403": "forbidden",
    "sandbox-error-404": "model_not_found",
    "sandbox-error-408": "timeout",
    "sandbox-error-409": "conflict",
    "sandbox-error-413": "too_large",
    "sandbox-error-415": "bad_request",
    "sandbox-error-422": "bad_request",
    "sandbox-error-425": "conflict",
    "sandbox-error-429": "rate_limited",
    "sandbox-error-429-exact": "rate_limited",
    "sandbox-error-429-long": "rate_limited",
    "sandbox-error-429-unhinted": "rate_limited",
    "sandbox-error-500": "server_error",
    "sandbox-error-502": "server_error",
    "sandbox-error-503": "overloaded",
    "sandbox-error-503-unhinted": "overloaded",
    "sandbox-error-504": "timeout",
    "sandbox-error-529": "overloaded",
    "sandbox-context-overflow": "context_length",
    "sandbox-content-filter": "content_filter",
    "sandbox-no-credit": "quota",
    "sandbox-no-page": "model_not_found",
    "sandbox-no-reference": "bad_request",
    "sandbox-redirect": "server_error",
}
EXCEPTIONS: Mapping[tuple[str, str], FailureKind | None] = {
    ("generate", "sandbox-error-400"): "auth",  # Google's word for a bad key
    ("generate", "sandbox-content-filter"): None,  # an answer like any other
    ("messages", "sandbox-content-filter"): "bad_request",
    ("responses", "sandbox-content-filter"): "bad_request",
    ("messages", "sandbox-no-reference"): "not_found",
}
HINTS: Mapping[str, float] = {
    "sandbox-error-429": 1,
    "sandbox-error-429-exact": 0.5,
    "sandbox-error-429-long": 120,
}


def read(surface: str, model: str) -> UpstreamFailure:
    protocol, ask = ASKING[surface]
    played = ask(model)
    headers = {name.encode(): value.encode() for name, value in played.headers.items()}
    return READERS[protocol](played.status, headers, played.body)


@pytest.mark.parametrize("surface", ASKING)
@pytest.mark.parametrize("model", KINDS)
def test_what_the_sandbox_refuses_is_read_as_it_is_meant(surface: str, model: str) -> None:
    kind = EXCEPTIONS.get((surface, model), KINDS[model])
    if kind is None:
        return
    failure = read(surface, model)
    assert failure.kind == kind
    hinted = HINTS.get(model)
    if model == "sandbox-error-503":  # which OpenAI tells, and nobody else
        hinted = 1 if surface in ("chat", "responses") else None
    assert failure.retry_after == hinted


def test_every_failing_model_is_in_this_table() -> None:
    failing = {name for name, model in sandbox.MODELS.items() if model.refuses is not None}
    assert failing == set(KINDS)


OPENS_AT_ONCE = {kind for kind, verdict in VERDICTS.items() if verdict.says is Says.OUT}
BLAMING = [
    "API key not valid",
    "Incorrect API key provided",
    "Your API key is invalid.",
    "OAuth token has been revoked.",
    "Your credit balance is too low to access the Anthropic API.",
    "The model does not exist",
    "not found",
    "You exceeded your current quota, please",
    "billing",
    "User location is not supported",
]
REPEATING: list[tuple[str, int, str]] = [
    ("openai", 400, "Invalid value: '{}'. Supported values are: 'auto'."),
    ("openai", 400, "Unrecognized request argument supplied: {}"),
    ("openai", 403, "You are not allowed to use '{}'."),
    ("openai", 404, "Conversation with id '{}' not found."),
    ("openai", 404, "Item with id `{}` not found."),
    ("anthropic", 400, "{}: Extra inputs are not permitted"),
    ("anthropic", 400, "messages.0.content: Input tag '{}' found using 'type' does not match"),
    ("anthropic", 404, "File not found: {}"),
    ("gemini", 400, 'Invalid JSON payload received. Unknown name "{}": Cannot find field.'),
    ("gemini", 400, "Invalid value at 'contents[0]' (TYPE_STRING), \"{}\""),
    ("gemini", 403, "You do not have permission to access the File {} or it may not exist."),
    ("gemini", 404, 'Corpus "{}" was not found.'),
]
TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "not_found_error",
}
STATUSES: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
}


@given(
    st.sampled_from(REPEATING),
    st.lists(st.sampled_from([*BLAMING, "'", '"', "`", ": ", "\n", "x"]), min_size=1, max_size=5),
)
def test_nothing_that_a_client_says_takes_an_upstream_out(
    repeating: tuple[str, int, str], said: list[str]
) -> None:
    protocol, status, wording = repeating
    error = {
        "message": wording.format(" ".join(said)),
        "type": TYPES[status],
        "status": STATUSES[status],
        "code": status,
    }
    failure = READERS[protocol](status, {}, json.dumps({"error": error}).encode())
    assert failure.kind not in OPENS_AT_ONCE

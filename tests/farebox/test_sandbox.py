"""The sandbox as a server: all protocols at one origin, accidents on real sockets, its director."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.client import HTTPConnection, HTTPResponse, IncompleteRead, RemoteDisconnected
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import trio

from adapters.sandbox import MODELS
from farebox.sandbox import upstream
from tests.fakes.director import Sandbox
from tests.fakes.process import sandbox_process

CONTENTS = {"contents": [{"parts": [{"text": "Hello!"}]}]}
MESSAGES = {"max_tokens": 9, "messages": [{"role": "user", "content": "Hello!"}]}


async def ask(url: str, body: object = None, **headers: str) -> tuple[str, bytes]:
    """The content type and the body of an answer; a POST where there is something to send."""

    def fetch() -> tuple[str, bytes]:
        data = None if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with urlopen(Request(url, data, named), timeout=10) as answer:  # noqa: S310 - loopback
            return answer.headers["content-type"], answer.read()

    return await trio.to_thread.run_sync(fetch)


async def test_all_protocols_at_one_origin() -> None:
    async with upstream() as base_url:
        origin = base_url.removesuffix("/v1")
        gemini = partial(ask, body=CONTENTS, x_goog_api_key="k")
        url = f"{origin}/v1beta/models/sandbox:streamGenerateContent"
        assert (await gemini(f"{url}?alt=sse"))[0] == "text/event-stream"
        assert (await gemini(url))[0] == "application/json"
        message = {"model": "sandbox-long", **MESSAGES}
        named = {"x_api_key": "k", "anthropic_version": "2023-06-01"}
        _, answered = await ask(f"{origin}/v1/messages?beta=true", message, **named)
        assert json.loads(answered)["stop_reason"] == "max_tokens"
        _, counted = await ask(f"{origin}/sandbox/calls")
        assert json.loads(counted) == {"calls": 3, "models": {"sandbox": 2, "sandbox-long": 1}}


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with sandbox_process() as found:
        yield found


@pytest.fixture
def sandbox(origin: str) -> Iterator[Sandbox]:
    """Asked about nothing else meanwhile, and well again afterwards."""
    found = Sandbox(origin)
    yield found
    found.set_mood("")


def post(origin: str, model: str, text: str, *, stream: bool = True) -> HTTPResponse:
    """The head of an answer; the connection is the answer's own."""
    connection = HTTPConnection(origin.removeprefix("http://"), timeout=5)
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
    headers = {"authorization": "Bearer k", "connection": "close"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    try:
        return connection.getresponse()
    except OSError:
        connection.close()
        raise


def read(origin: str, model: str, text: str, *, stream: bool = True) -> tuple[int, bytes]:
    """Status and body of an answer."""
    with post(origin, model, text, stream=stream) as answer:
        return answer.status, answer.read()


def ends_since(sandbox: Sandbox, number: int, count: int = 1) -> list[str]:
    """How the next answers ended. One is logged just after its last byte."""
    for _ in range(200):
        if len(found := sandbox.performances(number)) >= count:
            return [each.end for each in found]
        threading.Event().wait(0.01)
    raise AssertionError(found)


def last_number(sandbox: Sandbox) -> int:
    return max((each.number for each in sandbox.performances()), default=0)


@pytest.mark.parametrize(("name", "fails"), [("once", 1), ("twice", 2), ("thrice", 3)])
def test_a_request_fails_so_often_and_no_other(
    origin: str, sandbox: Sandbox, name: str, fails: int
) -> None:
    before = last_number(sandbox)
    statuses = []
    for nonce in ("a", "b"):
        asking = partial(read, origin, f"sandbox-error-500-{name}", f"echo 2 {name}-{nonce}")
        statuses += [asking()[0] for _ in range(fails)]
        _, answered = asking()
        assert f"{name}-{nonce}-1".encode() in answered
        assert f" {name}-{nonce}-2".encode() in answered
    assert statuses == [500] * fails * 2
    assert ends_since(sandbox, before, 2 * fails + 2) == [*["refused"] * fails, "whole"] * 2
    tries = [(each.nonce, each.tried) for each in sandbox.performances(before)]
    assert tries == [(f"{name}-{nonce}", tried) for nonce in "ab" for tried in range(fails + 1)]


def test_a_reset_is_an_error_and_a_cut_is_an_end(origin: str, sandbox: Sandbox) -> None:
    before = last_number(sandbox)
    for stream in (True, False):
        with pytest.raises(ConnectionResetError):
            post(origin, "sandbox-reset-first", "x", stream=stream)
        with pytest.raises(ConnectionResetError):
            read(origin, "sandbox-reset-40", "x", stream=stream)
        with pytest.raises(RemoteDisconnected):
            post(origin, "sandbox-cut-first", "x", stream=stream)
        with pytest.raises(IncompleteRead):
            read(origin, "sandbox-cut-40", "x", stream=stream)
    assert ends_since(sandbox, before, 8) == ["reset", "reset", "cut", "cut"] * 2


def test_silence_comes_with_a_head_or_without(origin: str, sandbox: Sandbox) -> None:
    before = last_number(sandbox)
    body = json.dumps({"model": "sandbox-silent", **MESSAGES, "stream": True})
    silent = HTTPConnection(origin.removeprefix("http://"), timeout=0.3)
    silent.request("POST", "/v1/chat/completions", body, {"authorization": "Bearer k"})
    with pytest.raises(TimeoutError):
        silent.getresponse()
    silent.close()
    for stream in (True, False):
        with post(origin, "sandbox-hung", "x", stream=stream) as hung:
            assert hung.status == 200
    assert ends_since(sandbox, before, 3) == ["hung"] * 3
    assert [each.status for each in sandbox.performances(before)] == [0, 200, 200]


def test_a_body_that_ends_well_may_be_spoilt(origin: str, sandbox: Sandbox) -> None:
    before = last_number(sandbox)
    _, streamed = read(origin, "sandbox-unended", "x")
    assert b"begins: x" in b"".join(
        json.loads(event[6:])["choices"][0]["delta"].get("content", "").encode()
        for event in streamed.split(b"\n\n")[:-1]
    )
    assert b'finish_reason":"' not in streamed
    assert b"[DONE]" not in streamed
    _, plain = read(origin, "sandbox-unended", "x", stream=False)
    with pytest.raises(json.JSONDecodeError):
        json.loads(plain)
    for model in ("sandbox-malformed-first", "sandbox-error-in-stream", "sandbox-overloaded-first"):
        assert read(origin, model, "x")[1]
    assert ends_since(sandbox, before, 5) == ["spoilt"] * 5


def test_a_mood_spoils_every_answer_until_it_passes(origin: str, sandbox: Sandbox) -> None:
    before = last_number(sandbox)
    echo = partial(read, origin, "sandbox-echo", "echo 10 moody")
    sandbox.set_mood("sandbox-cut-40")
    with pytest.raises(IncompleteRead) as cut:
        echo()
    assert b" moody-4" in cut.value.partial
    assert b" moody-5" not in cut.value.partial
    sandbox.set_mood("sandbox-error-429-exact")
    with post(origin, "sandbox-echo", "echo 10 moody") as refused:
        assert refused.status == 429
        assert refused.headers["retry-after-ms"] == "500"
        assert refused.headers["retry-after"] == "1"
        refused.read()
    sandbox.set_mood("")
    assert b" moody-10" in echo()[1]
    assert ends_since(sandbox, before, 3) == ["cut", "refused", "whole"]
    found = sandbox.performances(before)
    assert [each.mood for each in found] == ["sandbox-cut-40", "sandbox-error-429-exact", ""]
    assert {(each.model, each.nonce) for each in found} == {("sandbox-echo", "moody")}
    assert [each.tried for each in found] == [0, 1, 2]
    cut_off, refusal, whole = found
    assert refusal.spoke is None
    for each in (cut_off, whole):
        assert each.spoke is not None
        assert each.began <= each.spoke <= each.ended


def test_the_first_word_has_a_moment_of_its_own(origin: str, sandbox: Sandbox) -> None:
    before = last_number(sandbox)
    sandbox.set_mood("sandbox-slow")
    assert b"later-3" in read(origin, "sandbox-echo", "echo 3 later")[1]
    assert ends_since(sandbox, before) == ["whole"]
    (late,) = sandbox.performances(before)
    assert late.spoke is not None
    assert late.spoke - late.began >= MODELS["sandbox-slow"].first_seconds
    assert late.ended - late.spoke >= 2 * MODELS["sandbox-slow"].delta_seconds


def test_a_mood_may_pass_for_each_request_by_itself(origin: str, sandbox: Sandbox) -> None:
    sandbox.set_mood("sandbox-error-503-once")
    statuses = [read(origin, "sandbox-echo", text)[0] for text in ("y", "z", "y", "z")]
    assert statuses == [503, 503, 200, 200]


@pytest.mark.parametrize("body", [b"", b"{}", b'{"mood": "cheerful"}', b'{"mood": 1}'])
def test_what_is_no_mood_is_refused(origin: str, body: bytes) -> None:
    with pytest.raises(HTTPError) as refused:
        urlopen(f"{origin}/sandbox/mood", body, timeout=5)  # noqa: S310 - loopback
    with refused.value as answer:
        assert answer.status == 400
        assert json.loads(answer.read())["error"]


def test_the_log_wants_a_number(origin: str) -> None:
    with pytest.raises(HTTPError, match="400") as refused:
        urlopen(f"{origin}/sandbox/log?after=x", timeout=5)  # noqa: S310 - loopback
    refused.value.close()

"""The sandbox as a server: it passes on the query, and counts the models it was asked for."""

from __future__ import annotations

import json
from functools import partial
from urllib.request import Request, urlopen

import trio

from farebox.sandbox import upstream

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

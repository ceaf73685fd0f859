"""Real clients in numbers: HTTP/1.1 calls over real sockets that note how each one ended."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h11
import trio

CALL_SECONDS = 60


@dataclass
class Outcome:
    """What a client saw. `complete`: the whole answer arrived, down to the end of its framing."""

    model: str
    status: int = 0
    request_id: str = ""
    complete: bool = False
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """The stable code of an error, or ""."""
        try:
            decoded = json.loads(self.body)
        except ValueError:
            return ""
        error = decoded.get("error") if isinstance(decoded, dict) else None
        return str(error.get("code")) if isinstance(error, dict) else ""


async def call(
    base_url: str,
    key: str,
    model: str,
    *,
    stream: bool = False,
    leave_after: int | None = None,
    once: str = "",
    **fields: object,
) -> Outcome:
    """One chat completion. With `leave_after` the client hangs up after so many bytes of body;
    `once` is an idempotency key.

    A connection that breaks is an outcome, not an error.
    """
    parts = urlsplit(base_url)
    outcome = Outcome(model)
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    data = json.dumps(body | fields).encode()
    with trio.move_on_after(CALL_SECONDS):
        try:
            async with await trio.open_tcp_stream(parts.hostname or "", parts.port or 80) as peer:
                await _exchange(peer, key, data, outcome, leave_after, once)
        except (OSError, trio.BrokenResourceError, h11.RemoteProtocolError):
            return outcome
    return outcome


async def _exchange(
    peer: trio.SocketStream,
    key: str,
    data: bytes,
    outcome: Outcome,
    leave_after: int | None,
    once: str,
) -> None:
    connection = h11.Connection(h11.CLIENT)
    request = h11.Request(
        method="POST",
        target="/v1/chat/completions",
        headers=[
            ("host", "gateway"),
            ("authorization", f"Bearer {key}"),
            ("content-type", "application/json"),
            ("content-length", str(len(data))),
            ("connection", "close"),
            *([("idempotency-key", once)] if once else []),
        ],
    )
    head = connection.send(request) or b""
    await peer.send_all(head + data)
    connection.send(h11.Data(data=data))
    connection.send(h11.EndOfMessage())
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await peer.receive_some(65_536))
        elif isinstance(event, h11.Response):
            outcome.status = event.status_code
            outcome.headers = {n.decode(): v.decode() for n, v in event.headers}
            outcome.request_id = outcome.headers.get("x-request-id", "")
        elif isinstance(event, h11.Data):
            outcome.body += event.data
            if leave_after is not None and len(outcome.body) >= leave_after:
                return
        elif isinstance(event, h11.EndOfMessage):
            outcome.complete = True
            return

"""Clients in numbers that ask, listen to the end, and ask again: real sockets, no retries.

A connection that breaks is something that was heard, not an error. What was heard is judged at
once, so that a long run keeps no bodies.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h11
import trio

from adapters import sse
from tests.chaos.questions import Question, question
from tests.chaos.transcript import Heard, Transcript

CALL_SECONDS = 60
THINK_SECONDS = (0.0, 8.0)
_RECEIVE_BYTES = 65_536


@dataclass
class Crowd:
    """So many clients of one gateway. Whatever one of them has heard goes to `tell`."""

    base_url: str
    key: str
    count: int
    seed: int
    tell: Callable[[Heard], None]
    done: trio.Event = field(default_factory=trio.Event)

    async def run(self) -> None:
        """Until `done`, and the last answers have come."""
        async with trio.open_nursery() as nursery:
            for number in range(self.count):
                nursery.start_soon(self._client, random.Random(f"{self.seed} {number}"))

    async def _client(self, dice: random.Random) -> None:
        await trio.sleep(dice.uniform(*THINK_SECONDS))
        while not self.done.is_set():
            self.tell(await ask(self.base_url, self.key, question(dice)))
            with trio.move_on_after(dice.uniform(*THINK_SECONDS)):
                await self.done.wait()


async def ask(base_url: str, key: str, asked: Question) -> Heard:
    """Ask one question and listen until the answer ends, one way or the other."""
    heard = Heard(asked, time.monotonic())
    parts = urlsplit(base_url)
    with trio.move_on_after(CALL_SECONDS):
        try:
            async with await trio.open_tcp_stream(parts.hostname or "", parts.port or 80) as peer:
                await _exchange(peer, key, heard)
        except (OSError, trio.BrokenResourceError, h11.RemoteProtocolError):
            pass  # `framed` stays False
    heard.ended = time.monotonic()
    return heard


async def _exchange(peer: trio.SocketStream, key: str, heard: Heard) -> None:
    data = heard.question.body()
    connection = h11.Connection(h11.CLIENT)
    head = connection.send(
        h11.Request(
            method="POST",
            target=heard.question.path,
            headers=[
                ("host", "gateway"),
                ("authorization", f"Bearer {key}"),
                ("content-type", "application/json"),
                ("content-length", str(len(data))),
                ("connection", "close"),
            ],
        )
    )
    await peer.send_all((head or b"") + data)
    connection.send(h11.Data(data=data))
    connection.send(h11.EndOfMessage())
    splitter, transcript = sse.Splitter(), Transcript(heard.question.surface)
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await peer.receive_some(_RECEIVE_BYTES))
        elif isinstance(event, h11.Response):
            heard.status = event.status_code
            heard.headers = {name.decode(): value.decode() for name, value in event.headers}
        elif isinstance(event, h11.Data):
            heard.body += event.data
            if heard.first_content is None and heard.status == 200:
                for each in splitter.feed(event.data):
                    transcript.feed(each)
                if transcript.text:
                    heard.first_content = time.monotonic()
        elif isinstance(event, h11.EndOfMessage):
            heard.framed = True
            return

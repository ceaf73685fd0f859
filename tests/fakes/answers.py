"""A provider's answers in a protocol of one word a line, for tests of what reads any protocol."""

from __future__ import annotations

from adapters.canonical import Usage
from adapters.stream import Composer


class FakeReader:
    """Reads `word argument` lines into calls of the composer; `plain` gets all of them."""

    def __init__(self) -> None:
        self.composer = Composer()

    def read(self, data: bytes) -> None:
        composer = self.composer
        word, _, rest = data.decode().partition(" ")
        match word:
            case "say":
                composer.run("text", rest)
            case "call":
                composer.open("call", "call", "id", rest)
            case "arguments":
                composer.delta("call", rest)
            case "used":
                composer.used(Usage(input_tokens=100, output_tokens=int(rest)))
            case "reason":
                composer.reason("end")
            case "done":
                composer.finish()
            case "break":
                composer.fail("server_error", "It broke.")
            case _:
                composer.start("id", "model")

    def plain(self, body: bytes) -> None:
        for line in body.splitlines():
            self.read(line)

    def close(self) -> None:
        """Nothing was said about the end: the relay takes care of it."""


def sse(*lines: str) -> bytes:
    """The stream of an answer, an event for each line."""
    return b"".join(f"data: {line}\n\n".encode() for line in lines)

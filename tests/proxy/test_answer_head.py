"""Heads of answers: what is written, and that no value gets out of its line."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InternalError
from proxy.answer_head import CHUNKED, CLOSE, render_head


@pytest.mark.parametrize("value", ["a\r\nset-cookie: b", "a\nb", "a\rb", "a\r\n\r\n", "\r", "\n"])
def test_a_header_cannot_break_out_of_its_line(value: str) -> None:
    for header in ((f"x{value}", "y"), ("x-farebox-conversation-id", value)):
        with pytest.raises(InternalError):
            render_head(200, [("x-request-id", "1"), header], CHUNKED)


def test_what_stays_the_same_comes_first_and_framing_last() -> None:
    lines = render_head(529, [("x", "y")], CHUNKED + CLOSE).decode().split("\r\n")
    date = lines.pop(1).removeprefix("date: ")
    assert parsedate_to_datetime(date).year > 2000
    assert lines == [
        "HTTP/1.1 529 Overloaded",
        "x: y",
        "transfer-encoding: chunked",
        "connection: close",
        "",
        "",
    ]


VALUES = st.text(st.characters(max_codepoint=0x2FF), min_size=1, max_size=20)


@given(st.sampled_from([200, 404, 529]), st.lists(VALUES, max_size=5))
def test_clients_read_what_was_said_or_nothing(status: int, values: list[str]) -> None:
    headers = [(f"x-{number}", value) for number, value in enumerate(values)]
    try:
        head = render_head(status, headers, "content-length: 2\r\n")
    except InternalError:
        assert "\r" in "".join(values) or "\n" in "".join(values)
        return
    assert head.count(b"\r\n") == len(values) + 4
    for line, value in zip(head.split(b"\r\n")[2:], values, strict=False):
        assert line.endswith(b": " + value.encode("latin-1", "replace"))
    reader = h11.Connection(h11.CLIENT)
    if all(value.isascii() and value.isprintable() for value in values):
        reader.receive_data(head)
        event = reader.next_event()
        assert isinstance(event, h11.Response)
        assert event.status_code == status
        stripped = [value.strip(" ").encode() for value in values]
        assert [value for _, value in event.headers][1:-1] == stripped

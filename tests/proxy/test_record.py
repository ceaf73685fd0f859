"""Request ids and the log."""

from __future__ import annotations

import functools
import operator
import uuid

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from proxy.record import Log, new_request_id, uuid_text

MOMENTS = st.integers(0, 2**48 - 1)


@given(MOMENTS)
def test_request_ids_are_version_7_and_tell_their_time(milliseconds: int) -> None:
    made = {new_request_id(milliseconds) for _ in range(10)}
    assert len(made) == 10
    for value in made:
        parsed = uuid.UUID(bytes=value)
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
        assert uuid_text(value) == str(parsed)
        assert int.from_bytes(value[:6]) == milliseconds


def test_every_other_bit_of_a_request_id_is_random() -> None:
    made = [int.from_bytes(new_request_id(0)) for _ in range(200)]
    varied = functools.reduce(operator.or_, made) & ~functools.reduce(operator.and_, made)
    assert varied == (2**12 - 1) << 64 | 2**62 - 1


async def test_a_log_that_nobody_reads_stops_nothing(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    def broken(data: bytes) -> None:
        raise BrokenPipeError

    log = Log(broken)
    nursery.start_soon(log.run)
    for number in range(1, 4):
        log.add(b"line")
        while log.dropped < number:  # noqa: ASYNC110 - a thread tries to write it
            await trio.sleep(1)
    log.add(b"one more")
    nursery.cancel_scope.cancel()

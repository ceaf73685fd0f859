"""Request ids and the log."""

from __future__ import annotations

import uuid

import trio
from trio.testing import MockClock

from proxy.record import Log, new_request_id, uuid_text


def test_request_ids_are_version_7_and_in_order_of_time() -> None:
    made = [new_request_id() for _ in range(100)]
    assert len(set(made)) == 100
    for value in made:
        parsed = uuid.UUID(bytes=value)
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
        assert uuid_text(value) == str(parsed)
    assert [value[:6] for value in made] == sorted(value[:6] for value in made)


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

"""What exchanges hold is counted, bounded, and given back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.memory import (
    BODIES_MIN,
    HELD_BYTES_MIN,
    LARGE_BYTES,
    Memory,
    Share,
    bound_of,
    memory_bytes,
)
from proxy.settings import ServerSettings

MAX = 1000 * LARGE_BYTES
MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("held", "body", "allowed"),
    [
        (0, MAX, True),
        (MAX // 4 * 3, MAX, True),  # one body of any size
        (MAX // 4 * 3 + 1, LARGE_BYTES, True),
        (MAX // 4 * 3 + 1, LARGE_BYTES + 1, False),
        (MAX, LARGE_BYTES, True),
        (MAX + 1, 0, False),
    ],
)
def test_large_bodies_are_refused_first(held: int, body: int, allowed: bool) -> None:
    memory = Memory(MAX)
    memory.share().take(held)
    assert memory.allows(body) is allowed


def test_an_answer_may_fill_what_is_left() -> None:
    memory = Memory(MAX)
    answer = memory.share()
    assert answer.take(MAX)
    assert not answer.take(1)
    answer.close()
    assert memory.held_bytes == 0


def test_a_bound_that_is_lowered_keeps_what_is_held() -> None:
    memory = Memory(MAX)
    share = memory.share()
    share.take(MAX)
    memory.max_bytes = MAX // 2
    assert not memory.allows(0)
    share.close()
    assert memory.allows(MAX)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.integers(0, 9), st.integers(0, 64 * MIB)),
            st.tuples(st.just("close"), st.integers(0, 9), st.just(0)),
        )
    )
)
def test_the_count_is_always_the_sum_of_what_is_held(steps: list[tuple[str, int, int]]) -> None:
    memory = Memory(MAX)
    shares = [Share(memory) for _ in range(10)]
    for what, number, size in steps:
        if what == "take":
            assert shares[number].take(size) is (memory.held_bytes <= MAX)
        else:
            shares[number].close()
        assert memory.held_bytes == sum(share.held_bytes for share in shares)
    for share in shares:
        share.close()
    assert memory.held_bytes == 0


# -- how much there is ----------------------------------------------------------------------------


def machine(root: Path, groups: str, limits: dict[str, str]) -> Path:
    """A file system with control groups."""
    files = {"proc/self/cgroup": groups} | {
        f"sys/fs/cgroup/{name}": text for name, text in limits.items()
    }
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "104857600\n"}, 100 * MIB),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "104857600\n"}, 100 * MIB),
        ("0::/a\n", {"a/memory.max": "104857600\n", "memory.max": "209715200\n"}, 100 * MIB),
        ("4:cpu,memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "104857600\n"}, 100 * MIB),
        ("4:memory:/host/x\n", {"memory/memory.limit_in_bytes": "104857600\n"}, 100 * MIB),
    ],
    ids=["v2", "v2 around us", "v2 the least", "v1", "v1 in a container"],
)
def test_a_control_group_says_how_much_there_is(
    tmp_path: Path, groups: str, limits: dict[str, str], expected: int
) -> None:
    assert memory_bytes(machine(tmp_path, groups, limits)) == expected


@pytest.mark.parametrize(
    "limits",
    [{}, {"memory.max": "max\n"}, {"memory/memory.limit_in_bytes": "9223372036854771712\n"}],
)
def test_without_a_limit_it_is_the_machine_s(tmp_path: Path, limits: dict[str, str]) -> None:
    groups = "4:memory:/\n0::/\n"
    assert memory_bytes(machine(tmp_path, groups, limits)) == memory_bytes(tmp_path / "nowhere")


def test_the_bound_is_as_configured_or_follows_from_memory() -> None:
    assert bound_of(ServerSettings(max_held_bytes=5), 1) == 5
    derived = bound_of(ServerSettings(), 1)
    assert derived == max(memory_bytes() // 8, HELD_BYTES_MIN)
    assert bound_of(ServerSettings(), 10**6) == HELD_BYTES_MIN
    large = ServerSettings(max_body_bytes=HELD_BYTES_MIN)
    assert bound_of(large, 10**6) == BODIES_MIN * HELD_BYTES_MIN

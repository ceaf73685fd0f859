"""Whatever a client sends is served or refused, whatever an upstream sends is read or a failure."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from adapters.canonical import Finish, Prompt
from adapters.catalogue import Provider
from adapters.codec import Ask, Made, Request, Target
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest, RequestError
from adapters.gemini.downstream import CountDownstream, GenerateDownstream
from adapters.gemini.reader import GeminiReader
from adapters.gemini.upstream import GeminiUpstream
from adapters.gemini.writer import GeminiWriter
from tests.fakes.answers_rich import GENERATED
from tests.fakes.askers_rich import GENERATE

ENVELOPES = Envelopes(b"s" * 32, "acme")
TARGET = Target(Provider("google", "gemini", "https://g"), "gemini-3.5-flash", 10, False)
ODD: st.SearchStrategy[object] = st.sampled_from(
    [None, True, 0, -1, 1.5, 10**30, "", "x", "\ud83d", "fb1.", "ZmIxLg==", [], [[]], {}, {"a": {}}]
)


def places(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """The way to everything in a document."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def changed(document: object, path: tuple[object, ...], odd: object) -> bytes:
    copied: list[object] = [copy.deepcopy(document)]
    inside: object = copied
    for step in (0, *path)[:-1]:
        inside = inside[step]  # type: ignore[index] # where `places` says
    inside[(0, *path)[-1]] = odd  # type: ignore[index] # the same
    return json.dumps(copied[0]).encode()


@given(path=st.sampled_from(list(places(GENERATE))), odd=ODD)
def test_a_request_is_encoded_or_refused(path: tuple[object, ...], odd: object) -> None:
    body = changed(GENERATE, path, odd)
    for codec in (GenerateDownstream(), CountDownstream()):
        with suppress(RequestError):
            request = codec.decode(body, Ask(id="m"))
            GeminiUpstream().passing(request, TARGET, ENVELOPES)
            GeminiUpstream().counting_passing(request, TARGET)
            prompt = codec.prompt(request, ENVELOPES)
            msgspec.json.decode(GeminiUpstream().encode(prompt, TARGET).body)


@given(path=st.sampled_from(list(places(GENERATED))), odd=ODD, passing=st.booleans())
def test_an_answer_is_read_or_a_failure(
    path: tuple[object, ...], odd: object, passing: bool
) -> None:
    for whole in (False, True):
        reader = GeminiReader(passing=passing)
        if whole:
            reader.plain(changed(GENERATED, path, odd))
        else:
            reader.read(changed(GENERATED, path, odd))
            reader.close()
        events = reader.composer.take()
        writer = GeminiWriter(
            Request(fields={}, body_bytes=0, model="m", stream=not whole),
            Prompt(turns=()),
            ENVELOPES,
            Made("p", "f"),
        )
        out = b"".join([writer.write(event) for event in events])
        if reader.composer.failure is None:
            assert isinstance(events[-1], Finish)
            assert json.loads(writer.whole()) if whole else out.endswith(b"}\n\n")


@given(st.binary(max_size=60))
def test_bytes_of_any_kind(data: bytes) -> None:
    reader = GeminiReader()
    reader.read(data)
    reader.close()
    assert reader.composer.failure is not None
    with suppress(InvalidRequest):
        GenerateDownstream().decode(data, Ask(id="m"))

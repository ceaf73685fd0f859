"""What requests have to do with kept responses: going on from one, being kept, asking for one.

A request that goes on from a response gets the whole conversation, so that any provider can answer
it. It stays with the project: other projects' ids are as unknown as those that never were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qsl

import msgspec

from adapters.codec import Request
from adapters.errors import InvalidRequest, NotFound, RequestTooLarge
from adapters.openai import responses_state
from proxy.authenticate import Principal
from proxy.state import HISTORY_BYTES_MAX, Link, ResponseStore, Stored

_REFERENCES_MAX = 500

Stop = Callable[[], bytes]


class Running:
    """The responses that this worker is making right now, so that they can be cancelled."""

    def __init__(self) -> None:
        self._stops: dict[tuple[int, str], Stop] = {}

    @contextmanager
    def entered(self, project_id: int, response_id: str, stop: Stop) -> Iterator[None]:
        """For the time of the block `stop` ends the response, and gives the object to answer."""
        key = (project_id, response_id)
        self._stops[key] = stop
        try:
            yield
        finally:
            if self._stops.get(key) is stop:
                del self._stops[key]

    def stop(self, project_id: int, response_id: str) -> bytes | None:
        """End a response; None where it is not running."""
        stop = self._stops.pop((project_id, response_id), None)
        return None if stop is None else stop()


@dataclass(slots=True)
class Responses:
    """Where responses are kept, for how long, and which are running."""

    store: ResponseStore
    retention_seconds: float
    wall: Callable[[], float]
    running: Running = field(default_factory=Running)


class Said(NamedTuple):
    """What has to be kept of a request: the response that it goes on from, and its own `input`,
    the items of this turn alone; None where nothing is to be kept."""

    previous: str
    input: tuple[msgspec.Raw, ...] | None


class Resolved(NamedTuple):
    """A request with the whole conversation in it, and what has to be kept of it."""

    request: Request
    said: Said


async def resolve(responses: Responses, principal: Principal, request: Request) -> Resolved:
    """Fetch whatever the request only names.

    Raises NotFound for ids that the project does not have, RequestTooLarge for a conversation that
    became too long, and Overloaded where the store does not answer.
    """
    store, project_id, fields = responses.store, principal.project_id, request.fields
    keeps = responses_state.stored_wish(fields) and responses.retention_seconds > 0
    previous = responses_state.previous(fields)
    if named := responses_state.references(fields):
        found = await _items(store, project_id, named)
        # The same item may be named any number of times.
        if sum(len(found[name]) for name in named if name in found) > HISTORY_BYTES_MAX:
            raise RequestTooLarge("The items that the request names are too large together.")
        request = responses_state.with_references(request, found)
    own = tuple(responses_state.input_items(request)) if keeps else None
    if previous:
        history = await _history(store, project_id, previous)
        request = responses_state.with_history(request, history)
    return Resolved(request, Said(previous, own))


class Keeper:
    """What happens to one answer beside its being sent: it can be cancelled, and is kept.

    `keyed` is one that a retry may ask for as well (`idempotency`). Deleting the response deletes
    what a retry would get, so it must not be here before that is.
    """

    __slots__ = ("_keyed", "_principal", "_responses", "_said", "_stopped")

    def __init__(
        self, responses: Responses, principal: Principal, said: Said, *, keyed: bool
    ) -> None:
        self._responses = responses
        self._principal = principal
        self._said = said
        self._keyed = keyed
        self._stopped = b""

    @property
    def keeps(self) -> bool:
        """Whether the answer is to be kept, with what was asked."""
        return self._said.input is not None

    def running(self, first: bytes, cancel: Callable[[], None]) -> AbstractContextManager[None]:
        """For the time of the block the answer can be cancelled by its id, which `first`, the
        first bytes of its stream, tell."""
        begun = responses_state.final_response(first)
        if begun is None:
            return nullcontext()

        def stop() -> bytes:
            cancel()
            self._stopped = responses_state.cancelled(begun)
            if not self._keyed:
                self.keep(self._stopped)
            return self._stopped

        response_id = responses_state.response_id(begun)
        return self._responses.running.entered(self._principal.project_id, response_id, stop)

    def name_of(self, body: bytes) -> str:
        """The id that an answer is going to be kept under, complete or cancelled; "" where it is
        not."""
        if not self.keeps:
            return ""
        found = responses_state.final_response(body) or self._stopped or body
        return responses_state.response_id(found)

    def keep(self, body: bytes) -> None:
        """The answer is complete: a whole body, or the last events of a stream."""
        response = responses_state.final_response(body) or body
        keep(self._responses, self._principal, self._said, response)

    def keep_stopped(self) -> None:
        """The answer has ended before it was complete; it is kept where it was cancelled."""
        if self._stopped and self._keyed:
            self.keep(self._stopped)


def keep(responses: Responses, principal: Principal, said: Said, body: bytes) -> None:
    """Keep an answer, if it is to be kept; `body` is its response object.

    Never raises and never waits: a response that there is no room for is lost, and the store
    counts it.
    """
    if said.input is None:
        return
    now = responses.wall()
    output = tuple(responses_state.output_items(body))
    link = Link(responses_state.response_id(body), said.previous, said.input, output)
    stored = Stored(link, body, now, now + responses.retention_seconds)
    responses.store.put(principal.project_id, stored)


async def answer(
    responses: Responses, principal: Principal, operation: str, response_id: str, query: str
) -> bytes:
    """The body that answers an operation on a kept response.

    Raises NotFound, InvalidRequest, and Overloaded where the store does not answer.
    """
    project_id, store = principal.project_id, responses.store
    match operation:
        case "response":
            return await _fetch(store, project_id, response_id, query)
        case "response.delete":
            if not await store.delete(project_id, response_id):
                raise _unknown(response_id)
            return responses_state.deleted(response_id)
        case "response.input_items":
            items = await _inputs(store, project_id, response_id)
            return responses_state.listing(items, query)
        case "response.cancel":
            stopped = responses.running.stop(project_id, response_id)
            if stopped is not None:
                return stopped
            if await store.body(project_id, response_id) is None:
                raise _unknown(response_id)
            raise InvalidRequest("Only a response that is still running can be cancelled.")
        case _:
            raise AssertionError(f"{operation} asks for no kept response")


async def _fetch(store: ResponseStore, project_id: int, response_id: str, query: str) -> bytes:
    if dict(parse_qsl(query)).get("stream") == "true":
        raise InvalidRequest("A kept response cannot be streamed again.", param="stream")
    body = await store.body(project_id, response_id)
    if body is None:
        raise _unknown(response_id)
    return body


async def _inputs(store: ResponseStore, project_id: int, response_id: str) -> list[msgspec.Raw]:
    """Everything that the model was given: as much of the conversation as is still there."""
    links = await store.links(project_id, response_id)
    if not links:
        raise _unknown(response_id)
    return [*_in_order(links[1:]), *links[0].input]


async def _history(store: ResponseStore, project_id: int, previous: str) -> list[msgspec.Raw]:
    """The whole conversation up to a response."""
    links = await store.links(project_id, previous)
    missing = links[-1].previous if links else previous
    if missing:
        raise NotFound(
            f"Previous response with id {missing!r} not found.", param="previous_response_id"
        )
    return _in_order(links)


async def _items(
    store: ResponseStore, project_id: int, item_ids: Sequence[str]
) -> Mapping[str, msgspec.Raw]:
    wanted = list(dict.fromkeys(item_ids))
    if len(wanted) > _REFERENCES_MAX:
        raise InvalidRequest(f"More than {_REFERENCES_MAX} items are referenced.", param="input")
    return await store.items(project_id, wanted)


def _in_order(links: Sequence[Link]) -> list[msgspec.Raw]:
    return [item for link in reversed(links) for item in (*link.input, *link.output)]


def _unknown(response_id: str) -> NotFound:
    return NotFound(f"Response with id {response_id!r} not found.")

"""Going on from kept responses, and asking for them: the data plane's rules over any store."""

from __future__ import annotations

import json
from typing import cast

import msgspec
import pytest

from adapters.codec import Ask, Request
from adapters.errors import InvalidRequest, NotFound, Overloaded
from adapters.openai.responses_downstream import ResponsesDownstream
from proxy import stored
from proxy.authenticate import Principal
from proxy.stored import Resolved, Responses
from tests.fakes.responses import MemoryResponses

NOW = 1_800_000_000.0
DAY = 86_400.0
CODEC = ResponsesDownstream()
Json = dict[str, object]


def caller(project_id: int) -> Principal:
    return Principal(
        key_id=1,
        key_name="",
        account_id=1,
        account="a",
        project_id=project_id,
        project=f"p{project_id}",
        tier="",
        suspended=False,
        expires_at=0,
        models=frozenset(),
        pools=(1,),
        limits=(),
    )


OURS, THEIRS = caller(1), caller(2)


class World:
    """A store, a clock, and clients that ask and are answered."""

    def __init__(self) -> None:
        self.now = NOW
        self.store = MemoryResponses(lambda: self.now)
        self.responses = Responses(self.store, 30 * DAY, lambda: self.now)

    async def ask(self, body: Json, principal: Principal = OURS) -> Resolved:
        return await stored.resolve(self.responses, principal, request(body))

    async def turn(self, response_id: str, text: str, previous: str = "", **more: object) -> Json:
        """One turn, kept: the client says `text`, the answer is its upper case."""
        body: Json = {"model": "m", "input": text, **more}
        if previous:
            body["previous_response_id"] = previous
        resolved = await self.ask(body)
        response = response_of(response_id, text.upper())
        stored.keep(self.responses, OURS, resolved.said, json.dumps(response).encode())
        return response

    async def get(
        self, operation: str, response_id: str, query: str = "", principal: Principal = OURS
    ) -> Json:
        body = await stored.answer(self.responses, principal, operation, response_id, query)
        return cast("Json", json.loads(body))


@pytest.fixture
def world() -> World:
    return World()


def request(body: Json) -> Request:
    return CODEC.decode(json.dumps(body).encode(), Ask())


def response_of(response_id: str, text: str) -> Json:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {
        "type": "message",
        "id": f"msg_{response_id}",
        "role": "assistant",
        "status": "completed",
        "content": content,
    }
    return {"id": response_id, "object": "response", "status": "completed", "output": [message]}


def texts(items: msgspec.Raw | list[object]) -> list[str]:
    """What was said in a list of messages."""
    found = json.loads(bytes(items)) if isinstance(items, msgspec.Raw) else items
    return [_text(cast("Json", item)["content"]) for item in found]


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    return cast("list[dict[str, str]]", content)[0]["text"]


def data(listing: Json) -> list[object]:
    return cast("list[object]", listing["data"])


# -- going on -------------------------------------------------------------------------------------


async def test_the_whole_conversation_is_sent(world: World) -> None:
    await world.turn("resp_1", "one")
    await world.turn("resp_2", "two", "resp_1")
    resolved = await world.ask(
        {"model": "m", "input": "three", "previous_response_id": "resp_2", "instructions": "x"}
    )
    fields = resolved.request.fields
    assert texts(fields["input"]) == ["one", "ONE", "two", "TWO", "three"]
    assert "previous_response_id" not in fields
    assert not resolved.request.scan.hidden
    assert resolved.said.previous == "resp_2"


async def test_instructions_do_not_carry_over(world: World) -> None:
    await world.turn("resp_1", "one", instructions="be brief")
    resolved = await world.ask({"model": "m", "input": "two", "previous_response_id": "resp_1"})
    assert "instructions" not in resolved.request.fields


async def test_a_conversation_can_branch(world: World) -> None:
    await world.turn("resp_1", "one")
    await world.turn("resp_2", "two", "resp_1")
    resolved = await world.ask({"model": "m", "input": "too", "previous_response_id": "resp_1"})
    assert texts(resolved.request.fields["input"]) == ["one", "ONE", "too"]


@pytest.mark.parametrize("principal", [OURS, THEIRS])
async def test_unknown_and_foreign_responses_are_not_found(
    world: World, principal: Principal
) -> None:
    await world.turn("resp_1", "one")
    name = "resp_0" if principal is OURS else "resp_1"
    with pytest.raises(NotFound) as refused:
        await world.ask({"model": "m", "input": "x", "previous_response_id": name}, principal)
    assert refused.value.param == "previous_response_id"
    assert name in refused.value.message


@pytest.mark.parametrize("gone", ["resp_1", "resp_2"])
async def test_a_conversation_that_lost_a_turn_cannot_go_on(world: World, gone: str) -> None:
    await world.turn("resp_1", "one")
    await world.turn("resp_2", "two", "resp_1")
    await world.get("response.delete", gone)
    with pytest.raises(NotFound, match=gone):
        await world.ask({"model": "m", "input": "x", "previous_response_id": "resp_2"})


async def test_an_expired_response_is_not_found(world: World) -> None:
    await world.turn("resp_1", "one")
    world.now += 30 * DAY
    with pytest.raises(NotFound):
        await world.ask({"model": "m", "input": "x", "previous_response_id": "resp_1"})
    with pytest.raises(NotFound):
        await world.get("response", "resp_1")


async def test_items_that_are_only_named_are_fetched(world: World) -> None:
    await world.turn("resp_1", "one")
    reference = {"type": "item_reference", "id": "msg_resp_1"}
    body: Json = {"model": "m", "input": [reference, {"role": "user", "content": "and?"}]}
    resolved = await world.ask(body)
    assert texts(resolved.request.fields["input"]) == ["ONE", "and?"]
    assert not resolved.request.scan.hidden
    assert resolved.said.input is not None
    assert texts([json.loads(bytes(item)) for item in resolved.said.input]) == ["ONE", "and?"]
    with pytest.raises(NotFound):
        await world.ask(body, THEIRS)


async def test_too_many_named_items_are_refused(world: World) -> None:
    items = [{"type": "item_reference", "id": f"msg_{n}"} for n in range(501)]
    with pytest.raises(InvalidRequest):
        await world.ask({"model": "m", "input": items})


async def test_a_request_on_its_own_needs_no_store(world: World) -> None:
    world.store.away = True
    resolved = await world.ask({"model": "m", "input": "x"})
    assert texts([json.loads(bytes(item)) for item in resolved.said.input or ()]) == ["x"]
    with pytest.raises(Overloaded):
        await world.ask({"model": "m", "input": "x", "previous_response_id": "resp_1"})


# -- keeping --------------------------------------------------------------------------------------


async def test_nothing_is_kept_unless_wanted(world: World) -> None:
    await world.turn("resp_1", "one", store=False)
    with pytest.raises(NotFound):
        await world.get("response", "resp_1")
    world.responses.retention_seconds = 0
    await world.turn("resp_2", "two")
    with pytest.raises(NotFound):
        await world.get("response", "resp_2")


async def test_one_that_is_not_kept_may_go_on_from_one_that_was(world: World) -> None:
    await world.turn("resp_1", "one")
    resolved = await world.ask(
        {"model": "m", "input": "two", "previous_response_id": "resp_1", "store": False}
    )
    assert texts(resolved.request.fields["input"]) == ["one", "ONE", "two"]
    assert resolved.said.input is None


async def test_the_kept_object_is_the_answer(world: World) -> None:
    answer = await world.turn("resp_1", "one")
    assert await world.get("response", "resp_1") == answer


@pytest.mark.parametrize("body", [b"", b"[]", b'{"output":[]}', b'{"id":7}', b'{"id":"resp_1"'])
async def test_what_is_no_response_is_not_kept(world: World, body: bytes) -> None:
    resolved = await world.ask({"model": "m", "input": "x"})
    stored.keep(world.responses, OURS, resolved.said, body)
    with pytest.raises(NotFound):
        await world.get("response", "resp_1")


async def test_a_full_store_does_not_trouble_the_answer(world: World) -> None:
    world.store.full = True
    await world.turn("resp_1", "one")
    with pytest.raises(NotFound):
        await world.get("response", "resp_1")


# -- asking for one -------------------------------------------------------------------------------


async def test_input_items_are_the_conversation_newest_first(world: World) -> None:
    await world.turn("resp_1", "one")
    await world.turn("resp_2", "two", "resp_1")
    items = data(await world.get("response.input_items", "resp_2"))
    assert texts(items) == ["two", "ONE", "one"]
    assert all(cast("Json", item)["id"] for item in items)
    asked = await world.get("response.input_items", "resp_2", "order=asc&limit=1")
    assert texts(data(asked)) == ["one"]
    assert asked["has_more"] is True


async def test_input_items_are_what_is_left_of_the_conversation(world: World) -> None:
    await world.turn("resp_1", "one")
    await world.turn("resp_2", "two", "resp_1")
    await world.get("response.delete", "resp_1")
    assert texts(data(await world.get("response.input_items", "resp_2"))) == ["two"]


async def test_a_deleted_response_is_gone(world: World) -> None:
    await world.turn("resp_1", "one")
    assert (await world.get("response.delete", "resp_1"))["deleted"] is True
    for operation in ("response", "response.delete", "response.input_items", "response.cancel"):
        with pytest.raises(NotFound):
            await world.get(operation, "resp_1")


@pytest.mark.parametrize(
    "operation", ["response", "response.delete", "response.input_items", "response.cancel"]
)
async def test_other_projects_have_no_part_in_it(world: World, operation: str) -> None:
    await world.turn("resp_1", "one")
    with pytest.raises(NotFound):
        await world.get(operation, "resp_1", principal=THEIRS)
    assert await world.get("response", "resp_1")


async def test_a_kept_response_is_not_streamed_again(world: World) -> None:
    await world.turn("resp_1", "one")
    with pytest.raises(InvalidRequest):
        await world.get("response", "resp_1", "stream=true")
    assert await world.get("response", "resp_1", "stream=false&include[]=x")


async def test_without_a_store_nothing_can_be_said(world: World) -> None:
    world.store.away = True
    with pytest.raises(Overloaded):
        await world.get("response", "resp_1")


# -- cancelling -----------------------------------------------------------------------------------


async def test_a_running_response_is_stopped_once(world: World) -> None:
    stops: list[str] = []

    def stop() -> bytes:
        stops.append("stopped")
        return b'{"id":"resp_1","status":"cancelled"}'

    with world.responses.running.entered(OURS.project_id, "resp_1", stop):
        with pytest.raises(NotFound):
            await world.get("response.cancel", "resp_1", principal=THEIRS)
        assert (await world.get("response.cancel", "resp_1"))["status"] == "cancelled"
        with pytest.raises(NotFound):
            await world.get("response.cancel", "resp_1")
    assert stops == ["stopped"]


async def test_a_finished_response_cannot_be_cancelled(world: World) -> None:
    with world.responses.running.entered(OURS.project_id, "resp_1", bytes):
        await world.turn("resp_1", "one")
    with pytest.raises(InvalidRequest):
        await world.get("response.cancel", "resp_1")


async def test_two_of_one_id_do_not_take_each_others_place(world: World) -> None:
    running = world.responses.running
    with running.entered(1, "r", lambda: b"outer"):
        with running.entered(1, "r", lambda: b"inner"):
            pass
        assert running.stop(1, "r") is None
    with running.entered(1, "r", lambda: b"outer"), running.entered(1, "r", lambda: b"inner"):
        assert running.stop(1, "r") == b"inner"

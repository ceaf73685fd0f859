"""Which requests get the same key: those of one conversation, however it grows."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.affinity import BODY_BYTES_MIN, conversation_key
from adapters.anthropic.downstream import MessagesDownstream
from adapters.codec import Ask, DownstreamCodec, Request
from adapters.gemini.downstream import GenerateDownstream
from adapters.openai.chat_downstream import ChatDownstream
from adapters.openai.embeddings import EmbeddingsDownstream
from adapters.openai.responses_downstream import ResponsesDownstream

LONG = "You answer in rhymes. " * 400
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def decoded(codec: DownstreamCodec, body: Mapping[str, object], spaced: bool = False) -> Request:
    text = json.dumps(body, indent=2 if spaced else None, ensure_ascii=False)
    return codec.decode(text.encode(), Ask("models/m"))


def chat(*turns: tuple[str, str], **members: object) -> Request:
    messages = [{"role": role, "content": text} for role, text in turns]
    return decoded(ChatDownstream(), {"model": "m", "messages": messages, **members})


def key(request: Request) -> int | None:
    return conversation_key(request, request.conversation_id)


# -- named ----------------------------------------------------------------------------------------


def test_an_id_that_was_told_is_the_key_of_short_requests_too() -> None:
    request = chat(("user", "hi"))
    assert conversation_key(request, "c-1") == conversation_key(chat(("user", "ho")), "c-1")
    assert conversation_key(request, "c-1") != conversation_key(request, "c-2")
    assert conversation_key(request, "") is None


def test_a_key_is_the_same_in_every_process_and_version() -> None:
    """Nodes of different versions serve side by side while they are updated."""
    assert conversation_key(chat(("user", "hi")), "c-1") == 681991795714368874


@pytest.mark.parametrize("name", ["prompt_cache_key", "conversation"])
def test_a_member_that_names_the_conversation_counts(name: str) -> None:
    codec = ResponsesDownstream()
    first = decoded(codec, {"model": "m", "input": "a", name: "one"})
    again = decoded(codec, {"model": "m", "input": "b", name: "one"})
    other = decoded(codec, {"model": "m", "input": "a", name: "two"})
    assert key(first) is not None
    assert key(first) == key(again) != key(other)


def test_a_cache_key_of_chat_completions_counts() -> None:
    assert key(chat(("user", "a"), prompt_cache_key="k")) is not None
    assert key(chat(("user", "a"), prompt_cache_key="k")) == key(
        chat(("user", "b"), prompt_cache_key="k")
    )
    for unnamed in (None, ""):
        assert key(chat(("user", "a"), prompt_cache_key=unnamed)) is None


def test_sessions_of_agents_count() -> None:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    session = json.dumps({"device_id": "d", "account_uuid": "", "session_id": "s"})
    claude_code = decoded(MessagesDownstream(), {**body, "metadata": {"user_id": session}})
    assert key(claude_code) is not None
    codex = ResponsesDownstream().decode(
        b'{"model":"m","input":"hi"}', Ask("", headers={b"session-id": b"s"})
    )
    assert key(codex) is not None


def test_nothing_of_embeddings_is_cached() -> None:
    body = {"model": "m", "input": "x" * BODY_BYTES_MIN}
    assert conversation_key(decoded(EmbeddingsDownstream(), body), "c-1") is None


# -- known by how they begin ----------------------------------------------------------------------


@pytest.mark.parametrize("spaced", [False, True], ids=["compact", "spaced"])
@pytest.mark.parametrize("first", ["hi", LONG, 'say "user": {[' * 50, "é\n\\" * 800])
@pytest.mark.parametrize("system", ["", LONG, LONG * 10])
def test_a_conversation_that_grows_keeps_its_key(system: str, first: str, spaced: bool) -> None:
    turns = [*([("system", system)] if system else []), ("user", first)]
    keys = set()
    for answer in ("yes", LONG, '{"role":"system"}'):
        messages = [{"role": role, "content": text} for role, text in turns]
        body = {"model": "m", "messages": messages, "tools": TOOLS * 80}
        keys.add(key(decoded(ChatDownstream(), body, spaced)))
        turns += [("assistant", answer), ("user", "more")]
    assert len(keys) == 1
    assert None not in keys


def growing(turns: list[tuple[str, str]]) -> dict[str, tuple[DownstreamCodec, object]]:
    """A conversation in every protocol, with members in the order that SDKs write them."""
    messages = [{"role": role, "content": text} for role, text in turns]
    backwards = [{"content": text, "role": role} for role, text in turns]
    items = [{"type": "message", **message} for message in messages]
    contents = [
        {"parts": [{"text": text}], "role": "user" if role == "user" else "model"}
        for role, text in turns
    ]
    return {
        "chat": (ChatDownstream(), {"messages": messages, "tools": TOOLS * 60}),
        "chat, backwards": (ChatDownstream(), {"messages": backwards, "tools": TOOLS * 60}),
        "responses": (ResponsesDownstream(), {"input": items, "instructions": LONG}),
        "anthropic": (
            MessagesDownstream(),
            {"messages": messages, "system": [{"type": "text", "text": LONG}], "max_tokens": 9},
        ),
        "gemini": (
            GenerateDownstream(),
            {"contents": contents, "systemInstruction": {"parts": [{"text": LONG}]}},
        ),
    }


@pytest.mark.parametrize("protocol", growing([]))
def test_every_protocol_has_conversations(protocol: str) -> None:
    def key_of(turns: list[tuple[str, str]]) -> int | None:
        codec, body = growing(turns)[protocol]
        assert isinstance(body, dict)
        return key(decoded(codec, {"model": "m", **body}))

    begun = key_of([("user", "hi")])
    assert begun is not None
    assert key_of([("user", "hi"), ("assistant", "hello"), ("user", "more")]) == begun
    assert key_of([("user", "ho")]) != begun


def test_a_long_beginning_is_told_apart_by_the_first_turn_behind_it() -> None:
    keys = {key(chat(("system", LONG), ("user", f"question {n}"))) for n in range(20)}
    assert len(keys) == 20


def test_other_tools_or_instructions_make_another_key() -> None:
    base = chat(("system", LONG), ("user", "hi"))
    assert key(chat(("system", LONG), ("user", "hi"), tools=TOOLS)) != key(base)
    assert key(chat(("system", "Be short. " + LONG), ("user", "hi"))) != key(base)


def test_what_is_short_has_no_key() -> None:
    assert key(chat(("user", "x" * (BODY_BYTES_MIN - 200)))) is None
    assert key(chat(("user", "x" * BODY_BYTES_MIN))) is not None


@given(
    st.lists(
        st.tuples(st.sampled_from(["system", "developer", "user", "assistant"]), st.text()),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.text(), max_size=4),
    st.booleans(),
)
def test_whatever_is_said_later_changes_no_key(
    turns: list[tuple[str, str]], later: list[str], spaced: bool
) -> None:
    turns = [("system", LONG), *turns, ("user", "hi")]
    grown = [*turns, *(("assistant", text) for text in later)]
    first, last = (
        {"model": "m", "messages": [{"role": role, "content": text} for role, text in said]}
        for said in (turns, grown)
    )
    codec = ChatDownstream()
    assert key(decoded(codec, first, spaced)) == key(decoded(codec, last, spaced))

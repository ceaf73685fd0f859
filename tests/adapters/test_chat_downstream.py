"""Chat requests: each refusal names its field; what is not known survives to the provider."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.canonical import Blob
from adapters.catalogue import Provider
from adapters.codec import Ask, Request, Target
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest
from adapters.openai.chat_downstream import CHOICES_MAX, ChatDownstream
from adapters.openai.chat_text import TOKENS_MAX, read_text
from adapters.openai.chat_upstream import ChatUpstream
from tests.fakes.bodies import whole

MESSAGES = [{"role": "user", "content": "Hi"}]
PROVIDER = Provider("p", "openai", "http://127.0.0.1")
MODERN = Provider("p", "openai", "http://127.0.0.1", output_cap_field="max_completion_tokens")
ENVELOPES = Envelopes(b"s" * 32, "account")

Json = dict[str, object]


def decode(**fields: object) -> Request:
    body = {"model": "m", "messages": MESSAGES, **fields}
    return ChatDownstream().decode(json.dumps(body).encode(), Ask())


def passed(request: Request, cap: int | None = None, provider: Provider = PROVIDER) -> bytes:
    target = Target(provider, "theirs", cap, request.stream)
    call = ChatUpstream().passing(request, target, ENVELOPES)
    assert (call.path, call.headers, call.dropped) == ("/chat/completions", (), ())
    return whole(call.body)


def encode(request: Request, cap: int | None = None, provider: Provider = PROVIDER) -> Json:
    encoded = json.loads(passed(request, cap, provider))
    assert isinstance(encoded, dict)
    return encoded


# -- both ways of reading ------------------------------------------------------------------------

texts = st.none() | st.text(max_size=20) | st.integers() | st.just([{"type": "text", "text": "x"}])
messages = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "name", "refusal", "tool_call_id", "audio", "x"]), texts
    )
)
beside = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["m", "", None, 5]),
        "messages": messages | st.none() | st.just([1]),
        "stream": st.sampled_from([True, False, None, 1]),
        "stream_options": st.sampled_from([{"include_usage": True}, {}, None]),
        "max_tokens": st.sampled_from([5, 6.0, 0, True, 2**31, None, "5"]),
        "max_completion_tokens": st.sampled_from([5, 6, None]),
        "temperature": st.floats(0, 2),
        "user": st.sampled_from(["somebody", None, 3]),
        "n": st.sampled_from([1, 2, None]),
        "service_tier": st.sampled_from(["auto", "flex", None]),
        "tools": st.just([{"type": "function", "function": {"name": "f"}}]),
        "prediction": st.just({"type": "content", "content": "x"}),
        "extra_body": st.just({"cached_content": "c"}),
    },
)


def facts(fields: Json) -> Request | str:
    """What is read of a body, or why it is refused."""
    return facts_of(json.dumps(fields).encode())


def facts_of(body: bytes) -> Request | str:
    try:
        request = ChatDownstream().decode(body, Ask())
    except InvalidRequest as refused:
        return str(refused)
    return msgspec.structs.replace(request, fields={}, body_bytes=0)


@given(beside)
def test_nothing_but_text_is_read_as_all_else_is(fields: Json) -> None:
    body = {"model": "m", "messages": MESSAGES} | fields
    assert facts(body) == facts({**body, "unheard_of": 1})


RAW = [
    b'"max_tokens":5e0',
    b'"max_tokens":5.0',
    b'"max_tokens":5.5',
    b'"max_tokens":-0',
    b'"max_tokens":99999999999999999999999',
    b'"max_tokens":1,"max_completion_tokens":2',
    b'"max_tokens":null,"max_completion_tokens":2',
    b'"max_tokens":1,"max_tokens":1',
    b'"max_tokens":1,"m\\u0061x_tokens":2',
    b'"m\\u0061x_tokens":7',
    b'"Max_Tokens":7',
    b'"model":"n"',
    b'"user":"\\ud83d\\ude00"',
    b'"user":"\xff"',
    b'"user":"\xc3\xa9"',
    b'"temperature":NaN',
    b'"temperature":1e999',
    b'"stop":' + b"[" * 2000 + b"]" * 2000,
    b'"logit_bias":{"1":2,"1":3}',
    b'"stream":true,"stream_options":{"include_usage":true,"include_usage":false}',
    b'"stream":true,"stream_options":{"include_usage":null,"x":1}',
    b'"stream":false,"stream_options":{}',
    b'"stream_options":null',
    b'"n":2',
    b'"service_tier":"flex"',
    b'"stop":"' + b"x" * 16_300 + b'"',
    b'"stop":"' + b"x" * 16_400 + b'"',
]


@pytest.mark.parametrize("member", RAW, ids=lambda member: repr(member[:40]))
def test_however_it_is_written_text_is_read_as_all_else_is(member: bytes) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"Hi"}],%b' % member
    assert facts_of(body + b"}") == facts_of(body + b',"unheard_of":1}')


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "audio": {"id": "a"}},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]},
        {"role": "assistant", "content": "", "reasoning_details": [{"data": "fb1.x.y"}]},
        {"role": "assistant", "tool_calls": [{"id": "1", "extra_content": "fb1.x.y"}]},
        {"role": "user", "content": "x" * 17_000},
    ],
)
def test_what_is_more_than_a_little_text_is_looked_through(message: Json) -> None:
    def text(messages: object) -> object:
        return read_text(json.dumps({"model": "m", "messages": messages}).encode())

    assert text(MESSAGES) is not None
    assert text([*MESSAGES, message]) is None


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages"),
        ({"stream": 1}, "stream"),
        ({"stream": "true"}, "stream"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": TOKENS_MAX + 1}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": CHOICES_MAX + 1}, "n"),
        ({"n": [1]}, "n"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options"),
        ({"metadata": "x"}, "metadata"),
        ({"service_tier": 1}, "service_tier"),
        ({"user": {}}, "user"),
    ],
)
def test_refusals_name_the_field(fields: Json, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(**fields)
    assert refused.value.param == param
    assert refused.value.message.endswith(".")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"{", "not valid JSON"),
        (b'{"model":"m",}', "not valid JSON"),
        (b'{"model":"m"} x', "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'"x"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"x":"\xff"}', "UTF-8"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply|not valid JSON"),
    ],
)
def test_bodies_that_are_no_object(body: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        ChatDownstream().decode(body, Ask())


# -- keys that stand twice ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model":"cheap","messages":[{}],"model":"dear"}', "model"),
        (b'{"model":"m","messages":[{}],"model":"m"}', "model"),
        (b'{ "model" : "m" , "messages" : [ {} ] , "n" : 1 , "n" : 2 }', "n"),
        (b'{"model":"m","messages":[{}],"mod\\u0065l":"dear"}', "model"),
        (b'{"a":1,"model":"m","messages":[{}],"a":1}', "a"),
        (b'{"model": "cheap", "messages": [{}], "model": "dear"}', "model"),
        (b'{"model": "m", "messages": [{}], "model":"m"}', "model"),
    ],
)
def test_a_key_that_stands_twice_is_refused(body: bytes, param: str) -> None:
    with pytest.raises(InvalidRequest, match="twice") as refused:
        ChatDownstream().decode(body, Ask())
    assert refused.value.param == param


@given(
    members=st.lists(
        st.tuples(st.sampled_from(['"a"', '"b"', '"\\u0061"', '"ü"']), st.integers(0, 99)),
        max_size=4,
    ),
    before=st.sampled_from(["", " "]),
    space=st.sampled_from(["", " ", "\n\t"]),
    edge=st.sampled_from(["", " "]),
)
def test_equal_keys_are_found_however_they_are_written(
    members: list[tuple[str, int]], before: str, space: str, edge: str
) -> None:
    everything = [*members, ('"model"', '"m"'), ('"messages"', "[{}]")]
    inner = f"{before},{space}".join(f"{key}{before}:{space}{value}" for key, value in everything)
    body = f"{{{edge}{inner}{edge}}}".encode()
    names = [json.loads(key) for key, _ in members]
    if len(set(names)) == len(names):
        assert set(ChatDownstream().decode(body, Ask()).fields) == {"model", "messages", *names}
    else:
        with pytest.raises(InvalidRequest, match="twice"):
            ChatDownstream().decode(body, Ask())


# -- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["Model", "N", "MAX_TOKENS", "me\u017f\u017fages", "Service_Tier"])
def test_keys_that_some_parsers_take_for_others_are_refused(key: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(**{key: 128})
    assert refused.value.param == key


def test_the_defaults() -> None:
    request = decode(max_tokens=None, n=None, stream=None, stream_options=None, metadata=None)
    assert (request.model, request.kind, request.stream) == ("m", "chat", False)
    assert (request.output_cap, request.choices, request.include_usage) == (None, 1, False)
    assert (request.service_tier, request.user_id, request.conversation_id) == ("", "", "")
    assert request.pieces == {}


def test_what_is_read() -> None:
    request = decode(
        stream=True,
        stream_options={"include_usage": True},
        n=3,
        service_tier="flex",
        user="u",
        metadata={"conversation_id": "c"},
        web_search_options={},
    )
    assert request.stream
    assert request.include_usage
    assert (request.choices, request.service_tier) == (3, "flex")
    assert (request.user_id, request.conversation_id) == ("u", "c")
    assert request.pieces == {"web_search": 1}


def test_metadata_names_the_user_before_user_does() -> None:
    assert decode(user="u", metadata={"user_id": "mine"}).user_id == "mine"
    assert decode(user="u", metadata={"user_id": 5}).user_id == "u"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_either_name_is_the_cap(name: str) -> None:
    assert decode(**{name: 7}).output_cap == 7


def test_both_names_are_fine_where_they_agree() -> None:
    assert decode(max_tokens=7, max_completion_tokens=7).output_cap == 7
    assert decode(max_tokens=7, max_completion_tokens=None).output_cap == 7


# -- what a provider gets -------------------------------------------------------------------------


def test_unknown_members_survive_byte_by_byte_in_their_order() -> None:
    body = (
        b'{"zeta":1.50,"model":"m","messages":[{"role":"user","content":"\\u00e9","x":1e2}],'
        b'"top_k": 40 ,"deep":{"b":[1, 2],"a":null},"big":123456789012345678901234567890}'
    )
    sent = passed(ChatDownstream().decode(body, Ask()))
    assert sent == body.replace(b'"m"', b'"theirs"').replace(b'"top_k": 40 ', b'"top_k":40')


@given(
    st.dictionaries(
        st.text(max_size=5).map("x".__add__),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
        max_size=4,
    )
)
def test_whatever_is_not_known_is_kept(fields: Json) -> None:
    assert encode(decode(**fields)) == {"model": "theirs", "messages": MESSAGES, **fields}


def test_the_model_is_renamed_at_the_top_only() -> None:
    encoded = encode(decode(prediction={"model": "m"}))
    assert encoded["model"] == "theirs"
    assert encoded["prediction"] == {"model": "m"}


def test_our_cap_is_written_where_there_is_none() -> None:
    assert encode(decode(), cap=9)["max_tokens"] == 9
    modern = encode(decode(max_tokens=None), 9, MODERN)
    assert modern["max_completion_tokens"] == 9
    assert "max_tokens" not in modern  # a null would overrule ours


def test_the_clients_cap_stays_as_it_is() -> None:
    encoded = encode(decode(max_tokens=5), 5, MODERN)
    assert encoded["max_tokens"] == 5
    assert "max_completion_tokens" not in encoded


@pytest.mark.parametrize("null", [{}, {"max_tokens": None}])
def test_a_provider_of_the_older_name_gets_the_cap_under_it(null: Json) -> None:
    encoded = encode(decode(max_completion_tokens=5, **null), 5)
    assert encoded["max_tokens"] == 5
    assert "max_completion_tokens" not in encoded


@pytest.mark.parametrize("provider", [PROVIDER, MODERN])
def test_what_is_allowed_is_what_is_reserved(provider: Provider) -> None:
    """A cap above the model's own is reserved as the model's."""
    assert encode(decode(max_tokens=100), 9, provider)["max_tokens"] == 9
    both = encode(decode(max_tokens=100, max_completion_tokens=100), 9, provider)
    assert (both["max_tokens"], both["max_completion_tokens"]) == (9, 9)


def test_streams_always_ask_for_usage() -> None:
    assert encode(decode(stream=True))["stream_options"] == {"include_usage": True}
    options = {"include_usage": False, "include_obfuscation": False}
    encoded = encode(decode(stream=True, stream_options=options))
    assert encoded["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert "stream_options" not in encode(decode())


def test_metadata_goes_on_only_where_the_provider_stores() -> None:
    metadata = {"conversation_id": "c"}
    assert "metadata" not in encode(decode(metadata=metadata))
    assert encode(decode(metadata=metadata, store=True))["metadata"] == metadata


# -- signatures that were sealed here -------------------------------------------------------------


def test_sealed_signatures_stay_here() -> None:
    sealed = ENVELOPES.seal(Blob("a", "claude", "thinking", "s"))
    told = {"role": "user", "content": f"What is {sealed}?"}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    google = {"google": {"thought_signature": "theirs"}}
    answer: Json = {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "reasoning_details": [{"type": "reasoning.encrypted", "index": 0, "data": sealed}],
        "tool_calls": [
            {**call, "extra_content": {"farebox": {"sig": sealed}}},
            {**call, "extra_content": {"farebox": {"sig": sealed}, **google}},
        ],
    }
    encoded = encode(decode(messages=[told, answer]))
    del answer["reasoning_details"]
    answer["tool_calls"] = [call, {**call, "extra_content": google}]
    assert encoded["messages"] == [told, answer]


def test_signatures_of_the_provider_pass() -> None:
    details = [{"type": "reasoning.encrypted", "data": "theirs"}]
    messages = [{"role": "assistant", "content": "fb1.", "reasoning_details": details}]
    assert encode(decode(messages=messages))["messages"] == messages


@pytest.mark.parametrize("odd", [["fb1."], [{"tool_calls": "fb1."}], [{"tool_calls": ["fb1."]}]])
def test_messages_that_are_none_pass_for_the_provider_to_refuse(odd: list[object]) -> None:
    messages = [*MESSAGES, *odd]
    assert encode(decode(messages=messages))["messages"] == messages


# -- bodies of other protocols --------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"name": "f", "input_schema": {}}]},
        {"tools": [{"type": "function", "name": "f", "parameters": {}}]},
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "thinking", "signature": "s"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
    ],
)
def test_bodies_with_parts_of_other_protocols_are_foreign(fields: Json) -> None:
    assert decode(**fields).foreign


def test_a_body_with_input_is_foreign_and_has_a_cap_of_its_own() -> None:
    body = {"model": "m", "input": "Hi", "max_output_tokens": 7}
    request = ChatDownstream().decode(json.dumps(body).encode(), Ask())
    assert request.foreign
    assert request.output_cap == 7


def test_plain_bodies_are_not_foreign() -> None:
    parts = [{"type": "text", "text": "x"}, {"type": "thinking", "thinking": [{"type": "text"}]}]
    messages = [{"role": "user", "content": parts}]
    tools = [{"type": "function", "function": {"name": "f"}}, {"type": "web_search"}]
    assert not decode(messages=messages, tools=tools).foreign


def test_other_models_of_the_provider_are_not_for_sale() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"models":["dear"]}'
    with pytest.raises(InvalidRequest) as refused:
        ChatDownstream().decode(body, Ask())
    assert refused.value.param == "models"

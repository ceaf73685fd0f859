"""The official `google-genai` package: generation, chats that call functions, counting."""

from __future__ import annotations

from base64 import b64decode

from google.genai import Client, types

from tests.fakes.process import GatewayProcess
from tests.sdk.conftest import Named
from tests.sdk.shapes import ANSWER, PNG, QUESTION, SYSTEM, TOOLS, City

RESULT = "rain, 7 degrees"
FUNCTIONS: types.ToolListUnion = [
    types.Tool(
        function_declarations=[
            types.FunctionDeclaration(name=name, description=name, parameters_json_schema=schema)
            for name, schema in TOOLS.items()
        ]
    )
]
BY_HAND = types.AutomaticFunctionCallingConfig(disable=True)


def parts_of(answer: types.GenerateContentResponse) -> list[types.Part]:
    assert answer.candidates
    content = answer.candidates[0].content
    return (content.parts or []) if content else []


def test_content(gemini_client: Client, named: Named) -> None:
    answer = gemini_client.models.generate_content(
        model=named("sandbox"),
        contents=QUESTION,
        config=types.GenerateContentConfig(system_instruction=SYSTEM, max_output_tokens=1000),
    )
    assert (answer.text or "").startswith(ANSWER)
    assert answer.candidates
    assert answer.candidates[0].finish_reason is types.FinishReason.STOP
    assert answer.model_version == named("sandbox")
    usage = answer.usage_metadata
    assert usage is not None
    assert usage.total_token_count == (usage.prompt_token_count or 0) + (
        usage.candidates_token_count or 0
    ) + (usage.thoughts_token_count or 0)


def test_a_stream_gives_what_a_plain_call_gives(gemini_client: Client, named: Named) -> None:
    model = named("sandbox")
    plain = gemini_client.models.generate_content(model=model, contents=QUESTION)
    chunks = list(gemini_client.models.generate_content_stream(model=model, contents=QUESTION))
    assert len(chunks) > 1
    assert "".join(chunk.text or "" for chunk in chunks) == plain.text
    last = chunks[-1]
    assert last.candidates
    assert last.candidates[0].finish_reason is types.FinishReason.STOP
    assert last.usage_metadata is not None
    assert plain.usage_metadata is not None
    assert last.usage_metadata.total_token_count == plain.usage_metadata.total_token_count


def test_a_chat_calls_functions_by_itself(gemini_client: Client, named: Named) -> None:
    asked_for: list[str] = []

    def get_weather(city: str) -> str:
        """The weather in a city."""
        asked_for.append(city)
        return RESULT

    chat = gemini_client.chats.create(
        model=named("sandbox-tools"), config=types.GenerateContentConfig(tools=[get_weather])
    )
    answer = chat.send_message(QUESTION)
    assert len(asked_for) == 1
    assert RESULT in (answer.text or "")
    assert "Messages received" in (chat.send_message("And tomorrow?").text or "")


def test_parallel_calls_and_thoughts_make_a_round_trip(gemini_client: Client, named: Named) -> None:
    model = named("sandbox-reasoning-tools")
    config = types.GenerateContentConfig(
        tools=FUNCTIONS,
        automatic_function_calling=BY_HAND,
        thinking_config=types.ThinkingConfig(include_thoughts=True),
    )
    asked = types.Content(role="user", parts=[types.Part(text=QUESTION)])
    parts = [
        part
        for chunk in gemini_client.models.generate_content_stream(
            model=model, contents=[asked], config=config
        )
        for part in parts_of(chunk)
    ]
    calls = [part.function_call for part in parts if part.function_call]
    assert [call.name for call in calls] == ["get_weather", "get_time"]
    assert [sorted(call.args or {}) for call in calls] == [["city", "days"], ["zone"]]
    assert any(part.thought and part.text for part in parts)
    if named("") != "chat-":  # the only protocol without signatures
        assert any(part.thought_signature for part in parts)
    results = [
        types.Part.from_function_response(name=call.name or "", response={"result": RESULT})
        for call in calls
    ]
    history = [
        asked,
        types.Content(role="model", parts=parts),
        types.Content(role="user", parts=results),
    ]
    after = gemini_client.models.generate_content(model=model, contents=[*history], config=config)
    assert RESULT in (after.text or "")


def test_a_shape_gives_a_typed_answer(gemini_client: Client, named: Named) -> None:
    answer = gemini_client.models.generate_content(
        model=named("sandbox-json"),
        contents=QUESTION,
        config=types.GenerateContentConfig(
            response_mime_type="application/json", response_schema=City
        ),
    )
    assert isinstance(answer.parsed, City)
    by_schema = gemini_client.models.generate_content(
        model=named("sandbox-json"),
        contents=QUESTION,
        config=types.GenerateContentConfig(
            response_mime_type="application/json", response_json_schema=City.model_json_schema()
        ),
    )
    City.model_validate_json(by_schema.text or "")


def test_tokens_are_counted(gemini_client: Client, named: Named) -> None:
    counted = gemini_client.models.count_tokens(model=named("sandbox"), contents=QUESTION)
    assert counted.total_tokens


def test_the_cap_and_the_stop_hold(gemini_client: Client, named: Named) -> None:
    short = gemini_client.models.generate_content(
        model=named("sandbox-long"),
        contents=QUESTION,
        config=types.GenerateContentConfig(max_output_tokens=20),
    )
    assert short.candidates
    assert short.candidates[0].finish_reason is types.FinishReason.MAX_TOKENS
    stopped = gemini_client.models.generate_content(
        model=named("sandbox-long"),
        contents=QUESTION,
        config=types.GenerateContentConfig(stop_sequences=[" 17"]),
    )
    assert (stopped.text or "").endswith("16")


def test_an_image_is_taken(gemini_client: Client, named: Named) -> None:
    image = types.Part(inline_data=types.Blob(mime_type="image/png", data=b64decode(PNG)))
    answer = gemini_client.models.generate_content(
        model=named("sandbox"), contents=[types.Part(text=QUESTION), image]
    )
    assert answer.text


def test_every_path_of_the_surface(gateway: GatewayProcess, key: str) -> None:
    for folder in ("", "/gemini"):
        for version in ("v1", "v1beta"):
            options = types.HttpOptions(base_url=gateway.base_url + folder, api_version=version)
            with Client(api_key=key, http_options=options) as client:
                assert client.models.generate_content(model="messages-sandbox", contents="Hi").text

"""What Gemini is asked, read as strictly as Gemini reads it; members in either spelling."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from adapters.sandbox.asked import Asked, Said, Tool, name_of, prompt_tokens
from adapters.sandbox.gemini_history import check_contents
from adapters.sandbox.gemini_schema import as_json_schema, schema
from adapters.sandbox.gemini_words import WORDING, camel, refused, spelled, unreadable, violated
from adapters.sandbox.models import family_of
from adapters.sandbox.script import Json
from adapters.sandbox.shapes import (
    Path,
    Read,
    Shapes,
    a_string,
    an_integer,
    an_object,
    decoded,
    objects,
    strings,
)

_VERSION = re.compile(r"gemini-(\d+)(?:\.(\d+))?")
_JSON_TYPE = "application/json"
_BATCH_MAX = 100


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What is asked; `candidates` equal answers to it; whether calls have to be signed."""

    asked: Asked
    candidates: int
    shows_thoughts: bool
    signs: bool


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """What is embedded, and in how many dimensions where that is said."""

    text: str
    dimensions: int | None


def version_of(model: str) -> tuple[int, int] | None:
    """The version of the real family that a model's name begins with."""
    found = _VERSION.match(family_of(model))
    return None if found is None else (int(found[1]), int(found[2] or 0))


def read_generate(model: str, body: bytes, *, stream: bool) -> GenerateRequest:
    """Read the body of `:generateContent` and `:streamGenerateContent`. Raises Refused."""
    fields = an_object(_GENERATE((), _object(body)))
    return _generate(model, fields, name_of(body), stream=stream)


def read_count(model: str, body: bytes) -> Asked:
    """Read the body of `:countTokens`. Raises Refused."""
    fields = an_object(_COUNT((), _object(body)))
    inner = an_object(fields.get("generateContentRequest")) or fields
    if "contents" not in inner:
        raise WORDING.missing(("contents",))
    return _generate(model, inner, name_of(body), stream=False).asked


def read_embed(model: str, body: bytes) -> EmbedRequest:
    """Read the body of `:embedContent`. Raises Refused."""
    return _embedded(model, an_object(_EMBED((), _object(body))))


def read_embeds(model: str, body: bytes) -> Sequence[EmbedRequest]:
    """Read the body of `:batchEmbedContents`. Raises Refused."""
    fields = an_object(_EMBEDS((), _object(body)))
    requests = objects(fields["requests"])
    for index, each in enumerate(requests):
        if "model" not in each:
            raise WORDING.missing(("requests", index, "model"))
    return [_embedded(model, each) for each in requests]


def _object(body: bytes) -> Json:
    found = decoded(body)
    if found is None:
        raise unreadable((), "Invalid JSON payload received. Expected an object.")
    return found


def _embedded(model: str, fields: Json) -> EmbedRequest:
    if fields.get("model", f"models/{model}") != f"models/{model}":
        raise refused("Invalid model name in the request: it has to be the one of the path.")
    text = "".join(_texts(an_object(fields["content"])))
    return EmbedRequest(text, an_integer(fields.get("outputDimensionality")))


def _generate(model: str, fields: Json, name: str, *, stream: bool) -> GenerateRequest:
    version = version_of(model)
    signs = version is not None and version >= (3, 0)
    config = an_object(fields.get("generationConfig"))
    thinking = an_object(config.get("thinkingConfig"))
    _check_thinking(thinking, version)
    functions = list(_functions(fields))
    _check_functions(functions, fields)
    _check_config(config, functions, version)
    contents = objects(fields["contents"])
    check_contents(contents, model, must_sign=signs)
    system = list(_texts(an_object(fields.get("systemInstruction"))))
    said = [Said("system", "".join(system))] if system else []
    for content in contents:
        said += _said(content)
    count = len(contents) + bool(system)
    asked = Asked(
        model=model,
        name=name,
        said=said,
        messages=count,
        prompt_tokens=prompt_tokens(said, count),
        stream=stream,
        cap=an_integer(config.get("maxOutputTokens")),
        stop=strings(config.get("stopSequences")),
        tools=list(_tools(functions, fields)),
        shape=_shape(config),
        may_reason=thinking.get("thinkingBudget") != 0,
    )
    return GenerateRequest(
        asked,
        candidates=an_integer(config.get("candidateCount")) or 1,
        shows_thoughts=thinking.get("includeThoughts") is True,
        signs=signs,
    )


def _said(content: Json) -> Iterator[Said]:
    """A content's results each, then its own text."""
    parts = objects(content["parts"])
    responses = [part["functionResponse"] for part in parts if "functionResponse" in part]
    for response in responses:
        yield Said("result", _result_text(an_object(response)))
    text = "".join(_texts(content))
    if content.get("role") == "model":
        yield Said("assistant", text)
    elif text or not responses:
        yield Said("user", text)


def _result_text(response: Json) -> str:
    found = an_object(response.get("response"))
    return "".join(strings(list(found.values())))


def _texts(content: Json) -> Iterator[str]:
    for part in objects(content.get("parts")):
        if isinstance(text := part.get("text"), str) and not part.get("thought"):
            yield text


def _shape(config: Json) -> Json | None:
    if "responseJsonSchema" in config:
        return as_json_schema(an_object(config["responseJsonSchema"]))
    if "responseSchema" in config:
        return as_json_schema(an_object(config["responseSchema"]))
    return None


# -- functions ------------------------------------------------------------------------------------


def _functions(fields: Json) -> Iterator[Json]:
    for tool in objects(fields.get("tools")):
        yield from objects(tool.get("functionDeclarations"))


def _tools(functions: Sequence[Json], fields: Json) -> Iterator[Tool]:
    calling = _calling(fields)
    if calling.get("mode") == "NONE":
        return
    allowed = strings(calling.get("allowedFunctionNames"))
    for function in functions:
        if not allowed or function["name"] in allowed:
            given = function.get("parametersJsonSchema", function.get("parameters"))
            parameters = as_json_schema(an_object(given)) if given else None
            yield Tool(a_string(function["name"]), parameters)


def _calling(fields: Json) -> Json:
    return an_object(an_object(fields.get("toolConfig")).get("functionCallingConfig"))


def _check_functions(functions: Sequence[Json], fields: Json) -> None:
    names = [a_string(function["name"]) for function in functions]
    for name in names:
        if names.count(name) > 1:
            raise refused(f"Duplicate function declaration found: {name}")
    for function in functions:
        if {"parameters", "parametersJsonSchema"} <= function.keys():
            raise refused(
                f"Function {function['name']}: parameters and parameters_json_schema are mutually "
                "exclusive."
            )
    calling = _calling(fields)
    allowed = strings(calling.get("allowedFunctionNames"))
    if allowed and calling.get("mode") not in ("ANY", "VALIDATED"):
        raise refused(
            "Function calling config: `allowed_function_names` should only be set when the "
            "function calling mode is ANY or VALIDATED."
        )
    if calling.get("mode") == "ANY" and not functions:
        raise refused("Function calling mode ANY is set, but no function declarations are.")
    for name in allowed:
        if name not in names:
            raise refused(f"allowed_function_names: {name} is not among the declared functions.")


# -- generation -----------------------------------------------------------------------------------


def _check_config(config: Json, functions: Sequence[Json], version: tuple[int, int] | None) -> None:
    at: Path = ("generationConfig",)
    shapes = [name for name in ("responseSchema", "responseJsonSchema") if name in config]
    if len(shapes) > 1:
        raise violated((*at, "responseSchema"), "only one of the response schemas can be set.")
    mime_type = config.get("responseMimeType")
    if shapes and mime_type not in (_JSON_TYPE, "text/x.enum"):
        raise violated(
            (*at, shapes[0]), "response_mime_type must be application/json with a schema."
        )
    if version is None:
        return
    if mime_type == _JSON_TYPE and functions and version < (3, 0):
        raise refused(
            "Function calling with a response mime type: 'application/json' is unsupported"
        )
    newer = [
        "responseJsonSchema" in config,
        *("parametersJsonSchema" in each for each in functions),
    ]
    if any(newer) and version < (2, 5):
        raise refused("JSON schemas are not supported for this model.")


def _check_thinking(thinking: Json, version: tuple[int, int] | None) -> None:
    if {"thinkingBudget", "thinkingLevel"} <= thinking.keys():
        raise refused("You can only set only one of thinking budget and thinking level.")
    if thinking.get("includeThoughts") is True and thinking.get("thinkingBudget") == 0:
        raise refused("include_thoughts is only enabled when thinking is enabled.")
    if version is None or not thinking:
        return
    if version < (2, 5):
        raise refused("Thinking is not supported for this model.")
    if "thinkingLevel" in thinking and version < (3, 0):
        raise refused("Thinking level is not supported for this model.")


# -- shapes ---------------------------------------------------------------------------------------

_are = Shapes(WORDING, camel)
_NAME = r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}"


def _bytes(at: Path, value: object) -> object:
    given = a_string(_are.string(at, value))
    try:
        b64decode(given.translate(str.maketrans("-_", "+/")), validate=True)
    except ValueError:
        shown = given[:40]
        raise unreadable(
            at,
            f"Invalid value at '{spelled(at)}' (TYPE_BYTES), Base64 decoding failed "
            f'for "{shown}"',
        ) from None
    return given


_DATA: Mapping[str, Read] = {
    "text": _are.string,
    "inlineData": _are.members(
        {"mimeType": _are.string, "data": _bytes, "displayName": _are.string},
        required=["mimeType", "data"],
    ),
    "fileData": _are.members(
        {"mimeType": _are.string, "fileUri": _are.string, "displayName": _are.string},
        required=["fileUri"],
    ),
    "functionCall": _are.members(
        {"id": _are.string, "name": _are.text(_NAME), "args": _are.mapping}, required=["name"]
    ),
    "functionResponse": _are.members(
        {
            "id": _are.string,
            "name": _are.text(_NAME),
            "response": _are.mapping,
            "parts": _are.array(_are.mapping),
            "willContinue": _are.boolean,
            "scheduling": _are.string,
        },
        required=["name", "response"],
    ),
    "executableCode": _are.mapping,
    "codeExecutionResult": _are.mapping,
    "toolCall": _are.mapping,
    "toolResponse": _are.mapping,
}
_PART = _are.members(
    {
        **_DATA,
        "thought": _are.boolean,
        "thoughtSignature": _bytes,
        "videoMetadata": _are.mapping,
        "mediaResolution": _are.anything,
        "partMetadata": _are.mapping,
    }
)


def _part(at: Path, value: object) -> object:
    part = an_object(_PART(at, value))
    given = [name for name in part if name in _DATA]
    if not given:
        raise violated((*at, "data"), "required oneof field 'data' must have one initialized field")
    if len(given) > 1:
        raise unreadable(
            at,
            f"Invalid value at '{spelled(at)}' (oneof), oneof field 'data' is already set. "
            f"Cannot set '{given[1]}'",
        )
    return part


_PARTS = _are.array(_part, least=1)


def _role(at: Path, value: object) -> object:
    if value not in ("user", "model"):
        raise refused("Please use a valid role: user, model.")
    return value


_CONTENT = _are.members({"role": _role, "parts": _PARTS}, required=["parts"])
_SYSTEM = _are.members({"role": _are.string, "parts": _PARTS}, required=["parts"])
_FUNCTION = _are.members(
    {
        "name": _are.text(_NAME),
        "description": _are.string,
        "parameters": schema,
        "parametersJsonSchema": _are.mapping,
        "response": schema,
        "responseJsonSchema": _are.mapping,
        "behavior": _are.string,
    },
    required=["name"],
)
_TOOL = _are.members(
    {
        "functionDeclarations": _are.array(_FUNCTION),
        "googleSearch": _are.mapping,
        "googleSearchRetrieval": _are.mapping,
        "codeExecution": _are.mapping,
        "urlContext": _are.mapping,
        "fileSearch": _are.mapping,
        "computerUse": _are.mapping,
        "googleMaps": _are.mapping,
    }
)
_CONFIG = _are.members(
    {
        "temperature": _are.number(0, 2),
        "topP": _are.number(0, 1),
        "topK": _are.number(0),
        "candidateCount": _are.integer(1, 8),
        "maxOutputTokens": _are.integer(1),
        "stopSequences": _are.array(_are.string, most=5),
        "seed": _are.integer(),
        "presencePenalty": _are.number(-2, 2),
        "frequencyPenalty": _are.number(-2, 2),
        "responseLogprobs": _are.boolean,
        "logprobs": _are.integer(0, 20),
        "responseMimeType": _are.one_of("text/plain", _JSON_TYPE, "text/x.enum"),
        "responseSchema": schema,
        "responseJsonSchema": _are.mapping,
        "responseFormat": _are.anything,
        "responseModalities": _are.array(_are.string),
        "mediaResolution": _are.string,
        "speechConfig": _are.mapping,
        "imageConfig": _are.mapping,
        "thinkingConfig": _are.members(
            {
                "includeThoughts": _are.boolean,
                "thinkingBudget": _are.integer(-1),
                "thinkingLevel": _are.one_of("MINIMAL", "LOW", "MEDIUM", "HIGH", "XHIGH"),
            }
        ),
    }
)
_FIELDS: Mapping[str, Read] = {
    "model": _are.string,
    "contents": _are.array(_CONTENT, least=1),
    "systemInstruction": _SYSTEM,
    "tools": _are.array(_TOOL),
    "toolConfig": _are.members(
        {
            "functionCallingConfig": _are.members(
                {
                    "mode": _are.one_of("MODE_UNSPECIFIED", "AUTO", "ANY", "NONE", "VALIDATED"),
                    "allowedFunctionNames": _are.array(_are.string),
                }
            ),
            "retrievalConfig": _are.mapping,
        }
    ),
    "generationConfig": _CONFIG,
    "safetySettings": _are.array(_are.mapping),
    "cachedContent": _are.string,
    "labels": _are.mapping,
    "serviceTier": _are.string,
    "store": _are.boolean,
    "continuationToken": _are.string,
}
_GENERATE = _are.members(_FIELDS, required=["contents"])
_COUNT = _are.members(
    {
        "contents": _FIELDS["contents"],
        "generateContentRequest": _GENERATE,
    }
)
_EMBED = _are.members(
    {
        "model": _are.string,
        "content": _SYSTEM,
        "taskType": _are.string,
        "title": _are.string,
        "outputDimensionality": _are.integer(1, 3072),
    },
    required=["content"],
)
_EMBEDS = _are.members(
    {"requests": _are.array(_EMBED, least=1, most=_BATCH_MAX)}, required=["requests"]
)

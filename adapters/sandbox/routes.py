"""From a request's head to the protocol that serves it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import parse_qsl, unquote

from adapters.sandbox import (
    anthropic_answer,
    anthropic_words,
    gemini_answer,
    gemini_words,
    openai_words,
    responses_answer,
)
from adapters.sandbox.chat_answer import CREATED, complete
from adapters.sandbox.embeddings import embed
from adapters.sandbox.models import MODELS, USUAL, Circumstances, Model
from adapters.sandbox.script import Action, Data, Head, Json, Refused, json_answer, page

Serve = Callable[[], Iterable[Action]]


def respond(
    method: str,
    target: str,
    headers: Mapping[bytes, bytes],
    body: bytes,
    circumstances: Circumstances = USUAL,
) -> Iterable[Action]:
    """The script of the answer to one request: `target` is its path, and its query if it has one.

    Header names are in lower case. Never raises.
    """
    path, _, encoded = target.partition("?")
    query = dict(parse_qsl(encoded))
    try:
        if _is_gemini(path, headers, query):
            return _gemini(method, path, query, headers, body, circumstances)
        if _is_anthropic(path, headers):
            return _anthropic(method, path, query, headers, body, circumstances)
        return _openai(method, path, headers, body, circumstances)
    except Refused as refused:
        return (Head(refused.status, refused.headers), Data(refused.body))


_GEMINI_PATH = re.compile(r"/v1(?:beta|alpha)?/models(?:/(?P<model>[^:]+)(?::(?P<action>\w+))?)?")


def _is_gemini(path: str, headers: Mapping[bytes, bytes], query: Mapping[str, str]) -> bool:
    """What OpenAI and Anthropic have under the same path is told apart by the key."""
    if path.startswith(("/v1beta/", "/v1alpha/")):
        return True
    if not path.startswith("/v1/models"):
        return False
    return ":" in path or b"x-goog-api-key" in headers or "key" in query


def _gemini(
    method: str,
    path: str,
    query: Mapping[str, str],
    headers: Mapping[bytes, bytes],
    body: bytes,
    circumstances: Circumstances,
) -> Iterable[Action]:
    gemini_words.check_key(headers, query)
    found = _GEMINI_PATH.fullmatch(path)
    if found is None:
        raise page(404, "Error 404 (Not Found)!!1")
    name, action = unquote(found["model"] or ""), found["action"]
    if method == "POST" and action:
        return gemini_answer.operate(name, action, query, body, circumstances)
    if method != "GET" or action:
        raise page(404, "Error 404 (Not Found)!!1")
    return gemini_answer.show_model(name) if name else gemini_answer.list_models(query)


def _is_anthropic(path: str, headers: Mapping[bytes, bytes]) -> bool:
    """Of the lists of models, which all have one path, by the version that it asks for."""
    if path.removeprefix("/v1").startswith("/messages"):
        return True
    return b"anthropic-version" in headers and path.startswith("/v1/models")


def _anthropic(
    method: str,
    path: str,
    query: Mapping[str, str],
    headers: Mapping[bytes, bytes],
    body: bytes,
    circumstances: Circumstances,
) -> Iterable[Action]:
    anthropic_words.check_headers(headers)
    name = unquote(path.removeprefix("/v1/models/"))
    methods: Mapping[str, Serve] = {}
    match path.removeprefix("/v1"):
        case "/messages":
            methods = {"POST": lambda: anthropic_answer.message(headers, body, circumstances)}
        case "/messages/count_tokens":
            methods = {"POST": lambda: anthropic_answer.count_tokens(headers, body, circumstances)}
        case "/models":
            methods = {"GET": lambda: anthropic_answer.list_models(query)}
        case listed if listed.startswith("/models/"):
            methods = {"GET": lambda: anthropic_answer.show_model(name)}
    serve = methods.get(method)
    if serve is None:
        raise anthropic_words.refused("Not Found", 405 if methods else 404)
    return serve()


def _openai(
    method: str,
    path: str,
    headers: Mapping[bytes, bytes],
    body: bytes,
    circumstances: Circumstances,
) -> Iterable[Action]:
    openai_words.check_authorization(headers)
    name = unquote(path.removeprefix("/v1/models/"))
    methods: Mapping[str, Serve]
    if path == "/v1/chat/completions":
        methods = {"POST": lambda: complete(body, circumstances)}
    elif path == "/v1/responses":
        methods = {"POST": lambda: responses_answer.create(body, circumstances)}
    elif path == "/v1/responses/input_tokens":
        methods = {"POST": lambda: responses_answer.count(body, circumstances)}
    elif path == "/v1/embeddings":
        methods = {"POST": lambda: embed(body, circumstances)}
    elif path == "/v1/models":
        methods = {"GET": _list}
    elif path.startswith("/v1/models/"):
        methods = {"GET": lambda: json_answer(_listed(name, openai_words.found_model(name)))}
    else:
        raise openai_words.refused(404, f"Invalid URL ({method} {path})")
    serve = methods.get(method)
    if serve is None:
        raise openai_words.refused(
            405, f"Not allowed to {method} on {path}.", code="method_not_supported"
        )
    return serve()


def _list() -> Iterable[Action]:
    entries = [_listed(name, model) for name, model in MODELS.items()]
    return json_answer({"object": "list", "data": entries})


def _listed(name: str, model: Model) -> Json:
    return {
        "id": name,
        "object": "model",
        "created": CREATED,
        "owned_by": "farebox",
        "description": model.description,
    }

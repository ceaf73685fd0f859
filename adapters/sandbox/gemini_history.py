"""Gemini's rules for calls, their responses and their signatures in a conversation.

Whether the parts have their shapes was checked before.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence

from adapters.sandbox.gemini_words import refused
from adapters.sandbox.script import Json
from adapters.sandbox.shapes import a_string, an_object, objects
from adapters.sandbox.signing import is_signed

BYPASSES = ("skip_thought_signature_validator", "context_engineering_is_the_way_to_go")

_STAND_INS = frozenset([*BYPASSES, *(b64encode(each.encode()).decode() for each in BYPASSES)])
_URL_SAFE = str.maketrans("+/", "-_")


def check_contents(contents: Sequence[Json], model: str, *, must_sign: bool) -> None:
    """All rules for `contents`; `must_sign`: calls of the current turn have to have signatures.

    Raises Refused.
    """
    if contents[0].get("role") == "model":
        raise refused("First content should be with role 'user', got model")
    turns = _joined(contents)
    _check_responses(turns)
    for content in turns:
        for part in objects(content["parts"]):
            _check_signature(part, model)
    if must_sign:
        _check_signed(turns)


def _joined(contents: Sequence[Json]) -> Sequence[Json]:
    """What a model said in a row is one turn: clients keep each chunk of a stream by itself."""
    turns: list[Json] = []
    for content in contents:
        if turns and content.get("role") == turns[-1].get("role") == "model":
            parts = [*objects(turns[-1]["parts"]), *objects(content["parts"])]
            turns[-1] = {**turns[-1], "parts": parts}
        else:
            turns.append(content)
    return turns


def _calls(content: Json) -> list[Json]:
    return [an_object(part["functionCall"]) for part in objects(content["parts"])
            if "functionCall" in part]  # fmt: skip


def _responses(content: Json) -> list[Json]:
    return [an_object(part["functionResponse"]) for part in objects(content["parts"])
            if "functionResponse" in part]  # fmt: skip


def _check_responses(contents: Sequence[Json]) -> None:
    """Right after the calls of a turn come as many responses, of the same names."""
    asked: list[Json] = []
    for content in contents:
        answered = _responses(content)
        if content.get("role") == "model" and answered:
            raise refused("Function response parts can only be in a turn with role 'user'.")
        if content.get("role") != "model" and _calls(content):
            raise refused("Function call parts can only be in a turn with role 'model'.")
        if answered and not asked:
            raise refused(
                "Please ensure that function response turn comes immediately after a function call "
                "turn."
            )
        if len(answered) != len(asked):
            raise refused(
                "Please ensure that the number of function response parts is equal to the number "
                "of function call parts of the function call turn."
            )
        _check_pairs(asked, answered)
        asked = _calls(content)
    if asked:
        raise refused(
            "Please ensure that function call turn is followed by a function response turn."
        )


def _check_pairs(asked: Sequence[Json], answered: Sequence[Json]) -> None:
    names = sorted(a_string(call["name"]) for call in asked)
    if names != sorted(a_string(response["name"]) for response in answered):
        raise refused(
            "Please ensure that the function response parts have the names of the function call "
            "parts of the function call turn."
        )
    ids = sorted(a_string(call["id"]) for call in asked if "id" in call)
    given = sorted(a_string(response["id"]) for response in answered if "id" in response)
    if ids and given and ids != given:
        raise refused("Please ensure that the function response ids match the function call ids.")


def _check_signature(part: Json, model: str) -> None:
    """A signature that is there has to be the sandbox's, and of this very part."""
    signature = a_string(part.get("thoughtSignature"))
    if not signature or signature.translate(_URL_SAFE) in _STAND_INS:
        return
    name = a_string(an_object(part.get("functionCall")).get("name"))
    if not is_signed(signature, "gemini", model, name):
        raise refused("Thought signature is not valid.")


def _check_signed(contents: Sequence[Json]) -> None:
    """In the current turn the first call of each step has a signature."""
    for position in range(len(contents) - 1, -1, -1):
        content = contents[position]
        if content.get("role") != "model":
            if _responses(content):
                continue
            return
        calls = [part for part in objects(content["parts"]) if "functionCall" in part]
        if calls and not calls[0].get("thoughtSignature"):
            name = an_object(calls[0]["functionCall"])["name"]
            raise refused(
                "Function call is missing a thought_signature in functionCall parts. This is "
                "required for tools to work correctly, and missing thought_signature may lead to "
                f"degraded model performance. Additional data, function call `default_api:{name}` "
                f", position {position + 1}. Please refer to "
                "https://ai.google.dev/gemini-api/docs/thought-signatures for more details."
            )

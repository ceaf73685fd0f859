"""The page of error codes is complete: it lists what the code can answer, and nothing else."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import console
from adapters import errors
from adapters.openai.refusal import OpenAIRefusals
from console.pages.error_codes import OF_CONSOLE, OF_MODELS, ErrorCode
from proxy import control
from tests.console.test_keys import acme

NOBODY_HEARS = {(499, "client_disconnected")}


def listed(codes: Iterable[ErrorCode]) -> set[tuple[int, str]]:
    return {
        (int(status), code)
        for each in codes
        for status in each.status.split(", ")
        for code in each.code.split(", ")
    }


def kinds(kind: type[errors.APIError]) -> Iterator[type[errors.APIError]]:
    yield kind
    for other in kind.__subclasses__():
        yield from kinds(other)


def of_module(name: str) -> set[tuple[int, str]]:
    found = kinds(errors.APIError)
    return {(kind.status, kind.code) for kind in found if kind.__module__ == name}


def of_console() -> Iterator[str]:
    """The codes of every `Refused(status, code, …)`, wherever it is made."""
    for path in Path(str(console.__file__)).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and len(node.args) > 2:
                made = getattr(node.func, "id", getattr(node.func, "attr", ""))
                status, code = node.args[:2]
                if made in {"Refused", "__init__"} and isinstance(code, ast.Constant):
                    assert isinstance(code.value, str), ast.dump(status)
                    yield code.value


def test_what_models_refuse_with_is_on_the_page() -> None:
    known = of_module(errors.__name__) - NOBODY_HEARS
    poor = errors.InsufficientBalance(
        "", balance_usd="0", reserved_usd="0", required_usd="1", affordable_output_tokens=0
    )
    for error in (poor, errors.ContextLengthExceeded("")):  # of which OpenAI has names of its own
        body = json.loads(OpenAIRefusals().error_body(error, ""))
        known.add((error.status, body["error"]["code"]))
    assert listed(OF_MODELS) == known


def test_what_the_console_refuses_with_is_on_the_page() -> None:
    in_front = {code for _, code in of_module(control.__name__)}
    assert in_front, "what is said where no console runs"
    assert {code for _, code in listed(OF_CONSOLE)} == {*of_console(), *in_front}


async def test_the_page_shows_them_all(database: str) -> None:
    async with acme(database) as (_, browser):
        text = (await browser.get("/console/acme/errors")).text
    for _, code in listed([*OF_MODELS, *OF_CONSOLE]):
        assert code in text

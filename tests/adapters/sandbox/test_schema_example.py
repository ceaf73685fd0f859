"""Values made for schemas are what the types behind them accept, and always the same."""

from __future__ import annotations

import enum
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID

import pytest
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel, Field

from adapters.sandbox.schema_example import example


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Texts(BaseModel):
    plain: str
    short: str = Field(max_length=2)
    long: str = Field(min_length=30)
    fixed: Literal["a"]
    color: Color
    when: datetime
    day: date
    id: UUID


class Numbers(BaseModel):
    plain: int
    fraction: float
    between: float = Field(gt=0.5, lt=0.7)
    above: int = Field(gt=1)
    at_least: int = Field(ge=10, multiple_of=7)
    below: int = Field(lt=-3)
    at_most: float = Field(le=-0.5)
    exact: Decimal
    flag: bool
    nothing: None


class Containers(BaseModel):
    some: list[int]
    three: list[str] = Field(min_length=3)
    none: list[str] = Field(max_length=0)
    pair: tuple[int, str]
    table: dict[str, int]
    union: int | str
    optional: Annotated[str | None, Field(max_length=3)]
    with_default: int = 5


class Tree(BaseModel):
    name: str
    color: Color
    children: list[Tree]
    next: Tree | None


TYPES: list[type[BaseModel]] = [Texts, Numbers, Containers, Tree]


@pytest.mark.parametrize("model", TYPES)
def test_values_are_what_pydantic_accepts(model: type[BaseModel]) -> None:
    made = example(model.model_json_schema())
    model.model_validate(made)
    assert made == example(model.model_json_schema())


@pytest.mark.parametrize("model", [Texts, Tree])
def test_values_are_what_the_sdk_parses(model: type[BaseModel]) -> None:
    model.model_validate(example(to_strict_json_schema(model)))


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, "sandbox"),
        ({"const": 3}, 3),
        ({"enum": ["b", "a"]}, "b"),
        ({"type": ["null", "integer"]}, 1),
        ({"type": "null"}, None),
        ({"type": "integer", "minimum": 3.5}, 4),
        ({"type": "number", "multipleOf": 0.25, "minimum": 1.1}, 1.25),
        ({"type": "object", "required": ["a"]}, {"a": "sandbox"}),
        ({"items": {"type": "boolean"}}, [True]),
        ({"type": "array", "maxItems": 0}, []),
        ({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}]}, [1, 2]),
        ({"allOf": [{"type": "integer"}, {"minimum": 5}]}, 5),
        (
            {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "integer"}}, "minimum": 8},
            8,
        ),
        (
            {
                "allOf": [
                    {"properties": {"a": {"const": 1}}, "required": ["a"]},
                    {"properties": {"b": {"const": 2}}, "required": ["b"]},
                ]
            },
            {"a": 1, "b": 2},
        ),
    ],
)
def test_single_rules(schema: dict[str, object], value: object) -> None:
    assert example(schema) == value


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/nowhere"},
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"type": "object", "properties": {"me": {"$ref": "#"}}, "required": ["me"]},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "minItems": 10**9},
        {"type": "array", "minItems": 200, "items": {"type": "array", "minItems": 200}},
        {"type": "string", "format": []},
        {"type": "object", "required": [{}]},
        {"type": "number", "minimum": 10**400},
    ],
)
def test_what_no_sensible_value_fits_is_refused(schema: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"value|schema|long"):
        example(schema)

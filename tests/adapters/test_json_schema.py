"""adapters.json_schema: what a client's validator wrote, as each provider takes it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import RequestNotExpressible
from adapters.json_schema import (
    for_anthropic,
    for_anthropic_format,
    for_gemini,
    for_gemini_openapi,
    for_openai,
    from_openapi,
)
from adapters.json_schema.openapi import NODES_MAX
from adapters.losses import Losses

Schema = dict[str, object]

STRICT: Schema = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": ["integer", "null"]}},
    "required": ["b", "a"],
    "additionalProperties": False,
}


def with_property(schema: object, **more: object) -> Schema:
    return {"type": "object", "properties": {"x": schema}, **more}


def openapi(schema: Mapping[str, object], *, reported: tuple[str, ...] = ()) -> Schema:
    losses = Losses("p")
    built = for_gemini_openapi(schema, losses)
    assert losses.names == reported
    return built


def openapi_of(
    schema: object, *, reported: tuple[str, ...] = (), beside: Schema | None = None
) -> object:
    """What becomes of one property; `beside` are other members of the whole schema."""
    properties = openapi(with_property(schema, **(beside or {})), reported=reported)["properties"]
    assert isinstance(properties, dict)
    return properties["x"]


def gemini_of(schema: object) -> object:
    properties = for_gemini(with_property(schema))["properties"]
    assert isinstance(properties, dict)
    return properties["x"]


WAYS: list[Callable[[Schema], object]] = [
    lambda schema: for_openai(schema, strict=True, losses=Losses("p")),
    lambda schema: for_openai(schema, strict=None, losses=Losses("p")),
    lambda schema: for_anthropic(schema, strict=True, losses=Losses("p")),
    lambda schema: for_anthropic(schema, strict=False, losses=Losses("p")),
    lambda schema: for_anthropic_format(schema, Losses("p")),
    for_gemini,
    lambda schema: for_gemini_openapi(schema, Losses("p")),
    from_openapi,
]
LOSSY = ("approx:schema",)


# -- Gemini ---------------------------------------------------------------------------------------


def test_edge_60_exclusive_limits() -> None:
    schema = {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10}
    assert gemini_of(schema) == {"type": "integer", "minimum": 1, "maximum": 9}
    assert openapi_of(schema) == {"type": "INTEGER", "minimum": 1, "maximum": 9}
    fraction = {"type": "number", "exclusiveMinimum": 0.5, "minimum": 0.7}
    assert openapi_of(fraction) == {"type": "NUMBER", "minimum": 0.7}
    draft_4 = {"type": "number", "minimum": 0, "exclusiveMinimum": True}
    assert openapi_of(draft_4) == {"type": "NUMBER", "minimum": 0}


def test_edge_61_pattern_properties() -> None:
    schema = {"type": "object", "patternProperties": {"^a": {"type": "string"}}}
    assert gemini_of(schema) == {"type": "object"}
    assert openapi_of(schema, reported=LOSSY) == {"type": "OBJECT"}


def test_edge_62_multiple_of_at_any_depth() -> None:
    schema = {"type": "array", "items": {"type": "array", "items": {"multipleOf": 2}}}
    assert "multipleOf" not in str(gemini_of(schema))
    assert "multipleOf" not in str(openapi_of(schema))


def test_edge_63_newer_keywords() -> None:
    schema = {
        "type": "array",
        "uniqueItems": True,
        "prefixItems": [{"type": "string"}, {"type": "number"}],
        "contains": {"const": 1},
        "unevaluatedItems": False,
        "$anchor": "here",
    }
    assert openapi_of(schema, reported=LOSSY) == {
        "type": "ARRAY",
        "items": {"anyOf": [{"type": "STRING"}, {"type": "NUMBER"}]},
    }
    assert set(msgspec.convert(gemini_of(schema), Schema)) == {"type", "prefixItems", "$anchor"}


def test_edge_64_additional_properties() -> None:
    assert openapi(STRICT) == {
        "type": "OBJECT",
        "properties": {"a": {"type": "STRING"}, "b": {"type": "INTEGER", "nullable": True}},
        "required": ["b", "a"],
    }
    assert for_gemini(STRICT) == STRICT


def test_edge_65_local_references_are_replaced() -> None:
    schema = {"type": "array", "items": {"$ref": "#/$defs/one", "description": "own"}}
    defs = {"one": {"type": "object", "properties": {"y": {"$ref": "#/definitions/t~1wo"}}}}
    built = openapi_of(schema, beside={"$defs": defs, "definitions": {"t/wo": {"type": "string"}}})
    assert built == {
        "type": "ARRAY",
        "items": {
            "type": "OBJECT",
            "description": "own",
            "properties": {"y": {"type": "STRING"}},
        },
    }


def test_references_stay_where_gemini_knows_them() -> None:
    schema = with_property(
        {"$ref": "#/definitions/one", "description": "dropped"},
        definitions={"one": {"type": "STRING", "$comment": "no"}},
        required=["x", "unknown"],
    )
    assert for_gemini(schema) == {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/one"}},
        "required": ["x"],
        "$defs": {"one": {"type": "string"}},
    }
    assert gemini_of({"$ref": "https://elsewhere/schema"}) == {}


def test_references_into_themselves_end_in_a_free_object() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}, "n": {"type": "integer"}}}
    node: Schema = {"$ref": "#/$defs/node"}
    defs = {"node": {"type": "object", "properties": {"next": node}}}
    assert "OBJECT" in str(openapi(tree, reported=LOSSY))
    assert openapi_of(node, reported=LOSSY, beside={"$defs": defs}) == {
        "type": "OBJECT",
        "properties": {"next": {"type": "OBJECT"}},
    }
    loop = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
    assert openapi_of({"$ref": "#/$defs/a"}, beside={"$defs": loop}) == {}


@pytest.mark.parametrize(
    ("schema", "built"),
    [
        ({"type": ["string", "null"]}, {"type": "STRING", "nullable": True}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"type": "STRING", "nullable": True}),
        (
            {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
            {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}], "nullable": True},
        ),
        ({"type": ["string", "integer"]}, {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}]}),
        (
            {"type": ["string", "integer", "null"]},
            {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}], "nullable": True},
        ),
        ({"oneOf": [{"type": "string"}, {"const": "a"}]},
         {"anyOf": [{"type": "STRING"}, {"type": "STRING", "enum": ["a"]}]}),
        (
            {"allOf": [{"type": "object", "properties": {"a": {}}, "required": ["a"]},
                       {"properties": {"b": {"type": "string"}}, "required": ["b"]}]},
            {"type": "OBJECT", "properties": {"a": {}, "b": {"type": "STRING"}},
             "required": ["a", "b"]},
        ),
        ({"const": "a"}, {"type": "STRING", "enum": ["a"]}),
        ({"enum": ["a", None]}, {"type": "STRING", "enum": ["a"], "nullable": True}),
        ({"type": "array"}, {"type": "ARRAY", "items": {"type": "STRING"}}),
        ({"type": "string", "format": "date-time"}, {"type": "STRING", "format": "date-time"}),
        ({"type": "string", "format": "email"}, {"type": "STRING"}),
        ({"type": "string", "pattern": "^a"}, {"type": "STRING", "pattern": "^a"}),
        ({"type": "string", "pattern": "(?!a)"}, {"type": "STRING"}),
        ({"title": "T", "default": 1, "examples": [1], "type": "integer"}, {"type": "INTEGER"}),
        ({"properties": {"a": {}}}, {"type": "OBJECT", "properties": {"a": {}}}),
        (True, {}),
    ],
)  # fmt: skip
def test_the_older_form(schema: object, built: Schema) -> None:
    assert openapi_of(schema) == built


def test_an_enum_of_numbers_cannot_be_said_in_the_older_form() -> None:
    assert openapi_of({"type": "integer", "enum": [1, 2]}, reported=LOSSY) == {"type": "INTEGER"}


def test_an_object_of_which_nothing_is_said_is_left_out() -> None:
    for empty in (None, {}, {"type": "object"}, {"type": "object", "properties": {}}):
        assert for_gemini(empty) == {}
        assert openapi(empty or {}) == {}
    assert for_gemini({"type": "object", "additionalProperties": {"type": "string"}})


def test_names_of_properties_are_not_keywords() -> None:
    names: Schema = {"$ref": {"type": "string"}, "not": {"type": "string"}, "type": {"const": "a"}}
    schema: Schema = {"type": "object", "properties": {**names, "$id": {}, "default": {}}}
    assert set(msgspec.convert(openapi(schema)["properties"], Schema)) == {*names, "$id", "default"}
    assert set(msgspec.convert(for_gemini(schema)["properties"], Schema)) == {
        *names, "$id", "default",
    }  # fmt: skip
    built, _ = for_openai(schema, strict=None, losses=Losses("p"))
    assert built == schema


# -- OpenAI ---------------------------------------------------------------------------------------


def openai(schema: Schema | None, strict: bool | None, *, reported: tuple[str, ...] = ()) -> object:
    losses = Losses("p")
    built = for_openai(schema, strict=strict, losses=losses)
    assert losses.names == reported
    return built


def test_a_strict_schema_stays_strict() -> None:
    assert openai(STRICT, True) == (STRICT, True)
    annotated = {**STRICT, "default": {}, "title": "T", "$schema": "x"}
    assert openai(annotated, True) == ({**STRICT, "title": "T"}, True)
    assert openai(annotated, False) == ({**STRICT, "default": {}, "title": "T"}, False)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {}}, "required": ["a"]},
        {**STRICT, "required": ["a"]},
        {**STRICT, "properties": {"a": {"oneOf": []}, "b": {}}},
        {**STRICT, "properties": {"a": {"type": "string", "pattern": "(?<=a)"}, "b": {}}},
        {**STRICT, "$defs": {"c": {"type": "object", "properties": {}}}},
        {"anyOf": [STRICT]},
    ],
)
def test_strict_is_not_asked_for_what_cannot_be(schema: Schema) -> None:
    built, strict = msgspec.convert(
        openai(schema, True, reported=("approx:strict",)), tuple[Schema, bool]
    )
    assert strict is False
    assert openai(schema, None) == (built, None)


def test_no_schema_is_an_empty_object() -> None:
    empty = {"type": "object", "properties": {}}
    assert openai(None, None) == openai({}, None) == openai({"type": "OBJECT"}, None)
    assert openai(None, None) == (empty, None)
    assert openai({"$ref": "#/$defs/a"}, None) == ({"$ref": "#/$defs/a"}, None)


# -- Anthropic ------------------------------------------------------------------------------------


def anthropic(schema: Schema, strict: bool | None, *, reported: tuple[str, ...] = ()) -> object:
    losses = Losses("p")
    built = for_anthropic(schema, strict=strict, losses=losses)
    assert losses.names == reported
    return built


def test_limits_become_words_where_anthropic_is_strict() -> None:
    limited = {"type": "integer", "minimum": 1, "description": "How many."}
    schema = {**STRICT, "properties": {"a": limited, "b": {"type": "string", "format": "odd"}}}
    assert anthropic(schema, None) == (schema, None)
    strict = {
        "a": {"type": "integer", "description": "How many. (minimum: 1)"},
        "b": {"type": "string", "description": "format: odd"},
    }
    assert anthropic(schema, True) == ({**schema, "properties": strict}, True)


def test_recursion_is_not_strict_with_anthropic() -> None:
    linked = {**STRICT, "properties": {"a": {"$ref": "#"}, "b": {}}}
    assert anthropic(linked, True, reported=("approx:strict",)) == (linked, False)
    twice = {
        **STRICT,
        "properties": {"a": {"$ref": "#/$defs/s"}, "b": {"$ref": "#/$defs/s"}},
        "$defs": {"s": {"type": "string"}},
    }
    assert anthropic(twice, True) == (twice, True)


def test_a_union_at_the_top_becomes_one_object() -> None:
    one = {"type": "object", "properties": {"a": {}}, "required": ["a"]}
    two = {"type": "object", "properties": {"b": {}}, "required": ["b"]}
    merged = {"type": "object", "properties": {"a": {}, "b": {}}}
    assert anthropic({"anyOf": [one, two]}, None, reported=LOSSY) == (merged, None)
    assert anthropic({"allOf": [one, two]}, None, reported=LOSSY) == (
        {**merged, "required": ["a", "b"]},
        None,
    )


def test_a_reference_at_the_top_is_followed() -> None:
    defs = {"args": {"type": "object", "properties": {"a": {}}}}
    assert anthropic({"$ref": "#/$defs/args", "$defs": defs}, None) == (
        {**defs["args"], "$defs": defs},
        None,
    )


@pytest.mark.parametrize("schema", [{"type": "array"}, {"type": ["object", "null"]}])
def test_arguments_that_are_no_object_are_refused(schema: Schema) -> None:
    with pytest.raises(RequestNotExpressible):
        for_anthropic(schema, strict=None, losses=Losses("p"))


def test_the_schema_of_an_answer_is_closed() -> None:
    none, losses = Losses("p"), Losses("p")
    built = for_anthropic_format(with_property({"properties": {}}, minProperties=1), none)
    assert built == {
        "type": "object",
        "properties": {"x": {"properties": {}, "additionalProperties": False}},
        "additionalProperties": False,
        "description": "minProperties: 1",
    }
    assert none.names == ()
    for_anthropic_format({"type": "object", "additionalProperties": {}}, losses)
    assert losses.names == LOSSY


def test_a_null_that_is_named_twice_is_a_type_of_null() -> None:
    assert openapi_of({"type": ["null", "null"]}) == {"type": "NULL", "nullable": True}


# -- Gemini clients -------------------------------------------------------------------------------


def test_a_gemini_clients_schema_as_json_schema() -> None:
    assert from_openapi(
        {
            "type": "OBJECT",
            "property_ordering": ["any_of"],
            "properties": {
                "any_of": {"type": "STRING", "nullable": True, "enum": ["a"], "format": "enum"},
                "list": {"type": "ARRAY", "items": {"type": "INTEGER"}, "min_items": "1"},
                "either": {"any_of": [{"type": "STRING"}], "nullable": True, "example": 1},
                "odd": {"type": "TYPE_UNSPECIFIED", "nullable": False},
            },
        }
    ) == {
        "type": "object",
        "properties": {
            "any_of": {"type": ["string", "null"], "enum": ["a", None]},
            "list": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
            "either": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "odd": {},
        },
    }


def test_json_schema_from_a_gemini_client_stays() -> None:
    assert from_openapi(STRICT) == STRICT


# -- anything -------------------------------------------------------------------------------------

LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(
    ["object", "array", "string", "null", "#", "#/$defs/a", "#/properties/a", "(?=x)"]
)  # fmt: skip
KEYWORDS = st.sampled_from(
    [
        "type", "properties", "items", "$ref", "$defs", "definitions", "anyOf", "oneOf", "allOf",
        "not", "enum", "const", "required", "additionalProperties", "prefixItems", "nullable",
        "pattern", "format", "minimum", "exclusiveMinimum", "a", "any_of", "minItems",
        "description", "patternProperties",
    ]
)  # fmt: skip
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS | st.just("a"), inner, max_size=5)
    ),
    max_leaves=25,
)
SCHEMAS = st.dictionaries(KEYWORDS, ANYTHING, max_size=6)


@settings(max_examples=300, deadline=None)
@given(SCHEMAS)
def test_nothing_raises_or_changes_its_argument(schema: Schema) -> None:
    before = copy.deepcopy(schema)
    for way in WAYS:
        try:
            built = way(schema)
        except RequestNotExpressible:
            continue
        msgspec.json.encode(built)
    assert schema == before


def deep(levels: int) -> Schema:
    schema: Schema = {"type": "string"}
    for level in range(levels):
        schema = {"items": schema} if level % 2 else {"properties": {"a": schema}}
    return {"type": "object", "properties": {"a": schema}}


HOSTILE: dict[str, Schema] = {
    "deep": deep(900),
    "chain": {
        "$ref": "#/$defs/0",
        "$defs": {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(1000)},
    },
    "laughs": {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/0"}},
        "$defs": {
            str(n): {"properties": {c: {"$ref": f"#/$defs/{n + 1}"} for c in "abcdefgh"}}
            for n in range(40)
        },
    },
    "all of itself": {"type": "object", "allOf": [{"$ref": "#"}], "properties": {"a": {}}},
    "odd": {"type": {"a": 1}, "properties": [], "items": 3, "anyOf": {}, "required": {"a": 1}},
}


def test_references_make_a_schema_only_so_much_larger() -> None:
    schema = HOSTILE["laughs"]
    assert len(msgspec.json.encode(for_gemini_openapi(schema, Losses("p")))) < 200_000
    shared = {"$ref": "#/$defs/a"}
    address = {str(n): {"type": "string"} for n in range(8)}
    used = {str(n): shared for n in range(40)}
    losses = Losses("p")
    built = for_gemini_openapi(
        {"properties": used, "$defs": {"a": {"type": "object", "properties": address}}}, losses
    )
    assert losses.names == ()
    assert msgspec.json.encode(built).count(b"STRING") == 320


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("way", WAYS)
def test_hostile_schemas_are_bounded(name: str, way: Callable[[Schema], object]) -> None:
    def at_depth(frames: int) -> object:
        return at_depth(frames - 1) if frames else way(HOSTILE[name])

    try:
        built = at_depth(sys.getrecursionlimit() // 3)
    except RequestNotExpressible:
        return
    assert len(msgspec.json.encode(built)) < 100 * NODES_MAX


def test_numbers_of_thousands_of_digits_are_not_read() -> None:
    long = "9" * 6000
    schema: Schema = {
        "anyOf": [{"$ref": f"#/anyOf/{long}"}, {"minItems": long}, {"$ref": "#/anyOf/1"}]
    }
    for way in WAYS:
        msgspec.json.encode(way(schema))
    assert from_openapi({"minItems": "12"}) == {"minItems": 12}

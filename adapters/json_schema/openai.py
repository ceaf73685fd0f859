"""JSON Schema for OpenAI's protocols."""

from __future__ import annotations

from adapters.json_schema.nodes import (
    Given,
    Schema,
    has_lookaround,
    is_schema,
    nodes_in,
    plain,
    rebuilt,
    types_of,
    with_root,
)
from adapters.losses import Losses

NEVER_STRICT = frozenset(
    (
        "additionalItems",
        "allOf",
        "contains",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "not",
        "oneOf",
        "patternProperties",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    )
)
_ANNOTATIONS = frozenset(("default", "deprecated", "example", "examples", "readOnly", "writeOnly"))


def for_openai(
    schema: Given | None, *, strict: bool | None, losses: Losses
) -> tuple[Schema, bool | None]:
    """The schema for OpenAI's protocols, and whether it can be demanded strictly."""
    built = with_root(rebuilt(schema or {}, losses, plain))
    if strict is not True:
        return built, strict
    if not _fits_openai_strict(built):
        losses.approximate("strict")
        return built, False
    return rebuilt(built, losses, _without_annotations), True


def _fits_openai_strict(schema: Given) -> bool:
    return all(_is_openai_strict(node) for node in nodes_in(schema)) and "anyOf" not in schema


def _is_openai_strict(node: Given) -> bool:
    if node.keys() & NEVER_STRICT or has_lookaround(node):
        return False
    properties = node.get("properties")
    if "object" not in types_of(node) and not properties:
        return True
    required = node.get("required", [])
    names = list(properties) if is_schema(properties) else []
    return (
        node.get("additionalProperties") is False
        and isinstance(required, list)
        and sorted(map(str, required)) == sorted(names)
    )


def _without_annotations(node: Schema) -> Schema:
    return {key: value for key, value in node.items() if key not in _ANNOTATIONS}

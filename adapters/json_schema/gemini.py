"""JSON Schema for Gemini's newer members, `parametersJsonSchema` and `responseJsonSchema`."""

from __future__ import annotations

import re

from adapters.json_schema.nodes import (
    Given,
    Schema,
    has_lookaround,
    is_schema,
    lower_types,
    names_in,
    plain,
    rebuilt,
)

_GEMINI = frozenset(
    (
        "$anchor",
        "$defs",
        "$ref",
        "additionalProperties",
        "allOf",
        "anyOf",
        "const",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maximum",
        "minItems",
        "minimum",
        "oneOf",
        "pattern",
        "prefixItems",
        "properties",
        "required",
        "title",
        "type",
    )
)
_DEFINITION = re.compile(r"#/(?:\$defs|definitions)/([^/]+)")


def for_gemini(schema: Given | None) -> Schema:
    """The schema for `parametersJsonSchema` and `responseJsonSchema`; {} where nothing is asked,
    and the member is best left out."""
    built = rebuilt(_with_defs(schema or {}), None, _gemini_node)
    return {} if asks_nothing(built) else built


def _with_defs(schema: Given) -> Given:
    """Definitions all under `$defs`, the only place where Gemini looks."""
    older = schema.get("definitions")
    if not is_schema(older):
        return schema
    newer = schema.get("$defs")
    return {**schema, "$defs": {**older, **(newer if is_schema(newer) else {})}}


def _gemini_node(node: Schema) -> Schema:
    if isinstance(node.get("$ref"), str):
        # Beside a reference it takes no other members.
        reference = _DEFINITION.fullmatch(str(node["$ref"]))
        kept = {"$defs": node["$defs"]} if "$defs" in node else {}
        return {**kept, "$ref": f"#/$defs/{reference[1]}"} if reference else kept
    node = plain(inclusive(node))
    node = {key: value for key, value in node.items() if key in _GEMINI}
    if has_lookaround(node):
        del node["pattern"]
    prune_required(node)
    return node


def inclusive(node: Schema) -> Schema:
    """Exclusive limits as inclusive ones: the next whole number, or the same fraction."""
    for exclusive, inclusive, step in (
        ("exclusiveMinimum", "minimum", 1),
        ("exclusiveMaximum", "maximum", -1),
    ):
        limit = node.pop(exclusive, None)
        if isinstance(limit, int | float) and not isinstance(limit, bool):
            whole = isinstance(limit, int) and "integer" in str(lower_types(node.get("type")))
            node.setdefault(inclusive, limit + step if whole else limit)
    return node


def prune_required(node: Schema) -> None:
    """Require only properties that there are."""
    properties = node.get("properties")
    if "required" in node:
        known = properties if is_schema(properties) else {}
        node["required"] = [name for name in names_in(node["required"]) if name in known]
        if not node["required"]:
            del node["required"]


def asks_nothing(schema: Given) -> bool:
    """Whether it is an object of which nothing is said; older models refuse that."""
    return not any(
        value
        for key, value in schema.items()
        if key not in ("type", "description", "title", "$defs")
    )

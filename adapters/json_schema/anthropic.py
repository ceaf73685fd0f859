"""JSON Schema for Anthropic, for tools and for whole answers."""

from __future__ import annotations

from collections.abc import Iterable

from adapters.json_schema.nodes import (
    Given,
    Schema,
    has_lookaround,
    is_schema,
    listed,
    names_in,
    nodes_in,
    plain,
    rebuilt,
    types_of,
    with_root,
)
from adapters.json_schema.openai import NEVER_STRICT
from adapters.json_schema.references import References, definitions_of
from adapters.losses import Losses

_LIMITS = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minProperties",
    "maxProperties",
)
_ANTHROPIC_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid")
)
_ANTHROPIC_NEVER_STRICT = NEVER_STRICT - {"allOf", "uniqueItems"}
_UNIONS = ("allOf", "anyOf", "oneOf")


def for_anthropic(
    schema: Given | None, *, strict: bool | None, losses: Losses
) -> tuple[Schema, bool | None]:
    """A tool's schema for Anthropic, and whether it can be demanded strictly.

    Raises RequestNotExpressible where the arguments would be no object.
    """
    built = _object_root(with_root(rebuilt(schema or {}, losses, plain)), losses)
    if strict is not True:
        return built, strict
    if not _fits_anthropic_strict(built):
        losses.approximate("strict")
        return built, False
    return rebuilt(built, losses, _limits_in_words), True


def for_anthropic_format(schema: Given, losses: Losses) -> Schema:
    """The schema of a whole answer for Anthropic, where it is always kept to strictly.

    Objects are closed there: those that were left open are, and it is reported where they had
    been opened on purpose.
    """

    def closed(node: Schema) -> Schema:
        if "object" in types_of(node) or "properties" in node:
            if node.get("additionalProperties", False) is not False:
                losses.approximate("schema")
            node["additionalProperties"] = False
        return _limits_in_words(node)

    return rebuilt(rebuilt(schema, losses, plain), losses, closed)


def _object_root(schema: Schema, losses: Losses) -> Schema:
    """Anthropic wants an object at the top, and no union: its branches become one object."""
    if "$ref" in schema:
        schema = {**References(schema).resolved(schema)[0], **definitions_of(schema)}
    if types_of(schema) != ["object"]:
        losses.refuse("parameters", "takes only objects as the arguments of a tool")
    branches = [
        branch for union in _UNIONS for branch in listed(schema.get(union)) if is_schema(branch)
    ]
    if not any(union in schema for union in _UNIONS):
        return schema
    losses.approximate("schema")
    root = {key: value for key, value in schema.items() if key not in _UNIONS}
    return _merged_objects(root, branches, all_apply="allOf" in schema)


def _merged_objects(root: Schema, branches: Iterable[Given], *, all_apply: bool) -> Schema:
    properties: Schema = {}
    required = names_in(root.get("required"))
    for branch in branches:
        if is_schema(own := branch.get("properties")):
            properties |= own
        if all_apply:
            required += [name for name in names_in(branch.get("required")) if name not in required]
    if is_schema(own := root.get("properties")):
        properties |= own
    merged = {**root, "properties": properties}
    return {**merged, "required": required} if required else merged


def _fits_anthropic_strict(schema: Given) -> bool:
    return not References(schema).recursive() and all(
        not node.keys() & _ANTHROPIC_NEVER_STRICT
        and ("object" not in types_of(node) or node.get("additionalProperties") is False)
        for node in nodes_in(schema)
    )


def _limits_in_words(node: Schema) -> Schema:
    """A node with what strict sampling cannot hold to, as advice in its description."""
    advice = {key: node.pop(key) for key in _LIMITS if key in node}
    if "format" in node and str(node["format"]) not in _ANTHROPIC_FORMATS:
        advice["format"] = node.pop("format")
    if has_lookaround(node):
        del node["pattern"]
    if advice:
        words = ", ".join(f"{key}: {value}" for key, value in advice.items())
        described = node.get("description")
        node["description"] = f"{described} ({words})" if described else words
    return node

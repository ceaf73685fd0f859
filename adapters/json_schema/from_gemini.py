"""The schemas that Gemini's clients send, as JSON Schema."""

from __future__ import annotations

from adapters.json_schema.nodes import (
    Given,
    Schema,
    Walk,
    plain,
    types_of,
)

_SPELLINGS = {
    "additional_properties": "additionalProperties",
    "any_of": "anyOf",
    "max_items": "maxItems",
    "max_length": "maxLength",
    "max_properties": "maxProperties",
    "min_items": "minItems",
    "min_length": "minLength",
    "min_properties": "minProperties",
    "prefix_items": "prefixItems",
    "property_ordering": "propertyOrdering",
}
_OPENAPI_ONLY = frozenset(("example", "propertyOrdering"))
_DIGITS_MAX = 19
_COUNTS = ("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties")


def from_openapi(schema: Given) -> Schema:
    """A Gemini client's schema as JSON Schema. JSON Schema itself stays what it is."""
    return Walk(_from_openapi_node, _SPELLINGS).rebuilt(schema)


def _from_openapi_node(node: Schema) -> Schema:
    node = {key: value for key, value in plain(node).items() if key not in _OPENAPI_ONLY}
    nullable = node.pop("nullable", None) is True
    if node.get("type") == "type_unspecified":
        del node["type"]
    if node.get("format") == "enum":
        del node["format"]
    for count in _COUNTS:
        if isinstance(text := node.get(count), str) and _is_count(text):
            node[count] = int(text)
    return _nullable(node) if nullable else node


def _is_count(text: str) -> bool:
    """Whether it is a number such as Google writes into a string, of 64 bits at most."""
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX


def _nullable(node: Schema) -> Schema:
    """A node that allows null, too."""
    types = types_of(node)
    if types and "null" not in types:
        node["type"] = [*types, "null"]
    if isinstance(values := node.get("enum"), list) and None not in values:
        node["enum"] = [*values, None]
    if isinstance(branches := node.get("anyOf"), list):
        node["anyOf"] = [*branches, {"type": "null"}]
    return node

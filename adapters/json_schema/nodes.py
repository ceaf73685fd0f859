"""A schema as a tree of nodes: where schemas stand in schemas, and how one is rebuilt.

Bounded in depth: what lies deeper than any provider would take becomes a schema that allows
everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeGuard

from adapters.losses import Losses

Schema = dict[str, object]
Given = Mapping[str, object]

DEPTH_MAX = 48

_NOTES = frozenset(("$schema", "$id", "$comment", "id"))

# Where a schema has schemas in it: under one keyword one, several, or several by name.
_ONE = frozenset(
    (
        "additionalItems",
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    )
)
_MANY = frozenset(("allOf", "anyOf", "oneOf", "prefixItems", "items"))
_NAMED = frozenset(("$defs", "definitions", "dependentSchemas", "patternProperties", "properties"))

_LOOKAROUND = re.compile(r"\(\?<?[=!]")


def is_schema(value: object) -> TypeGuard[Given]:
    """Whether a value is a schema that says something; `true` and `false` are not."""
    return isinstance(value, Mapping)


class Walk:
    """Rebuilds a schema from its leaves up: `change` gets every node with its children done."""

    __slots__ = ("_change", "_spellings", "cut")

    def __init__(
        self, change: Callable[[Schema], Schema], spellings: Mapping[str, str] | None = None
    ) -> None:
        self._change = change
        self._spellings = spellings or {}  # other names of keywords
        self.cut = False  # something was too deep

    def rebuilt(self, node: Given, depth: int = 0) -> Schema:
        if depth > DEPTH_MAX:
            self.cut = True
            return {}
        members = {self._spellings.get(key, key): value for key, value in node.items()}
        return self._change({key: self._member(key, members[key], depth) for key in members})

    def _member(self, key: str, value: object, depth: int) -> object:
        if key in _ONE and is_schema(value):
            return self.rebuilt(value, depth + 1)
        if key in _MANY and isinstance(value, list):
            return [self.rebuilt(one, depth + 1) if is_schema(one) else one for one in value]
        if key in _NAMED and is_schema(value):
            return {
                name: self.rebuilt(one, depth + 1) if is_schema(one) else one
                for name, one in value.items()
            }
        return value


def rebuilt(schema: Given, losses: Losses | None, change: Callable[[Schema], Schema]) -> Schema:
    """`schema` after `change`, whose cuts are reported."""
    walk = Walk(change)
    built = walk.rebuilt(schema)
    if walk.cut and losses is not None:
        losses.approximate("schema")
    return built


def plain(node: Schema) -> Schema:
    """A node without notes to validators, and with its types in lower case."""
    node = {key: value for key, value in node.items() if key not in _NOTES}
    if "type" in node:
        node["type"] = lower_types(node["type"])
    return node


def lower_types(types: object) -> object:
    """Names of types in lower case."""
    if isinstance(types, list):
        return [one.lower() if isinstance(one, str) else one for one in types]
    return types.lower() if isinstance(types, str) else types


def nodes_in(schema: Given, depth: int = 0) -> Iterator[Given]:
    """The node and all in it, down to the depth that counts."""
    stack: list[tuple[Given, int]] = [(schema, depth)]
    while stack:
        node, level = stack.pop()
        yield node
        if level < DEPTH_MAX:
            stack += [(child, level + 1) for child in children_of(node)]


def children_of(node: Given) -> Iterator[Given]:
    """The schemas that stand right in a node."""
    for key, value in node.items():
        if key in _ONE and is_schema(value):
            yield value
        elif key in _MANY and isinstance(value, list):
            yield from filter(is_schema, value)
        elif key in _NAMED and is_schema(value):
            yield from filter(is_schema, value.values())


def types_of(node: Given) -> list[str]:
    """The types that a node names, as a list."""
    types = node.get("type")
    given = types if isinstance(types, list) else [types]
    return [one for one in given if isinstance(one, str)]


def with_root(schema: Schema) -> Schema:
    """A root that is an object, as far as it does not say otherwise: arguments always are."""
    if not schema.keys() & {"type", "$ref"}:
        schema = {"type": "object", **schema}
    if schema.get("type") == "object" and not schema.keys() & {"anyOf", "oneOf", "allOf"}:
        schema.setdefault("properties", {})
    return schema


def listed(value: object) -> list[object]:
    """A list as it is, nothing for anything else."""
    return value if isinstance(value, list) else []


def names_in(value: object) -> list[str]:
    """The strings of a list."""
    return [name for name in listed(value) if isinstance(name, str)]


def has_lookaround(node: Given) -> bool:
    """Whether a node's pattern needs what linear-time matchers cannot do."""
    pattern = node.get("pattern")
    return isinstance(pattern, str) and _LOOKAROUND.search(pattern) is not None

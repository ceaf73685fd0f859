"""JSON Schema for Gemini's older members, `parameters` and `responseSchema`: a subset of OpenAPI's.

One keyword that Gemini does not know fails the whole request.
"""

from __future__ import annotations

from adapters.json_schema.gemini import asks_nothing, inclusive, prune_required
from adapters.json_schema.nodes import (
    DEPTH_MAX,
    Given,
    Schema,
    has_lookaround,
    is_schema,
    listed,
    names_in,
    nodes_in,
    plain,
    types_of,
)
from adapters.json_schema.references import References
from adapters.losses import Losses

# References can make a small schema endlessly large.
NODES_MAX = 4_000
_NODES_FREE = 256
_GROWTH_MAX = 8

_OPENAPI = frozenset(
    (
        "anyOf",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "nullable",
        "pattern",
        "properties",
        "propertyOrdering",
        "required",
        "type",
    )
)
_OPENAPI_FORMATS = {
    "string": ("enum", "date-time"),
    "integer": ("int32", "int64"),
    "number": ("float", "double"),
}
_LOST = frozenset(
    ("not", "if", "then", "else", "patternProperties", "dependentSchemas", "contains")
)


def for_gemini_openapi(schema: Given | None, losses: Losses) -> Schema:
    """The schema for `parameters` and `responseSchema`, a subset of OpenAPI's; {} where nothing is
    asked, and the member is best left out.

    References are replaced by what they stand for; those that lead back into themselves end in a
    free object.
    """
    built = _OpenAPI(schema or {}, losses).node(schema or {}, 0, ())
    return {} if asks_nothing(built) else built


class _OpenAPI:
    """One schema on its way to Gemini's older form."""

    __slots__ = ("_losses", "_nodes_left", "_refs")

    def __init__(self, root: Given, losses: Losses) -> None:
        self._refs = References(root)
        self._losses = losses
        nodes = sum(1 for _ in nodes_in(root))
        self._nodes_left = min(NODES_MAX, _NODES_FREE + _GROWTH_MAX * nodes)

    def node(self, given: Given, depth: int, above: tuple[str, ...]) -> Schema:
        """One schema; `above` are the references that it stands in."""
        node, followed = self._refs.resolved(given)
        self._nodes_left -= 1
        if depth > DEPTH_MAX or self._nodes_left < 0 or set(followed) & set(above):
            self._losses.approximate("schema")
            return {"type": "OBJECT"}
        above += followed
        if node.keys() & _LOST:
            self._losses.approximate("schema")
        built = inclusive(plain(self._all_merged(node)))
        self._join_unions(built)
        _const_as_enum(built)
        _null_as_nullable(built)
        self._below(built, depth + 1, above)
        self._enum_as_text(built)
        _upper_type(built)
        if built.get("type") == "ARRAY":
            built.setdefault("items", {"type": "STRING"})
        prune_required(built)
        return {key: value for key, value in built.items() if _is_openapi(key, value, built)}

    def _all_merged(self, node: Given) -> Schema:
        """`allOf` as one node."""
        merged = dict(node)
        parts = [
            self._refs.resolved(one)[0]
            for one in listed(merged.pop("allOf", None))
            if is_schema(one)
        ]
        for part in parts:
            for key, value in part.items():
                if key == "properties" and is_schema(value):
                    own = merged.get(key)
                    merged[key] = {**value, **(own if is_schema(own) else {})}
                elif key == "required":
                    merged[key] = list(dict.fromkeys(names_in(merged.get(key)) + names_in(value)))
                elif key != "allOf":
                    merged.setdefault(key, value)
        return merged

    def _join_unions(self, node: Schema) -> None:
        """`oneOf` and a list of types as `anyOf`."""
        one_of = listed(node.pop("oneOf", None))
        if one_of:
            node["anyOf"] = listed(node.get("anyOf")) + one_of
        types = types_of(node)
        if len([one for one in types if one != "null"]) > 1 and "anyOf" not in node:
            node["anyOf"] = [{"type": one} for one in types]
            del node["type"]

    def _below(self, node: Schema, depth: int, above: tuple[str, ...]) -> None:
        properties = node.get("properties")
        if is_schema(properties):
            node["properties"] = {
                name: self.node(one if is_schema(one) else {}, depth, above)
                for name, one in properties.items()
            }
        if is_schema(items := node.get("items")):
            node["items"] = self.node(items, depth, above)
        elif several := listed(items or node.get("prefixItems")):
            kinds = [self.node(one, depth, above) for one in several if is_schema(one)]
            node["items"] = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        if any_of := [one for one in listed(node.get("anyOf")) if is_schema(one)]:
            node["anyOf"] = [self.node(one, depth, above) for one in any_of]

    def _enum_as_text(self, node: Schema) -> None:
        """Gemini has enums only of strings."""
        values = node.get("enum")
        if not isinstance(values, list):
            node.pop("enum", None)
            return
        if all(isinstance(value, str) for value in values):
            node.setdefault("type", "string")
            return
        self._losses.approximate("schema")
        del node["enum"]


def _const_as_enum(node: Schema) -> None:
    if "const" in node:
        node.setdefault("enum", [node["const"]])


def _null_as_nullable(node: Schema) -> None:
    """A type of null beside others as `nullable`."""
    types = types_of(node)
    if "null" in types and len(types) > 1:
        node["nullable"] = True
        node["type"] = next((one for one in types if one != "null"), "null")
    elif len(types) == 1:
        node["type"] = types[0]
    values = node.get("enum")
    if isinstance(values, list) and None in values and len(values) > 1:
        node["nullable"] = True
        node["enum"] = [value for value in values if value is not None]
    branches = listed(node.get("anyOf"))
    rest = [one for one in branches if not (is_schema(one) and types_of(one) == ["null"])]
    if rest and len(rest) < len(branches):
        node["nullable"] = True
        node["anyOf"] = rest
        if len(rest) == 1 and is_schema(rest[0]):
            del node["anyOf"]
            for key, value in rest[0].items():
                node.setdefault(key, value)


def _upper_type(node: Schema) -> None:
    if isinstance(node.get("type"), str):
        node["type"] = str(node["type"]).upper()
    elif "properties" in node:
        node["type"] = "OBJECT"
    elif "items" in node:
        node["type"] = "ARRAY"


def _is_openapi(key: str, value: object, node: Given) -> bool:
    if key == "format":
        return value in _OPENAPI_FORMATS.get(str(node.get("type")).lower(), ())
    if key == "pattern":
        return not has_lookaround(node)
    return key in _OPENAPI

"""JSON Schema as each provider takes it.

Clients send whatever their validators write; a provider refuses a whole request for one keyword it
does not know. The tables here say which keywords survive where. Every function returns a new
schema, leaves its argument alone, and is bounded in depth and size whatever it is given: what lies
deeper than any provider would take becomes a schema that allows everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeGuard

from adapters.losses import Losses

Schema = dict[str, object]
Given = Mapping[str, object]

DEPTH_MAX = 48
NODES_MAX = 4_000  # where references are replaced: they can make a small schema endlessly large

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


def _is_schema(value: object) -> TypeGuard[Given]:
    return isinstance(value, Mapping)


# -- walking --------------------------------------------------------------------------------------


class _Walk:
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
        if key in _ONE and _is_schema(value):
            return self.rebuilt(value, depth + 1)
        if key in _MANY and isinstance(value, list):
            return [self.rebuilt(one, depth + 1) if _is_schema(one) else one for one in value]
        if key in _NAMED and _is_schema(value):
            return {
                name: self.rebuilt(one, depth + 1) if _is_schema(one) else one
                for name, one in value.items()
            }
        return value


def _rebuilt(schema: Given, losses: Losses | None, change: Callable[[Schema], Schema]) -> Schema:
    walk = _Walk(change)
    built = walk.rebuilt(schema)
    if walk.cut and losses is not None:
        losses.approximate("schema")
    return built


def _plain(node: Schema) -> Schema:
    """A node without notes to validators, and with its types in lower case."""
    node = {key: value for key, value in node.items() if key not in _NOTES}
    if "type" in node:
        node["type"] = _lower(node["type"])
    return node


def _lower(types: object) -> object:
    if isinstance(types, list):
        return [_lower(one) for one in types]
    return types.lower() if isinstance(types, str) else types


def _nodes(schema: Given, depth: int = 0) -> Iterator[Given]:
    """The node and all in it, as far as they count."""
    stack: list[tuple[Given, int]] = [(schema, depth)]
    while stack:
        node, level = stack.pop()
        yield node
        if level < DEPTH_MAX:
            stack += [(child, level + 1) for child in _children(node)]


def _children(node: Given) -> Iterator[Given]:
    for key, value in node.items():
        if key in _ONE and _is_schema(value):
            yield value
        elif key in _MANY and isinstance(value, list):
            yield from filter(_is_schema, value)
        elif key in _NAMED and _is_schema(value):
            yield from filter(_is_schema, value.values())


def _types(node: Given) -> list[str]:
    types = node.get("type")
    given = types if isinstance(types, list) else [types]
    return [one for one in given if isinstance(one, str)]


# -- OpenAI ---------------------------------------------------------------------------------------

_NEVER_STRICT = frozenset(
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
    built = _with_root(_rebuilt(schema or {}, losses, _plain))
    if strict is not True:
        return built, strict
    if not _fits_openai_strict(built):
        losses.approximate("strict")
        return built, False
    return _rebuilt(built, losses, _without_annotations), True


def _with_root(schema: Schema) -> Schema:
    """A root that is an object, as far as it does not say otherwise: arguments always are."""
    if not schema.keys() & {"type", "$ref"}:
        schema = {"type": "object", **schema}
    if schema.get("type") == "object" and not schema.keys() & {"anyOf", "oneOf", "allOf"}:
        schema.setdefault("properties", {})
    return schema


def _fits_openai_strict(schema: Given) -> bool:
    return all(_is_openai_strict(node) for node in _nodes(schema)) and "anyOf" not in schema


def _is_openai_strict(node: Given) -> bool:
    if node.keys() & _NEVER_STRICT or _has_lookaround(node):
        return False
    properties = node.get("properties")
    if "object" not in _types(node) and not properties:
        return True
    required = node.get("required", [])
    names = list(properties) if _is_schema(properties) else []
    return (
        node.get("additionalProperties") is False
        and isinstance(required, list)
        and sorted(map(str, required)) == sorted(names)
    )


def _has_lookaround(node: Given) -> bool:
    pattern = node.get("pattern")
    return isinstance(pattern, str) and _LOOKAROUND.search(pattern) is not None


def _without_annotations(node: Schema) -> Schema:
    return {key: value for key, value in node.items() if key not in _ANNOTATIONS}


# -- Anthropic ------------------------------------------------------------------------------------

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
_ANTHROPIC_NEVER_STRICT = _NEVER_STRICT - {"allOf", "uniqueItems"}
_UNIONS = ("allOf", "anyOf", "oneOf")


def for_anthropic(
    schema: Given | None, *, strict: bool | None, losses: Losses
) -> tuple[Schema, bool | None]:
    """A tool's schema for Anthropic, and whether it can be demanded strictly.

    Raises RequestNotExpressible where the arguments would be no object.
    """
    built = _object_root(_with_root(_rebuilt(schema or {}, losses, _plain)), losses)
    if strict is not True:
        return built, strict
    if not _fits_anthropic_strict(built):
        losses.approximate("strict")
        return built, False
    return _rebuilt(built, losses, _limits_in_words), True


def for_anthropic_format(schema: Given, losses: Losses) -> Schema:
    """The schema of a whole answer for Anthropic, where it is always kept to strictly.

    Objects are closed there: those that were left open are, and it is reported where they had
    been opened on purpose.
    """

    def closed(node: Schema) -> Schema:
        if "object" in _types(node) or "properties" in node:
            if node.get("additionalProperties", False) is not False:
                losses.approximate("schema")
            node["additionalProperties"] = False
        return _limits_in_words(node)

    return _rebuilt(_rebuilt(schema, losses, _plain), losses, closed)


def _object_root(schema: Schema, losses: Losses) -> Schema:
    """Anthropic wants an object at the top, and no union: its branches become one object."""
    if "$ref" in schema:
        schema = {**_Refs(schema).resolved(schema)[0], **_definitions(schema)}
    if _types(schema) != ["object"]:
        losses.refuse("parameters", "takes only objects as the arguments of a tool")
    branches = [
        branch for union in _UNIONS for branch in _listed(schema.get(union)) if _is_schema(branch)
    ]
    if not any(union in schema for union in _UNIONS):
        return schema
    losses.approximate("schema")
    root = {key: value for key, value in schema.items() if key not in _UNIONS}
    return _merged_objects(root, branches, all_apply="allOf" in schema)


def _merged_objects(root: Schema, branches: Iterable[Given], *, all_apply: bool) -> Schema:
    properties: Schema = {}
    required = _names(root.get("required"))
    for branch in branches:
        if _is_schema(own := branch.get("properties")):
            properties |= own
        if all_apply:
            required += [name for name in _names(branch.get("required")) if name not in required]
    if _is_schema(own := root.get("properties")):
        properties |= own
    merged = {**root, "properties": properties}
    return {**merged, "required": required} if required else merged


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _names(value: object) -> list[str]:
    return [name for name in _listed(value) if isinstance(name, str)]


def _fits_anthropic_strict(schema: Given) -> bool:
    return not _Refs(schema).recursive() and all(
        not node.keys() & _ANTHROPIC_NEVER_STRICT
        and ("object" not in _types(node) or node.get("additionalProperties") is False)
        for node in _nodes(schema)
    )


def _limits_in_words(node: Schema) -> Schema:
    """A node with what strict sampling cannot hold to, as advice in its description."""
    advice = {key: node.pop(key) for key in _LIMITS if key in node}
    if "format" in node and str(node["format"]) not in _ANTHROPIC_FORMATS:
        advice["format"] = node.pop("format")
    if _has_lookaround(node):
        del node["pattern"]
    if advice:
        words = ", ".join(f"{key}: {value}" for key, value in advice.items())
        described = node.get("description")
        node["description"] = f"{described} ({words})" if described else words
    return node


# -- references -----------------------------------------------------------------------------------


def _definitions(schema: Given) -> Schema:
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema}


class _Refs:
    """The local references of one schema."""

    __slots__ = ("_root",)

    def __init__(self, root: Given) -> None:
        self._root = root

    def resolved(self, node: Given) -> tuple[Given, tuple[str, ...]]:
        """What a reference stands for, with its own members beside it, and the references on the
        way there; {} for one that leads nowhere."""
        followed: list[str] = []
        while (reference := node.get("$ref")) is not None:
            if reference in followed or len(followed) > DEPTH_MAX:
                return {}, tuple(followed)
            followed.append(str(reference))
            found = self._find(reference)
            node = {**found, **{key: node[key] for key in node if key != "$ref"}}
            if "$ref" in found:
                node["$ref"] = found["$ref"]
        return node, tuple(followed)

    def recursive(self) -> bool:
        """Whether a reference leads back to where it stands."""
        done: set[int] = set()
        above: set[int] = set()
        stack: list[tuple[Given, Iterator[Given]]] = [(self._root, self._leads_to(self._root))]
        above.add(id(self._root))
        while stack:
            node, following = stack[-1]
            child = next(following, None)
            if child is None:
                stack.pop()
                above.discard(id(node))
                done.add(id(node))
            elif id(child) in above:
                return True
            elif id(child) not in done:
                above.add(id(child))
                stack.append((child, self._leads_to(child)))
        return False

    def _leads_to(self, node: Given) -> Iterator[Given]:
        yield from _children(node)
        if "$ref" in node:
            yield self._find(node["$ref"])

    def _find(self, reference: object) -> Given:
        if not isinstance(reference, str) or not reference.startswith("#"):
            return {}
        at: object = self._root
        for name in reference[1:].split("/")[1:]:
            key = name.replace("~1", "/").replace("~0", "~")
            if isinstance(at, list) and key.isdecimal() and int(key) < len(at):
                at = at[int(key)]
            else:
                at = at.get(key) if _is_schema(at) else None
        return at if _is_schema(at) else {}


# -- Gemini ---------------------------------------------------------------------------------------

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
    built = _rebuilt(_with_defs(schema or {}), None, _gemini_node)
    return {} if _asks_nothing(built) else built


def _with_defs(schema: Given) -> Given:
    """Definitions all under `$defs`, the only place where Gemini looks."""
    older = schema.get("definitions")
    if not _is_schema(older):
        return schema
    newer = schema.get("$defs")
    return {**schema, "$defs": {**older, **(newer if _is_schema(newer) else {})}}


def _gemini_node(node: Schema) -> Schema:
    if isinstance(node.get("$ref"), str):
        # Beside a reference it takes no other members.
        reference = _DEFINITION.fullmatch(str(node["$ref"]))
        kept = {"$defs": node["$defs"]} if "$defs" in node else {}
        return {**kept, "$ref": f"#/$defs/{reference[1]}"} if reference else kept
    node = _plain(_inclusive(node))
    node = {key: value for key, value in node.items() if key in _GEMINI}
    if _has_lookaround(node):
        del node["pattern"]
    _prune_required(node)
    return node


def _inclusive(node: Schema) -> Schema:
    """Exclusive limits as inclusive ones: the next whole number, or the same fraction."""
    for exclusive, inclusive, step in (
        ("exclusiveMinimum", "minimum", 1),
        ("exclusiveMaximum", "maximum", -1),
    ):
        limit = node.pop(exclusive, None)
        if isinstance(limit, int | float) and not isinstance(limit, bool):
            whole = isinstance(limit, int) and "integer" in str(_lower(node.get("type")))
            node.setdefault(inclusive, limit + step if whole else limit)
    return node


def _prune_required(node: Schema) -> None:
    properties = node.get("properties")
    if "required" in node:
        known = properties if _is_schema(properties) else {}
        node["required"] = [name for name in _names(node["required"]) if name in known]
        if not node["required"]:
            del node["required"]


def _asks_nothing(schema: Given) -> bool:
    """Whether it is an object of which nothing is said; older models refuse that."""
    return not any(
        value
        for key, value in schema.items()
        if key not in ("type", "description", "title", "$defs")
    )


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
    return {} if _asks_nothing(built) else built


class _OpenAPI:
    """One schema on its way to Gemini's older form."""

    __slots__ = ("_losses", "_nodes", "_refs")

    def __init__(self, root: Given, losses: Losses) -> None:
        self._refs = _Refs(root)
        self._losses = losses
        self._nodes = 0

    def node(self, given: Given, depth: int, above: tuple[str, ...]) -> Schema:
        """One schema; `above` are the references that it stands in."""
        node, followed = self._refs.resolved(given)
        self._nodes += 1
        if depth > DEPTH_MAX or self._nodes > NODES_MAX or set(followed) & set(above):
            self._losses.approximate("schema")
            return {"type": "OBJECT"}
        above += followed
        if node.keys() & _LOST:
            self._losses.approximate("schema")
        built = _inclusive(_plain(self._all_merged(node)))
        self._join_unions(built)
        _const_as_enum(built)
        _null_as_nullable(built)
        self._below(built, depth + 1, above)
        self._enum_as_text(built)
        _upper_type(built)
        if built.get("type") == "ARRAY":
            built.setdefault("items", {"type": "STRING"})
        _prune_required(built)
        return {key: value for key, value in built.items() if _is_openapi(key, value, built)}

    def _all_merged(self, node: Given) -> Schema:
        """`allOf` as one node."""
        merged = dict(node)
        parts = [
            self._refs.resolved(one)[0]
            for one in _listed(merged.pop("allOf", None))
            if _is_schema(one)
        ]
        for part in parts:
            for key, value in part.items():
                if key == "properties" and _is_schema(value):
                    own = merged.get(key)
                    merged[key] = {**value, **(own if _is_schema(own) else {})}
                elif key == "required":
                    merged[key] = list(dict.fromkeys(_names(merged.get(key)) + _names(value)))
                elif key != "allOf":
                    merged.setdefault(key, value)
        return merged

    def _join_unions(self, node: Schema) -> None:
        """`oneOf` and a list of types as `anyOf`."""
        one_of = _listed(node.pop("oneOf", None))
        if one_of:
            node["anyOf"] = _listed(node.get("anyOf")) + one_of
        types = _types(node)
        if len([one for one in types if one != "null"]) > 1 and "anyOf" not in node:
            node["anyOf"] = [{"type": one} for one in types]
            del node["type"]

    def _below(self, node: Schema, depth: int, above: tuple[str, ...]) -> None:
        properties = node.get("properties")
        if _is_schema(properties):
            node["properties"] = {
                name: self.node(one if _is_schema(one) else {}, depth, above)
                for name, one in properties.items()
            }
        if _is_schema(items := node.get("items")):
            node["items"] = self.node(items, depth, above)
        elif several := _listed(items or node.get("prefixItems")):
            kinds = [self.node(one, depth, above) for one in several if _is_schema(one)]
            node["items"] = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        if any_of := [one for one in _listed(node.get("anyOf")) if _is_schema(one)]:
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
    types = _types(node)
    if "null" in types and len(types) > 1:
        node["nullable"] = True
        node["type"] = next(one for one in types if one != "null")
    elif len(types) == 1:
        node["type"] = types[0]
    values = node.get("enum")
    if isinstance(values, list) and None in values and len(values) > 1:
        node["nullable"] = True
        node["enum"] = [value for value in values if value is not None]
    branches = _listed(node.get("anyOf"))
    rest = [one for one in branches if not (_is_schema(one) and _types(one) == ["null"])]
    if rest and len(rest) < len(branches):
        node["nullable"] = True
        node["anyOf"] = rest
        if len(rest) == 1 and _is_schema(rest[0]):
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
        return not _has_lookaround(node)
    return key in _OPENAPI


# -- Gemini clients -------------------------------------------------------------------------------

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
_COUNTS = ("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties")


def from_openapi(schema: Given) -> Schema:
    """A Gemini client's schema as JSON Schema. JSON Schema itself stays what it is."""
    return _Walk(_from_openapi_node, _SPELLINGS).rebuilt(schema)


def _from_openapi_node(node: Schema) -> Schema:
    node = {key: value for key, value in _plain(node).items() if key not in _OPENAPI_ONLY}
    nullable = node.pop("nullable", None) is True
    if node.get("type") == "type_unspecified":
        del node["type"]
    if node.get("format") == "enum":
        del node["format"]
    for count in _COUNTS:
        if isinstance(text := node.get(count), str) and text.isdecimal():
            node[count] = int(text)
    return _nullable(node) if nullable else node


def _nullable(node: Schema) -> Schema:
    """A node that allows null, too."""
    types = _types(node)
    if types and "null" not in types:
        node["type"] = [*types, "null"]
    if isinstance(values := node.get("enum"), list) and None not in values:
        node["enum"] = [*values, None]
    if isinstance(branches := node.get("anyOf"), list):
        node["anyOf"] = [*branches, {"type": "null"}]
    return node

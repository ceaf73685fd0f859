"""A value that a JSON schema allows: what the sandbox answers where a shape was asked for.

Covered is what SDKs generate from types: objects, arrays, strings with formats and lengths,
numbers with bounds, enums, unions, and references, also to themselves. Not covered are patterns,
`not`, conditions and uniqueness; such a value may not be valid. The same schema always gives the
same value.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType

Schema = Mapping[str, object]

_TEXT = "sandbox"
_FORMATS: Mapping[object, str] = MappingProxyType(
    {
        "date": "2026-01-01",
        "date-time": "2026-01-01T00:00:00Z",
        "duration": "P1D",
        "email": "sandbox@example.com",
        "hostname": "example.com",
        "ipv4": "127.0.0.1",
        "ipv6": "::1",
        "time": "00:00:00Z",
        "uri": "https://example.com/",
        "uuid": "00000000-0000-4000-8000-000000000000",
    }
)
_GROWTH = MappingProxyType({"null": 0, "object": 2})  # of what is chosen further down; others 1
_LIMITS: tuple[tuple[str, Callable[[float, float], bool]], ...] = (
    ("minimum", operator.ge),
    ("exclusiveMinimum", operator.gt),
    ("maximum", operator.le),
    ("exclusiveMaximum", operator.lt),
)

_SHALLOW = 4  # levels in which optional things are given, too
_VALUES_MAX = 10_000
_CHARACTERS_MAX = 10_000


def example(schema: Schema) -> object:
    """A value for `schema`, as a JSON decoder would give it.

    Raises ValueError where it is no schema, or none that a value of sensible size fits.
    """
    try:
        return _Examples(schema).of(schema, 0)
    except (TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError("it is not a schema that a value can be made for") from error


class _Examples:
    """Makes the values of one document; references point into it."""

    def __init__(self, document: Schema) -> None:
        self._document = document
        self._made = 0

    def of(self, given: object, depth: int) -> object:
        """The value for one schema of the document, `depth` levels down."""
        self._made += 1
        if self._made > _VALUES_MAX:
            raise ValueError("its values are too large")
        schema = self._resolved(given)
        if "const" in schema:
            return schema["const"]
        if isinstance(values := schema.get("enum"), list) and values:
            return values[0]
        for name in ("anyOf", "oneOf"):
            if isinstance(choices := schema.get(name), list) and choices:
                return self.of(self._chosen(choices, depth), depth + 1)
        match _type_of(schema, depth):
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "string":
                return _string(schema)
            case "number" | "integer" as kind:
                return _number(schema, whole=kind == "integer")
            case "boolean":
                return True
        return None

    def _resolved(self, given: object) -> Schema:
        """The schema with its reference followed and its `allOf` merged."""
        schema: Schema = given if isinstance(given, dict) else {}
        rest = {name: value for name, value in schema.items() if name not in ("$ref", "allOf")}
        if isinstance(reference := schema.get("$ref"), str):
            rest = {**self._resolved(self._at(reference)), **rest}
        if isinstance(parts := schema.get("allOf"), list):
            for part in parts:
                rest = _both(rest, self._resolved(part))
        return rest

    def _at(self, reference: str) -> object:
        """What a reference such as `#/$defs/Name` points to."""
        found: object = self._document
        for step in reference.removeprefix("#").split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            raise ValueError(f"{reference} points to no schema")
        return found

    def _chosen(self, choices: list[object], depth: int) -> object:
        """The first alternative; further down one that comes to an end, if there is one."""
        if depth < _SHALLOW:
            return choices[0]
        return min(choices, key=lambda each: _GROWTH.get(_type_of(self._resolved(each), depth), 1))

    def _object(self, schema: Schema, depth: int) -> dict[str, object]:
        given, required = schema.get("properties"), schema.get("required")
        properties: Schema = given if isinstance(given, dict) else {}
        wanted = list(properties) if depth < _SHALLOW else []
        wanted += required if isinstance(required, list) else []
        return {name: self.of(properties.get(name), depth + 1) for name in dict.fromkeys(wanted)}

    def _array(self, schema: Schema, depth: int) -> list[object]:
        """As short as allowed, but not empty near the top."""
        prefix = schema.get("prefixItems")
        first: list[object] = prefix if isinstance(prefix, list) else []
        count = max(_whole(schema, "minItems", 0), len(first), depth < _SHALLOW)
        count = min(count, _whole(schema, "maxItems", count))
        each = [*first, *([schema.get("items")] * min(count, _VALUES_MAX))]
        return [self.of(item, depth + 1) for item in each[:count]]


def _both(one: Schema, other: Schema) -> dict[str, object]:
    """What asks for all that both ask for; of other members that both have, the latter's."""
    merged = {**one, **other}
    for name in one.keys() & other.keys():
        mine, yours = one[name], other[name]
        if isinstance(mine, dict) and isinstance(yours, dict):
            merged[name] = {**mine, **yours}
        elif name == "required" and isinstance(mine, list) and isinstance(yours, list):
            merged[name] = [*mine, *yours]
    return merged


def _type_of(schema: Schema, depth: int) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        something = next((each for each in kind if each != "null"), "null")
        kind = "null" if depth >= _SHALLOW and "null" in kind else something
    if isinstance(kind, str):
        return kind
    if "properties" in schema or "required" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def _string(schema: Schema) -> str:
    if (text := _FORMATS.get(schema.get("format"))) is not None:
        return text
    least = _whole(schema, "minLength", 0)
    if least > _CHARACTERS_MAX:
        raise ValueError("its strings are too long")
    length = min(max(least, len(_TEXT)), _whole(schema, "maxLength", _CHARACTERS_MAX))
    return (_TEXT * (length // len(_TEXT) + 1))[:length]


def _whole(schema: Schema, name: str, default: int) -> int:
    value = schema.get(name)
    return value if isinstance(value, int) else default


def _number(schema: Schema, *, whole: bool) -> float:
    """1 or 0 where that fits, else what is near a bound."""
    step = schema.get("multipleOf")
    if not isinstance(step, int | float) or step <= 0:
        step = 1 if whole else None
    bounds = [bound for name, _ in _LIMITS if isinstance(bound := schema.get(name), int | float)]
    candidates: list[float] = [1, 0]
    for bound in bounds:
        candidates += [bound, bound + 1, bound - 1]
        if step is not None:
            below = math.floor(bound / step)
            candidates += [below * step, (below + 1) * step, (below - 1) * step]
    if bounds:
        candidates.append((min(bounds) + max(bounds)) / 2)
    found = next((value for value in candidates if _fits(value, schema, step)), 1)
    return int(found) if found == int(found) else found


def _fits(value: float, schema: Schema, step: float | None) -> bool:
    if step is not None and not math.isclose(round(value / step) * step, value):
        return False
    return all(
        holds(value, bound)
        for name, holds in _LIMITS
        if isinstance(bound := schema.get(name), int | float)
    )

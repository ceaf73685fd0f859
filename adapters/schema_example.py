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

_WORD = "sandbox"
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
_SHALLOW = 4  # levels in which optional things are given, too
_DEEPEST = 32  # only a schema that no finite value fits gets here


def example(schema: Schema) -> object:
    """A value for `schema`, as `json` would have decoded it."""
    return _Examples(schema).of(schema, 0)


class _Examples:
    def __init__(self, root: Schema) -> None:
        self._root = root

    def of(self, given: object, depth: int) -> object:
        """The value for one schema of the document, `depth` levels down."""
        schema = self._resolved(given)
        if depth > _DEEPEST:
            return None
        if "const" in schema:
            return schema["const"]
        if isinstance(values := schema.get("enum"), list) and values:
            return values[0]
        for name in ("anyOf", "oneOf"):
            if isinstance(choices := schema.get(name), list) and choices:
                return self.of(self._choice(choices, depth), depth + 1)
        kind = _type_of(schema, depth)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind == "string":
            return _string(schema)
        if kind in ("number", "integer"):
            return _number(schema, whole=kind == "integer")
        return True if kind == "boolean" else None

    def _resolved(self, given: object) -> Schema:
        """The schema with its reference followed and its `allOf` merged."""
        schema: Schema = given if isinstance(given, dict) else {}
        for _ in range(_DEEPEST):
            if isinstance(reference := schema.get("$ref"), str):
                rest = {name: value for name, value in schema.items() if name != "$ref"}
                schema = {**self._at(reference), **rest}
            elif isinstance(parts := schema.get("allOf"), list):
                rest = {name: value for name, value in schema.items() if name != "allOf"}
                schema = _merged([rest, *map(self._resolved, parts)])
            else:
                break
        return schema

    def _at(self, reference: str) -> Schema:
        """What a reference such as `#/$defs/Name` points to; anything goes where it is nothing."""
        found: object = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    def _choice(self, choices: list[object], depth: int) -> object:
        """The first alternative; further down one that ends, if there is one."""
        if depth < _SHALLOW:
            return choices[0]
        return min(choices, key=lambda choice: self._growth(self._resolved(choice)))

    def _growth(self, schema: Schema) -> int:
        kind = _type_of(schema, _SHALLOW)
        return ("null", "object").index(kind) * 2 if kind in ("null", "object") else 1

    def _object(self, schema: Schema, depth: int) -> dict[str, object]:
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return {}
        required = schema.get("required")
        wanted = required if depth >= _SHALLOW and isinstance(required, list) else properties
        if depth >= _SHALLOW and required is None:
            wanted = []
        return {name: self.of(properties.get(name), depth + 1) for name in wanted}

    def _array(self, schema: Schema, depth: int) -> list[object]:
        prefix = schema.get("prefixItems")
        first: list[object] = prefix if isinstance(prefix, list) else []
        count = max(_whole(schema.get("minItems"), 0), 0 if depth >= _SHALLOW or first else 1)
        count = min(max(count, len(first)), _whole(schema.get("maxItems"), count + len(first)))
        items = schema.get("items")
        each = [*first, *([items] * (count - len(first)))]
        return [self.of(item, depth + 1) for item in each[:count]]


def _merged(schemas: list[Schema]) -> Schema:
    """One schema that asks for what all ask for; of two equal members the later counts."""
    merged: dict[str, object] = {}
    for schema in schemas:
        for name, value in schema.items():
            there = merged.get(name)
            if isinstance(there, dict) and isinstance(value, dict):
                merged[name] = {**there, **value}
            elif isinstance(there, list) and isinstance(value, list):
                merged[name] = [*there, *value]
            else:
                merged[name] = value
    return merged


def _type_of(schema: Schema, depth: int) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        ends = "null" if depth >= _SHALLOW and "null" in kind else None
        kind = ends or next((each for each in kind if each != "null"), "null")
    if isinstance(kind, str):
        return kind
    if "properties" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def _string(schema: Schema) -> str:
    if (text := _FORMATS.get(schema.get("format"))) is not None:
        return text
    least = _whole(schema.get("minLength"), 0)
    most = _whole(schema.get("maxLength"), max(least, len(_WORD)))
    return (_WORD * (least // len(_WORD) + 1))[: max(least, min(len(_WORD), most))]


def _whole(value: object, default: int) -> int:
    return value if isinstance(value, int) else default


def _number(schema: Schema, *, whole: bool) -> float:
    """1 or 0 where that fits, else what is near a bound."""
    step = schema.get("multipleOf")
    if not isinstance(step, int | float) or step <= 0:
        step = 1 if whole else None
    low, high = (
        next((bound for name in names if isinstance(bound := schema.get(name), int | float)), None)
        for names in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum"))
    )
    candidates: list[float] = [1, 0]
    if low is not None:
        candidates += [low, low + 1, *([] if step is None else _multiples(low, step))]
    if high is not None:
        candidates += [high, high - 1, *([] if step is None else _multiples(high, step))]
    if low is not None and high is not None:
        candidates.append((low + high) / 2)
    found = next((value for value in candidates if _fits(value, schema, step)), 1)
    return int(found) if found == int(found) else found


def _multiples(near: float, step: float) -> list[float]:
    """The multiples of `step` around `near`."""
    below = math.floor(near / step)
    return [count * step for count in (below, below + 1, below - 1)]


def _fits(value: float, schema: Schema, step: float | None) -> bool:
    if step is not None and not math.isclose(round(value / step) * step, value):
        return False
    rules: tuple[tuple[str, Callable[[float, float], bool]], ...] = (
        ("minimum", operator.ge),
        ("exclusiveMinimum", operator.gt),
        ("maximum", operator.le),
        ("exclusiveMaximum", operator.lt),
    )
    return all(
        holds(value, bound)
        for name, holds in rules
        if isinstance(bound := schema.get(name), int | float)
    )

"""Gemini's own schemas, a small part of OpenAPI: any other keyword fails the whole request."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.sandbox.gemini_words import WORDING, camel, unreadable, violated
from adapters.sandbox.script import Json
from adapters.sandbox.shapes import Path, Read, Shapes, a_string, an_object, strings

_TYPES = ("STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL")
_STRING_FORMATS = ("enum", "date-time")
_KEYWORDS_WITH_SCHEMAS = ("items", "additionalProperties")


def schema(at: Path, value: object) -> object:
    """Check a schema at every level."""
    found = an_object(_SCHEMA(at, value))
    kind = a_string(found.get("type"))
    if not kind and "anyOf" not in found:
        raise violated((*at, "type"), "must be specified")
    if kind == "OBJECT" and not found.get("properties"):
        raise violated((*at, "properties"), "should be non-empty for OBJECT type")
    if kind == "ARRAY" and "items" not in found:
        raise violated((*at, "items"), "missing field.")
    if kind == "STRING" and found.get("format", "enum") not in _STRING_FORMATS:
        raise violated((*at, "format"), "only 'enum' and 'date-time' are supported for STRING type")
    if "enum" in found and kind != "STRING":
        raise violated((*at, "enum"), "only allowed for STRING type")
    for index, name in enumerate(strings(found.get("required"))):
        if name not in an_object(found.get("properties")):
            raise violated((*at, "required", index), "property is not defined")
    return found


def as_json_schema(given: Json) -> Json:
    """A schema with the types' names in lower case, at every level."""
    return {name: _lowered(name, value) for name, value in given.items()}


def _lowered(name: str, value: object) -> object:
    if name == "type" and isinstance(value, str):
        return value.lower()
    if name in ("properties", "$defs") and isinstance(value, dict):
        return {each: as_json_schema(an_object(inner)) for each, inner in value.items()}
    if name in _KEYWORDS_WITH_SCHEMAS and isinstance(value, dict):
        return as_json_schema(value)
    if name in ("anyOf", "oneOf", "allOf") and isinstance(value, list):
        return [as_json_schema(an_object(inner)) for inner in value]
    return value


def _type(at: Path, value: object) -> object:
    kind = a_string(_are.string(at, value)).upper()
    if kind not in _TYPES:
        raise WORDING.not_offered(at, _TYPES, value)
    return kind


def _properties(at: Path, value: object) -> object:
    given = an_object(_are.mapping(at, value))
    return {
        name: schema((*at, index, "value"), inner)
        for index, (name, inner) in enumerate(given.items())
    }


def _number_or_text(at: Path, value: object) -> object:
    """What Google writes as a string, being 64 bits long, it also takes as a number."""
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if not isinstance(value, int):
        raise unreadable(at, f"Invalid value at '{at[-1]}' (TYPE_INT64), {value!r}")
    return value


_are = Shapes(WORDING, camel)
_KEYWORDS: Mapping[str, Read] = {
    "type": _type,
    "format": _are.string,
    "title": _are.string,
    "description": _are.string,
    "nullable": _are.boolean,
    "enum": _are.array(_are.string),
    "items": schema,
    "maxItems": _number_or_text,
    "minItems": _number_or_text,
    "properties": _properties,
    "required": _are.array(_are.string),
    "minProperties": _number_or_text,
    "maxProperties": _number_or_text,
    "minLength": _number_or_text,
    "maxLength": _number_or_text,
    "pattern": _are.string,
    "example": _are.anything,
    "default": _are.anything,
    "anyOf": _are.array(schema),
    "propertyOrdering": _are.array(_are.string),
    "minimum": _are.number(),
    "maximum": _are.number(),
}
_SCHEMA = _are.members(_KEYWORDS)

"""What `$ref` stands for, in one schema."""

from __future__ import annotations

from collections.abc import Iterator

from adapters.json_schema.nodes import (
    DEPTH_MAX,
    Given,
    Schema,
    children_of,
    is_schema,
)

_DIGITS_MAX = 9


def definitions_of(schema: Given) -> Schema:
    """The members that hold definitions."""
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema}


def _is_index(key: str) -> bool:
    return key.isascii() and key.isdigit() and len(key) <= _DIGITS_MAX


class References:
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
        yield from children_of(node)
        if "$ref" in node:
            yield self._find(node["$ref"])

    def _find(self, reference: object) -> Given:
        if not isinstance(reference, str) or not reference.startswith("#"):
            return {}
        at: object = self._root
        for name in reference[1:].split("/")[1:]:
            key = name.replace("~1", "/").replace("~0", "~")
            if isinstance(at, list):
                at = at[int(key)] if _is_index(key) and int(key) < len(at) else None
            else:
                at = at.get(key) if is_schema(at) else None
        return at if is_schema(at) else {}

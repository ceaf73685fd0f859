"""Columns of numbers and ids as Postgres reads them: its binary format of one-dimensional arrays.

Thousands of usage events go out in one statement, some twenty columns wide, and a general driver
looks at every number of them for the type that it needs. Here the type is known, and a column is
packed in one step. The statement says what a parameter is (`%b::bigint[]`), so it has no oid.

The format (array_recv in src/backend/utils/adt/arrayfuncs.c): number of dimensions, whether there
are nulls, the elements' oid; for each dimension its length and lower bound; for each element its
length and value. All of it is big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

_HEADER = struct.Struct(">iiI")


@dataclass(frozen=True, slots=True)
class Packed:
    """An array, ready to be sent."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ElementType:
    """Values of one width. `code` is how the `struct` module calls them."""

    oid: int
    code: str
    width: int

    def array(self, values: Sequence[int] | Sequence[bytes]) -> Packed:
        """The values as an array. Raises OverflowError if a number is too wide.

        What is no number is cut, or filled with zeros, to its width.
        """
        count = len(values)
        if not count:
            return Packed(_HEADER.pack(0, 0, self.oid))
        elements: list[int | bytes] = [self.width] * (2 * count)
        elements[1::2] = values
        try:
            return Packed(
                struct.pack(
                    f">iiIii{('i' + self.code) * count}", 1, 0, self.oid, count, 1, *elements
                )
            )
        except struct.error as error:
            raise OverflowError(f"a number of more than {self.width} bytes") from error


# Numbers of pg_type.dat.
BIGINT = ElementType(20, "q", 8)
INTEGER = ElementType(23, "i", 4)
SMALLINT = ElementType(21, "h", 2)
UUID = ElementType(2950, "16s", 16)


class _PackedDumper(Dumper):
    format = Format.BINARY
    oid = 0

    def dump(self, obj: Packed) -> bytes:
        return obj.data


psycopg.adapters.register_dumper(Packed, _PackedDumper)

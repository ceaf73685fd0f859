"""What is wrong with what somebody typed or sent, in words that need no documentation.

The checks of bodies and arguments are pydantic's, and its messages are for programmers: they quote
regular expressions and name its own types. Here each kind of them has words of its own, for the
API, pages and tools alike. Amounts are checked here as well, so that the same is said of each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from ledger.money import NanoUsd, format_usd, parse_usd

_OBJECT = "expected an object with fields"
_WHOLE = "expected a whole number"
_NUMBER = "expected a number"
_YES_OR_NO = "expected true or false"
_TIME = "expected a time such as 2027-01-31T00:00:00Z"
_WORDS: Mapping[str, str] = {
    "missing": "this is missing",
    "extra_forbidden": "there is no such field",
    "value_error": "{error}",
    "literal_error": "expected {expected}",
    "string_type": "expected text",
    "string_too_long": "at most {max_length} characters are possible",
    "string_too_short": "this is missing",
    "string_pattern_mismatch": "it has a character that cannot be kept",
    "string_unicode": "it has a character that cannot be kept",
    "list_type": "expected a list",
    "too_long": "at most {max_length} are possible",
    "too_short": "at least {min_length} is necessary",
    "model_type": _OBJECT,
    "model_attributes_type": _OBJECT,
    "dict_type": _OBJECT,
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": _NUMBER,
    "greater_than_equal": "expected at least {ge}",
    "less_than_equal": "expected at most {le}",
    "bool_type": _YES_OR_NO,
    "bool_parsing": _YES_OR_NO,
    "datetime_type": _TIME,
    "datetime_parsing": _TIME,
    "datetime_from_date_parsing": _TIME,
    "datetime_object_invalid": _TIME,
    "json_invalid": "this is not JSON",
}
_UNKNOWN = "this cannot be read"
_MANY_DIGITS = re.compile(r"0*[1-9][0-9]{9,}(\.[0-9]+)?", re.ASCII)


def problem_of(error: RequestValidationError | ValidationError) -> tuple[str, str]:
    """Where the first of the problems is, with dots between steps, and what it is. Where a problem
    of a request is begins with its part."""
    first = error.errors()[0]
    steps = first["loc"][1:] if isinstance(error, RequestValidationError) else first["loc"]
    if first["type"] == "json_invalid":
        steps = ()  # it is a number of characters
    where = ".".join(str(step) for step in steps or first["loc"][:1])
    return where, _WORDS.get(first["type"], _UNKNOWN).format_map(first.get("ctx", {}))


def dollars(text: str, least: NanoUsd, most: NanoUsd) -> NanoUsd:
    """An amount in dollars between these; ValueError says what is wrong with it."""
    try:
        amount = parse_usd(text)
    except ValueError:
        if not _MANY_DIGITS.fullmatch(text):
            raise
        amount = most + 1
    if least <= amount <= most:
        return amount
    if least == 1:
        raise ValueError(f"it has to be more than 0 and at most {format_usd(most)} dollars")
    raise ValueError(f"it has to be between {format_usd(least)} and {format_usd(most)} dollars")

"""JSON Schema as each provider takes it.

Clients send whatever their validators write; a provider refuses a whole request for one keyword it
does not know. The tables here say which keywords survive where. Every function returns a new
schema, leaves its argument alone, and is bounded in depth and size whatever it is given.

`nodes` and `references` know what a schema is; the others are one provider's rules each.
"""

from adapters.json_schema.anthropic import for_anthropic, for_anthropic_format
from adapters.json_schema.from_gemini import from_openapi
from adapters.json_schema.gemini import for_gemini
from adapters.json_schema.openai import for_openai
from adapters.json_schema.openapi import for_gemini_openapi

__all__ = [
    "for_anthropic",
    "for_anthropic_format",
    "for_gemini",
    "for_gemini_openapi",
    "for_openai",
    "from_openapi",
]

"""What the SDK tests ask for: the same question, tools and shapes through every client."""

from __future__ import annotations

from pydantic import BaseModel

QUESTION = "What is the weather like in Oslo?"
ANSWER = "This is the sandbox of Farebox"  # how its summary begins
SYSTEM = "Be brief."
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5Erk"
    "Jggg=="
)

WEATHER: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
CLOCK: dict[str, object] = {
    "type": "object",
    "properties": {"zone": {"type": "string"}},
    "required": ["zone"],
    "additionalProperties": False,
}
TOOLS = {"get_weather": WEATHER, "get_time": CLOCK}


class City(BaseModel):
    """A shape for structured answers."""

    name: str
    population: int

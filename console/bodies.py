"""What every body that is sent to the API has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """A body with exactly these fields: one that is misspelled is refused, not passed over."""

    model_config = ConfigDict(extra="forbid")

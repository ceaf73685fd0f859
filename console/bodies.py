"""What requests to the API have in common."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, ConfigDict

ID_MAX = 2**63 - 1
"""The highest number that the database gives anything."""

Id = Annotated[int, Path(ge=1, le=ID_MAX)]
"""The number of something, in a path."""


class Body(BaseModel):
    """A body with exactly these fields: one that is misspelled is refused, not passed over."""

    model_config = ConfigDict(extra="forbid")

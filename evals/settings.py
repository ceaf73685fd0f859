"""Settings of routing by evidence: `[routing]`. Nothing acts on them in this version."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, description="a whole number, 0 or more")]
Fraction = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[0-9]{1,6}(\.[0-9]{1,9})?$",
        description='a decimal string in quotes, such as "0.05"',
    ),
]


class RoutingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[routing]`. An empty `shadow_margin` means the billing margin; an empty
    `default_reference` the first chat model.
    """

    enabled: bool = True
    retention_days: Count = 30
    redaction: Literal["off", "standard", "strict"] = "standard"
    default_reference: str = ""
    default_margin: Fraction | None = None
    trace_buffer_mb: Count = 64
    shadow_workers: Count = 1
    shadow_concurrency: Count = 4
    shadow_margin: Fraction | None = None
    otlp_endpoint: str = ""

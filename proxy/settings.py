"""The data plane's settings: `[server]`, `[limits]`, `[tiers.*]` and `[billing]`.

Structs only say which keys exist, their types and their defaults. What spans several keys or
tables is checked where everything is known: `farebox.config`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

import msgspec

_YEAR_SECONDS = 31_536_000  # more is a slip, and dates that far away have no name
Seconds = Annotated[
    float,
    msgspec.Meta(ge=0, le=_YEAR_SECONDS, description="a number of seconds from 0 to a year"),
]
SomeSeconds = Annotated[
    float,
    msgspec.Meta(gt=0, le=_YEAR_SECONDS, description="a number of seconds above 0, at most a year"),
]
Count = Annotated[int, msgspec.Meta(ge=0, description="a whole number, 0 or more")]
Bytes = Annotated[int, msgspec.Meta(ge=1, description="a number of bytes, 1 or more")]
Brand = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[a-z][a-z0-9]{1,19}$",
        description="2 to 20 lower-case letters and digits, a letter first",
    ),
]
DecimalString = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[0-9]{1,6}(\.[0-9]{1,9})?$",
        description='a decimal string in quotes, such as "2.50"',
    ),
]

Fraction = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(0(\.[0-9]{1,9})?|1(\.0{1,9})?)$",
        description='a decimal string from "0" to "1" in quotes, such as "0.20"',
    ),
]

BASIS_POINTS = 10_000


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[server]`. `public_url` is empty where it follows from the address listened on;
    `max_held_bytes` is 0 where it follows from the machine's memory. `trusted_proxies` are
    addresses and networks as `proxy.forwarded` reads them.

    `secret` keeps its `env:` or `file:` form, because the file is made at first start: it is read
    by `farebox.secret`. Empty means `secret` in the data directory.
    """

    listen: str = "127.0.0.1:8080"
    admin_listen: str = "127.0.0.1:9464"
    public_url: str = ""
    workers: Count = 1
    drain_seconds: Seconds = 600
    max_request_seconds: SomeSeconds = 900
    max_body_bytes: Bytes = 64 * 1024 * 1024
    max_head_bytes: Bytes = 64 * 1024
    max_connections: Annotated[int, msgspec.Meta(ge=1, description="a whole number above 0")] = (
        10_000
    )
    max_held_bytes: Count = 0
    head_seconds: SomeSeconds = 10
    body_seconds: SomeSeconds = 30
    keep_alive_seconds: Seconds = 75
    retry_budget: Fraction = "0.20"
    trusted_proxies: tuple[str, ...] = ()
    secret: str = ""
    brand: Brand = "farebox"

    def __repr__(self) -> str:  # the secret may stand in the file itself
        return f"ServerSettings(listen={self.listen!r}, admin_listen={self.admin_listen!r})"


class LimitsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[limits]`. An empty `default_tier` means no limit for accounts made without a tier."""

    default_tier: str = ""
    valkey_url: str = ""

    def __repr__(self) -> str:  # a URL may carry a password
        return f"LimitsSettings(default_tier={self.default_tier!r})"


class TierSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[tiers.NAME]`: limits of an account, over all its keys. 0 means no limit."""

    rpm: Count = 0
    tpm: Count = 0
    concurrent: Count = 0


class BillingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[billing]`. `margin` is a fraction of provider cost, in exact basis points."""

    margin: DecimalString = "0.10"
    allow_unpriced: bool = False
    reserve: Literal["full", "adaptive"] = "full"
    default_max_output_tokens: Annotated[
        int, msgspec.Meta(ge=1, description="a whole number above 0")
    ] = 16_384

    @property
    def margin_bps(self) -> int:
        """The margin in basis points; ValueError where it is not a whole number of them."""
        exact = Decimal(self.margin) * BASIS_POINTS
        if exact != int(exact):
            raise ValueError("finer than a basis point")
        return int(exact)


def parse_address(text: str) -> tuple[str, int]:
    """`host:port` or `[::1]:port` as (host, port). Port 0 lets the system choose.

    Raises ValueError with a sentence fragment that says what is wrong.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError('an address is written "host:port", such as "127.0.0.1:8080"')
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError('an IPv6 address stands in brackets, such as "[::1]:8080"')
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"{port!r} is not a port number from 0 to 65535")
    return host, int(port)
